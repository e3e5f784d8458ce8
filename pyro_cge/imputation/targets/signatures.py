"""Disease signatures: log fold changes between conditions, the genes that stand out, and which names mean the same gene."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ...errors import ConfigError, DataError
from ..effects import Array, Codes

FEWEST = 3  # genes a correlation needs


def log_fold_changes(
    expression: pd.DataFrame,
    condition: Sequence[Hashable] | pd.Series,
    treated: Any,
    control: Any,
    *,
    least: float = 1.0,
) -> pd.Series:
    """``log2(1 + mean of treated) − log2(1 + mean of control)`` of each gene, means taken before the logarithm.

    Parameters
    ----------
    expression : DataFrame ``[n, g]``
        ``log2(1 + level)`` (RPKM, TPM, counts per million), a row a sample.
    condition : sequence ``[n]``
        What was done to each sample, of which ``treated`` (infected) and ``control`` (mock) are compared.
    least : float
        Genes below this mean ``log2(1 + level)`` in both conditions are left out: their changes are noise.

    Raises
    ------
    DataError
        For a condition without samples, and values that are not finite.
    """
    labels = np.asarray(condition)
    if labels.shape != (len(expression),):
        raise DataError(f"condition must name each of the {len(expression)} samples, got shape {list(labels.shape)}")
    means = []
    for name in (treated, control):
        rows = labels == name
        if not rows.any():
            raise DataError(
                f"no sample has condition {name!r}; there are {', '.join(repr(str(v)) for v in pd.unique(labels)[:8])}"
            )
        values = expression.to_numpy(dtype=float)[rows]
        if not np.isfinite(values).all():
            raise DataError(
                f"expression of condition {name!r} has {int((~np.isfinite(values)).sum())} values not finite"
            )
        means.append(np.log2(1 + np.expm1(values * np.log(2)).mean(0)))
    kept = (means[0] >= least) | (means[1] >= least)
    return pd.Series((means[0] - means[1])[kept], index=expression.columns[kept], name="log2fc")


def disease_genes(
    signature: pd.Series,
    *,
    threshold: float | None = None,
    n: int | None = None,
    exclude: Sequence[pd.Series] = (),
    agree: pd.Series | None = None,
) -> pd.Series:
    """Genes a disease changes and its confounders do not, by size of change::

        |signature| > t,   |confounder| ≤ t for each of ``exclude``,   and of ``agree``'s sign where that is given

    Belyaeva et al. compare infected with uninfected cells, exclude what infection does to cells without the receptor and
    what the receptor does alone, and keep what ageing changes in the same direction.

    Parameters
    ----------
    signature : Series gene → log2 fold change
    threshold, n : float or int
        One of them: ``t``, or the number of genes the first two conditions leave; ``t`` is then the largest that leaves
        so many.
    exclude : sequence of Series
        Signatures of confounders. Genes they do not have were not changed by them.
    agree : Series, optional
        A second signature, of genes already chosen: others are dropped, as those it changes in the other direction.

    Returns
    -------
    Series
        Their log2 fold changes, the largest first.

    Raises
    ------
    DataError
        For values that are not finite, genes named twice, and where no gene is left.
    """
    if (threshold is None) == (n is None):
        raise ConfigError("give either threshold= or n=, the number of genes")
    values = checked_signature(signature)
    size = values.abs()
    confounded = pd.Series(0.0, index=values.index)
    for other in exclude:
        confounded = np.maximum(confounded, checked_signature(other).abs().reindex(values.index, fill_value=0.0))
    if n is not None:
        threshold = _threshold(size.to_numpy(), confounded.to_numpy(), n)
    found = values[(size > threshold) & (confounded <= threshold)]
    if agree is not None:
        found = found[found * checked_signature(agree).reindex(found.index, fill_value=0.0) > 0]
    if not len(found):
        raise DataError(
            f"no gene is left: {int((size > threshold).sum())} of {len(values):,} change by more than {threshold:.3g}, others are "
            "confounded or disagree; lower the threshold"
        )
    return found.loc[found.abs().sort_values(ascending=False, kind="stable").index].rename("log2fc")


def matched(
    disease: pd.Index, genes: Sequence[str], aliases: Mapping[str, str] | pd.Series | None = None
) -> tuple[Codes, Codes]:
    """Positions in ``disease`` and in ``genes`` of the genes both have, by name.

    Names are compared as they are and, where that finds nothing, in capitals. ``aliases`` (name in the disease signature
    → name in ``genes``) translates between kinds of names, such as symbols and Entrez numbers.

    Raises
    ------
    DataError
        If fewer than three genes match, with examples of both.
    """
    names = pd.Series(disease.map(_name))
    if aliases is not None:
        table = {_name(k): _name(v) for k, v in dict(aliases).items()}
        names = names.map(lambda name: table.get(name, name))
    there = pd.Series([_name(gene) for gene in genes])
    for change in (lambda column: column, lambda column: column.str.upper()):
        left = change(names)
        place = left[~left.duplicated(keep=False)]  # a name that means two genes means none
        where = change(there).map(pd.Series(place.index, index=place)).fillna(-1).to_numpy(dtype=np.int64)
        if (where >= 0).sum() >= FEWEST:
            return where[where >= 0], np.flatnonzero(where >= 0)
    raise DataError(
        f"{int((where >= 0).sum())} of the {len(there):,} genes of the drugs' signatures ({', '.join(there[:4])}, …) are in the disease "
        f"signature ({', '.join(map(str, disease[:4]))}, …): use one kind of gene names, or give aliases="
    )


def checked_signature(signature: pd.Series) -> pd.Series:
    """A signature of finite numbers with each gene once, its names as text.

    Raises
    ------
    DataError
    """
    if not isinstance(signature, pd.Series):
        raise DataError(f"a signature is a Series gene → log2 fold change, got {type(signature).__name__}")
    values = pd.to_numeric(signature, errors="coerce").astype(float)
    if not np.isfinite(values).all():
        row = int((~np.isfinite(values)).to_numpy().argmax())
        raise DataError(
            f"the signature of gene {values.index[row]} is {signature.iloc[row]}; drop or fill values that are not finite numbers"
        )
    if values.index.has_duplicates:
        raise DataError(
            f"gene {values.index[values.index.duplicated()][0]} is in the signature twice: average it first"
        )
    return values


def _threshold(size: Array, confounded: Array, n: int) -> float:
    """The largest ``t`` with at least ``n`` genes of ``confounded ≤ t < size``."""
    if n < 1:
        raise ConfigError(f"n is a number of genes, got {n}")
    there = confounded < size
    enter, leave = np.sort(confounded[there]), np.sort(size[there])
    at = np.unique(np.concatenate([enter, leave]))  # between them nothing changes
    count = np.searchsorted(enter, at, "right") - np.searchsorted(leave, at, "right")
    if not (count >= n).any():
        raise DataError(f"at no threshold are {n:,} genes left; the most is {int(count.max(initial=0)):,}")
    return float(at[count >= n][-1])


def _name(gene: Any) -> str:
    """Text of a gene's name; Entrez numbers that a table reader made floats are whole again."""
    return str(int(gene)) if isinstance(gene, float) and gene == int(gene) else str(gene)

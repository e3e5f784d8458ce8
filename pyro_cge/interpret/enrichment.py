"""Enrichment of gene programmes in gene sets, transcription-factor targets and pathway footprints.

Nothing is bundled: gene sets are read from files given by the user (GMT, or tables of weights such as DoRothEA's and
PROGENy's). Their gene ids must be those of the programmes: ``programmes.rename(index=symbols)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..data.files import read_frame
from ..errors import ConfigError, DataError

GeneSets = Mapping[str, Sequence[str] | Mapping[str, float]]


def read_gmt(path: str | Path) -> dict[str, list[str]]:
    """Gene sets of a GMT file: a line a set, tab separated: name, description, genes.

    Raises
    ------
    DataError
        If the file cannot be read, or a line has no genes (with its number).
    """
    sets: dict[str, list[str]] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable GMT file ({error})") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, *rest = line.split("\t")
        genes = [gene for gene in (field.strip() for field in rest[1:]) if gene]
        if not genes:
            raise DataError(
                f"{path}: line {number} has no genes; a GMT line is name, description, genes, tab separated"
            )
        if name in sets:
            raise DataError(f"{path}: line {number} repeats the set {name!r}")
        sets[name] = list(dict.fromkeys(genes))
    return sets


def read_weighted_sets(path: str | Path, columns: tuple[str, str, str] | None = None) -> dict[str, dict[str, float]]:
    """Gene sets with weights from a comma-separated table.

    Parameters
    ----------
    path : path
    columns : (set, gene, weight), optional
        Columns of a long table, e.g. ``("tf", "target", "mor")`` of DoRothEA. Without it the table is wide: genes in
        the first column, a column a set (PROGENy); zeros are no members.

    Raises
    ------
    DataError
        If the file cannot be read, lacks a column, or a weight is not a number.
    """
    table = read_frame(path)
    if columns is None:
        if table.shape[1] < 2:
            raise DataError(f"{path}: no set beside the genes of the first column, {table.columns[0]!r}")
        long = [table.iloc[:, [0, j]].set_axis(["gene", "weight"], axis=1) for j in range(1, table.shape[1])]
        table = pd.concat(long, keys=table.columns[1:], names=["set"]).reset_index("set")
        columns = ("set", "gene", "weight")
    if absent := [name for name in columns if name not in table.columns]:
        raise DataError(f"{path}: no column {absent[0]!r}; there are {', '.join(map(repr, table.columns))}")
    name, gene, weight = columns
    if not pd.api.types.is_numeric_dtype(table[weight]):
        raise DataError(f"{path}: column {weight!r} holds weights, but not all of it is numbers")
    table = table[table[weight].fillna(0) != 0]
    return {str(key): dict(zip(part[gene], part[weight], strict=True)) for key, part in table.groupby(name, sort=False)}


def over_representation(programmes: pd.DataFrame, sets: GeneSets, *, n: int = 100, min_size: int = 5) -> pd.DataFrame:
    """Hypergeometric test: are a set's genes among the ``n`` most positive or most negative of a programme?

    ``p = P(overlap or more | n genes drawn from the g of the programme, size of them in the set)``. The background is
    the programme's genes, measured ones only. Weights of sets are ignored.

    Returns
    -------
    DataFrame
        A row per latent, direction (``"up"``, ``"down"``) and set: size, overlap, expected, p, q (Benjamini–Hochberg
        over the table), genes (``"A|B"``); the most significant first.

    Raises
    ------
    DataError
        If no set has ``min_size`` genes among those of the programmes.
    """
    from scipy.stats import hypergeom

    if not 1 <= n < len(programmes):
        raise ConfigError(f"n must be at least 1 and less than the {len(programmes)} genes, got {n}")
    names, member = _membership(programmes, sets, min_size)
    member = member != 0
    genes, weights = programmes.index.to_numpy(), programmes.to_numpy()
    order = np.argsort(-weights, axis=0, kind="stable")
    size = member.sum(0)
    tables = []
    for direction, top in (("up", order[:n]), ("down", order[::-1][:n])):
        for column, latent in enumerate(programmes.columns):
            chosen = member[top[:, column]]
            held = ["|".join(genes[top[inside, column]]) for inside in chosen.T]
            facts = {"set": names, "size": size, "overlap": chosen.sum(0), "genes": held}
            tables.append(pd.DataFrame({"latent": latent, "direction": direction, **facts}))
    table = pd.concat(tables, ignore_index=True)
    table["expected"] = n * table["size"] / len(genes)
    table["p"] = hypergeom.sf(table["overlap"] - 1, len(genes), table["size"], n)
    return _adjusted(table)[["latent", "direction", "set", "size", "overlap", "expected", "p", "q", "genes"]]


def rank_enrichment(programmes: pd.DataFrame, sets: GeneSets, *, ranks: bool = True, min_size: int = 5) -> pd.DataFrame:
    """Do the genes of a set, with their signs and weights, sit high or low in a programme?

    The linear rank statistic with its exact permutation moments: with ``w_k`` the set's weight of gene k (0 outside,
    1 inside where the set has none) and ``r_k`` the gene's rank in the programme, ::

        z = √(g − 1) · Pearson(w, r),        p = 2 Φ(−|z|)

    For sets without weights this is the Mann–Whitney test (normal approximation, ties included); for signed sets such
    as transcription-factor targets or pathway footprints it is the mean weighted rank. The sign of z is that of the
    programme, hence arbitrary until multiplied by the shift. Genes are correlated, so p is a yardstick for ordering,
    not a guarantee.

    Parameters
    ----------
    programmes : DataFrame
        Gene × latent, or effects transposed (gene × environment).
    sets : mapping
        Name → genes, or name → {gene: weight}.
    ranks : bool
        Rank the programme's weights; False uses them as they are (a weighted mean z).
    min_size : int
        Sets with fewer genes among those of the programmes are left out.

    Returns
    -------
    DataFrame
        A row per latent and set: size, correlation, z, p, q (Benjamini–Hochberg over the table); the most significant
        first.
    """
    from scipy.stats import norm, rankdata

    names, member = _membership(programmes, sets, min_size)
    values = programmes.to_numpy(dtype=np.float64)
    values = rankdata(values, axis=0) if ranks else values
    correlation = _unit_columns(values).T @ _unit_columns(member)  # [d, sets]
    z = np.sqrt(len(programmes) - 1) * correlation
    table = pd.DataFrame(
        {
            "latent": np.repeat(programmes.columns.to_numpy(), len(names)),
            "set": np.tile(names, programmes.shape[1]),
            "size": np.tile((member != 0).sum(0), programmes.shape[1]),
            "correlation": correlation.ravel(),
            "z": z.ravel(),
            "p": 2 * norm.sf(np.abs(z)).ravel(),
        }
    )
    return _adjusted(table)


def _membership(programmes: pd.DataFrame, sets: GeneSets, min_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Names of the usable sets and their weights ``[g, sets]``."""
    if programmes.index.has_duplicates:
        twice = programmes.index[programmes.index.duplicated()][0]
        raise DataError(f"gene {twice!r} occurs twice in the programmes; average or drop duplicates first")
    position = {gene: k for k, gene in enumerate(programmes.index)}
    names, columns = [], []
    for name, held in sets.items():
        weights = held if isinstance(held, Mapping) else dict.fromkeys(held, 1.0)
        column = np.zeros(len(position))
        for gene in weights.keys() & position.keys():
            column[position[gene]] = weights[gene]
        if min_size <= np.count_nonzero(column) < len(position):
            names.append(name)
            columns.append(column)
    if not names:
        some = next(iter(sets.values()), ())
        raise DataError(
            f"none of {len(sets)} sets has {min_size} genes in the programmes: they name {list(some)[:3]}, the "
            f"programmes {list(programmes.index[:3])}; bring both to one kind of id with programmes.rename(index=...)"
        )
    return np.array(names, dtype=object), np.stack(columns, 1)


def _unit_columns(values: np.ndarray) -> np.ndarray:
    """Columns centred and of length one; constant ones become zero."""
    centred = values - values.mean(0)
    length = np.linalg.norm(centred, axis=0)
    return np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)


def _adjusted(table: pd.DataFrame) -> pd.DataFrame:
    from scipy.stats import false_discovery_control

    table["q"] = false_discovery_control(table["p"].to_numpy())
    return table.sort_values("p", kind="stable", ignore_index=True)

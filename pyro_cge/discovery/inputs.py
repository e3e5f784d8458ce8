"""What estimators of a graph accept: arrays, tables, AnnData and EnvironmentData, checked once."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ..data.environment import EnvironmentData
from ..errors import ConfigError, DataError

Array = NDArray[np.float64]
UNKNOWN, SPARED, TARGET = 0, 1, 2  # whether an environment changes a gene's mechanism
SAME = 1 - 1e-9  # correlation from which on two columns are one


@dataclass(frozen=True)
class Samples:
    """Values ``x [n, d]`` with environments ``env [n]``, the reference first; names of both."""

    x: Array
    env: NDArray[np.int64]
    genes: list[str]
    environments: list[str]

    @property
    def d(self) -> int:
        return self.x.shape[1]

    @property
    def sizes(self) -> Array:
        """Number of samples of each environment ``[E]``."""
        return np.bincount(self.env, minlength=len(self.environments)).astype(float)

    @property
    def scaled(self) -> Array:
        """Columns with the mean and standard deviation they have in the reference at 0 and 1."""
        reference = self.x[self.env == 0]
        return (self.x - reference.mean(0)) / reference.std(0)

    def grams(self) -> Array:
        """``Σ_i x̃_i x̃_iᵀ`` of each environment, ``x̃ = (scaled x, 1)``: ``[E, d+1, d+1]``.

        Means over rows are rounded to eight decimals: units change the last bits, and a search would follow them.
        """
        rows = np.c_[self.scaled, np.ones(len(self.x))]
        parts = [rows[self.env == e] for e in range(len(self.environments))]
        return np.stack([np.round(part.T @ part / len(part), 8) * len(part) for part in parts])


def samples(x: Any, env: ArrayLike | str | None = None, *, control: Any = None, layer: str | None = None) -> Samples:
    """Values, environments and names of whatever was given: what every estimator's ``fit`` makes of its first arguments.

    Estimators take the result as well, which is how one of an AnnData's layers is chosen::

        OrderSearch().fit(samples(adata, "guide", control="non-targeting", layer="log1p"))

    Parameters
    ----------
    x : array, DataFrame, AnnData, EnvironmentData or Samples
        ``[n, d]``: one row a profile. Columns of a table are numbers, but for that of the environments. Samples are given
        back as they are.
    env : array or str, optional
        Environment of each row, or the column that names it (of the table; of ``obs`` for AnnData and EnvironmentData).
        None: one environment (those of an EnvironmentData).
    control : optional
        Label of the unperturbed environment, which the others are compared with. Default: the control of an
        EnvironmentData, else the first label in order of appearance.
    layer : str, optional
        Of an AnnData, instead of its ``X``.

    Raises
    ------
    DataError
        For anything a graph cannot be estimated from; says which rows or columns.
    """
    if isinstance(x, Samples):
        if env is not None or control is not None or layer is not None:
            raise DataError(
                "these samples have their environments, control and layer already: give them to samples(...)"
            )
        return x
    annotated = not isinstance(x, EnvironmentData) and hasattr(x, "obs") and hasattr(x, "var_names")
    if layer is not None and (not annotated or layer not in x.layers):
        there = f"the AnnData has {list(x.layers)}" if annotated else f"a {type(x).__name__} has none"
        raise DataError(f"no layer {layer!r}: {there}")
    genes: Sequence[str] | None = None
    labels: Any = env
    if isinstance(x, EnvironmentData):
        genes, values = x.gene_names, x.x.double().numpy()
        if env is None:
            labels = np.asarray(x.env_names, dtype=object)[x.env.numpy()]
            if control is None and x.control:
                control = x.env_names[x.control[0]]
        elif isinstance(env, str):
            labels = _column(x.obs, env, "obs")
    elif annotated:
        matrix = x.X if layer is None else x.layers[layer]
        genes, values = list(x.var_names), np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix, float)
        if isinstance(env, str):
            labels = _column(x.obs, env, "obs")
    elif isinstance(x, pd.DataFrame):
        if isinstance(env, str):
            labels = _column(x, env, "the table")
            x = x.drop(columns=env)
        genes, values = list(map(str, x.columns)), _numbers(x)
    else:
        if isinstance(env, str):
            raise DataError(
                f"env={env!r} names a column, but an array has none: give the labels themselves, or a table"
            )
        try:
            values = np.asarray(x, dtype=float)
        except (TypeError, ValueError) as error:
            raise DataError(f"expected numbers, samples × genes ({error})") from error
    if values.ndim != 2:
        raise DataError(f"expected samples × genes, got an array of shape {values.shape}")
    n, d = values.shape
    names = [f"x{j}" for j in range(d)] if genes is None else [str(gene) for gene in genes]
    _check_columns(values, names)
    codes, levels = _environments(labels, n, control)
    result = Samples(values, codes, names, levels)
    small = [level for level, size in zip(levels, result.sizes, strict=True) if size < 2]
    if small:
        raise DataError(
            f"environments with a single sample have no variance: {_some(small)}; leave them out or merge them"
        )
    flat = [name for name, sd in zip(names, values[codes == 0].std(0), strict=True) if sd < 1e-12]
    if flat:
        raise DataError(f"columns that are constant in the reference {levels[0]!r}: {_some(flat)}; leave them out")
    return result


def one_law(X: Any, env: Any = None, control: Any = None) -> Samples:
    """Samples of one environment, for models that describe a single law.

    Raises
    ------
    ConfigError
        If there are more; DataError for unusable data.
    """
    data = samples(X, env, control=control)
    if len(data.environments) > 1:
        raise ConfigError(
            f"this model describes one law, the data have {len(data.environments)} environments: pass the rows of one, or "
            "use OrderSearch or InterventionalSCM, which tell the environments apart"
        )
    return data


def known_targets(targets: Mapping[Any, Collection[str] | str] | None, data: Samples) -> NDArray[np.int8]:
    """``[E, d]``: 0 unknown, 1 not a target, 2 a target. An environment that is named has the targets named and no others.

    A string is one gene.

    Raises
    ------
    ConfigError
        For names that are no environments or genes, and targets of the reference.
    """
    known = np.full((len(data.environments), data.d), UNKNOWN, dtype=np.int8)
    known[0] = SPARED
    for label, named in (targets or {}).items():
        genes = [named] if isinstance(named, str) else list(named)
        strangers = [gene for gene in map(str, genes) if gene not in data.genes]
        if str(label) not in data.environments or strangers:
            what = f"genes {_some(strangers)}" if strangers else f"environment {label!r}"
            raise ConfigError(f"targets name {what}, not in the data (environments {_some(data.environments)})")
        e = data.environments.index(str(label))
        if e == 0 and genes:
            raise ConfigError(
                f"{label!r} is the reference: what is done there cannot be told; name another as control="
            )
        known[e] = SPARED
        known[e, [data.genes.index(str(gene)) for gene in genes]] = TARGET
    return known


def _column(table: pd.DataFrame, name: str, where: str) -> Array:
    if name not in table:
        raise DataError(f"{where} has no column {name!r}; it has {_some([str(column) for column in table])}")
    return np.asarray(table[name])


def _numbers(table: pd.DataFrame) -> Array:
    """Values of a table ``[n, d]``; missing ones are NaN."""
    dates = [str(name) for name, kind in table.dtypes.items() if kind.kind in "mM"]
    try:
        if not dates:
            return table.to_numpy(dtype=float, na_value=np.nan)
    except (TypeError, ValueError):
        pass
    words = dates + [str(name) for name, column in table.items() if not _numeric(column)]
    raise DataError(
        f"columns that are not numbers: {_some(words)}; leave them out, or name the one of the environments as env="
    )


def _numeric(column: pd.Series) -> bool:
    try:
        column.to_numpy(dtype=float, na_value=np.nan)
    except (TypeError, ValueError):
        return False
    return True


def _check_columns(values: Array, names: list[str]) -> None:
    n, d = values.shape
    if n < 3:
        raise DataError(f"a graph needs at least 3 samples, got {n}")
    if d < 2:
        raise DataError(f"a graph needs at least 2 columns, got {d}")
    if len(set(names)) < d:
        raise DataError(
            f"column names must differ, repeated: {_some(sorted({g for g in names if names.count(g) > 1}))}"
        )
    bad = ~np.isfinite(values)
    if bad.any():
        rows = np.flatnonzero(bad.any(1))
        raise DataError(
            f"{int(bad.sum())} values are not finite, the first in row {rows[0]}, column {names[bad[rows[0]].argmax()]!r}"
        )
    centred = values - values.mean(0)
    norm = np.sqrt((centred**2).sum(0))
    constant = [name for name, value in zip(names, norm, strict=True) if value < 1e-12]
    if constant:
        raise DataError(f"constant columns: {_some(constant)}; leave them out")
    # Equal columns have equal projections on random directions, up to sign: no d × d matrix is needed to find them.
    probe = np.random.default_rng(0).standard_normal((2, n)) @ (centred / norm)
    order = np.argsort(np.abs(probe[0]))
    for a, b in itertools.pairwise(order):
        if np.abs(np.abs(probe[:, a]) - np.abs(probe[:, b])).max() < 1e-9 * np.sqrt(n):
            r = float((centred[:, a] * centred[:, b]).sum() / (norm[a] * norm[b]))
            if abs(r) > SAME:
                raise DataError(f"columns {names[a]!r} and {names[b]!r} are the same up to scale; keep one of them")


def _environments(labels: Any, n: int, control: Any) -> tuple[NDArray[np.int64], list[str]]:
    if labels is None:
        if control is not None:
            raise DataError(f"control={control!r} was given without environments: give env= as well")
        return np.zeros(n, dtype=np.int64), ["all"]
    given = np.asarray(labels)
    if given.shape != (n,):
        raise DataError(f"env needs one label a sample, [{n}], got shape {given.shape}")
    missing = pd.isna(given)
    if missing.any():
        raise DataError(f"{int(missing.sum())} samples have no environment, the first in row {int(missing.argmax())}")
    codes, levels = pd.factorize(given)
    names = [str(level) for level in levels]
    if control is not None:
        matches = [i for i, level in enumerate(levels) if level == control or names[i] == str(control)]
        if not matches:
            raise DataError(f"control {control!r} is not among the environments {_some(names)}")
        order = [matches[0], *(i for i in range(len(names)) if i != matches[0])]
        codes, names = np.argsort(order)[codes], [names[i] for i in order]
    return codes.astype(np.int64), names


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:5]))
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"

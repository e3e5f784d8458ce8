"""``Effects``: what each action does in each context, with most pairs never measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ..data.environment import EnvironmentData, some
from ..errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData

Array = NDArray[np.float64]
Codes = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Effects:
    """Contexts × actions × outcomes with missing pairs, one row for each pair that was measured.

    Dimension letters of this subpackage: ``K`` contexts (cell lines), ``A`` actions (drugs, knock-outs), ``m`` measured
    pairs, ``g`` outcomes (genes).

    Parameters
    ----------
    x : array ``[m, g]``
        The signature of each pair, relative to the untreated context: level-5 z-score or log2 fold change.
    context, action : integer arrays ``[m]``
        Positions in ``context_names`` and ``action_names``. No pair twice.
    context_names, action_names, gene_names : sequences of ``K``, ``A``, ``g`` unique strings
    training_only : sequence of str, optional
        Contexts that are never held out; the first is the reference context of kernel methods.
    context_features, action_features : DataFrame ``[K, f]`` and ``[A, f]``, optional
        What is known beforehand of a context (basal log2 expression) and of an action (fingerprint bits), indexed by
        name; rows are brought into the order of the names.

    Raises
    ------
    DataError
        For shapes that disagree, unknown positions, duplicate names or pairs, NaN or infinite values, features that
        miss a name.
    """

    x: Array
    context: Codes
    action: Codes
    context_names: Sequence[str]
    action_names: Sequence[str]
    gene_names: Sequence[str]
    training_only: Sequence[str] = ()
    context_features: pd.DataFrame | None = None
    action_features: pd.DataFrame | None = None

    def __post_init__(self) -> None:
        def keep(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)  # the dataclass is frozen

        keep("x", _matrix(self.x))
        m, n_genes = self.x.shape
        for field in ("context", "action", "gene"):
            keep(f"{field}_names", _unique(getattr(self, f"{field}_names"), f"{field}_names"))
        if len(self.gene_names) != n_genes:
            raise DataError(f"gene_names has {len(self.gene_names)} names but x has {n_genes} columns")
        for field in ("context", "action"):
            names = getattr(self, f"{field}_names")
            codes = np.asarray(getattr(self, field))
            if codes.shape != (m,) or codes.dtype.kind not in "iu":
                raise DataError(
                    f"{field} must be an integer array with one entry a row of x [{m}], got {codes.dtype} of shape "
                    f"{list(codes.shape)}; names go through from_anndata or pandas.factorize"
                )
            if m and not 0 <= codes.min() <= codes.max() < len(names):
                raise DataError(f"{field} has codes outside 0 … {len(names) - 1}: {codes.min()} … {codes.max()}")
            keep(field, codes.astype(np.int64))
            table = getattr(self, f"{field}_features")
            keep(f"{field}_features", None if table is None else _features(table, names, field))
        flat = self.context * self.A + self.action
        if len(np.unique(flat)) < m:
            row = int(pd.Series(flat).duplicated().to_numpy().argmax())
            raise DataError(
                f"the pair {self._pair(row)} is there twice, again in row {row}; average replicates first "
                "(from_anndata(..., replicates='mean'))"
            )
        if unknown := [name for name in self.training_only if name not in set(self.context_names)]:
            raise DataError(f"training_only {unknown[0]!r} is not a context; there are {some(self.context_names)}")
        keep("training_only", tuple(self.training_only))

    # Shapes

    @property
    def m(self) -> int:
        """Measured pairs."""
        return self.x.shape[0]

    @property
    def g(self) -> int:
        """Outcomes (genes)."""
        return self.x.shape[1]

    @property
    def K(self) -> int:
        """Contexts."""
        return len(self.context_names)

    @property
    def A(self) -> int:
        """Actions."""
        return len(self.action_names)

    def __len__(self) -> int:
        return self.m

    def __repr__(self) -> str:
        share = self.m / max(self.K * self.A, 1)
        return f"Effects({self.K:,} contexts × {self.A:,} actions × {self.g:,} genes, {self.m:,} pairs ({share:.0%}))"

    # Views

    @property
    def pairs(self) -> pd.DataFrame:
        """Names of the measured pairs, columns ``context`` and ``action``."""
        names = np.asarray(self.context_names, dtype=object), np.asarray(self.action_names, dtype=object)
        return pd.DataFrame({"context": names[0][self.context], "action": names[1][self.action]})

    @property
    def missing(self) -> pd.DataFrame:
        """Names of the pairs never measured, in the shape of :attr:`pairs`: what there is to impute."""
        context, action = np.nonzero(self.table() < 0)
        return pd.DataFrame(
            {"context": np.asarray(self.context_names)[context], "action": np.asarray(self.action_names)[action]}
        )

    def table(self) -> Codes:
        """``[K, A]``: the row of ``x`` of each pair, −1 where it was not measured."""
        table = np.full((self.K, self.A), -1, dtype=np.int64)
        table[self.context, self.action] = np.arange(self.m)
        return table

    def tensor(self) -> Array:
        """``[K, A, g]``, NaN where a pair was not measured."""
        tensor = np.full((self.K, self.A, self.g), np.nan)
        tensor[self.context, self.action] = self.x
        return tensor

    def take(self, rows: ArrayLike) -> Effects:
        """The measured pairs ``rows``; names and features stay whole, so codes keep their meaning."""
        chosen = np.asarray(rows) if np.size(rows) else np.zeros(0, dtype=np.int64)
        return replace(self, x=self.x[chosen], context=self.context[chosen], action=self.action[chosen])

    def codes(self, pairs: pd.DataFrame | ArrayLike) -> tuple[Codes, Codes]:
        """Context and action codes ``[p]`` of pairs given by name (a table as :attr:`pairs`) or by code ``[p, 2]``.

        Raises
        ------
        DataError
            For names or codes that do not exist, with those that do.
        """
        if isinstance(pairs, pd.DataFrame):
            if absent := [name for name in ("context", "action") if name not in pairs]:
                raise DataError(f"pairs has no column {absent[0]!r}; expected context and action")
            found = []
            for field in ("context", "action"):
                names = getattr(self, f"{field}_names")
                code = pd.Index(names).get_indexer(pairs[field].astype(str))
                if (code < 0).any():
                    unknown = pairs[field].iloc[int((code < 0).argmax())]
                    raise DataError(f"unknown {field} {unknown!r}; there are {some(names)}")
                found.append(code.astype(np.int64))
            return found[0], found[1]
        given = np.asarray(pairs)
        if given.ndim != 2 or given.shape[1] != 2 or (given.size and given.dtype.kind not in "iu"):
            raise DataError(
                f"pairs must be a table with columns context and action, or codes [p, 2]; got {given.shape}"
            )
        given = given.astype(np.int64)
        if given.size and ((given < 0) | (given >= (self.K, self.A))).any():
            raise DataError(f"pairs has codes outside {self.K} contexts × {self.A} actions")
        return given[:, 0], given[:, 1]

    def _pair(self, row: int) -> str:
        return f"({self.context_names[self.context[row]]!r}, {self.action_names[self.action[row]]!r})"

    # From elsewhere

    @classmethod
    def from_anndata(
        cls,
        adata: AnnData,
        *,
        context: str,
        action: str,
        control: str | None = None,
        replicates: str = "error",
        layer: str | None = None,
        training_only: Sequence[str] = (),
        context_features: pd.DataFrame | None = None,
        action_features: pd.DataFrame | None = None,
    ) -> Effects:
        """From AnnData whose ``obs`` columns ``context`` and ``action`` say where and what.

        Parameters
        ----------
        control : str, optional
            The action that means untreated: its mean in the same context is subtracted, and its rows are dropped.
        replicates : {"error", "mean"}
            What to do with several profiles of one pair.
        layer : str, optional
            Instead of ``X``.
        """
        if absent := [name for name in (context, action) if name not in adata.obs]:
            raise DataError(f"{absent[0]!r} is not a column of obs; there are {', '.join(map(str, adata.obs.columns))}")
        if layer is not None and layer not in adata.layers:
            raise DataError(f"layer {layer!r} does not exist; there are {', '.join(adata.layers) or 'none'}")
        values = adata.X if layer is None else adata.layers[layer]
        return cls._from_profiles(
            values.toarray() if hasattr(values, "toarray") else values,
            adata.obs[context],
            adata.obs[action],
            list(adata.var_names.astype(str)),
            control,
            replicates,
            training_only=training_only,
            context_features=context_features,
            action_features=action_features,
        )

    @classmethod
    def from_environments(
        cls,
        data: EnvironmentData,
        *,
        context: str = "cell_line",
        action: str = "perturbagen",
        training_only: Sequence[str] = (),
        context_features: pd.DataFrame | None = None,
        action_features: pd.DataFrame | None = None,
    ) -> Effects:
        """The mean profile of each pair, columns of ``env_table`` (or ``obs``) saying where and what.

        Control environments, where there are any, are subtracted within their context and dropped.
        """
        columns = []
        for name in (context, action):
            if name in data.env_table:
                columns.append(data.env_table[name].iloc[data.env.cpu().numpy()].reset_index(drop=True))
            elif name in data.obs:
                columns.append(data.obs[name].reset_index(drop=True))
            else:
                raise DataError(
                    f"{name!r} is neither in env_table ({', '.join(map(str, data.env_table.columns)) or 'empty'}) nor "
                    f"in obs ({', '.join(map(str, data.obs.columns)) or 'empty'})"
                )
        where, what = columns
        control = None
        if data.control:
            control = "control"
            is_control = data.is_control[data.env].cpu().numpy()
            if ((what == control) & ~is_control).any():
                raise DataError("an action named 'control' is not a control environment; rename it")
            what = what.astype(object).where(~is_control, control)
        return cls._from_profiles(
            data.x.cpu().numpy(),
            where,
            what,
            list(data.gene_names),
            control,
            "mean",
            training_only=training_only,
            context_features=context_features,
            action_features=action_features,
        )

    @classmethod
    def _from_profiles(
        cls,
        x: Any,
        where: pd.Series,
        what: pd.Series,
        genes: list[str],
        control: str | None,
        replicates: str,
        **known: Any,
    ) -> Effects:
        if replicates not in ("error", "mean"):
            raise DataError(f"replicates must be 'error' or 'mean', got {replicates!r}")
        x = _matrix(x)
        for column in (where, what):
            if column.isna().any():
                raise DataError(f"{column.name!r} is missing in row {int(column.isna().to_numpy().argmax())}")
        context, contexts = pd.factorize(where.astype(str), sort=True)
        action, actions = pd.factorize(what.astype(str), sort=True)
        if control is not None:
            if control not in set(actions):
                raise DataError(f"control {control!r} is not an action; there are {some(list(actions))}")
            untreated = action == list(actions).index(control)
            counts = np.bincount(context[untreated], minlength=len(contexts))
            if not counts.all():
                raise DataError(f"context {contexts[int(counts.argmin())]!r} has no profile of the control {control!r}")
            x = x - (sums(x[untreated], context[untreated], len(contexts)) / counts[:, None])[context]
            x, context = x[~untreated], context[~untreated]
            action, actions = pd.factorize(actions[action[~untreated]], sort=True)
        if replicates == "mean":
            flat, inverse = np.unique(context * len(actions) + action, return_inverse=True)
            x = sums(x, inverse, len(flat)) / np.bincount(inverse)[:, None]
            context, action = np.divmod(flat, len(actions))
        return cls(x, context, action, list(contexts), list(actions), genes, **known)


def _matrix(values: Any) -> Array:
    x = np.asarray(values)
    if x.ndim != 2 or x.dtype.kind not in "iuf":
        raise DataError(f"x must be a matrix of numbers [pairs, genes], got {x.dtype} of shape {list(x.shape)}")
    x = x.astype(np.float64, copy=False)
    if not np.isfinite(x.sum()) and not (finite := np.isfinite(x)).all():
        i, j = np.argwhere(~finite)[0]
        raise DataError(
            f"x has {int((~finite).sum())} NaN or infinite entries, the first in row {i}, column {j}; leave a pair out "
            "instead of marking it with NaN"
        )
    return x


def _unique(names: Sequence[str], field: str) -> tuple[str, ...]:
    given = tuple(map(str, names))
    if len(set(given)) < len(given):
        twice = pd.Index(given)[pd.Index(given).duplicated()][0]
        raise DataError(f"{field} has {twice!r} twice")
    return given


def _features(table: pd.DataFrame, names: Sequence[str], field: str) -> pd.DataFrame:
    if not isinstance(table, pd.DataFrame):
        raise DataError(f"{field}_features must be a DataFrame indexed by {field} name, got {type(table).__name__}")
    index = table.index.astype(str)
    if index.has_duplicates:
        raise DataError(f"{field}_features has {index[index.duplicated()][0]!r} twice")
    if lost := [name for name in names if name not in set(index)]:
        raise DataError(f"{field}_features has no row for {len(lost)} of {len(names)} {field}s: {some(lost)}")
    ordered = table.set_axis(index).loc[list(names)]
    values = ordered.to_numpy()
    if values.dtype.kind not in "biuf" or not np.isfinite(values.astype(np.float64)).all():
        raise DataError(f"{field}_features must hold finite numbers only")
    return ordered


def sums(x: Array, codes: NDArray[Any], n: int) -> Array:
    """Sums of the rows of each code ``[n, g]``."""
    from scipy.sparse import csr_array

    rows = np.arange(len(codes))
    return np.asarray(csr_array((np.ones(len(codes)), (codes, rows)), shape=(n, len(codes))) @ x)

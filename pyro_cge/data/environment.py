"""``EnvironmentData``: profiles, the environment each was measured in, and what is known of both."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import networkx as nx
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..errors import DataError
from ..scm.shifts import NoiseShift
from .row_numbers import row_numbers


@dataclass(frozen=True, eq=False)
class Truth:
    """What a simulator knows: latent graph, noise law and targets per environment, noise and causes per profile.

    ``targets [E, d]`` is boolean: latents on which the environment intervenes in any way (shift, scale, hard or
    mechanism). ``z [n, d]`` and ``c [n, d]`` are the exogenous noise and the causes of each profile.
    """

    graph: nx.DiGraph
    shift: NoiseShift
    targets: Tensor
    z: Tensor
    c: Tensor

    def rows(self, index: Tensor) -> Truth:
        chosen = row_numbers(index, len(self.z)).to(self.z.device)
        return replace(self, z=self.z[chosen], c=self.c[chosen])


@dataclass(frozen=True, eq=False)
class Batch:
    """Some profiles, ready for a model: the one argument of every ``model`` and ``guide``.

    Attributes
    ----------
    x : Tensor ``[n, g]`` or None
        Expression; None asks the model to generate it.
    env : Tensor ``[n]``
        Position of each profile's environment within ``envs``.
    envs : Tensor ``[E_b]``
        The environments present, as row numbers of the full environment table; −1 for one that was not in training.
    env_features : Tensor ``[E_b, f]`` or None
    is_control : Tensor ``[E_b]``, bool
        Reference environments, whose noise law is N(0, I).
    env_counts : Tensor ``[E_b]``
        Profiles of each environment in the full data.
    index : Tensor ``[n]``
        Row numbers of the profiles in the full data.
    n_total, n_envs : int
        Profiles and environments in the full data.
    unit : str
        What the rows are: environments ("env"), or the perturbations that environments are made of ("perturbation").
    weight : Tensor ``[E_b]``, optional
        Instead of the ``env_weight`` that follows from the counts.
    """

    x: Tensor | None
    env: Tensor
    envs: Tensor
    env_features: Tensor | None
    is_control: Tensor
    env_counts: Tensor
    index: Tensor
    n_total: int
    n_envs: int
    unit: str = "env"
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    @cached_property
    def env_weight(self) -> Tensor:
        """``[E_b]``: (profiles here / profiles in all) · (n_total / n). Expectation one over minibatches."""
        if self.weight is not None:
            return self.weight
        here = torch.bincount(self.env, minlength=len(self.envs))
        return here / self.env_counts.clamp_min(1) * (self.n_total / len(self.index))

    def part(self, rows: slice) -> Batch:
        """Some of the batch's profiles, with their environments (with all of them where those are no more than the rows)."""
        index, env = self.index[rows], self.env[rows]
        x = None if self.x is None else self.x[rows]
        if len(self.envs) <= len(index):
            return replace(self, x=x, env=env, index=index)
        here, env = torch.unique(env, return_inverse=True)
        tables = {k: v.index_select(0, here) for k in _ENVIRONMENT_TENSORS if (v := getattr(self, k)) is not None}
        return replace(self, x=x, env=env, index=index, **cast(dict[str, Any], tables))

    def unobserved(self) -> Batch:
        """The same cells and environments with no expression: ``x`` becomes a draw, not an observation."""
        return replace(self, x=None)

    def to(self, device: torch.device | str) -> Batch:
        moved = {k: v.to(device) for k in _BATCH_TENSORS if (v := getattr(self, k)) is not None}
        return replace(self, **cast(dict[str, Any], moved))


_ENVIRONMENT_TENSORS = ("envs", "env_features", "is_control", "env_counts", "weight")
_BATCH_TENSORS = ("x", "env", "index", *_ENVIRONMENT_TENSORS)


@dataclass(frozen=True, eq=False)
class EnvironmentData:
    """Expression profiles grouped by environment (drug, dose, knock-out, cell line, ...).

    Parameters
    ----------
    x : Tensor ``[n, g]``, float32
        Expression, in the units of the source (log2 intensity, z-score, counts). Not copied.
    env : Tensor ``[n]``, long
        Environment of each profile, as a row number of ``env_table``.
    gene_names, env_names : sequences of ``g`` and ``E`` unique strings
    env_features : Tensor ``[E, f]``, float32, optional
        What is known of an environment in numbers (fingerprint, log dose, ...). Without them an environment is only
        its name, and models hold a free row for each.
    obs : DataFrame, ``n`` rows, optional
        Per-profile annotations.
    env_table : DataFrame, ``E`` rows, optional
        Per-environment annotations: perturbagen, SMILES, ``dose`` (µM), ``time`` (h), cell line.
    control : sequence of int
        Reference environments (vehicle, untreated): their noise law is N(0, I).
    truth : Truth, optional
        Present when the data were simulated.

    Raises
    ------
    DataError
        For shapes that disagree, duplicate or missing names, environment numbers out of range, a dtype other than
        float32, NaN or infinite values: the message names the field, the row and the fix.
    """

    x: Tensor
    env: Tensor
    gene_names: Sequence[str]
    env_names: Sequence[str]
    env_features: Tensor | None = None
    obs: pd.DataFrame = field(default_factory=pd.DataFrame)
    env_table: pd.DataFrame = field(default_factory=pd.DataFrame)
    control: Sequence[int] = ()
    truth: Truth | None = None

    def __post_init__(self) -> None:
        _check_matrix(self.x, "x", "profile")
        n, n_genes = self.x.shape
        for name in ("gene_names", "env_names"):
            object.__setattr__(self, name, _unique_names(getattr(self, name), name))
        if len(self.gene_names) != n_genes:
            raise DataError(f"gene_names has {len(self.gene_names)} names but x has {n_genes} columns (genes)")
        if not isinstance(self.env, Tensor) or self.env.dtype != torch.long or self.env.shape != (n,):
            given = getattr(self.env, "dtype", type(self.env).__name__), list(getattr(self.env, "shape", []))
            raise DataError(
                f"env must be a long tensor with one entry a profile [{n}], got {given[0]} of shape {given[1]}"
            )
        n_envs = len(self.env_names)
        if n and (bad := ((self.env < 0) | (self.env >= n_envs)).nonzero()).numel():
            row = int(bad[0])
            raise DataError(f"env[{row}] = {int(self.env[row])}, but there are {n_envs} environments (counted from 0)")
        if self.env_features is not None:
            _check_matrix(self.env_features, "env_features", "environment")
            if len(self.env_features) != n_envs:
                raise DataError(f"env_features has {len(self.env_features)} rows but there are {n_envs} environments")
        for name, size in (("obs", n), ("env_table", n_envs)):
            table = getattr(self, name)
            if table.empty and table.shape[1] == 0:
                index = self.env_names if name == "env_table" else [str(i) for i in range(n)]
                object.__setattr__(self, name, pd.DataFrame(index=pd.Index(index, dtype=str)))
            elif len(table) != size:
                raise DataError(f"{name} has {len(table)} rows, expected {size}")
        if named := [e for e in self.control if not hasattr(e, "__index__")]:
            raise DataError(f"control must be row numbers of environments, got {named[0]!r}; see environments(names)")
        control = tuple(sorted({int(e) for e in self.control}))
        if control and not 0 <= control[0] <= control[-1] < n_envs:
            raise DataError(f"control environments {control} out of range for {n_envs} environments")
        object.__setattr__(self, "control", control)

    # Shapes

    @property
    def n(self) -> int:
        """Number of profiles."""
        return self.x.shape[0]

    @property
    def g(self) -> int:
        """Number of genes."""
        return self.x.shape[1]

    @property
    def n_envs(self) -> int:
        """Number of environments, ``E``."""
        return len(self.env_names)

    @property
    def n_features(self) -> int | None:
        """Number of environment features ``f``; None where an environment is only its name."""
        return None if self.env_features is None else self.env_features.shape[1]

    def __len__(self) -> int:
        return self.n

    def __repr__(self) -> str:
        return f"EnvironmentData({summary(self.n, self.g, self)})"

    @cached_property
    def env_counts(self) -> Tensor:
        """Profiles in each environment ``[E]``."""
        return torch.bincount(self.env, minlength=self.n_envs)

    @cached_property
    def is_control(self) -> Tensor:
        """Boolean ``[E]``."""
        mask = torch.zeros(self.n_envs, dtype=torch.bool, device=self.x.device)
        mask[list(self.control)] = True
        return mask

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the numbers and names, to tell data sets apart; the same in memory and streamed."""
        return digest_of([self.x], self.gene_names, self)

    @property
    def shuffling(self) -> None:
        """How the order of an epoch falls short of a perfect shuffle: it does not."""
        return None

    # Parts

    def blocks(self) -> Iterator[Tensor]:
        """Expression some profiles at a time, in row order: here, all at once."""
        yield self.x

    def batch(self, index: Tensor | None = None) -> Batch:
        """Profiles ``index`` (default all) as a :class:`Batch`.

        Where there are no more environments than profiles asked for, all of them travel with every batch, so that
        shapes stay fixed; otherwise only those present.
        """
        if index is None:
            index, x, env = torch.arange(self.n, device=self.x.device), self.x, self.env
        else:
            x, env = self.x.index_select(0, index), self.env.index_select(0, index)
        if self.n_envs <= max(len(index), 1):
            envs, features, control, counts = self._all_envs, self.env_features, self.is_control, self.env_counts
        else:
            envs, env = torch.unique(env, return_inverse=True)
            features = None if self.env_features is None else self.env_features.index_select(0, envs)
            control, counts = self.is_control.index_select(0, envs), self.env_counts.index_select(0, envs)
        return Batch(x, env, envs, features, control, counts, index, self.n, self.n_envs)

    @cached_property
    def _all_envs(self) -> Tensor:
        return torch.arange(self.n_envs, device=self.x.device)

    def batches(self, size: int, shuffle: bool = False) -> Iterator[Batch]:
        """All profiles in batches of ``size``; shuffled with torch's current random state when asked.

        The last batch may be smaller.
        """
        order = torch.randperm(self.n).to(self.x.device) if shuffle else torch.arange(self.n, device=self.x.device)
        for start in range(0, self.n, size):
            yield self.batch(order[start : start + size])

    def cells(self, env: Tensor) -> Batch:
        """A batch without expression: one cell to be generated in each of the environments ``env [n]``."""
        return Batch(
            x=None,
            env=env,
            envs=self._all_envs,
            env_features=self.env_features,
            is_control=self.is_control,
            env_counts=torch.bincount(env, minlength=self.n_envs),
            index=torch.arange(len(env), device=env.device),
            n_total=len(env),
            n_envs=self.n_envs,
        )

    def rows(self, index: Tensor | np.ndarray | Sequence[int]) -> EnvironmentData:
        """The profiles ``index`` (or a mask); the environment table stays whole: environment numbers keep their meaning."""
        chosen = row_numbers(index, self.n).to(self.x.device)
        return replace(
            self,
            x=self.x.index_select(0, chosen),
            env=self.env.index_select(0, chosen),
            obs=self.obs.iloc[chosen.cpu().numpy()],
            truth=None if self.truth is None else self.truth.rows(chosen),
        )

    def among(self, schema: EnvironmentData, env: Tensor) -> EnvironmentData:
        """The same profiles, with the environments of ``schema``; ``env [n]`` are row numbers of its table."""
        truth = self.truth if list(self.env_names) == list(schema.env_names) else None
        return replace(schema, x=self.x, env=env, obs=self.obs, truth=truth)

    def standardized(self, mean: Tensor, scale: Tensor) -> EnvironmentData:
        """The same data with ``(x − mean) / scale``, of one entry a gene each."""
        return replace(self, x=(self.x - mean.to(self.x.device)) / scale.to(self.x.device))

    def environments(self, names: Sequence[str]) -> list[int]:
        """Row numbers of environments by name.

        Raises
        ------
        DataError
            If a name is unknown: never the last row in silence.
        """
        position = {name: i for i, name in enumerate(self.env_names)}
        if unknown := [name for name in names if name not in position]:
            raise DataError(f"unknown environments {unknown[:5]}; this data set has {some(self.env_names)}")
        return [position[name] for name in names]

    def genes(self, names: Sequence[str]) -> EnvironmentData:
        """The genes ``names``, in that order: how data with another gene order are brought into line.

        Raises
        ------
        DataError
            If a gene is missing, with the list.
        """
        if list(names) == list(self.gene_names):
            return self
        position = {name: i for i, name in enumerate(self.gene_names)}
        if missing := [name for name in names if name not in position]:
            raise DataError(
                f"{len(missing)} of {len(names)} genes are missing from the data: {some(missing)}. "
                "Check that gene ids are of the same kind (Entrez or symbol) as in training."
            )
        columns = torch.tensor([position[name] for name in names], dtype=torch.long, device=self.x.device)
        return replace(self, x=self.x.index_select(1, columns), gene_names=list(names))

    def without_constant_genes(self) -> EnvironmentData:
        """Without the genes that never vary."""
        keep = (self.x != self.x[:1]).any(0).cpu().tolist()
        return self.genes([name for name, varies in zip(self.gene_names, keep, strict=True) if varies])

    def schema(self) -> EnvironmentData:
        """The same genes and environments with no profiles: all a model's constructor needs."""
        return replace(self.rows([]), truth=None)

    def to(self, device: torch.device | str) -> EnvironmentData:
        features = None if self.env_features is None else self.env_features.to(device)
        return replace(self, x=self.x.to(device), env=self.env.to(device), env_features=features)


def _check_matrix(values: Tensor, name: str, row: str) -> None:
    if not isinstance(values, Tensor) or values.dtype != torch.float32 or values.dim() != 2:
        given = f"{values.dtype} of shape {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise DataError(f"{name} must be a float32 tensor of shape [{row}s, columns], got {given}; try {name}.float()")
    # The sum is finite unless an entry is not (or it overflows): one cheap pass in the usual case.
    if not values.sum().isfinite() and (bad := (~values.isfinite()).nonzero()).numel():
        i, j = bad[0].tolist()
        raise DataError(
            f"{name} has {len(bad)} NaN or infinite entries, the first in {row} {i}, column {j}: {values[i, j]}. "
            f"Drop those {row}s or impute them first."
        )


def _unique_names(names: Sequence[str], field_name: str) -> pd.Index:
    index = pd.Index(names, dtype=object)
    if wrong := [name for name in index if not isinstance(name, str)]:
        raise DataError(f"{field_name} must be strings, got {wrong[0]!r} ({type(wrong[0]).__name__})")
    if index.has_duplicates:
        raise DataError(f"{field_name} has duplicates: {some(index[index.duplicated()].unique())}")
    return index


def digest_of(blocks: Iterable[Tensor], gene_names: Sequence[str], table: EnvironmentData) -> str:
    """SHA-256 of expression ``[n, g]``, given in blocks of rows, and of what ``table`` knows of environments."""
    sha = hashlib.sha256()
    for tensor in itertools.chain(blocks, (table.env, table.env_features)):
        if tensor is not None:
            sha.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
    sha.update(repr([list(gene_names), list(table.env_names), table.control]).encode())
    return sha.hexdigest()


def summary(n: int, g: int, table: EnvironmentData) -> str:
    """Sizes of ``n`` profiles of ``g`` genes with the environments of ``table``, for people."""
    features = "no features" if table.n_features is None else f"{table.n_features} features"
    return (
        f"{n:,} profiles × {g:,} genes, {table.n_envs:,} environments ({len(table.control)} control, {features})"
        f"{', with truth' if table.truth else ''}"
    )


def some(names: Sequence[str], limit: int = 5) -> str:
    """The first names and how many there are, for a message."""
    shown = ", ".join(map(repr, list(names)[:limit]))
    return shown + (f", … ({len(names)} in all)" if len(names) > limit else "")

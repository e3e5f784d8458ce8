"""``StreamedData``: profiles that are read from disk batch by batch, in shuffled blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar, cast

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from torch import Tensor

from ..errors import DataError
from .environment import Batch, EnvironmentData, Truth, digest_of, summary
from .moments import GeneMoments
from .on_disk import READ_BYTES, DiskMatrix, Rows
from .row_numbers import row_numbers

T = TypeVar("T")

IN_MEMORY = 4 * 2**30  # bytes: more than this is not read at once


@dataclass(frozen=True, eq=False)
class StreamedData:
    """Expression profiles on disk, for training and posteriors as :class:`~pyro_cge.data.environment.EnvironmentData`.

    Made by :func:`~pyro_cge.data.opening.stream`. What is known of profiles and environments is in memory (a number a
    profile, a row of features an environment); expression is read when a batch asks for it, and sparse counts stay
    sparse until then. Memory: two windows of ``window`` profiles, whatever ``n``.

    **Order of an epoch.** The file is cut in blocks of ``block`` consecutive profiles. Blocks are put in random order,
    the profiles in that order are cut in windows of ``window``, and each window is permuted. Two profiles of one batch
    are then of the same block with probability ``≈ block / window``, where a perfect shuffle has ``block / n``; the
    difference is :meth:`clumping`. Where the file is sorted (by plate, by drug) the mean over a batch of ``b`` has
    about ``1 + (b − 1) ρ · clumping`` times its variance under a perfect shuffle, ``ρ ≤ 1`` being the correlation
    within blocks (the design effect of cluster samples, Kish 1965). A window that holds everything is a perfect
    shuffle, in the very order ``EnvironmentData`` draws. Every epoch has every profile once; the order is a function of
    torch's random state as the epoch begins.

    Parameters
    ----------
    matrix : DiskMatrix
    table : EnvironmentData ``[n, 0]``
        Everything but expression and genes.
    gene_names : sequence of ``g`` str
    positions : ndarray ``[n]``
        Rows of the matrix.
    columns : ndarray ``[g]``, optional
        Columns of the matrix; default all.
    block, window : int
        In profiles. Batches shape windows: each holds a whole number of them.
    mean, scale : Tensor ``[g]``, optional
        Expression is given as ``(x − mean) / scale``.
    """

    matrix: DiskMatrix
    table: EnvironmentData
    gene_names: Sequence[str]
    positions: np.ndarray
    columns: np.ndarray | None
    block: int
    window: int
    mean: Tensor | None = None
    scale: Tensor | None = None

    def __repr__(self) -> str:
        kind = "sparse" if self.matrix.sparse else "dense"
        return (
            f"StreamedData({summary(self.n, self.g, self.table)}; {kind} in {self.matrix.path.name}, "
            f"{self.shuffling or 'shuffled as a whole'})"
        )

    # What is known without reading expression

    @property
    def n(self) -> int:
        """Number of profiles."""
        return len(self.positions)

    @property
    def g(self) -> int:
        """Number of genes."""
        return len(self.gene_names)

    @property
    def n_envs(self) -> int:
        """Number of environments, ``E``."""
        return self.table.n_envs

    @property
    def n_features(self) -> int | None:
        """Number of environment features ``f``."""
        return self.table.n_features

    @property
    def env(self) -> Tensor:
        """Environment of each profile ``[n]``."""
        return self.table.env

    @property
    def env_names(self) -> Sequence[str]:
        return self.table.env_names

    @property
    def env_features(self) -> Tensor | None:
        """``[E, f]``"""
        return self.table.env_features

    @property
    def obs(self) -> pd.DataFrame:
        return self.table.obs

    @property
    def env_table(self) -> pd.DataFrame:
        return self.table.env_table

    @property
    def control(self) -> Sequence[int]:
        return self.table.control

    @property
    def truth(self) -> Truth | None:
        return self.table.truth

    @property
    def env_counts(self) -> Tensor:
        """Profiles in each environment ``[E]``."""
        return self.table.env_counts

    @property
    def is_control(self) -> Tensor:
        """Boolean ``[E]``."""
        return self.table.is_control

    @property
    def device(self) -> torch.device:
        """Where batches go."""
        return self.table.env.device

    def __len__(self) -> int:
        return self.n

    def environments(self, names: Sequence[str]) -> list[int]:
        """Row numbers of environments by name; ``DataError`` for an unknown one."""
        return self.table.environments(names)

    def cells(self, env: Tensor) -> Batch:
        """A batch without expression: one cell to be generated in each of the environments ``env [n]``."""
        return self.table.cells(env)

    def schema(self) -> EnvironmentData:
        """The same genes and environments with no profiles: all a model's constructor needs."""
        return replace(self.table.schema(), x=torch.empty(0, self.g, device=self.device), gene_names=self.gene_names)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the numbers and names, that of the same data in memory: one pass over the profiles, when asked."""
        data = self.to("cpu")
        return digest_of(data.blocks(), data.gene_names, data.table)

    # Shuffling

    @property
    def shuffling(self) -> str | None:
        """How the order of an epoch falls short of a perfect shuffle; None where it does not."""
        if self.n <= self.window:
            return None
        return f"blocks of {self.block:,} in windows of {self.window:,} profiles"

    def clumping(self, size: int) -> float:
        """Probability that two profiles of a batch of ``size`` come from one block, less that of a perfect shuffle.

        ``Σ_b n_b (n_b − 1) / n · [1 / (W − 1) − 1 / (n − 1)]`` with ``n_b`` profiles a block and ``W`` a window; at most
        that, because the ends of a window cut blocks. Zero is a perfect shuffle.
        """
        window = self._window(size)
        if self.n <= window:
            return 0.0
        counts = np.minimum(np.unique(self.positions // self.block, return_counts=True)[1], window)
        return float((counts * (counts - 1)).sum() / self.n * (1 / max(window - 1, 1) - 1 / (self.n - 1)))

    def _window(self, size: int) -> int:
        return max(self.window // size, 1) * size

    def _order(self, size: int) -> Tensor:
        """Row numbers ``[n]`` in the order of an epoch, from torch's current random state."""
        window = self._window(size)
        if self.n <= window:
            return torch.randperm(self.n)
        block = torch.from_numpy(self.positions // self.block)
        place = torch.randperm(int(block.max()) + 1)
        order = place[block].argsort(stable=True)
        return torch.cat([part[torch.randperm(len(part))] for part in order.split(window)])

    # Expression

    def batches(self, size: int, shuffle: bool = False) -> Iterator[Batch]:
        """All profiles in batches of ``size``; by shuffled blocks, with torch's current random state, when asked.

        The next window is read while this one is used. The last batch may be smaller.
        """
        order = self._order(size) if shuffle else torch.arange(self.n)
        for index, (values, local) in _ahead(self._read, list(order.split(self._window(size)))):
            for start in range(0, len(index), size):
                part = slice(start, start + size)
                yield self._batch(index[part], _dense(values, local[part]))

    def batch(self, index: Tensor | None = None) -> Batch:
        """Profiles ``index`` (default all) as a :class:`~pyro_cge.data.environment.Batch`.

        Raises
        ------
        DataError
            For more than 4 GiB at once, and where the file cannot be read or holds NaN, with the profile.
        """
        index = torch.arange(self.n) if index is None else index.cpu()
        if (size := 4 * len(index) * self.g) > IN_MEMORY:
            raise DataError(
                f"{len(index):,} profiles × {self.g:,} genes are {size / 2**30:.1f} GiB, too many to hold at once; go "
                "through batches(), or take a part with rows(index)"
            )
        values, local = self._read(index)
        return self._batch(index, _dense(values, local))

    @property
    def x(self) -> Tensor:
        """All expression ``[n, g]``, read into memory; see :meth:`batch` for the limit."""
        return cast(Tensor, self.batch().x)

    def blocks(self) -> Iterator[Tensor]:
        """Expression a few MiB at a time ``[m, g]``, in row order."""
        size = max(1, READ_BYTES // (4 * max(self.g, 1)))
        return (batch.x for batch in self.batches(size) if batch.x is not None)

    def in_memory(self) -> EnvironmentData:
        """The same data, read into memory.

        Raises
        ------
        DataError
            As :meth:`batch`.
        """
        return replace(self.table, x=self.x, gene_names=self.gene_names)

    def _batch(self, index: Tensor, x: Tensor) -> Batch:
        if self.device.type == "cuda":  # the copy goes on while earlier steps do
            x = x.pin_memory()
        x = x.to(self.device, non_blocking=True)
        if self.mean is not None and self.scale is not None:
            x = (x - self.mean) / self.scale
        return replace(self.table.batch(index.to(self.device)), x=x)

    def _read(self, index: Tensor) -> tuple[Rows, np.ndarray]:
        """Expression of the profiles ``index``: distinct rows of the file, and which of them each profile is."""
        rows, local = np.unique(self.positions[index.numpy()], return_inverse=True)
        values = self.matrix.read(rows, self.columns)
        numbers: Any = values.data if scipy.sparse.issparse(values) else values
        # As in memory: the sum is finite unless an entry is not, or it overflows.
        if numbers.dtype.kind == "f" and not torch.from_numpy(numbers).sum().isfinite():
            self._blame(values, rows, ~np.isfinite(numbers))
        return values, local

    def _blame(self, values: Any, rows: np.ndarray, bad: np.ndarray) -> None:
        """Name the first entry that is ``bad``, if one is."""
        if not bad.any():
            return
        if scipy.sparse.issparse(values):
            first = int(bad.argmax())
            i, gene = int(np.searchsorted(values.indptr, first, side="right")) - 1, int(values.indices[first])
        else:
            i, gene = (int(k) for k in np.argwhere(bad)[0])
        name = self.obs.index[int(np.flatnonzero(self.positions == rows[i])[0])]
        raise DataError(
            f"{self.matrix.path}: gene {self.gene_names[gene]!r} of profile {name!r} (row {rows[i]}) is "
            f"{values[i, gene]}; leave the gene or the profile out, or impute it first"
        )

    # Parts

    def rows(self, index: Tensor | np.ndarray | Sequence[int]) -> StreamedData:
        """The profiles ``index`` (row numbers, or a mask), not read yet; the environment table stays whole."""
        chosen = row_numbers(index, self.n)
        return replace(self, table=self.table.rows(chosen), positions=self.positions[chosen.numpy()])

    def genes(self, names: Sequence[str]) -> StreamedData:
        """The genes ``names``, in that order; ``DataError`` where one is missing."""
        if list(names) == list(self.gene_names):
            return self
        self.schema().genes(names)  # says which are missing
        chosen = pd.Index(self.gene_names).get_indexer(pd.Index(names))
        columns, at = chosen if self.columns is None else self.columns[chosen], torch.from_numpy(chosen)
        mean, scale = (None if v is None else v[at.to(v.device)] for v in (self.mean, self.scale))
        return replace(self, gene_names=list(names), columns=columns, mean=mean, scale=scale)

    def without_constant_genes(self) -> StreamedData:
        """Without the genes that never vary, found in one pass."""
        moments = GeneMoments(self.g)
        for x in self.blocks():
            moments.add(x)
        pairs = zip(self.gene_names, moments.constant.tolist(), strict=True)
        return self.genes([name for name, constant in pairs if not constant])

    def among(self, schema: EnvironmentData, env: Tensor) -> StreamedData:
        """The same profiles, with the environments of ``schema``; ``env [n]`` are row numbers of its table."""
        return replace(self, table=self.table.among(schema.genes([]), env))

    def standardized(self, mean: Tensor, scale: Tensor) -> StreamedData:
        """The same data with ``(x − mean) / scale``, done batch by batch."""
        mean, scale = mean.to(self.device), scale.to(self.device)
        if self.mean is not None and self.scale is not None:
            mean, scale = self.mean + self.scale * mean, self.scale * scale
        return replace(self, mean=mean, scale=scale)

    def to(self, device: torch.device | str) -> StreamedData:
        """The same data with batches on ``device``."""
        mean, scale = (None if v is None else v.to(device) for v in (self.mean, self.scale))
        return replace(self, table=self.table.to(device), mean=mean, scale=scale)


def _dense(values: Rows, rows: np.ndarray) -> Tensor:
    """Some rows as a float32 tensor ``[m, g]``."""
    if scipy.sparse.issparse(values):
        return torch.from_numpy(values[rows].toarray().astype(np.float32, copy=False))
    return torch.from_numpy(values).index_select(0, torch.from_numpy(rows))


def _ahead(read: Callable[[Tensor], T], parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, T]]:
    """``(part, read(part))`` in turn, the next being read by a thread meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(read, parts[0]) if parts else None
        for i, part in enumerate(parts):
            assert waiting is not None
            found = waiting.result()
            waiting = pool.submit(read, parts[i + 1]) if i + 1 < len(parts) else None
            yield part, found

"""Tests of conditional independence and of invariance across environments: linear, by kernels, and the graph's own answer.

All three kinds answer the same two questions, each for many cases at once:

``independence(node, others)``
    Is ``node ⟂ o | others∖{o}`` in the reference environment? A p-value for every ``o`` of ``others``.
``invariance(node, given)``
    Is the law of ``node`` given ``given`` that of the reference? A p-value for every other environment.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from .equivalence import d_separated
from .inputs import Samples

Array = NDArray[np.float64]
RIDGE = 1e-9  # of correlations: keeps sets of collinear columns invertible
ENVIRONMENT = "environment"  # a node of its own in the oracle's graphs
RIDGES = np.logspace(-4, 1, 11)  # per sample, from which cross-validation chooses


class Tests(Protocol):
    """What the permutation searches ask."""

    def independence(self, node: int, others: Sequence[int]) -> Array:
        """p-values ``[len(others)]`` of ``node ⟂ o | others∖{o}``."""
        ...

    def invariance(self, node: int, given: Sequence[int]) -> Array:
        """p-values ``[E−1]``: same law of ``node`` given ``given`` as in the reference."""
        ...


class LinearTests:
    """Tests for linear-Gaussian data, from means and covariances: no pass over the samples after the first.

    *Independence* is Fisher's z-transform of the partial correlation, ``√(n − |S| − 3) artanh r ~ N(0, 1)``; the inverse of
    one covariance matrix answers for all ``others``. *Invariance* compares the regression of ``node`` on ``given`` in two
    environments: an F-test of equal coefficients, intercept included (Chow 1960), and an F-test of equal residual variance.
    Under the null the two are independent, so ``1 − (1 − min p)²`` is exactly uniform for Gaussian noise. (Squires et al.
    2020 compare mean and variance of residuals, which is the same but for changed slopes, and not exact.)

    Parameters
    ----------
    data : Samples
        The reference is environment 0.
    """

    def __init__(self, data: Samples) -> None:
        self.sizes, self.grams = data.sizes, data.grams()
        gram, n = self.grams[0], self.sizes[0]
        mean = gram[-1, :-1] / n
        self.covariance = gram[:-1, :-1] / n - np.outer(mean, mean)

    def independence(self, node: int, others: Sequence[int]) -> Array:
        return fisher_z(self.covariance, int(self.sizes[0]), node, others)

    def invariance(self, node: int, given: Sequence[int]) -> Array:
        from scipy.special import fdtrc

        rows = np.array([*given, len(self.covariance)])
        k, here, there = len(rows), self.sizes[0], self.sizes[1:]
        p = np.ones(len(there))
        enough = there > k  # a regression that fits perfectly says nothing
        if here <= k or not enough.any():
            return p
        one, others, n = self.grams[:1], self.grams[1:][enough], there[enough]
        left, separate, both = (_left(part, rows, node) for part in (one, others, one + others))
        total = left + separate
        freedom = here + n - 2 * k
        equal = fdtrc(k, freedom, np.maximum(both - total, 0) / k / (total / freedom))
        ratio = (separate / (n - k)) / (left / (here - k))
        tail = fdtrc(n - k, here - k, ratio)
        p[enough] = 1 - (1 - np.minimum(equal, 2 * np.minimum(tail, 1 - tail))) ** 2
        return p


def fisher_z(covariance: Array, n: int, node: int, others: Sequence[int]) -> Array:
    """p-values ``[len(others)]`` of ``node ⟂ o | others∖{o}`` from ``n`` samples with this covariance ``[d, d]``.

    Ones where there are too few samples to tell.
    """
    from scipy.special import ndtr

    freedom = n - (len(others) - 1) - 3
    if not len(others) or freedom <= 0:
        return np.ones(len(others))
    rows = np.array([node, *others])
    block = covariance[np.ix_(rows, rows)]
    block.flat[:: len(rows) + 1] *= 1 + RIDGE
    inverse = np.linalg.inv(block)
    r = -inverse[0, 1:] / np.sqrt(inverse[0, 0] * np.diagonal(inverse)[1:])
    z = np.sqrt(freedom) * np.arctanh(np.clip(r, -1 + 1e-15, 1 - 1e-15))
    return np.asarray(2 * ndtr(-np.abs(z)))


def _left(grams: Array, rows: NDArray[np.int64], node: int) -> Array:
    """Residual sums of squares ``[E]`` of regressions on ``rows``."""
    block = grams[:, rows[:, None], rows]
    block = block + RIDGE * np.eye(len(rows)) * np.trace(block, axis1=1, axis2=2)[:, None, None] / len(rows)
    right = grams[:, rows, node]
    beta = np.linalg.solve(block, right[..., None])[..., 0]
    return np.maximum(grams[:, node, node] - (right * beta).sum(1), 1e-12)


class KernelTests:
    """Tests that need no linearity: kernel conditional independence (KCI), by low-rank Gaussian kernels.

    Features of ``(node, given)`` and of the other variable are regressed on features of ``given`` (ridge, its size by
    generalised cross-validation); the sum of squared covariances of what is left is compared with a gamma law that has
    its null mean and variance (Zhang, Peters, Janzing & Schölkopf 2011, section 3). Without a condition this is the HSIC.
    *Invariance* is independence of ``node`` and the environment's label given ``given``, over the two environments'
    samples; without a condition, a kernel two-sample test.

    A test takes milliseconds, not microseconds, and conditions on more than a handful of genes have little power.

    Parameters
    ----------
    data : Samples
    most : int
        Samples of an environment to use (a random subset where there are more).
    rank : int
        Landmarks of the Nyström approximation of a kernel.
    random_state : int
    """

    def __init__(self, data: Samples, *, most: int = 500, rank: int = 100, random_state: int = 0) -> None:
        if most < 10 or rank < 2:
            raise ConfigError(f"most must be at least 10 and rank at least 2, got {most} and {rank}")
        rng = np.random.default_rng(random_state)
        self.rank, self.seed, scaled = rank, random_state, data.scaled
        rows = [np.flatnonzero(data.env == e) for e in range(len(data.sizes))]
        self.parts = [scaled[np.sort(rng.permutation(part)[:most])] for part in rows]

    def independence(self, node: int, others: Sequence[int]) -> Array:
        x = self.parts[0]
        return np.array(
            [self._p_value(x[:, [node]], x[:, [o]], x[:, [s for s in others if s != o]]) for o in others], dtype=float
        )

    def invariance(self, node: int, given: Sequence[int]) -> Array:
        p, here = np.ones(len(self.parts) - 1), self.parts[0]
        for e, there in enumerate(self.parts[1:]):
            x = np.concatenate([here, there])
            label = np.repeat([0.0, 1.0], [len(here), len(there)])[:, None]
            p[e] = self._p_value(x[:, [node]], label, x[:, list(given)])
        return p

    def _p_value(self, x: Array, y: Array, z: Array) -> float:
        rng = np.random.default_rng(self.seed)
        return kernel_independence(x, y, z, rank=self.rank, rng=rng)


def kernel_independence(
    x: Array, y: Array, z: Array | None = None, *, rank: int = 100, rng: np.random.Generator | None = None
) -> float:
    """p-value of ``x ⟂ y | z`` by kernels; see :class:`KernelTests`.

    Parameters
    ----------
    x, y, z : array ``[n, ·]``
        ``z`` with no columns, or None: unconditional. A column of two values is compared as it is.
    """
    from scipy.special import gammaincc

    rng = np.random.default_rng(0) if rng is None else rng
    n = len(x)
    if z is None or not z.shape[1]:
        left, right = (_features(part, rank, rng) for part in (x, y))
        gram_left, gram_right = left @ left.T, right @ right.T
        mean = np.trace(gram_left) * np.trace(gram_right) / n
        variance = 2 * (gram_left**2).sum() * (gram_right**2).sum() / n**2
    else:
        condition = _features(z, rank, rng)
        basis, singular, _ = np.linalg.svd(condition, full_matrices=False)
        left = _residual(_features(np.c_[x, z / 2], rank, rng), basis, singular)
        right = _residual(_features(y, rank, rng), basis, singular)
        product = (left @ left.T) * (right @ right.T)
        mean, variance = np.trace(product), 2 * (product**2).sum()
    statistic = ((left.T @ right) ** 2).sum()
    if variance <= 0 or mean <= 0:
        return 1.0
    return float(gammaincc(mean**2 / variance, statistic * mean / variance))


def _features(x: Array, rank: int, rng: np.random.Generator) -> Array:
    """Centred features ``[n, ≤rank]`` whose products approximate a Gaussian kernel (Nyström), its width the median distance."""
    n = len(x)
    scale = x.std(0)
    values = (x - x.mean(0)) / np.where(scale > 0, scale, 1.0)
    if x.shape[1] == 1 and len(np.unique(values[:3])) <= 2 and len(np.unique(values)) <= 2:
        return values
    landmarks = values[rng.permutation(n)[:rank]]
    squares = ((values[:, None, :] - landmarks) ** 2).sum(-1)
    width = np.median(squares[squares > 0])
    cross = np.exp(-squares / width)
    inside = np.exp(-((landmarks[:, None, :] - landmarks) ** 2).sum(-1) / width)
    value, vector = np.linalg.eigh(inside)
    keep = value > 1e-6 * value[-1]
    features = cross @ (vector[:, keep] / np.sqrt(value[keep]))
    return np.asarray(features - features.mean(0))


def _residual(features: Array, basis: Array, singular: Array) -> Array:
    """What a ridge regression on the condition's features leaves, the ridge by generalised cross-validation."""
    n, inside = len(features), basis.T @ features
    total, explained = (features**2).sum(), (inside**2).sum(1)
    best, chosen = np.inf, np.zeros(len(singular))
    for ridge in RIDGES:
        shrink = singular**2 / (singular**2 + ridge)
        left = total - ((2 * shrink - shrink**2) * explained).sum()
        score = left / (n - shrink.sum()) ** 2
        if score < best:
            best, chosen = score, shrink
    return np.asarray(features - basis @ (chosen[:, None] * inside))


class OracleTests:
    """Answers read off a graph: 1 where it says "independent" (d-separated) or "invariant", 0 where it does not.

    A change of environment is a node of its own with edges to that environment's targets: a law is invariant where it is
    d-separated from that node (soft interventions; Yang et al. 2018).

    Parameters
    ----------
    graph : DiGraph
        Over ``0 … d−1``.
    targets : sequence of collections of int
        Of each environment after the reference.
    """

    def __init__(self, graph: nx.DiGraph, targets: Sequence[Collection[int]] = ()) -> None:
        self.graph, self.widened = graph, [nx.DiGraph(graph) for _ in targets]
        for widened, chosen in zip(self.widened, targets, strict=True):
            widened.add_node(ENVIRONMENT)
            widened.add_edges_from((ENVIRONMENT, j) for j in chosen)

    def independence(self, node: int, others: Sequence[int]) -> Array:
        return np.array([d_separated(self.graph, node, o, set(others) - {o}) for o in others], dtype=float)

    def invariance(self, node: int, given: Sequence[int]) -> Array:
        return np.array([d_separated(graph, node, ENVIRONMENT, set(given)) for graph in self.widened], dtype=float)

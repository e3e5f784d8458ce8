"""Candidate neighbours: for each node the few others that an order search among thousands needs to look at.

No single way to choose them is enough: a regression on all others finds the Markov blanket, but children that
explain nearly everything hide parents; a regression on predecessors depends on the order. So they are chosen anew as the
order changes, from what parents leave unexplained and from regressions on the first nodes of the order, up to a random place.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
SINGULAR = 1e-7  # of a candidate's variance that others must leave unexplained


@njit(cache=True, fastmath=True)
def _regress(gram: Array, basis: Array, k: int, new: int, cross: Array, own: Array) -> None:
    """Take out of all nodes' products with a residual (``cross``) and of their residual squares (``own``) what ``new``
    explains; its direction becomes row ``k`` of ``basis``. Regressors are marked by ``own = −1``."""
    row = basis[k]
    row[:] = gram[new]
    for a in range(k):
        row -= basis[a, new] * basis[a]
    row /= math.sqrt(own[new])
    share = cross[new] / math.sqrt(own[new])
    for i in range(len(row)):
        cross[i] -= share * row[i]
        own[i] -= row[i] * row[i]
    own[new] = -1.0


@njit(cache=True, fastmath=True)
def forward(gram: Array, n: float, price: float, most: int, place: Array, limit: Array) -> tuple[Ints, Ints]:
    """Forward regression of each node on those whose ``place`` is below its ``limit``: pairs (regressor, node).

    The next regressor is that with the largest partial correlation given those before it (orthogonal least squares;
    orthogonal matching pursuit would take the largest covariance), while it gains ``price`` nats.
    """
    d = len(gram)
    found, nodes, count = np.empty(d * most, dtype=np.int64), np.empty(d * most, dtype=np.int64), 0
    basis, cross, own = np.empty((most, d)), np.empty(d), np.empty(d)
    least = 1 - math.exp(-2 * price / n)
    for j in range(d):
        cross[:] = gram[j]
        for i in range(d):
            own[i] = gram[i, i] if place[i] < limit[j] else -1.0
        own[j], left = -1.0, gram[j, j]
        for k in range(most):
            best, chosen = least * left, -1
            for i in range(d):
                if own[i] > SINGULAR * n and cross[i] * cross[i] > best * own[i]:
                    best, chosen = cross[i] * cross[i] / own[i], i
            if chosen < 0:
                break
            _regress(gram, basis, k, chosen, cross, own)
            left -= best
            found[count], nodes[count] = chosen, j
            count += 1
    return found[:count], nodes[:count]


@njit(cache=True, fastmath=True)
def related(gram: Array, n: float, price: float, most: int, start: Ints, parents: Ints) -> tuple[Ints, Ints]:
    """Nodes that would each gain ``price`` nats as one more parent, at most the ``most`` best: pairs (other, node).

    Whoever could be a parent of, or have as a parent, a node that changes its place is among them.
    """
    d = len(gram)
    found, nodes, count = np.empty(d * most, dtype=np.int64), np.empty(d * most, dtype=np.int64), 0
    basis, cross, own = np.empty((1 + np.max(np.diff(start)), d)), np.empty(d), np.empty(d)
    share, which = np.empty(d), np.empty(d, dtype=np.int64)
    least = 1 - math.exp(-2 * price / n)
    for j in range(d):
        cross[:] = gram[j]
        for i in range(d):
            own[i] = gram[i, i]
        left = gram[j, j]
        for k in range(start[j + 1] - start[j]):
            i = parents[start[j] + k]
            left -= cross[i] * cross[i] / own[i]
            _regress(gram, basis, k, i, cross, own)
        own[j], hits = -1.0, 0
        for i in range(d):
            if own[i] > SINGULAR * n and cross[i] * cross[i] > least * left * own[i]:
                share[hits], which[hits] = -cross[i] * cross[i] / own[i], i
                hits += 1
        for q in np.argsort(share[:hits])[:most]:
            found[count], nodes[count] = which[q], j
            count += 1
    return found[:count], nodes[:count]


@njit(cache=True)
def blocks_of(gram: Array, scale: Array, start: Ints, near: Ints) -> tuple[Ints, Array]:
    """Gram matrix over each node's candidates and, last, the node itself: offsets ``[d+1]`` and flat values."""
    d = len(start) - 1
    offset = np.zeros(d + 1, dtype=np.int64)
    for v in range(d):
        offset[v + 1] = offset[v] + (start[v + 1] - start[v] + 1) ** 2
    flat = np.empty(offset[d])
    for v in range(d):
        size, at = start[v + 1] - start[v] + 1, offset[v]
        for a in range(size):
            i = near[start[v] + a] if a < size - 1 else v
            for b in range(size):
                j = near[start[v] + b] if b < size - 1 else v
                flat[at] = gram[i, j] * scale[i] * scale[j]
                at += 1
    return offset, flat

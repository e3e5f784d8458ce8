"""Decomposable scores of a node given its parents, from sufficient statistics: compiled, because the search calls nothing else.

Environments' Gram matrices ``A[e] = Σ_i x̃_i x̃_iᵀ`` of ``x̃ = (x, 1)`` hold everything a linear-Gaussian likelihood needs.
A parent set is an array of which the first ``k`` entries count.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ..inputs import TARGET, UNKNOWN

Array = NDArray[np.float64]
# What an edge costs [d, d]; a parameter of a target in each environment [E]; a target; which targets are known [E, d].
Prices = tuple[Array, Array, float, NDArray[np.int8]]
# Scores known already: hashes of (node, parents), their scores, and the random numbers hashes are made of [2, d].
Memo = tuple[NDArray[np.uint64], Array, NDArray[np.uint64]]
TINY = 1e-10
ALTERNATIONS = 8  # of fitting the reference mechanism and choosing targets; two or three are enough


@njit(cache=True)
def cholesky(matrix: Array, size: int, ridge: float) -> Array:
    """Lower triangle of the leading block; ``ridge`` is added to its diagonal."""
    low = np.zeros((size, size))
    for a in range(size):
        for b in range(a + 1):
            total = matrix[a, b]
            for c in range(b):
                total -= low[a, c] * low[b, c]
            if a == b:
                low[a, a] = math.sqrt(max(total + ridge, TINY))
            else:
                low[a, b] = total / low[b, b]
    return low


@njit(cache=True)
def forward(low: Array, right: Array) -> Array:
    """``low⁻¹ right``."""
    size = len(right)
    out = np.empty(size)
    for a in range(size):
        total = right[a]
        for b in range(a):
            total -= low[a, b] * out[b]
        out[a] = total / low[a, a]
    return out


@njit(cache=True)
def backward(low: Array, right: Array) -> Array:
    """``low⁻ᵀ right``."""
    size = len(right)
    out = np.empty(size)
    for a in range(size - 1, -1, -1):
        total = right[a]
        for b in range(a + 1, size):
            total -= low[b, a] * out[b]
        out[a] = total / low[a, a]
    return out


@njit(cache=True)
def norm2(values: Array) -> float:
    """Sum of squares; a loop, because calling BLAS costs more than so few numbers."""
    total = 0.0
    for value in values:
        total += value * value
    return total


@njit(cache=True)
def block(gram: Array, parents: NDArray[np.int64], k: int) -> Array:
    """Rows and columns of the parents and of the intercept (the last one) ``[k+1, k+1]``."""
    last = len(gram) - 1
    out = np.empty((k + 1, k + 1))
    for a in range(k + 1):
        row = parents[a] if a < k else last
        for b in range(k + 1):
            out[a, b] = gram[row, parents[b] if b < k else last]
    return out


@njit(cache=True)
def column(gram: Array, parents: NDArray[np.int64], k: int, node: int) -> Array:
    """Products of the parents and the intercept with the node ``[k+1]``."""
    out = np.empty(k + 1)
    for a in range(k):
        out[a] = gram[parents[a], node]
    out[k] = gram[len(gram) - 1, node]
    return out


@njit(cache=True)
def residual(gram: Array, n: float, node: int, parents: NDArray[np.int64], k: int) -> tuple[Array, Array, float]:
    """Factor of the parents' Gram matrix, products with the node in its terms, and the node's residual sum of squares."""
    low = cholesky(block(gram, parents, k), k + 1, 1e-9 * n)
    half = forward(low, column(gram, parents, k, node))
    return low, half, max(gram[node, node] - norm2(half), TINY * n)


@njit(cache=True)
def local_score(
    grams: Array,
    sizes: Array,
    node: int,
    parents: NDArray[np.int64],
    k: int,
    prices: Prices,
    targets: NDArray[np.bool_],
) -> float:
    """Penalised log-likelihood of a node given its parents, unknown targets profiled out; larger is better.

    ::

        −Σ_e n_e/2 (log σ_e² + 1)  −  Σ_parents edge[parent, node]  −  Σ_targets (target[e] · (k + 2) + once)

    Environments that are no targets share coefficients, intercept and variance with environment 0, the reference; a
    target has its own (shift, scale and parents' effects may all differ), and pays for it what so few samples overfit, if
    that is more. Which are targets is found by alternating,
    from two starts: fit the shared mechanism, then take whatever is better off on its own. Written into ``targets [E]``.
    """
    edge, target, once, known = prices
    count, size, paid = len(sizes), k + 1, 0.0
    for a in range(k):
        paid += edge[parents[a], node]
    if count == 1:
        left = residual(grams[0], sizes[0], node, parents, k)[2]
        return -0.5 * sizes[0] * (math.log(left / sizes[0]) + 1) - paid
    parts, rights, squares = np.empty((count, size, size)), np.empty((count, size)), np.empty(count)
    alone, low, nothing = np.zeros(count), np.empty((size, size)), np.zeros((size, size))
    for e in range(count):
        for a in range(size):
            row = parents[a] if a < k else grams.shape[1] - 1
            for b in range(a + 1):
                parts[e, a, b] = parts[e, b, a] = grams[e, row, parents[b] if b < k else grams.shape[1] - 1]
            rights[e, a] = grams[e, row, node]
        squares[e] = grams[e, node, node]
        alone[e] = _likelihood(parts[e], rights[e], squares[e], sizes[e], 0.0, nothing, nothing[0], 1e-6, low)
        # A regression on few samples fits its own noise: by n p / (n − p − 1) nats on average (Hurvich & Tsai 1989).
        spare = sizes[e] - k - 3
        overfit = sizes[e] * (k + 2) / spare if spare > 0 else np.inf
        alone[e] -= max(target[e] * (k + 2), overfit) + once
        if spare <= 0 and known[e, node] == TARGET:
            alone[e] = 0.0  # so few samples say nothing of a mechanism of their own, whatever its parents
    best, chosen, first = -np.inf, np.zeros(count, dtype=np.bool_), np.zeros(count, dtype=np.bool_)
    for start in range(2):  # from no targets, and from the reference alone
        chosen[0] = False
        for e in range(1, count):
            chosen[e] = known[e, node] == TARGET or (start == 1 and known[e, node] == UNKNOWN)
        _alternate(parts, rights, squares, sizes, alone, known[:, node], chosen)
        same = start == 1
        for e in range(count):
            same = same and chosen[e] == first[e]
        if same:
            break
        first[:] = chosen
        value = _flip(parts, rights, squares, sizes, alone, known[:, node], low, chosen)
        if value > best:
            best = value
            targets[:] = chosen
    return best - paid


@njit(cache=True)
def _likelihood(
    gram: Array,
    right: Array,
    square: float,
    n: float,
    sign: float,
    other: Array,
    other_right: Array,
    ridge: float,
    low: Array,
) -> float:
    """``−n/2 (log σ² + 1)`` of the regression with normal equations ``gram + sign · other``; ``low`` is overwritten."""
    size = len(right)
    for a in range(size):
        for b in range(a + 1):
            total = gram[a, b] + sign * other[a, b]
            for c in range(b):
                total -= low[a, c] * low[b, c]
            low[a, b] = math.sqrt(max(total + ridge * n, TINY)) if a == b else total / low[b, b]
    half = np.empty(size)
    for a in range(size):
        total = right[a] + sign * other_right[a]
        for b in range(a):
            total -= low[a, b] * half[b]
        half[a] = total / low[a, a]
        square -= half[a] * half[a]
    return -0.5 * n * (math.log(max(square, TINY) / n) + 1)


@njit(cache=True)
def _shared(
    parts: Array, rights: Array, squares: Array, sizes: Array, chosen: NDArray[np.bool_]
) -> tuple[Array, Array, float, float]:
    """Normal equations of the environments that are no targets."""
    size = len(rights[0])
    gram, right, square, n = np.zeros((size, size)), np.zeros(size), 0.0, 0.0
    for e in range(len(sizes)):
        if not chosen[e]:
            for a in range(size):
                right[a] += rights[e, a]
                for b in range(size):
                    gram[a, b] += parts[e, a, b]
            square += squares[e]
            n += sizes[e]
    return gram, right, square, n


@njit(cache=True)
def _alternate(
    parts: Array,
    rights: Array,
    squares: Array,
    sizes: Array,
    alone: Array,
    known: NDArray[np.int8],
    chosen: NDArray[np.bool_],
) -> None:
    """Fit what is shared, take as targets (in place) whatever is better off alone, until nothing changes."""
    for _ in range(ALTERNATIONS):
        gram, right, square, n = _shared(parts, rights, squares, sizes, chosen)
        low = cholesky(gram, len(right), 1e-9 * n)
        half = forward(low, right)
        variance = max(square - norm2(half), TINY) / n
        beta = backward(low, half)
        changed = False
        for e in range(1, len(sizes)):
            if known[e] == UNKNOWN:
                left = squares[e]
                for a in range(len(beta)):
                    through = -2 * rights[e, a]
                    for b in range(len(beta)):
                        through += parts[e, a, b] * beta[b]
                    left += beta[a] * through
                gain = alone[e] + 0.5 * sizes[e] * math.log(variance) + 0.5 * left / variance
                changed = changed or (gain > 0) != chosen[e]
                chosen[e] = gain > 0
        if not changed:
            break


@njit(cache=True)
def _flip(
    parts: Array,
    rights: Array,
    squares: Array,
    sizes: Array,
    alone: Array,
    known: NDArray[np.int8],
    low: Array,
    chosen: NDArray[np.bool_],
) -> float:
    """Change one target at a time (in place) while that helps, everything refitted: likelihood less prices."""
    gram, right, square, n = _shared(parts, rights, squares, sizes, chosen)
    shared = _likelihood(gram, right, square, n, 0.0, gram, right, 1e-9, low)
    while True:
        flip, best = -1, shared
        for e in range(1, len(sizes)):
            if known[e] == UNKNOWN:
                sign = 1.0 if chosen[e] else -1.0
                value = _likelihood(
                    gram, right, square + sign * squares[e], n + sign * sizes[e], sign, parts[e], rights[e], 1e-9, low
                )
                value -= sign * alone[e]
                if value > best + 1e-9:
                    flip, best = e, value
        if flip < 0:
            break
        chosen[flip] = not chosen[flip]
        gram, right, square, n = _shared(parts, rights, squares, sizes, chosen)
        shared = _likelihood(gram, right, square, n, 0.0, gram, right, 1e-9, low)
    for e in range(1, len(sizes)):
        if chosen[e]:
            shared += alone[e]
    return shared


def fresh_memo(d: int, slots: int = 1 << 18) -> Memo:
    """An empty memo; a new entry takes the place of whatever has its slot, so that it never grows."""
    salt = np.random.default_rng(0).integers(1, 1 << 63, (2, d), dtype=np.uint64)
    return np.zeros(slots, dtype=np.uint64), np.zeros(slots), salt


@njit(cache=True)
def remembered_score(
    grams: Array,
    sizes: Array,
    node: int,
    parents: NDArray[np.int64],
    k: int,
    prices: Prices,
    targets: NDArray[np.bool_],
    memo: Memo,
) -> float:
    """:func:`local_score`, but ``targets`` are written only where it is not known already."""
    keys, values, salt = memo
    key = salt[0, node]
    for a in range(k):
        key ^= salt[1, parents[a]]
    slot = key & np.uint64(len(keys) - 1)
    if keys[slot] != key:
        values[slot] = local_score(grams, sizes, node, parents, k, prices, targets)
        keys[slot] = key
    return values[slot]


@njit(cache=True)
def score_tables(
    grams: Array, sizes: Array, candidates: NDArray[np.int64], counts: NDArray[np.int64], prices: Prices
) -> Array:
    """:func:`local_score` of every subset of every node's candidates ``[d, 2^m]``, subsets written as bits."""
    d, m = candidates.shape
    table, parents, targets = np.full((d, 1 << m), -np.inf), np.empty(m, dtype=np.int64), np.zeros(len(sizes), np.bool_)
    for j in range(d):
        for subset in range(1 << counts[j]):
            k = 0
            for a in range(counts[j]):
                if subset >> a & 1:
                    parents[k] = candidates[j, a]
                    k += 1
            table[j, subset] = local_score(grams, sizes, j, parents, k, prices, targets)
    return table

"""Decomposable scores of a node given its parents, from sufficient statistics: compiled, because the search calls nothing else.

Environments' Gram matrices ``A[e] = Σ_i x̃_i x̃_iᵀ`` of ``x̃ = (x, 1)`` hold everything a linear-Gaussian likelihood needs.
A parent set is an array of which the first ``k`` entries count.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .inputs import TARGET, UNKNOWN

Array = NDArray[np.float64]
# What an edge costs [d, d], what a parameter of a target costs, and which targets are known [E, d].
Prices = tuple[Array, float, NDArray[np.int8]]
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
def _residual(gram: Array, n: float, node: int, parents: NDArray[np.int64], k: int) -> tuple[Array, Array, float]:
    """Factor of the parents' Gram matrix, products with the node in its terms, and the node's residual sum of squares."""
    low = cholesky(block(gram, parents, k), k + 1, 1e-9 * n)
    half = forward(low, column(gram, parents, k, node))
    return low, half, max(gram[node, node] - half @ half, TINY * n)


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

        −Σ_e n_e/2 (log σ_e² + 1)  −  Σ_parents edge[parent, node]  −  target · (k + 2) · #targets

    Environments that are no targets share coefficients, intercept and variance with environment 0, the reference; a
    target has its own (shift, scale and parents' effects may all differ). Which are targets is found by alternating,
    from two starts: fit the shared mechanism, then take whatever is better off on its own. Written into ``targets [E]``.
    """
    edge, target, known = prices
    count, size, paid = len(sizes), k + 1, 0.0
    for a in range(k):
        paid += edge[parents[a], node]
    if count == 1:
        left = _residual(grams[0], sizes[0], node, parents, k)[2]
        return -0.5 * sizes[0] * (math.log(left / sizes[0]) + 1) - paid
    parts, rights, squares = np.empty((count, size, size)), np.empty((count, size)), np.empty(count)
    alone, price = np.zeros(count), target * (k + 2)
    for e in range(count):
        parts[e], rights[e] = block(grams[e], parents, k), column(grams[e], parents, k, node)
        squares[e] = grams[e, node, node]
        left = _left(parts[e], rights[e], squares[e], 1e-6 * sizes[e])
        alone[e] = -0.5 * sizes[e] * (math.log(left / sizes[e]) + 1) - price
    best, chosen = -np.inf, np.zeros(count, dtype=np.bool_)
    for start in range(2):  # from no targets, and from the reference alone
        chosen[0] = False
        for e in range(1, count):
            chosen[e] = known[e, node] == TARGET or (start == 1 and known[e, node] == UNKNOWN)
        value = _profile(parts, rights, squares, sizes, alone, known[:, node], chosen)
        if value > best:
            best = value
            targets[:] = chosen
    return best - paid


@njit(cache=True)
def _left(gram: Array, right: Array, square: float, ridge: float) -> float:
    """Residual sum of squares of a regression, from its normal equations."""
    half = forward(cholesky(gram, len(right), ridge), right)
    return max(square - float(half @ half), TINY)


@njit(cache=True)
def _likelihood(gram: Array, right: Array, square: float, n: float) -> float:
    return -0.5 * n * (math.log(_left(gram, right, square, 1e-9 * n) / n) + 1)


@njit(cache=True)
def _profile(
    parts: Array,
    rights: Array,
    squares: Array,
    sizes: Array,
    alone: Array,
    known: NDArray[np.int8],
    chosen: NDArray[np.bool_],
) -> float:
    """Choose targets (in place) from where they are: first all at once, then one flip at a time. Likelihood less prices."""
    count = len(sizes)
    gram, right, square, n, value = parts[0].copy(), rights[0].copy(), squares[0], sizes[0], 0.0
    for e in range(1, count):
        if chosen[e]:
            value += alone[e]
        else:
            gram += parts[e]
            right += rights[e]
            square += squares[e]
            n += sizes[e]
    for _ in range(ALTERNATIONS):
        low = cholesky(gram, len(right), 1e-9 * n)
        half = forward(low, right)
        variance = max(square - half @ half, TINY) / n
        beta = backward(low, half)
        changed = False
        for e in range(1, count):
            if known[e] != UNKNOWN:
                continue
            left = squares[e] - 2 * (rights[e] @ beta) + beta @ (parts[e] @ beta)
            gain = alone[e] + 0.5 * sizes[e] * math.log(variance) + 0.5 * left / variance
            if (gain > 0) != chosen[e]:
                changed, chosen[e] = True, gain > 0
                sign = -1.0 if gain > 0 else 1.0
                gram += sign * parts[e]
                right += sign * rights[e]
                square += sign * squares[e]
                n += sign * sizes[e]
                value -= sign * alone[e]
        if not changed:
            break
    shared = _likelihood(gram, right, square, n)
    while True:
        flip, best = -1, shared
        for e in range(1, count):
            if known[e] != UNKNOWN:
                continue
            sign = 1.0 if chosen[e] else -1.0
            other = _likelihood(
                gram + sign * parts[e], right + sign * rights[e], square + sign * squares[e], n + sign * sizes[e]
            )
            other -= sign * alone[e]
            if other > best + 1e-9:
                flip, best = e, other
        if flip < 0:
            return value + shared
        sign = 1.0 if chosen[flip] else -1.0
        chosen[flip] = not chosen[flip]
        gram += sign * parts[flip]
        right += sign * rights[flip]
        square += sign * squares[flip]
        n += sign * sizes[flip]
        value -= sign * alone[flip]
        shared = _likelihood(gram, right, square, n)


@njit(cache=True)
def best_addition(
    grams: Array,
    sizes: Array,
    node: int,
    parents: NDArray[np.int64],
    k: int,
    candidates: NDArray[np.int64],
    prices: Prices,
    now: float,
    targets: NDArray[np.bool_],
) -> tuple[float, int]:
    """Of some candidates the one to add, and the score with it; −1 if none improves on ``now``."""
    best, chosen = now + 1e-9, -1
    if len(sizes) > 1:
        for i in candidates:
            parents[k] = i
            score = local_score(grams, sizes, node, parents, k + 1, prices, targets)
            if score > best:
                best, chosen = score, i
        return best, chosen
    # One environment: what a candidate explains is its partial covariance with the node, given the parents.
    gram, n, edge = grams[0], sizes[0], prices[0]
    low, half, left = _residual(gram, n, node, parents, k)
    row = np.empty(k + 1)
    for i in candidates:
        own, both = gram[i, i], gram[i, node]
        for a in range(k + 1):
            total = gram[parents[a] if a < k else len(gram) - 1, i]
            for b in range(a):
                total -= low[a, b] * row[b]
            row[a] = total / low[a, a]
            own -= row[a] * row[a]
            both -= row[a] * half[a]
        if own > 1e-8 * gram[i, i]:
            share = both * both / (own * left)
            if 0.5 * n * share > (best - now + edge[i, node]) * (1 - share):  # what the logarithm below is at most
                score = now - 0.5 * n * math.log(max(1 - share, TINY)) - edge[i, node]
                if score > best:
                    best, chosen = score, i
    return best, chosen


@njit(cache=True)
def best_removal(
    grams: Array,
    sizes: Array,
    node: int,
    parents: NDArray[np.int64],
    k: int,
    kept: NDArray[np.bool_],
    prices: Prices,
    now: float,
    targets: NDArray[np.bool_],
) -> tuple[float, int]:
    """The place of the parent to leave out, and the score without it; −1 if none improves on ``now``."""
    best, chosen = now + 1e-9, -1
    if len(sizes) > 1:
        for a in range(k):
            gone = parents[a]
            if not kept[gone]:
                parents[a] = parents[k - 1]
                score = local_score(grams, sizes, node, parents, k - 1, prices, targets)
                parents[a] = gone
                if score > best:
                    best, chosen = score, a
        return best, chosen
    # One environment: leaving out a parent adds β_a² / (G⁻¹)_aa to the residual sum of squares.
    gram, n, edge = grams[0], sizes[0], prices[0]
    low, half, left = _residual(gram, n, node, parents, k)
    beta, unit = backward(low, half), np.zeros(k + 1)
    for a in range(k):
        if not kept[parents[a]]:
            unit[:] = 0.0
            unit[a] = 1.0
            inverse = forward(low, unit)
            score = now - 0.5 * n * math.log(1 + beta[a] ** 2 / ((inverse @ inverse) * left)) + edge[parents[a], node]
            if score > best:
                best, chosen = score, a
    return best, chosen


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

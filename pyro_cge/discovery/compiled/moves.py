"""Which parent to add, and which to leave out: the moves of the order search, compiled."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .scores import (
    TINY,
    Array,
    Memo,
    Prices,
    backward,
    block,
    cholesky,
    column,
    forward,
    local_score,
    norm2,
    remembered_score,
    residual,
)

PROMISING = 2  # candidates of each kind that are scored in full


@njit(cache=True)
def _promising(
    grams: Array,
    sizes: Array,
    node: int,
    parents: NDArray[np.int64],
    k: int,
    candidates: NDArray[np.int64],
    prices: Prices,
    targets: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """The few candidates that explain most while targets stay what they are, and those that would with no targets at all.

    The second kind are causes whose changes had to be taken for interventions on the node as long as they were missing.
    """
    edge, price, _, _ = prices
    count, last, gains = len(sizes), grams.shape[1] - 1, np.zeros((2, len(candidates)))
    groups, members = np.zeros((count + 2, count), dtype=np.bool_), 2  # none targeted; what is shared; each target
    groups[0] = True
    groups[1] = ~targets
    extra = np.zeros(count + 2)
    for e in range(count):
        if targets[e]:
            groups[members, e] = True
            extra[members] = price[e]
            members += 1
    row = np.empty(k + 1)
    for g in range(members):
        if g == 1 and members == 2:
            gains[1] = gains[0]
            break
        gram, right, square, n = np.zeros((k + 1, k + 1)), np.zeros(k + 1), 0.0, 0.0
        for e in range(count):
            if groups[g, e]:
                gram += block(grams[e], parents, k)
                right += column(grams[e], parents, k, node)
                square += grams[e, node, node]
                n += sizes[e]
        low = cholesky(gram, k + 1, 1e-9 * n)
        half = forward(low, right)
        left = max(square - norm2(half), TINY * n)
        for c, i in enumerate(candidates):
            own, both = 0.0, 0.0
            row[:] = 0.0
            for e in range(count):
                if groups[g, e]:
                    own += grams[e, i, i]
                    both += grams[e, i, node]
                    for a in range(k + 1):
                        row[a] += grams[e, i, parents[a] if a < k else last]
            explained, size = own, own
            for a in range(k + 1):
                for b in range(a):
                    row[a] -= low[a, b] * row[b]
                row[a] /= low[a, a]
                explained -= row[a] * row[a]
                both -= row[a] * half[a]
            if explained > 1e-8 * size:
                share = min(both * both / (explained * left), 1 - TINY)
                gains[0 if g == 0 else 1, c] += -0.5 * n * math.log(1 - share) - (extra[g] if g > 1 else edge[i, node])
    chosen, found = np.empty(2 * PROMISING, dtype=np.int64), 0
    for kind in range(2):
        for _ in range(PROMISING):
            top = int(np.argmax(gains[kind]))
            if gains[kind, top] > 0:
                chosen[found] = candidates[top]
                found += 1
            gains[0, top] = gains[1, top] = 0.0
    return chosen[:found]


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
    memo: Memo,
) -> tuple[float, int]:
    """Of some candidates the one to add, and the score with it; −1 if none improves on ``now``."""
    best, chosen = now + 1e-9, -1
    if len(sizes) > 1:
        if len(candidates) > 2 * PROMISING:
            local_score(grams, sizes, node, parents, k, prices, targets)
            candidates = _promising(grams, sizes, node, parents, k, candidates, prices, targets)
        for i in candidates:
            parents[k] = i
            score = remembered_score(grams, sizes, node, parents, k + 1, prices, targets, memo)
            if score > best:
                best, chosen = score, i
        return best, chosen
    # One environment: what a candidate explains is its partial covariance with the node, given the parents.
    gram, n, edge = grams[0], sizes[0], prices[0]
    low, half, left = residual(gram, n, node, parents, k)
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
    memo: Memo,
) -> tuple[float, int]:
    """The place of the parent to leave out, and the score without it; −1 if none improves on ``now``."""
    best, chosen = now + 1e-9, -1
    if len(sizes) > 1:
        for a in range(k):
            gone = parents[a]
            if not kept[gone]:
                parents[a] = parents[k - 1]
                score = remembered_score(grams, sizes, node, parents, k - 1, prices, targets, memo)
                parents[a] = gone
                if score > best:
                    best, chosen = score, a
        return best, chosen
    # One environment: leaving out a parent adds β_a² / (G⁻¹)_aa to the residual sum of squares.
    gram, n, edge = grams[0], sizes[0], prices[0]
    low, half, left = residual(gram, n, node, parents, k)
    beta, unit = backward(low, half), np.zeros(k + 1)
    for a in range(k):
        if not kept[parents[a]]:
            unit[:] = 0.0
            unit[a] = 1.0
            inverse = forward(low, unit)
            score = now - 0.5 * n * math.log(1 + beta[a] ** 2 / (norm2(inverse) * left)) + edge[parents[a], node]
            if score > best:
                best, chosen = score, a
    return best, chosen

"""Orders of the genes from how far their noise is from Gaussian: compiled, because the search calls nothing else.

Of a linear model only the residuals' law tells cause from effect. The log-likelihood of a gene given its parents, profiled over
weights, scale and law, is that of a Gaussian plus ``n`` times the residual's negentropy ``J ≥ 0``, for which Hyvärinen's (1998)
maximum-entropy approximation stands::

    J(u) = k₁ (E log cosh u − γ)² + k₂ (E u exp(−u²/2))²,     u at mean 0 and standard deviation 1

Rows of ``x [d, n]`` are genes at mean 0 and standard deviation 1; ``correlation [d, d]`` is theirs.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ..knowledge import FORBIDDEN, REQUIRED
from .scores import Array, backward, cholesky, forward

Places = NDArray[np.int64]
K1, K2, GAMMA = 79.047, 7.4129, 0.37457
TINY = 1e-10
ALONE = 2.5  # standard errors: pairs with a smaller correlation are taken as uncorrelated in the first order


@njit(cache=True, fastmath=True)
def negentropy(u: Array, scale: float) -> float:
    """``J`` of ``u / scale``."""
    cosh, skew = 0.0, 0.0
    for value in u:
        v = abs(value) / scale
        cosh += v + math.log1p(math.exp(-2 * v))
        skew += value / scale * math.exp(-0.5 * v * v)
    n = len(u)
    return K1 * (cosh / n - math.log(2.0) - GAMMA) ** 2 + K2 * (skew / n) ** 2


@njit(cache=True, fastmath=True)
def _ratio(x: Array, y: Array, r: float, left: Array) -> float:
    """Likelihood ratio per sample of ``x → y`` and ``y → x``, less the genes' own entropies (Hyvärinen & Smith 2013)."""
    scale = math.sqrt(max(1 - r * r, TINY))
    for i in range(len(x)):
        left[i] = y[i] - r * x[i]
    forwards = negentropy(left, scale)
    for i in range(len(x)):
        left[i] = x[i] - r * y[i]
    return forwards - negentropy(left, scale)


@njit(cache=True)
def pairwise_order(x: Array, knowledge: NDArray[np.int8]) -> Places:
    """DirectLiNGAM: the gene that looks least like an effect of any other comes next, and is regressed out of the rest.

    Pairs of which neither gene has changed since are not compared again.
    """
    d, n = x.shape
    x, limit = x.copy(), ALONE / math.sqrt(n)
    own, ratio, changed = np.empty(d), np.zeros((d, d)), np.ones(d, dtype=np.bool_)
    left, out, scratch = np.ones(d, dtype=np.bool_), np.empty(d, dtype=np.int64), np.empty(n)
    for position in range(d):
        for j in range(d):
            if left[j] and changed[j]:
                own[j] = negentropy(x[j], 1.0)
        for i in range(d):
            for j in range(i):
                if left[i] and left[j] and (changed[i] or changed[j]):
                    r = x[i] @ x[j] / n
                    ratio[i, j] = 0.0
                    if abs(r) > limit:
                        ratio[i, j] = own[i] - own[j] + _ratio(x[i], x[j], r, scratch)
                    ratio[j, i] = -ratio[i, j]
        chosen, least = -1, np.inf
        for i in range(d):
            free = left[i]
            against = 0.0
            for j in range(d):
                if left[j]:
                    against += min(0.0, ratio[i, j]) ** 2
                    free = free and knowledge[j, i] != REQUIRED
            if free and against < least:
                chosen, least = i, against
        out[position] = chosen
        left[chosen] = False
        changed[:] = False
        for j in range(d):
            if left[j]:
                r = x[chosen] @ x[j] / n
                if abs(r) > limit:
                    changed[j] = True
                    x[j] -= r * x[chosen]
                    x[j] /= math.sqrt(max(x[j] @ x[j] / n, TINY))
    return out


@njit(cache=True)
def _block(correlation: Array, parents: Places, k: int) -> Array:
    out = np.empty((k, k))
    for a in range(k):
        for b in range(k):
            out[a, b] = correlation[parents[a], parents[b]]
    return out


@njit(cache=True)
def _column(correlation: Array, parents: Places, k: int, node: int) -> Array:
    out = np.empty(k)
    for a in range(k):
        out[a] = correlation[parents[a], node]
    return out


@njit(cache=True)
def _grow(
    correlation: Array, n: int, node: int, free: NDArray[np.bool_], edge: float, parents: Places, k: int
) -> tuple[int, float]:
    """Add the best parent among ``free`` until none pays its price: number, and share of variance left."""
    d, most = len(correlation), len(parents)
    variance, covariance, rows = np.ones(d), correlation[:, node].copy(), np.zeros((most, d))
    left, forced, a = 1.0, k, 0
    while True:
        if a < forced:
            chosen = parents[a]
        elif a < most:
            chosen, best = -1, 1 - math.exp(-2 * edge / n)
            for i in range(d):
                if free[i] and variance[i] > 1e-8:
                    share = covariance[i] ** 2 / (variance[i] * left)
                    if share > best:
                        chosen, best = i, share
            if chosen < 0:
                return a, left
            parents[a] = chosen
        else:
            return a, left
        free[chosen] = False
        root = math.sqrt(max(variance[chosen], 1e-8))
        along = covariance[chosen] / root
        for i in range(d):
            total = correlation[chosen, i]
            for b in range(a):
                total -= rows[b, chosen] * rows[b, i]
            rows[a, i] = total / root
            variance[i] -= rows[a, i] ** 2
            covariance[i] -= rows[a, i] * along
        left = max(left - along * along, TINY)
        a += 1


@njit(cache=True)
def _shrink(correlation: Array, n: int, node: int, parents: Places, k: int, forced: int, edge: float) -> int:
    """Leave out the parent that is worth least until all pay their price (the first ``forced`` stay)."""
    while k > forced:
        low = cholesky(_block(correlation, parents, k), k, 1e-9)
        half = forward(low, _column(correlation, parents, k, node))
        beta, left, unit = backward(low, half), max(1 - float(half @ half), TINY), np.zeros(k)
        least, drop = edge, -1
        for a in range(forced, k):
            unit[:] = 0.0
            unit[a] = 1.0
            inverse = forward(low, unit)
            loss = 0.5 * n * math.log1p(beta[a] ** 2 / ((inverse @ inverse) * left))
            if loss < least:
                least, drop = loss, a
        if drop < 0:
            break
        parents[drop] = parents[k - 1]
        k -= 1
    return k


@njit(cache=True)
def coefficients(correlation: Array, node: int, parents: Places, k: int) -> Array:
    """Of the regression on the first ``k`` parents."""
    low = cholesky(_block(correlation, parents, k), k, 1e-9)
    return backward(low, forward(low, _column(correlation, parents, k, node)))


@njit(cache=True)
def local_score(x: Array, correlation: Array, node: int, parents: Places, k: int, edge: float) -> float:
    """``n (J − log σ) − edge · k``: penalised log-likelihood, up to a constant."""
    left = x[node].copy()
    beta = coefficients(correlation, node, parents, k)
    for a in range(k):
        left -= beta[a] * x[parents[a]]
    n = len(left)
    scale = math.sqrt(max(left @ left / n, TINY))
    return n * (negentropy(left, scale) - math.log(scale)) - edge * k


@njit(cache=True)
def _refit(data: tuple, node: int, place: Places, limit: int, parents: Places) -> tuple[int, float]:
    """Parents (written into ``parents``) among the genes placed before ``limit``: number and score."""
    x, correlation, knowledge, edge = data
    d, k = len(place), 0
    free = np.zeros(d, dtype=np.bool_)
    for i in range(d):
        if knowledge[i, node] == REQUIRED:
            parents[k] = i
            k += 1
        elif place[i] < limit and i != node and knowledge[i, node] != FORBIDDEN:
            free[i] = True
    forced, n = k, x.shape[1]
    k, _ = _grow(correlation, n, node, free, edge, parents, k)
    k = _shrink(correlation, n, node, parents, k, forced, edge)
    return k, local_score(x, correlation, node, parents, k, edge)


@njit(cache=True)
def _helps(data: tuple, node: int, new: int, parents: Places, k: int) -> bool:
    """Whether ``new`` would pay its price as one more parent."""
    x, correlation, knowledge, edge = data
    if knowledge[new, node] == FORBIDDEN or k >= len(parents):
        return False
    low = cholesky(_block(correlation, parents, k), k, 1e-9)
    own, its = forward(low, _column(correlation, parents, k, node)), forward(low, _column(correlation, parents, k, new))
    left, free = max(1 - float(own @ own), TINY), 1 - float(its @ its)
    if free < 1e-8:
        return False
    share = (correlation[node, new] - own @ its) ** 2 / (left * free)
    return -0.5 * x.shape[1] * math.log(max(1 - share, TINY)) > edge


@njit(cache=True)
def _has(parents: Places, k: int, node: int) -> bool:
    found = False
    for a in range(k):
        found = found or parents[a] == node
    return found


@njit(cache=True)
def _swap(
    data: tuple, order: Places, place: Places, q: int, parents: NDArray[np.int64], counts: Places, scores: Array
) -> None:
    """Exchange the genes at ``q`` and ``q + 1`` (in place): the two are all whose parents change."""
    first, second = order[q], order[q + 1]
    order[q], order[q + 1] = second, first
    place[second], place[first] = q, q + 1
    if _has(parents[second], counts[second], first):
        counts[second], scores[second] = _refit(data, second, place, q, parents[second])
    if _helps(data, first, second, parents[first], counts[first]):
        counts[first], scores[first] = _refit(data, first, place, q + 1, parents[first])


@njit(cache=True)
def _reinsert(
    data: tuple,
    order: Places,
    place: Places,
    node: int,
    parents: NDArray[np.int64],
    counts: Places,
    scores: Array,
    before: NDArray[np.bool_],
) -> bool:
    """Walk the gene to both sides and leave it where the total score is best. Whether it moved."""
    d, home = len(order), place[node]
    best, target, now = 1e-6, home, scores.sum()
    kept = (parents.copy(), counts.copy(), scores.copy())
    for step in (-1, 1):
        at = home
        while 0 <= at + step < d:
            other = order[at + step]
            if before[other, node] if step < 0 else before[node, other]:
                break
            _swap(data, order, place, min(at, at + step), parents, counts, scores)
            at += step
            gain = scores.sum() - now
            if gain > best:
                best, target = gain, at
        while at != home:  # back home, with the parents it had
            neighbour = order[at - step]
            order[at], order[at - step] = neighbour, node
            place[neighbour], place[node] = at, at - step
            at -= step
        parents[:], counts[:], scores[:] = kept
    step = 1 if target > home else -1
    for at in range(home, target, step):
        _swap(data, order, place, min(at, at + step), parents, counts, scores)
    return target != home


@njit(cache=True)
def search(
    x: Array,
    correlation: Array,
    knowledge: NDArray[np.int8],
    before: NDArray[np.bool_],
    order: Places,
    edge: float,
    most: int,
    sweeps: int,
) -> tuple[Places, NDArray[np.int64], Places, Array]:
    """Order, parents, their numbers and scores after reinsertions, from the order given."""
    d = len(order)
    data = (x, correlation, knowledge, edge)
    order, place = order.copy(), np.empty(d, dtype=np.int64)
    place[order] = np.arange(d)
    parents, counts, scores = np.zeros((d, most), dtype=np.int64), np.zeros(d, dtype=np.int64), np.zeros(d)
    for node in range(d):
        counts[node], scores[node] = _refit(data, node, place, place[node], parents[node])
    for _ in range(sweeps):
        moved = False
        for node in order.copy():
            moved = _reinsert(data, order, place, node, parents, counts, scores, before) or moved
        if not moved:
            break
    return order, parents, counts, scores

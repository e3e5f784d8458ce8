"""The posterior of orders, compiled: summed exactly over parent sets, drawn exactly or by Gibbs steps.

Each node ``j`` has up to ``m`` candidate parents ``candidates[j]`` and a table ``weight[j, S]`` of the log weight of every subset
``S`` of them, written as bits. Given an order, nodes choose their parents independently among those before them, so that

    P(order) ∝ Π_j exp(Σ_{i before j} absent[i, j]) · Σ_{S ⊆ candidates before j} exp(weight[j, S])

Friedman & Koller 2003 (sums over parent sets given an order); Koivisto & Sood 2004 (sums over orders by dynamic programming).
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .scores import Array, cholesky, forward, norm2

Indices = NDArray[np.int64]


@njit(cache=True)
def gaussian_evidence(gram: Array, n: float, node: int, parents: Indices, k: int, free: float, t: float) -> float:
    """Log marginal likelihood of a node given ``k`` parents in a linear model with conjugate prior (BGe)::

        σ² ~ InverseGamma((free + k)/2, t/2),   w ~ N(0, σ²/t · I)

    Graphs that imply the same independences get the same product over nodes (Geiger & Heckerman 2002).
    """
    low, right = np.empty((k, k)), np.empty(k)
    for a in range(k):
        right[a] = gram[parents[a], node]
        for b in range(a + 1):
            low[a, b] = gram[parents[a], parents[b]]
    low = cholesky(low, k, t)
    half = forward(low, right)
    shape, rate = 0.5 * (free + k), 0.5 * t
    after = shape + 0.5 * n
    value = 0.5 * k * math.log(t) + shape * math.log(rate) - 0.5 * n * math.log(2 * math.pi)
    for a in range(k):
        value -= math.log(low[a, a])
    left = rate + 0.5 * (gram[node, node] - norm2(half))
    return value - after * math.log(left) + math.lgamma(after) - math.lgamma(shape)


@njit(cache=True)
def evidence_tables(gram: Array, n: float, candidates: Indices, counts: Indices, free: float, t: float) -> Array:
    """:func:`gaussian_evidence` of every subset of every node's candidates ``[d, 2^m]``."""
    d, m = candidates.shape
    table = np.full((d, 1 << m), -np.inf)
    parents = np.empty(m, dtype=np.int64)
    for j in range(d):
        for subset in range(1 << counts[j]):
            k = 0
            for a in range(counts[j]):
                if subset >> a & 1:
                    parents[k] = candidates[j, a]
                    k += 1
            table[j, subset] = gaussian_evidence(gram, n, j, parents, k, free, t)
    return table


@njit(cache=True)
def log_add(a: float, b: float) -> float:
    high, low = max(a, b), min(a, b)
    return high if low == -np.inf else high + math.log1p(math.exp(low - high))


@njit(cache=True)
def subset_sums(weight: Array, counts: Indices) -> Array:
    """``total[j, U] = log Σ_{S ⊆ U} exp(weight[j, S])`` ``[d, 2^m]``, one bit after the other."""
    total = weight.copy()
    for j in range(len(weight)):
        for a in range(counts[j]):
            for subset in range(1 << counts[j]):
                if subset >> a & 1:
                    total[j, subset] = log_add(total[j, subset], total[j, subset ^ (1 << a)])
    return total


@njit(cache=True)
def _before(j: int, nodes: int, candidates: Indices, counts: Indices, absent: Array) -> tuple[int, float]:
    """Candidates of ``j`` among a set of nodes, as bits, and what the absence of all edges from the set weighs."""
    among, weight = 0, 0.0
    for a in range(counts[j]):
        if nodes >> candidates[j, a] & 1:
            among |= 1 << a
    for i in range(len(absent)):
        if nodes >> i & 1:
            weight += absent[i, j]
    return among, weight


@njit(cache=True)
def exact_orders(
    total: Array, candidates: Indices, counts: Indices, absent: Array, draws: int, seed: int
) -> tuple[Indices, float]:
    """Independent draws from the posterior of orders ``[draws, d]``, and the log of its normalising constant.

    ``sums[U]`` is that of all orders in which the nodes ``U`` come first; orders are drawn from the last node backwards.
    """
    np.random.seed(seed)
    d = len(counts)
    sums, options = np.full(1 << d, -np.inf), np.empty(d)
    sums[0] = 0.0
    for nodes in range(1, 1 << d):
        for j in range(d):
            if nodes >> j & 1:
                rest = nodes ^ (1 << j)
                if sums[rest] > -np.inf:
                    among, weight = _before(j, rest, candidates, counts, absent)
                    sums[nodes] = log_add(sums[nodes], sums[rest] + weight + total[j, among])
    orders = np.empty((draws, d), dtype=np.int64)
    for s in range(draws):
        nodes = (1 << d) - 1
        for place in range(d - 1, -1, -1):
            for j in range(d):
                options[j] = -np.inf
                if nodes >> j & 1:
                    rest = nodes ^ (1 << j)
                    among, weight = _before(j, rest, candidates, counts, absent)
                    options[j] = sums[rest] + weight + total[j, among]
            orders[s, place] = _draw(options)
            nodes ^= 1 << orders[s, place]
    return orders, sums[-1]


@njit(cache=True)
def _draw(options: Array) -> int:
    """An index, with probability proportional to ``exp(options)``."""
    weights = np.exp(options - options.max())
    left = np.random.random() * weights.sum()
    chosen = -1
    for i in range(len(weights)):
        if weights[i] > 0:
            chosen = i
            left -= weights[i]
            if left <= 0:
                break
    return chosen


@njit(cache=True)
def gibbs_orders(
    total: Array,
    candidates: Indices,
    counts: Indices,
    absent: Array,
    start: Indices,
    draws: int,
    sweeps: int,
    seed: int,
    warm: int,
) -> Indices:
    """Draws ``[draws, d]`` from a Markov chain, ``sweeps`` apart, after ``warm`` that are left out.

    With a negative ``seed`` the generator goes on where it was, and so does the chain if it starts from the last draw.

    A step takes out one node and puts it back at a place drawn from its conditional distribution, which costs two entries
    of the tables a place.
    """
    if seed >= 0:
        np.random.seed(seed)
    d = len(counts)
    bit = np.full((d, d), -1, dtype=np.int64)
    for j in range(d):
        for a in range(counts[j]):
            bit[candidates[j, a], j] = a
    order, among = start.copy(), np.zeros(d, dtype=np.int64)
    for place in range(d):
        for earlier in range(place):
            if bit[order[earlier], order[place]] >= 0:
                among[order[place]] |= 1 << bit[order[earlier], order[place]]
    options, orders = np.empty(d), np.empty((draws, d), dtype=np.int64)
    for s in range(-warm, draws):
        for _ in range(sweeps):
            for home in np.random.permutation(d):
                node = order[home]
                own, options[home] = among[node], 0.0
                for step in (-1, 1):
                    at, value, mine = home, 0.0, own
                    now = total[node, mine]
                    while 0 <= at + step < d:
                        at += step
                        other = order[at]
                        # Going left the node loses a predecessor and the other gains one; going right the other way round.
                        if bit[other, node] >= 0:
                            mine ^= 1 << bit[other, node]
                            value += total[node, mine] - now
                            now = total[node, mine]
                        if bit[node, other] >= 0:
                            value += total[other, among[other] ^ (1 << bit[node, other])] - total[other, among[other]]
                        value += step * (absent[other, node] - absent[node, other])
                        options[at] = value
                        if not value > -np.inf:  # a required cause would come after its effect: no further this way
                            while 0 <= at + step < d:
                                at += step
                                options[at] = -np.inf
                to = _draw(options)
                step = 1 if to > home else -1
                for at in range(home, to, step):
                    other = order[at + step]
                    order[at], order[at + step] = other, node
                    if bit[other, node] >= 0:
                        among[node] ^= 1 << bit[other, node]
                    if bit[node, other] >= 0:
                        among[other] ^= 1 << bit[node, other]
        if s >= 0:
            orders[s] = order
    return orders


@njit(cache=True)
def edge_marginals(total: Array, candidates: Indices, counts: Indices, orders: Indices) -> Array:
    """Mean over orders of ``P(i → j | order)`` ``[d, d]``, exact given each order."""
    draws, d = orders.shape
    mean, place = np.zeros((d, d)), np.empty(d, dtype=np.int64)
    for s in range(draws):
        place[orders[s]] = np.arange(d)
        for j in range(d):
            among = 0
            for a in range(counts[j]):
                if place[candidates[j, a]] < place[j]:
                    among |= 1 << a
            for a in range(counts[j]):
                if among >> a & 1:
                    without = total[j, among ^ (1 << a)] - total[j, among]
                    mean[candidates[j, a], j] += 1 - math.exp(min(without, 0.0))
    return mean / draws


@njit(cache=True)
def draw_parents(
    weight: Array, candidates: Indices, counts: Indices, order: Indices, seed: int
) -> tuple[NDArray[np.bool_], float]:
    """A graph ``[d, d]`` drawn given an order, and its log probability given that order."""
    np.random.seed(seed)
    d = len(order)
    place, edges, log_q = np.empty(d, dtype=np.int64), np.zeros((d, d), dtype=np.bool_), 0.0
    place[order] = np.arange(d)
    for j in range(d):
        among = 0
        for a in range(counts[j]):
            if place[candidates[j, a]] < place[j]:
                among |= 1 << a
        allowed = weight[j, : 1 << counts[j]].copy()
        for subset in range(len(allowed)):
            if subset & ~among:
                allowed[subset] = -np.inf
        chosen = _draw(allowed)
        high = allowed.max()
        log_q += allowed[chosen] - high - math.log(np.exp(allowed - high).sum())
        for a in range(counts[j]):
            edges[candidates[j, a], j] = bool(chosen >> a & 1)
    return edges, log_q

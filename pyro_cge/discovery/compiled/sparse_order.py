"""Sparse order search: every node has a few candidate neighbours, and nothing depends on the number of genes squared.

A node's parents are taken from its candidates, so its place in the order matters only relative to them: to reinsert it, it
walks past its candidates and nobody else. Blocks of the Gram matrix over a node and its candidates hold all that is needed.
Each block is *swept* (Goodnight 1979) by the parents: then what adding or leaving out any candidate does to the residual sum
of squares can be read off, ``−A[i, y]² / A[i, i]`` in both cases.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .candidates import SINGULAR, Array, Ints

Flags = NDArray[np.bool_]
BETTER = 1e-6  # nats


@njit(cache=True)
def _largest(start: Ints) -> int:
    """Number of candidates of the node that has most."""
    most = 0
    for v in range(len(start) - 1):
        most = max(most, start[v + 1] - start[v])
    return most


@njit(cache=True)
def _sweep(a: Array, k: int, out: bool) -> None:
    """Make ``k`` a regressor, or undo it (``out``)."""
    size, pivot = len(a), a[k, k]
    for i in range(size):
        if i != k and a[i, k] != 0.0:
            factor = a[i, k] / pivot
            for j in range(size):
                if j != k:
                    a[i, j] -= factor * a[k, j]
            a[i, k] = -factor if out else factor
    for i in range(size):
        a[k, i] = a[i, k]
    a[k, k] = -1.0 / pivot


@njit(cache=True)
def _score(left: float, k: int, n: float, edge: float, noise: float) -> float:
    """Penalised log-likelihood of a node; its noise variance is profiled out, or known where ``noise > 0``."""
    if noise > 0:
        return -0.5 * left / noise - edge * k
    return -0.5 * n * math.log(max(left, 1e-12 * n) / n) - edge * k


@njit(cache=True)
def _refit(a: Array, chosen: Flags, allowed: Flags, required: Flags, law: tuple[float, float, float, int]) -> float:
    """Grow and shrink the parents of a swept block (in place) until nothing helps; the score."""
    n, edge, noise, most = law
    m, k = len(chosen), 0
    for i in range(m):
        k += chosen[i]
    now = _score(a[m, m], k, n, edge, noise)
    while True:
        before = now
        while k < most:
            best, which = 0.0, -1
            for i in range(m):
                if allowed[i] and not chosen[i] and a[i, i] > SINGULAR * n:
                    change = a[i, m] * a[i, m] / a[i, i]
                    if change > best:
                        best, which = change, i
            if which < 0 or _score(a[m, m] - best, k + 1, n, edge, noise) <= now + BETTER:
                break
            _sweep(a, which, False)
            chosen[which] = True
            k += 1
            now = _score(a[m, m], k, n, edge, noise)
        while k > 0:
            best, which = np.inf, -1
            for i in range(m):
                if chosen[i] and not required[i]:
                    change = -a[i, m] * a[i, m] / a[i, i]
                    if change < best:
                        best, which = change, i
            if which < 0 or _score(a[m, m] + best, k - 1, n, edge, noise) <= now + BETTER:
                break
            _sweep(a, which, True)
            chosen[which] = False
            k -= 1
            now = _score(a[m, m], k, n, edge, noise)
        if now <= before + BETTER:
            return now


@njit(cache=True)
def _swept(net: tuple, v: int, chosen: Flags, room: Array) -> Array:
    """A copy (in ``room``) of the block of ``v``, swept by the chosen candidates."""
    start, _, _, offset, flat, _, _ = net
    size = start[v + 1] - start[v] + 1
    a = room[: size * size].reshape(size, size)
    a[:] = flat[offset[v] : offset[v + 1]].reshape(size, size)
    for i in range(size - 1):
        if chosen[i]:
            _sweep(a, i, False)
    return a


@njit(cache=True)
def _toggled(net: tuple, law: tuple, label: Array, u: int, slot: int, chosen: Flags, allow: bool, room: Array) -> float:
    """Score of ``u`` (whose ``chosen`` parents are changed in place) once its candidate at ``slot`` may, or may not, be
    a parent."""
    start, near, _, _, _, forbidden, required = net
    low, high = start[u], start[u + 1]
    a = _swept(net, u, chosen, room)
    if chosen[slot]:
        _sweep(a, slot, True)
        chosen[slot] = False
    allowed = np.empty(high - low, dtype=np.bool_)
    for i in range(high - low):
        allowed[i] = label[near[low + i]] < label[u] and not forbidden[low + i]
    allowed[slot] = allow and not forbidden[low + slot]
    return _refit(a, chosen, allowed, required[low:high], law)


@njit(cache=True)
def _place(net: tuple, law: tuple, state: tuple, v: int, order: Ints, home: int, goal: int, room: Array) -> bool:
    """Move ``v`` so that ``goal`` of its candidates (sorted by ``order``) are before it; refit those it passes, and it."""
    start, near, back, _, _, forbidden, required = net
    label, score, chosen = state
    low, m = start[v], start[v + 1] - start[v]
    before = label[near[low + order[goal - 1]]] if goal > 0 else label[near[low + order[0]]] - 2.0
    after = label[near[low + order[goal]]] if goal < m else label[near[low + order[m - 1]]] + 2.0
    spot = before + (after - before) * (0.25 + 0.5 * np.random.random())
    if not before < spot < after:  # no numbers left in between
        return False
    first, last = (goal, home) if goal < home else (home, goal)
    for q in range(first, last):
        edge = low + order[q]
        u = near[edge]
        row = chosen[start[u] : start[u + 1]]
        slot = back[edge]
        if goal > home and not row[slot]:
            continue  # it was none of its parents
        score[u] = _toggled(net, law, label, u, slot, row, goal < home, room)
    label[v] = spot
    row = chosen[low : low + m]
    allowed = np.empty(m, dtype=np.bool_)
    for i in range(m):
        allowed[i] = label[near[low + i]] < spot and not forbidden[low + i]
        row[i] = row[i] and allowed[i]
    a = _swept(net, v, row, room)
    score[v] = _refit(a, row, allowed, required[low : low + m], law)
    return True


@njit(cache=True)
def _sorted_near(net: tuple, label: Array, v: int) -> tuple[Ints, int]:
    """Candidates of ``v`` in order, and how many are before it."""
    start, near = net[0], net[1]
    low, m, home = start[v], start[v + 1] - start[v], 0
    order = np.empty(m, dtype=np.int64)
    for i in range(m):  # by insertion: there are few
        here = label[near[low + i]]
        home += here < label[v]
        q = i
        while q > 0 and label[near[low + order[q - 1]]] > here:
            order[q] = order[q - 1]
            q -= 1
        order[q] = i
    return order, home


@njit(cache=True)
def _reinsert(net: tuple, law: tuple, state: tuple, v: int, drift: bool, room: Array, other: Array) -> int:
    """Walk ``v`` past its candidates to both sides and leave it where the total score is best: 2 if that is better than
    where it was, 1 if it only moved, 0 if it did not. With ``drift`` it goes anywhere among places as good as the best."""
    start, near, back, _, _, forbidden, required = net
    label, score, chosen = state
    low, m = start[v], start[v + 1] - start[v]
    if m == 0:
        return 0
    order, home = _sorted_near(net, label, v)
    ties = 1
    best, goal, mine_there, score_there = BETTER, home, chosen[low : low + m].copy(), score[v]
    for step in (-1, 1):
        mine, total = chosen[low : low + m].copy(), 0.0
        allowed = np.zeros(m, dtype=np.bool_)
        for q in range(home):
            allowed[order[q]] = not forbidden[low + order[q]]
        a = _swept(net, v, mine, room)
        now, q = score[v], home
        while (q > 0) if step < 0 else (q < m):
            at = order[q - 1 if step < 0 else q]
            u, slot = near[low + at], back[low + at]
            if required[low + at] or required[start[u] + slot]:
                break
            row = chosen[start[u] : start[u + 1]]
            if step < 0 or row[slot]:
                total += _toggled(net, law, label, u, slot, row.copy(), step < 0, other) - score[u]
            if step < 0:
                allowed[at] = False
                if mine[at]:
                    _sweep(a, at, True)
                    mine[at] = False
                    now = _refit(a, mine, allowed, required[low : low + m], law)
            elif not forbidden[low + at]:
                allowed[at] = True
                now = _refit(a, mine, allowed, required[low : low + m], law)
            q += step
            gain = total + now - score[v]
            better = gain > best
            if not better and drift and gain > best - 2 * BETTER:
                ties += 1
                better = np.random.randint(ties) == 0
            elif better:
                ties = 1
            if better:
                best, goal, score_there = max(gain, best), q, now
                mine_there[:] = mine
    if goal == home or not _place(net, law, state, v, order, home, goal, room):
        return 0
    chosen[low : low + m], score[v] = mine_there, score_there  # as found on the walk: the total rises by what it said
    return 2 if best > BETTER else 1


@njit(cache=True)
def _wake(net: tuple, asleep: Flags, queue: Ints, tail: int, v: int) -> int:
    """Queue the candidates of ``v`` and theirs: all whose reinsertion its move may change."""
    start, near = net[0], net[1]
    d = len(start) - 1
    for e in range(start[v], start[v + 1]):
        u = near[e]
        for f in range(start[u], start[u + 1]):
            w = near[f]
            if asleep[w]:
                asleep[w] = False
                queue[tail % d] = w
                tail += 1
    return tail


@njit(cache=True)
def _improve(
    net: tuple,
    law: tuple,
    state: tuple,
    asleep: Flags,
    queue: Ints,
    tail: int,
    room: Array,
    other: Array,
) -> None:
    """Reinsert the queued nodes, and those their moves concern, until none moves."""
    d, head = len(asleep), 0
    while head < tail:
        v = queue[head % d]
        head += 1
        asleep[v] = True
        if _reinsert(net, law, state, v, False, room, other) == 2:
            tail = _wake(net, asleep, queue, tail, v)


@njit(cache=True)
def search(
    net: tuple, law: tuple[float, float, float, int], label: Array, chosen: Flags, drifts: int, seed: int
) -> Array:
    """Improve an order (``label [d]``: the smaller the earlier) and its parents (``chosen``) in place; local scores.

    Once no reinsertion helps, every node goes ``drifts`` times to a random one among the places that are as good: members
    of the same equivalence class, from some of which there is a way on.

    Parameters
    ----------
    net : tuple
        ``start [d+1]``, ``near [m]``: candidates of node ``v`` are ``near[start[v]:start[v+1]]``; ``back [m]``: the
        place of ``v`` among the candidates of its candidate; ``offset``, ``flat``: :func:`blocks_of`; ``forbidden``,
        ``required [m]``: of the candidate as a parent.
    law : tuple
        ``n``, price of an edge in nats, noise variance (0: each node its own), most parents.
    """
    np.random.seed(seed)
    start, near, _, _, _, forbidden, required = net
    d, score = len(label), np.zeros(len(label))
    size = _largest(start) + 1
    room, other = np.empty(size * size), np.empty(size * size)
    for v in range(d):
        low, high = start[v], start[v + 1]
        row, allowed = chosen[low:high], np.empty(high - low, dtype=np.bool_)
        for i in range(high - low):
            allowed[i] = label[near[low + i]] < label[v] and not forbidden[low + i]
            row[i] = (row[i] and allowed[i]) or required[low + i]
        score[v] = _refit(_swept(net, v, row, room), row, allowed, required[low:high], law)
    state = (label, score, chosen)
    asleep, queue = np.zeros(d, dtype=np.bool_), np.random.permutation(d)
    _improve(net, law, state, asleep, queue, d, room, other)
    for _ in range(drifts):
        label[np.argsort(label)] = np.arange(d).astype(np.float64)
        tail = 0
        for v in np.random.permutation(d):
            if _reinsert(net, law, state, v, True, room, other) == 2:
                tail = _wake(net, asleep, queue, tail, v)
        _improve(net, law, state, asleep, queue, tail, room, other)
    return score


@njit(cache=True)
def least_variance_first(net: tuple, n: float) -> Ints:
    """Equal noise variances: the order in which each node has the least variance left, given its candidates before it.

    The Gram–Schmidt ordering of Ghoshal & Honorio (2018) and Chen, Drton & Wang (2019), restricted to candidates: once
    a node is placed, only its candidates' residuals change.
    """
    start, near, _, offset, flat, forbidden, _ = net
    d = len(start) - 1
    size = _largest(start) + 1
    room = np.empty(size * size)
    placed, left, order = np.zeros(d, dtype=np.bool_), np.empty(d), np.empty(d, dtype=np.int64)
    for v in range(d):
        left[v] = flat[offset[v + 1] - 1]
    for at in range(d):
        best, v = np.inf, -1
        for u in range(d):
            if not placed[u] and left[u] < best:
                best, v = left[u], u
        placed[v], order[at] = True, v
        for e in range(start[v], start[v + 1]):
            u = near[e]
            if not placed[u]:
                m = start[u + 1] - start[u]
                a = room[: (m + 1) ** 2].reshape(m + 1, m + 1)
                a[:] = flat[offset[u] : offset[u + 1]].reshape(m + 1, m + 1)
                for i in range(m):
                    q = start[u] + i
                    if placed[near[q]] and not forbidden[q] and a[i, i] > SINGULAR * n:
                        _sweep(a, i, False)
                left[u] = a[m, m]
    return order

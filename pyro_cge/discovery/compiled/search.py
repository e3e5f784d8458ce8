"""Order search: every order of the nodes implies its best graph, and reinsertion finds a good order.

For a given order each node takes, by growing and shrinking, the parents among its predecessors that score best. The order is
improved by taking out one node after the other and putting it back where the total score is best, walking it past its
neighbours one by one: a step changes the score of two nodes only. Restarts shake the order and go on from there.

Andrews et al. 2023 (BOSS); Wienöbst et al. 2025 (FLOP), whose warm start of parent sets along the walk is used here.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ..knowledge import FORBIDDEN, REQUIRED
from ..progress import shown
from .moves import best_addition, best_removal
from .scores import Array, local_score, remembered_score

Parents = NDArray[np.int64]
State = tuple[Parents, Parents, NDArray[np.int64], Parents, Array]  # order, place in it, parents, their numbers, scores
SWEEPS = 100  # at most; a search ends where nothing moves


@njit(cache=True)
def _refit(
    data: tuple,
    node: int,
    parents: Parents,
    k: int,
    place: Parents,
    limit: int,
    knowledge: NDArray[np.int8],
    now: float,
) -> tuple[float, int]:
    """Grow and shrink the parents (in place) until nothing helps: new score and number.

    Candidates are the nodes whose ``place`` in the order is before ``limit``.
    """
    grams, sizes, prices, scratch, memo = data
    most = len(parents) - 1
    required = knowledge[:, node] == REQUIRED
    while True:
        before = now
        candidates = np.empty(limit, dtype=np.int64)
        free = 0
        for i in range(len(place)):
            if place[i] < limit and i != node and knowledge[i, node] != FORBIDDEN:
                taken = False
                for a in range(k):
                    taken = taken or parents[a] == i
                if not taken:
                    candidates[free] = i
                    free += 1
        while k < most and free > 0:
            score, chosen = best_addition(grams, sizes, node, parents, k, candidates[:free], prices, now, scratch, memo)
            if chosen < 0:
                break
            parents[k] = chosen
            k += 1
            now = score
            for a in range(free):
                if candidates[a] == chosen:
                    candidates[a] = candidates[free - 1]
                    free -= 1
                    break
        while k > 0:
            score, drop = best_removal(grams, sizes, node, parents, k, required, prices, now, scratch, memo)
            if drop < 0:
                break
            parents[drop] = parents[k - 1]
            k -= 1
            now = score
        if now <= before + 1e-9:
            return now, k


@njit(cache=True)
def _gain(
    data: tuple,
    node: int,
    parents: Parents,
    k: int,
    new: int,
    place: Parents,
    limit: int,
    knowledge: NDArray[np.int8],
    now: float,
) -> tuple[float, int]:
    """``new`` is now among the candidates: if it helps, grow and shrink from there."""
    grams, sizes, prices, scratch, memo = data
    if k >= len(parents) - 1 or knowledge[new, node] == FORBIDDEN:
        return now, k
    one = np.empty(1, dtype=np.int64)
    one[0] = new
    score, chosen = best_addition(grams, sizes, node, parents, k, one, prices, now, scratch, memo)
    if chosen < 0:
        return now, k
    parents[k] = new
    return _refit(data, node, parents, k + 1, place, limit, knowledge, score)


@njit(cache=True)
def _loss(
    data: tuple,
    node: int,
    parents: Parents,
    k: int,
    gone: int,
    place: Parents,
    limit: int,
    knowledge: NDArray[np.int8],
    now: float,
) -> tuple[float, int]:
    """``gone`` is no candidate any more: if it was a parent, go on without it."""
    grams, sizes, prices, scratch, memo = data
    for a in range(k):
        if parents[a] == gone:
            parents[a] = parents[k - 1]
            now = remembered_score(grams, sizes, node, parents, k - 1, prices, scratch, memo)
            return _refit(data, node, parents, k - 1, place, limit, knowledge, now)
    return now, k


@njit(cache=True)
def _step(
    data: tuple,
    order: Parents,
    place: Parents,
    at: int,
    step: int,
    parents: NDArray[np.int64],
    counts: Parents,
    scores: Array,
    knowledge: NDArray[np.int8],
) -> None:
    """Swap the node at ``at`` with its neighbour (in place): the two are all whose parents change."""
    first, second = (order[at - 1], order[at]) if step < 0 else (order[at], order[at + 1])
    q = at - 1 if step < 0 else at
    order[q], order[q + 1] = second, first
    place[second], place[first] = q, q + 1
    scores[second], counts[second] = _loss(
        data, second, parents[second], counts[second], first, place, q, knowledge, scores[second]
    )
    scores[first], counts[first] = _gain(
        data, first, parents[first], counts[first], second, place, q + 1, knowledge, scores[first]
    )


@njit(cache=True)
def _reinsert(
    data: tuple,
    order: Parents,
    place: Parents,
    node: int,
    parents: NDArray[np.int64],
    counts: Parents,
    scores: Array,
    knowledge: NDArray[np.int8],
    before: NDArray[np.bool_],
) -> bool:
    """Walk the node to both sides, and leave it where the total score is best. Whether it moved."""
    d, home = len(order), place[node]
    best, target, start = 1e-6, home, scores[node]
    row, saved, k, s = parents[node].copy(), np.empty(parents.shape[1], dtype=np.int64), counts[node], scores[node]
    for step in (-1, 1):
        total, at = 0.0, home
        while 0 <= at + step < d:
            other = order[at + step]
            if before[other, node] if step < 0 else before[node, other]:
                break
            # The walk changes nothing but the node itself: what others would do is tried on a copy.
            first, second = (other, node) if step < 0 else (node, other)
            q = at - 1 if step < 0 else at
            order[q], order[q + 1] = second, first
            place[second], place[first] = q, q + 1
            if step < 0:
                scores[node], counts[node] = _loss(
                    data, node, parents[node], counts[node], other, place, q, knowledge, scores[node]
                )
                saved[:] = parents[other]
                new, _ = _gain(data, other, saved, counts[other], node, place, q + 1, knowledge, scores[other])
            else:
                scores[node], counts[node] = _gain(
                    data, node, parents[node], counts[node], other, place, q + 1, knowledge, scores[node]
                )
                saved[:] = parents[other]
                new, _ = _loss(data, other, saved, counts[other], node, place, q, knowledge, scores[other])
            total += new - scores[other]
            at += step
            if total + scores[node] - start > best:
                best, target = total + scores[node] - start, at
        while at != home:  # back home
            neighbour = order[at - step]
            order[at], order[at - step] = neighbour, node
            place[neighbour], place[node] = at, at - step
            at -= step
        parents[node], counts[node], scores[node] = row, k, s
    if target == home:
        return False
    step = 1 if target > home else -1
    for at in range(home, target, step):
        _step(data, order, place, at, step, parents, counts, scores, knowledge)
    return True


@njit(cache=True)
def _start(
    data: tuple,
    order: Parents,
    place: Parents,
    parents: NDArray[np.int64],
    counts: Parents,
    scores: Array,
    knowledge: NDArray[np.int8],
) -> None:
    """Parents of every node from scratch, given the order."""
    grams, sizes, prices, scratch, _ = data
    d = len(order)
    for node in range(d):
        k = 0
        for i in range(d):
            if knowledge[i, node] == REQUIRED:
                parents[node, k] = i
                k += 1
        now = local_score(grams, sizes, node, parents[node], k, prices, scratch)
        scores[node], counts[node] = _refit(data, node, parents[node], k, place, place[node], knowledge, now)


@njit(cache=True)
def first_state(data: tuple, order: Parents, knowledge: NDArray[np.int8], most: int, seed: int) -> State:
    """Order, places in it, parents ``[d, most + 1]``, their numbers and local scores. Seeds the generator."""
    np.random.seed(seed)
    d = len(order)
    place = np.empty(d, dtype=np.int64)
    place[order] = np.arange(d)
    parents, counts, scores = np.zeros((d, most + 1), dtype=np.int64), np.zeros(d, dtype=np.int64), np.zeros(d)
    _start(data, order, place, parents, counts, scores, knowledge)
    return order.copy(), place, parents, counts, scores


@njit(cache=True)
def shake(
    data: tuple,
    state: State,
    knowledge: NDArray[np.int8],
    before: NDArray[np.bool_],
    moves: int,
) -> None:
    """Put random nodes at random places that required edges allow (in place)."""
    order, place, parents, counts, scores = state
    d = len(order)
    for _ in range(moves):
        at = np.random.randint(d)
        low, high = at, at
        while low > 0 and not before[order[low - 1], order[at]]:
            low -= 1
        while high < d - 1 and not before[order[at], order[high + 1]]:
            high += 1
        to = np.random.randint(low, high + 1)
        step = 1 if to > at else -1
        for q in range(at, to, step):
            _step(data, order, place, q, step, parents, counts, scores, knowledge)


@njit(cache=True)
def improve(
    data: tuple,
    state: State,
    knowledge: NDArray[np.int8],
    before: NDArray[np.bool_],
    sweeps: int,
) -> float:
    """Reinsert every node, in random order, until nothing moves (in place): the total score."""
    order, place, parents, counts, scores = state
    for _ in range(sweeps):
        moved = False
        for node in np.random.permutation(len(order)):
            moved = _reinsert(data, order, place, node, parents, counts, scores, knowledge, before) or moved
        if not moved:
            break
    return scores.sum()


def search(
    data: tuple,
    order: Parents,
    knowledge: NDArray[np.int8],
    before: NDArray[np.bool_],
    most: int,
    *,
    restarts: int,
    seed: int,
    progress: bool | None = None,
) -> State:
    """The best state found, ``restarts`` times shaken and improved."""
    state = first_state(data, order, knowledge, most, seed)
    best, highest = _copy(state), -np.inf
    for attempt in shown(range(restarts + 1), restarts + 1, progress):
        if attempt > 0:
            for part, saved in zip(state, best, strict=True):
                part[:] = saved
            shake(data, state, knowledge, before, max(2, round(np.log(len(order)))))
        score = improve(data, state, knowledge, before, SWEEPS)
        if score > highest + 1e-6:
            best, highest = _copy(state), score
    return best


def _copy(state: State) -> State:
    order, place, parents, counts, scores = state
    return order.copy(), place.copy(), parents.copy(), counts.copy(), scores.copy()

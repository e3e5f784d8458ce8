"""Smallest partial correlations among separated and connected pairs, over all conditioning sets: compiled, sets are bit masks."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[np.float64]
Masks = NDArray[np.int64]


@njit(cache=True)
def reachable(above: Masks, below: Masks, start: int, given: int) -> int:
    """Nodes d-connected to ``start`` given a set, as a mask (Shachter's Bayes ball, 1998).

    ``above`` and ``below [d]`` are masks of parents and of children.
    """
    d, ancestors = len(above), given
    for _ in range(d):
        more = ancestors
        for v in range(d):
            if ancestors >> v & 1:
                more |= above[v]
        if more == ancestors:
            break
        ancestors = more
    # Visits from a child's side and from a parent's side, and those not yet followed up.
    up, down, new_up, new_down = 0, 0, 1 << start, 0
    while new_up or new_down:
        up |= new_up
        down |= new_down
        next_up, next_down = 0, 0
        for v in range(d):
            open_ = not given >> v & 1
            if new_up >> v & 1 and open_:
                next_up |= above[v]
                next_down |= below[v]
            if new_down >> v & 1:
                if open_:
                    next_down |= below[v]
                if ancestors >> v & 1:
                    next_up |= above[v]
        new_up, new_down = next_up & ~up, next_down & ~down
    return (up | down) & ~given & ~(1 << start)


@njit(cache=True)
def smallest(edges: NDArray[np.bool_], covariances: Array, adjacent: bool) -> Array:
    """``min |corr(x_i, x_j | x_S)|`` over connected ``(i, j, S)`` for each model: its ``edges`` and covariance ``[m, d, d]``.

    Infinite for a graph without edges. With ``adjacent`` only pairs with an edge, and sets no larger than the largest
    number of neighbours.
    """
    m, d = len(edges), edges.shape[1]
    out = np.empty(m)
    stack, member, sizes = np.empty((d + 1, d, d)), np.zeros(d + 1, dtype=np.int64), np.zeros(d + 1, dtype=np.int64)
    last, known, connected = np.empty(d + 1, dtype=np.int64), np.empty(d, dtype=np.bool_), np.zeros(d, dtype=np.int64)
    for draw in range(m):
        above, below, most = np.zeros(d, dtype=np.int64), np.zeros(d, dtype=np.int64), 0
        for i in range(d):
            for j in range(d):
                if edges[draw, i, j]:
                    above[j] |= 1 << i
                    below[i] |= 1 << j
        for i in range(d):
            near, count = above[i] | below[i], 0
            for v in range(d):
                count += near >> v & 1
            most = max(most, count)
        limit = min(most, d - 2) if adjacent else d - 2
        stack[0] = covariances[draw]
        # Depth first over conditioning sets, the next member larger than the last: one is added by a sweep of the matrix.
        best, depth, last[0], sizes[0] = np.inf, 0, -1, 0
        fresh = True
        while depth >= 0:
            S, given = stack[depth], member[depth]
            if fresh:
                known[:] = False
                for i in range(d):
                    if given >> i & 1:
                        continue
                    for j in range(i):
                        if given >> j & 1 or (adjacent and not (above[i] | below[i]) >> j & 1):
                            continue
                        r = abs(S[i, j]) / math.sqrt(S[i, i] * S[j, j])
                        if r < best:
                            if not known[i]:
                                connected[i] = reachable(above, below, i, given)
                                known[i] = True
                            if connected[i] >> j & 1:
                                best = r
                last[depth] = -1
                for v in range(d):
                    if given >> v & 1:
                        last[depth] = v
            nxt = last[depth] + 1
            if nxt < d and sizes[depth] < limit:
                last[depth] = nxt
                for i in range(d):
                    for j in range(d):
                        stack[depth + 1, i, j] = S[i, j] - S[i, nxt] * S[nxt, j] / S[nxt, nxt]
                member[depth + 1] = given | 1 << nxt
                sizes[depth + 1] = sizes[depth] + 1
                depth += 1
                fresh = True
            else:
                depth -= 1
                fresh = False
        out[draw] = best
    return out

"""Inner loops of prize-collecting Steiner trees in numba: growth of moats, pruning, spanning trees, brute force.

Networks are arrays: ``ends [E, 2]``, ``cost [E]``, ``prize [n]``; neighbours of node ``v`` are ``near[start[v]:start[v + 1]]``
along edges ``along[start[v]:start[v + 1]]``.
"""

from __future__ import annotations

import heapq

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Array = NDArray[np.float64]
SLACK = 1e-10  # what is left of an edge that counts as covered, in units of the largest cost or prize


@njit(cache=True)
def _top(above: Ints, offset: Array, v: int) -> int:
    """Cluster of ``v``; moats grown before each merger are added up on the way, and the path is shortened."""
    root, total = v, 0.0
    while above[root] != root:
        total += offset[root]
        root = above[root]
    while above[v] != root and v != root:
        following, step = above[v], offset[v]
        above[v], offset[v] = root, total
        total -= step
        v = following
    return root


@njit(cache=True)
def grow(start: Ints, near: Ints, along: Ints, ends: Ints, cost: Array, prize: Array, root: int) -> tuple:
    """Edges ``[E]`` that the growing moats cover, and the dual: total growth and each node's radius ``[n]``.

    Every cluster with prize left grows at rate 1; where two moats meet over an edge, their clusters and what is left of
    their prizes merge. The cluster of ``root`` (−1: there is none) never grows. Events wait in a heap by the earliest time
    they can happen; one that turns out later, because a cluster stopped meanwhile, goes back.
    """
    n, eps = len(prize), SLACK * max(1e-300, max(cost.max() if len(cost) else 0.0, prize.max()))
    above, size = np.arange(n), np.ones(n, np.int64)
    offset, radius, left, since = np.zeros(n), np.zeros(n), prize.copy(), np.zeros(n)
    active, stamp = prize > eps, np.zeros(n, np.int64)
    following, last = np.full(n, -1), np.arange(n)  # members of a cluster as a linked list
    chosen = np.zeros(len(cost), np.bool_)
    if root >= 0:
        active[root], left[root] = False, 0.0
    events = [(np.inf, -1, 0)]  # time, edge or −2 − cluster, stamp
    for v in range(n):
        if active[v]:
            heapq.heappush(events, (left[v], -2 - v, 0))
            for k in range(start[v], start[v + 1]):
                rate = 2.0 if active[near[k]] else 1.0
                heapq.heappush(events, (cost[along[k]] / rate, along[k], 0))
    while True:
        now, what, mark = heapq.heappop(events)
        if what == -1:
            break
        if what < -1:
            c = -2 - what
            if above[c] == c and active[c] and stamp[c] == mark:
                radius[c] += now - since[c]
                left[c], active[c] = 0.0, False
            continue
        u, v = ends[what]
        a, b = _top(above, offset, u), _top(above, offset, v)
        if a == b or not (active[a] or active[b]):  # an edge at rest is pushed again when one of its ends wakes up
            continue
        for c in (a, b):
            if active[c]:
                radius[c] += now - since[c]
                left[c] = max(0.0, left[c] - (now - since[c]))
            since[c] = now
        moat_u = radius[a] + (offset[u] if u != a else 0.0)
        moat_v = radius[b] + (offset[v] if v != b else 0.0)
        slack = cost[what] - moat_u - moat_v
        if slack > eps:
            heapq.heappush(events, (now + slack / (2.0 if active[a] and active[b] else 1.0), what, 0))
            continue
        chosen[what] = True
        if size[a] < size[b]:
            a, b = b, a
        rooted = root >= 0 and (_top(above, offset, root) == a or _top(above, offset, root) == b)
        woken = -1
        if not rooted:
            woken = b if not active[b] else a if not active[a] else -1
        member = woken
        end = last[woken] if woken >= 0 else -1
        offset[b] = radius[b] - radius[a]
        above[b] = a
        size[a] += size[b]
        following[last[a]] = b
        last[a] = last[b]
        left[a] += left[b]
        stamp[a] += 1
        active[a] = not rooted and left[a] > eps
        active[b] = False
        if not active[a]:
            continue
        heapq.heappush(events, (now + left[a], -2 - a, stamp[a]))
        while member >= 0:
            c = _top(above, offset, member)
            moat = radius[c] + (offset[member] if member != c else 0.0)
            for k in range(start[member], start[member + 1]):
                w, e = near[k], along[k]
                d = _top(above, offset, w)
                if d != c:
                    other = radius[d] + (now - since[d] if active[d] else 0.0) + (offset[w] if w != d else 0.0)
                    rate = 2.0 if active[d] else 1.0
                    heapq.heappush(events, (now + max(0.0, cost[e] - moat - other) / rate, e, 0))
            member = following[member] if member != end else -1
    moats = np.empty(n)
    spent = 0.0
    for v in range(n):
        c = _top(above, offset, v)
        moats[v] = radius[c] + (offset[v] if v != c else 0.0)
        if v != root:
            spent += prize[v]
        if c == v:
            spent -= left[v]
    return chosen, spent, moats


@njit(cache=True)
def spanning_forest(order: Ints, ends: Ints, inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Kruskal: edges ``[E]`` of the cheapest spanning forest of the nodes ``inside``; ``order`` has the cheapest first."""
    above = np.arange(len(inside))
    offset = np.zeros(len(inside))
    chosen = np.zeros(len(order), np.bool_)
    for e in order:
        u, v = ends[e]
        if inside[u] and inside[v]:
            a, b = _top(above, offset, u), _top(above, offset, v)
            if a != b:
                above[b] = a
                chosen[e] = True
    return chosen


@njit(cache=True)
def prune(
    start: Ints, near: Ints, along: Ints, chosen: NDArray[np.bool_], cost: Array, prize: Array, root: int
) -> tuple:
    """The best subtree of a forest: nodes ``[n]``, edges ``[E]``, and its prizes less its costs.

    ``net[v] = prize[v] + Σ_children max(0, net[child] − cost)`` from the leaves up is the value of the best subtree whose
    top is ``v``; the best of all tops is taken, or ``root``.
    """
    n = len(prize)
    net, above, edge_above = prize.copy(), np.full(n, -1), np.full(n, -1)
    order, seen, count = np.empty(n, np.int64), np.zeros(n, np.bool_), 0
    for first in range(-1, n):
        begin = root if first < 0 else first
        if begin < 0 or seen[begin]:
            continue
        seen[begin] = True
        order[count] = begin
        head, count = count, count + 1
        while head < count:
            v = order[head]
            head += 1
            for k in range(start[v], start[v + 1]):
                w = near[k]
                if chosen[along[k]] and not seen[w]:
                    seen[w] = True
                    above[w], edge_above[w] = v, along[k]
                    order[count] = w
                    count += 1
    for i in range(n - 1, -1, -1):
        v = order[i]
        if above[v] >= 0:
            net[above[v]] += max(0.0, net[v] - cost[edge_above[v]])
    top = root if root >= 0 else int(np.argmax(net))
    nodes, edges = np.zeros(n, np.bool_), np.zeros(len(cost), np.bool_)
    nodes[top] = True
    for v in order:
        if v != top and above[v] >= 0 and nodes[above[v]] and net[v] > cost[edge_above[v]]:
            nodes[v] = True
            edges[edge_above[v]] = True
    return nodes, edges, net[top]


@njit(cache=True)
def improve(
    start: Ints, near: Ints, along: Ints, ends: Ints, order: Ints, cost: Array, prize: Array, root: int
) -> tuple:
    """Nodes, edges and value as of :func:`prune`, of the cheapest spanning trees of fewer and fewer nodes.

    Starts from all nodes given; one after the other is left out where the best subtree of the rest is worth more.
    """
    inside = np.ones(len(prize), np.bool_)
    nodes, edges, value = prune(start, near, along, spanning_forest(order, ends, inside), cost, prize, root)
    inside[:] = nodes
    gained = True
    while gained:
        gained = False
        for v in range(len(prize)):
            if not inside[v] or v == root:
                continue
            inside[v] = False
            fewer, used, worth = prune(start, near, along, spanning_forest(order, ends, inside), cost, prize, root)
            if worth > value + 1e-12 * abs(value):
                nodes, edges, value, gained = fewer, used, worth, True
                inside[:] = nodes
            else:
                inside[v] = True
    return nodes, edges, value


@njit(cache=True)
def best_subset(order: Ints, ends: Ints, cost: Array, prize: Array, root: int) -> tuple:
    """Brute force over all sets of nodes: the nodes ``[n]`` of the best tree and its prizes less its costs."""
    n = len(prize)
    best, value = 0, -np.inf
    inside = np.zeros(n, np.bool_)
    for mask in range(1, 1 << n):
        if root >= 0 and not mask >> root & 1:
            continue
        members, worth = 0, 0.0
        for v in range(n):
            inside[v] = mask >> v & 1
            if inside[v]:
                members += 1
                worth += prize[v]
        joined = 0
        chosen = spanning_forest(order, ends, inside)
        for e in range(len(cost)):
            if chosen[e]:
                joined += 1
                worth -= cost[e]
        if joined == members - 1 and worth > value:
            best, value = mask, worth
    nodes = np.zeros(n, np.bool_)
    for v in range(n):
        nodes[v] = best >> v & 1
    return nodes, value

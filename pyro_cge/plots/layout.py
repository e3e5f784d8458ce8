"""Layered layout of a graph: causes above effects, edges that pass by a layer led between its nodes (Sugiyama 1981)."""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicHermiteSpline

Point = tuple[float, float]
LANE = 0.3  # room for a passing edge, where a node has 1
SWEEPS = 24


def sequence(found: nx.DiGraph) -> list[Any]:
    """Nodes, causes before effects; members of a cycle (or of undirected edges) side by side."""
    parts = nx.condensation(found)
    rank = {node: k for k, node in enumerate(found)}
    first = {part: min(rank[node] for node in parts.nodes[part]["members"]) for part in parts}
    order = nx.lexicographical_topological_sort(parts, key=first.__getitem__)
    return [node for part in order for node in sorted(parts.nodes[part]["members"], key=rank.__getitem__)]


def layered(found: nx.DiGraph) -> tuple[dict[Any, Point], dict[tuple[Any, Any], list[Point]]]:
    """Place of each node, as deep as its longest chain of causes, and the points each edge passes by.

    Nodes without edges are in a last row. Routes are those of ``found``'s edges, both ways.
    """
    order = {node: k for k, node in enumerate(sequence(found))}
    forward = nx.DiGraph()
    forward.add_nodes_from(node for node in order if found.degree(node))
    forward.add_edges_from((a, b) for a, b in found.edges if order[a] < order[b])
    forward.add_edges_from((b, a) for a, b in found.edges if order[a] > order[b])
    rows: list[list[Any]] = [list(row) for row in nx.topological_generations(forward)]
    depth = {node: k for k, row in enumerate(rows) for node in row}
    lanes: dict[tuple[Any, Any], list[Any]] = {}
    near = nx.Graph()
    for a, b in forward.edges:
        lanes[a, b] = [("lane", a, b, k) for k in range(depth[a] + 1, depth[b])]
        for k, lane in enumerate(lanes[a, b], depth[a] + 1):
            rows[k].append(lane)
            depth[lane] = k
        nx.add_path(near, [a, *lanes[a, b], b])
    passing = {lane for several in lanes.values() for lane in several}
    x: dict[Any, float] = {}
    for row in rows:
        _spread(row, passing, x)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for row in rows if down else reversed(rows):
            wanted = {}
            for node in row:
                beside = [x[other] for other in near[node] if (depth[other] < depth[node]) == down]
                wanted[node] = float(np.mean(beside)) if beside else x[node]
            row.sort(key=wanted.__getitem__)
            _spread(row, passing, x, wanted if sweep >= SWEEPS // 2 else None)
    places = {node: (x[node], -float(depth[node])) for node in x}
    routes = {edge: [places[point] for point in (edge[0], *lanes[edge], edge[1])] for edge in lanes}
    routes |= {(b, a): route[::-1] for (a, b), route in routes.items()}
    middle = float(np.mean([x[node] for node in forward])) if len(forward) else 0.0
    alone = [node for node in order if not found.degree(node)]
    most = max([int(np.ptp(list(x.values()))) if x else 0, 8])
    for k, node in enumerate(alone):
        line, column = divmod(k, most)
        here = min(most, len(alone) - line * most)
        places[node] = (middle + column - (here - 1) / 2, -float(len(rows) + line))
    return {node: places[node] for node in found}, routes


def curve(points: list[Point], steps: int = 16) -> NDArray[np.float64]:
    """A smooth line through points (Catmull–Rom), ``[steps · (points − 1) + 1, 2]``."""
    p = np.asarray(points, dtype=float)
    slope = np.gradient(p, axis=0)
    at = np.linspace(0, len(p) - 1, steps * (len(p) - 1) + 1)
    return np.asarray(CubicHermiteSpline(np.arange(len(p)), p, slope)(at))


def _spread(row: list[Any], passing: set[Any], x: dict[Any, float], wanted: dict[Any, float] | None = None) -> None:
    """Places along a row in its order: next to each other, or as near to the wanted ones as their widths allow."""
    width = np.array([LANE if node in passing else 1.0 for node in row])
    offset = np.cumsum(width) - width / 2
    if wanted is None:
        at = offset - width.sum() / 2
    else:
        # Least squares under "each at least so far from the one before": isotonic regression of wanted − offset.
        from sklearn.isotonic import isotonic_regression

        at = isotonic_regression(np.array([wanted[node] for node in row]) - offset) + offset
    x.update(zip(row, map(float, at), strict=True))

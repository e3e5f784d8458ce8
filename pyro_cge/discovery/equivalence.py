"""What data can tell of a graph: essential graphs of observational and interventional equivalence classes."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Hashable, Iterable

import networkx as nx

from ..errors import ConfigError
from .knowledge import FORBIDDEN, REQUIRED, Knowledge

Edge = tuple[Hashable, Hashable]


def essential_graph(
    dag: nx.DiGraph, targets: Iterable[Collection[Hashable]] = (), knowledge: Knowledge | None = None
) -> nx.DiGraph:
    """The graph of the equivalence class: directed where all its members agree, both ways where they do not.

    Two DAGs are equivalent if they have the same skeleton, the same v-structures and, for every set of ``targets``, the same
    direction of each edge between the set and the rest (Verma & Pearl 1990; Hauser & Bühlmann 2012, theorem 18; Yang et
    al. 2018 for soft interventions). Prior knowledge leaves those members that agree with it. What follows from all this is
    found by Meek's four rules (1995), which miss nothing: the result is a maximally oriented graph (MPDAG).

    Parameters
    ----------
    dag : DiGraph
    targets : iterable of collections of nodes
        Targets of each intervention, beside observational data.
    knowledge : Knowledge, optional
        What was known of the edges between the nodes of ``dag``.

    Raises
    ------
    ConfigError
        If ``dag`` has a cycle or contradicts the knowledge; for a target that is no node.
    """
    if not nx.is_directed_acyclic_graph(dag):
        raise ConfigError("an essential graph is that of a DAG, but the graph given has a cycle")
    compelled = _v_structures(dag)
    for chosen in map(set, targets):
        if not chosen <= set(dag):
            raise ConfigError(f"targets that are no nodes of the graph: {sorted(map(str, chosen - set(dag)))[:5]}")
        compelled |= {(a, b) for a, b in dag.edges if (a in chosen) != (b in chosen)}
    if knowledge is not None:
        compelled |= _told(dag, knowledge)
    near = {node: set(dag.predecessors(node)) | set(dag.successors(node)) for node in dag}
    causes: dict[Hashable, set[Hashable]] = {node: set() for node in dag}
    for a, b in compelled:
        causes[b].add(a)
    waiting = [edge for edge in dag.edges if edge not in compelled]
    at: dict[Hashable, set[Edge]] = {node: set() for node in dag}
    for a, b in waiting:
        at[a].add((a, b))
        at[b].add((a, b))
    look = list(waiting)
    while look:
        a, b = look.pop()
        if a not in causes[b] and _follows(a, b, near, causes):
            causes[b].add(a)
            at[a].discard((a, b))
            at[b].discard((a, b))
            for node in (a, b, *(c for c in near[b] if b in causes[c])):  # the edges a rule may now direct
                look += at[node]
    waiting = [(a, b) for a, b in waiting if a not in causes[b]]
    graph = nx.DiGraph()
    graph.add_nodes_from(dag)
    graph.add_edges_from(dag.edges)
    graph.add_edges_from((b, a) for a, b in waiting)
    return graph


def _v_structures(dag: nx.DiGraph) -> set[Edge]:
    found: set[Edge] = set()
    for node in dag:
        for a, b in itertools.combinations(dag.predecessors(node), 2):
            if not dag.has_edge(a, b) and not dag.has_edge(b, a):
                found |= {(a, node), (b, node)}
    return found


def _told(dag: nx.DiGraph, knowledge: Knowledge) -> set[Edge]:
    """Edges that are required, or cannot be the other way round."""
    table = knowledge.table(list(dag))
    place = {node: j for j, node in enumerate(dag)}
    found: set[Edge] = set()
    for a, b in dag.edges:
        i, j = place[a], place[b]
        if table[i, j] == FORBIDDEN:
            raise ConfigError(f"the graph has the edge {a!r} → {b!r}, which the prior knowledge forbids")
        if table[i, j] == REQUIRED or table[j, i] == FORBIDDEN:
            found.add((a, b))
    if sum(table[place[a], place[b]] == REQUIRED for a, b in found) < (table == REQUIRED).sum():
        raise ConfigError("the graph lacks edges that the prior knowledge requires")
    return found


def _follows(a: Hashable, b: Hashable, near: dict, causes: dict) -> bool:
    """Whether one of Meek's rules directs ``a − b`` as ``a → b``."""
    if causes[a] - near[b] - {b}:  # c → a − b, c and b not adjacent: else a new v-structure
        return True
    if any(a in causes[c] for c in causes[b]):  # a → c → b: else a cycle
        return True
    both = [c for c in causes[b] if c in near[a]]
    open_ = [c for c in both if c not in causes[a]]
    if any(d not in near[c] for c, d in itertools.combinations(open_, 2)):  # a − c → b, a − d → b
        return True
    return any(d in near[a] and d not in near[b] for c in both for d in causes[c] if d != a)  # a − d → c → b


def d_separated(graph: nx.DiGraph, x: Hashable, y: Hashable, given: Collection[Hashable] = ()) -> bool:
    """Whether ``given`` blocks every path between ``x`` and ``y`` (Pearl 1988)."""
    return bool(nx.is_d_separator(graph, {x}, {y}, set(given)))

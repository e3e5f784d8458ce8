"""Essential graphs against enumeration of all DAGs."""

from __future__ import annotations

import itertools

import networkx as nx
import pytest

from pyro_cge.discovery import d_separated, essential_graph
from pyro_cge.errors import ConfigError

NODES = range(4)


def all_dags():
    pairs = list(itertools.combinations(NODES, 2))
    for state in itertools.product((0, 1, 2), repeat=len(pairs)):
        graph = nx.DiGraph()
        graph.add_nodes_from(NODES)
        graph.add_edges_from((a, b) if s == 1 else (b, a) for (a, b), s in zip(pairs, state, strict=True) if s)
        if nx.is_directed_acyclic_graph(graph):
            yield graph


DAGS = list(all_dags())
TARGETS = ((), ({0},), ({0, 1}, {2}))


def signature(dag, targets):
    skeleton = frozenset(frozenset(edge) for edge in dag.edges)
    structures = frozenset(
        (frozenset((a, b)), c)
        for c in dag
        for a, b in itertools.combinations(dag.predecessors(c), 2)
        if frozenset((a, b)) not in skeleton
    )
    cut = frozenset((a, b) for t in targets for a, b in dag.edges if (a in t) != (b in t))
    return skeleton, structures, cut


@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_it_is_the_union_of_its_equivalence_class(targets):
    """All 543 DAGs on four nodes: an edge is directed exactly where all equivalent DAGs agree."""
    classes: dict = {}
    for dag in DAGS:
        classes.setdefault(signature(dag, targets), []).append(dag)
    for members in classes.values():
        union = {edge for dag in members for edge in dag.edges}
        for dag in members:
            assert set(essential_graph(dag, targets).edges) == union


def test_more_targets_never_say_less():
    for dag in DAGS[::7]:
        few, many = essential_graph(dag, [{0}]), essential_graph(dag, [{0}, {1}, {2}, {3}])
        assert set(many.edges) <= set(few.edges)
        assert set(many.edges) == set(dag.edges), "every edge is cut by the target set of one of its ends"


def test_it_refuses_what_is_no_dag_and_unknown_targets():
    with pytest.raises(ConfigError, match="cycle"):
        essential_graph(nx.DiGraph([(0, 1), (1, 0)]))
    with pytest.raises(ConfigError, match="no nodes.*'x'"):
        essential_graph(nx.DiGraph([(0, 1)]), [{"x"}])


def test_separation():
    chain, collider = nx.DiGraph([(0, 1), (1, 2)]), nx.DiGraph([(0, 1), (2, 1)])
    assert d_separated(chain, 0, 2, {1}) and not d_separated(chain, 0, 2)
    assert d_separated(collider, 0, 2) and not d_separated(collider, 0, 2, {1})

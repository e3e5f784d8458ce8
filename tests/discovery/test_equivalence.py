"""Essential graphs against enumeration of all DAGs."""

from __future__ import annotations

import itertools

import networkx as nx
import numpy as np
import pandas as pd
import pytest

from pyro_cge.discovery import Knowledge, d_separated, essential_graph
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


def agrees(edges, table):
    required = map(tuple, np.argwhere(table == 2).tolist())
    return all(table[edge] != 1 for edge in edges) and all(edge in edges for edge in required)


KNOWLEDGE = {
    "tiers": Knowledge(tiers=[[2], [0, 3]]),
    "forbidden": Knowledge(forbidden=[(1, 3), (0, 2)]),
    "required": Knowledge(required=[(3, 1)]),
    "a root and a leaf": Knowledge(roots=[3], leaves=[0]),
    "mixed": Knowledge(required=[(2, 0)], forbidden=[(1, 0), (3, 2)]),
}


@pytest.mark.parametrize("targets", [(), ({0},)], ids=str)
@pytest.mark.parametrize("known", KNOWLEDGE)
def test_knowledge_leaves_the_members_that_agree_with_it(known, targets):
    """All 543 DAGs on four nodes: an edge is directed exactly where all equivalent DAGs that the knowledge allows agree."""
    knowledge = KNOWLEDGE[known]
    table = knowledge.table(list(NODES))
    classes: dict = {}
    for dag in DAGS:
        if agrees(set(dag.edges), table):
            classes.setdefault(signature(dag, targets), []).append(dag)
    assert any(len(members) > 1 for members in classes.values()) and len(classes) > 20
    more = 0
    for members in classes.values():
        union = {edge for dag in members for edge in dag.edges}
        for dag in members:
            assert set(essential_graph(dag, targets, knowledge).edges) == union
            more += len(essential_graph(dag, targets).edges) > len(union)
    assert more > 0, "knowledge directs edges that the data alone do not"


@pytest.mark.parametrize("seed", range(20))
def test_knowledge_in_larger_graphs(seed):
    """Six nodes, dense: the class is found by turning the edges of the skeleton every way (all four rules are needed)."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(6)
    pairs = [(int(order[a]), int(order[b])) for a, b in itertools.combinations(range(6), 2)]
    dag = nx.DiGraph([pair for pair in pairs if rng.random() < 0.6][:11])
    dag.add_nodes_from(range(6))
    edges = list(dag.edges)
    chosen = [edges[i] for i in rng.permutation(len(edges))[:3]]
    knowledge = Knowledge(required=chosen[:1], forbidden=[(b, a) for a, b in chosen[1:]])
    targets = [{int(rng.integers(6))}] if seed % 2 else []
    table, union = knowledge.table(list(dag)), set()
    place = {node: j for j, node in enumerate(dag)}
    for turned in itertools.product((False, True), repeat=len(edges)):
        member = nx.DiGraph([(b, a) if turn else (a, b) for (a, b), turn in zip(edges, turned, strict=True)])
        member.add_nodes_from(dag)
        allowed = agrees({(place[a], place[b]) for a, b in member.edges}, table)
        if allowed and nx.is_directed_acyclic_graph(member) and signature(member, targets) == signature(dag, targets):
            union |= set(member.edges)
    assert set(essential_graph(dag, targets, knowledge).edges) == union


def test_one_edge_that_is_known_directs_a_long_chain():
    """Ten thousand links, each directed by the one before: no sweep over all of them a link."""
    chain = nx.path_graph(10_000, create_using=nx.DiGraph)
    assert essential_graph(chain).number_of_edges() == 2 * 9_999
    first = Knowledge(required=[(0, 1)])
    assert set(essential_graph(chain.subgraph(range(3000)).copy(), (), first).edges) == set(
        itertools.pairwise(range(3000))
    )


def test_a_graph_that_contradicts_the_knowledge_is_refused():
    chain = nx.DiGraph([("a", "b"), ("b", "c")])
    with pytest.raises(ConfigError, match="'a' → 'b', which the prior knowledge forbids"):
        essential_graph(chain, (), Knowledge(tiers=[["b"], ["a"]]))
    with pytest.raises(ConfigError, match="lacks edges"):
        essential_graph(chain, (), Knowledge(required=[("a", "c")]))


def test_knowledge_as_a_table_is_that_of_the_pairs():
    genes = list("abc")
    mask = pd.DataFrame(False, index=genes[::-1], columns=genes)
    mask.loc["a", "b"] = mask.loc["c", "a"] = True
    pairs = Knowledge(forbidden=((a, b) for a, b in [("a", "b"), ("c", "a")]))  # an iterator, read twice
    for _ in range(2):
        np.testing.assert_array_equal(Knowledge(forbidden=mask).table(genes), pairs.table(genes))
    with pytest.raises(ConfigError, match="'c', which is not among"):
        Knowledge(forbidden=mask).table(["a", "b"])
    with pytest.raises(ConfigError, match="missing values"):
        Knowledge(forbidden=mask.reindex(index=["a", "b", "c", "d"])).table([*genes, "d"])


def test_a_network_of_what_is_possible_takes_a_byte_a_pair():
    genes = [f"g{j}" for j in range(1000)]
    network = nx.DiGraph([("g0", "g1"), ("g2", "g0"), ("g3", "elsewhere")])
    known = Knowledge.allowed(network, genes)
    assert known.forbidden.memory_usage(index=False).sum() == 1000**2
    table = known.table(genes)
    assert np.argwhere(table == 0).tolist() == [[0, 1], [2, 0]]
    assert Knowledge.allowed(network.to_undirected(), genes).table(genes)[1, 0] == 0


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

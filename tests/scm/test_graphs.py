"""Random graphs: acyclic, of the size and shape asked for, and a function of the seed."""

from __future__ import annotations

import itertools
import math

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_cge.errors import ConfigError
from pyro_cge.scm import graphs

SIZES = [2, 3, 7, 20]
GENERATORS = {
    "empty": lambda d, rng: graphs.empty(d),
    "chain": lambda d, rng: graphs.chain(d),
    "growing network": graphs.growing_network,
    "union of growing networks": graphs.union_of_growing_networks,
    "hierarchical": lambda d, rng: graphs.hierarchical([d - d // 2, d // 2], 0.4, rng),
    "erdos renyi": graphs.erdos_renyi,
    "scale free": graphs.scale_free,
    "layered": lambda d, rng: graphs.layered(d, 1),
}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("seed", range(3))
def test_every_generator_gives_a_dag_over_all_nodes(name, d, seed):
    graph = GENERATORS[name](d, rng(seed))
    assert isinstance(graph, nx.DiGraph)
    assert sorted(graph) == list(range(d))
    assert nx.is_directed_acyclic_graph(graph)
    assert all(type(node) is int for node in graph)


@pytest.mark.parametrize("name", GENERATORS)
def test_a_seed_decides_the_graph(name):
    first, again = (GENERATORS[name](12, rng(5)) for _ in range(2))
    assert set(first.edges) == set(again.edges)
    if name not in ("empty", "chain", "layered"):
        assert any(set(GENERATORS[name](12, rng(s)).edges) != set(first.edges) for s in range(6, 12))


def test_a_generator_does_not_touch_numpys_global_state():
    before = np.random.get_state()[1].copy()
    for make in GENERATORS.values():
        make(9, rng())
    assert (np.random.get_state()[1] == before).all()


@pytest.mark.parametrize("d", [1, *SIZES])
@pytest.mark.parametrize("seed", range(5))
def test_growing_network_is_a_tree_grown_from_node_0(d, seed):
    graph = graphs.growing_network(d, rng(seed))
    assert graph.number_of_edges() == d - 1
    assert [graph.in_degree(j) for j in range(d)] == [0] + [1] * (d - 1)
    assert all(i < j for i, j in graph.edges)
    assert nx.is_weakly_connected(graph)


def test_growing_network_picks_parents_uniformly():
    # Parent of node 4 is uniform on 0 … 3: chi-square with 3 degrees of freedom, failure rate 1e-4.
    parents = [next(graphs.growing_network(5, rng(seed)).predecessors(4)) for seed in range(400)]
    counts = np.bincount(parents, minlength=4)
    assert ((counts - 100) ** 2 / 100).sum() < 21.1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n_networks", [1, 2, 3])
def test_union_has_at_most_one_parent_a_network(seed, n_networks):
    graph = graphs.union_of_growing_networks(15, rng(seed), n_networks)
    degrees = [graph.in_degree(j) for j in range(15)]
    assert max(degrees) <= n_networks
    assert min(degrees[1:]) >= 1 and degrees[0] == 0


def test_union_of_two_does_reach_two_parents():
    graph = graphs.union_of_growing_networks(15, rng(0))
    assert max(graph.in_degree(j) for j in graph) == 2


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("sizes", [[1], [3], [2, 3, 4], [4, 1, 4]])
def test_hierarchical_joins_adjacent_layers_only_and_leaves_no_orphan(p, sizes):
    graph = graphs.hierarchical(sizes, p, rng(1))
    layer = np.repeat(np.arange(len(sizes)), sizes)
    assert all(layer[j] == layer[i] + 1 for i, j in graph.edges)
    assert all((graph.in_degree(j) == 0) == (layer[j] == 0) for j in graph)
    assert [len(nodes) for nodes in graphs.layers(graph)] == sizes
    edges = sum(a * b for a, b in itertools.pairwise(sizes))
    if p == 1:
        assert graph.number_of_edges() == edges
    if p == 0:
        assert graph.number_of_edges() == sum(sizes[1:])


@pytest.mark.parametrize(("d", "expected"), [(10, None), (10, 20), (30, 60)])
def test_erdos_renyi_has_the_expected_number_of_edges(d, expected):
    repeats, pairs = 100, d * (d - 1) / 2
    mean = d if expected is None else expected
    p = mean / pairs
    edges = [graphs.erdos_renyi(d, rng(s), expected).number_of_edges() for s in range(repeats)]
    # A mean of binomials: five standard errors, failure rate below 1e-6 a case.
    assert abs(np.mean(edges) - mean) < 5 * math.sqrt(pairs * p * (1 - p) / repeats)


def test_erdos_renyi_saturates_and_empties():
    assert graphs.erdos_renyi(6, rng(), expected_edges=1000).number_of_edges() == 15
    assert graphs.erdos_renyi(6, rng(), expected_edges=0).number_of_edges() == 0
    assert graphs.erdos_renyi(1, rng()).number_of_nodes() == 1


def test_erdos_renyi_orders_nodes_at_random():
    backwards = [any(i > j for i, j in graphs.erdos_renyi(8, rng(s)).edges) for s in range(20)]
    assert any(backwards)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_scale_free_has_m_edges_a_new_node_from_old_to_new(m):
    d = 30
    graph = graphs.scale_free(d, rng(2), m)
    assert graph.number_of_edges() == (d - m) * m
    assert all(i < j for i, j in graph.edges)
    assert max(graph.in_degree(j) for j in graph) <= max(m, 1)
    # Preferential attachment: hubs far above the mean degree.
    assert max(dict(graph.degree).values()) > 2 * m


@pytest.mark.parametrize(("depth", "width"), [(1, 1), (1, 4), (3, 2), (4, 1)])
def test_layered_is_complete_between_layers(depth, width):
    graph = graphs.layered(depth, width)
    layer = np.repeat(np.arange(depth), width)
    assert set(graph.edges) == {(i, j) for i in graph for j in graph if layer[i] < layer[j]}
    assert graphs.layers(graph) == [[*range(k * width, (k + 1) * width)] for k in range(depth)]


def test_chain_and_empty():
    assert set(graphs.chain(4).edges) == {(0, 1), (1, 2), (2, 3)}
    assert set(graphs.chain(1)) == {0} and not graphs.chain(1).edges
    assert not graphs.empty(4).edges


def test_adjacency_has_parents_in_rows_in_node_order():
    graph = nx.DiGraph([(2, 0), (0, 1)])
    expected = torch.zeros(3, 3)
    expected[2, 0] = expected[0, 1] = 1
    assert torch.equal(graphs.adjacency(graph), expected)
    assert graphs.adjacency(graph).dtype == torch.float32


def test_adjacency_ignores_edge_weights():
    graph = nx.DiGraph()
    graph.add_edge(0, 1, weight=7.0)
    assert graphs.adjacency(graph)[0, 1] == 1


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**20), st.floats(0, 40))
def test_layers_put_parents_before_children_and_are_as_few_as_can_be(d, seed, edges):
    graph = graphs.erdos_renyi(d, rng(seed), edges)
    layers = graphs.layers(graph)
    position = {node: k for k, nodes in enumerate(layers) for node in nodes}
    assert sorted(position) == list(range(d))
    assert all(nodes == sorted(nodes) for nodes in layers)
    assert all(position[i] < position[j] for i, j in graph.edges)
    assert len(layers) == nx.dag_longest_path_length(graph) + 1


def test_a_cycle_is_refused_and_named():
    with pytest.raises(ConfigError, match=r"cycle.*\(1, 2\).*\(2, 1\)"):
        graphs.layers(nx.DiGraph([(0, 1), (1, 2), (2, 1)]))
    with pytest.raises(ConfigError, match=r"cycle.*\(0, 0\)"):
        graphs.layers(nx.DiGraph([(0, 0)]))


@pytest.mark.parametrize("edges", [[(1, 2)], [("a", "b")], [(0, 2)], [(-1, 0)], [(0, "1")]])
def test_nodes_other_than_0_to_d_are_refused(edges):
    with pytest.raises(ConfigError, match="0 … d−1"):
        graphs.layers(nx.DiGraph(edges))


@pytest.mark.parametrize("d", [0, -1])
@pytest.mark.parametrize("name", ["empty", "chain", "growing network", "erdos renyi", "union of growing networks"])
def test_a_graph_without_nodes_is_refused(name, d):
    with pytest.raises(ConfigError, match="at least one node"):
        GENERATORS[name](d, rng())


def test_hierarchical_and_layered_refuse_empty_layers():
    for make in (
        lambda: graphs.hierarchical([], 0.5, rng()),
        lambda: graphs.hierarchical([2, 0, 3], 0.5, rng()),
        lambda: graphs.layered(0, 3),
        lambda: graphs.layered(2, 0),
    ):
        with pytest.raises(ConfigError):
            make()


@pytest.mark.parametrize(("d", "m"), [(5, 0), (5, 5), (1, 1)])
def test_scale_free_refuses_m_out_of_range(d, m):
    with pytest.raises(ConfigError, match="1 <= m < d"):
        graphs.scale_free(d, rng(), m)

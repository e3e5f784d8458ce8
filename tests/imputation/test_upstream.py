"""Genes upstream of others: reachability, and graphs whose truth is known."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pandas as pd
import pytest

from pyro_cge.discovery import OrderSearch
from pyro_cge.errors import ConfigError, DataError
from pyro_cge.imputation import GraphDraws, causal_graphs, edge_stability, upstream_genes

NAMES = ["R", "S", "A", "B", "C", "D"]
COLLIDERS = [("R", "A"), ("S", "A"), ("A", "B"), ("A", "C"), ("S", "D")]  # R → A ← S tells the directions downstream


@pytest.fixture(scope="module")
def cells():
    rng = np.random.default_rng(0)
    graph = nx.DiGraph(COLLIDERS)
    x = pd.DataFrame(0.0, index=range(1500), columns=NAMES)
    for node in nx.topological_sort(graph):
        x[node] = rng.standard_normal(1500) + sum(0.9 * x[parent] for parent in graph.predecessors(node))
    return x


@pytest.mark.parametrize("seed", range(5))
def test_reach_is_that_of_networkx(seed):
    rng = np.random.default_rng(seed)
    edges = np.triu(rng.random((4, 15, 15)) < 0.15, 1)
    order = rng.permutation(15)
    edges = edges[:, order][:, :, order]
    draws = GraphDraws(edges, [f"g{j}" for j in range(15)])
    for drawn, reach in zip(edges, draws.reach, strict=True):
        graph = nx.from_numpy_array(drawn.astype(int), create_using=nx.DiGraph)
        assert all(set(np.flatnonzero(reach[j])) == nx.descendants(graph, j) for j in range(15))


def test_terminals_downstream_are_counted_draw_by_draw():
    chain = np.zeros((2, 4, 4), dtype=bool)
    chain[0, [0, 1, 2], [1, 2, 3]] = True  # a → b → c → d
    chain[1, 3, 2] = True  # d → c
    draws = GraphDraws(chain, list("abcd"))
    table = upstream_genes(draws, ["c", "d", "elsewhere"])
    assert table["downstream"].to_dict() == {"a": 1.0, "b": 1.0, "c": 0.5, "d": 0.5}
    assert table["p_upstream"].to_dict() == {"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5}
    assert table["rank"].to_dict() == {"a": 1.5, "b": 1.5, "c": 3.5, "d": 3.5}
    # a reaches 3 genes in one draw, 2 of the 3 others' terminals: 2 − 3 · 2/3 = 0; b: 2 − 2 · 2/3; c: 1 − 1/3, none; d alike.
    assert table["excess"].to_dict() == pytest.approx({"a": 0.0, "b": 1 / 3, "c": 1 / 3, "d": 1 / 3})
    assert upstream_genes(draws, ["c", "d"], by="excess")["rank"].to_dict() == {"a": 4.0, "b": 2.0, "c": 2.0, "d": 2.0}
    assert list(table.index[table["terminal"]]) == ["c", "d"]
    assert list(upstream_genes(draws, ["d"], ["c", "b", "nowhere"]).index) == ["c", "b"]
    assert draws.probabilities.loc["a", "b"] == 0.5
    assert list(draws.graph(0.4).edges) == [("a", "b"), ("b", "c"), ("c", "d"), ("d", "c")] and not draws.graph().edges
    with pytest.raises(DataError, match="no terminal \\(x\\) is among the 4 genes"):
        upstream_genes(draws, ["x"])
    with pytest.raises(DataError, match="no terminal \\(none given\\)"):
        upstream_genes(draws, [])
    with pytest.raises(ConfigError, match="by must be"):
        upstream_genes(draws, ["d"], by="chance")
    with pytest.raises(DataError, match="no candidate \\(x\\)"):
        upstream_genes(draws, ["d"], ["x"])


def test_posterior_finds_who_is_upstream(cells):
    draws = causal_graphs(cells, draws=100)
    table = upstream_genes(draws, ["B", "C"])
    assert set(table.index[:3]) == {"R", "S", "A"}
    assert (table.loc[["R", "S", "A"], "downstream"] > 1.6).all()
    # D → S agrees with observations as well as S → D does, and would put D upstream.
    assert 0.1 < table.loc["D", "downstream"] < 1.2 and (table.loc[["B", "C"], "downstream"] < 0.3).all()
    assert draws.edges.shape == (100, 6, 6) and all(
        nx.is_directed_acyclic_graph(nx.DiGraph(a.astype(int))) for a in draws.edges
    )


def test_network_restricts_edges_and_directions_left_open_go_both_ways(cells):
    network = nx.Graph([("R", "A"), ("A", "B"), ("C", "D")])
    draws = causal_graphs(cells, network=network, draws=200)
    joined = {frozenset(edge) for edge in network.edges}
    found = {frozenset((NAMES[i], NAMES[j])) for i, j in np.argwhere(draws.edges.any(0))}
    assert found <= joined
    # R – A – B without S: of 6 orders 4 make them R → A → B, A → R and B, B → A → R by 1 : 2 : 1 (200 draws: sd 0.03).
    share = draws.probabilities
    assert share.loc["R", "A"] + share.loc["A", "R"] == pytest.approx(1.0) and 0.1 < share.loc["R", "A"] < 0.4
    again = causal_graphs(cells, network=network, draws=200)
    assert (again.edges == draws.edges).all(), "the seed says it all"
    dense = causal_graphs(cells, network=network, density=0.5, draws=20)
    assert dense.edges.shape == (20, 6, 6)


def test_subsamples_agree_where_data_are_plenty(cells):
    options = {"estimator": OrderSearch(progress=False), "subsamples": 10, "progress": False}
    first, second = causal_graphs(cells, **options), causal_graphs(cells, **options, random_state=1)
    assert first.edges.shape == (10, 6, 6)
    assert edge_stability(first, second) > 0.9
    posterior = causal_graphs(cells, subsamples=3, draws=30)
    assert posterior.edges.shape == (30, 6, 6)
    with pytest.raises(DataError, match="over other genes"):
        edge_stability(first, GraphDraws(first.edges, NAMES[::-1]))


def test_noise_has_few_edges():
    rng = np.random.default_rng(1)
    noise = pd.DataFrame(rng.standard_normal((60, 20)), columns=[f"g{j}" for j in range(20)])
    network = nx.complete_graph(20)
    network = nx.relabel_nodes(network, {j: f"g{j}" for j in range(20)})
    assert causal_graphs(noise, network=network, draws=50).edges.sum((1, 2)).mean() < 3


def test_a_gene_that_does_not_vary_in_a_subsample_has_no_edges_there(cells):
    rare = cells.assign(E=0.0)
    rare.loc[:3, "E"] = 1.0
    draws = causal_graphs(rare, estimator=OrderSearch(progress=False), subsamples=6, fraction=0.05, progress=False)
    assert draws.genes[-1] == "E" and draws.edges.shape == (6, 7, 7)


def test_unusable_input_is_refused(cells):
    cases = [
        (cells.to_numpy(), {}, DataError, "a DataFrame, a row a cell"),
        (cells.assign(E=1.0), {}, DataError, "1 genes do not vary, E among them"),
        (cells.where(cells < 2), {"draws": 10}, DataError, "values that are not finite"),
        (cells, {"fraction": 0.0}, ConfigError, "fraction"),
        (cells, {"estimator": OrderSearch()}, ConfigError, "subsamples= > 0"),
        (
            cells,
            {"estimator": OrderSearch(), "subsamples": 2, "network": nx.Graph()},
            ConfigError,
            "instead of network",
        ),
    ]
    for expression, options, kind, message in cases:
        with pytest.raises(kind, match=message):
            causal_graphs(expression, **options)

"""Prize-collecting Steiner trees against brute force, and their certificates."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pandas as pd
import pytest

from pyro_cge.errors import ConfigError, DataError
from pyro_cge.imputation import exact_steiner_tree, inclusion_frequency, protein_network, steiner_tree
from pyro_cge.imputation.targets.moats import grow
from pyro_cge.imputation.targets.steiner import _Arrays


def problem(seed):
    """A random graph of up to ten nodes; some edges are free, some cost the same; some prizes are zero."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 11))
    graph = nx.relabel_nodes(nx.gnp_random_graph(n, rng.uniform(0.15, 0.8), seed=seed), str)
    for u, v in graph.edges:
        graph.edges[u, v]["cost"] = float(rng.choice([rng.uniform(0, 1), 1.0, 0.0], p=[0.8, 0.15, 0.05]))
    prizes = {v: float(rng.uniform(0, 1.5)) for v in graph if rng.random() < 0.6} or {"0": 1.0}
    return graph, prizes, None if seed % 2 else float(rng.uniform(0, 1))


def worth(found, prizes, omega):
    """The objective from its definition."""
    paid = sum(cost for *_, cost in found.graph.edges(data="cost"))
    left = sum(prize for v, prize in prizes.items() if v not in found.graph)
    return paid + left + (0 if omega is None else omega * nx.number_connected_components(found.graph))


@pytest.mark.parametrize("seeds", [range(0, 300), range(300, 600)])
def test_at_most_twice_the_best_tree_and_bounded_from_below(seeds):
    optimal = 0
    for seed in seeds:
        graph, prizes, omega = problem(seed)
        found, best = steiner_tree(graph, prizes, omega=omega), exact_steiner_tree(graph, prizes, omega=omega)
        assert found.cost == pytest.approx(worth(found, prizes, omega), abs=1e-9), seed
        assert best.cost == pytest.approx(worth(best, prizes, omega), abs=1e-9), seed
        assert found.lower_bound <= best.cost + 1e-9 <= found.cost + 2e-9, seed
        assert found.cost <= 2 * best.cost + 1e-9, seed
        parts = nx.number_connected_components(found.graph)
        assert found.graph.number_of_edges() == len(found.graph) - parts, f"a forest, {seed}"
        assert parts == 1 or omega is not None, seed
        optimal += found.cost <= best.cost + 1e-9
    assert optimal >= 0.93 * len(seeds), "nearly always optimal at this size"


def test_brute_force_agrees_with_another_one():
    """All sets of edges that form a tree, tried with networkx."""
    from itertools import combinations

    for seed in range(1, 20, 2):
        graph, prizes, _ = problem(seed)
        if graph.number_of_edges() > 9:
            continue
        total = sum(prizes.values())
        values = [total - prizes.get(v, 0.0) for v in graph]
        for size in range(1, graph.number_of_edges() + 1):
            for edges in combinations(graph.edges, size):
                tree = graph.edge_subgraph(edges)
                if nx.is_tree(tree):
                    values.append(
                        sum(c for *_, c in tree.edges(data="cost")) + total - sum(prizes.get(v, 0.0) for v in tree)
                    )
        assert exact_steiner_tree(graph, prizes).cost == pytest.approx(min(values), abs=1e-12), seed


@pytest.mark.parametrize("seed", range(0, 40))
def test_moats_are_a_feasible_dual(seed):
    """Growth is paid by prizes, covers every edge that was used, and never more than the cost of one between clusters."""
    graph, prizes, omega = problem(seed)
    a = _Arrays.of(graph, prizes, "cost", omega)
    chosen, spent, moats = grow(a.start, a.near, a.along, a.ends, a.cost, a.prize, a.root)
    assert -1e-12 <= spent <= a.prize.sum() + 1e-9
    covered = a.ends[chosen]
    assert (moats[covered].sum(1) >= a.cost[chosen] - 1e-8).all(), "moats met over every edge that joined clusters"
    assert not len(covered) or nx.is_forest(nx.Graph(map(tuple, covered)))
    # Moats of two nodes that are never in one cluster do not overlap.
    joined = nx.Graph()
    joined.add_nodes_from(range(len(a.prize)))
    joined.add_edges_from(map(tuple, covered))
    part = {v: k for k, nodes in enumerate(nx.connected_components(joined)) for v in nodes}
    apart = np.array([part[u] != part[v] for u, v in a.ends.tolist()], dtype=bool)
    assert (moats[a.ends[apart]].sum(1) <= a.cost[apart] + 1e-8).all()


def test_a_path_by_hand():
    network = nx.Graph()
    network.add_weighted_edges_from([("a", "b", 1.0), ("b", "c", 1.0), ("c", "d", 5.0)], weight="cost")
    found = steiner_tree(network, {"a": 3.0, "c": 3.0, "d": 4.0})
    assert set(found.graph) == {"a", "b", "c"} and found.cost == 6.0  # d costs 5 and is worth 4
    assert found.table().loc["a"].tolist() == [3.0, True, 1, 0]
    forest = steiner_tree(network, {"a": 3.0, "c": 3.0, "d": 4.0}, omega=1.0)
    assert forest.cost == 3.0 and set(forest.graph) == {"a", "c", "d"} and not forest.graph.edges, "a tree each"


def test_units_do_not_matter_and_neither_does_the_order_of_nodes():
    graph, prizes, omega = problem(18)
    found = steiner_tree(graph, prizes, omega=omega)
    scaled = graph.copy()
    for *_, facts in scaled.edges(data=True):
        facts["cost"] *= 1e6
    larger = steiner_tree(scaled, pd.Series(prizes) * 1e6, omega=omega * 1e6)
    assert set(larger.graph) == set(found.graph) and larger.cost == pytest.approx(1e6 * found.cost)
    turned = nx.Graph()
    turned.add_nodes_from(reversed(list(graph)))
    turned.add_edges_from(graph.edges(data=True))
    assert steiner_tree(turned, prizes, omega=omega).cost == pytest.approx(found.cost)


def test_apart_components_make_one_tree_or_several():
    network = nx.Graph()
    network.add_weighted_edges_from([("a", "b", 0.1), ("c", "d", 0.1)], weight="cost")
    prizes = {"a": 1.0, "b": 1.0, "c": 0.6, "d": 0.6, "elsewhere": 2.0}
    tree = steiner_tree(network, prizes)
    assert set(tree.graph) == {"a", "b"} and tree.missing == ("elsewhere",) and tree.cost == pytest.approx(1.3)
    forest = steiner_tree(network, prizes, omega=0.2)
    assert set(forest.graph) == {"a", "b", "c", "d"} and forest.cost == pytest.approx(0.6)
    assert forest.table()["tree"].nunique() == 2


def test_a_larger_network_is_quick_and_close_to_its_bound_where_terminals_are_near():
    graph = nx.relabel_nodes(nx.barabasi_albert_graph(3000, 5, seed=0), str)
    rng = np.random.default_rng(0)
    nx.set_edge_attributes(graph, {e: float(rng.uniform(0.1, 1)) for e in graph.edges}, "cost")
    prizes = {str(v): 5.0 for v in rng.choice(3000, 100, replace=False)}
    found = steiner_tree(graph, prizes)
    assert set(prizes) <= set(found.graph) and nx.is_tree(found.graph)
    assert found.cost <= 2 * found.lower_bound
    reference = nx.algorithms.approximation.steiner_tree(graph, list(prizes), weight="cost", method="mehlhorn")
    assert found.cost <= 1.02 * sum(c for *_, c in reference.edges(data="cost"))


def test_inclusion_is_certain_without_noise_and_graded_with_it():
    graph, prizes, omega = problem(23)
    certain = inclusion_frequency(graph, prizes, omega=omega, noise=0.0, draws=5)
    assert set(certain.index) == set(steiner_tree(graph, prizes, omega=omega).graph) and (certain == 1).all()
    network = nx.Graph()
    network.add_weighted_edges_from([("a", "x", 0.5), ("x", "b", 0.5), ("a", "y", 0.5), ("y", "b", 0.5)], weight="cost")
    share = inclusion_frequency(network, {"a": 5.0, "b": 5.0}, draws=400, noise=0.3)
    assert share["a"] == share["b"] == 1.0
    assert share["x"] + share["y"] == pytest.approx(1.0) and 0.4 < share["x"] < 0.6  # 4 sd of 400 fair coins
    again = inclusion_frequency(network, {"a": 5.0, "b": 5.0}, draws=400, noise=0.3)
    pd.testing.assert_series_equal(share, again)
    assert "" not in inclusion_frequency(network, {"a": 5.0}, omega=0.1, draws=3).index


def test_network_of_a_table():
    table = pd.DataFrame(
        {"p": ["A", "A", "B", "C"], "q": ["B", "B", "A", "C"], "confidence": [0.2, 0.7, 0.4, 0.9], "note": list("wxyz")}
    )
    network = protein_network(table, confidence="confidence")
    assert list(network.edges(data="cost")) == [("A", "B", pytest.approx(0.3))], "the surest of three, no loop"
    star = pd.DataFrame({"p": ["hub"] * 4, "q": list("abcd"), "cost": 0.0})
    priced = protein_network(star, cost="cost", hub_penalty=0.0)
    # n = 5, degrees 4 and 1: 4 / ((5 − 4 − 1)(5 − 1 − 1) + 4)
    assert priced.edges["hub", "a"]["cost"] == pytest.approx(1.0)
    assert protein_network(star, cost="cost", hub_penalty=-1.0).edges["hub", "a"]["cost"] == pytest.approx(0.1)


BAD_TABLES = [
    ({"cost": [-0.1, 0.2]}, {"cost": "cost"}, DataError, "A – B has cost -0.1, expected a finite cost ≥ 0"),
    ({"cost": [np.nan, 0.2]}, {"cost": "cost"}, DataError, "A – B has cost nan"),
    ({"w": [0.5, 1.2]}, {"confidence": "w"}, DataError, "C – D has w 1.2, expected a confidence between 0 and 1"),
    ({"w": [0.5, 0.2]}, {"cost": "price"}, DataError, "no column 'price'"),
    ({"w": [0.5, 0.2]}, {}, ConfigError, "one of them"),
    ({"p": ["A", None], "w": [0.5, 0.2]}, {"cost": "w"}, DataError, "row 1 of the network lacks a protein"),
]


@pytest.mark.parametrize("columns, options, kind, message", BAD_TABLES)
def test_unusable_tables_are_refused(columns, options, kind, message):
    table = pd.DataFrame({"p": ["A", "C"], "q": ["B", "D"], **columns})
    with pytest.raises(kind, match=message):
        protein_network(table, **options)


def _square(**edge):
    network = nx.cycle_graph(4)
    nx.set_edge_attributes(network, 1.0, "cost")
    network.edges[0, 1].update(edge)
    return network


BAD_PROBLEMS = [
    (_square(), {}, {}, DataError, "no gene has a prize above zero"),
    (_square(), {"0": 0.0}, {}, DataError, "no gene has a prize above zero"),
    (_square(), {"0": -1.0}, {}, DataError, "prize of 0 is -1.0"),
    (_square(), {"0": np.nan}, {}, DataError, "prize of 0 is nan"),
    (_square(), {"TP53": 1.0}, {}, DataError, "none of the 1 terminals"),
    (_square(), pd.Series([1.0, 2.0], index=["0", "0"]), {}, DataError, "two prizes"),
    (_square(cost=-1.0), {"0": 1.0}, {}, DataError, "edge 0 – 1 has cost -1.0"),
    (_square(cost=np.nan), {"0": 1.0}, {}, DataError, "edge 0 – 1 has cost nan"),
    (_square(), {"0": 1.0}, {"cost": "weight"}, DataError, "edge 0 – 1 has weight nan"),
    (nx.DiGraph([(0, 1)]), {"0": 1.0}, {}, DataError, "undirected"),
    (_square(), {"0": 1.0}, {"omega": -1.0}, ConfigError, "omega"),
]


@pytest.mark.parametrize("network, prizes, options, kind, message", BAD_PROBLEMS)
def test_unusable_problems_are_refused(network, prizes, options, kind, message):
    with pytest.raises(kind, match=message):
        steiner_tree(network, prizes, **options)


def test_limits_are_said():
    with pytest.raises(ConfigError, match="at most 18, got 30"):
        exact_steiner_tree(_long(), {"0": 1.0})
    with pytest.raises(ConfigError, match="noise"):
        inclusion_frequency(_square(), {"0": 1.0}, noise=-1.0)


def _long():
    network = nx.path_graph(30)
    nx.set_edge_attributes(network, 1.0, "cost")
    return network

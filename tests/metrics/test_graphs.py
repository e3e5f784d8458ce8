"""Distances between graphs, against hand-counted cases, enumeration and linear models."""

from __future__ import annotations

import itertools
import tracemalloc

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from pyro_cge.discovery import essential_graph, named_graph
from pyro_cge.metrics import (
    edge_aupr,
    edge_calibration,
    edge_recovery,
    essential_distance,
    structural_hamming_distance,
    structural_intervention_distance,
    target_precision_recall,
)


def random_dag(d, seed, density=0.5):
    rng = np.random.default_rng(seed)
    order = rng.permutation(d)
    A = np.triu(rng.random((d, d)) < density, 1).astype(int)
    return A[np.ix_(np.argsort(order), np.argsort(order))]


def dag(adjacency):
    return nx.from_numpy_array(adjacency, create_using=nx.DiGraph)


def dags(d):
    """All DAGs over ``d`` nodes."""
    pairs = list(itertools.combinations(range(d), 2))
    for states in itertools.product(range(3), repeat=len(pairs)):
        A = np.zeros((d, d), dtype=int)
        for (i, j), state in zip(pairs, states, strict=True):
            A[i, j], A[j, i] = state == 1, state == 2
        if nx.is_directed_acyclic_graph(dag(A)):
            yield A


@pytest.fixture
def truth():
    truth = torch.zeros(4, 4)
    truth[0, 1] = truth[1, 2] = truth[2, 3] = 1
    return truth


@pytest.fixture
def estimate():
    estimate = np.zeros((4, 4))
    estimate[1, 0] = -0.7  # reversed
    estimate[1, 2] = 0.3  # right
    estimate[0, 3] = 1.0  # extra; 2 → 3 is missing
    return estimate


def test_missing_extra_and_reversed_edges_count_once_each(truth, estimate):
    assert structural_hamming_distance(estimate, truth) == 3
    assert structural_hamming_distance(truth, truth) == 0
    found = edge_recovery(estimate, truth)
    assert (found.correct, found.reversed, found.extra, found.missing, found.undirected) == (1, 1, 1, 1, 0)
    assert (found.shd, found.n_edges, found.n_true) == (3, 3, 3)
    assert found.precision == found.recall == found.f1 == pytest.approx(1 / 3)
    assert (found.fdr, found.skeleton_f1) == pytest.approx((2 / 3, 2 / 3))


def test_an_undirected_edge_is_a_state_of_its_own_and_half_right(truth, estimate):
    estimate[0, 1] = 1  # 0 − 1
    assert structural_hamming_distance(estimate, truth) == 3
    found = edge_recovery(estimate, truth)
    assert (found.correct, found.reversed, found.undirected, found.shd) == (2, 0, 1, 2)
    estimate[3, 0] = 1  # an extra undirected edge
    assert edge_recovery(estimate, truth) == found.__class__(correct=2, reversed=0, extra=1, missing=1, undirected=2)


@pytest.mark.parametrize("seed", range(5))
def test_distance_is_a_metric(seed):
    a, b, c = (random_dag(6, 3 * seed + k) for k in range(3))
    assert structural_hamming_distance(a, b) == structural_hamming_distance(b, a)
    assert structural_hamming_distance(a, c) <= structural_hamming_distance(a, b) + structural_hamming_distance(b, c)
    assert (structural_hamming_distance(a, b) == 0) == np.array_equal(a, b)
    found, back = edge_recovery(a, b), edge_recovery(b, a)
    assert found.shd == structural_hamming_distance(a, b)
    assert (found.recall, found.missing) == (back.precision, back.extra)


def test_graphs_are_matched_by_name(truth):
    genes = list("abcd")
    graph = named_graph(truth, genes)
    other = nx.DiGraph([("c", "d"), ("b", "c"), ("a", "b")])  # another order of nodes
    assert structural_hamming_distance(other, graph) == 0
    assert structural_hamming_distance(truth.numpy(), graph) == 0
    table = pd.DataFrame(truth.numpy(), index=genes, columns=genes).loc[list("dcba"), list("dcba")]
    assert structural_hamming_distance(table, graph) == structural_hamming_distance(graph, table) == 0
    with pytest.raises(ValueError, match="other nodes"):
        structural_hamming_distance(nx.DiGraph([("a", "x")]), graph)


@pytest.mark.parametrize("kind", [sparse.csr_array, sparse.csr_matrix, sparse.coo_array])
def test_sparse_graphs_are_graphs(kind, truth, estimate):
    stored = kind(estimate)
    assert structural_hamming_distance(stored, truth) == structural_hamming_distance(kind(truth.numpy()), estimate) == 3
    assert edge_recovery(stored, truth) == edge_recovery(estimate, truth)
    assert edge_aupr(stored, truth) == edge_aupr(estimate, truth)
    assert essential_distance(stored, kind(truth.numpy())) == essential_distance(estimate, truth)
    assert structural_intervention_distance(stored, truth) == structural_intervention_distance(estimate, truth)
    zero = sparse.csr_array(([0.0, 1.0], ([0, 1], [1, 2])), shape=(3, 3))
    assert structural_hamming_distance(zero, np.zeros((3, 3))) == 1, "a zero that is stored is no edge"
    assert zero.nnz == 2, "what is given is left as it is"


def test_edges_are_counted_as_on_all_pairs_of_dags():
    """By the definitions, on pairs of nodes, for graphs with undirected edges too."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        a, b = rng.random((5, 5)) < 0.4, random_dag(5, int(rng.integers(1000))) != 0
        np.fill_diagonal(a, False)
        pairs = [(a[i, j], a[j, i], b[i, j], b[j, i]) for i, j in itertools.combinations(range(5), 2)]
        found = edge_recovery(a, b)
        assert found.correct == sum((x and u) + (y and v) for x, y, u, v in pairs)
        assert found.reversed == sum((x != y) and (u or v) and (x, y) != (u, v) for x, y, u, v in pairs)
        assert found.extra == sum((x or y) and not (u or v) for x, y, u, v in pairs)
        assert found.missing == sum((u or v) and not (x or y) for x, y, u, v in pairs)
        assert found.undirected == sum(x and y for x, y, *_ in pairs)
        assert structural_hamming_distance(a, b) == sum((x, y) != (u, v) for x, y, u, v in pairs)


def test_twenty_thousand_nodes_take_no_square_of_memory():
    """Dense, one such adjacency would take 3.2 GB."""
    d = 20_000
    chain = sparse.csr_array((np.ones(d - 1), (np.arange(d - 1), np.arange(1, d))), shape=(d, d))
    back = nx.path_graph(range(d - 1, -1, -1), create_using=nx.DiGraph)
    back = nx.relabel_nodes(back, {j: d - 1 - j for j in range(d)})  # nodes in the same order, edges as in the chain
    tracemalloc.start()
    assert structural_hamming_distance(chain, chain.T) == d - 1
    assert edge_recovery(chain, back).recall == 1
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_tables_are_matched_by_rows_and_columns_and_must_be_whole(truth):
    genes = list("abcd")
    table = pd.DataFrame(truth.numpy(), index=genes, columns=genes)
    turned = table.loc[list("dbca"), list("cadb")]
    assert structural_hamming_distance(turned, truth) != 0, "beside an array only the order counts"
    assert (
        structural_hamming_distance(turned, table)
        == structural_hamming_distance(turned, named_graph(truth, genes))
        == 0
    )
    with pytest.raises(ValueError, match="same names, each once"):
        structural_hamming_distance(pd.DataFrame(truth.numpy(), columns=genes), table)
    with pytest.raises(ValueError, match="NaN"):
        structural_hamming_distance(table.where(table == 0), table)


def test_an_edge_of_weight_zero_is_an_edge():
    graph = named_graph([[0, 1], [0, 0]], ["a", "b"], weight=[[0, 0.0], [0, 0]])
    assert structural_hamming_distance(np.zeros((2, 2)), graph) == 1


@pytest.mark.parametrize(
    "measure", [structural_hamming_distance, edge_recovery, edge_aupr, structural_intervention_distance]
)
def test_sizes_must_agree(measure):
    with pytest.raises(ValueError, match=r"one size, got \[2, 2\] and \[3, 3\]"):
        measure(torch.zeros(2, 2), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="NaN"):
        measure(np.full((2, 2), np.nan), np.zeros((2, 2)))


def test_essential_distance_is_zero_between_equivalent_dags_only():
    """All pairs of DAGs over three nodes: equivalent if skeleton and v-structures are the same (Verma & Pearl)."""

    def structure(A):
        skeleton = A | A.T
        return skeleton.tobytes(), tuple(
            (i, k, j)
            for k in range(3)
            for i in range(3)
            for j in range(i)
            if A[i, k] and A[j, k] and not skeleton[i, j]
        )

    for a, b in itertools.product(list(dags(3)), repeat=2):
        assert (essential_distance(a, b) == 0) == (structure(a) == structure(b))
        essential = nx.to_numpy_array(essential_graph(dag(a)))
        assert essential_distance(essential, b) == essential_distance(a, b)


def test_interventions_make_equivalent_dags_distinct():
    chain, back = named_graph([[0, 1], [0, 0]], ["a", "b"]), named_graph([[0, 0], [1, 0]], ["a", "b"])
    assert essential_distance(back, chain) == 0
    assert essential_distance(back, chain, targets=[{"a"}]) == 1
    assert essential_distance(np.array([[0, 0], [1, 0]]), np.array([[0, 1], [0, 0]]), targets=[{0}]) == 1


@pytest.mark.parametrize("seed", range(6))
def test_intervention_distance_counts_wrong_effects_of_a_linear_model(seed):
    """Oracle: with generic weights, regression on i and its estimated parents gives the true total effect or it does not."""
    d = 6
    truth, estimate = random_dag(d, seed, 0.4), random_dag(d, seed + 100, 0.4)
    rng = np.random.default_rng(seed)
    W = truth * rng.uniform(0.5, 1.5, (d, d)) * rng.choice([-1, 1], (d, d))
    total = np.linalg.inv(np.eye(d) - W)  # [i, j]: effect of i on j
    covariance = total.T @ np.diag(rng.uniform(0.5, 2, d)) @ total
    wrong = 0
    for i, j in itertools.permutations(range(d), 2):
        parents = np.flatnonzero(estimate[:, i]).tolist()
        rows = [i, *parents]
        effect = 0.0 if j in parents else np.linalg.solve(covariance[np.ix_(rows, rows)], covariance[rows, j])[0]
        wrong += abs(effect - total[i, j]) > 1e-9
    assert structural_intervention_distance(estimate, truth) == wrong


def test_intervention_distance_of_known_cases():
    truth = np.array([[0, 1, 1], [0, 0, 1], [0, 0, 0]])
    assert structural_intervention_distance(truth, truth) == 0
    # Without edges nothing is adjusted for: wrong are 1 on 2, confounded by 0, and the three effects against the order.
    assert structural_intervention_distance(np.zeros((3, 3)), truth) == 4
    fewer = np.array([[0, 1, 0], [0, 0, 1], [0, 0, 0]])
    assert structural_intervention_distance(truth, fewer) == 0, "extra edges are safe"
    with pytest.raises(ValueError, match="estimate has a cycle"):
        structural_intervention_distance(np.ones((3, 3)), truth)


def test_aupr_by_hand_and_with_ties():
    truth = np.array([[0, 1, 0], [0, 0, 1], [0, 0, 0]])
    scores = np.array([[0, -0.9, 0.8], [0, 0, 0.7], [0, 0, 0]])
    assert edge_aupr(scores, truth) == pytest.approx((1 + 2 / 3) / 2)
    assert edge_aupr(truth, truth) == 1
    assert edge_aupr(np.ones((3, 3)), truth) == pytest.approx(2 / 6), "a constant says nothing"
    graph = named_graph(scores, list("abc"), weight=scores)
    assert edge_aupr(graph, named_graph(truth, list("abc"))) == pytest.approx((1 + 2 / 3) / 2)
    with pytest.raises(ValueError, match="no edges"):
        edge_aupr(scores, np.zeros((3, 3)))


def test_calibration_of_right_and_of_bold_probabilities():
    """Edges drawn with the probabilities stated: at most one bin in twenty misses its 95 % interval by chance (seed fixed)."""
    rng = np.random.default_rng(0)
    p = [rng.random((d, d)) for d in (30, 40, 30)]
    truth = [rng.random(q.shape) < q for q in p]
    right = edge_calibration(p, truth)
    assert right.table["n"].sum() == sum(len(q) * (len(q) - 1) for q in p)
    assert right.excess < 0.01 and right.error < 0.03 and right.largest < 0.06
    bold = edge_calibration([np.clip(1.8 * q - 0.4, 0, 1) for q in p], truth)
    assert bold.error > 0.08 and bold.excess > 0.05


def test_calibration_by_hand():
    p = np.array([[0.0, 0.95, 0.25], [0.25, 0.0, 0.25], [0.25, 0.05, 0.0]])
    truth = np.array([[0, 1, 1], [0, 0, 0], [0, 0, 0]])
    one = edge_calibration(p, truth)
    np.testing.assert_allclose(
        one.table[["low", "probability", "share", "n"]].to_numpy(),
        [[0, 0.05, 0, 1], [0.2, 0.25, 0.25, 4], [0.9, 0.95, 1, 1]],
        atol=1e-12,
    )
    assert one.error == pytest.approx((0.05 + 0 + 0.05) / 6)
    assert one.largest == pytest.approx(0.05)
    with pytest.raises(ValueError, match="between 0 and 1"):
        edge_calibration(p * 2, truth)


def test_target_precision_and_recall():
    truth = pd.DataFrame([[0, 0, 0], [1, 0, 0], [0, 1, 1]], index=["ctrl", "a", "b"], columns=list("xyz"))
    named = pd.DataFrame([[1, 0, 0], [1, 0, 0], [0, 0, 1]], index=["ctrl", "a", "b"], columns=list("xyz"))
    assert target_precision_recall(named, truth) == pytest.approx((2 / 3, 2 / 3))
    assert target_precision_recall(named.iloc[::-1], truth) == pytest.approx((2 / 3, 2 / 3)), "rows are matched by name"
    assert target_precision_recall(np.zeros((2, 2)), np.zeros((2, 2))) == (1, 1)
    assert target_precision_recall(np.zeros((2, 2)), np.eye(2)) == (0, 0)
    with pytest.raises(ValueError, match="other environments"):
        target_precision_recall(named.rename(index={"a": "c"}), truth)
    with pytest.raises(ValueError, match="one size"):
        target_precision_recall(np.zeros((2, 2)), np.eye(3))

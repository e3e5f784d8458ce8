"""Trees from environments, against brute force over every labelled tree and forest."""

from __future__ import annotations

import itertools
from collections import defaultdict
from functools import cache

import networkx as nx
import numpy as np
import pytest
import torch

import pyro_cge as cge
from pyro_cge.discovery import TreeClass, changed_causes, trees_of
from pyro_cge.errors import ConfigError, DataError
from pyro_cge.metrics.calibration import holm
from pyro_cge.scm.graphs import growing_network


@cache
def forests(d: int) -> tuple[np.ndarray, np.ndarray]:
    """Every rooted labelled forest over ``d`` nodes: parents ``[F, d]`` (−1 for a root) and who descends from whom.

    ``reach[f, t]`` are the descendants of ``t`` and itself ``[F, d, d]``.
    """
    parents = np.array(list(itertools.product(range(-1, d), repeat=d)), dtype=np.int8)
    upward = np.arange(d)[None].repeat(len(parents), 0)
    padded = np.concatenate([parents, np.full((len(parents), 1), -1, np.int8)], 1)  # index −1 stays −1
    reach = np.zeros((len(parents), d, d), dtype=bool)
    rows, nodes = np.indices(upward.shape)
    for _ in range(d):
        inside = upward >= 0
        reach[rows[inside], upward[inside], nodes[inside]] = True
        upward = np.take_along_axis(padded, upward, 1)
    acyclic = (upward < 0).all(1)
    return parents[acyclic], reach[acyclic]


def graph_of(parents: np.ndarray) -> nx.DiGraph:
    graph = nx.empty_graph(len(parents), create_using=nx.DiGraph)
    graph.add_edges_from((int(p), j) for j, p in enumerate(parents) if p >= 0)
    return graph


def edges(graph: nx.DiGraph) -> frozenset[tuple[int, int]]:
    return frozenset(graph.edges)


def is_tree(parents: np.ndarray) -> bool:
    return int((parents < 0).sum()) == 1


def parents_of(found: TreeClass) -> list[int]:
    """Parent of each cause (−1 for a root) of an identified tree, without the cost of a graph."""
    parents = [-1] * found.d
    for (child,), above in zip(found.classes, found.parents, strict=True):
        if child >= 0 and above is not None:
            parents[child] = found.classes[above][0]
    return parents


def check_all(d: int, also_without_root: bool = True) -> None:
    parents, reach = forests(d)
    assert len(parents) == (d + 1) ** (d - 1)  # Cayley
    for one, changed in zip(parents, reach, strict=True):
        found = trees_of(changed)
        assert found.identified and parents_of(found) == one.tolist()
        if also_without_root and is_tree(one):
            without = trees_of(changed[one >= 0].reshape(-1, d), connected=True)
            assert without.identified and edges(without.graph) == edges(found.graph) == edges(graph_of(one))


@pytest.mark.parametrize("d", [1, 2, 3, 4, 5])
def test_every_tree_and_forest_is_found(d):
    check_all(d)


@pytest.mark.slow
def test_every_tree_and_forest_over_six_causes_is_found():
    check_all(6)


@pytest.mark.slow
def test_every_tree_and_forest_over_seven_causes_is_found():
    check_all(7, also_without_root=False)


@pytest.mark.parametrize("d", [1, 2, 3, 4])
@pytest.mark.parametrize("connected", [False, True])
def test_what_is_not_identified_agrees_with_brute_force(d, connected):
    """Every forest, every set of targets: the consistent forests are those brute force leaves."""
    parents, reach = forests(d)
    if connected:
        keep = np.array([is_tree(p) for p in parents])
        parents, reach = parents[keep], reach[keep]
    codes = [set(row) for row in (reach @ (1 << np.arange(d))).tolist()]  # each target's change as a number
    graphs = [edges(graph_of(p)) for p in parents]
    for f, changed in enumerate(reach):
        for targets in (list(t) for k in range(d + 1) for t in itertools.combinations(range(d), k)):
            seen = set((changed[targets] @ (1 << np.arange(d))).tolist())
            left = [graph for graph, each in zip(graphs, codes, strict=True) if seen <= each]
            found = trees_of(changed[targets], connected=connected)
            assert found.n_consistent == len(left)
            assert sorted(map(sorted, map(edges, found.consistent()))) == sorted(map(sorted, left))
            assert edges(found.graph) == frozenset.intersection(*left)
            assert found.identified == (len(left) == 1) == (not found.ambiguous)
            every = len(set(targets) | ({int(np.argmin(parents[f]))} if connected else set())) == d
            assert found.identified == (every or (d == 1))  # the criterion of the docstring


def test_number_of_consistent_forests_at_five_causes():
    """Every forest over five causes with every set of targets, counted by brute force."""
    d = 5
    parents, reach = forests(d)
    codes = reach @ (1 << np.arange(d))
    makes = np.zeros((len(parents), 1 << d), dtype=bool)  # forest × change it can make
    makes[np.arange(len(parents))[:, None], codes] = True
    counted: dict[frozenset[int], int] = {}
    for changed, row in zip(reach, codes, strict=True):
        for targets in (list(t) for k in range(d + 1) for t in itertools.combinations(range(d), k)):
            seen = frozenset(row[targets].tolist())
            if seen not in counted:
                counted[seen] = int(makes[:, sorted(seen)].all(1).sum())
                assert trees_of(changed[targets]).n_consistent == counted[seen]
    assert len(counted) > 1000


def test_any_boolean_matrix_is_explained_or_refused():
    """Of all sets of changes over three causes, those are refused that no forest makes."""
    _, reach = forests(3)
    codes = [set(row) for row in (reach @ (1 << np.arange(3))).tolist()]
    refused = 0
    for size in range(4):
        for changes in itertools.combinations(range(1, 8), size):
            matrix = np.array([[c >> j & 1 for j in range(3)] for c in changes], dtype=bool).reshape(-1, 3)
            possible = sum(set(changes) <= row for row in codes)
            if possible:
                assert trees_of(matrix).n_consistent == possible
            else:
                refused += 1
                with pytest.raises(DataError, match="no tree has these changes"):
                    trees_of(matrix)
    assert refused


def random_changes(d: int, seed: int) -> tuple[nx.DiGraph, np.ndarray]:
    graph = growing_network(d, np.random.default_rng(seed))
    return graph, nx.to_numpy_array(nx.transitive_closure(graph, reflexive=True), nodelist=range(d)).astype(bool)


def test_environments_may_repeat_and_come_in_any_order_and_causes_have_any_names():
    rng = np.random.default_rng(0)
    graph, changed = random_changes(40, 0)
    order, names = rng.permutation(60) % 40, rng.permutation(40)
    rows = np.concatenate([changed[order], np.zeros((3, 40), bool)])
    renamed = np.zeros_like(rows)
    renamed[:, names] = rows
    found = trees_of(renamed)
    assert found.identified
    assert edges(found.graph) == {(int(names[i]), int(names[j])) for i, j in graph.edges}


def test_a_long_chain_needs_no_recursion():
    found = trees_of(np.tri(1100, dtype=bool).T)
    assert edges(found.graph) == {(i, i + 1) for i in range(1099)}


def test_causes_never_intervened_on_come_back_as_a_class():
    _, changed = random_changes(6, 3)
    chain = np.tri(4, dtype=bool).T  # 0 → 1 → 2 → 3
    found = trees_of(np.delete(chain, 2, axis=0))  # nothing tells 2 from its parent
    assert found.ambiguous == [frozenset({1, 2})]
    assert found.n_consistent == 2 * 2  # 1 → 2 or 2 → 1, and 3 hangs on either
    assert edges(found.graph) == set()
    assert trees_of(changed).identified


def test_contradictions_name_two_environments():
    with pytest.raises(DataError, match="environments 0 and 1 change causes"):
        trees_of([[True, True, False], [False, True, True]])
    with pytest.raises(DataError, match=r"\[\[0\], \[1\]\] never change together"):
        trees_of([[True, False], [False, True]], connected=True)
    with pytest.raises(DataError, match="boolean matrix"):
        trees_of([[1, 0]])


# From data


@pytest.fixture(scope="module")
def causes():
    """Two hundred profiles each of a control and one shift a cause, on a tree of six."""
    graph = growing_network(6, np.random.default_rng(5))
    design = cge.simulate.one_per_latent(6, value=3.0)
    truth = cge.simulate.simulator(graph, n_latents=6, n_genes=8, environments=design, seed=1)
    return truth.sample(200, seed=1)


def test_the_tree_is_found_from_profiles(causes):
    changed = changed_causes(causes.truth.c, causes.env, causes.control, alpha=0.01)
    closure = nx.to_numpy_array(nx.transitive_closure(causes.truth.graph, reflexive=True), nodelist=range(6)) > 0
    assert not changed[0].any() and (changed[1:] == closure).all()
    found = trees_of(changed)
    assert found.identified and edges(found.graph) == edges(causes.truth.graph)


def test_noise_shows_targets_but_no_tree(causes):
    """Recovered noise moves in its own environment only, whatever the graph: a forest of roots explains it."""
    changed = changed_causes(causes.truth.z, causes.env, causes.control, alpha=0.01)
    assert (changed[1:] == np.eye(6, dtype=bool)).all()
    found = trees_of(changed)
    assert not found.graph.edges and causes.truth.graph.edges


def test_scale_changes_are_found():
    rng = np.random.default_rng(0)
    values, env = rng.standard_normal((900, 2)), np.repeat([0, 1, 2], 300)
    values[env == 1, 1] *= 2.0
    assert changed_causes(values, env, [0]).tolist() == [[False, False], [False, True], [False, False]]


def test_corrected_tests_agree_with_scipy_one_by_one():
    """Oracle: SciPy's tests pair by pair, the package's own Holm correction."""
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(3)
    env = rng.permutation(np.repeat(np.arange(8), rng.integers(6, 30, 8)))
    values = rng.standard_normal((len(env), 5)) + 1.2 * rng.standard_normal((8, 5))[env] * (
        rng.random((8, 5))[env] < 0.5
    )
    p = defaultdict(dict)
    control = np.isin(env, [0, 3])
    for e, j in itertools.product([1, 2, 4, 5, 6, 7], range(5)):
        here, there = values[env == e, j], values[control, j]
        spread = [np.abs(v - np.median(v)) for v in (here, there)]
        tests = ttest_ind(here, there, equal_var=False).pvalue, ttest_ind(*spread, equal_var=False).pvalue
        p[e][j] = min(1.0, 2 * min(tests))
    flat = np.array([p[e][j] for e in p for j in range(5)])
    expected = (holm(flat) <= 0.05).reshape(6, 5)
    found = changed_causes(torch.tensor(values), torch.tensor(env), [0, 3])
    assert (found[[1, 2, 4, 5, 6, 7]] == expected).all() and not found[[0, 3]].any()
    assert 0 < expected.sum() < 30


def test_false_changes_stay_below_alpha():
    """300 data sets without any change at alpha = 0.2: more than 87 with a false one has probability < 1e-4."""
    rng = np.random.default_rng(0)
    env = np.repeat(np.arange(5), 20)
    wrong = sum(changed_causes(rng.standard_normal((100, 4)), env, [0], alpha=0.2).any() for _ in range(300))
    assert wrong <= 87


def test_constant_causes_do_not_change_and_bad_input_is_named():
    values, env = np.zeros((40, 2)), np.repeat([0, 1], 20)
    values[env == 1, 1] = 1.0
    assert changed_causes(values, env, [0]).tolist() == [[False, False], [False, True]]
    with pytest.raises(ConfigError, match="control"):
        changed_causes(values, env, [2])
    with pytest.raises(ConfigError, match="alpha"):
        changed_causes(values, env, [0], alpha=1.0)
    with pytest.raises(DataError, match="environment 2 has one profile"):
        changed_causes(np.zeros((41, 2)), np.append(env, 2), [0])

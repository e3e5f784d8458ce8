"""The order search against enumeration of all DAGs, its invariances, and prior knowledge."""

from __future__ import annotations

import itertools

import networkx as nx
import numpy as np
import pandas as pd
import pytest

from pyro_cge.discovery import EdgePrior, Knowledge, LargeOrderSearch, OrderSearch, essential_graph
from pyro_cge.discovery.compiled.scores import local_score
from pyro_cge.discovery.inputs import samples
from pyro_cge.discovery.order_search import tails
from pyro_cge.errors import ConfigError, DataError


def linear(seed, d=4, n=300, degree=1.5):
    """Samples of a random linear-Gaussian SCM, columns standardised, and its adjacency."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(d)
    adjacency = np.zeros((d, d), dtype=int)
    for a, b in itertools.combinations(range(d), 2):
        adjacency[order[a], order[b]] = rng.random() < degree * 2 / (d - 1) / 2
    weights = adjacency * rng.uniform(0.5, 1.5, (d, d)) * rng.choice([-1, 1], (d, d))
    x = rng.normal(size=(n, d)) @ np.linalg.inv(np.eye(d) - weights)
    return (x - x.mean(0)) / x.std(0), adjacency


def with_targets(seed, d=8, environments=8, n=200, noise=np.random.Generator.standard_normal):
    """A control and environments that shift, rescale and weaken the mechanism of two nodes each."""
    rng = np.random.default_rng(seed)
    _, adjacency = linear(seed, d)
    weights = adjacency * rng.uniform(0.5, 1.5, (d, d)) * rng.choice([-1, 1], (d, d))
    order = list(nx.topological_sort(nx.from_numpy_array(adjacency, create_using=nx.DiGraph)))
    targets, parts = np.zeros((environments + 1, d), dtype=bool), []
    for e in range(environments + 1):
        if e:
            targets[e, rng.choice(d, 2, replace=False)] = True
        x = np.zeros((n, d))
        for j in order:
            strength, shift, scale = (0.3, 2.0, 1.5) if targets[e, j] else (1.0, 0.0, 1.0)
            x[:, j] = strength * x @ weights[:, j] + shift + scale * noise(rng, n)
        parts.append(x)
    return np.concatenate(parts), np.repeat(np.arange(environments + 1), n), adjacency, targets


def all_dags(d):
    pairs = list(itertools.combinations(range(d), 2))
    for state in itertools.product((0, 1, 2), repeat=len(pairs)):
        adjacency = np.zeros((d, d), dtype=int)
        for (a, b), s in zip(pairs, state, strict=True):
            adjacency[(a, b) if s == 1 else (b, a)] = s > 0
        if nx.is_directed_acyclic_graph(nx.from_numpy_array(adjacency, create_using=nx.DiGraph)):
            yield adjacency


@pytest.mark.parametrize("seed", range(8))
def test_no_dag_scores_better(seed):
    """All 543 DAGs on four nodes."""
    x, _ = linear(seed)
    found = OrderSearch(restarts=5).fit(x)
    data = samples(x)
    prices = (np.full((4, 4), np.log(len(x))), np.ones(1), 0.0, np.zeros((1, 4), dtype=np.int8))
    grams, none = data.grams(), np.zeros(1, dtype=bool)
    local = {
        (j, parents): local_score(grams, data.sizes, j, np.array([*parents, 0]), len(parents), prices, none)
        for j in range(4)
        for k in range(4)
        for parents in itertools.combinations([i for i in range(4) if i != j], k)
    }
    best = max(sum(local[j, tuple(np.flatnonzero(a[:, j]))] for j in range(4)) for a in all_dags(4))
    assert found.score_ == pytest.approx(best, abs=1e-5)
    again = sum(local[j, tuple(np.flatnonzero(found.adjacency_[:, j]))] for j in range(4))
    assert found.score_ == pytest.approx(again, abs=1e-5), "the score is that of the graph it gives"


def test_unknown_targets_and_graph_are_found():
    """Ten problems of eight nodes; in at least nine of them everything is right."""
    right = 0
    for seed in range(10):
        x, env, adjacency, targets = with_targets(seed)
        found = OrderSearch(restarts=0).fit(x, env, control=0)
        right += (found.adjacency_ == adjacency).all() and (found.targets_.to_numpy() == targets).all()
    assert right >= 9


def test_scale_and_place_of_columns_do_not_matter():
    x, _ = linear(1, d=8, n=500)
    first = OrderSearch().fit(x)
    scaled = OrderSearch().fit(x * np.logspace(-3, 3, 8) + 5)
    assert nx.utils.graphs_equal(first.essential_graph_, scaled.essential_graph_)
    assert first.score_ == pytest.approx(scaled.score_, rel=1e-6)
    shuffled = OrderSearch().fit(
        pd.DataFrame(x, columns=[f"x{j}" for j in range(8)])[[f"x{j}" for j in (3, 1, 0, 7, 6, 5, 2, 4)]]
    )
    assert set(first.essential_graph_.edges) == set(shuffled.essential_graph_.edges)


def test_weights_are_in_the_units_of_the_data():
    rng = np.random.default_rng(0)
    cause = 3 + 2 * rng.normal(size=5000)
    x = np.c_[cause, 10 - 4 * cause + rng.normal(size=5000), rng.normal(size=5000)]
    found = OrderSearch(knowledge=Knowledge(required=[("x0", "x1")])).fit(x)
    assert found.weights_[0, 1] == pytest.approx(-4, abs=0.05)
    assert found.graph_.edges["x0", "x1"]["weight"] == pytest.approx(-4, abs=0.05)
    assert np.count_nonzero(found.weights_) == 1


def test_the_same_seed_gives_the_same_answer():
    x, _ = linear(2, d=10)
    one, two = (OrderSearch(random_state=3).fit(x) for _ in range(2))
    assert one.order_ == two.order_ and one.score_ == two.score_


@pytest.mark.parametrize("seed", range(5))
def test_prior_knowledge_holds_exactly(seed):
    x, adjacency = linear(seed, d=8, n=400, degree=3)
    names = [f"x{j}" for j in range(8)]
    order = list(nx.topological_sort(nx.from_numpy_array(adjacency, create_using=nx.DiGraph)))
    last, first = names[order[-1]], names[order[0]]
    known = Knowledge(
        required=[(last, first)], forbidden=[(names[1], names[2])], tiers=[[names[3], names[4]], [names[5]]]
    )
    found = OrderSearch(knowledge=known, restarts=3).fit(x)
    assert found.graph_.has_edge(last, first), "although the truth is the other way"
    assert not found.graph_.has_edge(names[1], names[2])
    assert not any(found.graph_.has_edge(names[5], earlier) for earlier in (names[3], names[4]))
    assert nx.is_directed_acyclic_graph(found.graph_)


def test_only_edges_of_a_network_are_possible():
    x, _ = linear(0, d=6, degree=4)
    names = [f"x{j}" for j in range(6)]
    network = nx.Graph([(names[0], names[1]), (names[2], names[3])])
    found = OrderSearch(knowledge=Knowledge.allowed(network, names)).fit(x)
    assert all(network.has_edge(*edge) for edge in found.graph_.edges)


@pytest.mark.parametrize(
    ("knowledge", "message"),
    [
        (Knowledge(required=[("x0", "x1"), ("x1", "x0")]), "cycle: x0 → x1 → x0|cycle: x1 → x0 → x1"),
        (Knowledge(required=[("x0", "x1")], forbidden=[("x0", "x1")]), "required and forbidden"),
        (Knowledge(required=[("x1", "x0")], tiers=[["x0"], ["x1"]]), "required and forbidden"),
        (Knowledge(forbidden=[("gene", "x1")]), "'gene', which is not among the 3 genes"),
        (Knowledge(tiers=[["x0"], ["x0"]]), "more than one tier"),
        (Knowledge(required=[("x0", "x0")]), "its own cause"),
    ],
)
def test_contradictions_are_refused(knowledge, message):
    with pytest.raises(ConfigError, match=message):
        OrderSearch(knowledge=knowledge).fit(np.random.default_rng(0).normal(size=(20, 3)))


def good(n=20):
    return np.random.default_rng(0).normal(size=(n, 3))


def poisoned(value):
    x = good()
    x[4, 1] = value
    return x


@pytest.mark.parametrize(
    ("x", "env", "message"),
    [
        (poisoned(np.nan), None, "not finite, the first in row 4, column 'x1'"),
        (np.c_[good(), np.ones(20)], None, "constant columns: 'x3'"),
        (np.c_[good(), -2 * good()[:, 1] + 1], None, "'x1' and 'x3' are the same|'x3' and 'x1' are the same"),
        (good(2), None, "at least 3 samples, got 2"),
        (good()[:, :1], None, "at least 2 columns"),
        (good()[0], None, "samples × genes"),
        (good(), ["a"] * 19 + ["b"], "single sample.*'b'"),
        (good(), ["a"] * 7, "one label a sample"),
        (good(), [None] + ["a"] * 19, "no environment, the first in row 0"),
        (pd.DataFrame(good(), columns=["g", "g", "h"]), None, "must differ, repeated: 'g'"),
    ],
)
def test_bad_data_is_refused(x, env, message):
    with pytest.raises(DataError, match=message):
        OrderSearch().fit(x, env)


def test_a_control_that_is_not_there_is_refused():
    with pytest.raises(DataError, match="control 'z' is not among"):
        OrderSearch().fit(good(), ["a"] * 10 + ["b"] * 10, control="z")
    with pytest.raises(DataError, match="without environments"):
        OrderSearch().fit(good(), control="z")


@pytest.mark.parametrize(
    "options", [{"penalty": 0}, {"target_penalty": -1}, {"restarts": -1}, {"max_parents": 0}, {"gamma": -1}]
)
def test_bad_settings_are_refused(options):
    with pytest.raises(ConfigError):
        OrderSearch(**options)


def test_more_columns_than_samples():
    x, _ = linear(0, d=30, n=20)
    found = OrderSearch(restarts=1).fit(x)
    assert np.isfinite(found.score_) and found.adjacency_.sum(0).max() <= 6


def test_anndata_and_environment_data_are_read():
    import anndata

    import pyro_cge as cge

    x, env, _, _ = with_targets(0)
    table = anndata.AnnData(
        x, obs=pd.DataFrame({"drug": [f"d{e}" for e in env]}, index=[str(i) for i in range(len(x))])
    )
    table.var_names = [f"gene {j}" for j in range(8)]
    one = OrderSearch(restarts=0).fit(table, "drug", control="d0")
    two = OrderSearch(restarts=0).fit(x, env, control=0)
    assert (one.adjacency_ == two.adjacency_).all() and one.genes_ == list(table.var_names)
    truth = cge.simulate.independent(
        n_latents=2, n_genes=4, environments=cge.simulate.one_per_latent(2, value=3.0), seed=0
    )
    data = truth.sample(50, seed=0)
    three = OrderSearch(restarts=0).fit(data)
    assert three.genes_ == list(data.gene_names) and three.environments_[0] == data.env_names[data.control[0]]
    with pytest.raises(DataError, match="no column 'dose'"):
        OrderSearch().fit(table, "dose")


def test_what_is_known_directs_what_follows_from_it():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 3))
    x[:, 1] += x[:, 0]
    x[:, 2] += x[:, 1]
    for kind in (OrderSearch, LargeOrderSearch):
        blind = kind().fit(x).essential_graph_
        assert blind.number_of_edges() == 4, "nothing is directed"
        told = kind(knowledge=Knowledge(tiers=[["x0"], ["x1"]])).fit(x).essential_graph_
        assert set(told.edges) == {("x0", "x1"), ("x1", "x2")}


def test_what_the_data_can_tell_is_said():
    x, _ = linear(3, d=6, n=2000)
    found = OrderSearch().fit(x)
    assert nx.utils.graphs_equal(found.essential_graph_, essential_graph(found.graph_))


def test_known_targets_are_those_of_the_answer():
    x, env, _, targets = with_targets(0)
    known = {e: [f"x{j}" for j in np.flatnonzero(targets[e])] for e in (1, 2, 3)}
    model = OrderSearch(restarts=0).fit(x, env, control=0, targets={**known, 3: ["x0"]})
    np.testing.assert_array_equal(model.targets_.to_numpy()[1:3], targets[1:3])
    assert list(model.targets_.columns[model.targets_.iloc[3]]) == ["x0"]
    for wrong, message in (({"e9": ["x0"]}, "environment 'e9'"), ({1: ["y"]}, "genes 'y'"), ({0: ["x1"]}, "reference")):
        with pytest.raises(ConfigError, match=message):
            OrderSearch().fit(x, env, control=0, targets=wrong)


def test_heavy_tails_are_no_targets():
    """Student-t noise of four degrees of freedom: the law of a variance's likelihood ratio is many times wider than χ²."""
    named = false = missed = 0
    for seed in range(5):
        x, env, _, targets = with_targets(seed, environments=10, noise=lambda rng, n: rng.standard_t(4, n) / 2**0.5)
        found = OrderSearch(restarts=0).fit(x, env, control=0).targets_.to_numpy()
        named, false, missed = named + found.sum(), false + (found & ~targets).sum(), missed + (targets & ~found).sum()
    assert false <= 0.06 * named and missed <= 2


def test_tails_of_normal_and_of_heavier_noise():
    """Kurtosis 3, 6 and 1.8 give factors 1, 2.5 and 1; parents' and environments' own scales do not matter."""
    rng = np.random.default_rng(0)
    x = np.c_[rng.normal(size=40_000), rng.laplace(size=40_000), rng.uniform(size=40_000)]
    env = np.repeat(np.arange(40), 1000)
    x = (x * rng.uniform(0.1, 10, (40, 3))[env]) + rng.normal(size=(40, 3))[env]
    x[:, 1] += 2 * x[:, 0]
    weights = np.zeros((3, 3))
    weights[0, 1] = 2
    found = tails(samples(x, env), weights)
    assert found[0] == found[2] == 1
    assert found[1] == pytest.approx(2.5, abs=0.3)


def test_prior_decides_where_data_are_silent():
    """Two equivalent graphs of two genes; the prior says which."""
    x, _ = linear(1, d=2, degree=2)
    for cause, effect in (("x0", "x1"), ("x1", "x0")):
        prior = EdgePrior({(cause, effect): 0.5}, otherwise=0.05)
        assert OrderSearch(prior=prior).fit(x).graph_.has_edge(cause, effect)

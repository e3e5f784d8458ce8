"""The posterior over graphs against enumeration of all DAGs, and the Pyro model against its own guide."""

from __future__ import annotations

import itertools
import math

import networkx as nx
import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO

from pyro_cge.discovery import EdgePrior, Knowledge, OrderDAG
from pyro_cge.discovery.compiled.orders import edge_marginals, exact_orders, gaussian_evidence, gibbs_orders
from pyro_cge.errors import ConfigError

from .test_order_search import all_dags, linear


def n_orders(adjacency):
    """How many orders a DAG agrees with."""
    graph = nx.from_numpy_array(adjacency, create_using=nx.DiGraph)
    return sum(1 for _ in nx.all_topological_sorts(graph))


def enumerated(model, x):
    """Edge probabilities by summing over all DAGs: prior (number of orders × Bernoulli edges) times evidence."""
    d, t = x.shape[1], model.slab_**-2
    gram, odds = x.T @ x, math.log(model.density / (1 - model.density))
    logs, graphs = [], []
    for adjacency in all_dags(d):
        value = math.log(n_orders(adjacency))
        for j in range(d):
            parents = np.flatnonzero(adjacency[:, j])
            value += gaussian_evidence(gram, float(len(x)), j, parents, len(parents), 3.0, t)
        value += odds * adjacency.sum()
        logs.append(value)
        graphs.append(adjacency)
    weight = np.exp(np.array(logs) - max(logs))
    return np.tensordot(weight / weight.sum(), np.stack(graphs), 1)


@pytest.mark.parametrize("n", [20, 300])
@pytest.mark.parametrize("seed", range(5))
def test_edge_probabilities_are_those_of_all_dags(seed, n):
    """543 DAGs; 4,000 independent orders leave a standard error below 0.008, so 0.03 fails by chance in < 0.1 %."""
    x, _ = linear(seed, n=n)
    model = OrderDAG(density=0.4, draws=4000).fit(x)
    assert np.abs(model.edge_probabilities_ - enumerated(model, x)).max() < 0.03


def test_evidence_is_equal_for_equivalent_graphs():
    """BGe: the three Markov-equivalent orientations of a chain, and both of an edge."""
    x, _ = linear(0, d=3)
    gram = x.T @ x

    def total(*parents):
        return sum(
            gaussian_evidence(gram, 300.0, j, np.array(p, dtype=np.int64), len(p), 3.0, 0.3)
            for j, p in enumerate(parents)
        )

    assert total([], [0], [1]) == pytest.approx(total([1], [], [1]), abs=1e-8)
    assert total([], [0], [1]) == pytest.approx(total([1], [2], []), abs=1e-8)
    assert total([], [0], [0, 1]) == pytest.approx(total([1, 2], [2], []), abs=1e-8)


def test_gibbs_and_exact_orders_agree():
    """Edge probabilities of a chain of 4,000 draws and of independent ones differ by less than 0.05 (fails < 0.1 %)."""
    x, _ = linear(3, d=7, n=60)
    model = OrderDAG(density=0.3, draws=4000).start(x)
    graphs = model._graphs
    of = graphs.total, graphs.near, graphs.counts
    chain = edge_marginals(*of, gibbs_orders(*of, graphs.absent, np.arange(7), 4000, 3, 1, 800))
    exact = edge_marginals(*of, exact_orders(*of, graphs.absent, 4000, 2)[0])
    assert np.abs(chain - exact).max() < 0.05


@pytest.mark.parametrize("candidates", [2, 12])
def test_guide_is_the_exact_conditional_posterior(candidates):
    """Given the order, log p − log q is the same number for whatever edges, variances and weights are drawn."""
    x, _ = linear(1, d=5)
    model = OrderDAG(density=0.3, draws=1, candidates=candidates).start(x)  # one order only
    values = torch.from_numpy(x)
    found = []
    for seed in range(6):
        pyro.set_rng_seed(seed)
        q = poutine.trace(model.guide).get_trace(values)
        p = poutine.trace(poutine.replay(model.model, trace=q)).get_trace(values)
        found.append(float((p.log_prob_sum() - q.log_prob_sum()).detach()))
    np.testing.assert_allclose(found, found[0], atol=1e-6)


def test_every_draw_is_a_dag_and_the_answer_too():
    x, _ = linear(2, d=8, n=40)
    model = OrderDAG(draws=50).fit(x)
    drawn = model.posterior(20)["edge"].numpy()
    assert all(nx.is_directed_acyclic_graph(nx.from_numpy_array(e, create_using=nx.DiGraph)) for e in drawn)
    assert nx.is_directed_acyclic_graph(model.graph_)
    mean = OrderDAG(draws=2000).fit(x)
    frequency = mean.to_arviz(1000).posterior["edge"].mean(("chain", "draw")).to_numpy()
    assert np.abs(frequency - mean.edge_probabilities_).max() < 0.08  # five standard errors of a share in 1,000


def test_weights_are_those_of_a_regression():
    x, adjacency = linear(4, n=2000)
    scaled = x * np.array([1.0, 10.0, 0.1, 1.0])
    model = OrderDAG(knowledge=Knowledge(required=[(f"x{i}", f"x{j}") for i, j in np.argwhere(adjacency)])).fit(scaled)
    for j in range(4):
        parents = np.flatnonzero(model.edge_probabilities_[:, j] > 0.99)
        expected = np.linalg.lstsq(scaled[:, parents], scaled[:, j], rcond=None)[0]
        np.testing.assert_allclose(model.weights_[parents, j], expected, rtol=0.05)


def test_knowledge_is_exact():
    x, adjacency = linear(5, d=6, n=500)
    i, j = map(int, np.argwhere(adjacency)[0])
    against = OrderDAG(knowledge=Knowledge(required=[(f"x{j}", f"x{i}")])).fit(x)
    assert against.edge_probabilities_[j, i] == pytest.approx(1) and against.edge_probabilities_[i, j] == 0
    without = OrderDAG(knowledge=Knowledge(forbidden=[(f"x{i}", f"x{j}")]), draws=200).fit(x)
    assert without.edge_probabilities_[i, j] == 0
    tiers = Knowledge(tiers=[["x0", "x1", "x2"], ["x3", "x4", "x5"]])
    assert OrderDAG(knowledge=tiers, draws=200).fit(x).edge_probabilities_[3:, :3].max() == 0


def test_a_learned_density_is_a_share_of_the_pairs_left_open():
    """Eight genes in four pairs, each pair an edge: nothing else is allowed, so the density must be near one half and more."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 8))
    x[:, 1::2] += x[:, ::2]
    names = [f"g{j}" for j in range(8)]
    pairs = nx.Graph([(names[j], names[j + 1]) for j in range(0, 8, 2)])
    knowledge = Knowledge.allowed(pairs, names)
    model = OrderDAG(knowledge=knowledge, draws=200, progress=False).start(pd.DataFrame(x, columns=names))
    assert model.density_ == pytest.approx(5 / 6, abs=0.02)  # four edges of four pairs, and a half of two more


def test_graphs_alone_have_the_same_edges_as_joint_draws():
    """Shares of 1,000 draws each: standard error 0.022 at most, 6 of them allowed."""
    x, _ = linear(2, d=5, n=100)
    model = OrderDAG(draws=500, progress=False).fit(x)
    alone = model.graphs(1000)
    assert alone.shape == (1000, 5, 5)
    assert np.abs(alone.mean(0) - model.edge_probabilities_).max() < 0.1
    assert np.array_equal(alone[:3], model.graphs(3))


def test_more_required_parents_than_candidates_are_all_kept():
    x = np.random.default_rng(0).normal(size=(200, 8))
    known = Knowledge(required=[(f"x{i}", "x7") for i in range(5)])
    model = OrderDAG(candidates=2, draws=50, knowledge=known).fit(x)
    np.testing.assert_array_equal(model.edge_probabilities_[:5, 7], 1)
    assert model.adjacency_[:5, 7].all() and (model._graphs.counts[:7] <= 2).all(), "others have no more than asked"
    pyro.set_rng_seed(0)
    assert math.isfinite(Trace_ELBO().loss(model.model, model.guide, torch.from_numpy((x - x.mean(0)) / x.std(0))))
    many = Knowledge(required=[(f"x{i}", "x29") for i in range(21)])
    with pytest.raises(ConfigError, match="21 parents are required of gene number 29.*up to 20"):
        OrderDAG(knowledge=many).fit(np.random.default_rng(0).normal(size=(200, 30)))


def test_larger_graphs_walk_over_orders():
    x, adjacency = linear(6, d=20, n=1000)
    model = OrderDAG(draws=300, candidates=8).fit(x)
    skeleton = model.edge_probabilities_ + model.edge_probabilities_.T
    assert np.abs((skeleton > 0.5).astype(int) - adjacency - adjacency.T).sum() <= 4
    far = Knowledge(required=[("x0", "x1"), ("x1", "x2")])
    forced = OrderDAG(draws=100, candidates=8, knowledge=far).fit(x)
    assert forced.edge_probabilities_[0, 1] == pytest.approx(1) and forced.edge_probabilities_[1, 2] == pytest.approx(1)


def test_edge_prior_moves_probabilities_where_data_are_silent():
    x, _ = linear(0, d=4, n=15)
    flat = OrderDAG(density=0.3).fit(x).edge_probabilities_
    sure = EdgePrior({("x0", "x1"): 0.95}, otherwise=0.3)
    assert OrderDAG(density=sure).fit(x).edge_probabilities_[0, 1] > flat[0, 1] + 0.1


def test_edge_prior_from_networks_and_tables():
    network = nx.Graph([("a", "b")])
    both = EdgePrior.from_graph(network, present=0.4, otherwise=0.01).matrix(["a", "b", "c"])
    np.testing.assert_allclose(both, [[0, 0.4, 0.01], [0.4, 0, 0.01], [0.01, 0.01, 0]])
    table = pd.DataFrame({"cause": ["a", "tf"], "effect": ["c", "a"], "probability": [0.7, 0.9]})
    assert EdgePrior.from_table(table).matrix(["a", "b", "c"])[0, 2] == 0.7
    with pytest.raises(ConfigError, match=r"between 0 and 1 .* got 1\.0 for a → b"):
        EdgePrior({("a", "b"): 1.0})
    with pytest.raises(ConfigError, match="columns cause and effect"):
        EdgePrior.from_table(pd.DataFrame({"from": []}))


def test_plain_pyro():
    x, _ = linear(0)
    model = OrderDAG(draws=20).start(x)
    values = torch.from_numpy(x)
    pyro.set_rng_seed(0)
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    assert all(math.isfinite(svi.step(values)) for _ in range(3))
    new = Predictive(model.model, guide=model.guide, num_samples=5)(None, 7)
    assert new["x"].shape == (5, 7, 4)
    for parallel in (False, True):
        prior = Predictive(model.model, num_samples=3, parallel=parallel)(None, 6)
        assert prior["x"].shape == (3, 6, 4)
        posterior = Predictive(model.guide, num_samples=3, parallel=parallel)()
        assert posterior["edge"].reshape(3, 4, 4).sum(-1).max() <= 3
    pyro.render_model(model.model, model_args=(values,))


def test_same_seed_same_answer_and_no_global_change():
    x, _ = linear(0)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a, b = OrderDAG(draws=50).fit(x), OrderDAG(draws=50).fit(x)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(a.edge_probabilities_, b.edge_probabilities_)
    np.testing.assert_array_equal(a.weights_, b.weights_)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 1.5}, "probability between 0 and 1, got 1.5"),
        ({"slab": 0.0}, "slab must be positive"),
        ({"candidates": 30}, "candidates must be 1 … 20"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        OrderDAG(**settings)


def test_model_before_data():
    with pytest.raises(ConfigError, match=r"call start\(X\) or fit\(X\) first"):
        OrderDAG().model()


@pytest.mark.slow
def test_edge_probabilities_are_calibrated():
    """50 random graphs of ten genes: among edges given p, a share p ± 0.05 is true, weighted over ten bins."""
    p, true = [], []
    for seed in range(50):
        x, adjacency = linear(seed, d=10, n=1000, degree=4)
        off = ~np.eye(10, dtype=bool)
        p.append(OrderDAG(random_state=seed).fit(x).edge_probabilities_[off])
        true.append(adjacency[off])
    p, true = np.concatenate(p), np.concatenate(true)
    bins = np.minimum((10 * p).astype(int), 9)
    gaps = [abs(p[bins == b].mean() - true[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    assert sum(gaps) < 0.05
    for low, high in itertools.pairwise(np.linspace(0, 1, 4)):
        inside = (p > low) & (p <= high)
        error = 3 * math.sqrt(p[inside].mean() * (1 - p[inside].mean()) / inside.sum())
        assert abs(p[inside].mean() - true[inside].mean()) < 0.05 + error

"""The linear model against Pyro's own bound, least squares, and what NOTEARS, DAGMA and GOLEM answer on their demos."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_cge.discovery import (
    AugmentedLagrangian,
    CentralPath,
    EdgePrior,
    Knowledge,
    LinearSCM,
    OrderSearch,
    essential_graph,
    mean_field,
)
from pyro_cge.discovery.acyclicity import trace_exponential
from pyro_cge.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def originals():
    """Gram matrices, weights and objectives of the originals' demos.

    NOTEARS: ``notears_linear(X, lambda1=0.1)`` on its demo (seed 1, n = 100, d = 20, 20 edges, Gaussian). DAGMA:
    ``DagmaLinear("l2").fit(X, lambda1=0.02)`` on its demo (n = 500). Both without threshold. GOLEM-EV: 100,000 steps of Adam on
    the published objective from W = 0, ER2, d = 20, n = 1,000, equal variances. All three objectives depend on the data through
    the Gram matrix only, so any data with this Gram matrix are the demo.
    """
    with np.load(Path(__file__).parent / "originals.npz") as arrays:
        return dict(arrays)


def with_gram(gram, n):
    """Centred samples ``[n, d]`` with ``XᵀX/n`` equal to ``gram``."""
    d = len(gram)
    raw = np.random.default_rng(0).normal(size=(n, d))
    q, _ = np.linalg.qr(raw - raw.mean(0))
    return np.sqrt(n) * q @ np.linalg.cholesky(gram).T


def chain(n=500, seed=0):
    """``x0 → x1 → x2, x0 → x2, x3`` alone, in units that differ."""
    rng = np.random.default_rng(seed)
    x0 = rng.normal(size=n)
    x1 = 1.5 * x0 + rng.normal(size=n)
    x2 = -1.0 * x1 + 1.0 * x0 + 0.5 * rng.normal(size=n)
    return np.c_[x0, x1, x2, rng.normal(size=n)] * [1.0, 10.0, 0.1, 3.0] + [5, 0, 0, -2]


def random_linear(seed, d=20, degree=2, n=1000):
    """Standardised samples of a random DAG with weights ±U(0.5, 2), equal noise."""
    rng = np.random.default_rng(seed)
    order, W = rng.permutation(d), np.zeros((d, d))
    pairs = [(order[a], order[b]) for a in range(d) for b in range(a + 1, d)]
    for k in rng.choice(len(pairs), degree * d, replace=False):
        W[pairs[k]] = rng.uniform(0.5, 2) * rng.choice([-1, 1])
    x = rng.normal(size=(n, d)) @ np.linalg.inv(np.eye(d) - W)
    return (x - x.mean(0)) / x.std(0), (W != 0).astype(int)


def differences(a, b):
    """Edges missing, extra or turned round, a reversal counted once."""
    return int(((a != b) | (a != b).T)[np.triu_indices(len(a), 1)].sum())


@pytest.mark.parametrize("name", [pytest.param("notears", marks=pytest.mark.slow), "dagma"])
def test_originals_are_reproduced(originals, name):
    """The same graph, and the same objective to 1e-3."""
    gram, n, W = originals[f"{name}_gram"], int(originals[f"{name}_n"]), originals[f"{name}_W"]
    scm = {"notears": LinearSCM.notears(l1=0.1), "dagma": LinearSCM.dagma(l1=0.02)}[name].fit(with_gram(gram, n))
    assert (scm.adjacency_ == (np.abs(W) >= 0.3)).all()
    assert scm.objective_ == pytest.approx(float(originals[f"{name}_objective"]), abs=1e-3)
    assert np.abs(scm.weights_ - np.where(np.abs(W) >= 0.3, W, 0)).max() < 0.05


def test_golem_is_reproduced(originals):
    scm = LinearSCM.golem().fit(with_gram(originals["golem_gram"], int(originals["golem_n"])))
    W = torch.from_numpy(originals["golem_W"])
    assert (scm.adjacency_ == (np.abs(originals["golem_W"]) >= 0.3)).all()
    theirs = scm.map_objective(W) + 0.02 * W.abs().sum() + 5 * trace_exponential(W * W)
    assert scm.objective_ <= theirs.item(), "an optimiser that is exact about |W| ends no higher than Adam"
    assert scm.objective_ == pytest.approx(theirs.item(), abs=5e-3)
    assert differences(originals["golem_truth"].astype(int), scm.adjacency_) <= 4


@pytest.mark.parametrize(
    "make",
    [
        lambda: LinearSCM.notears(l1=0.1),
        lambda: LinearSCM.dagma(l1=0.1),
        lambda: LinearSCM.golem(l1=0.1),
        lambda: LinearSCM.golem(equal_variance=False, l1=0.1),
    ],
    ids=["notears", "dagma", "golem-ev", "golem-nv"],
)
def test_settings_are_the_most_probable_weights_of_the_model(make):
    """Differences of the objective over W are those of the model's log joint density, a sample, on graphs without cycles."""
    x = np.random.default_rng(0).normal(size=(50, 4))
    scm = make().start(x)
    rng, gap = np.random.default_rng(1), []
    for _ in range(5):
        W = torch.from_numpy(np.triu(rng.normal(size=(4, 4)), 1))
        trace = poutine.trace(poutine.condition(scm.model, {"W": W})).get_trace(scm.x_)
        gap.append(float(-trace.log_prob_sum() / 50 - scm.map_objective(W) - scm.l1 * W.abs().sum()))
    assert np.ptp(gap) < 1e-10


def test_the_likelihood_of_golem_sees_cycles():
    scm = LinearSCM.golem().start(np.random.default_rng(0).normal(size=(50, 3)))
    W = torch.tensor([[0, 0.5, 0], [0.5, 0, 0], [0, 0, 0]]).double()
    trace = poutine.trace(poutine.condition(scm.model, {"W": W})).get_trace(scm.x_)
    flat = -trace.log_prob_sum() / 50 - scm.l1 * W.abs().sum() - scm.map_objective(W)
    other = poutine.trace(poutine.condition(scm.model, {"W": 0 * W})).get_trace(scm.x_)
    assert float(flat) == pytest.approx(float(-other.log_prob_sum() / 50 - scm.map_objective(0 * W)), abs=1e-10)


@pytest.mark.parametrize("prior", ["laplace", "horseshoe"])
@pytest.mark.parametrize("noise", ["per gene", "shared", "unit"])
def test_the_bound_is_pyros(prior, noise):
    """Monte Carlo of 4,000 draws: off by more than five standard errors in less than one in a million runs."""
    scm = LinearSCM(prior=prior, noise=noise, candidates="order").start(chain(60))
    with torch.no_grad():
        scm.W_log_scale += 0.3
        draws = [float(Trace_ELBO().loss(scm.model, scm.guide, scm.x_)) for _ in range(100)]
        many = float(
            Trace_ELBO(num_particles=4000, vectorize_particles=True, max_plate_nesting=1).loss(
                scm.model, scm.guide, scm.x_
            )
        )
    error = np.std(draws) / np.sqrt(4000)
    assert scm.bound().item() == pytest.approx(many, abs=5 * error)


def test_the_bound_is_lower_after_the_fit_and_weights_are_those_of_least_squares():
    x = chain(2000)
    scm = LinearSCM(knowledge=Knowledge(required=[("x0", "x1"), ("x1", "x2"), ("x0", "x2")])).fit(x)
    start = LinearSCM(knowledge=scm.knowledge).start(x)
    assert scm.objective_ <= start.bound().item() / len(x)
    centred = x - x.mean(0)
    expected = np.linalg.lstsq(centred[:, :2], centred[:, 2], rcond=None)[0]
    assert scm.weights_[:2, 2] == pytest.approx(expected, rel=0.02)
    residual = centred[:, 2] - centred[:, :2] @ expected
    sd = np.sqrt(np.diag(np.linalg.inv(centred[:, :2].T @ centred[:, :2])) * residual.var())
    assert scm.weights_sd_[:2, 2] == pytest.approx(sd, rel=0.03), "not the smaller deviations given the other weight"
    given_the_other = np.sqrt(residual.var() / (centred[:, :2] ** 2).sum(0))
    assert (given_the_other < 0.7 * sd).all(), "the two differ here"


def test_edges_have_probabilities_and_the_graph_is_a_dag():
    scm = LinearSCM(candidates="order").fit(chain(500))
    linked = scm.adjacency_ + scm.adjacency_.T
    assert linked[0, 1] and linked[1, 2] and linked[0, 2] and linked[:, 3].sum() == 0
    assert nx.is_directed_acyclic_graph(scm.graph_)
    p = scm.edge_probabilities_
    assert ((p >= 0) & (p <= 1)).all() and ((p > 0.5) == (scm.adjacency_ == 1)).all()
    assert all({"weight", "probability"} <= set(facts) for _, _, facts in scm.graph_.edges(data=True))


def test_two_thirds_of_true_edges_weights_are_within_one_deviation():
    """150 weights: a share outside of 0.68 ± 0.15 in less than one in 10,000 runs."""
    hits = []
    for seed in range(50):
        x = chain(100, seed)
        scm = LinearSCM(knowledge=Knowledge(required=[("x0", "x1"), ("x1", "x2"), ("x0", "x2")]), prior_scale=5.0).fit(
            x
        )
        true = {(0, 1): 15.0, (1, 2): -0.01, (0, 2): 0.1}
        hits += [abs(scm.weights_[edge] - value) < scm.weights_sd_[edge] for edge, value in true.items()]
    assert np.mean(hits) == pytest.approx(0.68, abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["laplace", "horseshoe"])
def test_standardised_data_are_no_obstacle_by_default(prior):
    """Where NOTEARS and DAGMA fail: ER2, d = 20. The class of equivalent graphs is that of the search, which is the truth's."""
    x, truth = random_linear(0)
    scm = LinearSCM(prior=prior).fit(x)
    wanted = essential_graph(nx.from_numpy_array(truth, create_using=nx.DiGraph))
    found = essential_graph(nx.from_numpy_array(scm.adjacency_, create_using=nx.DiGraph))
    assert differences(nx.to_numpy_array(wanted), nx.to_numpy_array(found)) <= 1
    dagma = LinearSCM.dagma().fit(x)
    assert differences(truth, dagma.adjacency_) > 20


def test_units_only_change_units():
    x = chain(300)
    one, two = LinearSCM().fit(x), LinearSCM().fit(x * [100, 1, 1, 0.01])
    assert (one.adjacency_ == two.adjacency_).all()
    scale = np.array([100, 1, 1, 0.01])
    assert two.weights_ == pytest.approx(one.weights_ * scale / scale[:, None], rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("acyclicity", ["log-det", "trace-exponential", "spectral"])
def test_every_acyclicity_ends_in_the_same_dag(acyclicity):
    rng = np.random.default_rng(3)
    W = np.triu(rng.uniform(0.8, 1.5, (5, 5)) * (rng.random((5, 5)) < 0.5), 1)
    x = rng.normal(size=(1000, 5)) @ np.linalg.inv(np.eye(5) - W)
    scm = LinearSCM.notears(l1=0.02, acyclicity=acyclicity).fit(x)
    assert (scm.adjacency_ == (W != 0)).all()


@pytest.mark.parametrize("seed", range(3))
def test_without_a_threshold_the_answer_is_still_a_dag(seed):
    """The path ends early, among cycles."""
    x, _ = random_linear(seed, d=8, n=100)
    scm = LinearSCM.notears(threshold=0.0, path=AugmentedLagrangian(rounds=1)).fit(x)
    assert nx.is_directed_acyclic_graph(scm.graph_)
    W = scm.W_loc.detach().numpy()
    assert W.any() and nx.is_directed_acyclic_graph(nx.DiGraph(W != 0)), "what the guide draws is one too"


def test_golem_can_start_from_another_answer():
    x, _ = random_linear(1, d=8)
    first = LinearSCM.golem(threshold=0.0).fit(x * np.linspace(1, 3, 8))
    second = LinearSCM.golem(equal_variance=False, initial=first.weights_)
    second.start(x * np.linspace(1, 3, 8))
    assert second.W_loc.detach().numpy() == pytest.approx(first.weights_)
    with pytest.raises(ConfigError, match=r"initial must be \[8, 8\]"):
        LinearSCM.golem(initial=np.zeros((3, 3))).fit(x)


def test_it_is_a_pyro_model():
    x = chain(200)
    scm = LinearSCM().start(x)
    before = scm.bound().item()
    svi = SVI(scm.model, scm.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    with torch.no_grad():
        scm.W_loc += 0.2
    worse = scm.bound().item()
    optimizer = torch.optim.Adam(scm.parameters(), lr=0.02)
    for _ in range(100):
        loss = Trace_ELBO().differentiable_loss(scm.model, scm.guide, scm.x_)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert worse > scm.bound().item() > before - 20
    assert np.isfinite(svi.evaluate_loss(scm.x_))
    sites = poutine.trace(scm.model).get_trace(scm.x_).nodes
    assert sites["W"]["fn"].event_shape == (4, 4) and sites["x"]["cond_indep_stack"][0].name == "cells"
    drawn = Predictive(scm.model, guide=scm.guide, num_samples=50)(n=400)["x"]
    assert drawn.shape == (50, 400, 4)
    truth = np.corrcoef(x[:, :3].T)
    assert np.corrcoef(drawn.reshape(-1, 4).T.numpy())[:3, :3] == pytest.approx(truth, abs=0.05)


def test_prior_draws_of_the_model_have_its_laws():
    scm = LinearSCM(prior_scale=0.7, candidates="order").start(chain(100))
    drawn = Predictive(scm.model, num_samples=1000)(n=1)
    free = scm.free.numpy()
    assert drawn["W"].squeeze().numpy()[:, free].std() == pytest.approx(0.7 * 2**0.5, rel=0.1)
    assert isinstance(poutine.trace(scm.model).get_trace(n=1).nodes["noise_scale"]["fn"].base_dist, dist.LogNormal)


def test_knowledge_is_exact():
    x = chain(300)
    known = Knowledge(required=[("x3", "x0")], forbidden=[("x0", "x1"), ("x1", "x0")])
    scm = LinearSCM(knowledge=known).fit(x)
    assert scm.graph_.has_edge("x3", "x0")
    assert not scm.graph_.has_edge("x0", "x1") and not scm.graph_.has_edge("x1", "x0")
    cold = LinearSCM.dagma(standardize=True, threshold=0.1, knowledge=Knowledge(forbidden=[("x0", "x1")])).fit(x)
    assert not cold.graph_.has_edge("x0", "x1") and cold.graph_.has_edge("x1", "x0")
    with pytest.raises(ConfigError, match="required edges"):
        LinearSCM.notears(knowledge=Knowledge(required=[("x0", "x1")])).fit(x)


@pytest.mark.parametrize("settings", [{}, {"prior": "horseshoe"}, {"candidates": "order"}, {"density": 0.01}])
def test_required_edges_stay_where_data_know_of_none(settings):
    """The other genes have nothing to do with each other."""
    x = np.random.default_rng(0).normal(size=(300, 4))
    scm = LinearSCM(knowledge=Knowledge(required=[("x3", "x0"), ("x0", "x1")]), **settings).fit(x)
    for edge in ((3, 0), (0, 1)):
        assert scm.adjacency_[edge] == scm.edge_probabilities_[edge] == 1
        assert abs(scm.weights_[edge]) < 0.3 and scm.weights_sd_[edge] > 0
    assert scm.graph_.edges["x3", "x0"]["weight"] == scm.weights_[3, 0]
    assert scm.order_.index("x3") < scm.order_.index("x0") < scm.order_.index("x1")


def test_beliefs_about_edges_reach_the_search_and_the_probabilities():
    """Two genes: data cannot direct the edge. A weak one is more probable where it is believed."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2))
    x[:, 1] += x[:, 0]
    for cause, effect in (("x0", "x1"), ("x1", "x0")):
        scm = LinearSCM(density=EdgePrior({(cause, effect): 0.9}, otherwise=0.1)).fit(x)
        assert list(scm.graph_.edges) == [(cause, effect)]
    x[:, 1] = 0.2 * x[:, 0] + rng.normal(size=200)
    knowledge = Knowledge(tiers=[["x0"], ["x1"]])

    def probability(p):
        prior = EdgePrior({("x0", "x1"): p}, otherwise=0.3)
        return LinearSCM(density=prior, candidates="order", knowledge=knowledge).fit(x).edge_probabilities_[0, 1]

    low, even, high = (probability(p) for p in (0.1, 0.5, 0.9))
    odds = [p / (1 - p) for p in (low, even, high)]
    assert odds[1:] == pytest.approx([9 * odds[0], 9 * odds[1]], rel=0.01)
    same = LinearSCM(density=0.5, candidates="order", knowledge=knowledge).fit(x)
    assert same.edge_probabilities_[0, 1] == pytest.approx(even, rel=0.01)


@pytest.mark.parametrize("size", [2_000_000, 20])
def test_linear_response_is_the_inverse_of_the_whole_curvature(size, monkeypatch):
    """Written out: one matrix for all weights, whose blocks are the genes'."""
    monkeypatch.setattr(mean_field, "BLOCKS", size)
    rng, d = np.random.default_rng(0), 7
    free = np.triu(rng.random((d, d)) < 0.6, 1)
    x = rng.normal(size=(30, d)) @ rng.normal(size=(d, d))
    gram, precision, prior = x.T @ x, rng.uniform(0.5, 2, d), rng.uniform(0.5, 2, (d, d))
    causes, effects = np.nonzero(free)
    same = effects[:, None] == effects
    whole = np.where(same, precision[effects] * gram[np.ix_(causes, causes)], 0) + np.diag(prior[free])
    expected = np.zeros((d, d))
    expected[causes, effects] = np.sqrt(np.diag(np.linalg.inv(whole)))
    found = mean_field.linear_response(*(torch.as_tensor(part) for part in (prior, gram, precision, free)))
    assert found.numpy() == pytest.approx(expected, rel=1e-9)


class Largest(TorchDispatchMode):
    """The most entries that any tensor made has."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.entries = max(self.entries, result.numel())
        return result


def test_no_array_is_genes_by_genes_by_genes():
    x = np.cumsum(np.random.default_rng(0).normal(size=(60, 40)), 1)
    with Largest() as largest:
        LinearSCM().fit(x)
    assert 40**2 <= largest.entries <= 60 * 40


def test_the_same_seed_gives_the_same_answer():
    x, _ = random_linear(2, d=8)
    one, two = (LinearSCM().fit(x) for _ in range(2))
    assert (one.weights_ == two.weights_).all() and one.objective_ == two.objective_
    assert (one.adjacency_ == OrderSearch().fit(x).adjacency_).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"prior": "normal"},
        {"noise": "equal"},
        {"candidates": "all"},
        {"prior_scale": 0.0},
        {"density": 1.0},
        {"l1": 0.1},
        {"threshold": 0.3},
        {"acyclicity": "determinant"},
        {"path": CentralPath(), "prior": "horseshoe"},
        {"path": CentralPath(), "l1": -1.0},
        {"path": CentralPath(), "density": EdgePrior()},
    ],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        LinearSCM(**settings)


def test_bad_data_are_refused():
    with pytest.raises(DataError, match="not finite"):
        LinearSCM().fit(np.full((10, 3), np.nan))
    with pytest.raises(ConfigError, match="one law"):
        LinearSCM().fit(chain(20), ["a"] * 10 + ["b"] * 10)
    with pytest.raises(ConfigError, match="no data yet"):
        LinearSCM().model(torch.zeros(3, 4))

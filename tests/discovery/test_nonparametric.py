"""Nonlinear mechanisms: laws against Pyro and closed forms, evidence against exact Gaussian processes, graphs against the truth."""

from __future__ import annotations

import itertools
import math

import networkx as nx
import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO

from pyro_cge.discovery import AugmentedLagrangian, CentralPath, Knowledge, NonparametricSCM
from pyro_cge.discovery.gaussian_process import AMPLITUDES, Evidence, ProcessSearch
from pyro_cge.discovery.nonparametric import AdditiveNoise, GroupLaplace
from pyro_cge.errors import ConfigError, DataError

FAMILIES = ("mlp", "gp", "gp-add")


def bent(n=400, seed=0):
    """``x0 → x1 → x2``, ``x0 → x2``, ``x3`` alone; units differ."""
    rng = np.random.default_rng(seed)
    x0 = rng.normal(size=n)
    x1 = 2 * np.tanh(2 * x0) + 0.5 * rng.normal(size=n)
    x2 = np.cos(1.5 * x1) * 2 + x0**2 + 0.5 * rng.normal(size=n)
    return np.c_[x0, x1, x2, rng.normal(size=n)] * [1.0, 10.0, 0.1, 3.0] + [5, 0, 0, -2]


TRUTH = np.array([[0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


def standardised(x):
    return (x - x.mean(0)) / x.std(0)


def differences(a, b):
    return int(((a != b) | (a != b).T)[np.triu_indices(len(a), 1)].sum())


# Distributions


def test_group_laplace_is_a_density():
    """In one dimension it is a Laplace law; in two its density integrates to one; draws have the norm's Gamma law."""
    value = torch.linspace(-3, 3, 7).double().unsqueeze(-1)
    rate = torch.tensor(1.7).double()
    laplace = pyro.distributions.Laplace(torch.zeros(()).double(), 1 / rate)
    assert torch.allclose(GroupLaplace(rate, 1).log_prob(value), laplace.log_prob(value.squeeze(-1)))
    grid = torch.linspace(-12, 12, 601).double()
    plane = torch.cartesian_prod(grid, grid)
    assert float(GroupLaplace(rate, 2).log_prob(plane).exp().sum() * 0.04**2) == pytest.approx(1, abs=1e-3)
    norms = GroupLaplace(rate.expand(20000), 3).sample().norm(dim=-1)
    assert norms.mean().item() == pytest.approx(3 / 1.7, rel=0.03)
    assert norms.var().item() == pytest.approx(3 / 1.7**2, rel=0.1)


def test_additive_noise_draws_what_it_gives_a_density_for():
    """Linear mechanisms: moments and density of a multivariate normal."""
    W = torch.tensor([[0, 1.5, 0], [0, 0, -1.0], [0, 0, 0]]).double()
    scale = torch.tensor([1.0, 0.5, 2.0]).double()
    law = AdditiveNoise(lambda x: x @ W, scale)
    inverse = torch.linalg.inv(torch.eye(3).double() - W)
    covariance = inverse.T @ torch.diag(scale**2) @ inverse
    normal = pyro.distributions.MultivariateNormal(torch.zeros(3).double(), covariance)
    value = torch.randn(5, 3).double()
    assert torch.allclose(law.log_prob(value), normal.log_prob(value))
    drawn = law.sample((20000,))
    assert torch.allclose(torch.cov(drawn.T), covariance, atol=0.25)


# Evidence and search


def test_evidence_is_that_of_the_exact_process():
    """One parent: the additive kernel written out as a covariance matrix, its amplitude and the noise maximised by hand."""
    x = standardised(bent(150))
    evidence = Evidence(x, edge=0.0)
    features = np.c_[x[:, :1], evidence.bumps[0]]
    best = -np.inf
    for a in AMPLITUDES:
        shape = np.eye(150) + a * features @ features.T
        variance = x[:, 1] @ np.linalg.solve(shape, x[:, 1]) / 150
        best = max(best, -0.5 * 150 * math.log(variance) - 0.5 * np.linalg.slogdet(shape)[1])
    assert evidence(frozenset([0]))[1] == pytest.approx(best, abs=1e-6)
    assert Evidence(x, edge=2.0)(frozenset([0]))[1] == pytest.approx(best - 2, abs=1e-6)


def test_evidence_knows_interactions():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    x[:, 2] = x[:, 0] * x[:, 1] + 0.5 * rng.normal(size=400)
    evidence = Evidence(standardised(x))
    both, one, none = (evidence(frozenset(p))[2] for p in ([0, 1], [0], []))
    assert both > none + 50 > one


def test_no_order_is_better_than_the_one_found():
    """All 24 orders of four genes, eight times."""
    for seed in range(8):
        x = standardised(bent(150, seed))
        search = ProcessSearch(Evidence(x), Knowledge().table(list("abcd")))
        order = search.run([3, 2, 1, 0], restarts=2)
        best = max(search.total(list(p)) for p in itertools.permutations(range(4)))
        assert search.total(order) == pytest.approx(best, abs=1e-9)


def test_the_graph_is_found_and_units_do_not_matter():
    """Ten data sets; in at least nine of them everything is right."""
    right = 0
    for seed in range(10):
        x = bent(seed=seed)
        found = NonparametricSCM(steps=20).fit(x)
        right += (found.adjacency_ == TRUTH).all()
    assert right >= 9
    scaled = NonparametricSCM(steps=20).fit(x * [0.01, 1, 100, 1])
    assert (scaled.adjacency_ == found.adjacency_).all()
    assert scaled.objective_ == pytest.approx(found.objective_, abs=1e-4)


def test_knowledge_is_exact():
    x = bent()
    known = Knowledge(required=[("x3", "x0")], forbidden=[("x0", "x2")], tiers=[["x2"], ["x1"]])
    found = NonparametricSCM(knowledge=known, steps=5).fit(x)
    assert found.graph_.has_edge("x3", "x0") and not found.graph_.has_edge("x0", "x2")
    assert not found.graph_.has_edge("x1", "x2")
    cold = NonparametricSCM(knowledge=Knowledge(forbidden=[("x0", "x1")]), path=CentralPath(), steps=30).fit(x)
    assert not cold.graph_.has_edge("x0", "x1")
    with pytest.raises(ConfigError, match="required edges"):
        NonparametricSCM(knowledge=Knowledge(required=[("x0", "x1")]), path=CentralPath()).fit(x)


def test_no_threshold_is_above_a_required_edge():
    known = Knowledge(required=[("x3", "x0")])
    found = NonparametricSCM(knowledge=known, threshold=100.0, steps=5).fit(bent())
    assert list(found.graph_.edges) == [("x3", "x0")] and found.strengths_[3, 0] > 0
    x = found.x_.clone()
    x[:, 3] += 1
    assert (found.mechanisms(x)[:, 0] != found.mechanisms(found.x_)[:, 0]).all(), "it acts"


def test_of_all_edges_of_the_order_few_are_kept():
    """Four data sets, three edges each: by their probabilities, or where the networks' threshold is high enough."""
    wrong, loose = 0, 0
    for seed in range(4):
        found = NonparametricSCM(candidates="order", steps=60).fit(bent(seed=seed))
        wrong += differences(found.adjacency_, TRUTH)
        assert not (found.adjacency_ & ~(found.edge_probabilities_ > 0.5)).any()
        loose += NonparametricSCM(candidates="order", steps=60, threshold=0.0).fit(bent(seed=seed)).adjacency_.sum()
    assert wrong <= 1 and loose == 4 * 6
    own = NonparametricSCM(candidates="order", l1=0.01, threshold=0.2).fit(bent())
    assert (own.adjacency_ == TRUTH).all()


@pytest.mark.parametrize("settings", [{}, {"hidden": (5, 4)}, {"head": "sobolev"}])
def test_slopes_are_mean_derivatives(settings):
    """Against the Jacobian of every sample, at random weights."""
    scm = NonparametricSCM(candidates="order", restarts=0, **settings).start(bent(60))
    jacobians = torch.func.vmap(torch.func.jacrev(scm.mechanisms))(scm.x_)
    assert torch.allclose(scm.slopes(scm.x_), jacobians.mean(0).T, atol=1e-12)
    assert not scm.slopes(scm.x_).requires_grad


def test_weights_are_means_over_all_samples():
    """Sorted rows: the first 500 of 1,500 are where the cause is low and the slope of its square negative."""
    rng = np.random.default_rng(0)
    x = np.sort(rng.normal(size=1500))
    both = np.c_[x, x**2 + 3 * np.tanh(x) + 0.2 * rng.normal(size=1500)]
    found = NonparametricSCM(knowledge=Knowledge(required=[("x0", "x1")]), restarts=0).fit(both)
    assert found.weights_[0, 1] == pytest.approx(np.mean(2 * x + 3 / np.cosh(x) ** 2), rel=0.1)
    turned = NonparametricSCM(knowledge=Knowledge(required=[("x0", "x1")]), restarts=0).fit(both[::-1])
    assert found.weights_[0, 1] == pytest.approx(turned.weights_[0, 1], rel=0.02)


def test_the_search_has_a_bar_of_its_own(capsys):
    search = ProcessSearch(Evidence(standardised(bent(60))), Knowledge().table(list("abcd")))
    quiet = search.run([3, 2, 1, 0], restarts=1, progress=False)
    assert capsys.readouterr().err == ""
    assert search.run([3, 2, 1, 0], restarts=1, progress=True) == quiet
    assert "fit" in capsys.readouterr().err


# The Pyro model


@pytest.mark.parametrize("settings", [{}, {"hidden": (5, 4), "candidates": "order"}, {"head": "sobolev"}])
def test_the_objective_is_pyros(settings):
    """A guide of points has no entropy: Pyro's loss is the objective up to a constant, for any weights."""
    scm = NonparametricSCM(**settings).start(bent(60))
    gap = []
    for seed in range(4):
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in scm.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
            gap.append(Trace_ELBO().loss(scm.model, scm.guide, scm.x_) / 60 - scm.objective().item())
    assert np.ptp(gap) < 1e-9


def test_mechanisms_are_networks_of_their_own():
    """Gene by gene, written out."""
    scm = NonparametricSCM(hidden=(6, 3), candidates="order").start(bent(30))
    with torch.no_grad():
        ours = scm.mechanisms(scm.x_)
        for j in range(4):
            hidden = scm.x_ @ (scm.inputs_loc[:, j] * scm.free[:, j, None]) + scm.bias[j]
            hidden = torch.sigmoid(hidden) @ scm.layers[0][j] + scm.biases[0][j]
            out = torch.sigmoid(hidden) @ scm.layers[1][j] + scm.biases[1][j]
            assert torch.allclose(ours[:, j], out.squeeze(-1))


def test_no_strength_means_no_effect():
    for settings in ({}, {"strength": "paths"}, {"head": "sobolev"}):
        scm = NonparametricSCM(candidates="order", **settings).start(bent(30))
        with torch.no_grad():
            scm.inputs_loc[0, 2] = 0
            strength = scm.strengths(scm.inputs_loc * scm.free.unsqueeze(-1), list(scm.layers))
            before, x = scm.mechanisms(scm.x_), scm.x_.clone()
            x[:, 0] += 1
            assert strength[0, 2] == 0 and torch.equal(scm.mechanisms(x)[:, 2], before[:, 2])
            moved = (scm.mechanisms(x) - before).abs().max(0)[0] > 0
            assert (moved == (strength[0] > 0)).all()


@pytest.mark.parametrize("head", ["mlp", "sobolev"])
def test_mechanisms_are_learned(head):
    x = bent(600)
    found = NonparametricSCM(head=head, knowledge=Knowledge(required=[("x0", "x1"), ("x1", "x2"), ("x0", "x2")])).fit(x)
    left = (found.x_ - found.mechanisms(found.x_)).var(0)
    assert left[1] < 0.1 and left[2] < 0.25, "0.05 and 0.1 of the variances are noise"
    assert torch.allclose(left.sqrt(), found.noise_log_scale.exp(), rtol=0.1)
    assert found.graph_.edges["x0", "x1"]["weight"] > 0
    slope = np.mean(20 * 2 / np.cosh(2 * (x[:, 0] - 5)) ** 2)
    assert found.weights_[0, 1] == pytest.approx(slope, rel=0.1), "the mean derivative, in units of the data"


def test_it_is_a_pyro_model():
    x = bent(300)
    found = NonparametricSCM().fit(x)
    sites = poutine.trace(found.model).get_trace(found.x_).nodes
    assert sites["W"]["value"].shape == (4, 4) and sites["x"]["cond_indep_stack"][0].name == "cells"
    drawn = Predictive(found.model, guide=found.guide, num_samples=2)(n=3000)["x"]
    assert drawn.shape == (2, 3000, 4)
    assert torch.allclose(torch.cov(drawn[0].T), torch.cov(found.x_.T), atol=0.15)
    assert not torch.equal(drawn[0], drawn[1])
    loss = SVI(found.model, found.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()).evaluate_loss(found.x_)
    assert np.isfinite(loss)
    drawn = Predictive(found.model, num_samples=3)(n=7)["x"]
    assert drawn.shape == (3, 7, 4) and drawn.isfinite().all()


@pytest.mark.parametrize(
    "settings",
    [
        {"path": CentralPath(), "steps": 60},
        {"path": CentralPath(), "steps": 60, "head": "sobolev"},
        {"path": CentralPath(), "steps": 60, "strength": "paths"},
        {"path": AugmentedLagrangian(rounds=2, rho_max=100), "acyclicity": "spectral", "steps": 20, "threshold": 0.0},
    ],
    ids=["mlp", "sobolev", "paths", "stopped early"],
)
def test_a_path_ends_in_a_dag(settings):
    found = NonparametricSCM(**settings).fit(bent(200))
    assert nx.is_directed_acyclic_graph(found.graph_)
    assert found.adjacency_.any()
    place = [found.order_.index(gene) for gene in found.genes_]
    assert all(place[i] < place[j] for i, j in zip(*np.nonzero(found.adjacency_), strict=True))
    x = found.x_.clone()
    for i, j in itertools.permutations(range(4), 2):
        if not found.adjacency_[i, j]:
            x[:, i] += 1
            assert torch.allclose(found.mechanisms(x)[:, j], found.mechanisms(found.x_)[:, j]), (
                "what is cut has no effect"
            )
            x[:, i] -= 1


def test_the_same_seed_gives_the_same_answer_and_no_other_randomness_changes():
    before = torch.get_rng_state()
    one, two = (NonparametricSCM(steps=10).fit(bent(100)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.inputs_loc, two.inputs_loc) and one.objective_ == two.objective_


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", [0, 1])
def test_reference_problems(real_data, family, seed):
    """Half of the empty graph's distance (40) is asked for: ER2, d = 20, n = 1,000."""
    with np.load(real_data / "causal" / "reference" / f"NL_ER2_d20_{family}_s{seed}.npz") as arrays:
        x, truth = arrays["X"], arrays["B"]
    found = NonparametricSCM().fit(x)
    assert differences(truth != 0, found.adjacency_ != 0) <= 16
    assert nx.is_directed_acyclic_graph(found.graph_)


@pytest.mark.parametrize(
    "settings",
    [
        {"head": "forest"},
        {"strength": "norm"},
        {"candidates": "all"},
        {"hidden": ()},
        {"hidden": (0,)},
        {"l1": 0.0},
        {"edge": -1.0},
        {"threshold": -0.1},
        {"max_parents": 0},
        {"restarts": -1},
        {"acyclicity": "none"},
    ],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        NonparametricSCM(**settings)


def test_bad_data_are_refused():
    with pytest.raises(DataError, match="constant"):
        NonparametricSCM().fit(np.c_[bent(20), np.ones(20)])
    with pytest.raises(ConfigError, match="one law"):
        NonparametricSCM().fit(bent(20), ["a"] * 10 + ["b"] * 10)
    with pytest.raises(ConfigError, match="no data yet"):
        NonparametricSCM().guide()

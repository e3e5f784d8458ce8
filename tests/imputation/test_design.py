"""Active design: conjugate posteriors, acquisitions, graphs in doubt, and latent causal models."""

from __future__ import annotations

import math

import networkx as nx
import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from scipy import optimize, stats

import pyro_cge as cge
from pyro_cge.discovery import OrderDAG
from pyro_cge.discovery.distributions import LinearSEM
from pyro_cge.errors import ConfigError, DataError
from pyro_cge.imputation.design import acquisitions
from pyro_cge.imputation.design.active import VALUES, ActiveDesign
from pyro_cge.imputation.design.weight_posterior import ShiftSCM, WeightPosterior
from pyro_cge.scm.latent import LatentSCM
from pyro_cge.scm.learned import LearnedSCM
from pyro_cge.scm.mechanisms import LinearMechanism

P = 5
A = torch.triu(torch.ones(P, P), 1)


@pytest.fixture
def rows():
    """20 samples of a complete DAG over 5 nodes, each under a shift of its own: weights, noise variances, shifts, samples."""
    generator = torch.Generator().manual_seed(3)
    W = (torch.randn(P, P, generator=generator) * 0.6).double() * A
    variance = 0.3 + torch.rand(P, generator=generator).double()
    shift = torch.randn(20, P, generator=generator).double()
    noise = torch.randn(20, P, generator=generator).double() * variance.sqrt()
    return W, variance, shift, LinearSEM(W, acyclic=True).solve(shift + noise)


def test_posterior_is_bayesian_regression_node_by_node(rows):
    _, variance, shift, x = rows
    belief = WeightPosterior.prior(A, variance, precision=2.0).update(x, shift)
    for j in range(1, P):
        X, y = x[:, :j], x[:, j] - shift[:, j]
        precision = 2 * torch.eye(j) + X.T @ X
        torch.testing.assert_close(belief.V[j, :j, :j], torch.linalg.inv(precision))
        torch.testing.assert_close(belief.W[:j, j], torch.linalg.solve(precision, X.T @ y))
    assert not (belief.W * (1 - A)).any() and not belief.V[0].any() and not belief.V[2, :, 2:].any()


def test_evidence_of_known_noise_is_the_normal_density(rows):
    _, variance, shift, x = rows
    belief = WeightPosterior.prior(A, variance).update(x, shift)
    expected = 0.0
    for j in range(P):
        X = x[:, :j]
        covariance = variance[j] * (torch.eye(20) + X @ X.T)
        expected += stats.multivariate_normal.logpdf(x[:, j] - shift[:, j], cov=covariance.numpy())
    assert float(belief.log_evidence) == pytest.approx(expected, abs=1e-8)


def test_evidence_of_unknown_noise_is_the_student_density(rows):
    _, _, shift, x = rows
    belief = WeightPosterior.prior(A, noise_prior=(2.5, 0.7)).update(x, shift)
    expected = 0.0
    for j in range(P):
        X = x[:, :j]
        scale = 0.7 / 2.5 * (torch.eye(20) + X @ X.T)
        expected += stats.multivariate_t.logpdf(x[:, j] - shift[:, j], shape=scale.numpy(), df=5.0)
    assert float(belief.log_evidence) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("known", [True, False])
def test_samples_may_come_one_by_one_or_all_at_once(rows, known):
    _, variance, shift, x = rows
    prior = WeightPosterior.prior(A, variance if known else None)
    together, one = prior.update(x, shift), prior
    for row, a in zip(x, shift, strict=True):
        one = one.update(row.unsqueeze(0), a)
    for name in ("W", "V", "rate", "log_evidence"):
        torch.testing.assert_close(getattr(one, name), getattr(together, name))


def test_unknown_noise_is_learned(rows):
    W, variance, _, _ = rows
    noise = torch.randn(4000, P, generator=torch.Generator().manual_seed(0)).double() * variance.sqrt()
    belief = WeightPosterior.prior(A).update(LinearSEM(W, acyclic=True).solve(noise), torch.zeros(P))
    # Relative sd of a variance from 4000 samples is 0.022, so five numbers all within 5 sd: failure rate below 1e-5.
    torch.testing.assert_close(belief.noise_variance, variance, rtol=0.11, atol=0)


@pytest.mark.parametrize("known", [True, False])
def test_pyro_model_has_the_closed_form_posterior(rows, known):
    """With the exact posterior as guide every draw of the ELBO is the log evidence; it cannot hold by accident."""
    _, variance, shift, x = rows
    prior = WeightPosterior.prior(A, variance if known else None, weights=0.3 * torch.ones(P, P))
    scm = ShiftSCM(prior)
    evidence = float(prior.update(x, shift).log_evidence)
    for _ in range(3):
        assert Trace_ELBO().loss(scm.model, scm.guide, shift, x) == pytest.approx(-evidence, abs=1e-7)


def test_pyro_tools_work(rows):
    _, _, shift, x = rows
    scm = ShiftSCM(WeightPosterior.prior(A))
    assert set(poutine.trace(scm.model).get_trace(shift, x).stochastic_nodes) >= {"noise_variance", "W"}
    drawn = Predictive(scm.model, guide=scm.guide, num_samples=3)(shift, x)
    assert drawn["W"].shape == (3, 1, P, P) and drawn["noise_variance"].shape == (3, 1, P)
    assert scm.model(shift).shape == (20, P)
    svi = SVI(scm.model, scm.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    assert math.isfinite(svi.evaluate_loss(shift, x))
    with pytest.raises(ConfigError, match="one graph"):
        ShiftSCM(WeightPosterior.prior(A.expand(2, P, P)))


def test_numbers_given_as_lists_keep_double_precision():
    belief = WeightPosterior.prior(A, [0.1] * P, weights=[[0.3] * P] * P)
    assert belief.rate[0] == 0.1 and belief.W[0, 1] == 0.3
    assert ActiveDesign(belief, [0.7] * P).target[0] == 0.7
    told = ActiveDesign(belief, [0.7] * P).tell([[0.1] * P], [0.3] * P)
    torch.testing.assert_close(
        told.posterior_.W,
        belief.update(torch.full((1, P), 0.1, dtype=torch.double), torch.full((P,), 0.3, dtype=torch.double)).W,
        rtol=1e-14,
        atol=0,
    )


def test_optimal_shift_reaches_the_target(rows):
    W, variance, _, _ = rows
    belief = WeightPosterior.prior(A, variance, weights=W)
    target = torch.arange(1.0, P + 1).double()
    shift = belief.optimal_shift(target)
    torch.testing.assert_close(shift @ belief.total_effects, target)
    torch.testing.assert_close(LinearSEM(W, acyclic=True).solve(shift), target)


def test_variance_left_is_what_an_update_at_the_mean_leaves(rows):
    """``d_j`` against the posterior after the same observation, which the formula never forms."""
    _, variance, shift, x = rows
    belief = WeightPosterior.prior(A, variance).update(x[:4], shift[:4])
    target = torch.randn(P, generator=torch.Generator().manual_seed(1)).double()
    candidates = torch.randn(6, P, generator=torch.Generator().manual_seed(2)).double()
    left = acquisitions.variance_left(belief, target, 3)(candidates)
    norms = acquisitions.max_variance(belief, target, 3)(candidates)
    for s, a in enumerate(candidates):
        mean = a @ belief.total_effects
        after = belief.update(mean.expand(3, P), a)
        torch.testing.assert_close(left[:, s], variance * torch.einsum("i,jik,k->j", target, after.V, target))
        torch.testing.assert_close(norms[s], torch.linalg.matrix_norm(after.V, ord=2).max(), rtol=1e-3, atol=0)


def test_civ_is_the_integral_over_the_sphere(rows):
    """``E_a Var ‖a − a*‖² = Σ d (2 d + 4 (a − k)²)`` for Gaussian ``a*``, integrated over the sphere, is ``2 Σ d (d + 2 c)``."""
    _, variance, shift, x = rows
    belief = WeightPosterior.prior(A, variance).update(x, shift)
    target = torch.ones(P).double()
    a = torch.nn.functional.normalize(torch.ones(P), dim=0).double().unsqueeze(0)
    d = acquisitions.variance_left(belief, target, 1)(a)[:, 0]
    k = belief.optimal_shift(target)
    sphere = torch.randn(200_000, P, generator=torch.Generator().manual_seed(0)).double()
    sphere = sphere / sphere.norm(dim=1, keepdim=True)
    integral = (2 * d**2 + 4 * d * ((sphere - k) ** 2).mean(0)).sum()
    civ = acquisitions.causal_integrated_variance(belief, target, 1)(a)[0]
    # The acquisition adds the noise variance of a sample to c. Monte Carlo error of a mean of 200,000: below 0.3 %.
    torch.testing.assert_close(2 * (civ - 2 * (d * variance).sum()), integral, rtol=0.02, atol=0)


@pytest.mark.parametrize("name", list(VALUES))
def test_minimiser_is_as_good_as_slsqp(rows, name):
    _, variance, shift, x = rows
    belief = WeightPosterior.prior(A, variance).update(x[:3], shift[:3])
    target = torch.ones(P).double()
    design = ActiveDesign(belief, target, acquisition=name, starts=3, steps=40)
    value = VALUES[name](belief, target, 1)

    def objective(a: np.ndarray) -> float:
        return float(value(torch.as_tensor(a).unsqueeze(0)))

    found = design.ask()
    assert float(found.norm()) <= 1 + 1e-12
    rng, peers = np.random.default_rng(0), []
    for _ in range(4):
        start = rng.normal(size=P)
        ball = {"type": "ineq", "fun": lambda a: 1 - a @ a}
        peers.append(optimize.minimize(objective, start / np.linalg.norm(start), method="SLSQP", constraints=ball).fun)
    assert objective(found.numpy()) <= min(peers) * 1.01


def test_repetitions_run_side_by_side(rows):
    """Two problems in one batch are the two problems."""
    _, variance, shift, x = rows
    target = torch.stack([torch.ones(P), torch.arange(P) - 2.0]).double()
    batch = WeightPosterior.prior(A.expand(2, P, P), variance).update(
        x.unflatten(0, (2, 10)), shift.unflatten(0, (2, 10))
    )
    for name, make in VALUES.items():
        a = torch.randn(2, 7, P, generator=torch.Generator().manual_seed(0)).double()
        values = make(batch, target, 1)(a)
        for r in range(2):
            alone = WeightPosterior.prior(A, variance).update(
                x.unflatten(0, (2, 10))[r], shift.unflatten(0, (2, 10))[r]
            )
            torch.testing.assert_close(values[r], make(alone, target[r], 1)(a[r]), msg=name)
    assert ActiveDesign(batch, target).ask().shape == (2, P)


def test_random_is_uniform_and_greedy_is_the_estimate(rows):
    W, variance, _, _ = rows
    belief = WeightPosterior.prior(A, variance, weights=W)
    far, near = 10 * torch.ones(P).double(), 0.01 * torch.ones(P).double()
    torch.testing.assert_close(ActiveDesign(belief, near, acquisition="greedy").ask(), belief.optimal_shift(near))
    clipped = ActiveDesign(belief, far, acquisition="greedy", radius=2.0).ask()
    best = belief.optimal_shift(far)
    torch.testing.assert_close(clipped, 2 * best / best.norm())
    drawn = ActiveDesign(belief, near.expand(2000, P), acquisition="random").ask()
    torch.testing.assert_close(drawn.norm(dim=-1), torch.ones(2000).double())
    # Each coordinate's mean has sd 0.01 and mean square 1/P with sd 0.005: five sd.
    assert drawn.mean(0).abs().max() < 0.05 and (drawn**2).mean(0).sub(1 / P).abs().max() < 0.025


def test_same_seed_same_shifts_and_the_callers_randomness_is_left_alone(rows):
    _, variance, shift, x = rows
    belief = WeightPosterior.prior(A, variance).update(x, shift)
    state = torch.get_rng_state()
    first, second = (ActiveDesign(belief, torch.ones(P), random_state=4).ask() for _ in range(2))
    assert torch.equal(first, second) and torch.equal(state, torch.get_rng_state())


def test_interventions_tell_equivalent_graphs_apart():
    """x₀ → x₁ and x₁ → x₀ fit observations alike; shifts decide, by the evidence of both told."""
    two = torch.tensor([[[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]])
    W = torch.tensor([[0.0, 1.0], [0.0, 0.0]]).double()
    target = torch.tensor([0.0, 1.0])
    design = ActiveDesign(WeightPosterior.prior(two, torch.ones(2)), target, graph_probabilities=[0.5, 0.5], n=5)
    torch.testing.assert_close(design.optimal_shift_, target.double())
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        a = design.ask()
        noise = torch.randn(5, 2, generator=generator).double()
        design.tell(LinearSEM(W, acyclic=True).solve(a + noise), a)
    probabilities = design.graph_probabilities_
    expected = torch.softmax(design.posterior_.log_evidence, -1)
    torch.testing.assert_close(probabilities, expected)
    assert probabilities[0] > 0.99  # log odds grow by about 2 a round; below 0.99 in fewer than one run in a thousand
    torch.testing.assert_close(design.posterior_.W[0, 0, 1], torch.tensor(1.0).double(), atol=0.6, rtol=0)


def test_graphs_of_certain_probability_are_that_graph(rows):
    _, variance, shift, x = rows
    target = torch.ones(P).double()
    graphs = torch.stack([A, torch.zeros(P, P)])
    belief = WeightPosterior.prior(A, variance).update(x, shift)
    one = ActiveDesign(belief, target)
    several = WeightPosterior.prior(graphs, variance).update(x, shift)
    two = ActiveDesign(several, target, graph_probabilities=[1.0, 0.0])
    torch.testing.assert_close(one.optimal_shift_, two.optimal_shift_)
    torch.testing.assert_close(one.ask(), two.ask())
    two.tell(x, shift.mean(0))
    torch.testing.assert_close(two.graph_probabilities_, torch.tensor([1.0, 0.0]).double())


def test_design_over_the_graphs_of_an_order_dag():
    """A chain seen in observations: its direction is open, shifts close it."""
    rng = np.random.default_rng(0)
    W = np.array([[0, 0.9, 0], [0, 0, 0.9], [0, 0, 0]])
    solve = np.linalg.inv(np.eye(3) - W)
    x = rng.normal(size=(300, 3)) @ solve
    estimator = OrderDAG(draws=200).fit(x)
    sd = x.std(0)
    target = np.array([0.6, -0.6, 0.6])
    design = ActiveDesign.over_graphs(estimator, x, target, draws=60, n=20)
    before = design.graph_probabilities_
    assert before is not None and before.sum() == pytest.approx(1) and len(before) > 1
    for _ in range(10):
        a = design.ask().numpy()
        y = (a * sd + rng.normal(size=(20, 3))) @ solve
        design.tell((y - x.mean(0)) / sd, a)
    A = design.posterior_.A
    directed = (A[:, 0, 1] * A[:, 1, 2]).bool()
    assert float(before[directed].sum()) < 0.8 and float(design.graph_probabilities_[directed].sum()) > 0.95
    reached = (design.optimal_shift_.numpy() * sd) @ solve / sd
    assert np.abs(reached - target).max() < 0.25


def test_on_the_latents_of_an_scm():
    """Prior weights are the SCM's own; the next environment is a NoiseShift whose mean effect the simulator confirms."""
    graph = nx.DiGraph([(2, 0), (0, 1), (2, 1)])
    scm = LatentSCM(graph, lambda mask: LinearMechanism(mask, "uniform", torch.Generator().manual_seed(0)))
    target = torch.tensor([1.0, -0.5, 0.2])
    design = ActiveDesign.on_latents(scm, target, noise_scale=0.5)
    zero = scm(torch.zeros(3))
    reached = scm(design.optimal_shift_.float()) - zero
    torch.testing.assert_close(reached, target, atol=1e-5, rtol=0)
    shift = design.ask_environment()
    assert shift.loc.shape == (1, 3)
    torch.testing.assert_close(shift.scale, torch.full((1, 3), 0.5).double())
    z = shift.loc.float() + 0.5 * torch.randn(400, 3, generator=torch.Generator().manual_seed(1))
    before = design.posterior_.V.diagonal(dim1=-2, dim2=-1).sum()
    design.tell(scm(z).detach(), shift)
    assert design.posterior_.V.diagonal(dim1=-2, dim2=-1).sum() < 0.2 * before


def test_on_the_latents_of_a_learned_scm():
    """Its most probable graph, and the weights along it."""
    W = torch.tensor([[0.0, 0.0, 0.8], [-0.6, 0.0, 0.3], [0.0, 0.0, 0.0]]).double()
    scm = LearnedSCM(3)
    c = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)).double() @ torch.linalg.inv(torch.eye(3) - W)
    scm.start_at(c, torch.zeros(500, 3, dtype=torch.bool))
    design = ActiveDesign.on_latents(scm, torch.ones(3))
    torch.testing.assert_close(design.posterior_.A, scm.A.double())
    torch.testing.assert_close(design.posterior_.W, scm.mechanism.weight.double() * scm.A, atol=0.02, rtol=0.02)
    assert design.ask_environment().loc.shape == (1, 3)


def test_a_wrong_latent_scm_is_corrected():
    """The design starts from a fitted SCM with wrong signs; what environments do puts it right."""
    truth = cge.simulate.growing_network(n_latents=4, n_genes=30, mechanism="random linear", seed=2)
    wrong = LatentSCM(truth.scm.graph, lambda mask: LinearMechanism(mask, "signs", torch.Generator().manual_seed(9)))
    target = truth.scm(torch.tensor([0.5, -0.5, 0.5, -0.5])).detach()
    design = ActiveDesign.on_latents(wrong, target, precision=0.5, n=50)

    def miss() -> float:
        return float((truth.scm(design.optimal_shift_.float()) - target).norm() / target.norm())

    first = miss()
    for k in range(6):
        shift = design.ask_environment()
        environment = cge.simulate.Environments(["e"], cge.NoiseShift(shift.loc.float(), torch.zeros(1, 4)))
        design.tell(truth.sample(50, environments=environment, seed=k).truth.c, shift)
    assert miss() < 0.25 < first


def test_every_error_says_what_to_do():
    prior = WeightPosterior.prior(A)
    with pytest.raises(ConfigError, match="cycle"):
        WeightPosterior.prior([[0, 1], [1, 0]])
    with pytest.raises(ConfigError, match="adjacency"):
        WeightPosterior.prior(np.ones((2, 3)))
    with pytest.raises(ConfigError, match="shape above 1"):
        WeightPosterior.prior(A, noise_prior=(1.0, 1.0))
    with pytest.raises(ConfigError, match="positive for every node"):
        WeightPosterior.prior(A, [1, 1, 1, 0, 1])
    with pytest.raises(DataError, match="finite"):
        prior.update(torch.full((1, P), math.nan), torch.zeros(P))
    with pytest.raises(DataError, match="must be"):
        prior.update(torch.ones(1, 3), torch.zeros(3))
    with pytest.raises(ConfigError, match="acquisition"):
        ActiveDesign(prior, torch.ones(P), acquisition="best")
    with pytest.raises(ConfigError, match="one mean a node"):
        ActiveDesign(prior, torch.ones(3))
    with pytest.raises(ConfigError, match="positive"):
        ActiveDesign(prior, torch.ones(P), radius=0)
    with pytest.raises(ConfigError, match="graph_probabilities"):
        ActiveDesign(prior, torch.ones(P), graph_probabilities=[0.5, 0.5])

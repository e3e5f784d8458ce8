"""Priors with latent effects: exact sums over targets, additive and graded effects, starting points."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.distributions import Normal, kl_divergence

import pyro_cge as cge
from pyro_cge.errors import ConfigError, DataError
from pyro_cge.scm.gates import StraightThroughBernoulli

D, G, E = 3, 8, 4
PRIORS = {
    "laplace": cge.LaplacePrior,
    "horseshoe": cge.HorseshoePrior,
    "spike-slab": cge.SpikeSlabPrior,
    "categorical": cge.CategoricalPrior,
}


def make_data(n=24, **kwargs):
    return cge.EnvironmentData(
        x=torch.randn(n, G),
        env=torch.arange(n) % E,
        gene_names=[f"g{k}" for k in range(G)],
        env_names=[f"e{e}" for e in range(E)],
        control=[0],
        **kwargs,
    )


def pair(prior, data, guide=cge.AmortizedGuide, **options):
    model = cge.CellModel(prior, None, cge.LinearDecoder(D, G))
    return model, guide(model, **options)


class TestSumOverTargets:
    """The ELBO's KL of ``z`` in expectation over targets, against brute force over every configuration."""

    def brute_force(self, model, guide, data, configurations):
        """``Σ_t q(t) Σ_i KL[q(z_i) ‖ p(z_i | t)] / n`` with the effects' sizes replaced by what the trace drew."""
        torch.manual_seed(4)
        trace = poutine.trace(guide).get_trace(data.batch())
        loc, log_scale = guide.encode(data.batch())
        q = Normal(loc, log_scale.exp())
        sizes = {k: trace.nodes[f"env_{k}"]["value"] for k in model.prior.supports if k != "target"}
        law = trace.nodes["env_target"]["fn"]
        total = torch.zeros(data.n)
        for configuration in configurations:
            target = torch.tensor(configuration, dtype=torch.float).expand(E, D)
            shift = model.prior.shift(data.batch(), {"target": target, **sizes}).select(data.env)
            weight = law.log_prob(target).exp()[data.env]
            total = total + weight * kl_divergence(q, Normal(shift.loc, shift.scale)).sum(-1)
        return total.mean()

    def elbo(self, model, guide, data):
        torch.manual_seed(4)
        terms = cge.Elbo()(model, guide, data.batch())
        torch.manual_seed(4)
        trace = poutine.trace(guide).get_trace(data.batch())
        prior = poutine.trace(poutine.replay(model, trace=trace)).get_trace(data.batch())
        for effect in model.prior.supports:
            site, other = (t.nodes[f"env_{effect}"] for t in (trace, prior))
            treated = (~data.is_control).float()
            each = kl_divergence(site["fn"], other["fn"])
            if effect != "target":  # sizes count where there is a target
                probability = trace.nodes["env_target"]["fn"].mean
                each = (probability * kl_divergence(site["fn"].base_dist, other["fn"].base_dist)).sum(-1)
            terms["kl"] = terms["kl"] - (treated * each).sum() / data.n
        return terms["kl"]

    @pytest.mark.parametrize("moves", ["loc", "scale", "both"])
    def test_spike_slab_equals_the_sum_over_all_subsets(self, moves):
        data = make_data()
        model, guide = pair(cge.SpikeSlabPrior(data, D, moves=moves), data)
        every = list(itertools.product([0, 1], repeat=D))
        torch.testing.assert_close(self.elbo(model, guide, data), self.brute_force(model, guide, data, every))

    @pytest.mark.parametrize("moves", ["loc", "scale", "both"])
    def test_categorical_equals_the_sum_over_latents(self, moves):
        data = make_data()
        model, guide = pair(cge.CategoricalPrior(data, D, moves=moves), data)
        every = torch.eye(D).tolist()
        torch.testing.assert_close(self.elbo(model, guide, data), self.brute_force(model, guide, data, every))

    def test_it_is_tighter_and_quieter_than_drawing_the_targets(self):
        data = make_data()
        model, guide = pair(cge.SpikeSlabPrior(data, D), data)
        exact, drawn = (
            torch.stack([objective(model, guide, data.batch())["kl"] for _ in range(400)]).detach()
            for objective in (cge.Elbo(), cge.Elbo(sum_targets=False))
        )
        # Five standard errors of the difference of means: fails once in a million.
        assert exact.mean() < drawn.mean() + 5 * (exact.var() / 400 + drawn.var() / 400).sqrt()
        assert exact.var() < drawn.var()

    def test_an_encoder_that_sees_the_targets_is_not_summed(self):
        data = make_data()
        model, guide = pair(cge.SpikeSlabPrior(data, D), data, conditioning="shift")
        results = []
        for summed in (True, False):
            torch.manual_seed(1)
            results.append(cge.Elbo(sum_targets=summed)(model, guide, data.batch())["loss"])
        assert torch.equal(*results)

    def test_the_best_categorical_guide_reaches_the_log_sum(self):
        """At the optimum ``q(t = k) ∝ (1/d) exp(−Σ_i KL_ik)`` the bound on an environment is ``log Σ_k``."""
        data = make_data()
        _model, guide = pair(cge.CategoricalPrior(data, D), data)
        sizes = torch.randn(E, D)
        loc, log_scale = guide.encode(data.batch())
        q = Normal(loc, log_scale.exp())
        cases = torch.stack(
            [
                kl_divergence(q, Normal((sizes * torch.eye(D)[k] * ~data.is_control[:, None])[data.env], 1.0)).sum(-1)
                for k in range(D)
            ],
            -1,
        )
        kl = torch.zeros(E, D).index_add(0, data.env, cases)
        optimum = torch.softmax(-kl, -1)
        bound = (optimum * kl).sum(-1) + (optimum * (optimum * D).log()).sum(-1)
        torch.testing.assert_close(-bound, torch.logsumexp(-kl, -1) - torch.tensor(float(D)).log())


def test_straight_through_draws_are_bernoulli_with_a_gradient():
    logits = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    law = StraightThroughBernoulli(logits=logits)
    draws = law.rsample(torch.Size([20_000]))
    assert set(draws.detach().unique().tolist()) == {0.0, 1.0}
    p = logits.sigmoid().detach()
    # Five standard errors: fails once in a million.
    assert ((draws.mean(0) - p).abs() < 5 * (p * (1 - p) / 20_000).sqrt()).all()
    gradient = torch.autograd.grad(draws.mean(0).sum(), logits)[0]
    assert (gradient > 0).all()
    torch.testing.assert_close(law.log_prob(torch.ones(3)), torch.nn.functional.logsigmoid(logits))


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("features", [True, False])
def test_a_guide_starts_where_it_is_told(name, features):
    data = make_data(env_features=torch.randn(E, 5) if features else None)
    _model, guide = pair(PRIORS[name](data, D), data)
    shift = cge.NoiseShift(torch.zeros(E, D), torch.zeros(E, D))
    shift.loc[1, 2], shift.loc[2, 0], shift.loc[3, 1] = 2.0, -3.0, 1.5
    guide.start_at(shift, data.batch())
    found = guide.shift(data.batch()).loc
    assert (found - shift.loc).abs().max() < 0.35
    if (probability := guide.target_probability(data.batch())) is not None:
        assert torch.equal(probability.argmax(-1)[1:], torch.tensor([2, 0, 1]))


def known_noise(prior, data, steps):
    """A guide whose profiles' noise is known (decoder and encoder play no part), its effects fitted to it."""
    z = data.truth.z

    def law(batch, shift=None):
        return dist.Normal(z[batch.index], 1e-3).to_event(1)

    model = cge.CellModel(prior, None, cge.LinearDecoder(D, G))
    guide = cge.AmortizedGuide(model, hidden=())
    guide.hidden_layer, guide._law = law, lambda h: h
    optimizer = torch.optim.Adam([*guide.environment.parameters(), *prior.parameters()], lr=0.05)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - step / steps)
        optimizer.zero_grad()
        cge.Elbo()(model, guide, data.batch())["loss"].backward()
        optimizer.step()
    return guide


def shifted(n_envs=12, n_per_env=60):
    design = cge.simulate.random_shifts(D, n_envs, variance=5.0, cover=True, seed=2)
    truth = cge.simulate.independent(n_latents=D, n_genes=G, gene_noise=0.01, environments=design, seed=1)
    return truth.sample(n_per_env)


@pytest.mark.parametrize("name", PRIORS)
def test_environments_with_one_target_are_named(name):
    data = shifted()
    guide = known_noise(PRIORS[name](data, D), data, 400)
    shift = guide.shift(data.batch())
    assert (shift.loc - data.truth.shift.loc).abs().max() < 0.6  # four standard errors of 60 profiles
    big = data.truth.shift.loc.abs().amax(-1) > 0.6
    assert torch.equal(shift.loc.abs().argmax(-1)[big], data.truth.shift.loc.abs().argmax(-1)[big])


def test_target_probabilities_are_the_exact_posterior():
    """``logit P(target | z) = logit π + log N(z̄; 0, τ² + 1/n) − log N(z̄; 0, 1/n)`` for noise that is known."""
    n = 60
    data = shifted(n_per_env=n)
    prior = cge.SpikeSlabPrior(data, D)
    prior.logit.requires_grad_(False)
    prior.log_spread.requires_grad_(False)
    guide = known_noise(prior, data, 1500)
    mean = torch.zeros(data.n_envs, D).index_add(0, data.env, data.truth.z) / n
    tau = prior._spread("shift")
    slab, spike = (dist.Normal(0.0, (s + 1 / n) ** 0.5).log_prob(mean) for s in (tau**2, torch.tensor(0.0)))
    exact = torch.sigmoid(prior.logit + slab - spike)[1:]
    found = guide.target_probability(data.batch())[1:]
    assert (found - exact).abs().max() < 0.03
    assert ((exact > 0.05) & (exact < 0.95)).any()  # not only the easy ones


class TestPerturbations:
    def doses(self):
        return torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 10.0], [2.0, 5.0]])

    def test_effects_of_present_perturbations_add_up(self):
        data = make_data(env_features=self.doses())
        prior = cge.PerturbationPrior(data, lambda units: cge.DensePrior(units, D))
        shift = prior.shift(data.batch())
        torch.testing.assert_close(shift.loc[3], shift.loc[1] + shift.loc[2])
        torch.testing.assert_close(shift.log_scale[3], shift.log_scale[1] + shift.log_scale[2])
        assert shift.loc[0].abs().max() == 0

    def test_the_hill_curve_is_monotone_and_half_at_ec50(self):
        dose = torch.tensor([0.0, 0.1, 1.0, 10.0, 1e6])
        data = replace(make_data(env_features=self.doses()))
        prior = cge.PerturbationPrior(data, lambda units: cge.DensePrior(units, D), hill=True)
        with torch.no_grad():
            prior.log_ec50.copy_(torch.tensor([1.0, 1.0]).log())
            prior.log_hill.copy_(torch.tensor([0.0, 0.5]))
        treated = torch.zeros(5, dtype=torch.bool)
        batch = replace(data.batch(), env_features=torch.stack([dose, dose], -1), is_control=treated)
        response = prior.response(batch)
        assert (response.diff(dim=0) > 0).all()
        torch.testing.assert_close(response[:, 0], dose / (1 + dose))
        torch.testing.assert_close(response[2], torch.tensor([0.5, 0.5]))
        assert response[0].abs().max() == 0

    def test_unseen_pairs_of_seen_perturbations_are_predicted(self):
        singles = cge.simulate.one_per_latent(4, value=4.0)
        every = cge.simulate.environments.combinations(singles)
        truth = cge.simulate.independent(n_latents=4, n_genes=30, environments=every, seed=0)
        data = cge.dosed(truth.sample(150, seed=0), column="parts")
        assert data.n_features == 4
        pairs = [e for e, name in enumerate(data.env_names) if "+" in name]
        seen = ~torch.isin(data.env, torch.tensor(pairs[::2]))
        train = data.rows(seen.nonzero().flatten())
        torch.manual_seed(0)
        model, guide = cge.sams_vae(train, 4, hidden=(32,), decoder="linear", additive=True)
        fitted = cge.fit(model, guide, train, epochs=100, lr=1e-2, batch_size=64, validation=None, seed=0)
        predicted = fitted.posterior(data).predict(n_samples=60)[pairs[::2]]
        actual = torch.stack([data.x[data.env == e].mean(0) for e in pairs[::2]])
        mean = train.x.mean(0)
        error, baseline = ((v - actual).square().mean() for v in (predicted, mean.expand_as(actual)))
        assert error < 0.1 * baseline

    def test_bad_doses_are_refused(self):
        with pytest.raises(DataError, match="needs env_features"):
            cge.PerturbationPrior(make_data(), lambda units: cge.DensePrior(units, D))
        with pytest.raises(DataError, match="must not be negative"):
            cge.PerturbationPrior(make_data(env_features=-self.doses()), lambda units: cge.DensePrior(units, D))
        with pytest.raises(ConfigError, match="no column 'drug'"):
            cge.dosed(make_data(), column="drug")


def test_a_learned_temperature_is_trained():
    data = make_data()
    prior = cge.SoftmaxPrior(data, D, learn_temperature=True)
    model, guide = pair(prior, data)
    cge.fit(model, guide, data, epochs=5, batch_size=8, lr=0.05, validation=None)
    assert prior.temperature.item() != 0.5


def test_known_targets_bound_what_moves():
    targets = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 1], [0, 0, 1]]).bool()
    data = make_data()
    shift = cge.DensePrior(data, D, targets=targets).shift(data.batch())
    assert torch.equal(shift.loc != 0, targets) and torch.equal(shift.log_scale != 0, targets)
    with pytest.raises(ConfigError, match=r"targets must be \[4 environments, 3 latents\]"):
        cge.DensePrior(data, D, targets=targets[:2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda data: cge.SpikeSlabPrior(data, D, probability=1.0), "strictly between 0 and 1"),
        (lambda data: cge.LaplacePrior(data, D, spread=0.0), "spread must be positive"),
        (lambda data: cge.LaplacePrior(data, D, moves="mean"), "moves must be"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make(make_data())


def test_a_noise_law_without_its_effects_is_refused():
    data = make_data()
    with pytest.raises(ValueError, match=r"needs the latent effects \['shift', 'target'\]"):
        cge.SpikeSlabPrior(data, D).shift(data.batch())

"""The MMD term: brute force, closed form for Gaussians, no bias, and what reaches the gradient."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import pyro_cge as cge
from pyro_cge.errors import ConfigError
from pyro_cge.objectives.mmd import mmd
from pyro_cge.train.loop import evaluate

BANDWIDTHS = (0.3, 1.0, 2.5)


def brute_force(x, y, env, bandwidths):
    def k(a, b):
        distance = ((a - b) ** 2).mean()
        return sum(math.exp(-distance / (2 * h**2)) for h in bandwidths) / len(bandwidths)

    total = 0.0
    for e in env.unique():
        rows = (env == e).nonzero().flatten().tolist()
        n = len(rows)
        if n < 2:
            continue
        within = sum(k(v[i], v[j]) for v in (x, y) for i in rows for j in rows if i != j) / (n * (n - 1))
        across = sum(k(x[i], y[j]) for i in rows for j in rows) / n**2
        total += n / len(env) * (within - 2 * across)
    return total


def closed_form(mean_x, sd_x, mean_y, sd_y, bandwidths):
    """In one dimension, ``E k(a, b) = h / √(h² + v) · exp(−m² / (2 (h² + v)))`` for ``a − b ~ N(m, v)``."""

    def expected(m, v):
        return sum(h / math.sqrt(h**2 + v) * math.exp(-(m**2) / (2 * (h**2 + v))) for h in bandwidths) / len(bandwidths)

    return expected(0, 2 * sd_x**2) + expected(0, 2 * sd_y**2) - 2 * expected(mean_x - mean_y, sd_x**2 + sd_y**2)


def test_it_equals_the_loop():
    env = torch.tensor([2, 0, 0, 1, 2, 0, 3, 2, 0])
    x, y = torch.randn(2, 9, 4)
    assert mmd(x, y + 0.5, env, BANDWIDTHS).item() == pytest.approx(brute_force(x, y + 0.5, env, BANDWIDTHS), abs=1e-6)


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 1.0), (1.0, 1.0), (0.0, 2.0), (-0.7, 0.5)])
def test_its_mean_is_the_closed_form_for_gaussians(mean, sd):
    """The U-statistic has no bias, at five profiles as at any number: 4 standard errors, fails 1 time in 16,000."""
    env = torch.arange(80).repeat_interleave(5)
    blocks = []
    for _ in range(60):
        x, y = torch.randn(2, 400, 1)
        blocks.append(mmd(x, mean + sd * y, env, BANDWIDTHS))
    values = torch.stack(blocks)
    expected = closed_form(0.0, 1.0, mean, sd, BANDWIDTHS)
    assert abs(values.mean() - expected) < 4 * values.std() / math.sqrt(60)
    if (mean, sd) != (0.0, 1.0):
        assert expected > 0.02


def test_environments_are_kept_apart():
    """Two environments whose draws are exchanged look the same pooled, and different one by one."""
    env = torch.arange(2).repeat_interleave(60)
    x, y = torch.randn(2, 120, 3)
    x = x + 4.0 * env.unsqueeze(-1)
    right, exchanged = y + 4.0 * env.unsqueeze(-1), y + 4.0 * (1 - env).unsqueeze(-1)
    assert mmd(x, exchanged, torch.zeros_like(env), BANDWIDTHS).abs() < 0.02
    assert mmd(x, exchanged, env, BANDWIDTHS) > 0.5 > 0.02 > mmd(x, right, env, BANDWIDTHS).abs()


def test_lone_profiles_contribute_nothing():
    x, y = torch.randn(2, 5, 3)
    assert mmd(x, y, torch.arange(5), BANDWIDTHS) == 0
    env = torch.tensor([0, 0, 1, 2, 0])
    assert torch.equal(mmd(x, y, env, BANDWIDTHS), mmd(torch.where(env[:, None] > 0, 99.0, x), y, env, BANDWIDTHS))


def test_only_the_loss_of_the_base_changes(small):
    data, model, guide = small
    torch.manual_seed(0)
    plain = cge.Elbo()(model, guide, data.batch())
    torch.manual_seed(0)
    terms = cge.Mmd(weight=5.0)(model, guide, data.batch(), warmup=1.0)
    assert terms.keys() == {"loss", "log_likelihood", "kl", "mmd"}
    for name in ("log_likelihood", "kl"):
        torch.testing.assert_close(terms[name], plain[name])
    torch.testing.assert_close(terms["loss"], plain["loss"] + 5 * terms["mmd"])
    with torch.no_grad():
        half = cge.Mmd(cge.Elbo(beta=0), weight=5.0)(model, guide, data.batch(), warmup=0.5)
    torch.testing.assert_close(half["loss"], 2.5 * half["mmd"] - half["log_likelihood"])
    assert set(evaluate(model, guide, data, cge.Mmd())) == set(terms)


def test_it_is_small_for_the_truth_and_large_for_a_wrong_prior(truth):
    data = truth.sample(200, seed=3)
    guide = cge.AmortizedGuide(truth)
    wrong = cge.CellModel(cge.StandardPrior(data, 5), truth.scm, truth.decoder)
    scale = float(data.x.std())
    scaled = cge.Mmd(bandwidths=[scale * h for h in BANDWIDTHS])
    with torch.no_grad():
        right, off = (float(scaled(model, guide, data.batch())["mmd"]) for model in (truth, wrong))
    # Under the truth the mean is zero; with 200 profiles an environment the sd is below 0.005.
    assert abs(right) < 0.02 < 0.05 < off


def test_gradients_reach_the_prior_without_the_elbo(small):
    data, model, guide = small
    cge.Mmd()(model, guide, data.batch())["mmd"].backward()
    assert model.prior.network.table.weight.grad.abs().max() > 0
    assert model.decoder.likelihood.log_scale.grad.abs().max() > 0
    assert all(p.grad is None for p in guide.parameters())


def test_shared_sites_keep_the_values_of_the_base(small):
    """A prior with a latent shift: the draws use the shift that the guide drew, not one of the prior's own."""
    import pyro
    import pyro.distributions as dist

    data, *_ = small

    class Latent(cge.StandardPrior):
        def forward(self, batch):
            from pyro_cge.sites import envs_plate

            with envs_plate(batch):
                law = dist.Normal(torch.zeros(len(batch.envs), self.d), 1.0).to_event(1)
                loc = pyro.sample("env_shift", law)
            return cge.NoiseShift(loc, torch.zeros_like(loc))

    model = cge.CellModel(Latent(data, 3), None, cge.LinearDecoder(3, 6))
    z_guide = cge.AmortizedGuide(model, hidden=(5,))
    shift = torch.full((4, 3), 50.0, requires_grad=True)

    def guide(batch):
        from pyro_cge.sites import envs_plate

        with envs_plate(batch):
            pyro.sample("env_shift", dist.Delta(shift, event_dim=1))
        return z_guide(batch)

    x = model.decoder.mean(torch.full((30, 3), 50.0)).detach() + torch.randn(30, 6)
    near = cge.Mmd()(model, guide, replace(data, x=x).batch())["mmd"]
    far = cge.Mmd()(model, guide, data.batch())["mmd"]
    assert near < 0.5 < far
    near.backward()
    assert shift.grad.abs().max() > 0


def test_training_lowers_it(data):
    """Without a KL term nothing but the MMD teaches the prior where an environment's noise is."""
    left = {}
    for weight in (0.0, 30.0):
        with cge.isolated(0):
            model, guide = cge.environment_vae(data, 5, hidden=(16,))
        objective = cge.Mmd(cge.Elbo(beta=0), weight=weight)
        fit = cge.fit(
            model,
            guide,
            data,
            objective=objective,
            epochs=120,
            batch_size=130,
            lr=1e-2,
            validation=None,
            progress=False,
        )
        left[weight] = evaluate(model, guide, fit.scaler.transform(data), cge.Mmd())["mmd"]
    assert left[30.0] < 0.5 * left[0.0]


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="-2"):
        cge.Mmd(weight=-2)
    for bandwidths in ((), (1.0, 0.0)):
        with pytest.raises(ConfigError, match="bandwidths"):
            cge.Mmd(bandwidths=bandwidths)

"""The importance-weighted objective: equal to the ELBO at one sample, the evidence in the limit."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_cge as cge
from pyro_cge.errors import ConfigError
from pyro_cge.sites import envs_plate
from pyro_cge.train.loop import evaluate


def mean_of(objective, model, guide, data, draws, **options):
    with torch.no_grad():
        losses = torch.stack([objective(model, guide, data.batch(), **options)["loss"] for _ in range(draws)])
    return losses.mean(), losses.std() / math.sqrt(draws)


@pytest.mark.parametrize("warmup", [1.0, 0.3])
def test_at_one_sample_it_is_the_elbo_in_expectation(small, warmup):
    """Four standard errors: fails 1 time in 16,000."""
    data, model, guide = small
    iwae, error = mean_of(cge.Iwae(1), model, guide, data, 400, warmup=warmup)
    elbo, other = mean_of(cge.Elbo(), model, guide, data, 400, warmup=warmup)
    assert abs(iwae - elbo) < 4 * math.hypot(error, other)
    assert error < 0.05


def test_the_bound_rises_with_samples(small):
    data, model, guide = small
    losses = [mean_of(cge.Iwae(s), model, guide, data, 100)[0] for s in (1, 5, 50)]
    assert losses[0] > losses[1] + 0.05 > losses[2] + 0.1


@pytest.mark.parametrize("preset", ["basic_vae", "conditional_vae", "environment_vae"])
def test_it_is_the_bound_written_out(small, preset):
    """The vectorised objective against a loop over the same draws."""
    data, *_ = small
    model, guide = getattr(cge, preset)(data, 3, hidden=(5,))
    batch = data.batch(torch.arange(11))
    torch.manual_seed(4)
    terms = cge.Iwae(6)(model, guide, batch)
    torch.manual_seed(4)
    q = guide.posterior(batch)
    z = q.expand((6, 11)).rsample()
    weights = []
    for draw in z:
        trace = poutine.trace(poutine.condition(model, data={"z": draw})).get_trace(batch)
        sites = [trace.nodes[name] for name in ("z", "x")]
        weights.append(sum(site["fn"].log_prob(site["value"]) for site in sites) - q.log_prob(draw))
    expected = (torch.stack(weights).logsumexp(0) - math.log(6)).mean()
    torch.testing.assert_close(terms["log_likelihood"], expected)
    torch.testing.assert_close(terms["loss"], -expected)
    assert terms["kl"] == 0


def test_gradients_reach_every_parameter(small):
    data, model, guide = small
    cge.Iwae(4)(model, guide, data.batch())["loss"].backward()
    for module in (model, guide):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def linear_gaussian(n=400):
    """``x = W z + b + s ε``, three latents on five genes: the evidence is ``N(b, W Wᵀ + S)``."""
    weight = torch.randn(5, 3)
    x = torch.randn(n, 3) @ weight.T + 0.5 * torch.randn(n, 5)
    env = torch.zeros(n, dtype=torch.long)
    data = cge.EnvironmentData(x=x, env=env, gene_names=list("abcde"), env_names=["e"], control=[0])
    model = cge.CellModel(
        cge.StandardPrior(data, 3), None, cge.LinearDecoder(3, 5, likelihood=cge.GaussianLikelihood(5, scale=0.5))
    )
    with torch.no_grad():
        model.decoder.linear.weight.copy_(weight)
        model.decoder.linear.bias.zero_()
    law = torch.distributions.MultivariateNormal(torch.zeros(5), weight @ weight.T + 0.25 * torch.eye(5))
    return data, model, law.log_prob(x).mean()


def test_training_with_it_reaches_the_evidence():
    """The posterior is correlated, so a mean-field ELBO stays below; the importance-weighted bound does not."""
    data, model, evidence = linear_gaussian()
    model.requires_grad_(False)
    reached = {}
    for name, objective in (("elbo", cge.Elbo()), ("iwae", cge.Iwae(30))):
        with cge.isolated(0):
            guide = cge.AmortizedGuide(model, hidden=())
        cge.fit(
            model, guide, data, objective=objective, epochs=60, batch_size=100, lr=2e-2, kl_warmup=0, validation=None,
            standardize=False, progress=False,
        )  # fmt: skip
        reached[name] = -mean_of(objective, model, guide, data, 50)[0]
    assert reached["elbo"] < evidence - 0.1
    # A bound: above the evidence only by the error of 50 × 400 × 30 draws.
    assert evidence - 0.03 < reached["iwae"] < evidence + 0.005


def test_shared_sites_are_drawn_once_and_charged_as_in_the_elbo(small):
    data, *_ = small

    class Latent(cge.StandardPrior):
        def forward(self, batch):
            with envs_plate(batch):
                law = dist.Normal(torch.zeros(len(batch.envs), self.d), 1.0).to_event(1)
                loc = pyro.sample("env_shift", law)
            return cge.NoiseShift(loc, torch.zeros_like(loc))

    model = cge.CellModel(Latent(data, 3), None, cge.LinearDecoder(3, 6))
    z_guide = cge.AmortizedGuide(model, hidden=(5,))
    drawn = []

    def guide(batch):
        with envs_plate(batch):
            law = dist.Normal(torch.full((len(batch.envs), 3), 0.5), 0.2).to_event(1)
            drawn.append(pyro.sample("env_shift", law).shape)
        return z_guide(batch)

    terms = cge.Iwae(7)(model, guide, data.batch())
    assert drawn[-1] == (4, 3)
    torch.testing.assert_close(terms["loss"], terms["kl"] - terms["log_likelihood"])
    iwae, error = mean_of(cge.Iwae(1), model, guide, data, 300)
    elbo, other = mean_of(cge.Elbo(), model, guide, data, 300)
    assert abs(iwae - elbo) < 4 * math.hypot(error, other)  # fails 1 time in 16,000
    assert terms["kl"] > 0.1


def test_it_can_be_penalised_and_evaluated(small):
    data, model, guide = small
    objective = cge.Irm(cge.Iwae(3), weight=0.1)
    terms = evaluate(model, guide, data, objective)
    assert set(terms) == {"loss", "log_likelihood", "kl", "irm"}
    assert terms["loss"] == pytest.approx(0.1 * terms["irm"] - terms["log_likelihood"], rel=1e-4)


def test_fewer_than_one_sample_is_refused():
    with pytest.raises(ConfigError, match="n_samples=0"):
        cge.Iwae(0)

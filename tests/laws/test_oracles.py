"""Closed forms the models must reproduce."""

from __future__ import annotations

import math

import pytest
import torch
from pyro.infer import Predictive

import pyro_cge as cge
from pyro_cge.models.networks import soft_clamp


def data_of(n=40, g=6, n_envs=4, dtype=torch.float32, **kwargs):
    return cge.EnvironmentData(
        x=torch.randn(n, g),
        env=torch.arange(n) % n_envs,
        gene_names=[f"g{k}" for k in range(g)],
        env_names=[f"e{e}" for e in range(n_envs)],
        control=[0],
        **kwargs,
    )


def appendix_a(mu, sigma, mu_e, sigma_e):
    """The paper's Appendix A, last line, summed over latents."""
    d = mu.shape[-1]
    return 0.5 * (
        2 * sigma_e.log().sum(-1)
        - 2 * sigma.log().sum(-1)
        - d
        + ((mu - mu_e) ** 2 / sigma_e**2).sum(-1)
        + (sigma**2 / sigma_e**2).sum(-1)
    )


@pytest.mark.parametrize("preset", ["basic_vae", "conditional_vae", "environment_vae"])
def test_kl_is_that_of_appendix_a(preset):
    data = data_of()
    model, guide = getattr(cge, preset)(data, 3)
    batch = data.batch()
    mu, log_sigma = guide.encode(batch)
    shift = model.prior.shift(batch).select(batch.env)
    expected = appendix_a(mu, log_sigma.exp(), shift.loc, shift.scale).mean()
    torch.testing.assert_close(cge.Elbo()(model, guide, batch)["kl"], expected)


def test_beta_free_bits_and_warmup_weigh_the_kl_alone():
    data = data_of()
    model, guide = cge.environment_vae(data, 3)

    def terms(warmup=1.0, **kwargs):
        torch.manual_seed(0)
        return cge.Elbo(**kwargs)(model, guide, data.batch(), warmup=warmup)

    plain = terms()
    torch.testing.assert_close(plain["loss"], plain["kl"] - plain["log_likelihood"])
    torch.testing.assert_close(terms(beta=3.0)["loss"], 3 * plain["kl"] - plain["log_likelihood"])
    torch.testing.assert_close(terms(warmup=0.25)["loss"], 0.25 * plain["kl"] - plain["log_likelihood"])
    torch.testing.assert_close(terms(free_bits=100.0)["loss"], 100 - plain["log_likelihood"])


class TestLinearGaussian:
    """``x = W z + b + s ε`` with orthogonal columns of ``W / s``: the exact posterior is diagonal.

    Everything in float64: evidence ``N(x; W μ_e + b, W Σ_e Wᵀ + S)`` in closed form.
    """

    d, g, n = 2, 6, 30

    @pytest.fixture(autouse=True)
    def setting(self):
        self.data = data_of(self.n, self.g)
        self.x = self.data.x.double()
        scale = torch.linspace(0.5, 1.5, self.g).double()
        q = torch.linalg.qr(torch.randn(self.g, self.d).double())[0]
        self.W = scale[:, None] * q * torch.tensor([1.5, 0.7]).double()
        decoder = cge.LinearDecoder(self.d, self.g)
        prior = cge.StandardPrior(self.data, self.d)
        self.model = cge.CellModel(prior, None, decoder).double()
        decoder.set_scale(scale)
        with torch.no_grad():
            decoder.linear.weight.copy_(self.W)
        self.b, self.scale = decoder.linear.bias.detach(), decoder.scale.detach()
        self.guide = cge.AmortizedGuide(self.model, hidden=()).double()
        covariance = self.W @ self.W.T + torch.diag(self.scale**2)
        self.evidence = torch.distributions.MultivariateNormal(self.b, covariance).log_prob(self.x)

    def batch(self):
        from dataclasses import replace

        return replace(self.data.batch(), x=self.x)

    def elbo(self):
        """ELBO per profile with the quadratic expectation done exactly, on 2 d sigma points."""
        batch = self.batch()
        loc, log_scale = self.guide.encode(batch)
        offsets = math.sqrt(self.d) * torch.cat([torch.eye(self.d), -torch.eye(self.d)]).double()
        z = loc + offsets[:, None] * log_scale.exp()
        fit = self.model.likelihood(z, batch).log_prob(self.x).mean(0)
        return fit.mean() - cge.Elbo()(self.model, self.guide, batch)["kl"].double()

    def test_optimum_of_the_elbo_is_the_evidence(self):
        optimiser = torch.optim.LBFGS(
            self.guide.parameters(),
            max_iter=500,
            tolerance_grad=1e-12,
            tolerance_change=1e-16,
            line_search_fn="strong_wolfe",
        )

        def closure():
            optimiser.zero_grad()
            loss = -self.elbo()
            loss.backward()
            return loss

        start = self.elbo().item()
        optimiser.step(closure)
        gap = (self.evidence.mean() - self.elbo()).item()
        assert float(self.evidence.mean()) - start > 0.1
        assert -1e-9 <= gap <= 1e-6

    def test_importance_weighted_bound_at_the_exact_posterior_is_the_evidence(self):
        precision = 1 + (self.W**2 / self.scale[:, None] ** 2).sum(0)
        gain = (self.W / self.scale[:, None] ** 2).T / precision[:, None]
        with torch.no_grad():
            self.guide.head.weight[: self.d], self.guide.head.weight[self.d :] = gain, 0.0
            self.guide.head.bias[: self.d] = -gain @ self.b
            wanted = -0.5 * precision.log()
            self.guide.head.bias[self.d :] = -2 + 5 * torch.atanh((wanted + 2) / 5)
        bound = cge.iwae_bound(self.model, self.guide, self.batch(), n_samples=1)
        torch.testing.assert_close(bound, self.evidence, rtol=0, atol=1e-9)

    def test_importance_weighted_bound_rises_with_samples_towards_the_evidence(self):
        one, many = (
            torch.stack([cge.iwae_bound(self.model, self.guide, self.batch(), k).mean() for _ in range(20)]).mean()
            for k in (1, 200)
        )
        assert one < many < self.evidence.mean() + 0.05

    def test_prior_predictive_moments(self):
        # 4,000 draws: means within 5 standard errors in each of 6 genes (failure rate below 1e-5).
        self.model.float()
        cells = self.data.cells(torch.zeros(4000, dtype=torch.long))
        with torch.no_grad():
            x = Predictive(self.model, posterior_samples={}, num_samples=1)(cells)["x"][0]
        sd = (self.W @ self.W.T + torch.diag(self.scale**2)).diagonal().sqrt()
        assert ((x.mean(0) - self.b).abs() < 5 * sd / math.sqrt(4000)).all()
        assert ((x.std(0) / sd - 1).abs() < 5 / math.sqrt(8000)).all()


class TestSoftmaxPrior:
    def shift(self, temperature, raw):
        data = data_of()
        prior = cge.SoftmaxPrior(data, 3, temperature=temperature)
        with torch.no_grad():
            prior.network.table.weight.copy_(raw)
        return prior.shift(data.batch())

    raw = torch.tensor([[9.0, 9, 9, 9, 9, 9], [1, -2, 0.5, 0.1, 0.3, -0.7], [0, 0, 3, 0, 0, 0], [1, 1, 1, 2, 2, 2]])

    def test_formula(self):
        t = 0.7
        shift = self.shift(t, self.raw)
        mu, log_sigma = self.raw[:, :3], 3 * torch.tanh(self.raw[:, 3:] / 3)
        for row in (1, 2, 3):
            torch.testing.assert_close(shift.loc[row], mu[row] * torch.softmax(mu[row].abs() / t, -1))
            torch.testing.assert_close(
                shift.log_scale[row], log_sigma[row] * torch.softmax(log_sigma[row].abs() / t, -1)
            )

    def test_cold_limit_is_one_hot(self):
        loc = self.shift(1e-3, self.raw).loc
        torch.testing.assert_close(loc[1], torch.tensor([0.0, -2.0, 0.0]))

    def test_hot_limit_divides_by_d(self):
        loc = self.shift(1e6, self.raw).loc
        torch.testing.assert_close(loc[1:], self.raw[1:, :3] / 3, rtol=1e-4, atol=1e-5)

    def test_temperature_must_be_positive(self):
        with pytest.raises(cge.errors.ConfigError, match="temperature must be positive and finite, got 0"):
            cge.SoftmaxPrior(data_of(), 3, temperature=0)


def test_soft_clamp_is_bounded_monotone_and_the_identity_at_its_middle():
    raw = torch.linspace(-50, 50, 1001).double()
    out = soft_clamp(raw, -7, 3)
    assert out.min() >= -7 and out.max() <= 3
    assert (out.diff() >= 0).all()
    middle = torch.tensor(-2.0, requires_grad=True)
    value = soft_clamp(middle, -7, 3)
    value.backward()
    assert value.item() == -2 and middle.grad.item() == 1


def test_scale_round_trips_through_its_bounds():
    decoder = cge.LinearDecoder(2, 5)
    wanted = torch.tensor([0.01, 0.1, 1.0, 10.0, 40.0])
    decoder.set_scale(wanted)
    torch.testing.assert_close(decoder.scale, wanted, rtol=1e-3, atol=0)


def test_concat_is_concatenation():
    """``W [x, e] + b`` written as a sum of two maps gives what concatenating gives."""
    data = data_of(env_features=torch.randn(4, 5))
    model, _ = cge.basic_vae(data, 2)
    guide = cge.AmortizedGuide(model, "concat", hidden=(7,))
    batch = data.batch()
    wide = torch.nn.Linear(data.g + 5, 7)
    first, extra = guide.layers[0], guide.conditions[0].environment.network[0]
    with torch.no_grad():
        wide.weight.copy_(torch.cat([first.weight, extra.weight], 1))
        wide.bias.copy_(first.bias + extra.bias)
        hidden = torch.relu(wide(torch.cat([data.x, data.env_features[data.env]], 1)))
        loc = guide.head(hidden).chunk(2, -1)[0]
    torch.testing.assert_close(guide.encode(batch)[0], loc)

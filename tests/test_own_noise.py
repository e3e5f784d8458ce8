"""SCMs whose children have noise of their own: every posterior question against a linear-Gaussian closed form."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import pyro_cge as cge
from pyro_cge.data.standardize import Standardizer
from pyro_cge.interpret.effects import environment_effects

N, G, D = 300, 8, 2


@pytest.fixture(scope="module")
def linear():
    """Two latents, 0 → 1, own noise of sd 2; weights known, encoder trained: x ~ N(W m + b, W S Wᵀ + diag(s²))."""
    env = torch.arange(N) % 3
    blank = cge.EnvironmentData(torch.randn(N, G), env, [f"g{k}" for k in range(G)], ["control", "a", "b"], control=[0])
    with cge.isolated(0):
        scm = cge.LatentSCM.autoregressive(D, own_noise=2.0)
        model = cge.CellModel(cge.StandardPrior(blank, D), scm, cge.LinearDecoder(D, G)).requires_grad_(False).eval()
        model.decoder.linear.weight.normal_()
        data = replace(blank, x=model(blank.batch().unobserved()))
        guide = cge.AmortizedGuide(model, hidden=(16,))
    options = {"epochs": 150, "lr": 1e-2, "validation": None, "standardize": False, "progress": False}
    fit = cge.fit(model, guide, data, **options)
    W, b, s = model.decoder.linear.weight, model.decoder.linear.bias, model.decoder.likelihood.scale
    start = scm(torch.zeros(1, D))
    J = (scm(torch.eye(D)) - start).T
    S = J @ J.T + torch.diag(torch.tensor([0.0, 4.0]))
    law = torch.distributions.MultivariateNormal(W @ start[0] + b, W @ S @ W.T + torch.diag(s**2))
    c = start + torch.linalg.solve(law.covariance_matrix, (data.x - law.mean).T).T @ W @ S
    return SimpleNamespace(fit=fit, data=data, post=fit.posterior(data), law=law, c=c, x=c @ W.T + b)


def test_likelihood_is_the_gaussian_density(linear):
    """4,000 importance draws; over 10 seeds the mean over profiles was at worst 0.04 nats off, the mean error 0.11."""
    found, exact = linear.post.log_likelihood(1, 4000)[0], linear.law.log_prob(linear.data.x)
    assert abs((found - exact).mean()) < 0.1 and (found - exact).abs().mean() < 0.2


def test_refining_does_not_lower_the_evidence(linear):
    few = linear.data.rows(range(60))
    plain, refined = (linear.fit.posterior(few, refine=steps).log_evidence(60).mean() for steps in (0, 60))
    exact = linear.law.log_prob(few.x).mean()
    assert plain - 0.1 < refined < exact + 0.1 and exact - refined < 1


@pytest.mark.parametrize("refine", [0, 100])
def test_causes_and_reconstructions_are_their_posterior_means(linear, refine):
    """A mean field has the exact means of a linear Gaussian: what is left is the encoder's error."""
    post = linear.fit.posterior(linear.data, refine=refine)
    assert (torch.from_numpy(post.latents("c").to_numpy()) - linear.c).square().mean() < 0.02 * linear.c.var(0).mean()
    assert (post.reconstruct() - linear.x).square().mean() < 0.02 * linear.x.var(0).mean()


def test_replicates_have_the_models_covariance(linear):
    """300 × 200 draws: standard error of a variance 0.6%; a variance 3% off fails, as of 8 all but never."""
    new = linear.post.replicate(200, new_profiles=True).flatten(0, 1)
    ratio = new.var(0) / linear.law.covariance_matrix.diagonal()
    assert (ratio - 1).abs().max() < 0.03
    again = linear.post.replicate(400)
    error = again.mean(0) - linear.post.reconstruct()
    assert (error / (again.std(0) / 20)).abs().max() < 6  # 2,400 z-scores


def test_draws_of_noise_and_causes_are_joint(linear):
    """The first latent is its noise in every draw, the second is not; draws average to the posterior mean."""
    z, c = (linear.post.samples(400, kind=kind) for kind in ("z", "c"))
    torch.testing.assert_close(z[..., 0], c[..., 0])
    own = c - linear.fit.model.scm(z)
    assert own[..., 1].std() > 0.1
    error = c.mean(0) - torch.from_numpy(linear.post.latents("c").to_numpy())
    assert (error / (c.std(0) / 20)).abs().max() < 6  # 600 z-scores
    exported = linear.post.to_arviz(5).posterior
    np.testing.assert_array_equal(exported["c"].values[0], linear.post.samples(5, kind="c"))


@pytest.fixture(scope="module")
def curved():
    """A decoder that is not linear: the expectation under own noise is not the value at its mean."""
    env = torch.arange(N) % 3
    data = cge.EnvironmentData(torch.randn(N, G), env, [f"g{k}" for k in range(G)], ["control", "a", "b"], control=[0])
    shift = cge.NoiseShift(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, -1.0]]), torch.zeros(3, D))
    with cge.isolated(1):
        scm = cge.LatentSCM.autoregressive(D, own_noise=2.0)
        model = cge.CellModel(cge.TablePrior(data, shift), scm, cge.MLPDecoder(D, G, hidden=(16,)))
        guide = cge.AmortizedGuide(model, hidden=(4,))
    return cge.Posterior(model.requires_grad_(False).eval(), guide, data, Standardizer.identity(data.gene_names))


def test_predictions_and_effects_integrate_own_noise(curved):
    """Against draws of the model: 24 differences, six standard errors of the draws' mean."""
    env = torch.arange(3).repeat_interleave(40_000)
    with cge.isolated(2):
        x = curved.model(curved.data.cells(env)).reshape(3, -1, G)
    error = x.std(1) / 200
    predicted = curved.predict(n_samples=4000)  # its own error comes on top, about a tenth of the spread of x
    spread = error + x.std(1) / 4000**0.5
    assert ((predicted - x.mean(1)) / spread).abs().max() < 6
    effects = torch.from_numpy(environment_effects(curved, n_pairs=4000).to_numpy())
    assert ((effects - (x.mean(1) - x.mean(1)[0])) / spread).abs().max() < 6


def test_counterfactuals_keep_own_noise(curved):
    """Abduction by hand, one profile's own noise at its posterior mean."""
    batch = curved.data.batch()
    z, own = curved.guide.encode(batch)[0], curved.guide.own_noise(batch).mean
    assert own.shape == (N, 1)
    law, b = curved.shift(), 2
    moved = law.transport(z, batch.env, torch.full_like(batch.env, b))
    expected = batch.x + curved.model.mean(moved, batch, own) - curved.model.mean(z, batch, own)
    torch.testing.assert_close(curved.counterfactual("b"), expected.detach())


def test_interventions_on_the_causes_keep_or_cut_own_noise():
    scm = cge.LatentSCM.autoregressive(D, own_noise=2.0)
    z, own = torch.randn(5, D), torch.randn(5, 1)
    torch.testing.assert_close(scm(z, own) - scm(z), torch.cat([torch.zeros(5, 1), own], -1))
    with cge.MechanismIntervention(1, gain=0.0):
        torch.testing.assert_close(scm(z, own)[:, 1:], z[:, 1:] + own)
    with cge.HardIntervention(1, value=3.0):
        assert (scm(z, own)[:, 1] == 3).all()


@pytest.mark.parametrize("cut", [{"value": 3.0}, {"gain": 0.0}])
def test_layers_that_are_drawn_are_not_intervened_on(curved, cut):
    """A draw of the model under ``do`` of a latent with own noise is refused; of a root it is made."""
    kind = cge.HardIntervention if "value" in cut else cge.MechanismIntervention
    batch = curved.data.batch().unobserved()
    with kind(1, **cut):
        assert curved.predict(n_samples=3).shape == (3, G)
        with pytest.raises(cge.errors.ConfigError, match=r"\[1\], which are drawn with noise of their own"):
            curved.model(batch)
    with cge.HardIntervention(0, value=3.0):
        assert curved.model(batch).shape == (N, G)

"""Likelihoods: their laws against closed forms, robustness, counts through fit, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import pyro_cge as cge
from pyro_cge.config import RunConfig
from pyro_cge.errors import ConfigError, DataError
from pyro_cge.runs import build, load_fit, run
from pyro_cge.scm.normal import DiagonalNormal

G = 6


def counts_data(n=400, seed=0):
    """Counts of one latent that two environments move apart."""
    generator = torch.Generator().manual_seed(seed)
    env = torch.arange(n) % 2
    z = torch.randn(n, 1, generator=generator) + 3.0 * env.unsqueeze(-1)
    rate = (1.5 + 0.3 * z * torch.linspace(-1, 1, G)).exp()
    return cge.EnvironmentData(
        x=torch.poisson(rate, generator=generator),
        env=env,
        gene_names=[f"g{k}" for k in range(G)],
        env_names=["control", "treated"],
        control=[0],
    )


def test_log_densities_are_scipys():
    data = counts_data()
    mean, x = torch.rand(5, G) + 0.5, data.x[:5]
    gaussian, student = cge.GaussianLikelihood(G, scale=0.7), cge.StudentTLikelihood(G, df=3.0, scale=0.7)
    poisson, negative = cge.PoissonLikelihood(data), cge.NegativeBinomialLikelihood(data)
    theta = negative.dispersion.detach().numpy()
    m, value = mean.numpy(), x.numpy()
    expected = {
        gaussian: stats.norm.logpdf(value, m, 0.7),
        student: stats.t.logpdf(value, 3.0, m, 0.7),
        poisson: stats.poisson.logpmf(value, m),
        negative: stats.nbinom.logpmf(value, theta, theta / (theta + m)),
    }
    for likelihood, log_density in expected.items():
        law = likelihood(mean)
        assert law.batch_shape == (5,) and law.event_shape == (G,)
        np.testing.assert_allclose(law.log_prob(x).detach().numpy(), log_density.sum(-1), rtol=1e-4)
        torch.testing.assert_close(law.mean, mean)


def test_counts_start_at_the_mean_of_each_gene_and_are_read_standardised():
    data = counts_data()
    likelihood = cge.PoissonLikelihood(data)
    torch.testing.assert_close(likelihood.mean(torch.zeros(1, G))[0], data.x.mean(0))
    read = likelihood.encoder_input(data.x)
    torch.testing.assert_close(read.mean(0), torch.zeros(G), atol=1e-5, rtol=0)
    torch.testing.assert_close(read.std(0, correction=0), torch.ones(G), rtol=1e-4, atol=0)
    assert likelihood.mean(torch.full((1, G), 1e4)).isfinite().all()


@pytest.mark.parametrize("df", [1.5, 4.0, 50.0])
def test_degrees_of_freedom_are_kept_and_learned(df):
    likelihood = cge.StudentTLikelihood(G, df=df)
    torch.testing.assert_close(likelihood.df, torch.full((G,), df), rtol=1e-3, atol=0)
    likelihood(torch.zeros(3, G)).log_prob(torch.randn(3, G)).sum().backward()
    assert (likelihood.log_df.grad != 0).all()


def test_student_t_recovers_scale_and_tails():
    """Maximum likelihood on 20,000 draws of StudentT(2, scale 0.5): asymptotic sd of ν about 0.03 and of s 0.006."""
    x = torch.distributions.StudentT(2.0, 0.0, 0.5).sample((20_000, 1))
    likelihood = cge.StudentTLikelihood(1, df=8.0)
    optimizer = torch.optim.LBFGS(likelihood.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = -likelihood(torch.zeros_like(x)).log_prob(x).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert abs(likelihood.df.item() - 2.0) < 0.15
    assert abs(likelihood.scale.item() - 0.5) < 0.03


def test_one_outlier_does_not_rule_the_gradient():
    """The score of a location is r/s² under a Gaussian; under a Student-t it is at most (ν + 1) / (2 s √ν)."""
    x = torch.tensor([[1000.0]])
    for likelihood, largest in ((cge.GaussianLikelihood(1), np.inf), (cge.StudentTLikelihood(1, df=4.0), 1.25)):
        mean = torch.zeros(1, 1, requires_grad=True)
        likelihood(mean).log_prob(x).backward()
        assert abs(mean.grad.item()) <= largest + 1e-3
    assert abs(mean.grad.item()) < 0.01


@pytest.mark.parametrize("kind", ["poisson", "negative_binomial"])
def test_counts_through_fit(kind):
    data = counts_data()
    model, guide = cge.dense_vae(data, 2, hidden=(16,), decoder="linear", likelihood=kind)
    fit = cge.fit(model, guide, data, epochs=40, batch_size=64, lr=1e-2, validation=None)
    posterior = fit.posterior(data)
    by_env = torch.stack([data.x[data.env == e].mean(0) for e in range(2)])
    torch.testing.assert_close(fit.scaler.scale, torch.ones(G))  # counts are not standardised
    torch.testing.assert_close(posterior.predict(n_samples=2000), by_env, rtol=0.2, atol=0.2)
    again = posterior.replicate(2)
    assert (again == again.round()).all() and (again >= 0).all()
    flat = torch.distributions.Poisson(data.x.mean(0)).log_prob(data.x).sum(-1)
    assert posterior.log_evidence().mean() > flat.mean() + 1


def test_rotation_keeps_the_means_of_counts():
    data = counts_data()
    model, guide = cge.dense_vae(data, 2, hidden=(16,), likelihood="poisson")
    fit = cge.fit(model, guide, data, epochs=20, batch_size=64, lr=1e-2, validation=None)
    rotated = cge.rotate(fit, data)
    torch.testing.assert_close(
        rotated.posterior(data).reconstruct(), fit.posterior(data).reconstruct(), rtol=1e-3, atol=0
    )


def test_run_folders_keep_counts(tmp_path):
    data = counts_data()
    config = RunConfig(model="basic", latents=2, hidden=(8,), likelihood="negative_binomial", epochs=2)
    before, _ = run(config, data, tmp_path / "run", progress=False)
    after = load_fit(tmp_path / "run")
    torch.testing.assert_close(after.posterior(data).reconstruct(), before.posterior(data).reconstruct())


def test_what_is_refused(data):
    negative = replace(counts_data(), x=torch.full((400, G), -1.0))
    with pytest.raises(DataError, match="needs counts.*got -1"):
        cge.PoissonLikelihood(negative)
    model, guide = cge.basic_vae(counts_data(), 2, likelihood="poisson")
    with pytest.raises(DataError, match="needs counts"):
        cge.fit(model, guide, replace(counts_data(), x=torch.rand(400, G)), epochs=1)
    with pytest.raises(ConfigError, match="no scale"):
        model.decoder.scale  # noqa: B018
    with pytest.raises(ConfigError, match="degrees of freedom"):
        cge.StudentTLikelihood(G, df=0.5)
    with pytest.raises(ConfigError, match="likelihood must be"):
        build(RunConfig().model_copy(update={"likelihood": "cauchy"}), data)


def test_the_gaussian_density_is_torchs_own():
    mean, scale, x = torch.randn(3, 4, 5), torch.rand(5) + 0.1, torch.randn(3, 4, 5)
    ours, torchs = DiagonalNormal(mean, scale), dist.Normal(mean, scale).to_event(1)
    torch.testing.assert_close(ours.log_prob(x), torchs.log_prob(x))
    torch.testing.assert_close(ours.variance, torchs.variance)
    wider = ours.expand((2, 3, 4))
    assert wider.batch_shape == (2, 3, 4) and wider.event_shape == (5,)
    torch.testing.assert_close(wider.log_prob(x), torchs.expand((2, 3, 4)).log_prob(x))

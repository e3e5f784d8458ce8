"""Guides beyond mean field: densities, KL, exactness where the family holds the posterior, refinement."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch.distributions import MultivariateNormal

import pyro_cge as cge
from pyro_cge.errors import ConfigError
from pyro_cge.guides.families import FactorNormal

D, G, N = 3, 8, 30


@pytest.fixture
def linear():
    """A linear-Gaussian model whose exact posterior is correlated, and that posterior's covariance."""
    data = cge.EnvironmentData(
        x=torch.randn(N, G),
        env=torch.zeros(N, dtype=torch.long),
        gene_names=[f"g{k}" for k in range(G)],
        env_names=["all"],
    )
    model = cge.CellModel(cge.StandardPrior(data, D), cge.LatentSCM(cge.scm.graphs.chain(D)), cge.LinearDecoder(D, G))
    with torch.no_grad():
        model.decoder.linear.weight.normal_()
    scm, decoder = model.scm, model.decoder
    mixing = torch.eye(D)
    for layer, mechanism in enumerate(scm.mechanisms):
        mixing[:, layer + 1] += mixing[:, : layer + 1] @ mechanism.W[:, 0].detach()
    W = decoder.linear.weight.detach() @ mixing.T
    precision = torch.eye(D) + W.T @ (W / decoder.scale.detach()[:, None] ** 2)
    covariance = torch.linalg.inv(precision)
    b = decoder.linear.bias.detach()
    mean = (data.x - b) @ (W / decoder.scale.detach()[:, None] ** 2) @ covariance
    law = MultivariateNormal(b, W @ W.T + torch.diag(decoder.scale.detach() ** 2))
    return data, model, mean, covariance, law.log_prob(data.x)


FAMILIES = {
    "full": lambda model: cge.FullCovarianceGuide(model, rank=D, hidden=()),
    "structured": lambda model: cge.StructuredGuide(model, hidden=()),
    "flow": lambda model: cge.FlowGuide(model, hidden=()),
}


@pytest.mark.parametrize("family", ["full", "structured"])
def test_analytic_kl_is_the_mean_of_log_ratios(linear, family):
    data, model, *_ = linear
    guide = FAMILIES[family](model)
    batch = data.batch()
    kl = cge.Elbo()(model, guide, batch)["kl"]
    q, p = guide.posterior(batch), model.prior(batch).law(batch.env)
    z = q.rsample(torch.Size([4000]))
    ratios = (q.log_prob(z) - p.log_prob(z)).mean(-1)
    # Five standard errors: fails once in a million.
    assert (ratios.mean() - kl).abs() < 5 * ratios.std() / 4000**0.5


def test_factor_normal_is_the_multivariate_normal():
    factor = torch.randn(5, D, D) + 2 * torch.eye(D)
    loc, x = torch.randn(2, 5, D)
    ours = FactorNormal(loc, factor, torch.linalg.slogdet(factor)[1])
    theirs = MultivariateNormal(loc, factor @ factor.mT)
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.entropy(), theirs.entropy(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.variance, theirs.variance)
    draws = ours.expand([2, 5]).rsample(torch.Size([3]))
    assert draws.shape == (3, 2, 5, D)


@pytest.mark.parametrize("family", ["full", "structured", "flow"])
def test_correlated_families_close_the_gap_that_mean_field_leaves(linear, family):
    data, model, mean, covariance, evidence = linear
    model.requires_grad_(False)

    def bound(guide):
        # A low-rank factor is free to rotate, which slows its descent.
        lr, steps = (0.1, 1500) if family == "full" else (0.03, 800)
        optimizer = torch.optim.Adam(guide.parameters(), lr=lr)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 - step / steps)
            optimizer.zero_grad()
            cge.Elbo()(model, guide, data.batch())["loss"].backward()
            optimizer.step()
        losses = torch.stack([cge.Elbo()(model, guide, data.batch())["loss"].detach() for _ in range(300)])
        return evidence.mean() + losses.mean()  # the gap to the exact evidence, at least 0

    exact_gap = 0.5 * (torch.linalg.inv(covariance).diagonal().log().sum() + torch.logdet(covariance))
    guide = FAMILIES[family](model)
    gap = bound(guide)
    assert exact_gap > 0.2  # what the best mean field leaves
    assert -0.05 < gap < 0.25 * exact_gap
    encoded, log_scale = guide.encode(data.batch())
    assert (encoded - mean).abs().mean() < 0.15
    torch.testing.assert_close(log_scale.exp().mean(0), covariance.diagonal().sqrt(), rtol=0.25, atol=0.02)


def test_a_structured_guide_correlates_ancestors_only():
    import networkx as nx

    data = cge.EnvironmentData(
        x=torch.randn(4, G), env=torch.zeros(4).long(), gene_names=[f"g{k}" for k in range(G)], env_names=["all"]
    )
    graph = nx.DiGraph([(2, 0)])
    graph.add_node(1)
    model = cge.CellModel(cge.StandardPrior(data, D), cge.LatentSCM(graph), cge.LinearDecoder(D, G))
    factor = cge.StructuredGuide(model).posterior(data.batch()).factor
    covariance = factor @ factor.mT
    assert covariance[:, 0, 2].abs().min() > 0
    assert covariance[:, 0, 1].abs().max() == covariance[:, 1, 2].abs().max() == 0


def test_refinement_finds_the_exact_posterior(linear):
    data, model, mean, covariance, _ = linear
    guide = cge.AmortizedGuide(model, hidden=(5,))
    before = [p.clone() for m in (model, guide) for p in m.parameters()]
    refined = cge.RefinedGuide(guide, steps=800, lr=0.03, n_samples=64)
    loc, log_scale = refined.encode(data.batch())
    assert (guide.encode(data.batch())[0] - mean).abs().mean() > 0.1
    # The mean field's optimum: exact means, sd from the diagonal of the precision; 64 fixed draws leave some error.
    assert (loc - mean).abs().mean() < 0.06
    expected = torch.linalg.inv(covariance).diagonal().rsqrt().expand_as(loc)
    torch.testing.assert_close(log_scale.exp(), expected, rtol=0.4, atol=0.02)
    after = [p for m in (model, guide) for p in m.parameters()]
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, after, strict=True))
    losses = [cge.Elbo()(model, g, data.batch())["loss"].item() for g in (refined, guide)]
    assert losses[0] < losses[1]


def test_a_fit_can_be_refined(data):
    model, guide = cge.environment_vae(data, 3, hidden=(8,))
    fitted = cge.fit(model, guide, data, epochs=2, validation=None)
    plain, refined = fitted.posterior(data), fitted.posterior(data, refine=50)
    assert refined.log_evidence(20).mean() > plain.log_evidence(20).mean()
    assert refined.targets().shape == plain.targets().shape


def test_pyros_autoguides_serve_the_environments_effects(data):
    """``AutoNormal`` on the environments' shifts beside the amortised guide of the cells, through plain SVI."""
    model = cge.CellModel(cge.LaplacePrior(data, 3), None, cge.LinearDecoder(3, data.g))
    cells = cge.AmortizedGuide(model)
    cells.environment = None

    def envs(batch):
        return pyro.plate("envs", batch.n_envs, subsample=batch.envs, dim=-1)

    effects = AutoNormal(poutine.block(model, expose=["env_shift"]), create_plates=envs)

    def guide(batch):
        effects(batch)
        cells(batch)

    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), pyro.infer.TraceMeanField_ELBO())
    losses = [svi.step(data.batch()) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert effects.median(data.batch())["env_shift"].shape == (data.n_envs, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: cge.FullCovarianceGuide(model, rank=9), "rank must lie between 1 and the number of latents 3"),
        (lambda model: cge.FlowGuide(model, n_transforms=0), "n_transforms must be at least 1"),
        (lambda model: cge.AmortizedGuide(model, "both"), "conditioning must be"),
        (lambda model: cge.RefinedGuide(cge.AmortizedGuide(model), steps=0), "must be positive and n_samples even"),
    ],
)
def test_bad_settings_are_named(linear, make, message):
    with pytest.raises(ConfigError, match=message):
        make(linear[1])

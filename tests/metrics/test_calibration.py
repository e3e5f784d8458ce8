"""Calibration: ranks, tests of uniformity, coverage, predictive checks."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from scipy import stats

import pyro_cge as cge
from pyro_cge import metrics
from pyro_cge.errors import ConfigError
from pyro_cge.metrics.calibration import STATISTICS


@pytest.fixture(scope="module")
def simulated(truth):
    return truth.sample(30, seed=3)


@pytest.fixture(scope="module")
def post(simulated):
    with cge.isolated(0):
        model, guide = cge.environment_vae(simulated, 5, hidden=(32,))
    fit = cge.fit(model, guide, simulated, epochs=60, batch_size=64, lr=5e-3, validation=None, progress=False)
    return fit.posterior(simulated)


@pytest.fixture
def exact():
    """A linear-Gaussian model that made its own data, with the exact posterior as guide."""
    d, g, n, noise = 2, 40, 300, 0.6
    weight = 3 * torch.linalg.qr(torch.randn(g, d)).Q
    x = torch.randn(n, d) @ weight.T + noise * torch.randn(n, g)
    genes = [f"gene {k}" for k in range(g)]
    data = cge.EnvironmentData(x, torch.arange(n) % 3, genes, ["control", "a", "b"])
    model = cge.CellModel(cge.StandardPrior(data, d), None, cge.LinearDecoder(d, g))
    guide = cge.AmortizedGuide(model, hidden=())
    with torch.no_grad():
        model.decoder.linear.weight.copy_(weight)
        model.decoder.linear.bias.zero_()
        model.decoder.set_scale(torch.full((g,), noise))
        variance = 1 / (1 + 9 / noise**2)
        guide.head.weight.zero_()
        guide.head.weight[:d] = variance * weight.T / noise**2
        guide.head.bias[:d] = 0
        guide.head.bias[d:] = -2 + 5 * np.arctanh((0.5 * np.log(variance) + 2) / 5)
    return cge.Posterior(model, guide, data, cge.Standardizer.identity(genes))


# Simulation-based calibration


def test_ranks_count_the_draws_below_the_truth(data):
    """A posterior of the constants 0 and 1 ranks a truth by its sign and whether it exceeds one."""
    model, _ = cge.basic_vae(data, 2)
    batch = data.batch(torch.arange(7))
    seen = []

    def posterior(given, n_draws):
        seen.append(given.x)
        return {"z": torch.tensor([0.0, 1.0]).view(2, 1, 1).expand(n_draws, 7, 2)}

    ranks = metrics.sbc_ranks(model, posterior, batch, n_replicates=40, n_draws=2)["z"]
    assert ranks.shape == (40, 7, 2) and set(np.unique(ranks)) == {0, 1, 2}
    # 560 standard normals: below 0, up to 1, above; four standard errors of a share of a half.
    np.testing.assert_allclose(np.bincount(ranks.ravel()) / 560, [0.5, 0.341, 0.159], atol=0.085)
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], batch.x)
    again = metrics.sbc_ranks(model, posterior, batch, n_replicates=40, n_draws=2)["z"]
    np.testing.assert_array_equal(again, ranks)


class PriorGuide(PyroModule):
    """The prior itself, which is always calibrated (and says nothing)."""

    def forward(self, batch):
        with cge.sites.cells_plate(batch):
            pyro.sample("z", dist.Normal(torch.zeros(len(batch), 2), 1.0).to_event(1))


def test_the_prior_as_posterior_is_calibrated(data):
    # Two tests of each of two latents, corrected: fails for 1 seed in 100.
    model, _ = cge.basic_vae(data, 2)
    ranks = metrics.sbc_ranks(model, PriorGuide(), data.batch(torch.arange(5)), n_replicates=200)["z"]
    assert metrics.uniformity(ranks, 99)[["chi2_p_holm", "ks_p_holm"]].to_numpy().min() > 0.01


def test_a_guide_of_the_house_gives_draws_of_the_models_shape(data):
    model, guide = cge.environment_vae(data, 3)
    ranks = metrics.sbc_ranks(model, guide, data.batch(torch.arange(4)), n_replicates=3, n_draws=9)["z"]
    assert ranks.shape == (3, 4, 3) and ranks.min() >= 0 and ranks.max() <= 9


def test_draws_of_another_shape_are_refused(data):
    model, _ = cge.basic_vae(data, 2)
    with pytest.raises(ConfigError, match=r"draws of 'z' have shape \[9, 2\], expected \[9, 4, 2\]"):
        metrics.sbc_ranks(
            model, lambda b, n: {"z": torch.zeros(n, 2)}, data.batch(torch.arange(4)), n_replicates=1, n_draws=9
        )


def test_p_values_of_uniform_ranks_are_uniform():
    """300 tables of one parameter: Kolmogorov–Smirnov of their p-values at 0.001 each (fails for 1 seed in 500)."""
    rng = np.random.default_rng(0)
    tables = [metrics.uniformity(rng.integers(0, 100, (400, 1)), 99, seed=s) for s in range(300)]
    for column in ("chi2_p", "ks_p"):
        assert stats.kstest([t[column][0] for t in tables], "uniform").pvalue > 1e-3


def test_uniformity_finds_what_is_not():
    rng = np.random.default_rng(0)
    narrow = np.clip(rng.normal(50, 15, (500, 1)).astype(int), 0, 99)
    shifted = np.clip(rng.integers(10, 110, (500, 1)), 0, 99)
    fine = rng.integers(0, 100, (500, 1))
    table = metrics.uniformity(np.concatenate([narrow, shifted, fine], 1), 99)
    assert (table.loc[:1, ["chi2_p_holm", "ks_p_holm"]] < 1e-3).all(axis=None)
    assert (table.loc[2, ["chi2_p_holm", "ks_p_holm"]] > 0.01).all()


def test_uniformity_refuses_unequal_bins_and_impossible_ranks():
    with pytest.raises(ConfigError, match=r"bins=20 must divide n_draws \+ 1 = 101"):
        metrics.uniformity(np.zeros((5, 1), int), 100)
    with pytest.raises(ConfigError, match="between 0 and n_draws=19, got 0 to 20"):
        metrics.uniformity(np.array([[0], [20]]), 19)


def test_holm_is_the_step_down_procedure():
    p = np.array([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(metrics.holm(p), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(metrics.holm(np.array([0.9, 0.8])), [1.0, 1.0])


def test_ties_are_broken_at_random(data):
    """A posterior that is a spike at the truth ranks it anywhere, uniformly: corrected p above 0.01 (1 seed in 100)."""
    spike = torch.zeros(19, 5, 2)

    class AtZero(PyroModule):
        def forward(self, batch):
            with cge.sites.cells_plate(batch):
                pyro.sample("z", dist.Delta(torch.zeros(5, 2)).to_event(1))
                pyro.sample("x", dist.Normal(torch.zeros(5, 2), 1.0).to_event(1))

    ranks = metrics.sbc_ranks(
        AtZero(), lambda b, n: {"z": spike}, data.batch(torch.arange(5)), n_replicates=200, n_draws=19
    )
    assert metrics.uniformity(ranks["z"], 19)[["chi2_p_holm", "ks_p_holm"]].to_numpy().min() > 0.01


# Coverage


def test_coverage_of_draws_and_of_intervals():
    """2,000 normal truths, four standard errors (1 in 10,000): right, too narrow by half, and as intervals."""
    rng = np.random.default_rng(0)
    centre = rng.normal(size=2000)
    truth = centre + rng.normal(size=2000)
    draws = centre + rng.normal(size=(199, 2000))
    right = metrics.coverage(torch.tensor(draws), torch.tensor(truth))
    error = np.sqrt(right["level"] * (1 - right["level"]) / 2000)
    assert (np.abs(right["coverage"] - right["level"]) < 4 * error + 0.005).all()
    narrow = metrics.coverage(centre + 0.5 * (draws - centre), truth, (0.9,))
    assert narrow["coverage"][0] == pytest.approx(2 * stats.norm.cdf(1.645 / 2) - 1, abs=0.05)

    def interval(level):
        half = stats.norm.ppf(0.5 + level / 2)
        return centre - half, centre + half

    table = metrics.coverage(interval, truth)
    assert (np.abs(table["coverage"] - table["level"]) < 4 * error).all()
    assert ((table["low"] < table["coverage"]) & (table["coverage"] < table["high"])).all()


def test_a_spike_at_the_truth_is_inside_every_interval():
    draws = torch.cat([torch.zeros(60, 1), torch.ones(39, 1)])
    assert (metrics.coverage(draws, torch.zeros(1))["coverage"] == 1).all()
    assert (metrics.coverage(draws, torch.full((1,), -1.0))["coverage"] == 0).all()


def test_coverage_leaves_out_what_is_not_there():
    low, high = np.array([0.0, np.nan, 0.0, 0.0]), np.ones(4)
    table = metrics.coverage(lambda level: (low, high), np.array([0.5, 0.5, np.nan, 3.0]), (0.9,))
    assert (table["n"][0], table["coverage"][0]) == (2, 0.5)


@pytest.mark.slow
def test_coverage_of_an_amortised_guide_on_simulated_data():
    """The model is the truth and only the encoder is learned (linear decoder, orthogonal genes): near-exact posterior.

    18,000 intervals; a 2-percentage-point band holds what amortisation leaves over.
    """
    environments = cge.simulate.random_shifts(3, 20, variance=3, cover=True)
    with cge.isolated(0):
        prior = cge.TablePrior(environments.schema([f"g{k}" for k in range(20)]), environments.shift)
        decoder = cge.LinearDecoder(3, 20)
        with torch.no_grad():
            decoder.linear.weight.copy_(1.5 * torch.linalg.qr(torch.randn(20, 3))[0])
        model = cge.CellModel(prior, None, decoder)
        design = prior.environments.cells(torch.arange(20).repeat_interleave(300))
        with torch.no_grad():
            trace = pyro.poutine.trace(model).get_trace(design)
        z, x = trace.nodes["z"]["value"], trace.nodes["x"]["value"]
        data = cge.EnvironmentData(x, design.env, prior.environments.gene_names, environments.names, control=[0])
        guide = cge.AmortizedGuide(model, "concat", hidden=(64,))
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        fit = cge.fit(
            model, guide, data, epochs=60, lr=3e-3, kl_warmup=0, standardize=False, validation=None, progress=False
        )
    draws = fit.posterior(data).samples(199)
    table = metrics.coverage(draws, z)
    assert table["n"][0] == z.numel()
    assert ((table["coverage"] - table["level"]).abs() < 0.02).all(), table


# Predictive checks


def test_statistics_are_what_they_say():
    x = torch.randn(50, 4) ** 2
    np.testing.assert_allclose(STATISTICS["skewness"](x), stats.skew(x.numpy()), rtol=1e-4)
    np.testing.assert_allclose(STATISTICS["sd"](x), x.numpy().std(0, ddof=1), rtol=1e-5)


@pytest.mark.parametrize("new_profiles", [False, True])
def test_the_truth_replicates_its_data_and_a_wrong_scale_does_not(exact, new_profiles):
    """At least a tenth of the 120 p-values lay within 0.005 of an end for 1 of 300 seeds measured."""
    table = metrics.predictive_check(exact, n_samples=99, new_profiles=new_profiles)
    assert len(table) == 3 * exact.raw.g and table["p"].between(0, 1).all()
    assert list(table["statistic"].unique()) == ["mean", "sd", "skewness"]
    mean = table[table["statistic"] == "mean"]
    np.testing.assert_allclose(mean["observed"], exact.raw.x.mean(0), rtol=1e-4, atol=1e-5)
    assert table["p"].between(0.005, 0.995).mean() > 0.9
    with torch.no_grad():
        exact.model.decoder.set_scale(2 * exact.model.decoder.scale)
    wide = metrics.predictive_check(exact, ["sd"], n_samples=20, new_profiles=new_profiles)
    assert (wide["p"] == 1).mean() > 0.9 and (wide["low"] > wide["observed"]).mean() > 0.9


def test_own_statistics_and_ties(post):
    table = metrics.predictive_check(post, {"count": lambda x: torch.full((x.shape[1],), len(x))}, n_samples=3)
    assert (table["p"] == 0.5).all() and (table["observed"] == post.raw.n).all()
    with pytest.raises(ConfigError, match=r"unknown statistics \['median'\]"):
        metrics.predictive_check(post, ["median"])


# Stability


def test_stability_of_a_fit_with_itself_permuted_is_perfect(post, simulated):
    found = metrics.stability([post, post])
    assert found.mcc == pytest.approx(1.0) and len(found.latents) == 5
    assert (found.latents["target_agreement"].dropna() == 1).all()
    np.testing.assert_array_equal(found.targets, (post.targets() >= 0.5).astype(float))


def test_stability_matches_permuted_and_reflected_latents(post, simulated, monkeypatch):
    from copy import copy

    order, sign = [3, 1, 4, 0, 2], np.array([1, -1, 1, -1, 1.0])
    other = copy(post)
    z, p = post.latents(), post.targets()
    monkeypatch.setattr(other, "latents", lambda: z.iloc[:, order].set_axis(z.columns, axis=1) * sign, raising=False)
    monkeypatch.setattr(other, "targets", lambda: p.iloc[:, order].set_axis(p.columns, axis=1), raising=False)
    found = metrics.stability([post, other])
    assert found.reference == 0 and list(found.matchings[1].order) == list(np.argsort(order))
    np.testing.assert_allclose(found.latents["correlation"], 1)
    assert (found.latents["target_agreement"].dropna() == 1).all()
    np.testing.assert_array_equal(found.targets, (p >= 0.5).astype(float))


def test_stability_counts_disagreement(post, monkeypatch):
    from copy import copy

    p = post.targets() * 0
    first, second, third = (copy(post) for _ in range(3))
    tables = [p.copy() for _ in range(3)]
    for table, rows in zip(tables, ([0, 1], [1, 2], [1]), strict=True):
        table.iloc[rows, 0] = 1.0
    for fit, table in zip((first, second, third), tables, strict=True):
        monkeypatch.setattr(fit, "targets", lambda table=table: table, raising=False)
    found = metrics.stability([first, second, third])
    assert found.latents["target_agreement"].iloc[0] == pytest.approx(np.mean([1 / 3, 1 / 2, 1 / 2]))
    assert found.latents["target_agreement"].iloc[1:].isna().all()
    assert found.latents["environments"].iloc[0] == pytest.approx(5 / 3)
    assert found.targets.iloc[1, 0] == 1 and found.targets.iloc[0, 0] == pytest.approx(1 / 3)


def test_stability_needs_fits_of_the_same_data(post, simulated):
    with pytest.raises(ConfigError, match="two fits or more, got 1"):
        metrics.stability([post])
    few = cge.Posterior(post.model, post.guide, simulated.rows(range(20)), post.scaler, schema=post.schema)
    with pytest.raises(ConfigError, match="different profiles"):
        metrics.stability([post, few])

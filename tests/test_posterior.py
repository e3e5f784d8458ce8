"""What a fitted model says: units, names, shapes, and three different questions about expression."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import pyro_cge as cge
from pyro_cge.data.standardize import Standardizer
from pyro_cge.errors import ConfigError, DataError
from pyro_cge.guides.families import FullCovarianceGuide
from pyro_cge.interventions import log_bayes_factor, schwarz_penalty
from pyro_cge.models.effects import LaplacePrior, SpikeSlabPrior
from pyro_cge.models.networks import soft_clamp
from pyro_cge.posterior import align
from pyro_cge.scm.graphs import chain

D = 4


def fitted(data, preset=cge.environment_vae, epochs=15, **options):
    with cge.isolated(0):
        model, guide = preset(data, D, hidden=(16,), **options)
    return cge.fit(model, guide, data, epochs=epochs, batch_size=64, lr=1e-2, validation=None, progress=False)


@pytest.fixture(scope="module")
def raw(data):
    """The data in units far from standardised."""
    return replace(data, x=data.x * 7 + torch.linspace(-50, 900, data.g))


@pytest.fixture(scope="module")
def fit(raw):
    return fitted(raw)


@pytest.fixture(scope="module")
def fit_featured(featured):
    return fitted(featured, epochs=4)


@pytest.fixture(scope="module")
def post(fit, raw):
    return fit.posterior(raw)


def other_environments(data, names):
    """The profiles of some environments as a data set of its own, environments in the order of ``names``."""
    rows = data.environments(names)
    keep = [i for i, e in enumerate(data.env.tolist()) if e in rows]
    return cge.EnvironmentData(
        x=data.x[keep],
        env=torch.tensor([rows.index(int(data.env[i])) for i in keep]),
        gene_names=data.gene_names,
        env_names=names,
        env_features=None if data.env_features is None else data.env_features[rows],
        obs=data.obs.iloc[keep],
        control=[names.index("control")] if "control" in names else [],
    )


# Shapes


@pytest.mark.parametrize("which", ["fit", "fit_featured"])
def test_shapes(which, request, raw, featured):
    data = raw if which == "fit" else featured
    post = request.getfixturevalue(which).posterior(data)
    n, g, e = data.n, data.g, data.n_envs
    assert post.shift().loc.shape == post.aggregate().loc.shape == (e, D)
    assert post.targets().shape == (e, D) and post.latents().shape == post.latents("c").shape == (n, D)
    assert post.samples(3).shape == (3, n, D)
    assert post.reconstruct().shape == post.counterfactual("env 2").shape == (n, g)
    assert post.predict(n_samples=3).shape == (e, g)
    assert post.predict(["env 2", "control"], n_samples=3).shape == (2, g)
    assert post.log_evidence(3).shape == (n,)
    assert list(post.targets().index) == list(data.env_names)
    assert list(post.latents().index) == list(data.obs.index)


def test_latents_of_the_causes_follow_the_scm(raw):
    with cge.isolated(0):
        model = cge.CellModel(cge.DensePrior(raw, D), cge.LatentSCM(chain(D)), cge.LinearDecoder(D, raw.g))
        guide = cge.AmortizedGuide(model)
    post = cge.Posterior(model, guide, raw, Standardizer.fit(raw))
    z, c = (torch.tensor(post.latents(kind).to_numpy()) for kind in ("z", "c"))
    torch.testing.assert_close(c, model.scm(z).detach())
    with pytest.raises(ValueError, match="'z' .*'c'"):
        post.latents("x")


def test_samples_have_the_posterior_mean_and_a_seed(post):
    a, b = post.samples(400), post.samples(400)
    assert torch.equal(a, b) and not torch.equal(a, post.samples(400, seed=1))
    # 1,040 means of 400 draws each, sd below 1: six standard errors.
    assert (a.mean(0) - torch.tensor(post.latents().to_numpy())).abs().max() < 6 * a.std(0).max() / 20


def test_questions_leave_the_callers_random_state_alone(post):
    before = torch.get_rng_state()
    post.samples(3), post.predict(n_samples=2), post.log_evidence(2), post.targets(), post.reconstruct()
    assert torch.equal(torch.get_rng_state(), before)


# Bringing data into line


def test_genes_are_reordered_by_name(fit, raw, post):
    shuffled = raw.genes(list(raw.gene_names)[::-1])
    again = fit.posterior(shuffled)
    assert torch.equal(again.reconstruct(), post.reconstruct())
    extra = replace(raw, x=torch.cat([raw.x.new_zeros(raw.n, 1), raw.x], 1), gene_names=["new", *raw.gene_names])
    assert torch.equal(fit.posterior(extra).reconstruct(), post.reconstruct())
    with pytest.raises(DataError, match="missing from the data: 'gene 29'"):
        fit.posterior(raw.genes(list(raw.gene_names)[:-1]))


def test_environments_are_matched_by_name(fit, raw, post):
    names = ["env 7", "control", "env 2"]
    some = other_environments(raw, names)
    part = fit.posterior(some)
    rows = raw.environments(names)
    keep = [i for i, e in enumerate(raw.env.tolist()) if e in rows]
    torch.testing.assert_close(part.reconstruct(), post.reconstruct()[keep])
    torch.testing.assert_close(part.counterfactual("env 3"), post.counterfactual("env 3")[keep])
    assert part.latents().equals(post.latents().iloc[keep]) or np.allclose(
        part.latents(), post.latents().iloc[keep], atol=1e-5
    )
    targets = part.targets()
    assert np.allclose(targets.loc[names], post.targets().loc[names], atol=1e-4)


def test_an_unseen_environment_without_features_is_named(fit, raw):
    renamed = replace(raw, env_names=["control", "a new drug", *raw.env_names[2:]])
    with pytest.raises(DataError, match="'a new drug'.*not in training.*environment features"):
        fit.posterior(renamed)


def test_an_unseen_environment_without_profiles_does_no_harm(fit, raw, post):
    wider = replace(
        raw, env_names=[*raw.env_names, "never measured"], env_table=raw.env_table.reindex(range(raw.n_envs + 1))
    )
    torch.testing.assert_close(fit.posterior(wider).reconstruct(), post.reconstruct())


def test_unseen_environments_with_features_are_answered(fit_featured, featured):
    new = replace(featured, env_names=[f"new {e}" for e in range(featured.n_envs)], env_features=-featured.env_features)
    post = fit_featured.posterior(new)
    assert post.predict(n_samples=2).isfinite().all()
    assert not torch.equal(post.shift().loc, fit_featured.posterior(featured).shift().loc)


@pytest.mark.parametrize("columns", [None, 5])
def test_another_number_of_features_is_refused(fit_featured, featured, columns):
    features = None if columns is None else featured.env_features[:, :columns]
    with pytest.raises(DataError, match=f"6 environment features, the data have {columns or 'none'}"):
        fit_featured.posterior(replace(featured, env_features=features))


def test_align_of_the_training_data_is_the_training_data(raw):
    assert align(raw, raw.schema()) is raw


def test_the_controls_of_training_stay_controls(fit, raw, post):
    """Reference environments keep N(0, I) whatever the new data call their control."""
    relabelled = replace(raw, control=[3])
    torch.testing.assert_close(fit.posterior(relabelled).shift().loc, post.shift().loc)


# Interventions


def test_controls_do_not_move(post):
    assert not post.shift().loc[0].any() and not post.shift().log_scale[0].any()
    assert post.moves_latents


@pytest.mark.parametrize("odds", [0, -1.0, math.inf, math.nan])
def test_prior_odds_are_positive(post, odds):
    with pytest.raises(ConfigError, match=f"prior_odds .* a positive number, got {odds}"):
        post.targets(odds)


def test_a_string_is_one_environment_and_none_are_refused(post):
    torch.testing.assert_close(post.predict("env 2"), post.predict(["env 2"]))
    with pytest.raises(DataError, match=r"unknown environments \['e2'\]"):
        post.predict("e2")
    with pytest.raises(DataError, match="no environments were given; name one"):
        post.predict([])


def test_without_profiles_there_is_nothing_to_say_of_them(fit, raw, post):
    empty = fit.posterior(raw.rows([]))
    torch.testing.assert_close(empty.predict(), post.predict())
    torch.testing.assert_close(empty.shift().loc, post.shift().loc)
    questions = [empty.latents, empty.samples, empty.reconstruct, empty.replicate, empty.log_evidence, empty.aggregate]
    for question in [
        *questions,
        empty.log_likelihood,
        empty.targets,
        empty.effects,
        lambda: empty.counterfactual("env 1"),
    ]:
        with pytest.raises(DataError, match="have no profiles"):
            question()


@pytest.mark.parametrize("odds", [None, 0.2, 5.0])
def test_targets_are_probabilities_by_the_formula(post, raw, odds):
    targets = post.targets(odds)
    assert ((targets >= 0) & (targets <= 1)).all(axis=None)
    shift, (loc, scale) = post.shift(), post._encode()
    evidence = log_bayes_factor(loc, scale, raw.env, shift) - schwarz_penalty(shift, raw.env_counts)
    prior = 1 / (D - 1) if odds is None else odds
    expected = 1 / (1 + 1 / (prior * evidence.exp()))
    np.testing.assert_allclose(targets[1:], expected[1:], rtol=1e-6, atol=1e-12)
    assert (targets.loc["control"] == 0).all()


def test_known_laws_pay_no_penalty(truth, data):
    """Under the truth's own laws nothing was fitted to the environments, and what they do not move is no target."""
    prior, d = truth.prior, truth.prior.d
    model = cge.CellModel(prior, None, cge.LinearDecoder(d, data.g))
    post = cge.Posterior(model, cge.AmortizedGuide(model), data, Standardizer.fit(data))
    moved = post.shift().moved(0.0)
    assert moved.any() and not moved.all()
    evidence = log_bayes_factor(*post._encode(), data.env, post.shift())
    np.testing.assert_allclose(post.targets(1.0), torch.sigmoid(evidence) * moved, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("preset", [cge.basic_vae, cge.conditional_vae])
def test_a_prior_without_environments_has_no_targets(raw, preset):
    """It says how far the profiles' noise is from the reference, and that no intervention put it there."""
    post = fitted(raw, preset, epochs=1).posterior(raw)
    assert not post.moves_latents
    assert (post.targets() == 0).all(axis=None) and (post.targets(3.0) == 0).all(axis=None)
    table = post.effects()
    assert (table["probability"] == 0).all() and (table["shift"] != 0).all() and not len(post.discoveries(0.9))
    first = table.loc[table["shift"].abs().idxmax()]
    [label] = cge.plots.effects(table, top=1).get_yticklabels()
    assert first["environment"] in label.get_text() and first["latent"] in label.get_text()


def doses(data):
    """Each environment is a perturbation of its own, the control too."""
    return replace(data, env_features=torch.eye(data.n_envs))


FAMILIES = {
    "standard": cge.StandardPrior,
    "table": lambda data, d: cge.TablePrior(
        data, cge.NoiseShift(torch.ones(data.n_envs, d), torch.ones(data.n_envs, d))
    ),
    "dense": cge.DensePrior,
    "softmax": cge.SoftmaxPrior,
    "laplace": LaplacePrior,
    "horseshoe": cge.HorseshoePrior,
    "spike and slab": SpikeSlabPrior,
    "categorical": cge.CategoricalPrior,
    "dense perturbations": lambda data, d: cge.PerturbationPrior(data, lambda units: cge.DensePrior(units, d)),
    "spike and slab perturbations": lambda data, d: cge.PerturbationPrior(data, lambda units: SpikeSlabPrior(units, d)),
    "dose response": lambda data, d: cge.PerturbationPrior(data, lambda units: LaplacePrior(units, d), hill=True),
    "kernel": cge.KernelPrior,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_control_is_no_perturbation_whatever_the_prior(raw, family):
    """No target, no row among effects, discoveries and exported laws; reference law where the prior does not say it."""
    data = doses(raw) if "perturbations" in family or family in ("dose response", "kernel") else raw
    with cge.isolated(0):
        model = cge.CellModel(FAMILIES[family](data, D), None, cge.LinearDecoder(D, raw.g))
        guide = cge.AmortizedGuide(model, hidden=(8,))
    post = cge.Posterior(model, guide, data, Standardizer.fit(data))
    treated = list(data.env_names[1:])
    if family != "table":
        assert not post.shift().loc[0].any() and not post.shift().log_scale[0].any()
    assert (post.targets().loc["control"] == 0).all() and list(post.targets().index) == ["control", *treated]
    assert list(post.effects()["environment"].unique()) == treated
    assert set(post.discoveries(1.0)["environment"]) == set(treated)
    exported = post.to_arviz(2).posterior
    assert list(exported["environment"].values) == treated
    np.testing.assert_array_equal(exported["env_loc"].values[0], post.shift_draws(2).loc[:, 1:])


def test_all_controls_have_no_effects(raw, post):
    only = replace(raw, control=range(raw.n_envs))
    model, guide = cge.environment_vae(only, D, hidden=(4,))
    lonely = cge.Posterior(model, guide, only, Standardizer.fit(only))
    assert len(lonely.effects()) == len(lonely.discoveries()) == 0
    assert list(lonely.effects().columns) == list(post.effects().columns)


def test_a_posterior_says_what_it_is_of(post, raw):
    assert repr(post) == f"Posterior({D} latents; {raw})"


def test_a_single_latent_has_targets(raw):
    with cge.isolated(0):
        model, guide = cge.environment_vae(raw, 1, hidden=(4,))
    targets = cge.Posterior(model, guide, raw, Standardizer.fit(raw)).targets()
    assert targets.shape == (raw.n_envs, 1) and ((targets >= 0) & (targets <= 1)).all(axis=None)


def test_aggregate_is_the_moments_of_the_samples(post, raw):
    draws = post.samples(2000)
    shift = post.aggregate()
    centre = draws[:, raw.env == 0].mean((0, 1))
    for e in (0, 4):
        mine = draws[:, raw.env == e].flatten(0, 1)
        torch.testing.assert_close(shift.loc[e], mine.mean(0) - centre, atol=0.05, rtol=0)
        torch.testing.assert_close(shift.scale[e], mine.std(0), atol=0, rtol=0.05)
    few = post.model, post.guide, raw.rows(range(40)), post.scaler
    empty = cge.Posterior(*few, schema=post.schema).aggregate()
    assert not empty.loc[2:].any() and not empty.log_scale[2:].any()


def test_effects_say_what_the_profiles_show(post, raw):
    table = post.effects(0.9)
    assert list(table.columns) == ["environment", "latent", "shift", "low", "high", "sd_ratio", "probability"]
    assert len(table) == (raw.n_envs - 1) * D
    loc, scale = (v.double() for v in post._encode())
    row = table.set_index(["environment", "latent"]).loc[("env 3", "latent 1")]
    mine, n = loc[raw.env == 3, 1], 20
    between, within = float(mine.var()), float((scale[raw.env == 3, 1] ** 2).mean())
    half = 1.7291 * (between + within) / math.sqrt(between * n)
    assert row["shift"] == pytest.approx(float(mine.mean()), rel=1e-5)
    assert (row["high"] - row["low"]) / 2 == pytest.approx(half, rel=1e-3)
    assert row["sd_ratio"] == pytest.approx(math.sqrt(between + within), rel=1e-5)
    assert row["probability"] == post.targets().loc["env 3", "latent 1"]
    assert (post.effects(0.5)["high"] < table["high"]).all()
    with pytest.raises(ConfigError, match="between 0 and 1, got 90"):
        post.effects(90)


def test_discoveries_name_treated_environments_most_certain_first(post):
    found = post.discoveries(0.2)
    assert len(found) and "control" not in set(found["environment"])
    assert found["probability"].is_monotonic_decreasing and (found["fdr"] <= 0.2).all()
    assert len(post.discoveries(0.01)) <= len(found) <= len(post.discoveries(0.9))


@pytest.mark.parametrize("kind", ["targets", "direction"])
def test_similarity_is_symmetric_and_by_name(post, raw, kind):
    table = post.similarity(kind)
    assert list(table.index) == list(table.columns) == list(raw.env_names)
    np.testing.assert_allclose(table, table.T)
    np.testing.assert_allclose(np.diag(table), 1)


# Expression


def test_replicates_have_the_units_and_spread_of_the_data(post, raw):
    for new_profiles in (False, True):
        drawn = post.replicate(20, new_profiles=new_profiles)
        assert drawn.shape == (20, raw.n, raw.g)
        assert torch.equal(drawn, post.replicate(20, new_profiles=new_profiles))
        assert ((drawn.mean((0, 1)) - raw.x.mean(0)).abs() < 0.5 * raw.x.std(0)).all()
        assert ((drawn.flatten(0, 1).std(0) / raw.x.std(0)).log().abs() < 0.4).all()


def test_reconstructions_are_in_raw_units(post, raw):
    reconstruction = post.reconstruct()
    error = (reconstruction - raw.x).square().mean(0)
    assert (error.sum() / raw.x.var(0).sum()) < 0.6
    assert ((reconstruction.mean(0) - raw.x.mean(0)).abs() < 0.5 * raw.x.std(0)).all()


def test_predictions_are_in_raw_units_and_by_name(post, raw):
    everything = post.predict(n_samples=200)
    assert ((everything.mean(0) - raw.x.mean(0)).abs() < raw.x.std(0)).all()
    some = post.predict(["env 3", "control"], n_samples=20)
    assert torch.equal(some, post.predict(["env 3", "control"], n_samples=20))
    with cge.NoiseIntervention(list(range(D)), scale=1e-6):  # no Monte Carlo error left
        torch.testing.assert_close(
            post.predict(["env 3", "control"], 1), post.predict(n_samples=1)[[3, 0]], rtol=0, atol=1e-2
        )
    with pytest.raises(DataError, match="unknown environments.*nowhere"):
        post.predict(["nowhere"])


def test_predict_of_a_table_has_its_rows_in_its_order(post, raw, fit_featured, featured):
    names = ["env 5", "control", "env 2"]
    table = other_environments(raw, names)
    assert post.predict(table, 5).shape == (3, raw.g)
    torch.testing.assert_close(post.predict(table, 5), post.predict(names, 5))
    with_features = fit_featured.posterior(featured)
    table = other_environments(featured, names)
    torch.testing.assert_close(with_features.predict(table, 5), with_features.predict(names, 5))


def test_predict_sees_no_treated_profile(fit, raw):
    changed = replace(raw, x=torch.where((raw.env > 0).unsqueeze(1), raw.x + 100, raw.x))
    assert torch.equal(fit.posterior(raw).predict(n_samples=3), fit.posterior(changed).predict(n_samples=3))


def test_predict_answers_what_if(post):
    with cge.NoiseIntervention(1, loc=30.0):
        moved = post.predict(n_samples=5)
    assert not torch.allclose(moved, post.predict(n_samples=5))


@pytest.mark.parametrize("which", ["fit", "fit_featured"])
def test_the_counterfactual_to_the_own_environment_is_the_identity(which, request, raw, featured):
    data = raw if which == "fit" else featured
    post = request.getfixturevalue(which).posterior(data)
    for e in (0, 3, 12):
        moved = post.counterfactual(data.env_names[e])
        own = data.env == e
        torch.testing.assert_close(moved[own], data.x[own], rtol=1e-4, atol=1e-3)
        assert not torch.allclose(moved[~own], data.x[~own])


def test_counterfactuals_of_a_prior_without_environments_change_nothing(raw):
    post = fitted(raw, cge.basic_vae, epochs=1).posterior(raw)
    torch.testing.assert_close(post.counterfactual("env 2"), raw.x, rtol=1e-4, atol=1e-3)


def test_counterfactuals_use_the_decoder_of_the_other_environment(raw):
    post = fitted(raw, cge.conditional_vae, epochs=3).posterior(raw)
    moved = post.counterfactual("env 2")
    own = raw.env == 2
    torch.testing.assert_close(moved[own], raw.x[own], rtol=1e-4, atol=1e-3)
    assert not torch.allclose(moved[~own], raw.x[~own], atol=1.0)


def test_a_counterfactual_to_nowhere_is_refused(post):
    with pytest.raises(DataError, match="unknown environments.*nowhere"):
        post.counterfactual("nowhere")


def test_batches_do_not_matter(post, monkeypatch):
    from pyro_cge import posterior as module

    plain = post.reconstruct(), post.counterfactual("env 4"), post.latents()
    monkeypatch.setattr(module, "BATCH", 7)
    torch.testing.assert_close(post.reconstruct(), plain[0], rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(post.counterfactual("env 4"), plain[1], rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(post.latents(), plain[2], atol=1e-5)
    assert post.log_evidence(2).shape == (post.raw.n,)


# Fit to the data


def test_evidence_of_a_linear_gaussian_model_is_exact_in_raw_units():
    d, g, n, noise = 2, 5, 30, 0.6
    W = torch.linalg.qr(torch.randn(g, d)).Q * torch.tensor([2.0, 0.7])
    b = torch.randn(g)
    scaler = Standardizer(torch.randn(g) * 50, torch.rand(g) * 9 + 0.1, [f"gene {k}" for k in range(g)])
    x = torch.randn(n, d) @ W.T + b + noise * torch.randn(n, g)
    data = cge.EnvironmentData(scaler.inverse(x), torch.zeros(n, dtype=torch.long), scaler.gene_names, ["one"])
    model = cge.CellModel(cge.StandardPrior(data, d), None, cge.LinearDecoder(d, g))
    guide = cge.AmortizedGuide(model, hidden=())
    with torch.no_grad():
        model.decoder.linear.weight.copy_(W)
        model.decoder.linear.bias.copy_(b)
        model.decoder.set_scale(torch.full((g,), noise))
        variance = 1 / (1 + (W**2).sum(0) / noise**2)
        gain = variance.unsqueeze(1) * W.T / noise**2
        guide.head.weight.zero_()
        guide.head.weight[:d] = gain
        guide.head.bias[:d] = -gain @ b
        wanted = 0.5 * variance.log()
        unclamped = wanted.clone()
        for _ in range(50):
            unclamped += wanted - soft_clamp(unclamped, -7.0, 3.0)
        guide.head.bias[d:] = unclamped
    covariance = W @ W.T + noise**2 * torch.eye(g)
    raw_covariance = scaler.scale.unsqueeze(1) * covariance * scaler.scale
    law = torch.distributions.MultivariateNormal((b * scaler.scale + scaler.mean).double(), raw_covariance.double())
    post = cge.Posterior(model, guide, data, scaler)
    # The guide is exact: every importance weight is the evidence, one draw is enough.
    torch.testing.assert_close(post.log_evidence(1).double(), law.log_prob(data.x.double()), rtol=1e-3, atol=1e-2)


def test_evidence_grows_with_the_number_of_samples(post):
    assert post.log_evidence(100).mean() > post.log_evidence(1).mean()


def test_likelihood_of_profiles_is_the_evidence(truth):
    """A linear-Gaussian model with any guide: the integral over each profile's noise is a Gaussian density.

    2,000 importance draws; the largest error over the 60 profiles was 0.24 nats at worst over 20 seeds.
    """
    data = truth.sample(5, seed=4).rows(range(60))
    model = cge.CellModel(truth.prior, None, cge.LinearDecoder(5, data.g))
    guide = cge.AmortizedGuide(model, hidden=())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    cge.fit(model, guide, data, epochs=300, lr=1e-2, standardize=False, validation=None, progress=False)
    post = cge.Posterior(model, guide, data, Standardizer.identity(data.gene_names))
    W, b = model.decoder.linear.weight.double(), model.decoder.linear.bias.double()
    law = truth.prior.shift(data.batch()).select(data.env)
    covariance = (W * law.scale.double().unsqueeze(-2) ** 2) @ W.T + torch.diag(model.decoder.scale.double() ** 2)
    exact = torch.distributions.MultivariateNormal(law.loc.double() @ W.T + b, covariance).log_prob(data.x.double())
    found = post.log_likelihood(10, 2000)
    assert found.shape == (10, 60)
    torch.testing.assert_close(found, exact.expand(10, -1), rtol=0, atol=0.4)
    assert torch.equal(found, post.log_likelihood(10, 2000))
    with pytest.raises(ConfigError, match="two or more, got 1"):
        post.log_likelihood(3, 1)


def test_likelihoods_and_replicates_are_under_the_models_interventions(data):
    """``do(C_1 = 3)`` in treated environments: there ``x ~ N(3 w_1 + b, w_0 w_0ᵀ + diag(s²))``, to 4,000 importance draws."""
    hard = torch.full((data.n_envs, 2), torch.nan)
    hard[1:, 1] = 3.0
    few = data.rows(range(1, data.n, 10))
    with cge.isolated(0), torch.no_grad():
        scm, decoder = cge.LatentSCM.autoregressive(2), cge.LinearDecoder(2, data.g)
        model = cge.IntervenedCellModel(cge.StandardPrior(data, 2), scm, decoder, hard=hard)
        guide = cge.RefinedGuide(cge.AmortizedGuide(model, hidden=(4,)), steps=100)
        few = replace(few, x=model(few.batch().unobserved()))
    post = cge.Posterior(model, guide, few, Standardizer.identity(data.gene_names))
    treated = few.env > 0
    assert (post.latents("c").to_numpy()[treated, 1] == 3).all()
    assert (post.samples(2, kind="c")[:, treated, 1] == 3).all()
    replicates = post.replicate(2000)
    error = (replicates.mean(0) - post.reconstruct()) / (replicates.std(0) / 2000**0.5)
    assert error.abs().max() < 6  # 780 z-scores
    (w0, w1), b, s = decoder.linear.weight.T.detach(), decoder.linear.bias.detach(), decoder.scale.detach()
    law = torch.distributions.MultivariateNormal(3 * w1 + b, torch.outer(w0, w0) + torch.diag(s**2))
    found = post.log_likelihood(1, 4000)[0][treated]
    torch.testing.assert_close(found, law.log_prob(few.x[treated]).double(), rtol=0, atol=0.2)


# Stochastic priors


@pytest.fixture(scope="module")
def stochastic(raw):
    """One posterior for each kind of latent effect, a few steps trained."""
    posteriors = {}
    for name, kind in {"spike": SpikeSlabPrior, "laplace": LaplacePrior}.items():
        with cge.isolated(0):
            model = cge.CellModel(kind(raw, D), None, cge.LinearDecoder(D, raw.g))
            guide = cge.AmortizedGuide(model, "shift", hidden=(16,))
        fit = cge.fit(model, guide, raw, epochs=3, validation=None, progress=False)
        posteriors[name] = fit.posterior(raw)
    return posteriors


@pytest.mark.parametrize("name", ["spike", "laplace"])
def test_effects_of_a_stochastic_prior_are_its_draws(stochastic, name):
    post = stochastic[name]
    table, draws = post.effects(0.8), post.shift_draws(1000)
    treated = draws.loc[:, 1:].double()
    expected = np.quantile(treated, [0.1, 0.9], axis=0).reshape(2, -1)
    np.testing.assert_allclose(table[["low", "high"]].T, expected, atol=1e-6)
    np.testing.assert_allclose(table["shift"], treated.mean(0).flatten(), atol=1e-5)
    np.testing.assert_array_equal(table["probability"], post.targets().to_numpy()[1:].ravel())


def test_targets_of_a_spike_and_slab_are_the_guides(stochastic):
    post = stochastic["spike"]
    expected = post.guide.target_probability(post.every_environment()).detach()
    np.testing.assert_array_equal(post.targets(), expected)
    np.testing.assert_array_equal(post.targets(100.0), expected)
    assert (post.targets().loc["control"] == 0).all()


def test_draws_of_sites_noise_and_laws_belong_together(stochastic):
    """Exported effects give the exported laws, draw by draw, and the noise was drawn under them."""
    for name, site in {"spike": "env_target", "laplace": "env_shift"}.items():
        post = stochastic[name]
        out = post.to_arviz(30).posterior
        assert out[site].dims == ("chain", "draw", "environment", "latent")
        effects = {
            k.removeprefix("env_"): torch.tensor(out[k].values[0]) for k in ("env_target", "env_shift") if k in out
        }
        treated = torch.arange(1, post.raw.n_envs)
        batch = replace(post.every_environment(), envs=treated, is_control=torch.zeros(len(treated), dtype=torch.bool))
        law = post.model.prior.shift(batch, effects)
        np.testing.assert_allclose(law.loc.detach(), out["env_loc"].values[0], atol=1e-6)
        np.testing.assert_array_equal(out["z"].values[0], post.samples(30))


def test_a_refined_posterior_answers_everything(raw):
    with cge.isolated(0):
        model = cge.CellModel(SpikeSlabPrior(raw, D), None, cge.LinearDecoder(D, raw.g))
        guide = cge.AmortizedGuide(model, hidden=(16,))
    few = raw.rows(range(0, raw.n, 4))
    fit = cge.fit(model, guide, raw, epochs=1, validation=None, progress=False)
    post = fit.posterior(few, refine=2)
    out = post.to_arviz(4, log_likelihood=6, posterior_predictive=True)
    assert {"env_target", "env_shift"} <= set(out.posterior) and out.log_likelihood["x"].shape == (1, 4, few.n)
    assert len(post.effects()) == (few.n_envs - 1) * D and post.similarity().shape == (few.n_envs, few.n_envs)


# Export


def test_arviz_has_named_dimensions(post, raw):
    out = post.to_arviz(n_samples=6)
    assert set(out.groups()) == {"posterior", "observed_data"}
    dims = {
        "z": "profile latent",
        "c": "profile latent",
        "env_loc": "environment latent",
        "env_log_scale": "environment latent",
    }
    for name, expected in dims.items():
        assert out.posterior[name].dims == ("chain", "draw", *expected.split())
        assert out.posterior[name].shape[:2] == (1, 6)
    assert out.observed_data["x"].dims == ("profile", "gene")
    assert list(out.posterior["environment"].values) == list(raw.env_names[1:])
    assert list(out.posterior["latent"].values) == [f"latent {j}" for j in range(D)]
    assert list(out.observed_data["gene"].values) == list(raw.gene_names)
    assert list(out.posterior["profile"].values) == list(raw.obs.index)
    np.testing.assert_array_equal(out.observed_data["x"].values, raw.x.numpy())
    np.testing.assert_array_equal(out.posterior["z"].values[0], post.samples(6).numpy())
    np.testing.assert_array_equal(out.posterior["env_loc"].values[0, 2], post.shift().loc[1:].numpy())


@pytest.mark.parametrize("name", ["spike", "laplace"])
def test_arviz_summarises_draws_in_names_and_silence(stochastic, name, caplog):
    """As documented; the figures are those of effects()."""
    import arviz

    post = stochastic[name]
    summary = arviz.summary(post.to_arviz(1000), var_names="env_loc", kind="stats", round_to="none")
    table = post.effects()
    assert list(summary.index) == [
        f"env_loc[{e}, {j}]" for e, j in zip(table["environment"], table["latent"], strict=True)
    ]
    np.testing.assert_allclose(summary["mean"], table["shift"], atol=1e-5)
    assert summary.notna().all(axis=None) and not caplog.records


def test_arviz_groups_on_demand(post, raw):
    out = post.to_arviz(5, log_likelihood=7, posterior_predictive=True)
    assert set(out.groups()) == {"posterior", "log_likelihood", "posterior_predictive", "observed_data"}
    assert out.log_likelihood["x"].dims == ("chain", "draw", "profile")
    assert out.posterior_predictive["x"].dims == ("chain", "draw", "profile", "gene")
    np.testing.assert_array_equal(out.log_likelihood["x"].values[0], post.log_likelihood(5, 7))
    np.testing.assert_array_equal(out.posterior_predictive["x"].values[0], post.replicate(5))


def test_a_posterior_predictive_too_large_for_memory_is_refused(post, monkeypatch):
    monkeypatch.setattr("pyro_cge.arviz_export.LARGEST_DRAW", 1000)
    with pytest.raises(ConfigError, match="fewer draws, profiles .* or genes"):
        post.to_arviz(5, posterior_predictive=True)


@pytest.mark.parametrize("groups", [{}, {"log_likelihood": 2}])
def test_everything_an_export_holds_is_counted(post, raw, monkeypatch, groups):
    entries = raw.n * (raw.g + 2 * 5 * D + 5 * len(groups))
    monkeypatch.setattr("pyro_cge.arviz_export.LARGEST_DRAW", entries)
    post.to_arviz(5, **groups)
    monkeypatch.setattr("pyro_cge.arviz_export.LARGEST_DRAW", entries - 1)
    with pytest.raises(ConfigError, match=f"{entries:,} entries, more than .*profiles=False leaves out"):
        post.to_arviz(5, **groups)


def test_environments_are_exported_without_profiles(stochastic, monkeypatch):
    post = copy.copy(stochastic["spike"])
    whole = post.to_arviz(5).posterior
    post.raw = SimpleNamespace(
        **{name: getattr(post.raw, name) for name in ("n", "g", "obs", "gene_names", "is_control", "env_names")}
    )  # no x to be read
    monkeypatch.setattr("pyro_cge.arviz_export.LARGEST_DRAW", 0)
    out = post.to_arviz(5, profiles=False)
    assert out.groups() == ["posterior"] and set(whole) - set(out.posterior) == {"z", "c"}
    for name in out.posterior:
        np.testing.assert_array_equal(out.posterior[name], whole[name])


def test_exported_draws_belong_together_without_a_seed_too(raw):
    with cge.isolated(0):
        post = fitted(raw, cge.sams_vae, epochs=1).posterior(raw)
        out, other = (post.to_arviz(20, seed=None).posterior for _ in range(2))
    np.testing.assert_array_equal(out["env_loc"], out["env_target"] * out["env_shift"])
    assert (out["z"].values != other["z"].values).any()


@pytest.mark.filterwarnings("ignore:Estimated shape parameter")  # a profile or two hang on few importance draws
def test_arviz_compares_models_on_held_out_profiles(truth):
    """Data made by latents against a model of the right and one of too few: leave-one-out prefers the right one."""
    import arviz

    train, held_out = truth.sample(60, seed=1), truth.sample(20, seed=2)
    exported = {}
    for name, d in {"five latents": 5, "one latent": 1}.items():
        with cge.isolated(0):
            model = cge.CellModel(cge.DensePrior(train, d), None, cge.LinearDecoder(d, train.g))
            guide = FullCovarianceGuide(model, hidden=(32,))
        fit = cge.fit(model, guide, train, epochs=40, batch_size=64, lr=5e-3, validation=None, progress=False)
        exported[name] = fit.posterior(held_out).to_arviz(300, log_likelihood=1000)
    loo = arviz.loo(exported["five latents"], pointwise=True)
    assert loo.n_data_points == held_out.n and float((loo.pareto_k < 0.7).mean()) > 0.95 and loo.p_loo < 10
    table = arviz.compare(exported)
    assert list(table.index) == ["five latents", "one latent"]
    assert table["elpd_diff"].iloc[1] > 4 * table["dse"].iloc[1]


def test_nothing_said_carries_a_gradient(post, stochastic):
    slab = stochastic["spike"]
    said = [slab.shift().loc, slab.shift_draws(2).loc, slab.samples(2), slab.log_likelihood(2, 2), slab.replicate(1)]
    assert not any(v.requires_grad for v in said)
    said = [post.shift().loc, post.aggregate().loc, post.samples(2), post.reconstruct(), post.predict(n_samples=2),
            post.counterfactual("env 1"), post.log_evidence(2)]  # fmt: skip
    assert not any(v.requires_grad for v in said)

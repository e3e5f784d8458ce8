"""``fit_ensemble``: each member is its own single run, and together they are a mixture in common latents."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from safetensors.torch import save
from scipy import stats
from torch.func import vmap
from torch.nn import functional as F

import pyro_cge as cge
from pyro_cge.errors import ConfigError, NonFiniteLossError
from pyro_cge.metrics.disentanglement import Matching
from pyro_cge.models.priors import annealed
from pyro_cge.presets import PRESETS
from pyro_cge.train.ensembles import layers, noise, program
from pyro_cge.train.ensembles.ensemble import fit_ensemble
from pyro_cge.train.ensembles.mixture import EnsemblePosterior
from pyro_cge.train.loop import evaluate

SEEDS = [3, 5]
# Twenty-four steps or more, all but the first traced; every option that changes a step is in use.
OPTIONS = {
    "epochs": 4,
    "batch_size": 32,
    "lr": 1e-2,
    "kl_warmup": 2,
    "clip": 3.0,
    "schedule": "cosine",
    "progress": False,
}
environment = partial(cge.environment_vae, d=3, hidden=(8,))


def alone(build, ensemble, data, seed, **options):
    """The single run that a member is to equal."""
    first = ensemble.members[0]
    train, valid = (data.rows(first.train_rows), data.rows(first.valid_rows)) if len(first.valid_rows) else (data, None)
    with cge.isolated(seed):
        model, guide = build(data)
    return cge.fit(model, guide, train, validation=valid, seed=seed, **OPTIONS | options)


def assert_same(member, single, atol=1e-5):
    a, b = (fit.history.drop(columns="seconds") for fit in (member, single))
    pd.testing.assert_frame_equal(a, b, rtol=1e-5, atol=1e-5, check_dtype=False)
    assert member.best_epoch == single.best_epoch
    for part in ("model", "guide"):
        mine, theirs = getattr(member, part).state_dict(), getattr(single, part).state_dict()
        assert mine.keys() == theirs.keys()
        for name in mine:
            torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=atol)


# A member is its single run


@pytest.mark.parametrize("named", [True, False], ids=["all environments in a batch", "some of them"])
def test_a_member_is_the_run_of_its_seed_alone(data, featured, named):
    """Weights, order, noise, clipping, warm-up, schedule, best weights; with latent effects where shapes are ragged."""
    build = environment if named else partial(cge.sams_vae, d=3, hidden=(8,))
    data, options = (data, {}) if named else (featured, {"batch_size": 8, "epochs": 2})
    ensemble = fit_ensemble(build, data, seeds=SEEDS, **OPTIONS | options)
    for member, seed in zip(ensemble.members, SEEDS, strict=True):
        assert_same(member, alone(build, ensemble, data, seed, **options))


def kernel_free(prior, scm=None, conditioning="concat"):
    def build(data):
        model = cge.CellModel(prior(data, 4), scm and scm(), cge.MLPDecoder(4, data.g, hidden=(8,)))
        return model, cge.AmortizedGuide(model, conditioning, hidden=(8,))

    return build


BUILDS = {
    **{name: partial(preset, d=4, hidden=(8,)) for name, preset in PRESETS.items() if name != "adversarial"},
    **{f"{g} guide": partial(cge.structured_vae, d=4, hidden=(8,), guide=g) for g in ("full", "structured", "flow")},
    "film": partial(cge.environment_vae, d=4, hidden=(8,), conditioning="film"),
    "neural": partial(cge.structured_vae, d=4, hidden=(8,), mechanism="neural"),
    "sparse": partial(cge.environment_vae, d=4, hidden=(8,), decoder="sparse"),
    "student": partial(cge.environment_vae, d=4, hidden=(8,), likelihood="student_t"),
    "categorical": kernel_free(cge.CategoricalPrior, partial(cge.LatentSCM.layered, 2, 2, own_noise=0.3)),
    "horseshoe": kernel_free(cge.HorseshoePrior),
    "kernel": kernel_free(cge.KernelPrior),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("which", ["data", "featured"])
def test_every_model_is_its_single_run(which, name, request):
    data = request.getfixturevalue(which)
    if name == "kernel" and which == "data":
        pytest.skip("a kernel is between features")
    options = {"batch_size": 8, "epochs": 2} if which == "featured" else {}
    if name == "conditional" and which == "featured":
        options = {}
    ensemble = fit_ensemble(BUILDS[name], data, seeds=SEEDS, **OPTIONS | options)
    for member, seed in zip(ensemble.members, SEEDS, strict=True):
        assert_same(member, alone(BUILDS[name], ensemble, data, seed, **options))


@pytest.mark.slow
@pytest.mark.parametrize("objective", [cge.Mmd(), cge.Iwae()], ids=["mmd", "iwae"])
def test_other_objectives(data, objective):
    ensemble = fit_ensemble(environment, data, seeds=SEEDS, objective=objective, **OPTIONS)
    for member, seed in zip(ensemble.members, SEEDS, strict=True):
        assert_same(member, alone(environment, ensemble, data, seed, objective=objective))


@pytest.mark.slow
def test_counts(data):
    counts = replace(data, x=torch.poisson(data.x.abs()))
    build = partial(environment, likelihood="negative_binomial")
    ensemble = fit_ensemble(build, counts, seeds=SEEDS, **OPTIONS)
    for member, seed in zip(ensemble.members, SEEDS, strict=True):
        # Adam divides a gradient by its own size: the rounding of one near zero shows as a hundredth of a step.
        assert_same(member, alone(build, ensemble, counts, seed), atol=1e-4)


def test_each_member_stops_by_itself_with_its_best_weights(data):
    options = {"epochs": 40, "patience": 2, "lr": 0.1, "kl_warmup": 0, "schedule": None, "batch_size": 128}
    ensemble = fit_ensemble(environment, data, seeds=3, **OPTIONS | options)
    lengths = [len(fit.history) for fit in ensemble.members]
    assert len(set(lengths)) > 1 and min(lengths) < 40
    for seed, member in enumerate(ensemble.members):
        single = alone(environment, ensemble, data, seed, **options)
        # Rounding grows at this learning rate; epochs and losses still agree.
        assert (len(member.history), member.best_epoch) == (len(single.history), single.best_epoch)
        np.testing.assert_allclose(member.history["valid_loss"], single.history["valid_loss"], rtol=1e-2)
        assert member.history["valid_loss"].idxmin() == member.best_epoch
        held_out = member.posterior(data.rows(member.valid_rows)).data
        in_place = evaluate(member.model, member.guide, held_out, seed=seed)["loss"]
        assert in_place == pytest.approx(member.history["valid_loss"].min(), rel=1e-5)


def test_a_trace_changes_nothing(data, monkeypatch):
    histories = []
    for after in (0, 10**9):
        monkeypatch.setattr(program, "TRACE_AFTER", after)
        histories.append(fit_ensemble(environment, data, seeds=SEEDS, **OPTIONS | {"epochs": 2}).history)
    first, second = (h.drop(columns="seconds") for h in histories)
    pd.testing.assert_frame_equal(first, second, rtol=1e-6)


def test_company_does_not_matter_and_nothing_outside_changes(data):
    options = OPTIONS | {"epochs": 1, "validation": None}
    build = partial(cge.svae_plus, d=2, hidden=(4,))
    together = fit_ensemble(build, data, seeds=[9, 3, 7], **options)
    torch.manual_seed(77)
    before = torch.get_rng_state()
    by_itself = fit_ensemble(build, data, seeds=[7], **options)
    assert torch.equal(torch.get_rng_state(), before)
    assert not list(pyro.get_param_store().keys())
    assert_same(together.members[2], by_itself.members[0])


# Hyper-parameters


def test_members_differ_in_learning_rate_beta_and_options_of_the_builder(data):
    vary = {"lr": [1e-2, 3e-2], "beta": [1.0, 4.0], "temperature": [0.2, 2.0]}
    ensemble = fit_ensemble(environment, data, seeds=[3], vary=vary, **OPTIONS | {"epochs": 1})
    assert ensemble.table[["lr", "beta", "temperature"]].drop_duplicates().shape == (8, 3)
    for k in (1, 6):
        row = ensemble.table.iloc[k]
        options = {"lr": row["lr"], "objective": cge.Elbo(beta=row["beta"]), "epochs": 1}
        build = partial(environment, temperature=row["temperature"])
        assert_same(ensemble.members[k], alone(build, ensemble, data, 3, **options))
        assert ensemble.members[k].settings["lr"] == row["lr"]


def test_members_of_other_shapes_or_options_are_programs_of_their_own(data):
    build = partial(cge.dense_vae, hidden=(4,))
    vary = {"d": [2, 3], "moves": ["loc", "scale"]}
    ensemble = fit_ensemble(build, data, seeds=[3], vary=vary, **OPTIONS | {"epochs": 1})
    assert [fit.model.d for fit in ensemble.members] == [2, 2, 3, 3]
    assert [fit.model.prior.moves for fit in ensemble.members] == ["loc", "scale"] * 2
    for k in (0, 1):
        row = ensemble.table.iloc[k]
        assert_same(ensemble.members[k], alone(partial(build, d=2, moves=row["moves"]), ensemble, data, 3, epochs=1))
    with pytest.raises(ConfigError, match=r"numbers of latents \[2, 3\]"):
        ensemble.posterior(data)


def test_temperatures_are_annealed_in_each_member(data):
    def on_epoch(epoch, model):
        annealed(model.prior, 2.0, 0.1, 2)(epoch)

    ensemble = fit_ensemble(environment, data, seeds=[3], on_epoch=on_epoch, **OPTIONS | {"epochs": 2})
    with cge.isolated(3):
        model, guide = environment(data)
    first = ensemble.members[0]
    train, valid = data.rows(first.train_rows), data.rows(first.valid_rows)
    schedule = annealed(model.prior, 2.0, 0.1, 2)
    single = cge.fit(model, guide, train, validation=valid, seed=3, on_epoch=schedule, **OPTIONS | {"epochs": 2})
    assert_same(ensemble.members[0], single)


def test_options_that_are_no_tensors_may_change_between_epochs(data):
    """A trace takes them for granted, so it is made anew."""
    objective = cge.Mmd()

    def on_epoch(epoch, model=None):
        objective.weight = [100.0, 1.0, 30.0, 0.0][epoch]

    ensemble = fit_ensemble(environment, data, seeds=[3], objective=objective, on_epoch=on_epoch, **OPTIONS)
    single = alone(environment, ensemble, data, 3, objective=objective, on_epoch=on_epoch)
    assert_same(ensemble.members[0], single)


# The pieces of the program


@pytest.mark.parametrize("lead", [(), (2,)])
def test_gradients_of_the_batched_layers(lead):
    x, weight, bias = (torch.randn(*lead, *s, dtype=torch.float64, requires_grad=True) for s in [(4, 3), (5, 3), (5,)])
    assert torch.autograd.gradcheck(layers.MemberLinear.apply, (x, weight, bias))
    assert torch.autograd.gradcheck(lambda x: layers.MemberRows.apply(x, torch.tensor([1, 1, 3])), x)


@pytest.mark.parametrize("dims", [(0, 0), (None, 0), (0, None)])
@pytest.mark.parametrize("samples", [(), (6,)], ids=["rows", "samples of rows"])
def test_batched_layers_are_a_loop_over_members(dims, samples):
    table, weight = torch.randn(2, *samples, 4, 3), torch.randn(2, 5, 3)
    index = torch.tensor([[0, 3, 3], [2, 1, 0]])
    given = [t if d == 0 else t[0] for t, d in zip((table, index), dims, strict=True)]

    def program(x, index, weight):
        with layers.MemberMode([]):
            return F.linear(x.index_select(-2, index), weight)

    result = vmap(program, (*dims, 0))(*given, weight)
    for k in range(2):
        x, i = (t[k] if d == 0 else t for t, d in zip(given, dims, strict=True))
        torch.testing.assert_close(result[k], F.linear(x.index_select(-2, i), weight[k]))


def test_draws_are_those_of_torch():
    def draw():
        weights = torch.rand(7, 4)
        return [torch.empty(3, 5).normal_(), torch.randn(4), torch.rand_like(weights), torch.multinomial(weights, 1)]

    with cge.isolated(1):
        expected = draw()
    with cge.isolated(1), layers.MemberMode() as mode:
        found = draw()
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    numbers = noise.MemberNoise([1], "", torch.device("cpu")).draw([mode.taken], mode.taken)
    with layers.MemberMode([n[0] for n in numbers]):
        again = draw()
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))


# Results


@pytest.fixture(scope="module")
def ensemble(data):
    return fit_ensemble(environment, data, seeds=3, **OPTIONS | {"epochs": 3})


def test_members_are_whole_fits_of_their_own(ensemble, data):
    for member in ensemble.members:
        assert save(member.model.state_dict()) and save(member.guide.state_dict())
        assert member.posterior(data).effects().notna().all(axis=None)
    storage = [p.untyped_storage().data_ptr() for m in ensemble.members for p in m.model.parameters()]
    assert len(set(storage)) == len(storage)
    assert repr(ensemble) == "Ensemble(3 members, 3 seeds)"
    assert len(ensemble.history) == 9 and ensemble.history["member"].nunique() == 3


def test_the_best_member_has_the_lowest_negative_elbo(ensemble):
    values = [(f.history["valid_kl"] - f.history["valid_log_likelihood"])[f.best_epoch] for f in ensemble.members]
    np.testing.assert_allclose(ensemble.table["elbo"], values)
    assert ensemble.best is ensemble.members[int(np.argmin(values))]


def test_select(ensemble):
    assert ensemble.select(seed=1).members == [ensemble.members[1]]
    with pytest.raises(ConfigError, match="do not differ in"):
        ensemble.select(width=3)
    with pytest.raises(ConfigError, match="no member has"):
        ensemble.select(seed=99)


class Reflected:
    """A posterior whose latents are renumbered and reflected: the same thing said in other words."""

    def __init__(self, posterior, order, sign):
        self.posterior, self.order, self.sign = posterior, order, sign
        self.raw, self.model = posterior.raw, posterior.model

    def latents(self, kind="z"):
        own = self.posterior.latents(kind)
        return pd.DataFrame(own.to_numpy()[:, self.order] * self.sign, own.index, own.columns)

    def targets(self):
        own = self.posterior.targets()
        return pd.DataFrame(own.to_numpy()[:, self.order], own.index, own.columns)

    def shift(self):
        return self.aligned(self.posterior.shift())

    def shift_draws(self, n_samples=100, seed=0):
        return self.aligned(self.posterior.shift_draws(n_samples, seed))

    def aligned(self, law):
        return law.aligned(torch.tensor(self.order), torch.tensor(self.sign, dtype=torch.float32))

    def effects(self, level=0.9, seed=0):
        own = self.posterior.effects(level, seed)
        d, table = len(self.order), own.copy()
        for name in ("shift", "low", "high", "sd_ratio", "probability"):
            values = own[name].to_numpy().reshape(-1, d)[:, self.order]
            table[name] = (values * self.sign if name in ("shift", "low", "high") else values).ravel()
        table[["low", "high"]] = np.sort(table[["low", "high"]].to_numpy(), axis=1)
        return table

    def __getattr__(self, name):
        return getattr(self.posterior, name)


def test_a_mixture_of_one_thing_in_other_words_is_that_thing(ensemble, data):
    one = ensemble.members[0].posterior(data)
    mixed = EnsemblePosterior([one, Reflected(one, [2, 0, 1], [-1, 1, -1]), Reflected(one, [1, 2, 0], [1, 1, -1])])
    assert mixed.reference is one
    pd.testing.assert_frame_equal(mixed.latents(), one.latents(), check_dtype=False, rtol=1e-5, atol=1e-6)
    pd.testing.assert_frame_equal(mixed.targets(), one.targets(), check_dtype=False)
    table, own = mixed.effects(), one.effects()
    assert table["between"].max() < 1e-6
    pd.testing.assert_frame_equal(table[own.columns], own, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mixed.shift().loc, one.shift().loc)
    torch.testing.assert_close(mixed.shift().log_scale, one.shift().log_scale)
    draws, expected = mixed.shift_draws(2), one.shift_draws(2)
    torch.testing.assert_close(draws.loc, expected.loc.repeat(3, 1, 1))
    torch.testing.assert_close(draws.log_scale, expected.log_scale.repeat(3, 1, 1))
    torch.testing.assert_close(mixed.predict(n_samples=2), one.predict(n_samples=2))
    torch.testing.assert_close(mixed.reconstruct(), one.reconstruct())


def test_intervals_hold_what_members_do_not_know_and_do_not_agree_on(ensemble, data):
    """Law of total variance, worked by hand for two members: estimates 1 and 3, standard errors 0.3 and 0.4."""
    one = ensemble.members[0].posterior(data)
    z = stats.norm.ppf(0.9)

    def saying(shift, error):
        posterior = copy.copy(one)
        table = one.effects().assign(shift=shift, low=shift - z * error, high=shift + z * error)
        posterior.effects = lambda level, seed: table
        return posterior

    table = EnsemblePosterior([saying(1.0, 0.3), saying(3.0, 0.4)]).effects(level=0.8)
    error = np.sqrt((0.09 + 0.16) / 2 + 2.0)
    np.testing.assert_allclose(table["shift"], 2.0)
    np.testing.assert_allclose(table["between"], np.sqrt(2.0))
    np.testing.assert_allclose(table["high"] - table["shift"], z * error)
    np.testing.assert_allclose(table["shift"] - table["low"], z * error)


@pytest.fixture(scope="module")
def uncertain(data):
    """Members whose laws are drawn: a spike and slab each."""
    return fit_ensemble(partial(cge.sams_vae, d=3, hidden=(8,)), data, seeds=SEEDS, **OPTIONS | {"epochs": 1})


def two_laws(one, means, sds):
    """Members alike but for the draws of their laws, ``N(mean, sd²)`` each."""
    posteriors = []
    for mean, sd in zip(means, sds, strict=True):
        posterior = copy.copy(one)
        law = one.shift()
        posterior.shift = lambda law=law, mean=mean: cge.NoiseShift(law.loc * 0 + mean, law.log_scale * 0 + mean / 10)

        def draws(n_samples, seed, law=law, mean=mean, sd=sd):
            with cge.isolated(seed, "here"):
                loc = mean + sd * torch.randn(n_samples, *law.loc.shape)
            return cge.NoiseShift(loc, loc / 10)

        posterior.shift_draws = draws
        posteriors.append(posterior)
    return EnsemblePosterior(posteriors)


def test_draws_have_the_moments_of_the_mixture(ensemble, data):
    """Mean ½ (1 + 3) = 2 and variance ½ (0.3² + 0.4²) + 1 = 1.125 by the law of total variance, by hand.

    2 × 20,000 draws of each of 39 entries: the mean has standard error 0.0025 (the members' shares are fixed), the
    variance 0.006 or less; six of each.
    """
    mixed = two_laws(ensemble.members[0].posterior(data), [1.0, 3.0], [0.3, 0.4])
    law, draws = mixed.shift(), mixed.shift_draws(20_000)
    torch.testing.assert_close(law.loc, torch.full_like(law.loc, 2.0))
    torch.testing.assert_close(law.log_scale, torch.full_like(law.loc, 0.2))
    assert draws.loc.shape == (40_000, data.n_envs, 3)
    assert (draws.loc.mean(0) - 2).abs().max() < 6 * 0.0025
    assert (draws.loc.var(0) - 1.125).abs().max() < 6 * 0.006
    first, second = draws.loc.split(20_000)  # chains of their own: standard error of a correlation 0.007
    assert np.abs(np.corrcoef(first[:, 1, 0], second[:, 1, 0])[0, 1]) < 6 * 0.007


def test_members_are_chains_and_rhat_is_their_agreement(ensemble, data):
    """Between and within variance by hand: ``r² = (n − 1) / n + B / W``; where members say the same, 1."""
    import arviz

    one, n = ensemble.members[0].posterior(data), 400
    for means, differ in (([1.0, 3.0], True), ([2.0, 2.0], False)):
        mixed = two_laws(one, means, [0.3, 0.4])
        out = mixed.to_arviz(n)
        env_loc = out.posterior["env_loc"]
        assert env_loc.dims == ("chain", "draw", "environment", "latent") and env_loc.shape == (
            2,
            n,
            data.n_envs - 1,
            3,
        )
        draws = mixed.shift_draws(n).loc.reshape(2, n, data.n_envs, 3)[:, :, 1:]
        np.testing.assert_array_equal(env_loc.values, draws)
        halves = draws.double().reshape(2, 2, n // 2, -1).flatten(0, 1)  # split chains
        between, within = halves.mean(1).var(0), halves.var(1).mean(0)
        expected = ((n // 2 - 1) / (n // 2) + between / within).sqrt()
        found = arviz.rhat(out, var_names="env_loc", method="split")["env_loc"].values.ravel()
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert (found > 2).all() if differ else (found < 1.1).all()


def test_every_site_is_exported_in_the_references_latents(uncertain, data):
    few = data.rows(range(60))
    one = uncertain.members[0].posterior(few)
    order, sign = [2, 0, 1], [-1.0, 1.0, -1.0]
    mixed = EnsemblePosterior([one, one])
    matching = Matching(np.array(order), np.array(sign), np.ones(3))
    mixed.stability = replace(mixed.stability, matchings=[mixed.stability.matchings[0], matching])
    out = mixed.to_arviz(5, seed=3, log_likelihood=4, posterior_predictive=True)
    parts = [one.to_arviz(5, seed=3 + k, log_likelihood=4, posterior_predictive=True) for k in range(2)]
    assert set(out.groups()) == set(parts[0].groups())
    for group in parts[0].groups():
        for name in parts[0][group].data_vars:
            values = [part[group][name].values for part in parts]
            if group == "observed_data":
                np.testing.assert_array_equal(out[group][name].values, values[0])
                continue
            if group == "posterior":
                directed = name in ("z", "c", "env_loc", "env_shift")
                values[1] = values[1][..., order] * (sign if directed else 1)
            np.testing.assert_array_equal(out[group][name].values, np.concatenate(values))
    assert {"env_target", "env_shift"} <= set(out.posterior)
    assert out.posterior["z"].dtype == np.float32


def test_the_mixture_is_summarised_in_names_and_silence(uncertain, data, caplog):
    import arviz

    summary = arviz.summary(uncertain.posterior(data).to_arviz(50), var_names="env_loc")
    assert list(summary.index[:2]) == ["env_loc[env 1, latent 0]", "env_loc[env 1, latent 1]"]
    assert not caplog.records


def test_discoveries_of_a_mixture_are_what_members_agree_on(ensemble, data):
    """Probabilities ½ (1 + 1), ½ (1 + 0.9) and ½ (1 + 0): expected false shares 0, 0.025 and 0.55 / 3, by hand."""
    one = ensemble.members[0].posterior(data)

    def saying(probability):
        posterior = copy.copy(one)
        column = np.zeros(len(one.effects()))
        column[:3] = probability
        posterior.effects = lambda level, seed=0: one.effects(level).assign(probability=column)
        return posterior

    mixed = EnsemblePosterior([saying([1, 1, 1]), saying([1, 0.9, 0])])
    found = mixed.discoveries(0.05)
    np.testing.assert_allclose(found["probability"], [1, 0.95])
    np.testing.assert_allclose(found["fdr"], [0, 0.025])
    assert "between" in found and len(mixed.discoveries(0.2)) == 3


def test_a_mixture_says_what_it_is_of(ensemble, data):
    assert repr(ensemble.posterior(data)) == f"EnsemblePosterior({len(ensemble.members)} members, 3 latents; {data})"


def test_the_ensembles_posterior(ensemble, data):
    posterior = ensemble.posterior(data)
    table = posterior.effects()
    assert (
        len(table) == (data.n_envs - 1) * 3
        and "control" not in set(table["environment"])
        and (table["low"] < table["high"]).all()
    )
    assert posterior.latents().shape == (data.n, 3) and posterior.predict(n_samples=2).shape == (data.n_envs, data.g)
    single = ensemble.select(seed=1).posterior(data)
    own = ensemble.members[1].posterior(data)
    pd.testing.assert_frame_equal(single.latents(), own.latents(), check_dtype=False, rtol=1e-6)
    pd.testing.assert_frame_equal(single.effects()[own.effects().columns], own.effects(), rtol=1e-5, atol=1e-7)


# What cannot be


def test_a_member_whose_loss_is_not_finite_ends_alone(data):
    options = OPTIONS | {"schedule": None}
    with pytest.warns(RuntimeWarning, match=r"epoch 0, batch \d.* seed 3 with {'lr': 1e\+30}.*other members go on"):
        ensemble = fit_ensemble(environment, data, seeds=[3], vary={"lr": [1e-3, 1e30]}, **options)
    sound = fit_ensemble(environment, data, seeds=[3], vary={"lr": [1e-3]}, **options)
    assert_same(ensemble.members[0], sound.members[0])
    assert ensemble.best is ensemble.members[0] and np.isnan(ensemble.table["elbo"][1])
    assert all(p.isfinite().all() for p in ensemble.members[1].model.parameters())


@pytest.mark.filterwarnings("ignore:the loss is no longer finite:RuntimeWarning")
def test_an_ensemble_without_a_sound_member_is_an_error(data):
    with pytest.raises(NonFiniteLossError, match="seed 3"):
        fit_ensemble(environment, data, seeds=[3, 4], **OPTIONS | {"lr": 1e30, "schedule": None})


def test_counts_and_other_values_are_not_mixed(data):
    counts = replace(data, x=data.x.abs().round())
    with pytest.raises(ConfigError, match="train them apart"):
        fit_ensemble(environment, counts, seeds=1, vary={"likelihood": ["poisson", "gaussian"]}, **OPTIONS)


@pytest.mark.parametrize("seeds", [[-1], [0.2, 1.9], ["a"]])
def test_seeds_that_are_none_are_refused(data, seeds):
    with pytest.raises(ConfigError, match="seed must be a whole number"):
        fit_ensemble(environment, data, seeds=seeds, **OPTIONS)


def test_numbers_of_numpy_are_numbers(data):
    assert len(fit_ensemble(environment, data, seeds=np.int64(2), **OPTIONS | {"epochs": np.int64(1)})) == 2


def learned(data):
    model = cge.CellModel(cge.SoftmaxPrior(data, 3), cge.LearnedSCM(3), cge.LinearDecoder(3, data.g))
    return model, cge.AmortizedGuide(model, None, hidden=(4,))


@pytest.mark.parametrize(
    ("build", "objective", "what"),
    [(learned, None, "LearnedSCM"), (environment, cge.Irm(), "Irm")],
)
def test_what_cannot_run_as_a_batch_is_named(data, build, objective, what):
    with pytest.raises(ConfigError, match=rf"{what}.* cannot run as a batch .*one after the other"):
        fit_ensemble(build, data, seeds=SEEDS, objective=objective, **OPTIONS)


def test_an_objective_with_weights_of_its_own_is_refused(data):
    from pyro_cge.objectives.adversarial import AdversarialPrior

    with pytest.raises(ConfigError, match=r"AdversarialPrior has weights of its own.*one after the other"):
        fit_ensemble(environment, data, objective=AdversarialPrior(data, 3), **OPTIONS)


@pytest.mark.parametrize("build", [cge.environment_vae, (1, 2)])
def test_what_cannot_build_is_refused_with_an_example(data, build):
    with pytest.raises(ConfigError, match=r"partial\(cge.environment_vae, d=5\)"):
        fit_ensemble(build, data, seeds=SEEDS, **OPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "needs a seed"),
        ({"seeds": [1, 1]}, "seeds must differ"),
        ({"vary": {"lr": []}}, "needs a seed and a value"),
        ({"vary": {"lr": [0.0]}}, "lr must be positive"),
        ({"vary": {"beta": [1.0]}, "objective": cge.Mmd()}, "Mmd has no beta"),
        ({"epochs": 0}, "epochs must be a whole number"),
    ],
)
def test_settings_that_make_no_sense_are_refused(data, options, message):
    with pytest.raises(ConfigError, match=message):
        fit_ensemble(environment, data, **OPTIONS | options)


def test_data_on_disk_are_refused():
    with pytest.raises(ConfigError, match="in memory, got SimpleNamespace"):
        fit_ensemble(environment, SimpleNamespace(), **OPTIONS)

"""``fit``: reproducible, keeps the best weights, stops, holds out, and says what went wrong and where."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import pyro_cge as cge
from pyro_cge.errors import ConfigError, DataError, NonFiniteLossError
from pyro_cge.train.loop import evaluate

SECONDS = ["seconds"]


def parts(data, seed=0, d=3):
    with cge.isolated(seed):
        return cge.environment_vae(data, d, hidden=(8,))


def run(data, seed=0, weights=0, **options):
    model, guide = parts(data, weights)
    options = {"epochs": 4, "batch_size": 32, "progress": False, "lr": 1e-2} | options
    return cge.fit(model, guide, data, seed=seed, **options)


def weights_of(fit):
    return {f"{k}.{n}": v for k, m in (("model", fit.model), ("guide", fit.guide)) for n, v in m.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Scaled:
    """The ELBO, times a number that depends on the call."""

    def __init__(self, factor):
        self.elbo, self.factor, self.calls = cge.Elbo(), factor, 0

    def __call__(self, model, guide, batch, *, warmup=1.0):
        terms = self.elbo(model, guide, batch, warmup=warmup)
        factor = self.factor(self.calls) if torch.is_grad_enabled() else 1.0
        self.calls += torch.is_grad_enabled()
        return {**terms, "loss": terms["loss"] * factor}


# Reproducible


@pytest.mark.parametrize("which", ["data", "featured"])
def test_a_seed_decides_history_and_weights_to_the_bit(which, request):
    data = request.getfixturevalue(which)
    first, again, other = run(data, seed=3), run(data, seed=3), run(data, seed=4)
    assert first.history.drop(columns=SECONDS).equals(again.history.drop(columns=SECONDS))
    assert same(weights_of(first), weights_of(again))
    assert not same(weights_of(first), weights_of(other))


def test_the_callers_random_state_does_not_matter_and_is_untouched(data):
    first = run(data)
    torch.manual_seed(77)
    np.random.seed(5)
    before, state = torch.get_rng_state(), np.random.get_state()[1].copy()
    again = run(data)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == state).all()
    assert same(weights_of(first), weights_of(again))


def test_the_data_are_not_changed(data):
    x, env = data.x.clone(), data.env.clone()
    run(data, epochs=1)
    assert torch.equal(data.x, x) and torch.equal(data.env, env)


def test_nothing_enters_the_param_store_or_pyros_settings(data):
    import pyro
    from pyro.infer.util import is_validation_enabled

    before = is_validation_enabled()
    run(data, epochs=1)
    assert not list(pyro.get_param_store().keys())
    assert is_validation_enabled() == before


# Learning


def test_the_loss_falls(data):
    history = run(data, epochs=15).history
    assert history["train_loss"].iloc[-1] < 0.8 * history["train_loss"].iloc[0]
    assert history["valid_loss"].iloc[-1] < 0.8 * history["valid_loss"].iloc[0]


def test_history_has_a_row_an_epoch(data):
    fit = run(data)
    assert fit.history["epoch"].tolist() == [0, 1, 2, 3]
    terms = ["loss", "log_likelihood", "kl"]
    assert set(fit.history) == {
        "epoch",
        "seconds",
        "grad_norm",
        *(f"{p}_{t}" for p in ("train", "valid") for t in terms),
    }
    assert np.isfinite(fit.history.to_numpy()).all()
    valid = fit.history
    np.testing.assert_allclose(valid["valid_loss"], valid["valid_kl"] - valid["valid_log_likelihood"], rtol=1e-5)


def test_warmup_weighs_the_kl(data):
    history = run(data, epochs=3, kl_warmup=2).history
    # Batches differ in size by little: the epoch's mean loss is the weighted mean of its terms.
    weight = np.array([0.5, 1.0, 1.0])
    np.testing.assert_allclose(
        history["train_loss"], weight * history["train_kl"] - history["train_log_likelihood"], rtol=1e-4
    )


@pytest.mark.parametrize("which", ["data", "featured"])
def test_the_best_weights_are_in_place(which, request):
    data = request.getfixturevalue(which)
    model, guide = parts(data)

    def spoil(epoch):
        if epoch == 5:
            with torch.no_grad():
                model.decoder.likelihood.log_scale.sub_(2.0)

    options = {"epochs": 7, "batch_size": 32, "lr": 1e-3, "progress": False, "patience": None}
    fit = cge.fit(model, guide, data, on_epoch=spoil, **options)
    held_out = fit.scaler.transform(data.rows(fit.valid_rows))
    assert fit.best_epoch == fit.history["valid_loss"].idxmin() == 4
    loss = evaluate(fit.model, fit.guide, held_out, seed=0)["loss"]
    assert loss == pytest.approx(fit.history["valid_loss"].min(), rel=1e-5)


def test_without_validation_the_last_weights_stay(data):
    fit = run(data, validation=None)
    assert fit.best_epoch == 3 and len(fit.valid_rows) == 0 and len(fit.train_rows) == data.n
    assert "valid_loss" not in fit.history


def test_early_stopping_stops(data):
    fit = run(data, epochs=200, lr=0.3, patience=2, kl_warmup=0)
    assert len(fit.history) < 200
    assert len(fit.history) - 1 - fit.best_epoch == 2


def test_patience_does_not_count_the_warmup(data):
    fit = run(data, epochs=30, lr=1e-12, patience=2, kl_warmup=8)
    assert len(fit.history) >= 10


def test_evaluate_does_not_depend_on_the_batch_size(data, monkeypatch):
    from pyro_cge.train import loop as module

    class Mean:
        """A term that is exact: no draws."""

        def __call__(self, model, guide, batch, *, warmup=1.0):
            return {"loss": batch.x.square().mean()}

    model, guide = parts(data)
    monkeypatch.setattr(module, "EVALUATION_BATCH", 37)
    small = evaluate(model, guide, data, Mean())["loss"]
    assert small == pytest.approx(float(data.x.square().mean()), rel=1e-5)


def test_evaluate_leaves_the_random_state_alone(data):
    model, guide = parts(data)
    before = torch.get_rng_state()
    evaluate(model, guide, data)
    assert torch.equal(torch.get_rng_state(), before)


# Holding out


def test_whole_environments_are_held_out_where_they_have_features(featured):
    fit = run(featured, epochs=1, validation=0.25)
    train, valid = (set(featured.env[rows].tolist()) for rows in (fit.train_rows, fit.valid_rows))
    assert not train & valid
    assert len(valid) == 3 and not valid & set(featured.control)
    assert sorted([*fit.train_rows, *fit.valid_rows]) == list(range(featured.n))


def test_profiles_are_held_out_where_environments_are_only_names(data):
    fit = run(data, epochs=1, validation=0.25)
    assert sorted([*fit.train_rows, *fit.valid_rows]) == list(range(data.n))
    # Binomial: six standard deviations.
    assert abs(len(fit.valid_rows) - 0.25 * data.n) < 6 * (data.n * 0.25 * 0.75) ** 0.5
    assert len(set(data.env[fit.train_rows].tolist())) == data.n_envs


def test_an_environment_known_by_name_keeps_a_profile_to_train_on(data):
    """Sixty environments of one or two profiles: a tenth of the profiles is held out, no environment."""
    env = torch.arange(90) % 60
    rare = cge.EnvironmentData(
        x=torch.randn(90, 6), env=env, gene_names=list("abcdef"), env_names=[f"e{i}" for i in range(60)], control=[0]
    )
    model, guide = cge.basic_vae(rare, 2, hidden=(4,))
    for seed in range(5):
        fitted = cge.fit(model, guide, rare, epochs=1, validation=0.3, seed=seed, progress=False)
        assert set(env[fitted.train_rows].tolist()) == set(range(60)) and len(fitted.valid_rows)


def test_profiles_are_held_out_where_no_environment_has_two():
    single = cge.EnvironmentData(
        x=torch.randn(40, 6), env=torch.arange(40), gene_names=list("abcdef"), env_names=[f"e{i}" for i in range(40)]
    )
    fitted = cge.fit(*cge.basic_vae(single, 2, hidden=(4,)), single, epochs=1, validation=0.2, progress=False)
    assert 1 <= len(fitted.valid_rows) <= 20 and len(fitted.train_rows) + len(fitted.valid_rows) == 40


@pytest.mark.parametrize("validation", ["20%", (0.1,), 1.5, True])
def test_a_validation_that_is_none_is_refused(data, validation):
    with pytest.raises(ConfigError, match="validation is a fraction between 0 and 1, data, or None"):
        cge.fit(*cge.basic_vae(data, 2, hidden=(4,)), data, epochs=1, validation=validation, progress=False)


def test_a_validation_set_of_no_profiles_is_refused(data):
    with pytest.raises(DataError, match="no profiles: pass validation=None"):
        cge.fit(*cge.basic_vae(data, 2, hidden=(4,)), data, epochs=1, validation=data.rows([]), progress=False)


def test_a_model_made_for_other_data_is_refused(data, featured):
    model, guide = cge.environment_vae(data, 2, hidden=(4,))
    turned = replace(data, env_names=list(data.env_names)[::-1])
    for other, what in [
        (data.genes(list(data.gene_names)[:-1]), r"genes, not"),
        (turned, "environments in another order"),
        (featured, "no environment features, not"),
    ]:
        with pytest.raises(DataError, match=rf"made for other data .*{what}"):
            cge.fit(model, guide, other, epochs=1, progress=False)


def test_numbers_of_numpy_are_numbers(data, tmp_path):
    model, guide = cge.basic_vae(data, 2, hidden=(4,))
    options = {"epochs": np.int64(1), "batch_size": np.int32(64), "lr": np.float32(1e-3), "seed": np.int64(3)}
    fitted = cge.fit(
        model, guide, data, **options, validation=np.float32(0.25), checkpoint=tmp_path / "run", progress=False
    )
    assert (tmp_path / "run").exists() and len(fitted.valid_rows)


def test_a_validation_set_of_ones_own_is_used(data):
    train, valid = data.rows(range(0, data.n, 2)), data.rows(range(1, data.n, 2))
    fit = run(train, validation=valid)
    assert len(fit.train_rows) == train.n
    loss = evaluate(fit.model, fit.guide, fit.scaler.transform(valid), seed=0)["loss"]
    assert loss == pytest.approx(fit.history["valid_loss"].min(), rel=1e-5)


def test_a_validation_set_is_brought_into_gene_order(data):
    train, valid = data.rows(range(0, data.n, 2)), data.rows(range(1, data.n, 2))
    shuffled = valid.genes(list(valid.gene_names)[::-1])
    a, b = run(train, validation=valid), run(train, validation=shuffled)
    assert a.history.drop(columns=SECONDS).equals(b.history.drop(columns=SECONDS))


def test_a_validation_set_is_brought_into_environment_order(data):
    train, valid = data.rows(range(0, data.n, 2)), data.rows(range(1, data.n, 2))
    last = data.n_envs - 1
    reversed_ = replace(
        valid,
        env=last - valid.env,
        env_names=list(valid.env_names)[::-1],
        control=[last],
        env_table=data.env_table[::-1],
    )
    a, b = run(train, validation=valid), run(train, validation=reversed_)
    assert a.history.drop(columns=SECONDS).equals(b.history.drop(columns=SECONDS))


def test_scaling_is_fitted_on_the_training_part_only(data):
    fit = run(data, epochs=1)
    train = data.x[fit.train_rows].double()
    torch.testing.assert_close(fit.scaler.mean.double(), train.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fit.scaler.scale.double(), train.std(0, correction=0), rtol=1e-4, atol=1e-4)


def test_without_standardising_the_model_sees_the_data_as_they_are(data):
    seen = []

    class Spy(cge.Elbo):
        def __call__(self, model, guide, batch, *, warmup=1.0):
            seen.append(batch.x.clone())
            return super().__call__(model, guide, batch, warmup=warmup)

    fit = run(data, epochs=1, standardize=False, validation=None, objective=Spy())
    assert torch.equal(fit.scaler.mean, torch.zeros(data.g)) and torch.equal(fit.scaler.scale, torch.ones(data.g))
    assert torch.equal(torch.cat(seen).sort(0).values, data.x.sort(0).values)


def test_every_profile_is_seen_once_an_epoch(data):
    seen = []

    class Spy(cge.Elbo):
        def __call__(self, model, guide, batch, *, warmup=1.0):
            seen.append(batch.index)
            return super().__call__(model, guide, batch, warmup=warmup)

    run(data, epochs=2, validation=None, objective=Spy())
    order = torch.cat(seen).reshape(2, data.n)
    assert torch.equal(order.sort(1).values, torch.arange(data.n).expand(2, -1))
    assert not torch.equal(order[0], order[1])


def test_on_epoch_is_called_before_each_epoch(data):
    called = []
    run(data, on_epoch=called.append)
    assert called == [0, 1, 2, 3]


def test_temperature_is_annealed(data):
    model, guide = parts(data)
    from pyro_cge.models.priors import annealed

    cge.fit(model, guide, data, epochs=3, validation=None, progress=False, on_epoch=annealed(model.prior, 2.0, 0.5, 3))
    assert float(model.prior.temperature) == pytest.approx(0.5)


def test_an_optimizer_of_ones_own_is_used(data):
    made = []

    def sgd(parameters):
        made.append(torch.optim.SGD(parameters, lr=1e-3, momentum=0.9))
        return made[0]

    before = weights_of(run(data, epochs=1, validation=None, lr=1e-30))
    fit = run(data, epochs=2, optimizer=sgd, validation=None)
    assert len(made) == 1 and not same(before, weights_of(fit))


def test_gradients_are_clipped(data):
    plain = run(data, epochs=1, validation=None, kl_warmup=0)
    assert plain.history["grad_norm"].iloc[0] > 0.1
    steps = {}
    for clip in (1e-3, 1e3):
        steps[clip] = run(
            data,
            epochs=1,
            validation=None,
            clip=clip,
            batch_size=data.n,
            optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
        )
    start = torch.nn.utils.parameters_to_vector([p for m in parts(data) for p in m.parameters()])
    end = torch.nn.utils.parameters_to_vector(
        [p for m in (steps[1e-3].model, steps[1e-3].guide) for p in m.parameters()]
    )
    assert float((end - start).detach().norm()) == pytest.approx(1e-3, rel=1e-2)


def test_settings_record_every_number(data):
    settings = run(data, seed=5).settings
    assert settings["seed"] == 5 and settings["lr"] == 1e-2 and settings["batch_size"] == 32
    assert settings["data"] == data.digest


def test_the_progress_bar_goes_to_standard_error(data, capsys):
    run(data, epochs=1, progress=True)
    captured = capsys.readouterr()
    assert captured.out == "" and "train" in captured.err
    run(data, epochs=1, progress=False)
    assert capsys.readouterr().err == ""


# Things that go wrong


def test_a_loss_that_is_not_finite_is_reported_with_epoch_and_batch(data):
    per_epoch = -(-data.n // 32)
    objective = Scaled(lambda call: float("nan") if call == per_epoch + 2 else 1.0)
    model, guide = parts(data)
    with pytest.raises(NonFiniteLossError, match="loss became nan") as caught:
        cge.fit(model, guide, data, objective=objective, epochs=3, batch_size=32, validation=None, progress=False)
    assert (caught.value.epoch, caught.value.batch) == (1, 2)
    assert isinstance(caught.value, ArithmeticError)
    assert all(p.isfinite().all() for m in (model, guide) for p in m.parameters())


def test_the_weights_are_those_from_before_the_failing_step(data):
    per_epoch = -(-data.n // 32)
    good = run(data, epochs=1, validation=None)
    model, guide = parts(data)
    with pytest.raises(NonFiniteLossError):
        cge.fit(
            model, guide, data, epochs=2, batch_size=32, lr=1e-2, validation=None, progress=False,
            objective=Scaled(lambda call: float("inf") if call == per_epoch else 1.0),
        )  # fmt: skip
    now = {f"{k}.{n}": v for k, m in (("model", model), ("guide", guide)) for n, v in m.state_dict().items()}
    assert same(weights_of(good), now)


@pytest.mark.parametrize(
    ("poison", "site"),
    [
        (lambda model, guide: guide.head.weight.data.fill_(float("nan")), "z"),
        (lambda model, guide: model.decoder.likelihood.log_scale.data.fill_(float("nan")), "x"),
        (lambda model, guide: model.prior.network.table.weight.data.fill_(float("nan")), "env_loc|z"),
    ],
    ids=["encoder", "decoder", "prior"],
)
def test_the_site_at_fault_is_named(data, poison, site):
    model, guide = parts(data)
    poison(model, guide)
    with pytest.raises(NonFiniteLossError) as caught:
        cge.fit(model, guide, data, epochs=1, validation=None, progress=False)
    assert caught.value.site in site.split("|")
    assert f"site {caught.value.site!r}" in str(caught.value)


def test_a_gradient_that_is_not_finite_is_named(data):
    model, guide = parts(data)
    model.decoder.likelihood.log_scale.register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(NonFiniteLossError) as caught:
        cge.fit(model, guide, data, epochs=1, validation=None, progress=False)
    assert caught.value.site == "gradient of model.decoder.likelihood.log_scale"
    assert all(p.isfinite().all() for m in (model, guide) for p in m.parameters())


def test_a_held_out_loss_that_is_not_finite_is_never_the_best(data):
    class Spoiled(cge.Elbo):
        evaluations = 0

        def __call__(self, model, guide, batch, *, warmup=1.0):
            terms = super().__call__(model, guide, batch, warmup=warmup)
            if torch.is_grad_enabled():
                return terms
            Spoiled.evaluations += 1
            return {k: v * float("nan") for k, v in terms.items()} if Spoiled.evaluations == 1 else terms

    try:
        fit = run(data, objective=Spoiled(), epochs=4)
    except NonFiniteLossError:
        return
    assert fit.best_epoch > 0


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs": -3}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"lr": -1.0}, "lr"),
        ({"lr": 0.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"clip": 0.0}, "clip"),
        ({"patience": 0}, "patience"),
        ({"kl_warmup": -1}, "kl_warmup"),
        ({"kl_start": -5.0}, "kl_start"),
        ({"kl_start": float("nan")}, "kl_start"),
        ({"epochs": 2.5}, "epochs"),
        ({"validation": 1.5}, "validation"),
        ({"validation": 0.0}, "validation"),
        ({"validation": 1.0}, "validation"),
        ({"validation": -0.5}, "validation"),
        ({"resume": True}, "checkpoint"),
    ],
)
def test_settings_that_make_no_sense_are_refused(data, options, name):
    with pytest.raises(ConfigError, match=name):
        run(data, **options)


def test_empty_data_are_refused(data):
    model, guide = parts(data)
    with pytest.raises(DataError, match="no profiles"):
        cge.fit(model, guide, data.rows([]), progress=False)


def test_data_too_few_to_hold_out_are_refused(data, featured):
    for few in (data.rows([0]), featured.rows([0, 1]), featured.rows([20, 21])):
        with pytest.raises(DataError, match="cannot hold out"):
            run(few)


def test_one_profile_cannot_be_standardised(data):
    with pytest.raises(DataError, match="two profiles or more"):
        run(data.rows([0]), validation=None)
    assert len(run(data.rows([0]), validation=None, standardize=False).history) == 4


def test_a_constant_gene_is_named(data):
    x = data.x.clone()
    x[:, 3] = 1.5
    with pytest.raises(DataError, match="'gene 3'"):
        run(replace(data, x=x))


def test_a_validation_set_without_the_genes_is_refused(data):
    with pytest.raises(DataError, match="missing from the data"):
        run(data, validation=data.genes(list(data.gene_names)[:5]))

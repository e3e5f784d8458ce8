"""The adversarial prior: who learns what, what the terms mean, and the fresh critic that judges it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import pyro_cge as cge
from pyro_cge.errors import CheckpointError, ConfigError, DataError
from pyro_cge.train.loop import evaluate

SECONDS = ["seconds"]


def adversarial(data, d=3, seed=0, **options):
    with cge.isolated(seed):
        return cge.AdversarialPrior(data, d, hidden=(8,), **options)


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def terms_and_parts(small, objective, warmup=1.0):
    """Terms of the objective, and base loss and critic's cross-entropy computed beside it from the same draws."""
    data, model, guide = small
    batch = data.batch()
    torch.manual_seed(3)
    terms = objective(model, guide, batch, warmup=warmup)
    torch.manual_seed(3)
    base = objective.base(model, guide, batch, warmup=warmup)["loss"]
    torch.manual_seed(3)
    z = guide(batch)
    critic = F.cross_entropy(objective.logits(objective.counterfactual(z, batch), batch), batch.env)
    return terms, base, critic


def test_attention_sums_to_one(small):
    data, *_ = small
    alpha = adversarial(data).alpha(data.batch())
    assert alpha.shape == (4, 3)
    torch.testing.assert_close(alpha.sum(-1), torch.ones(4))
    assert (alpha > 0).all()


def test_the_counterfactual_is_a_mixture_of_noise_and_the_reference(small):
    data, *_ = small
    objective, batch = adversarial(data), data.batch()
    z = torch.randn(2, 30, 3)
    torch.manual_seed(1)
    mixed = objective.counterfactual(z, batch)
    torch.manual_seed(1)
    epsilon = torch.randn(2, 30, 3)
    alpha = objective.alpha(batch)[batch.env]
    torch.testing.assert_close(mixed, alpha * epsilon + (1 - alpha) * z)


@pytest.mark.parametrize("warmup", [1.0, 0.25])
def test_loss_is_minus_the_papers_objective(small, warmup):
    objective = adversarial(small[0], weight=4.0)
    terms, base, critic = terms_and_parts(small, objective, warmup)
    torch.testing.assert_close(terms["critic"], critic)
    torch.testing.assert_close(terms["loss"], base - 4 * warmup * critic)
    assert set(terms) == {"loss", "log_likelihood", "kl", "critic", "critic_accuracy"}
    assert 0 <= terms["critic_accuracy"] <= 1


def test_critic_learns_to_tell_and_the_others_to_hide(small):
    """Gradients: critic ``+∇CE``; attention and encoder ``∇base − weight · ∇CE``; decoder ``∇base``."""
    _data, model, guide = small
    objective = adversarial(small[0], weight=4.0)
    terms, base, critic = terms_and_parts(small, objective)
    modules = {"guide": guide, "decoder": model.decoder, "objective": objective}

    def of(loss):
        for module in (model, guide, objective):
            module.zero_grad()
        loss.backward(retain_graph=True)
        return {
            f"{m}.{k}": torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for m, module in modules.items()
            for k, p in module.named_parameters()
        }

    whole, of_base, of_critic = of(terms["loss"]), of(base), of(critic)
    for name, value in whole.items():
        sign = 1.0 if name.startswith(("objective.critic", "objective.environment")) else -4.0
        torch.testing.assert_close(value, of_base[name] + sign * of_critic[name], rtol=1e-4, atol=1e-5, msg=name)
    for name in ("guide.head.weight", "objective.attention.table.weight", "objective.critic.0.0.weight"):
        assert of_critic[name].abs().max() > 0, name
    assert of_critic["decoder.likelihood.log_scale"].abs().max() == 0


def test_environments_without_profiles_are_no_answer(small):
    data, model, guide = small
    part = data.rows((data.env != 2).nonzero().flatten())
    objective = adversarial(data)
    logits = objective.logits(torch.randn(part.n, 3), part.batch())
    assert (logits[:, 2] == -torch.inf).all() and logits[:, [0, 1, 3]].isfinite().all()
    terms = objective(model, guide, part.batch())
    terms["loss"].backward()
    assert all(g.isfinite().all() for g in gradients(objective).values())
    assert objective.environment.table.weight.grad[2].abs().max() == 0


def test_environments_known_by_features_can_be_new(featured):
    """The critic scores representations, so environments that were not in training have one too."""
    model, guide = cge.basic_vae(featured, 3, hidden=(8,))
    objective = adversarial(featured)
    fit = cge.fit(model, guide, featured, objective=objective, epochs=2, validation=0.25, progress=False)
    assert not set(featured.env[fit.train_rows].tolist()) & set(featured.env[fit.valid_rows].tolist())
    assert fit.history["valid_critic"].notna().all()
    # Three candidates: far from what a critic over all 13 would reach by chance.
    assert fit.history["valid_critic"].iloc[-1] < math.log(13)


def test_many_environments_are_scored_among_those_of_the_batch():
    data = cge.EnvironmentData(
        x=torch.randn(600, 6),
        env=torch.arange(600) % 300,
        gene_names=list("abcdef"),
        env_names=[f"env {e}" for e in range(300)],
    )
    model, guide = cge.basic_vae(data, 3, hidden=(8,))
    objective = adversarial(data)
    batch = data.batch(torch.arange(20))
    assert objective.logits(torch.randn(20, 3), batch).shape == (20, 20)
    assert objective(model, guide, batch)["loss"].isfinite()


@pytest.mark.parametrize(
    "base", [cge.Elbo(beta=0.0), cge.Iwae(4), cge.Mmd(), cge.Irm()], ids=lambda b: type(b).__name__
)
def test_it_wraps_other_objectives(small, base):
    data, model, guide = small
    objective = adversarial(data, base=base)
    terms = objective(model, guide, data.batch())
    terms["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters())


def test_it_can_be_wrapped(small, data):
    """Its parameters are those of what wraps it, so that ``fit`` finds them."""
    inner = adversarial(small[0])
    assert len(list(cge.Irm(inner).parameters())) == len(list(inner.parameters())) > 0


# In fit


def run(data, epochs=4, weights=0, **options):
    with cge.isolated(weights):
        model, guide = cge.basic_vae(data, 3, hidden=(8,))
    objective = options.pop("objective", None) or adversarial(data, weight=2.0)
    fit = cge.fit(
        model, guide, data, objective=objective, epochs=epochs, batch_size=32, lr=1e-2, progress=False, **options
    )
    return fit, objective


def state(fit, objective):
    modules = {"model": fit.model, "guide": fit.guide, "objective": objective}
    return {f"{m}.{k}": v for m, module in modules.items() for k, v in module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_fit_trains_every_parameter(data):
    before = adversarial(data, weight=2.0).state_dict()
    _fit, objective = run(data)
    assert all(not torch.equal(before[k], v) for k, v in objective.state_dict().items())


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(data, tmp_path):
    whole = run(data, epochs=6)
    path = tmp_path / "checkpoint.safetensors"
    run(data, epochs=3, checkpoint=path)
    resumed = run(
        data, epochs=6, checkpoint=path, resume=True, weights=9, objective=adversarial(data, seed=9, weight=2.0)
    )
    assert same(state(*whole), state(*resumed))
    assert whole[0].history.drop(columns=SECONDS).equals(resumed[0].history.drop(columns=SECONDS))


def test_a_checkpoint_of_another_objective_is_refused(data, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    run(data, epochs=1, checkpoint=path)
    with pytest.raises(CheckpointError, match="weight=3"):
        run(data, checkpoint=path, resume=True, objective=adversarial(data, weight=3.0))


def test_settings_describe_it_in_a_line(data):
    fit, _ = run(data, epochs=1)
    assert fit.settings["objective"] == (f"AdversarialPrior(base={cge.Elbo()!r}, d=3, hidden=(8,), weight=2.0)")


def test_a_gradient_that_is_not_finite_is_named(data):
    objective = adversarial(data)
    objective.environment.table.weight.register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(cge.errors.NonFiniteLossError) as caught:
        run(data, objective=objective, validation=None)
    assert caught.value.site == "gradient of objective.environment.table.weight"
    assert all(p.isfinite().all() for p in objective.parameters())


def test_best_weights_include_the_objectives(data):
    fit, objective = run(data, epochs=6)
    held_out = fit.scaler.transform(data.rows(fit.valid_rows))
    loss = evaluate(fit.model, fit.guide, held_out, objective, seed=0)["loss"]
    assert loss == pytest.approx(fit.history["valid_loss"].min(), rel=1e-5)


# What it is for


@pytest.mark.slow
def test_attention_hides_the_environment_from_a_fresh_critic():
    """Six environments that each move one of three latents by ±3.

    A fresh critic finds the environment from Z and hardly from Z_count (the standard error of an accuracy is 0.02): what
    hides it is an attention on the one latent moved.
    """
    environments = cge.simulate.offsets([[3, 0, 0], [-3, 0, 0], [0, 3, 0], [0, -3, 0], [0, 0, 3], [0, 0, -3]])
    data = cge.simulate.independent(n_latents=3, n_genes=20, environments=environments).sample(200)
    with cge.isolated(0):
        model, guide = cge.basic_vae(data, 3, hidden=(32,))
        objective = cge.AdversarialPrior(data, 3, weight=10.0)
    fit = cge.fit(
        model, guide, data, objective=objective, epochs=400, batch_size=300, lr=1e-2, kl_warmup=40, validation=None,
        progress=False,
    )  # fmt: skip
    batch = fit.scaler.transform(data).batch()
    with torch.no_grad():
        z = guide(batch)
        seen, hidden = (cge.fresh_critic(v, data.env) for v in (z, objective.counterfactual(z, batch)))
    assert seen.accuracy > 0.8
    assert hidden.accuracy < hidden.chance + 0.1
    assert objective.alpha(batch).max(-1).values.min() > 0.8


def test_fresh_critic_knows_signal_from_noise():
    """Two environments 2 sd apart: Bayes accuracy Φ(1) = 0.841, standard error 0.012. Noise: 0.5. Five sigma."""
    env = torch.arange(2000) % 2
    z = torch.randn(2000, 3)
    noise = cge.fresh_critic(z, env)
    assert noise.chance == 0.5 and abs(noise.accuracy - 0.5) < 5 * noise.error
    z[:, 1] += 2.0 * env
    signal = cge.fresh_critic(z, env)
    assert abs(signal.accuracy - 0.841) < 5 * 0.013
    assert signal.error == pytest.approx(0.013, abs=0.001)
    assert cge.fresh_critic(z, env) == signal


def test_chance_is_the_majority_class():
    env = (torch.arange(1000) % 10 == 0).long()
    critique = cge.fresh_critic(torch.randn(1000, 2), env)
    assert critique.chance == 0.9


def test_too_few_profiles_for_a_fresh_critic_are_refused():
    with pytest.raises(DataError, match="smallest of 2"):
        cge.fresh_critic(torch.randn(12, 2), torch.tensor([0] * 10 + [1] * 2))
    with pytest.raises(DataError, match="1 environments"):
        cge.fresh_critic(torch.randn(12, 2), torch.zeros(12, dtype=torch.long))


def test_settings_that_make_no_sense_are_refused(data):
    with pytest.raises(ConfigError, match="-1"):
        cge.AdversarialPrior(data, 3, weight=-1)
    with pytest.raises(ConfigError, match="hidden"):
        cge.AdversarialPrior(data, 3, hidden=())


def test_environments_are_looked_up_and_not_counted(small):
    """A batch with its environments in another order gives the same scores, reordered."""
    data, *_ = small
    objective = adversarial(data)
    batch = data.batch()
    order = torch.tensor([2, 0, 3, 1])
    shuffled = replace(
        batch,
        envs=batch.envs[order],
        env=torch.argsort(order)[batch.env],
        env_counts=batch.env_counts[order],
        is_control=batch.is_control[order],
    )
    z = torch.randn(30, 3)
    torch.testing.assert_close(objective.logits(z, shuffled), objective.logits(z, batch)[:, order])

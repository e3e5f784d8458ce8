"""The IRM penalty: its closed form, its zeros, what it composes with, and that training lowers it."""

from __future__ import annotations

from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_cge as cge
from pyro_cge.errors import ConfigError
from pyro_cge.objectives.irm import squared_means
from pyro_cge.train.loop import evaluate


def by_hand(model, data, z):
    """``Σ_e n_e/n · (mean_i Σ_k m_ik (m_ik − x_ik) / s_k²)²``, environment by environment."""
    m = model.mean(z, data.batch())
    gradient = (m * (m - data.x) / model.decoder.scale**2).sum(-1).detach()
    return sum(
        float((data.env == e).float().mean() * gradient[data.env == e].mean() ** 2) for e in data.env.unique().tolist()
    )


def draw(model, guide, data, objective):
    """Terms of the objective, and the noise it drew."""
    torch.manual_seed(7)
    terms = objective(model, guide, data.batch())
    torch.manual_seed(7)
    return terms, guide(data.batch())


@pytest.mark.parametrize("preset", ["environment_vae", "conditional_vae"])
@pytest.mark.parametrize("decoder", ["linear", "mlp"])
def test_penalty_is_the_closed_form_for_a_gaussian(small, preset, decoder):
    data, *_ = small
    model, guide = getattr(cge, preset)(data, 3, hidden=(5,), decoder=decoder)
    terms, z = draw(model, guide, data, cge.Irm())
    assert terms["irm"].item() == pytest.approx(by_hand(model, data, z), rel=1e-4)
    assert terms["irm"] > 0


def test_only_the_loss_of_the_base_changes(small):
    data, model, guide = small
    plain, _ = draw(model, guide, data, cge.Elbo(beta=2.0))
    terms, _ = draw(model, guide, data, cge.Irm(cge.Elbo(beta=2.0), weight=0.3))
    for name in ("log_likelihood", "kl"):
        torch.testing.assert_close(terms[name], plain[name])
    torch.testing.assert_close(terms["loss"], plain["loss"] + 0.3 * terms["irm"])


def test_warmup_weighs_the_penalty(small):
    data, model, guide = small
    torch.manual_seed(0)
    half = cge.Irm(cge.Elbo(beta=0.0), weight=0.3)(model, guide, data.batch(), warmup=0.5)
    torch.testing.assert_close(half["loss"], 0.15 * half["irm"] - half["log_likelihood"])


def test_gradient_of_the_penalty_is_that_of_the_closed_form(small):
    """Second derivatives: autograd through the penalty against autograd through the formula."""
    data, model, guide = small
    terms, _ = draw(model, guide, data, cge.Irm())
    terms["irm"].backward()
    penalised = [p.grad.clone() for p in [*model.decoder.parameters(), *guide.parameters()] if p.grad is not None]
    model.zero_grad(), guide.zero_grad()
    torch.manual_seed(7)
    m = model.mean(guide(data.batch()), data.batch())
    squared_means((m * (m - data.x) / model.decoder.scale**2).sum(-1), data.batch()).backward()
    formula = [p.grad.clone() for p in [*model.decoder.parameters(), *guide.parameters()] if p.grad is not None]
    assert len(penalised) == len(formula) >= 9
    for a, b in zip(penalised, formula, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_equal_environments_have_equal_gradients(small):
    """Copies of one environment: the penalty is the square of the pooled gradient, however many copies there are."""
    data, *_ = small
    one = data.rows((data.env == 0).nonzero().flatten())
    model, guide = cge.basic_vae(data, 3, hidden=(5,), decoder="linear")

    def penalty(copies):
        env = torch.arange(copies).repeat_interleave(one.n)
        copied = replace(one, x=one.x.repeat(copies, 1), env=env, obs=replace(data).obs.iloc[:0])
        z = torch.arange(one.n * 3.0).reshape(-1, 3).sin().repeat(copies, 1)
        fixed = pyro.poutine.condition(guide, data={"z": z})
        with pyro.validation_enabled(False):
            return cge.Irm(Fixed(z))(model, fixed, copied.batch())["irm"]

    torch.testing.assert_close(penalty(2), penalty(1))
    torch.testing.assert_close(penalty(4), penalty(1))


class Fixed:
    """The reconstruction term at given noise."""

    def __init__(self, z):
        self.z = z

    def __call__(self, model, guide, batch, *, warmup=1.0):
        trace = pyro.poutine.trace(pyro.poutine.condition(model, data={"z": self.z})).get_trace(batch)
        log_likelihood = trace.nodes["x"]["fn"].log_prob(batch.x).mean()
        return {"loss": -log_likelihood, "log_likelihood": log_likelihood}


def test_a_decoder_right_in_every_environment_has_no_penalty():
    """Least squares through the origin leaves no gradient of the scale; the wrong slope in one environment does."""
    z = torch.linspace(-2, 2, 40).reshape(-1, 1)
    env = torch.arange(40) % 2
    model_of = lambda data: cge.CellModel(cge.StandardPrior(data, 1), None, cge.LinearDecoder(1, 2))  # noqa: E731

    def penalty(slopes):
        x = torch.tensor(slopes)[env].unsqueeze(-1) * z @ torch.tensor([[1.0, -2.0]])
        data = cge.EnvironmentData(x=x, env=env, gene_names=["a", "b"], env_names=["e", "f"])
        model = model_of(data)
        with torch.no_grad():
            model.decoder.linear.weight.copy_(torch.tensor([[1.0], [-2.0]]))
            model.decoder.linear.bias.zero_()
        return cge.Irm(Fixed(z))(model, None, data.batch())["irm"].item()

    assert penalty([1.0, 1.0]) == pytest.approx(0, abs=1e-8)
    assert penalty([0.5, 1.5]) > 1.0


def test_other_likelihoods_are_rebuilt_by_their_decoder(small):
    """A Laplace likelihood: ``d/dw |x − w m| / b = −m sign(x − m) / b``."""
    data, *_ = small

    class LaplaceLikelihood(cge.GaussianLikelihood):
        def forward(self, mean):
            return dist.Laplace(mean, self.scale).to_event(1)

    model = cge.CellModel(cge.StandardPrior(data, 3), None, cge.LinearDecoder(3, 6, likelihood=LaplaceLikelihood(6)))
    guide = cge.AmortizedGuide(model, hidden=(5,))
    terms, z = draw(model, guide, data, cge.Irm())
    m = model.mean(z, data.batch())
    gradient = (-m * (data.x - m).sign() / model.decoder.scale).sum(-1)
    torch.testing.assert_close(terms["irm"], squared_means(gradient, data.batch()), rtol=1e-4, atol=1e-6)


def test_penalties_add_up_whatever_the_order(small):
    data, model, guide = small
    one, _ = draw(model, guide, data, cge.Irm(cge.Mmd(weight=2.0), weight=3.0))
    other, _ = draw(model, guide, data, cge.Mmd(cge.Irm(weight=3.0), weight=2.0))
    assert one.keys() == other.keys() == {"loss", "log_likelihood", "kl", "irm", "mmd"}
    for name in one:
        torch.testing.assert_close(one[name], other[name])


def test_it_can_be_evaluated_without_gradients(small):
    data, model, guide = small
    with torch.no_grad():
        terms = cge.Irm()(model, guide, data.batch())
    assert not any(value.requires_grad for value in terms.values())
    with_gradients, _ = draw(model, guide, data, cge.Irm())
    with torch.no_grad():
        without, _ = draw(model, guide, data, cge.Irm())
    torch.testing.assert_close(without["irm"], with_gradients["irm"].detach())
    assert set(evaluate(model, guide, data, cge.Irm())) == {"loss", "log_likelihood", "kl", "irm"}


def test_training_lowers_the_penalty(data):
    penalty = {}
    for weight in (0.0, 1.0):
        with cge.isolated(0):
            model, guide = cge.basic_vae(data, 3, hidden=(16,))
        fit = cge.fit(
            model, guide, data, objective=cge.Irm(weight=weight), epochs=40, batch_size=data.n, lr=1e-2,
            validation=None, progress=False,
        )  # fmt: skip
        penalty[weight] = evaluate(model, guide, fit.scaler.transform(data), cge.Irm())["irm"]
        assert fit.settings["objective"].startswith("Irm(base=Elbo(")
    assert penalty[1.0] < 0.3 * penalty[0.0]


def test_a_negative_weight_is_refused():
    with pytest.raises(ConfigError, match="-1"):
        cge.Irm(weight=-1)

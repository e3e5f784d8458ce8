"""Compiled or in half precision, a fit has the same program, weights and names; what cannot be done is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pyro_cge as cge
from pyro_cge.errors import ConfigError
from pyro_cge.train.compiled import compiled, in_bf16, networks

CPU = torch.device("cpu")


def make(seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    data = cge.EnvironmentData(
        x=torch.randn(40, 6, generator=generator),
        env=torch.arange(40) % 4,
        gene_names=[f"gene {k}" for k in range(6)],
        env_names=[f"env {e}" for e in range(4)],
        env_features=torch.randn(4, 5, generator=generator),
        control=[0],
    )
    with cge.isolated(seed):
        return data, *cge.environment_vae(data, 3, hidden=(5,), **options)


def loss_and_gradients(model, guide, batch):
    model.zero_grad(), guide.zero_grad()
    torch.manual_seed(2)
    loss = cge.Elbo()(model, guide, batch)["loss"]
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for m in (model, guide) for p in m.parameters())]


def test_networks_are_the_outermost_parts_of_torchs_own_layers():
    _, model, guide = make()
    assert networks([model]) == [model.prior.network.network, model.decoder.network]
    assert networks([guide]) == [guide.layers[0], guide.head, guide.conditions[0].environment.network]


@pytest.mark.parametrize("parts", [{}, {"conditioning": "film", "decoder": "linear"}, {"guide": "full"}])
def test_bf16_rounds_and_nothing_else(parts):
    data, model, guide = make(**parts)
    batch = data.batch()
    exact = loss_and_gradients(model, guide, batch)
    with in_bf16([model, guide], CPU):
        rounded = loss_and_gradients(model, guide, batch)
    assert all(value.dtype == torch.float32 for value in rounded)
    assert not torch.equal(exact[0], rounded[0])
    # Relative 2⁻⁸ an operation, a dozen of them: within 5 % of the gradient's length.
    torch.testing.assert_close(rounded[0], exact[0], rtol=0.02, atol=0.02)
    flat = [torch.cat([g.flatten() for g in grads[1:]]) for grads in (exact, rounded)]
    assert (flat[0] - flat[1]).norm() < 0.05 * flat[0].norm()
    assert all(map(torch.equal, loss_and_gradients(model, guide, batch), exact))  # all is as before


def test_a_fit_in_bf16_goes_where_a_fit_in_float32_goes():
    losses = {}
    for precision in ("float32", "bf16"):
        data, model, guide = make()
        result = cge.fit(model, guide, data, epochs=15, batch_size=20, lr=1e-2, validation=None, precision=precision)
        losses[precision] = result.history["train_loss"].iloc[-1]
        assert result.settings["precision"] == (None if precision == "float32" else precision)
        assert all(p.dtype == torch.float32 for p in model.parameters())
        assert not any("forward" in vars(part) for part in (*model.modules(), *guide.modules()))
    assert losses["bf16"] == pytest.approx(losses["float32"], rel=0.02)
    assert losses["bf16"] != losses["float32"]


def test_an_unknown_precision_is_refused():
    data, model, guide = make()
    with pytest.raises(ConfigError, match="precision must be 'float32' or 'bf16', got 'fp16'"):
        cge.fit(model, guide, data, epochs=1, precision="fp16")


@pytest.mark.slow
def test_compiled_networks_give_the_same_loss_and_gradients():
    data, model, guide = make()
    plain, names = (
        [loss_and_gradients(model, guide, data.batch(torch.arange(n))) for n in (20, 13)],
        list(model.state_dict()),
    )
    with compiled([model, guide], CPU):
        fast = [loss_and_gradients(model, guide, data.batch(torch.arange(n))) for n in (20, 13)]
        assert list(model.state_dict()) == names
        with cge.HardIntervention(1, value=2.0):  # handlers act as ever
            changed = loss_and_gradients(model, guide, data.batch(torch.arange(20)))
    for one, other in zip(plain, fast, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    with cge.HardIntervention(1, value=2.0):
        torch.testing.assert_close(changed[0], loss_and_gradients(model, guide, data.batch(torch.arange(20)))[0])
    assert not torch.equal(changed[0], fast[0][0])
    assert all(part._compiled_call_impl is None for part in networks([model, guide]))


def test_where_torch_cannot_compile_the_reason_and_the_fix_are_named(monkeypatch):
    def broken(module):
        def call(x):
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nmore")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    data, model, guide = make()
    with pytest.raises(ConfigError, match=r"\(InvalidCxxCompiler: No working.*found\); install a C\+\+ compiler"):
        cge.fit(model, guide, data, epochs=1, compile=True)
    assert all(part._compiled_call_impl is None for part in networks([model, guide]))
    assert isinstance(model, nn.Module)

"""The Translation VAE is the Environment VAE with a location-only prior, its noise reparametrised."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam

import pyro_cge as cge


@pytest.fixture(params=["loc", "both"])
def case(request):
    generator = torch.Generator().manual_seed(2)
    data = cge.EnvironmentData(
        x=torch.randn(20, 7, generator=generator),
        env=torch.arange(20) % 4,
        gene_names=[f"gene {k}" for k in range(7)],
        env_names=[f"env {e}" for e in range(4)],
        control=[0],
    )
    return data, cge.environment_vae(data, 3, hidden=(6,), moves=request.param)[0].double()


def translated(model, batch, z):
    """Log joint ``log p(x, c_prev)`` of the model with ``z`` written as ``loc + scale · c_prev``, at the same ``z``."""
    law = model.prior.shift(batch).select(batch.env)
    moved = poutine.reparam(model, config={"z": LocScaleReparam(0.0)})
    trace = poutine.trace(poutine.condition(moved, {"z_decentered": (z - law.loc) / law.scale})).get_trace(batch)
    return trace, law


def double(batch):
    return replace(batch, x=batch.x.double())


def test_the_joint_densities_agree_with_the_change_of_variables(case):
    """``log p(x, c_prev) = log p(x, z) + Σ log scale``: equal outright where an environment moves the mean alone."""
    data, model = case
    batch, z = double(data.batch()), torch.randn(20, 3).double()
    trace, law = translated(model, batch, z)
    original = poutine.trace(poutine.condition(model, {"z": z})).get_trace(batch).log_prob_sum()
    volume = law.log_scale.sum()
    torch.testing.assert_close(trace.log_prob_sum(), original + volume)
    torch.testing.assert_close(trace.nodes["z"]["value"], z)
    assert (volume == 0) == (model.prior.moves == "loc")


@pytest.mark.parametrize("case", ["loc"], indirect=True)
def test_it_is_the_papers_translation_model(case):
    """Section 4.8 written out: ``c_prev ~ N(0, I)``, ``c = c_prev + μ_e``, ``x ~ decoder(c)``."""
    data, model = case
    batch, previous = double(data.batch()), torch.randn(20, 3).double()
    shift = model.prior.shift(batch).loc[batch.env]
    assert shift.abs().max() > 0.01
    causes = previous + shift
    by_hand = (
        torch.distributions.Normal(0.0, 1.0).log_prob(previous).sum()
        + torch.distributions.Normal(model.decoder.mean(causes), model.decoder.scale).log_prob(batch.x).sum()
    )
    trace, _ = translated(model, batch, causes)
    torch.testing.assert_close(trace.log_prob_sum(), by_hand)


def test_a_minibatch_keeps_the_scale_of_the_full_data(case):
    data, model = case
    z = torch.randn(20, 3).double()
    totals = [translated(model, double(b), z[b.index])[0].log_prob_sum() for b in data.batches(5)]
    torch.testing.assert_close(torch.stack(totals).mean(), translated(model, double(data.batch()), z)[0].log_prob_sum())

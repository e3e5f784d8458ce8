"""``DiagonalNormal`` is ``Normal(...).to_event(1)``: densities, moments, draws and divergences."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from pyro_cge.scm.normal import DiagonalNormal


@pytest.fixture(params=["a scale a row", "one scale"])
def laws(request):
    loc, scale = torch.randn(5, 3, dtype=torch.double), torch.rand(5, 3, dtype=torch.double) + 0.3
    scale = scale if request.param == "a scale a row" else scale[0]
    return DiagonalNormal(loc, scale), dist.Normal(loc, scale).to_event(1)


def test_shapes_densities_and_moments(laws):
    ours, torchs = laws
    value = torch.randn(2, 5, 3, dtype=torch.double)
    assert (ours.batch_shape, ours.event_shape) == (torchs.batch_shape, torchs.event_shape)
    for a, b in ((ours, torchs), (ours.expand((2, 5)), torchs.expand((2, 5)))):
        torch.testing.assert_close(a.log_prob(value), b.log_prob(value))
        torch.testing.assert_close(a.entropy(), b.entropy())
        for moment in ("mean", "mode", "variance"):
            torch.testing.assert_close(getattr(a, moment), getattr(b, moment))


@pytest.mark.parametrize("draw", ["sample", "rsample"])
@pytest.mark.parametrize("shape", [(), (4,)])
def test_draws_are_those_of_the_same_random_state(laws, draw, shape):
    values = []
    for law in laws:
        torch.manual_seed(1)
        values.append(getattr(law, draw)(torch.Size(shape)))
    assert torch.equal(*values)


def test_divergences_in_every_combination(laws):
    ours, torchs = laws
    prior = dist.Normal(torch.ones(5, 3, dtype=torch.double), 2.0).to_event(1)
    expected = kl_divergence(torchs, prior)
    same = DiagonalNormal(prior.base_dist.loc, prior.base_dist.scale)
    for q in (ours, torchs):
        for p in (prior, same):
            torch.testing.assert_close(kl_divergence(q, p), expected)


def test_values_and_scales_are_checked(laws):
    with pytest.raises(ValueError, match="scale"):
        DiagonalNormal(torch.zeros(2, 3), torch.tensor([1.0, -1.0, 1.0]))
    with pytest.raises(ValueError, match="support"):
        laws[0].log_prob(torch.full((5, 3), torch.nan, dtype=torch.double))

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyro_cge.discovery.distributions import LinearSEM, LinearSEMMoments


def upper(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.triu(torch.randn(*shape, dtype=torch.double, generator=generator), 1)


def test_density_is_that_of_the_joint_normal():
    W, loc, scale = upper(4, 4), torch.arange(4.0).double(), torch.tensor([0.5, 1.0, 2.0, 0.7]).double()
    inverse = torch.linalg.inv(torch.eye(4).double() - W)
    joint = dist.MultivariateNormal(loc @ inverse, inverse.T @ torch.diag(scale**2) @ inverse)
    x = joint.sample((7,))
    for acyclic in (True, False):
        torch.testing.assert_close(LinearSEM(W, loc, scale, acyclic=acyclic).log_prob(x), joint.log_prob(x))


def test_density_of_a_cyclic_model_has_the_determinant():
    W = 0.4 * torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double()
    inverse = torch.linalg.inv(torch.eye(2).double() - W)
    joint = dist.MultivariateNormal(torch.zeros(2).double(), inverse.T @ inverse)
    x = joint.sample((5,))
    torch.testing.assert_close(LinearSEM(W).log_prob(x), joint.log_prob(x))


@pytest.mark.parametrize("batched", [False, True])
def test_solving_and_taking_effects_off_are_inverse(batched):
    W = upper(3, 1, 4, 4) if batched else upper(4, 4)
    gain = torch.rand(6, 4).double()
    law = LinearSEM(W, 0.5, 2.0, gain=gain, acyclic=True)
    assert law.batch_shape == ((3, 6) if batched else (6,)) and law.event_shape == (4,)
    u = law.noise.sample()
    x = law.solve(u)
    torch.testing.assert_close(x - law._effects(x), u)
    torch.testing.assert_close(law.log_prob(x), law.noise.log_prob(u).sum(-1))


def test_expanding_keeps_the_law():
    law = LinearSEM(upper(3, 3), noise=dist.Laplace, acyclic=True)
    x = law.sample((5,))
    torch.testing.assert_close(law.expand([5]).log_prob(x), law.log_prob(x))


def test_hard_intervention_cuts_parents():
    gain = torch.tensor([1.0, 0.0]).double()
    law = LinearSEM(torch.tensor([[0.0, 3.0], [0.0, 0.0]]).double(), gain=gain)
    x = law.solve(torch.tensor([[1.0, 2.0]]).double())
    torch.testing.assert_close(x, torch.tensor([[1.0, 2.0]]).double())


def test_wrong_shape_is_an_error():
    with pytest.raises(ValueError, match=r"W must be \[\.\.\., d, d\]"):
        LinearSEM(torch.zeros(2, 3))


def test_moments_give_the_density_of_all_rows():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 20, 4, dtype=torch.double, generator=generator)  # environments × rows × genes
    loc, gain = torch.randn(2, 3, 4, dtype=torch.double, generator=generator)
    scale = gain.exp()
    rows = torch.cat([x, torch.ones(3, 20, 1).double()], -1)
    value = LinearSEMMoments.observed(rows.transpose(-1, -2) @ rows)
    W = upper(4, 4)
    law = LinearSEMMoments(W, loc, scale, gain)
    each = dist.Normal(loc.unsqueeze(1) + gain.unsqueeze(1) * (x @ W), scale.unsqueeze(1)).log_prob(x).sum(1)
    torch.testing.assert_close(law.log_prob(value), each)
    by_row = LinearSEM(W, loc.unsqueeze(1), scale.unsqueeze(1), gain=gain.unsqueeze(1), acyclic=True)
    torch.testing.assert_close(law.log_prob(value).sum(-1), by_row.log_prob(x).sum(1))
    torch.testing.assert_close(law.expand([5, 3, 4]).log_prob(value), each.expand(5, 3, 4))

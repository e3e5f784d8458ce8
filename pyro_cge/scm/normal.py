"""Independent normals over a vector, as one law: what noise and expression are drawn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Independent, constraints, kl_divergence, register_kl


class DiagonalNormal(dist.TorchDistribution):
    """``Normal(loc [..., n, k], scale [k] or [..., n, k]).to_event(1)`` in one object rather than two.

    Its density is one dot product, and does not repeat for every profile what a ``scale [k]`` says once.
    """

    arg_constraints = {  # noqa: RUF012 (torch's own convention)
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, *, validate_args: bool | None = None) -> None:
        self.loc, self.scale = loc, scale
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    @property
    def base_dist(self) -> dist.Normal:
        """The law of each entry."""
        return dist.Normal(self.loc, self.scale)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self.scale.square().expand_as(self.loc)

    def entropy(self) -> Tensor:
        return self.base_dist.entropy().sum(-1)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        return self.base_dist.sample(sample_shape)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        noise = torch.empty((*sample_shape, *self.loc.shape), dtype=self.loc.dtype, device=self.loc.device).normal_()
        return self.loc + noise * self.scale

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        residual = (value - self.loc) * self.scale.reciprocal()
        halves = torch.add(self.scale.log().sum(-1), torch.linalg.vecdot(residual, residual), alpha=0.5)
        return -0.5 * math.log(2 * math.pi) * self.event_shape[0] - halves  # last: the scale may be of less precision

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> DiagonalNormal:
        shape = (*batch_shape, *self.event_shape)
        scale = self.scale if self.scale.dim() == 1 else self.scale.expand(shape)
        return DiagonalNormal(self.loc.expand(shape), scale, validate_args=False)


@register_kl(DiagonalNormal, DiagonalNormal)
def _normals(q: DiagonalNormal, p: DiagonalNormal) -> Tensor:
    """``KL[N(μ, σ²) ‖ N(m, s²)] = ½ Σ_j (σ_j²/s_j² + (μ_j − m_j)²/s_j² − 1) − Σ_j log σ_j/s_j`` ``[..., n]``."""
    ratio, shift = q.scale / p.scale, (q.loc - p.loc) / p.scale
    squares = torch.linalg.vecdot(ratio, ratio) + torch.linalg.vecdot(shift, shift)
    return torch.add(-0.5 * shift.shape[-1] - ratio.log().sum(-1), squares, alpha=0.5)


@register_kl(DiagonalNormal, Independent)
def _to_independent(q: DiagonalNormal, p: Independent) -> Tensor:
    return kl_divergence(q.base_dist.to_event(1), p)


@register_kl(Independent, DiagonalNormal)
def _from_independent(q: Independent, p: DiagonalNormal) -> Tensor:
    return kl_divergence(q, p.base_dist.to_event(1))

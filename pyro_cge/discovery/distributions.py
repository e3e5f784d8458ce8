"""The law of genes in a linear structural causal model, as Pyro distributions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

NOISE_WIDTH = 2.0  # of the prior of log noise_scale: nearly flat


class LinearSEM(dist.TorchDistribution):
    """``x_j = gain_j Σ_i x_i W[i, j] + u_j`` with independent noise ``u_j ~ noise(loc_j, scale_j)``.

    ::

        log p(x) = Σ_j log noise(x_j − gain_j (xW)_j | loc_j, scale_j) + log |det(I − W diag(gain))|

    The determinant is 1 for an acyclic ``W``. ``gain`` is what an intervention leaves of the parents' effects: 0 for a hard
    one; with ``loc`` and ``scale`` it varies over samples while ``W`` is shared.

    Parameters
    ----------
    W : Tensor ``[..., d, d]``
        ``W[i, j] ≠ 0`` means ``i → j``.
    loc, scale, gain : Tensor ``[..., d]``
        Defaults 0, 1, 1.
    noise : callable
        ``(loc, scale) → distribution`` of each gene's noise.
    acyclic : bool
        ``W`` is known to be acyclic: the determinant is not computed.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector

    def __init__(
        self,
        W: Tensor,
        loc: Tensor | float = 0.0,
        scale: Tensor | float = 1.0,
        *,
        gain: Tensor | None = None,
        noise: Callable[[Tensor, Tensor], Any] = dist.Normal,
        acyclic: bool = False,
        validate_args: bool | None = None,
    ) -> None:
        d = W.shape[-1]
        if W.dim() < 2 or W.shape[-2] != d:
            raise ValueError(f"W must be [..., d, d], got {list(W.shape)}")
        loc, scale = (torch.as_tensor(value, dtype=W.dtype, device=W.device) for value in (loc, scale))
        rows = [part.shape for part in (loc, scale, gain) if part is not None and part.dim()]
        shape = torch.broadcast_shapes((*W.shape[:-2], d), *rows)
        self.W, self.gain, self.acyclic = W, gain, acyclic
        self.noise = noise(loc.expand(shape), scale.expand(shape))
        self.has_rsample = self.noise.has_rsample
        super().__init__(shape[:-1], shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LinearSEM:
        new = self._get_checked_instance(LinearSEM, _instance)
        new.W, new.gain, new.acyclic = self.W, self.gain, self.acyclic
        new.has_rsample = self.has_rsample
        new.noise = self.noise.expand(torch.Size(batch_shape) + self.event_shape)
        super(LinearSEM, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        density = self.noise.log_prob(value - self._effects(value)).sum(-1)
        return density if self.acyclic else density + torch.linalg.slogdet(self._matrix())[1]

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.solve(self.noise.rsample(sample_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return self.solve(self.noise.sample(sample_shape))

    def solve(self, u: Tensor) -> Tensor:
        """Genes ``x [..., d]`` of the noise ``u [..., d]``: ``x = u (I − W diag(gain))⁻¹``."""
        A = self._matrix()
        if A.dim() == 2:
            return torch.linalg.solve(A, u.reshape(-1, u.shape[-1]), left=False).reshape(u.shape)
        return torch.linalg.solve(A.transpose(-1, -2), u.unsqueeze(-1)).squeeze(-1)

    def _effects(self, value: Tensor) -> Tensor:
        flat = self.W.dim() == 2
        effects = value @ self.W if flat else (value.unsqueeze(-2) @ self.W).squeeze(-2)
        return effects if self.gain is None else effects * self.gain

    def _matrix(self) -> Tensor:
        W = self.W if self.gain is None else self.W * self.gain.unsqueeze(-2)
        return torch.eye(W.shape[-1], dtype=W.dtype, device=W.device) - W


class LinearSEMMoments(dist.TorchDistribution):
    """The Gaussian, acyclic :class:`LinearSEM` of whole environments, gene by gene, observed through Gram matrices::

        log p = Σ_rows log Normal(x_j | loc_j + gain_j (xW)_j, scale_j²)            for each environment and gene

    The sum over rows is a quadratic form in ``Σ x̃ x̃ᵀ`` with ``x̃ = (x, 1)``, so that a step costs the same for a hundred
    rows and for a million. A distribution over data sets: it has a density and no ``sample``.

    Parameters
    ----------
    W : Tensor ``[d, d]`` or ``[E, d, d]``
    loc, scale, gain : Tensor ``[..., E, d]``
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.independent(constraints.real, 2)

    def __init__(
        self, W: Tensor, loc: Tensor, scale: Tensor, gain: Tensor, *, validate_args: bool | None = None
    ) -> None:
        self.W, self.loc, self.scale, self.gain = W, loc, scale, gain
        shape = torch.broadcast_shapes(loc.shape, scale.shape, gain.shape)
        super().__init__(shape, torch.Size((W.shape[-1] + 1,) * 2), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LinearSEMMoments:
        parts = (part.expand(torch.Size(batch_shape)) for part in (self.loc, self.scale, self.gain))
        return LinearSEMMoments(self.W, *parts, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """``value [E, d, d+1, d+1]``: the environments' Gram matrices, the same for every gene (see :meth:`observed`)."""
        gram = value[..., 0, :, :]
        second, first, n = gram[..., :-1, :-1], gram[..., -1, :-1], gram[..., -1, -1:]
        through = second @ self.W
        own, cross = second.diagonal(dim1=-2, dim2=-1), through.diagonal(dim1=-2, dim2=-1)
        explained, mean = (
            (self.W * through).sum(-2),
            (first.unsqueeze(-2) @ self.W).squeeze(-2),
        )
        squares = own - 2 * self.gain * cross + self.gain**2 * explained
        squares = squares - 2 * self.loc * (first - self.gain * mean) + n * self.loc**2
        return -0.5 * squares / self.scale**2 - n * (self.scale.log() + 0.5 * math.log(2 * math.pi))

    @staticmethod
    def observed(grams: Tensor) -> Tensor:
        """``grams [E, d+1, d+1]`` as a value, ``[E, d, d+1, d+1]`` (a view)."""
        return grams.unsqueeze(-3).expand(*grams.shape[:-2], grams.shape[-1] - 1, *grams.shape[-2:])


class SignedNormal(dist.TorchDistribution):
    """A Normal effect whose sign is believed to be positive with probability ``share``::

        p(w) = 2 Normal(w | 0, scale²) · (share · σ(w/ε) + (1 − share) · σ(−w/ε)),   ε = scale/10

    ``share = 1/2`` is the Normal. Effects much smaller than ``scale`` have no sign to speak of, which keeps the density
    smooth, and gradients alive.

    Parameters
    ----------
    share, scale : Tensor
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"share": constraints.unit_interval, "scale": constraints.positive}
    support = constraints.real

    def __init__(self, share: Tensor, scale: Tensor, *, validate_args: bool | None = None) -> None:
        self.share, self.scale = torch.broadcast_tensors(share, scale)
        super().__init__(self.share.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> SignedNormal:
        return SignedNormal(self.share.expand(batch_shape), self.scale.expand(batch_shape), validate_args=False)

    def _positive(self, value: Tensor) -> Tensor:
        """Probability that an effect of this size and sign has this sign, given its size."""
        sure = torch.sigmoid(10 * value / self.scale)
        return self.share * sure + (1 - self.share) * (1 - sure)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        normal = -0.5 * (value / self.scale) ** 2 - self.scale.log() - 0.5 * math.log(math.pi / 2)
        return normal + self._positive(value).log()

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            size = torch.randn(shape, dtype=self.scale.dtype, device=self.scale.device).abs() * self.scale
            return torch.where(torch.rand_like(size) < self._positive(size), size, -size)

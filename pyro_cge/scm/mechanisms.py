"""Mechanisms: what the parents of a block of nodes contribute to them, vectorised over the block.

A mechanism maps parents ``[..., p]`` and own noise ``[..., q]`` to values ``[..., q]`` through a parent mask
``[p, q]`` (``mask[i, j] = 1`` where ``i`` is a parent of ``j``). The same classes serve as structural equations of
the latent SCM and as observation maps from latents to genes.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

Weights = Literal["signs", "uniform", "normal", "small"]


def draw_weights(shape: tuple[int, ...], weights: Weights, generator: torch.Generator | None = None) -> Tensor:
    """Random weights: ``signs`` in {−1, 1}; ``uniform`` ±U(0.25, 1); ``normal`` N(0, 1); ``small`` N(0, 0.1²), to learn from."""
    if weights in ("normal", "small"):
        return torch.randn(shape, generator=generator) * (0.1 if weights == "small" else 1.0)
    signs = 2.0 * torch.randint(0, 2, shape, generator=generator) - 1
    if weights == "signs":
        return signs
    if weights == "uniform":
        return signs * (0.25 + 0.75 * torch.rand(shape, generator=generator))
    raise ValueError(f"weights must be 'signs', 'uniform', 'normal' or 'small', got {weights!r}")


class Mechanism(nn.Module):
    """``C_j = f_j(PA_j) + Z_j`` for a block of nodes; subclasses give ``effect`` = ``f``.

    Parameters
    ----------
    mask : Tensor ``[p, q]``
        Parent mask.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.to(torch.get_default_dtype()))

    def effect(self, parents: Tensor) -> Tensor:
        """Contribution of the parents, ``[..., p] → [..., q]``."""
        raise NotImplementedError

    def forward(self, parents: Tensor, noise: Tensor) -> Tensor:
        return self.combine(self.effect(parents), noise)

    def combine(self, effect: Tensor, noise: Tensor) -> Tensor:
        """How parents and own noise meet; additive unless a mechanism says otherwise."""
        return effect + noise


class LinearMechanism(Mechanism):
    """``f_j = Σ_i W[i, j] C_i``. ``weights='signs'`` gives the paper's coefficients in {−1, 1}."""

    def __init__(self, mask: Tensor, weights: Weights = "signs", generator: torch.Generator | None = None) -> None:
        super().__init__(mask)
        self.weight = nn.Parameter(draw_weights(tuple(mask.shape), weights, generator))

    @property
    def W(self) -> Tensor:
        """Weighted adjacency ``[p, q]``, exactly zero off the mask."""
        return self.weight * self.mask

    def effect(self, parents: Tensor) -> Tensor:
        return parents @ self.W


class NeuralMechanism(Mechanism):
    """One small ReLU network a node: ``f_j = Σ_h v[h, j] · relu(Σ_i W[i, j, h] C_i + b[j, h])``.

    With ``hidden=3`` and ``weights='signs'`` the structural function of the paper's section 6.4.
    """

    def __init__(
        self,
        mask: Tensor,
        hidden: int = 3,
        weights: Weights = "signs",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(mask)
        p, q = mask.shape
        self.hidden = hidden
        self.weight = nn.Parameter(draw_weights((p, q, hidden), weights, generator))
        self.bias = nn.Parameter(torch.zeros(q, hidden))
        self.readout = nn.Parameter(draw_weights((q, hidden), weights, generator))

    def effect(self, parents: Tensor) -> Tensor:
        p, q = self.mask.shape
        weight = (self.weight * self.mask.unsqueeze(-1)).reshape(p, q * self.hidden)
        hidden = torch.relu(parents @ weight + self.bias.reshape(-1))
        return (hidden.unflatten(-1, (q, self.hidden)) * self.readout).sum(-1)


class PolynomialMechanism(Mechanism):
    """``f_j = Σ_k Σ_i W_k[i, j] C_i^k / k!``, ``k = 1 … degree`` (the factorial tames the tails)."""

    def __init__(
        self,
        mask: Tensor,
        degree: int = 2,
        weights: Weights = "signs",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(mask)
        self.weight = nn.Parameter(draw_weights((degree, *mask.shape), weights, generator))

    def effect(self, parents: Tensor) -> Tensor:
        powers = [parents**k @ (w * self.mask) / math.factorial(k) for k, w in enumerate(self.weight, start=1)]
        return torch.stack(powers).sum(0)


class BinaryMechanism(LinearMechanism):
    """``C_j = 1[Σ_i W[i, j] C_i + Z_j > 0]``: binary noisy linear. Not differentiable: for simulation."""

    def combine(self, effect: Tensor, noise: Tensor) -> Tensor:
        return (effect + noise > 0).to(noise.dtype)

"""What the next shift is chosen by: values to minimise, of many candidate shifts at once, and their minimiser."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .weight_posterior import WeightPosterior

Value = Callable[[Tensor], Tensor]
"""``a [..., S, p] → [..., S]``: the lower the better."""

POWERS = 5  # squarings in the power iteration of a spectral norm


def variance_left(belief: WeightPosterior, target: Tensor, n: int) -> Value:
    """``d_j(a)``, the variance that the optimal shift ``a*_j = μ*_j − μ* W[:, j]`` is left with after ``n`` samples::

        d_j = σ_j² (μ*ᵀ V_j μ* − (μ*ᵀ V_j m)² / (1/n + mᵀ V_j m)),   m = a (I − W)⁻¹

    as if the samples fell on their expected mean ``m`` (Zhang et al. 2023). Returns ``[..., p, S]``.
    """
    effects = belief.total_effects.unsqueeze(-3)
    along = (belief.V @ target.unsqueeze(-2).unsqueeze(-1)).squeeze(-1)  # V_j μ*
    prior = (along * target.unsqueeze(-2)).sum(-1, keepdim=True)
    gain = (effects @ along.unsqueeze(-1)).squeeze(-1)
    spread = effects @ belief.V @ effects.transpose(-1, -2)
    variance = belief.noise_variance.unsqueeze(-1)

    def value(a: Tensor) -> Tensor:
        explained = (gain @ a.transpose(-1, -2)).square()
        a = a.unsqueeze(-3)
        return variance * (prior - explained / (1 / n + (a @ spread * a).sum(-1)))

    return value


def causal_integrated_variance(belief: WeightPosterior, target: Tensor, n: int) -> Value:
    """CIV: the variance of ``‖a − a*‖²`` that is left, integrated over all ``a`` on the unit sphere.

    ``Σ_j d_j (d_j + 2 c_j)`` with ``c_j = σ_j² + E[a*_j]² + 1/p`` (Zhang et al. 2023).
    """
    left, variance = variance_left(belief, target, n), belief.noise_variance
    c = (variance + belief.optimal_shift(target) ** 2 + 1 / belief.p).unsqueeze(-1)

    def value(a: Tensor) -> Tensor:
        d = left(a)
        return (d * (d + 2 * c)).sum(-2)

    return value


def output_weighted_variance(belief: WeightPosterior, target: Tensor, n: int) -> Value:
    """CIV with the integral weighted by one over the density of ``‖a − a*‖²``: rare, close shifts count more.

    ``c_j = σ_j² + 16 w_j / Σ w`` with ``w_j = k_j² max(0.1, 1 − k_j²)^{(4 − p)/2}`` and ``k = E[a*]`` (Zhang et al. 2023,
    equation of the output-weighted measure, in its approximation).
    """
    left, variance = variance_left(belief, target, n), belief.noise_variance
    squared = belief.optimal_shift(target) ** 2
    weight = squared * (1 - squared).clamp_min(0.1) ** ((4 - belief.p) / 2)
    c = (variance + 16 * weight / weight.sum(-1, keepdim=True).clamp_min(1e-12)).unsqueeze(-1)

    def value(a: Tensor) -> Tensor:
        d = left(a)
        return (d * (d + 2 * c)).sum(-2)

    return value


def max_variance(belief: WeightPosterior, target: Tensor, n: int) -> Value:
    """The largest spectral norm of the covariances of weights that are left, ``max_j ‖V_j − v vᵀ / (1/n + mᵀ v)‖``.

    ``v = V_j m``. Does not look at the target.
    """
    V, effects = belief.V, belief.total_effects

    def value(a: Tensor) -> Tensor:
        m = (a @ effects).unsqueeze(-3)
        v = m @ V  # [..., p, S, p]
        scale = (1 / n + (v * m).sum(-1)).unsqueeze(-1).unsqueeze(-1)
        left = V.unsqueeze(-3) - v.unsqueeze(-1) * v.unsqueeze(-2) / scale
        with torch.no_grad():  # the gradient of the largest eigenvalue only needs its vector (Danskin)
            power = left.float()  # an error of 1e-7 in the vector is one of 1e-14 in the value
            for _ in range(POWERS):
                power = power / power.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None].clamp_min(1e-30)
                power = power @ power
            # By now of rank one: its column with the largest diagonal entry is the eigenvector.
            largest = power.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None]
            vector = torch.take_along_dim(power, largest, -1).to(left)
            vector = vector / vector.norm(dim=-2, keepdim=True).clamp_min(1e-30)
        return (vector * (left @ vector)).sum((-1, -2)).amax(-2)

    return value


def expected_distance(belief: WeightPosterior, target: Tensor, n: int) -> Value:
    """The squared distance of the mean from the target that is expected after the shift, were it the last one::

        E‖(â* − a*)(I − W)⁻¹‖² ≈ Σ_j d_j ‖row j of (I − W)⁻¹‖²

    CIV asks how well the objective is known everywhere; this asks how far the final answer will be off, and so minds what
    an error in ``a*_j`` does downstream.
    """
    left, reach = variance_left(belief, target, n), belief.total_effects.square().sum(-1, keepdim=True)
    return lambda a: (left(a) * reach).sum(-2)


def minimise(value: Value, starts: Tensor, radius: float, steps: int) -> Tensor:
    """The best shift found from each set of ``starts [..., S, p]`` within ``‖a‖ ≤ radius``: ``[..., p]``.

    Projected Adam steps of falling length from all starts at once.
    """
    a, first, second = starts.detach(), torch.zeros_like(starts), torch.zeros_like(starts)
    best, lowest = a, starts.new_full(starts.shape[:-1], torch.inf)
    for t in range(1, steps + 1):
        with torch.enable_grad():
            free = a.requires_grad_()
            values = value(free)
            (gradient,) = torch.autograd.grad(values.sum(), free)
        a, values = a.detach(), values.detach()
        better = values <= lowest
        best, lowest = torch.where(better.unsqueeze(-1), a, best), torch.where(better, values, lowest)
        first = 0.7 * first + 0.3 * gradient
        second = 0.9 * second + 0.1 * gradient.square().mean(-1, keepdim=True)
        size = 0.5 * radius * (1 - (t - 1) / steps)
        step = first / (1 - 0.7**t) / (second / (1 - 0.9**t)).sqrt().clamp_min(1e-30) / a.shape[-1] ** 0.5
        a = inside(a - size * step, radius)
    return torch.take_along_dim(best, lowest.argmin(-1)[..., None, None], -2).squeeze(-2)


def inside(a: Tensor, radius: float) -> Tensor:
    """``a [..., p]`` moved to the nearest point of the ball."""
    return a * (radius / a.norm(dim=-1, keepdim=True).clamp_min(radius))

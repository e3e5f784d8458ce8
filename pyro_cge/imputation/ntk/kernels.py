"""Kernels of infinitely wide networks on unit vectors: functions of the cosine ``u`` between two inputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from ...errors import ConfigError
from ..effects import Array
from .hermite import HermiteActivation


def arc_cosine(u: ArrayLike, order: int = 1) -> Array:
    """Arc-cosine kernel of order 0 or 1 (Cho & Saul 2009): dual of the step function, and of the ReLU.

    ::

        κ₀(u) = (π − arccos u) / π
        κ₁(u) = (u (π − arccos u) + √(1 − u²)) / π

    Scaled so that ``κ(1) = 1``; ``κ₁' = κ₀``. Cosines beyond ±1 by rounding are clipped. Keeps float32.
    """
    if order not in (0, 1):
        raise ConfigError(f"order must be 0 (step) or 1 (ReLU), got {order}")
    u = _cosines(u)
    angle = np.pi - np.arccos(u)
    if order == 1:
        angle *= u
        angle += np.sqrt(1 - u * u)
    angle /= np.pi
    return angle


def ntk(u: ArrayLike, depth: int = 1) -> Array:
    """Neural tangent kernel of a ReLU network with ``depth`` hidden layers (Jacot, Gabriel, Hongler 2018).

    ::

        Σ₀ = Θ₀ = u
        Σ_{l+1} = κ₁(Σ_l)
        Θ_{l+1} = Σ_{l+1} + Θ_l κ₀(Σ_l)

    One hidden layer is ``κ₁(u) + u κ₀(u)``, and ``Θ(1) = depth + 1``. Other activations: :class:`DeepNTKClassifier`.

    Parameters
    ----------
    u : array
        Cosines of the inputs.
    depth : int
        Hidden layers; 0 is the linear kernel.
    """
    if depth < 0:
        raise ConfigError(f"depth is a number of hidden layers, at least 0; got {depth}")
    covariance = _cosines(u)
    tangent = covariance.copy()
    for _ in range(depth):
        angle = np.pi - np.arccos(covariance)  # once for κ₀ and κ₁: it takes most of the time
        tangent *= angle
        angle *= covariance
        angle += np.sqrt(1 - covariance * covariance)
        tangent += angle
        tangent /= np.pi
        covariance = np.minimum(angle / np.pi, 1)
    return tangent


def dual_activation(activation: Callable[[Array], Array], u: ArrayLike, degree: int = 40) -> Array:
    """``E[φ(x) φ(y)] / E[φ(x)²]``, ``x, y`` standard normal of correlation ``u``, from Hermite coefficients of ``φ``.

    Exact for polynomials up to ``degree``, within 0.01 for the ReLU, whose :func:`arc_cosine` is exact. The object behind
    it is :class:`~pyro_cge.imputation.ntk.hermite.HermiteActivation`.
    """
    return HermiteActivation.of(activation, degree).dual(u)


def unit(x: ArrayLike) -> Array:
    """Rows divided by their norm; zero rows stay zero (similar to nothing)."""
    rows = np.asarray(x, dtype=np.float64)
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norm, out=np.zeros_like(rows), where=norm > 0)


def _cosines(u: ArrayLike) -> Array:
    u = np.asarray(u)
    return np.clip(u if u.dtype == np.float32 else u.astype(np.float64), -1, 1)

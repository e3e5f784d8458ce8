"""Activations as sums of Hermite polynomials, whose dual activations are power series in the correlation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.polynomial import polynomial
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import roots_hermitenorm

from ...errors import ConfigError

Array = NDArray[np.float64]
Limit = Literal["majority vote", "nearest neighbour", "singular kernel"]

NODES = 400  # of the Gauss-Hermite rule
ROUNDING = 1e-12  # of a coefficient: a rule of this many nodes leaves it where there is none


@dataclass(frozen=True, eq=False)
class HermiteActivation:
    """``φ(u) = Σ_k c_k h_k(u)`` in orthonormal Hermite polynomials, scaled to ``E φ(u)² = 1`` for ``u ~ Normal(0, 1)``.

    The dual activation is a power series with non-negative coefficients (Daniely et al. 2016)::

        φ̌(ξ) = E φ(u) φ(v) = Σ_k c_k² ξ^k,   (u, v) standard Normal with correlation ξ

    and ``φ̌(1) = 1``. The neural tangent kernel of a network of any depth on unit-norm inputs is made of ``φ̌`` and ``φ̌'``.

    Parameters
    ----------
    coefficients : ``[K]``
        ``c_0, c_1, …``; scaled to unit norm.

    Raises
    ------
    ConfigError
        If they are not finite or all zero.
    """

    coefficients: Array

    def __post_init__(self) -> None:
        c = np.asarray(self.coefficients, dtype=float)
        norm = np.linalg.norm(c)
        if c.ndim != 1 or not np.isfinite(c).all() or not norm > 0:
            raise ConfigError(f"an activation needs a vector of finite Hermite coefficients, not all zero, got {c}")
        object.__setattr__(self, "coefficients", c / norm)

    @staticmethod
    def of(function: Callable[[Array], Array], degree: int = 40) -> HermiteActivation:
        """The first coefficients of a given activation, ``c_k = E φ(u) h_k(u)`` by a Gauss–Hermite rule.

        Exact for polynomials; for others what is beyond ``degree`` is lost, and the rest scaled to unit norm.
        """
        u, weights = roots_hermitenorm(NODES)
        c = _basis(u, degree) @ (function(u) * weights) / weights.sum()
        return HermiteActivation(np.where(np.abs(c) < ROUNDING * np.linalg.norm(c), 0.0, c))

    @staticmethod
    def optimal(d: int, degree: int | None = None) -> HermiteActivation:
        """The activation whose infinitely deep NTK classifier is Bayes-optimal for data on the ``d``-sphere.

        ``φ = √b h_1 + √(1 − b) h_k``, so ``φ̌(ξ) = bξ + (1 − b) ξ^k``, with ``b`` such that ``α = d``; it exists for
        ``k > 1 + 2/d``.

        Parameters
        ----------
        d : int
            Dimension of the sphere: one less than the number of features.
        degree : int, optional
            ``k``. Default: the smallest odd one, for which opposite points are as much unlike as equal ones are alike.
        """
        if d < 1:
            raise ConfigError(f"d is the dimension of the sphere, at least 1, got {d}")
        k = degree or (5 if d == 1 else 3)
        if k <= 1 + 2 / d:
            raise ConfigError(f"degree must exceed 1 + 2/d = {1 + 2 / d:g}, got {k}")

        def excess(log_b: float) -> float:  # log φ̌'(1) against what α = d asks for
            b = np.exp(log_b)
            return float(np.log(b + k * (1 - b)) + 2 * log_b / d)

        # At b = 1 the identity solves it too: the other root lies below the largest excess.
        low = -0.5 * d * np.log(k) - 1.0
        grid = np.linspace(low, 0, 4000)[:-1]
        top = grid[int(np.argmax([excess(value) for value in grid]))]
        b = float(np.exp(brentq(excess, low, top, xtol=1e-15)))
        c = np.zeros(k + 1)
        c[1], c[k] = np.sqrt(b), np.sqrt(1 - b)
        return HermiteActivation(c)

    def __call__(self, u: ArrayLike) -> Array:
        """``φ(u)``, elementwise."""
        u = np.asarray(u, dtype=float)
        return np.tensordot(self.coefficients, _basis(u, len(self.coefficients) - 1), 1)

    @property
    def squares(self) -> Array:
        """Coefficients ``c_k²`` of the dual ``[K]``."""
        return self.coefficients**2

    def dual(self, correlation: ArrayLike) -> Array:
        """``φ̌(ξ)``."""
        return polynomial.polyval(np.asarray(correlation, dtype=float), self.squares)

    def dual_derivative(self, correlation: ArrayLike) -> Array:
        """``φ̌'(ξ)``, the dual of the derivative."""
        slope = polynomial.polyder(self.squares)
        return polynomial.polyval(np.asarray(correlation, dtype=float), slope)

    @property
    def limit(self) -> Limit:
        """What the infinitely deep NTK classifier is (Radhakrishnan, Belkin, Uhler 2023).

        "majority vote" if ``φ̌(0) ≠ 0``, else "nearest neighbour" if ``φ̌'(0) = 0``, else the classifier of a singular
        kernel ``~ ‖x − x'‖^{−α}``.

        Raises
        ------
        ConfigError
            For the identity, which has no limit.
        """
        squares = self.squares
        if squares[0]:
            return "majority vote"
        if not squares[1]:
            return "nearest neighbour"
        if not squares[2:].any():
            raise ConfigError("a linear activation stays a linear kernel at any depth: add a term of higher degree")
        return "singular kernel"

    @property
    def alpha(self) -> float:
        """Order of the singularity, ``α = −2 log φ̌'(0) / log φ̌'(1)``; infinite for nearest neighbours, 0 for the majority."""
        if self.limit != "singular kernel":
            return 0.0 if self.limit == "majority vote" else float("inf")
        return float(-2 * np.log(self.squares[1]) / np.log(self.dual_derivative(1.0)))


def _basis(u: Array, degree: int) -> Array:
    """Orthonormal Hermite polynomials ``[degree + 1, ...]`` at ``u``, by their recurrence."""
    rows = [np.ones_like(u), u]
    for k in range(1, degree):
        rows.append((u * rows[k] - np.sqrt(k) * rows[k - 1]) / np.sqrt(k + 1))
    return np.stack(rows[: degree + 1])

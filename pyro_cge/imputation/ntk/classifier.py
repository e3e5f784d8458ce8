"""Wide and deep networks as classifiers: the neural tangent kernel at any depth, and in the limit of infinite depth."""

from __future__ import annotations

import numpy as np
from numpy.polynomial import polynomial
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve

from ...errors import ConfigError, DataError
from .hermite import HermiteActivation

Array = NDArray[np.float64]

SMALL = 1e-5  # correlations below this need no more layers: ψ is a series there
CHUNK = 1_000_000  # kernel entries at a time


class DeepNTKClassifier:
    """Classifies by the sign of ridgeless regression with the neural tangent kernel of a fully connected network.

    On inputs of unit norm with correlation ``ξ``, layer by layer::

        Σ_0 = Θ_0 = ξ,   Σ_{l+1} = φ̌(Σ_l),   Θ_{l+1} = Σ_{l+1} + Θ_l φ̌'(Σ_l)

    with infinite width the network trained to zero loss. At infinite depth the kernel matrix turns diagonal and the
    classifier a vote among the training points, of weight ``ψ(ξ)``, in one of three ways (Radhakrishnan, Belkin, Uhler 2023):

    - ``φ̌(0) ≠ 0``: every point votes alike, the majority wins;
    - ``φ̌(0) = φ̌'(0) = 0``: the nearest neighbour decides (stated for inputs without negative correlations, as the paper's);
    - otherwise ``ψ(ξ) = lim φ̌∘…∘φ̌(ξ) / φ̌'(0)^L``, singular as ``‖x − x'‖^{−α}`` with ``α = −2 log φ̌'(0) / log φ̌'(1)``.
      It is consistent (Bayes-optimal as the data grow) when ``α = d``, as the Hilbert kernel ``‖x − x'‖^{−d}``.

    Parameters
    ----------
    activation : HermiteActivation, optional
        Default: the optimal one for ``d = features − 1``.
    depth : int, optional
        Hidden layers; default infinitely many.
    ridge : float
        Added to the diagonal of the kernel at finite depth, in units of that diagonal.

    Attributes
    ----------
    classes_ : ndarray ``[C]``
    activation_ : HermiteActivation

    References
    ----------
    Radhakrishnan, Belkin, Uhler 2023, "Wide and deep neural networks achieve consistency for classification"; Devroye,
    Györfi, Krzyżak 1998 (the Hilbert kernel).
    """

    def __init__(
        self, activation: HermiteActivation | None = None, *, depth: int | None = None, ridge: float = 1e-8
    ) -> None:
        if depth is not None and depth < 1:
            raise ConfigError(f"depth counts hidden layers, at least 1, or None for infinitely many, got {depth}")
        if not ridge > 0:
            raise ConfigError(
                f"ridge must be positive, got {ridge}: shallow kernels of many points are singular to rounding"
            )
        self.activation, self.depth, self.ridge = activation, depth, ridge

    def fit(self, X: ArrayLike, y: ArrayLike) -> DeepNTKClassifier:
        """Rows of ``X [n, f]`` are divided by their norm; ``y [n]`` are labels of any kind.

        Raises
        ------
        DataError
            For rows that are zero or not finite, or labels of another number.
        """
        self._x = _unit(X)
        self.classes_, codes = np.unique(np.asarray(y), return_inverse=True)
        if codes.shape != (len(self._x),):
            raise DataError(f"one label a row: X has {len(self._x)} rows and y the shape {np.shape(y)}")
        self.activation_ = self.activation or HermiteActivation.optimal(max(1, self._x.shape[1] - 1))
        votes = np.eye(len(self.classes_))[codes]
        self._coefficients = votes
        if self.depth is None:
            self._limit = self.activation_.limit
        else:
            kernel = deep_ntk(self._x @ self._x.T, self.activation_, self.depth)
            np.fill_diagonal(kernel, 1.0 + self.ridge)
            # Scores of a class against the rest, labels ±1.
            self._coefficients = cho_solve(cho_factor(kernel, lower=True), 2 * votes - 1)
        return self

    def predict(self, X: ArrayLike) -> NDArray:
        """Labels ``[m]``."""
        best = self.scores(X).argmax(-1)
        return self.classes_[best]

    def scores(self, X: ArrayLike) -> Array:
        """Score of each class ``[m, C]``: its share of the votes (infinite depth), or the regression's output."""
        if not hasattr(self, "classes_"):
            raise ConfigError("DeepNTKClassifier has seen no data yet: call fit(X, y) first")
        x = _unit(X, self._x.shape[1])
        step = max(1, CHUNK // len(self._x))
        return np.concatenate([self._block(x[i : i + step] @ self._x.T) for i in range(0, len(x), step)])

    def _block(self, correlation: Array) -> Array:
        if self.depth is not None:
            return deep_ntk(correlation, self.activation_, self.depth) @ self._coefficients
        if self._limit == "majority vote":
            weights = np.ones_like(correlation)
        elif self._limit == "nearest neighbour":
            weights = np.equal(correlation, correlation.max(-1, keepdims=True)).astype(float)
        else:
            weights = singular_weights(correlation, self.activation_)
        return weights @ self._coefficients / np.abs(weights).sum(-1, keepdims=True).clip(1e-300)


def deep_ntk(correlation: ArrayLike, activation: HermiteActivation, depth: int) -> Array:
    """Neural tangent kernel with ``depth`` hidden layers at correlations ``ξ``, divided by its value at 1."""
    covariance = np.clip(np.asarray(correlation, dtype=float), -1, 1)
    kernel, small, slope = covariance, 1.0, float(activation.dual_derivative(1.0))
    for _ in range(depth):  # small = 1 / Θ(1), which itself would overflow
        kernel = kernel * activation.dual_derivative(covariance) / (small + slope)
        # Rounding above 1 would grow from layer to layer.
        covariance, small = np.clip(activation.dual(covariance), -1, 1), small / (small + slope)
        kernel = kernel + small * covariance
    return kernel


def singular_weights(correlation: ArrayLike, activation: HermiteActivation) -> Array:
    """``ψ(ξ)`` of the infinitely deep classifier ``[m, n]``, each row divided by its largest absolute value.

    The Koenigs function of the dual activation: ``ψ(φ̌(ξ)) = φ̌'(0) ψ(ξ)``, ``ψ(ξ) ≈ ξ`` near 0. In logarithms, since it
    diverges at 1, and near 0 as ``ψ(ξ) = ξ + Σ_k c_k² ξ^k / (b − b^k) + …`` with ``b = φ̌'(0)``. A point equal to a training point takes all the weight.
    """
    xi = np.clip(np.asarray(correlation, dtype=float), -1, 1)
    # Points that no layer moves: equal to a training point, or opposite to it under an odd dual.
    still = (xi != 0) & (np.abs(activation.dual(xi) - xi) <= 1e-15)
    b, layers = activation.squares[1], np.zeros(xi.shape)
    active = np.flatnonzero(~still & (np.abs(xi) > SMALL))
    flat = xi.reshape(-1)
    while len(active):
        flat[active] = activation.dual(flat[active])
        layers.reshape(-1)[active] += 1
        active = active[np.abs(flat[active]) > SMALL]
    degree = np.arange(2, len(activation.squares))
    series = np.concatenate([[0.0, 1.0], activation.squares[2:] / (b - b**degree)])
    with np.errstate(divide="ignore"):
        size = np.log(np.abs(polynomial.polyval(xi, series))) - layers * np.log(b)
    size[still] = np.inf
    largest = size.max(-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        weights = np.where(np.isinf(largest), size == largest, np.exp(size - largest))
    return np.where(xi == 0, 0.0, np.sign(xi) * weights)


def _unit(X: ArrayLike, features: int | None = None) -> Array:
    x = np.asarray(X, dtype=float)
    if x.ndim != 2 or (features is not None and x.shape[1] != features):
        raise DataError(f"X must be [rows, {features or 'features'}], got {list(x.shape)}")
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    if not np.isfinite(x).all() or not (norm > 0).all():
        row = int(np.flatnonzero(~np.isfinite(x).all(1) | ~(norm[:, 0] > 0))[0])
        raise DataError(f"X must be finite and no row zero, which has no direction: see row {row}")
    return x / norm

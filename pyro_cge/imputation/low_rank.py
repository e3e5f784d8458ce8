"""Completion of the context × action × gene tensor by low rank."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..discovery.progress import shown
from ..errors import ConfigError, DataError
from .baselines import ContextMean, checked
from .effects import Array, Effects


class FaLRTC:
    """Fast low-rank tensor completion: the tensor of least weighted nuclear norms that has the measured entries.

    ``min Σ_i α_i ‖X_(i)‖_*  subject to  X = the measured signatures where there are any``, over the unfoldings along
    actions, genes and contexts. Each nuclear norm is smoothed to ``max { α_i ⟨X_(i), Y⟩ − μ_i/2 ‖Y‖² : ‖Y‖ ≤ 1 }``, whose
    gradient is ``α_i U min(α_i σ / μ_i, 1) Vᵀ``, and the sum is minimised over the missing entries by accelerated
    gradient steps with line search on the Lipschitz constant.

    Missing entries start at the mean signature measured. A context or action without any training pair has nothing to
    tie it to the others: the mean of its context (of all) is returned.

    Parameters
    ----------
    weights : (float, float, float)
        ``α`` of the unfoldings along actions, genes, contexts; scaled to sum to one.
    smoothing : float
        ``μ_i = smoothing · α_i · s / √n_i``, for the ``n_i`` rows of an unfolding and the root mean square ``s`` of
        the measured entries.
    n_components : int, optional
        Complete the coordinates of the signatures in so many principal components of the genes, and give what is left of
        a signature the mean. A unitary change of genes leaves every norm as it is, so only what is left is lost; the
        cost falls with their number.
    max_iter, tol : int, float
        Stops when the relative change of the tensor falls below ``tol``.
    dtype, device
        Of the computation; float32 halves the memory.

    Attributes
    ----------
    tensor_ : tensor ``[A, c, K]``, over genes or components
    objective_ : list of float
        Smoothed objective after each step.

    References
    ----------
    Liu, Musialski, Wonka, Ye (2013), Tensor completion for estimating missing values in visual data, IEEE TPAMI 35.
    """

    def __init__(
        self,
        *,
        weights: tuple[float, float, float] = (1.0, 0.01, 1.0),
        smoothing: float = 5.0,
        n_components: int | None = None,
        max_iter: int = 50,
        tol: float = 1e-4,
        dtype: torch.dtype = torch.float64,
        device: str | torch.device = "cpu",
        progress: bool | None = None,
    ) -> None:
        if len(weights) != 3 or min(weights) < 0 or not 0 < sum(weights) < np.inf:
            raise ConfigError(f"weights are three numbers ≥ 0, not all zero (actions, genes, contexts); got {weights}")
        if smoothing <= 0 or max_iter < 1 or tol < 0:
            raise ConfigError(f"smoothing > 0, max_iter ≥ 1, tol ≥ 0; got {smoothing}, {max_iter}, {tol}")
        if n_components is not None and n_components < 1:
            raise ConfigError(f"n_components must be at least 1, got {n_components}")
        self.n_components = n_components
        self.weights, self.smoothing, self.max_iter, self.tol = weights, smoothing, max_iter, tol
        self.dtype, self.device, self.progress = dtype, device, progress

    def fit(self, effects: Effects) -> FaLRTC:
        self.effects_ = checked(effects)
        self.mean_, self.components_ = _principal(effects.x, self.n_components)
        x = torch.as_tensor(effects.x @ self.components_.T, dtype=self.dtype, device=self.device)
        mean = x.mean(0)
        tensor = mean[None, :, None].repeat(effects.A, 1, effects.K)
        where = (
            torch.as_tensor(effects.action, device=self.device),
            torch.as_tensor(effects.context, device=self.device),
        )
        tensor[where[0], :, where[1]] = x
        missing = torch.ones(effects.A, 1, effects.K, dtype=self.dtype, device=self.device)
        missing[where[0], 0, where[1]] = 0
        alpha = [w / sum(self.weights) for w in self.weights]
        size = float(np.sqrt(np.square(effects.x).mean())) or 1.0
        smooth = SmoothNorms(
            alpha,
            [self.smoothing * a * size / n**0.5 for a, n in zip(alpha, (effects.A, effects.g, effects.K), strict=True)],
        )
        self.objective_: list[float] = []
        self.tensor_ = self._minimise(tensor, missing, smooth)
        return self

    def _minimise(self, x: Tensor, missing: Tensor, smooth: SmoothNorms) -> Tensor:
        """Nesterov's steps on the missing entries; the Lipschitz constant grows until the step decreases enough."""
        lipschitz, z, weight = smooth.lipschitz / 64, x.clone(), 0.0
        norm = float(x.norm()) or 1.0
        for _ in shown(range(self.max_iter), self.max_iter, self.progress):
            while True:
                theta = (1 + (1 + 4 * lipschitz * weight) ** 0.5) / (2 * lipschitz)
                w = (theta * z + weight * x) / (theta + weight)
                value, gradient = smooth(w)
                gradient *= missing
                slope = float(gradient.square().sum())
                step = w - gradient / lipschitz
                reached = smooth.value(step)
                if reached <= value - slope / (2 * lipschitz) * (1 - 1e-6) or lipschitz >= smooth.lipschitz:
                    break
                lipschitz *= 2
            z -= theta * gradient
            weight += theta
            change = float((step - x).norm()) / norm
            x = step
            self.objective_.append(reached)
            if change < self.tol:
                break
        return x

    def predict(self, pairs: pd.DataFrame | ArrayLike) -> Array:
        context, action = self.effects_.codes(pairs)
        at = torch.as_tensor(action, device=self.device), torch.as_tensor(context, device=self.device)
        coordinates = self.tensor_[at[0], :, at[1]].cpu().double().numpy()
        predicted = self.mean_ + coordinates @ self.components_
        return _where_untied(predicted, self.effects_, context, action)


class SmoothNorms:
    """Value and gradient of ``Σ_i α_i ‖X_(i)‖_*``, each norm smoothed by ``μ_i``."""

    def __init__(self, alpha: list[float], mu: list[float]) -> None:
        self.terms = [(i, a, m) for i, (a, m) in enumerate(zip(alpha, mu, strict=True)) if a > 0]
        self.lipschitz = sum(a * a / m for _, a, m in self.terms)

    def value(self, x: Tensor) -> float:
        return sum(self._norm(s, a, m) for _, a, m, s, _ in self._spectra(x))

    def __call__(self, x: Tensor) -> tuple[float, Tensor]:
        value, gradient = 0.0, torch.zeros_like(x)
        for i, a, m, s, u in self._spectra(x):
            value += self._norm(s, a, m)
            # U min(ασ/μ, 1) Vᵀ = U diag(min(α/μ, 1/σ)) Uᵀ X_(i), with U and σ from the small Gram matrix.
            shrink = a * torch.minimum(torch.full_like(s, a / m), 1 / s.clamp_min(torch.finfo(s.dtype).tiny))
            unfolded = x.movedim(i, 0)
            gradient += torch.tensordot((u * shrink) @ u.T, unfolded, dims=([1], [0])).movedim(0, i)
        return value, gradient

    def _spectra(self, x: Tensor) -> Any:
        for i, a, m in self.terms:
            unfolded = x.movedim(i, 0).reshape(x.shape[i], -1)
            gram = (unfolded @ unfolded.T).double()
            eigen, vectors = torch.linalg.eigh(gram)
            yield i, a, m, eigen.clamp_min(0).sqrt().to(x.dtype), vectors.to(x.dtype)

    @staticmethod
    def _norm(s: Tensor, a: float, m: float) -> float:
        y = (a * s / m).clamp_max(1)
        return float((a * s * y - m / 2 * y * y).double().sum())


class MaskedCP:
    """Canonical polyadic decomposition of the centred tensor by alternating least squares, missing pairs masked.

    ``x[k, a, i] − x̄[i] ≈ Σ_r u[k, r] v[a, r] w[i, r]``, through tensorly (optional: ``pip install tensorly``).

    Raises
    ------
    ConfigError
        Without tensorly.
    DataError
        Where the measured pairs do not determine factors of this rank.
    """

    def __init__(self, *, rank: int = 10, max_iter: int = 50, tol: float = 1e-5, random_state: int = 0) -> None:
        if rank < 1 or max_iter < 1:
            raise ConfigError(f"rank and max_iter must be at least 1, got {rank} and {max_iter}")
        self.rank, self.max_iter, self.tol, self.random_state = rank, max_iter, tol, random_state

    def fit(self, effects: Effects) -> MaskedCP:
        try:
            from tensorly.decomposition import parafac
        except ImportError as error:
            raise ConfigError("MaskedCP needs tensorly: pip install 'pyro-cge[peers]'") from error
        self.effects_ = checked(effects)
        self.mean_ = effects.x.mean(0)
        seen = effects.table() >= 0
        tensor = np.zeros((effects.K, effects.A, effects.g))
        tensor[effects.context, effects.action] = effects.x - self.mean_
        try:
            factors = parafac(
                tensor,
                self.rank,
                n_iter_max=self.max_iter,
                tol=self.tol,
                init="random",
                random_state=self.random_state,
                mask=np.broadcast_to(seen[:, :, None], tensor.shape),
            )
        except np.linalg.LinAlgError as error:
            raise DataError(
                f"masked CP of rank {self.rank} is singular on {effects.m} training pairs; lower the rank"
            ) from error
        weights, (self.contexts_, self.actions_, self.genes_) = factors
        self.contexts_ = self.contexts_ * weights
        return self

    def predict(self, pairs: pd.DataFrame | ArrayLike) -> Array:
        context, action = self.effects_.codes(pairs)
        predicted = self.mean_ + (self.contexts_[context] * self.actions_[action]) @ self.genes_.T
        return _where_untied(predicted, self.effects_, context, action)


def _principal(x: Array, n_components: int | None) -> tuple[Array, Array]:
    """An orthonormal basis ``[c, g]`` of the leading directions of the signatures, and the mean of what is left ``[g]``."""
    if n_components is None or n_components >= x.shape[1]:
        return np.zeros(x.shape[1]), np.eye(x.shape[1])
    _, vectors = np.linalg.eigh(x.T @ x)
    basis = vectors[:, ::-1][:, :n_components].T
    mean = x.mean(0)
    return mean - basis.T @ (basis @ mean), basis


def _where_untied(predicted: Array, effects: Effects, context: Any, action: Any) -> Array:
    """The context's mean where the context or the action has no training pair."""
    untied = ~np.isin(context, effects.context) | ~np.isin(action, effects.action)
    if untied.any():
        predicted[untied] = ContextMean().fit(effects).predict(np.stack([context, action], 1)[untied])
    return predicted

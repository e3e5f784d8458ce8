"""The conjugate posterior of a linear structural causal model whose graph is known, and the model as a Pyro program."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pyro
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike
from pyro.nn import PyroModule, pyro_method
from torch import Tensor

from ...discovery.distributions import LinearSEM
from ...errors import ConfigError, DataError


@dataclass(frozen=True, eq=False)
class WeightPosterior:
    """What is known of the weights of ``x = xW + a + ε`` after some shifts ``a`` and what they did.

    ::

        σ_j²           known, or InverseGamma(shape_j, rate_j)
        W[:, j] | σ_j² ~ Normal(mean_j, σ_j² V_j)           over the parents of j, zero elsewhere
        x | W, a       = (a + ε)(I − W)⁻¹,  ε_j ~ Normal(0, σ_j²)

    ``x`` is centred at the reference, ``a [p]`` moves the mean of the noise, and ``A[i, j] ≠ 0`` means i → j (the paper's
    ``B`` is ``Wᵀ``). Normal–inverse-gamma laws are conjugate node by node. A value: :meth:`update` gives a new one. All
    tensors may have leading dimensions (repetitions, candidate graphs), which broadcast.

    Parameters
    ----------
    A : Tensor ``[..., p, p]``
        Adjacency, 0 or 1.
    W : Tensor ``[..., p, p]``
        Mean of the weights.
    V : Tensor ``[..., p, p, p]``
        ``V[j]`` is the covariance of the weights into ``j`` in units of its noise variance, zero outside its parents.
    shape, rate : Tensor ``[..., p]``
        Of the noise variance. Infinite where it is known, ``rate`` then being the variance itself.
    log_evidence : Tensor ``[...]``
        Log marginal density of all data seen.

    References
    ----------
    Zhang, Cammarata, Squires, Sapsis, Uhler 2023 (Gaussian weights, known noise); Geiger, Heckerman 2002.
    """

    A: Tensor
    W: Tensor
    V: Tensor
    shape: Tensor
    rate: Tensor
    log_evidence: Tensor

    @staticmethod
    def prior(
        A: ArrayLike | Tensor,
        noise_variance: ArrayLike | Tensor | None = None,
        *,
        precision: float = 1.0,
        weights: ArrayLike | Tensor | None = None,
        noise_prior: tuple[float, float] = (2.0, 1.0),
        device: torch.device | str | None = None,
    ) -> WeightPosterior:
        """Before any data: ``W[i, j] ~ Normal(weights[i, j], σ_j² / precision)`` where ``A[i, j] ≠ 0``.

        Parameters
        ----------
        A : ``[..., p, p]``
            One DAG, or several along leading dimensions.
        noise_variance : ``[..., p]``, optional
            Known variances. Default: unknown, ``InverseGamma(*noise_prior)``.
        precision : float
            Of the weights, in units of the noise's.
        weights : ``[..., p, p]``, optional
            Prior mean, such as the weights of a fitted model; default zero.
        noise_prior : (float, float)
            Shape and rate; the shape must exceed 1, so that the variance has a mean.

        Raises
        ------
        ConfigError
            If ``A`` is not square or has a cycle, or a number is out of range.
        """
        A = (torch.as_tensor(A, device=device) != 0).double()
        p = A.shape[-1]
        if A.dim() < 2 or A.shape[-2] != p:
            raise ConfigError(f"A must be an adjacency matrix [..., p, p], got {list(A.shape)}")
        if torch.linalg.matrix_power(A, p).any():
            raise ConfigError("A has a directed cycle: the design needs an acyclic graph, A[i, j] != 0 meaning i → j")
        if not precision > 0 or not noise_prior[0] > 1 or not noise_prior[1] > 0:
            raise ConfigError(
                f"precision and rate must be positive and shape above 1, got {precision} and noise_prior={noise_prior}"
            )
        shape = A.new_full((*A.shape[:-2], p), math.inf if noise_variance is not None else noise_prior[0])
        rate = torch.as_tensor(
            noise_prior[1] if noise_variance is None else noise_variance, dtype=A.dtype, device=A.device
        )
        if not (rate > 0).all():
            raise ConfigError("noise_variance must be positive for every node: a node without noise has no likelihood")
        W = A * torch.as_tensor(0.0 if weights is None else weights, dtype=A.dtype, device=A.device)
        V = torch.diag_embed(A.transpose(-1, -2)) / precision
        return WeightPosterior(A, W, V, shape, rate.expand(shape.shape), A.new_zeros(A.shape[:-2]))

    @property
    def p(self) -> int:
        """Nodes."""
        return self.A.shape[-1]

    @property
    def known_noise(self) -> bool:
        return bool(self.shape.isinf().all())

    @property
    def noise_variance(self) -> Tensor:
        """Known, or the posterior mean ``[..., p]``."""
        return self.rate if self.known_noise else self.rate / (self.shape - 1)

    @property
    def total_effects(self) -> Tensor:
        """``(I − W)⁻¹ [..., p, p]`` at the mean weights: row ``i`` is what a unit shift of ``i`` does to every node."""
        return torch.linalg.inv(torch.eye(self.p).to(self.W) - self.W)

    def optimal_shift(self, target: Tensor) -> Tensor:
        """Posterior mean of the shift that moves the mean to ``target [..., p]``: ``a* = target (I − W)``."""
        return target - (target.unsqueeze(-2) @ self.W).squeeze(-2)

    def update(self, x: Tensor, shift: Tensor) -> WeightPosterior:
        """After ``x [..., n, p]``, ``n`` samples under ``shift [..., p]`` (or one shift a sample, ``[..., n, p]``)::

            V' = (I + V XᵀX)⁻¹ V,   mean' = mean + V' Xᵀr,   r = x_j − a_j − X mean

        which needs no inverse of the singular ``V``, and costs the same for one sample and for a thousand.

        Raises
        ------
        DataError
            If ``x`` is not finite or has the wrong number of nodes.
        """
        x, shift = (torch.as_tensor(value, dtype=self.W.dtype, device=self.W.device) for value in (x, shift))
        if x.dim() < 2 or x.shape[-1] != self.p or shift.shape[-1] != self.p:
            raise DataError(
                f"x must be [..., n, {self.p}] and shift [..., {self.p}], got {list(x.shape)}, {list(shift.shape)}"
            )
        if not x.isfinite().all() or not shift.isfinite().all():
            raise DataError("x and shift must be finite: drop or impute missing values before the update")
        if shift.dim() < x.dim():
            shift = shift.unsqueeze(-2)
        n = x.shape[-2]
        gram = (x.transpose(-1, -2) @ x).unsqueeze(-3)
        residual = x - shift - x @ self.W
        system = torch.eye(self.p).to(x) + self.V @ gram
        V = torch.linalg.solve(system, self.V)
        V = (V + V.transpose(-1, -2)) / 2
        pull = (x.transpose(-1, -2) @ residual).transpose(-1, -2)  # [..., effect, cause]
        step = (V @ pull.unsqueeze(-1)).squeeze(-1)
        # Squares of the residuals in the metric of their predictive covariance σ² (I + X V Xᵀ), and its determinant.
        squares = residual.square().sum(-2) - (pull * step).sum(-1)
        log_det = torch.linalg.slogdet(system)[1]
        if self.known_noise:
            shape, rate = self.shape, self.rate
            density = -0.5 * (n * (2 * math.pi * rate).log() + log_det + squares / rate)
        else:
            shape, rate = self.shape + n / 2, self.rate + squares / 2
            density = torch.lgamma(shape) - torch.lgamma(self.shape) - 0.5 * (n * math.log(2 * math.pi) + log_det)
            density = density + self.shape * self.rate.log() - shape * rate.log()
        return replace(
            self,
            W=self.W + step.transpose(-1, -2),
            V=V,
            shape=shape,
            rate=rate,
            log_evidence=self.log_evidence + density.sum(-1),
        )


class ShiftSCM(PyroModule):
    """A linear structural causal model under shift interventions, its weights drawn from a :class:`WeightPosterior`.

    ::

        noise_variance_j ~ InverseGamma(shape_j, rate_j)          where unknown
        W[:, j]          ~ Normal(mean_j, noise_variance_j V_j)   [effects × causes]; entries without an edge are unused
        x                ~ LinearSEM(W ⊙ A, shift, √noise_variance)    samples × p

    ``guide`` is the exact posterior, so that the ELBO of every single draw is the log evidence.

    Parameters
    ----------
    prior : WeightPosterior
        Of one graph (no leading dimensions).
    """

    def __init__(self, prior: WeightPosterior) -> None:
        super().__init__()
        if prior.A.dim() != 2:
            raise ConfigError(f"ShiftSCM needs one graph, got leading dimensions {list(prior.A.shape[:-2])}")
        self.prior = prior

    @pyro_method
    def model(self, shift: Tensor, x: Tensor | None = None) -> Tensor:
        """Samples ``x [n, p]`` under ``shift [n, p]``; drawn where not given."""
        variance, W = self._draw(self.prior)
        with pyro.plate("samples", shift.shape[-2]):
            law = LinearSEM(W, shift.to(W), variance.sqrt(), acyclic=True)
            return pyro.sample("x", law, obs=x)

    @pyro_method
    def guide(self, shift: Tensor, x: Tensor) -> None:
        """Draws from the posterior given ``x``."""
        self._draw(self.prior.update(x, shift))

    @staticmethod
    def _draw(belief: WeightPosterior) -> tuple[Tensor, Tensor]:
        """Sites ``noise_variance`` (where unknown) and ``W`` ``[effect, cause]``; variances and ``W ⊙ A``, causes first."""
        variance = belief.rate
        if not belief.known_noise:
            variance = pyro.sample("noise_variance", dist.InverseGamma(belief.shape, belief.rate).to_event(1))
        parents = belief.A.transpose(-1, -2)
        factor = torch.linalg.cholesky(belief.V + torch.diag_embed(1 - parents))
        factor = factor * variance.sqrt().unsqueeze(-1).unsqueeze(-1)
        law = dist.MultivariateNormal(belief.W.transpose(-1, -2), scale_tril=factor)
        return variance, pyro.sample("W", law.to_event(1)).transpose(-1, -2) * belief.A

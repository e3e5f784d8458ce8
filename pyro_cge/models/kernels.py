"""A Gaussian process over environments: what one does to the latents says what a similar one does.

::

    kernel = minmax(counts, counts) * cells                       any positive semi-definite [E, E]
    features = nystroem(kernel, training_rows, rank=1000)         φ [E, r] with φ φᵀ ≈ kernel
    prior = KernelPrior(replace(data, env_features=features), d)

Kernels are numbers that code outside makes from whatever is known of an environment (structures, annotations, basal
profiles); sums and products of kernels are kernels. :func:`fit_kernel` learns the weights of a sum.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..data.environment import Batch, EnvironmentData
from ..errors import ConfigError, DataError, check_positive
from ..scm.shifts import NoiseShift
from .networks import soft_clamp
from .priors import NONE, LatentPrior, Support

JITTER = 1e-6  # of a kernel's mean diagonal
SPREAD_RANGE = (-7.0, 5.0)  # log τ


class KernelPrior(LatentPrior):
    """``env_loc[:, j] ~ GP(0, τ_j² k)`` with ``k(e, e') = φ_e · φ_e'``, ``Z_j | e ~ N(env_loc[e, j], 1)``.

    Written in weight space, which is the same law and lets profiles come in minibatches::

        perturbation_shift[p, j] ~ N(0, τ_j²)                  basis functions × d
        env_loc[e, j] = Σ_p φ_ep · perturbation_shift[p, j]     envs × d

    Basis functions take the place of the perturbations of :class:`~pyro_cge.models.perturbations.PerturbationPrior`, and
    the features ``φ`` (``data.env_features [E, r]``) that of doses. An environment never seen is predicted from its
    features alone, with the posterior's uncertainty, and falls back to the reference the less it resembles training. ``τ``
    is learned (empirical Bayes): latents that environments do not move get a small one. With a
    :class:`~pyro_cge.models.decoders.LinearDecoder` the model is a low-rank multi-task Gaussian process (the linear model
    of coregionalisation; Bonilla et al. 2008, Álvarez et al. 2012).

    What an environment does that no basis function tells is noise of its own, ``Z_j | e ~ N(env_loc[e, j], 1 + τ_j² o_e²)``,
    where features come with its standard deviation ``o_e`` (the FITC approximation, Snelson & Ghahramani 2006): an
    environment unlike all of training is predicted with that much less certainty.

    Parameters
    ----------
    data : EnvironmentData
        Whose features are ``φ``; see :func:`nystroem`.
    d : int
        Latents.
    spread : float
        Initial ``τ``, in reference standard deviations.
    own : bool
        The last feature is ``o_e``.

    Raises
    ------
    DataError
        If the data have no environment features.
    """

    supports: Mapping[str, Support] = {"shift": "real"}

    def __init__(self, data: EnvironmentData, d: int, *, spread: float = 1.0, own: bool = False) -> None:
        super().__init__(data, d)
        if data.n_features is None or data.n_features <= own:
            raise DataError(
                "KernelPrior needs env_features [E, r], whose inner products are the kernel; see nystroem()"
            )
        check_positive(spread=spread)
        self.basis = EnvironmentData(
            x=torch.empty(0, data.g),
            env=torch.empty(0, dtype=torch.long),
            gene_names=data.gene_names,
            env_names=[f"basis {p}" for p in range(data.n_features - own)],
        )
        self.own = own
        self.log_spread = nn.Parameter(torch.empty(d))
        self.set_spread(torch.full((d,), float(spread)))

    @property
    def unit_schema(self) -> EnvironmentData:
        return self.basis

    @property
    def spread(self) -> Tensor:
        """``τ [d]``: how far environments move each latent, in reference standard deviations."""
        return soft_clamp(self.log_spread, *SPREAD_RANGE).exp()

    def response(self, batch: Batch) -> Tensor:
        """``φ [E_b, r]``: zero in controls."""
        if batch.env_features is None:
            raise DataError("this model reads kernel features from env_features [E, r], but the batch has none")
        return batch.env_features[..., : self.basis.n_envs] * ~batch.is_control.unsqueeze(-1)

    def units(self, batch: Batch) -> Batch:
        """All basis functions, whatever the environments of the batch."""
        everyone = torch.arange(self.basis.n_envs, device=batch.envs.device)
        return replace(
            batch,
            x=None,
            envs=everyone,
            env_features=None,
            is_control=torch.zeros_like(everyone, dtype=torch.bool),
            env_counts=torch.ones_like(everyone),
            n_envs=len(everyone),
            unit="perturbation",
            weight=self.log_spread.new_ones(len(everyone)),
        )

    def effects(self, batch: Batch) -> dict[str, Tensor]:
        law = dist.Normal(torch.zeros_like(self.spread), self.spread).to_event(1)
        return {"shift": pyro.sample(f"{batch.unit}_shift", law)}

    def shift(self, batch: Batch, effects: Mapping[str, Tensor] = NONE) -> NoiseShift:
        if "shift" not in effects:
            raise ValueError(
                "KernelPrior needs the latent effects ['shift']: take them from a guide (guide.shift(batch) is the "
                "posterior mean), or draw them with prior.effects(prior.units(batch))"
            )
        loc = self.response(batch) @ effects["shift"]
        log_scale = torch.zeros_like(loc)
        if self.own:
            sd = cast(Tensor, batch.env_features)[..., -1:] * ~batch.is_control.unsqueeze(-1)
            log_scale = log_scale + 0.5 * torch.log1p((sd * self.spread).square())
        return NoiseShift(loc, log_scale)

    @torch.no_grad()
    def start_at(self, shift: NoiseShift, batch: Batch) -> None:
        """``τ`` that maximises the marginal likelihood of means ``shift.loc ~ GP(0, τ² k) + N(0, 1)``."""
        _, values, rotated = self._spectrum(shift.loc, batch)
        grid = torch.linspace(-5.0, 3.0, 161, dtype=values.dtype, device=values.device)
        variance = 1 + values[:, None] * (2 * grid).exp()
        evidence = -0.5 * (variance.log().sum(0)[:, None] + (1 / variance).T @ rotated.square())
        self.set_spread(grid[evidence.argmax(0)].exp())

    @torch.no_grad()
    def set_spread(self, spread: Tensor) -> None:
        """Set ``τ [d]`` (kept within the bounds of the parametrisation)."""
        low, high = SPREAD_RANGE
        middle, half = (low + high) / 2, (high - low) / 2
        log = spread.log().clamp(low + 1e-3, high - 1e-3)
        self.log_spread.copy_(middle + half * torch.atanh((log - middle) / half))

    @torch.no_grad()
    def condition(self, loc: Tensor, batch: Batch, noise: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """Posterior mean and sd ``[r, d]`` of the basis functions' effects, given environments' means seen with noise.

        ``loc[e, j] ~ N(env_loc[e, j], noise_j²)`` for the batch's environments. The sds are those of independent effects;
        with features made by :func:`nystroem` from these very environments the effects are independent.

        Parameters
        ----------
        loc : Tensor ``[E_b, d]``
        noise : Tensor ``[d]`` or float
            Standard deviation; 1 is the noise of ``Z`` in one profile.
        """
        basis, values, rotated = self._spectrum(loc, batch)
        precision = torch.as_tensor(noise, dtype=values.dtype, device=values.device) ** -2
        spread = self.spread.double()
        # Φ = U S Vᵀ:  W_j = V (S² / noise² + τ_j⁻²)⁻¹ S Uᵀ loc_j / noise²
        each = 1 / (values[:, None] * precision + spread**-2)
        mean = basis @ (each * precision * values.sqrt()[:, None] * rotated)
        variance = spread**2 + basis.square() @ (each - spread**2)
        return mean.to(loc.dtype), variance.clamp_min(0).sqrt().to(loc.dtype)

    def unit_shift(self, shift: NoiseShift, batch: Batch) -> NoiseShift:
        """Posterior-mean effects of the basis functions given ``shift.loc``, seen with the unit noise of ``Z``."""
        loc, _ = self.condition(shift.loc, batch)
        return NoiseShift(loc, torch.zeros_like(loc))

    def starting_effects(self, shift: NoiseShift) -> dict[str, Tensor]:
        return {"shift": shift.loc}

    def _spectrum(self, loc: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """``V [r, m], S² [m], Uᵀ loc [m, d]`` of the treated environments' features ``Φ = U S Vᵀ``."""
        treated = ~batch.is_control
        features = self.response(batch)[treated].double()
        values, basis = torch.linalg.eigh(features.T @ features)
        keep = values > JITTER * values[-1].clamp_min(1e-12)
        values, basis = values[keep], basis[:, keep]
        return basis, values, (basis.T @ (features.T @ loc[treated].double())) / values.sqrt()[:, None]


def minmax(a: Tensor, b: Tensor) -> Tensor:
    """Min–max kernel of counts ``a [m, f]`` and ``b [n, f]``: ``Σ min(a, b) / Σ max(a, b)`` ``[m, n]``.

    The Tanimoto similarity of binary fingerprints, extended to counts (Ralaivola et al. 2005). Two empty rows are similar
    to nothing.

    Raises
    ------
    DataError
        For negative entries or tables that differ in columns.
    """
    if a.shape[-1] != b.shape[-1]:
        raise DataError(f"counts to compare have {a.shape[-1]} and {b.shape[-1]} columns")
    if (a < 0).any() or (b < 0).any():
        raise DataError("the min–max kernel compares counts, which are not negative")
    distance = torch.cdist(a, b, p=1.0)
    total = a.sum(-1)[:, None] + b.sum(-1)
    return (total - distance) / (total + distance).clamp_min(torch.finfo(a.dtype).tiny)


def nystroem(
    kernel: Tensor, landmarks: Tensor | Sequence[int], rank: int | None = None, *, own: bool = False
) -> Tensor:
    """Features ``φ [E, r]``, float32, with ``φ φᵀ = K_el K_ll⁻¹ K_le``: the kernel as the landmarks see it.

    Exact among the landmarks (training environments, say) up to what the ``rank`` largest of their eigenvalues leave out.
    Which environments are new has no influence on the features of the others.

    Parameters
    ----------
    kernel : Tensor ``[E, E]``
        Symmetric, positive semi-definite.
    landmarks : row numbers ``[m]``
    rank : int, optional
        At most ``r``; default all ``m``. Directions of no variance are left out in any case.
    own : bool
        One column more, ``o_e = √(k(e, e) − |φ_e|²)``: what the landmarks do not see of an environment.
    """
    rows = torch.as_tensor(landmarks, dtype=torch.long, device=kernel.device)
    inner = kernel[rows][:, rows].double()
    values, vectors = torch.linalg.eigh(inner)
    values, vectors = values.flip(0), vectors.flip(1)
    keep = values > JITTER * values[0]
    keep[len(rows) if rank is None else rank :] = False
    features = kernel[:, rows].double() @ (vectors[:, keep] / values[keep].sqrt())
    if own:
        rest = (kernel.diagonal().double() - features.square().sum(1)).clamp_min(0).sqrt()
        features = torch.cat([features, rest[:, None]], 1)
    return features.float()


def leave_groups_out(
    kernel: Tensor, y: Tensor, groups: Sequence[Hashable] | np.ndarray, noise: float
) -> tuple[Tensor, Tensor]:
    """What a Gaussian process predicts of each row of ``y`` from the rows of other groups, and with which variance.

    In closed form from one inverse: with ``Q = (K + noise · I)⁻¹``, the residuals of group ``G`` are ``Q_GG⁻¹ (Q y)_G`` and
    their covariance, noise included, is ``Q_GG⁻¹`` (Rasmussen & Williams 2006, section 5.4.2, for groups of one).

    Parameters
    ----------
    kernel : Tensor ``[n, n]``
    y : Tensor ``[n, q]``
    groups : sequence of ``n`` labels
    noise : float
        Variance.

    Returns
    -------
    predictions : Tensor ``[n, q]``
    variance : Tensor ``[n]``, the same for all outputs
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(kernel + noise * torch.eye(len(y)).to(kernel)))
    product, residual, variance = inverse @ y, torch.empty_like(y), torch.empty_like(y[:, 0])
    for rows in _by_size(np.asarray(groups), kernel.device):
        covariance = torch.linalg.inv(inverse[rows[:, :, None], rows[:, None, :]])
        residual[rows], variance[rows] = covariance @ product[rows], covariance.diagonal(dim1=-2, dim2=-1)
    return y - residual, variance


def _by_size(groups: np.ndarray, device: torch.device) -> list[Tensor]:
    """Row numbers of the groups, those of one size together ``[groups, size]``."""
    _, codes, counts = np.unique(groups, return_inverse=True, return_counts=True)
    each = np.split(np.argsort(codes, kind="stable"), np.cumsum(counts)[:-1])
    return [
        torch.from_numpy(np.stack([rows for rows in each if len(rows) == size])).to(device)
        for size in np.unique(counts)
    ]


class KernelFit(NamedTuple):
    """``weights [K]`` of the kernels and the ``noise`` variance, relative to the outputs' own scales."""

    weights: Tensor
    noise: Tensor
    log_evidence: float


def fit_kernel(kernels: Tensor, y: Tensor, *, steps: int = 60, lr: float = 0.2) -> KernelFit:
    """Weights of a sum of kernels by exact marginal likelihood (type II), shared by all outputs.

    ``y[:, j] ~ N(0, s_j² (Σ_k w_k K_k + σ² I))`` with every ``s_j`` at its maximum, ``s_j² = yᵀ C⁻¹ y / n``: one Cholesky
    factor in float64 serves all outputs. Overall scale is therefore free; the weights come out with ``Σ w + σ² = 1``.

    Parameters
    ----------
    kernels : Tensor ``[K, n, n]``
    y : Tensor ``[n, q]``
        Outputs, principal components of expression say, centred or with a constant kernel among the kernels.
    steps, lr
        Of Adam on the logarithms.
    """
    if kernels.dim() != 3 or kernels.shape[1:] != (len(y), len(y)):
        raise ConfigError(f"kernels must be [K, {len(y)}, {len(y)}] for {len(y)} rows of y, got {list(kernels.shape)}")
    y = y.double()
    raw = torch.zeros(len(kernels) + 1, dtype=torch.float64, device=y.device, requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=lr)
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            loss = -_log_evidence(kernels, y, torch.softmax(raw, 0))
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        shares = torch.softmax(raw, 0)
        evidence = float(_log_evidence(kernels, y, shares)) * y.numel()
    return KernelFit(shares[:-1].float(), shares[-1].float(), evidence)


def _log_evidence(kernels: Tensor, y: Tensor, shares: Tensor) -> Tensor:
    """Log marginal likelihood of ``y`` an entry, outputs' scales profiled out."""
    n = len(y)
    covariance = torch.einsum("k,kij->ij", shares[:-1].to(kernels), kernels).double()
    covariance = covariance + (shares[-1] + JITTER) * torch.eye(n, dtype=y.dtype, device=y.device)
    factor = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(factor, y, upper=False)
    scales = white.square().mean(0)
    return -0.5 * (math.log(2 * math.pi) + 1 + scales.log().mean() + 2 * factor.diagonal().log().mean())

"""Synthetic interventions with a posterior over the donors' weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ..discovery.variational import train_guide
from ..errors import ConfigError
from ..seeds import isolated
from .baselines import ContextMean, checked
from .effects import Array, Codes, Effects
from .synthetic import DONORS, DonorTable, Regression

PRIORS = ("ridge", "horseshoe")


@dataclass(frozen=True)
class Regressions:
    """B regressions side by side, donors padded to D.

    ``root [B, D, D]`` and ``y [B, D]`` are the triangular factor R and the rotated target Qᵀy of each: with the residual
    sum of squares ``rss [B]`` on ``free [B]`` degrees of freedom they are sufficient for weights and noise. ``padded [B, D]``
    marks columns that are no donors.
    """

    root: Tensor
    y: Tensor
    rss: Tensor
    free: Tensor
    padded: Tensor


class BayesianSyntheticInterventions(PyroModule):
    """Synthetic interventions whose donor weights have a posterior.

    ::

        noise_scale  ~ LogNormal(log s, 1)               of each pair to impute; s its target's spread
        donor_scale  ~ HalfCauchy(0.5)
        donor_local  ~ HalfCauchy(1)                      horseshoe only, one a donor
        weights      ~ Normal(0, donor_scale · donor_local)
        x[l, a, i]   ~ Normal(Σ_b weights_b x[l, b, i], noise_scale · s_i)    in the shared contexts l

    The donors are those of :class:`SyntheticInterventions`. The last line enters through its sufficient statistics, the
    sites ``y`` (the target in the donors' column space) and ``rss`` (the residual sum of squares). ``s_i`` is the spread
    of gene i; genes are correlated, so the likelihood counts for the number of independent genes, not of all: the
    participation ratio ``(tr Σ)² / tr Σ²`` of the gene covariance Σ. The guide is log-normal in the scales and takes the
    exact conditional of the weights.

    The noise of a prediction is that of the shared contexts, times the ratio of the variances of the two contexts.

    Parameters
    ----------
    donors : {"actions", "contexts"}
    prior : {"ridge", "horseshoe"}
        ``"ridge"`` has no ``donor_local``: all donors count; with the horseshoe few do.
    max_donors, min_shared : int
        As in :class:`SyntheticInterventions`.
    steps, lr : int, float
        Of Adam, for all pairs at once.
    samples : int
        Posterior draws behind mean and standard deviation.
    progress : bool, optional
    random_state : int

    References
    ----------
    Squires, Shen, Agarwal, Shah, Uhler (2022), Causal imputation via synthetic interventions, CLeaR. Carvalho, Polson,
    Scott (2010), The horseshoe estimator for sparse signals, Biometrika 97.
    """

    def __init__(
        self,
        *,
        donors: str = "actions",
        prior: str = "ridge",
        max_donors: int = 30,
        min_shared: int = 1,
        steps: int = 200,
        lr: float = 0.1,
        samples: int = 100,
        progress: bool | None = None,
        random_state: int = 0,
    ) -> None:
        super().__init__()
        if donors not in DONORS:
            raise ConfigError(f"donors must be 'actions' or 'contexts', got {donors!r}")
        if prior not in PRIORS:
            raise ConfigError(f"prior must be 'ridge' or 'horseshoe', got {prior!r}")
        if min(max_donors, min_shared, steps, samples) < 1 or lr <= 0:
            raise ConfigError("max_donors, min_shared, steps and samples must be at least 1, lr positive")
        self.donors, self.prior, self.max_donors, self.min_shared = donors, prior, max_donors, min_shared
        self.steps, self.lr, self.samples = steps, lr, samples
        self.progress, self.random_state = progress, random_state

    def fit(self, effects: Effects) -> BayesianSyntheticInterventions:
        """Keep the training pairs and the spread of the genes; weights belong to the pair to impute."""
        self.effects_ = checked(effects)
        residual = effects.x - ContextMean().fit(effects).predict(effects.pairs)
        spread = np.sqrt((residual**2).mean(0))
        self.gene_scale_ = np.where(spread > 0, spread, spread[spread > 0].mean() if spread.any() else 1.0)
        scaled = residual / self.gene_scale_
        gram = scaled @ scaled.T if effects.m < effects.g else scaled.T @ scaled
        self.independent_ = float(np.clip(np.trace(gram) ** 2 / max((gram**2).sum(), 1e-300), 1, effects.g))
        strength = np.bincount(effects.context, (scaled**2).mean(1), effects.K) / np.maximum(
            np.bincount(effects.context, minlength=effects.K), 1
        )
        self.strength_ = np.where(strength > 0, strength, strength[strength > 0].mean() if strength.any() else 1.0)
        return self

    # Pyro

    @pyro_method
    def model(self, batch: Regressions) -> None:
        """All regressions of the batch, in the plate ``pairs``."""
        n, d = batch.y.shape
        with pyro.plate("pairs", n):
            noise = pyro.sample("noise_scale", dist.LogNormal(self._log_spread(batch), 1.0))
            scale = pyro.sample("donor_scale", dist.HalfCauchy(batch.y.new_full((n,), 0.5)))[:, None]
            if self.prior == "horseshoe":
                scale = scale * pyro.sample("donor_local", dist.HalfCauchy(torch.ones_like(batch.y)).to_event(1))
            scale = scale.expand(n, d)
            weights = pyro.sample("weights", dist.Normal(torch.zeros_like(scale), scale).to_event(1))
            mean = (batch.root @ weights[..., None]).squeeze(-1)
            pyro.sample("y", dist.Normal(mean, noise[:, None]).to_event(1), obs=batch.y)
            # rss / noise² is χ² on its degrees of freedom.
            pyro.sample("rss", dist.Gamma(batch.free / 2, 1 / (2 * noise**2)), obs=batch.rss)

    @pyro_method
    def guide(self, batch: Regressions) -> None:
        """Log-normal scales, and the exact conditional of the weights given them."""
        n = len(batch.y)
        with pyro.plate("pairs", n):
            noise = pyro.sample("noise_scale", dist.LogNormal(self.noise_loc, self.noise_log_sd.exp()))
            scale = pyro.sample("donor_scale", dist.LogNormal(self.scale_loc, self.scale_log_sd.exp()))[:, None]
            if self.prior == "horseshoe":
                local = dist.LogNormal(self.local_loc, self.local_log_sd.exp()).to_event(1)
                scale = scale * pyro.sample("donor_local", local)
            prior_precision = scale.expand(batch.y.shape).clamp_min(1e-6).square().reciprocal()
            pyro.sample("weights", _conditional(batch, noise, prior_precision))

    def start(self, batch: Regressions) -> None:
        """Make the guide's parameters for these regressions."""
        n, d = batch.y.shape
        self.noise_loc = nn.Parameter(self._log_spread(batch))
        self.noise_log_sd = nn.Parameter(torch.full_like(batch.rss, -2.0))
        self.scale_loc = nn.Parameter(torch.full_like(batch.rss, -2.0))
        self.scale_log_sd = nn.Parameter(torch.full_like(batch.rss, -1.0))
        if self.prior == "horseshoe":
            self.local_loc = nn.Parameter(batch.y.new_zeros(n, d))
            self.local_log_sd = nn.Parameter(batch.y.new_full((n, d), -0.5))

    @staticmethod
    def _log_spread(batch: Regressions) -> Tensor:
        total = batch.y.square().sum(-1) + batch.rss
        return (total / (batch.free + (~batch.padded).sum(-1))).clamp_min(1e-12).log() / 2

    # Predictions

    def regressions(self, pairs: pd.DataFrame | ArrayLike) -> tuple[Codes, list[Regression], Regressions]:
        """Positions of the pairs that have donors, their regressions, and the same side by side."""
        effects = self.effects_
        scaled = replace(effects, x=effects.x / self.gene_scale_)
        context, action = effects.codes(pairs)
        found = DonorTable(scaled, self.donors, self.max_donors, self.min_shared).regressions(context, action)
        there = np.array([i for i, one in enumerate(found) if one is not None], dtype=np.int64)
        kept = [one for one in found if one is not None]
        return there, kept, _side_by_side(kept, self.independent_ / effects.g)

    def predict(self, pairs: pd.DataFrame | ArrayLike, return_std: bool = False) -> Array | tuple[Array, Array]:
        """Mean, and standard deviation of a new measurement, of each pair ``[p, g]``.

        Without a donor that shares a context: mean and spread of the context (of all, where it has no training pair).
        """
        effects = self.effects_
        context, action = effects.codes(pairs)
        mean = ContextMean().fit(effects).predict(np.stack([context, action], 1))
        std = np.sqrt(self.strength_)[context][:, None] * self.gene_scale_
        there, kept, batch = self.regressions(pairs)
        if len(there):
            drawn = self.posterior(batch)
            noise = drawn["noise_scale"].square().mean(0).sqrt().numpy()
            weights = drawn["weights"].numpy()  # [S, B, D]
            for b, one in enumerate(kept):
                d = len(one.rows)
                donors = effects.x[one.rows] / self.gene_scale_ - one.donor_mean[:, None]
                draws = weights[:, b, :d] @ donors
                at = there[b]
                mean[at] = (one.target_mean + draws.mean(0)) * self.gene_scale_
                elsewhere = one.shared if self.donors == "actions" else effects.context[one.rows]
                ratio = self.strength_[context[at]] / self.strength_[elsewhere].mean()
                std[at] = np.sqrt(draws.var(0) + noise[b] ** 2 * ratio) * self.gene_scale_
        return (mean, std) if return_std else mean

    def posterior(self, batch: Regressions) -> dict[str, Tensor]:
        """Fit the guide to these regressions; ``samples`` draws of every site ``[S, B, …]``."""
        self.start(batch)
        loss = Trace_ELBO()
        optimiser = torch.optim.Adam(self.parameters(), self.lr, fused=True)
        n = len(batch.y)
        self.losses_ = train_guide(
            lambda: loss.differentiable_loss(self.model, self.guide, batch) / n,
            optimiser,
            steps=self.steps,
            decay=0.1,
            seed=self.random_state,
            progress=self.progress,
        )
        with torch.no_grad(), isolated(self.random_state, "posterior"), pyro.get_param_store().scope():
            traces = [pyro.poutine.trace(self.guide).get_trace(batch) for _ in range(self.samples)]
        names = ["noise_scale", "donor_scale", "weights", *(["donor_local"] if self.prior == "horseshoe" else [])]
        return {name: torch.stack([cast(Tensor, trace.nodes[name]["value"]) for trace in traces]) for name in names}


def _side_by_side(regressions: list[Regression], share: float) -> Regressions:
    """Sufficient statistics of each regression, counted for ``share`` of their entries."""
    n, d = len(regressions), max((len(one.rows) for one in regressions), default=0)
    gram, cross, padded = np.zeros((n, d, d)), np.zeros((n, d)), np.ones((n, d), dtype=bool)
    square, count = np.zeros(n), np.zeros(n)
    for b, one in enumerate(regressions):
        k = len(one.rows)
        gram[b, :k, :k], cross[b, :k], padded[b, :k] = one.gram, one.cross, False
        square[b], count[b] = one.square, one.n
    ridge = 1e-8 * np.maximum(np.trace(gram, axis1=1, axis2=2) / np.maximum((~padded).sum(1), 1), 1e-12)
    root = torch.linalg.cholesky(
        torch.from_numpy(gram * share) + torch.diag_embed(torch.from_numpy(ridge)[:, None].expand(n, d) * share)
    ).mT
    y = torch.linalg.solve_triangular(root.mT, torch.from_numpy(cross * share)[..., None], upper=False).squeeze(-1)
    free = np.maximum(count * share - (~padded).sum(1), 1.0)
    rss = (torch.from_numpy(square * share) - y.square().sum(-1)).clamp_min(1e-9)
    return Regressions(root, y, rss, torch.from_numpy(free), torch.from_numpy(padded))


def _conditional(batch: Regressions, noise: Tensor, prior_precision: Tensor) -> dist.MultivariateNormal:
    """The weights given noise and prior scales: ``N(P⁻¹ Rᵀy/σ², P⁻¹)``, ``P = RᵀR/σ² + diag(prior precision)``."""
    root = batch.root / noise[..., None, None]
    precision = root.mT @ root + torch.diag_embed(prior_precision)
    right = root.mT @ (batch.y / noise[..., None])[..., None]
    # P = UᵀU with U lower triangular, by a Cholesky factorisation from the last column on; then P⁻¹ = U⁻¹ U⁻ᵀ.
    lower = torch.linalg.cholesky(precision.flip((-2, -1))).flip((-2, -1)).mT
    identity = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
    scale_tril = torch.linalg.solve_triangular(lower, identity, upper=False)
    mean = (scale_tril @ (scale_tril.mT @ right)).squeeze(-1)
    return dist.MultivariateNormal(mean, scale_tril=scale_tril)

"""``NTKGP``: Bayesian regression of every pair's signature on every other's, with the uncertainty that comes with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ...errors import ConfigError, DataError
from ..baselines import checked
from ..effects import Array, Codes, Effects
from ..protocol import Imputer
from .completion import PriorRows
from .pair_kernel import TERMS, CrossFitted, PairKernel, Rows

LARGE = 6000  # rows from which one factor serves all components
BLOCKS = (10, 50)
PER_BLOCK = 40  # components that the variances of a block are learned from
ROWS_AT_ONCE = 1000  # of a prediction


class NTKGP:
    """Exact Gaussian-process imputation of contexts × actions × genes.

    ::

        (X − μ) V / rms ~ outputs: x in the basis V of its principal components, each of mean square 1
        y[·, j]   ~ GP(0, k + σ² ν)                                for each component j, variances shared by blocks

        k = s₀ + s_c κ_c + s_0 δ_c                                 context
          + a_d a_d' (s_d k_d + s_cd κ_c k_d                       structure of the action
                      + s_a δ_d + s_ca κ_c δ_d                     the action itself
                      + s_s k_s + s_cs κ_c k_s)                    what the action does elsewhere
        ν = a_d

    ``κ_c`` is how alike contexts respond (:func:`~pyro_cge.imputation.ntk.pair_kernel.context_similarity`, from shared actions
    and basal expression), ``k_d`` the Tanimoto similarity of fingerprints, ``k_s`` the neural tangent kernel of cross-fitted
    signatures (:class:`~pyro_cge.imputation.ntk.pair_kernel.CrossFitted`: a row's features do not tell its own signature), ``a_d`` the strength of the action. Each variance is a sample site of
    :class:`~pyro_cge.imputation.ntk.variance_model.VarianceModel`; first components, where most of the signal is, have their own.
    One Cholesky factor serves all genes of a block. A component's prediction is then scaled by its leave-one-out slope, and
    its variance by that of its standardised leave-one-out residuals, both in closed form.

    ``μ`` is the genes' mean over training pairs; 0 with fixed variances.

    Nothing has to be known of contexts or actions; an action without training pairs is predicted from its structure and
    the context's mean, a context without from its basal expression and the mean of all.

    Parameters
    ----------
    inference : {"map", "svi", "nuts"}
        How variances are learned. Predictions average over the posterior draws of the latter two.
    variances : mapping, optional
        Fixed variances instead: of ``TERMS`` and ``"noise"``, those not named 0. Then nothing is learned or scaled.
    prior : {"cross-fitted", "reference"}
        Signatures that ``k_s`` compares. With "reference" (:class:`~pyro_cge.imputation.ntk.completion.PriorRows`),
        ``variances={"signature": 1}`` and ``strength=False`` this is :class:`~pyro_cge.imputation.ntk.completion.NTKCompletion`.
    feature : imputer, optional
        Of the mixed reference prior.
    strength : bool
        Learn ``a_d``; else 1.
    depth : int
        Hidden layers of tangent kernels.
    blocks : sequence of int, optional
        Where blocks of components end, default (10, 50); none above 6,000 pairs, where one factor takes a minute.
    n_rows : int
        Training pairs (whole actions, drawn at random) that the variances are learned from.
    steps : int
        Of gradient descent; of warm-up with NUTS, for which ``n_rows`` had better be 200 or less.
    draws : int
        Posterior draws with "svi" and "nuts".
    dtype : {"float64", "float32"}
        Of the kernel matrix. Single precision takes half the memory and time.
    random_state : int

    Attributes
    ----------
    mean_ : array ``[g]``
        ``μ``.
    variances_ : DataFrame
        Posterior mean variance of each term ``[blocks, terms + noise]``, relative to the components' mean square.
    slopes_, scales_ : arrays ``[g]``
        Leave-one-out slope, 0 where the correlation is below its standard error, and standardised residual variance of each
        component.
    losses_ : list of float
        Negative log joint density an entry (bound, with "svi"), by step.

    References
    ----------
    Radhakrishnan et al. (2022), PNAS (the kernel). Rasmussen, Williams (2006), sections 2 and 5.4. Bonilla et al. (2008).
    """

    def __init__(
        self,
        *,
        inference: Literal["map", "svi", "nuts"] = "map",
        variances: Mapping[str, float] | None = None,
        prior: Literal["cross-fitted", "reference"] = "cross-fitted",
        feature: Imputer | None = None,
        strength: bool = True,
        depth: int = 1,
        blocks: Sequence[int] | None = None,
        n_rows: int = 600,
        steps: int = 50,
        draws: int = 4,
        dtype: Literal["float64", "float32"] = "float64",
        random_state: int | None = 0,
    ) -> None:
        for name, value, known in (
            ("inference", inference, ("map", "svi", "nuts")),
            ("prior", prior, ("cross-fitted", "reference")),
            ("dtype", dtype, ("float64", "float32")),
        ):
            if value not in known:
                raise ConfigError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
        for name, number in (("depth", depth), ("n_rows", n_rows), ("steps", steps), ("draws", draws)):
            if number < 1:
                raise ConfigError(f"{name} must be at least 1, got {number}")
        if feature is not None and prior != "reference":
            raise ConfigError("feature belongs to the mixed reference prior: set prior='reference'")
        for term, fixed in (variances or {}).items():
            if term not in (*TERMS, "noise") or not 0 <= fixed < np.inf:
                raise ConfigError(f"variances must be ≥ 0, of {', '.join((*TERMS, 'noise'))}; got {term!r}: {fixed}")
        self.inference, self.variances, self.prior, self.feature = inference, variances, prior, feature
        self.strength, self.depth, self.blocks = strength, depth, blocks
        self.n_rows, self.steps, self.draws, self.dtype = n_rows, steps, draws, dtype
        self.random_state = random_state

    def fit(self, effects: Effects) -> NTKGP:
        """Learn the variances, then condition on all training pairs.

        Raises
        ------
        DataError
            If a kernel matrix is singular (fixed variances without noise).
        """
        self.effects_ = checked(effects)
        rows = PriorRows(effects, self.feature) if self.prior == "reference" else CrossFitted(effects)
        self.kernel_ = PairKernel(effects, rows, strength=self.strength, depth=self.depth)
        self.mean_ = effects.x.mean(0) if self.variances is None else np.zeros(effects.g)
        centred = effects.x - self.mean_
        squares, basis = np.linalg.eigh(centred.T @ centred)
        self.basis_ = basis[:, ::-1]
        rms = np.sqrt(np.maximum(squares[::-1], 0) / effects.m)
        self.rms_ = np.where(rms > 1e-9 * max(rms[0], 1e-300), rms, 0.0)
        outputs = centred @ self.basis_ / np.where(self.rms_ > 0, self.rms_, 1.0)
        self.blocks_ = self._blocks(effects)
        self.slopes_, self.scales_ = np.ones(effects.g), np.ones(effects.g)
        self.losses_: list[float] = []
        terms = (*self.kernel_.terms, "noise")
        if self.variances is None:
            draws = self._learn(outputs)
        else:
            draws = np.tile([self.variances.get(t, 0.0) for t in terms], (1, len(self.blocks_), 1))
        self.variances_ = pd.DataFrame(draws.mean(0), columns=list(terms))
        self.variances_.index = pd.Index([f"{b.start}–{b.stop - 1}" for b in self.blocks_], name="components")
        self._draws = [[dict(zip(terms, map(float, v), strict=True)) for v in draw] for draw in draws]
        self._solved = [
            [self._condition(v, outputs[:, c]) for v, c in zip(draw, self._told(), strict=True)] for draw in self._draws
        ]
        return self

    def predict(self, pairs: pd.DataFrame | ArrayLike, return_std: bool = False) -> Array | tuple[Array, Array]:
        """Expected signatures ``[p, g]`` and, if asked for, the standard deviation of a new measurement ``[p, g]``."""
        context, action = self.effects_.codes(pairs)
        mean = np.empty((len(context), self.effects_.g))
        variance = np.empty_like(mean) if return_std else None
        for start in range(0, len(context), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            mean[part], spread = self._predict(self.kernel_.rows(context[part], action[part]), return_std)
            if variance is not None:
                variance[part] = spread
        return mean if variance is None else (mean, np.sqrt(variance))

    def _blocks(self, effects: Effects) -> list[slice]:
        ends = self.blocks
        if ends is None:
            ends = BLOCKS if effects.m <= LARGE and self.variances is None else ()
        bounds = [0, *sorted({int(end) for end in ends if 0 < end < effects.g}), effects.g]
        return [slice(a, b) for a, b in pairwise(bounds)]

    def _told(self) -> list[Codes]:
        """Components of each block that the training pairs say something about."""
        return [np.flatnonzero(self.slopes_[block] * self.rms_[block] > 0) + block.start for block in self.blocks_]

    def _learn(self, outputs: Array) -> Array:
        import torch

        from .variance_model import VarianceModel, infer

        rng = np.random.default_rng(self.random_state)
        train = self.kernel_.train
        # Whole actions, as many as fit: pairs of one action say what contexts have in common.
        order = rng.permutation(self.effects_.A)[train.action]
        chosen = np.argsort(order, kind="stable")[: self.n_rows]
        rows = train[chosen]
        kernels = torch.from_numpy(np.stack([part for _, part in self.kernel_.parts(rows, rows)]))
        for kernel, name in zip(kernels, self.kernel_.terms, strict=True):
            kernel.diagonal().copy_(torch.from_numpy(self.kernel_.diagonal(rows, {name: 1.0})))
        noise = torch.from_numpy(self.kernel_.noise(rows))
        learned = []
        for block in self.blocks_:
            alive = np.flatnonzero(self.rms_[block] > 0) + block.start
            weight = self.rms_[alive] ** 2 if len(self.blocks_) == 1 else np.ones(len(alive))
            if len(alive) > PER_BLOCK:
                alive = rng.choice(alive, PER_BLOCK, replace=False, p=weight / weight.sum())
            learned.append(torch.from_numpy(outputs[np.ix_(chosen, alive)].T.copy()))
        model = VarianceModel(kernels, noise, learned)
        draws, self.losses_ = infer(
            model, self.inference, steps=self.steps, draws=self.draws, random_state=self.random_state
        )
        for b, block in enumerate(self.blocks_):
            factor = model.factor(torch.from_numpy(draws[:, b].mean(0)))
            inverse = torch.cholesky_inverse(factor).numpy()
            y = outputs[chosen, block]
            precision = np.diag(inverse)[:, None]
            left_out = y - (inverse @ y) / precision
            square, product = (left_out**2).sum(0), (left_out * y).sum(0)
            # Components whose correlation is within a standard error of none are noise, and need no weights.
            told = product > np.sqrt(square * (y**2).sum(0) / len(y))
            self.slopes_[block] = np.divide(product, square, out=np.zeros_like(square), where=told).clip(0, 1)
            self.scales_[block] = ((y - self.slopes_[block] * left_out) ** 2 * precision).mean(0)
        return draws

    def _condition(self, variance: dict[str, float], outputs: Array) -> tuple[Array, Array]:
        """Cholesky factor ``[m, m]`` (lower, in place of the kernel) and weights ``[m, q]``."""
        from scipy.linalg.lapack import dpotrf, dpotrs, spotrf, spotrs

        factorise, solve = (spotrf, spotrs) if self.dtype == "float32" else (dpotrf, dpotrs)
        kernel = self.kernel_.matrix(variance, variance["noise"], np.dtype(self.dtype).type)
        jitter = 1e-10 if self.dtype == "float64" else 1e-5
        if variance["noise"] > 0:
            kernel[np.diag_indices(len(kernel))] *= 1 + jitter
        # LAPACK counts columns first: the upper triangle is its lower one.
        factor, failed = factorise(kernel.T, lower=1, clean=0, overwrite_a=1)
        if failed:
            raise DataError(
                f"the kernel matrix of {len(kernel):,} pairs is singular at row {failed - 1}; give 'noise' a variance above 0"
                + (", or use dtype='float64'" if self.dtype == "float32" else "")
            )
        if not outputs.shape[1]:
            return factor, outputs
        weights, _ = solve(factor, np.asfortranarray(outputs, dtype=self.dtype), lower=1, overwrite_b=1)
        return factor, weights

    def _predict(self, rows: Rows, with_variance: bool) -> tuple[Array, Array | None]:
        from scipy.linalg import solve_triangular

        means, variances = [], []
        dtype = np.dtype(self.dtype).type
        for draw, solved in zip(self._draws, self._solved, strict=True):
            mean = np.zeros((len(rows), self.effects_.g))
            variance = np.zeros_like(mean)
            for block, told, v, (factor, weights) in zip(self.blocks_, self._told(), draw, solved, strict=True):
                cross = self.kernel_.cross(self.kernel_.train, rows, v, dtype)
                mean[:, told] = cross.T @ weights
                if with_variance:
                    white = solve_triangular(factor, cross, lower=True, overwrite_b=True, check_finite=False)
                    own = self.kernel_.diagonal(rows, v) + v["noise"] * self.kernel_.noise(rows)
                    left = np.maximum(own - (white.astype(np.float64) ** 2).sum(0), 1e-3 * own)
                    variance[:, block] = left[:, None]
            means.append(mean * self.slopes_ * self.rms_)
            variances.append(variance * self.scales_ * self.rms_**2)
        mean = np.mean(means, 0)
        if not with_variance:
            return self.mean_ + mean @ self.basis_.T, None
        variance = np.mean(variances, 0)
        spread = np.zeros_like(mean) if len(means) == 1 else np.var(means, 0)
        return self.mean_ + mean @ self.basis_.T, (variance + spread) @ (self.basis_**2).T

"""Edges ranked from knock-outs or knock-downs of single genes, one profile each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from ..errors import ConfigError, DataError
from .inputs import Array, samples

MOVED, WIDTH = 0.07, 4.0  # share of genes a perturbation moves, a priori, and by how many noise sd


class KnockoutRanking:
    """Which effects of perturbing a gene are direct? A ranking of edges from one profile a perturbation.

    ::

        x_j − base_j = Σ_i W_ij (x_i − base_i) + noise_j ε      in every profile that does not perturb j
        z_ij     = Σ_r δ_r (x_rj − base_j) / (√(Σ_r δ_r²) sd_j)    over profiles r that move i, by δ_r
        score_ij = |z_ij| (keep + |W_ij|)                        W in units of the noises

    Perturbing ``i`` moves what is below it: ``z`` says what moves, near or far. The regression, in which each profile counts
    for all genes but the one perturbed, says what is moved directly: effects it explains by others keep ``keep`` only.
    Cycles are allowed, so the result is a ranking and not a DAG; with replicates and without feedback use
    :class:`OrderSearch`. ``sd_j`` is over all perturbed profiles: genes that everything moves must be moved further.
    Level and noise of a gene are robust averages over all profiles, which fails where most of them move it.

    Parameters
    ----------
    keep : float
        Weight of an effect that is not direct, relative to a direct one of unit size.

    Attributes
    ----------
    scores_ : ndarray ``[d, d]``
        Larger is likelier to be an edge; 0 for causes that no profile perturbs.
    total_ : ndarray ``[d, d]``
        ``z``, signed: positive where less of the cause means less of the effect.
    weights_ : ndarray ``[d, d]``
        ``W`` in the units of the data; a Lasso's, hence shrunk.
    baseline_, noise_ : ndarray ``[d]``
        Unperturbed level and its noise.
    genes_ : list of str

    References
    ----------
    Prill et al. 2010 and Pinna, Soranzo & de la Fuente 2010 (DREAM4: z-scores of knock-outs, then indirect edges down).
    """

    def __init__(self, *, keep: float = 0.2) -> None:
        if not keep >= 0:
            raise ConfigError(f"keep is the weight of an indirect effect and must not be negative, got {keep}")
        self.keep = keep

    def __repr__(self) -> str:
        return f"KnockoutRanking(keep={self.keep})"

    def fit(self, X: Any, targets: Sequence[Any]) -> KnockoutRanking:
        """Rank edges.

        Parameters
        ----------
        X : array, DataFrame or AnnData ``[r, d]``
            A profile a perturbation; more than one of a gene (knock-out and knock-down, replicates) are taken together.
        targets : sequence ``[r]``
            The gene that each profile perturbs, by name (or position, for arrays); None where none is.

        Raises
        ------
        DataError
            For names that are no genes, and if fewer than two genes are perturbed.
        """
        from sklearn.linear_model import LassoLarsIC

        data = samples(X)
        own = self._own(targets, data.genes, len(data.x))
        moved, d = own >= 0, data.d
        if len(np.unique(own[moved])) < 2:
            raise DataError("ranking edges needs profiles that perturb at least two different genes")
        self.genes_ = data.genes
        self.baseline_, spread = _baseline(data.x)
        self.noise_ = (spread + np.median(spread)) / 2
        rows, own = data.x[moved] - self.baseline_, own[moved]
        at = np.arange(len(own)), own
        # As regressors, deviations are shrunk by the probability that they are more than noise.
        level = rows / self.noise_
        shrunk = level * _moved(level)
        shrunk[at] = level[at]
        self.weights_ = np.zeros((d, d))
        for j in range(d):
            free, others = own != j, np.arange(d) != j
            fit = LassoLarsIC("bic", fit_intercept=False, noise_variance=1.0).fit(
                shrunk[np.ix_(free, others)], level[free, j]
            )
            self.weights_[others, j] = fit.coef_
        step = np.zeros((len(own), d))
        step[at] = rows[at]
        size = np.sqrt((step**2).sum(0))
        total = step.T @ rows / np.where(size > 0, size, np.inf)[:, None]
        self.total_ = total / rows.std(0)
        np.fill_diagonal(self.total_, 0)
        # "Less of the cause": the step of a knock-out is negative on both sides.
        self.scores_ = np.abs(self.total_) * (self.keep + np.abs(self.weights_))
        self.weights_ *= self.noise_ / self.noise_[:, None]
        return self

    @staticmethod
    def _own(targets: Sequence[Any], genes: list[str], n: int) -> NDArray[np.int64]:
        if len(targets) != n:
            raise DataError(f"targets needs one gene (or None) a profile, [{n}], got {len(targets)}")
        place: dict[Any, int] = {gene: j for j, gene in enumerate(genes)} | dict(enumerate(range(len(genes))))
        names = [None if target is None or target is pd.NA or target != target else target for target in targets]
        strange = [target for target in names if target is not None and target not in place]
        if strange:
            raise DataError(f"targets that are no genes: {strange[:5]}; unperturbed profiles have None")
        return np.array([-1 if target is None else place[target] for target in names], dtype=np.int64)


def _baseline(x: Array) -> tuple[Array, Array]:
    """Level and noise of genes that few profiles move: a Cauchy-weighted mean, and the median distance from it."""
    base = np.median(x, axis=0)
    for _ in range(20):
        spread = 1.4826 * np.median(np.abs(x - base), axis=0)
        spread += 0.02 * (spread.mean() or 1.0)
        weight = 1 / (1 + ((x - base) / (2 * spread)) ** 2)
        base = (weight * x).sum(0) / weight.sum(0)
    return base, spread


def _moved(level: Array) -> Array:
    """Posterior probability that a deviation, in noise sd, is an effect: ``N(0, 1)`` against ``N(0, WIDTH²)``."""
    effect = MOVED * stats.norm.pdf(level, scale=WIDTH)
    return np.asarray(effect / (effect + (1 - MOVED) * stats.norm.pdf(level)))

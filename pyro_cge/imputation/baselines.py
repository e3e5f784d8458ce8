"""The imputers every other one has to beat: means of contexts, of actions, and of both."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ..errors import ConfigError, DataError
from .effects import Array, Codes, Effects, sums


class ContextMean:
    """The mean signature of the context's other actions ("mean over cell type").

    A context without training pairs gets the mean of all.
    """

    def fit(self, effects: Effects) -> ContextMean:
        self.effects_ = checked(effects)
        self.overall_ = effects.x.mean(0)
        self.means_, _ = means(effects.x, effects.context, effects.K, self.overall_)
        return self

    def predict(self, pairs: pd.DataFrame | ArrayLike) -> Array:
        return self.means_[self.effects_.codes(pairs)[0]]


class ActionMean:
    """The mean signature of the action in the other contexts; an action without training pairs gets the mean of all."""

    def fit(self, effects: Effects) -> ActionMean:
        self.effects_ = checked(effects)
        self.overall_ = effects.x.mean(0)
        self.means_, _ = means(effects.x, effects.action, effects.A, self.overall_)
        return self

    def predict(self, pairs: pd.DataFrame | ArrayLike) -> Array:
        return self.means_[self.effects_.codes(pairs)[1]]


class TwoWayMean:
    """Context mean + action mean − overall mean: the two-way table with no regard to which pairs are missing."""

    def fit(self, effects: Effects) -> TwoWayMean:
        self.context_, self.action_ = ContextMean().fit(effects), ActionMean().fit(effects)
        return self

    def predict(self, pairs: pd.DataFrame | ArrayLike) -> Array:
        return self.context_.predict(pairs) + self.action_.predict(pairs) - self.context_.overall_


class FixedEffects:
    """Least squares of ``x[k, a] = α[k] + β[a] + ε`` on the measured pairs.

    Unlike :class:`TwoWayMean` it knows that an action was measured in strong contexts only. Contexts that share no
    action with the others are not tied to them by the data; the least-norm solution is taken. An action (context)
    without training pairs has the mean effect of the others.
    """

    def fit(self, effects: Effects) -> FixedEffects:
        self.effects_ = checked(effects)
        x, k, a = effects.x, effects.context, effects.action
        seen = np.zeros((effects.K, effects.A))
        seen[k, a] = 1
        per_action = np.maximum(seen.sum(0), 1)
        # The actions' effects profiled out: a K × K system remains.
        normal = np.diag(seen.sum(1)) - (seen / per_action) @ seen.T
        action_mean = sums(x, a, effects.A) / per_action[:, None]
        self.contexts_ = np.linalg.pinv(normal, hermitian=True) @ sums(x - action_mean[a], k, effects.K)
        self.actions_ = sums(x - self.contexts_[k], a, effects.A) / per_action[:, None]
        for values, codes in ((self.contexts_, k), (self.actions_, a)):
            there = np.bincount(codes, minlength=len(values)) > 0
            values[~there] = values[there].mean(0)
        return self

    def predict(self, pairs: pd.DataFrame | ArrayLike) -> Array:
        context, action = self.effects_.codes(pairs)
        return self.contexts_[context] + self.actions_[action]


class ShrunkMean:
    """Context mean + the action's mean departure from it, shrunk by how often the action was seen.

    ``x̂[k, a] = x̄[k] + n_a / (n_a + λ) · mean over contexts of (x[l, a] − x̄[l])``.

    Parameters
    ----------
    shrinkage : float, optional
        ``λ`` in pairs. By default the ratio of the variance within actions to that between them, by the method of
        moments of the one-way random-effects table, pooled over genes.
    """

    def __init__(self, *, shrinkage: float | None = None) -> None:
        if shrinkage is not None and not 0 <= shrinkage < np.inf:
            raise ConfigError(f"shrinkage is a number of pairs ≥ 0, got {shrinkage}")
        self.shrinkage = shrinkage

    def fit(self, effects: Effects) -> ShrunkMean:
        self.context_ = ContextMean().fit(effects)
        residual = effects.x - self.context_.means_[effects.context]
        mean, count = means(residual, effects.action, effects.A, np.zeros(effects.g))
        self.shrinkage_ = (
            variance_ratio(residual, effects.action, mean, count) if self.shrinkage is None else self.shrinkage
        )
        self.actions_ = (
            mean * np.divide(count, count + self.shrinkage_, out=np.zeros(len(count)), where=count > 0)[:, None]
        )
        return self

    def predict(self, pairs: pd.DataFrame | ArrayLike) -> Array:
        return self.context_.predict(pairs) + self.actions_[self.context_.effects_.codes(pairs)[1]]


def checked(effects: Effects) -> Effects:
    """Training pairs, at least one.

    Raises
    ------
    DataError
        For anything that is not ``Effects``, or has no pair.
    """
    if not isinstance(effects, Effects):
        raise DataError(f"fit takes Effects, got {type(effects).__name__}; see Effects.from_anndata")
    if not effects.m:
        raise DataError("there is no training pair")
    return effects


def means(x: Array, codes: Codes, n: int, otherwise: Array) -> tuple[Array, Array]:
    """Means ``[n, g]`` of the rows of each code (``otherwise`` where there is none) and their counts ``[n]``."""
    counts = np.bincount(codes, minlength=n).astype(np.float64)
    result = sums(x, codes, n) / np.maximum(counts, 1)[:, None]
    result[counts == 0] = otherwise
    return result, counts


def variance_ratio(residual: Array, action: Codes, mean: Array, count: Array) -> float:
    """Variance within actions over variance between them (Searle's ANOVA estimator for unbalanced tables)."""
    seen = count > 0
    free = count.sum() - seen.sum()
    if free <= 0:  # no action was seen twice: nothing tells the two apart
        return 1.0
    within = ((residual - mean[action]) ** 2).sum() / free
    grand = residual.mean(0)
    between_ss = (count[seen, None] * (mean[seen] - grand) ** 2).sum()
    effective = count.sum() - (count**2).sum() / count.sum()
    between = (between_ss - (seen.sum() - 1) * within) / effective
    return float(within / between) if between > 0 else float(count.sum())

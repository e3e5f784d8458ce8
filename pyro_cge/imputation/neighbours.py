"""Drug neighbourhoods: an action acts as those do that act like it elsewhere."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ..errors import ConfigError
from .baselines import ContextMean, checked
from .effects import Array, Effects


class DNPP:
    """Drug neighbour profile prediction.

    The similarity of two actions is the Pearson correlation of their signatures, averaged over the contexts in which
    both were measured. The prediction for (k, a) is the mean signature of the ``n_neighbours`` actions most similar to
    a among those measured in context k, weighted by ``clip(S, 0, 1)``.

    Where no action of the context is like ``a`` (none shares a context with it, or all correlations are negative), the
    mean of the context is taken (:class:`ContextMean`).

    Parameters
    ----------
    n_neighbours : int

    Attributes
    ----------
    similarity_ : array ``[A, A]``
        NaN where two actions were never measured in one context.

    References
    ----------
    Hodos, Zhang, Lee, … Ruderfer, Dudley, Kidd (2018), Cell-specific prediction and application of drug-induced gene
    expression profiles, Pacific Symposium on Biocomputing.
    """

    def __init__(self, *, n_neighbours: int = 10) -> None:
        if n_neighbours < 1:
            raise ConfigError(f"n_neighbours must be at least 1, got {n_neighbours}")
        self.n_neighbours = n_neighbours

    def fit(self, effects: Effects) -> DNPP:
        self.effects_ = checked(effects)
        self.fallback_ = ContextMean().fit(effects)
        self.similarity_ = similarity(effects)
        self._table = effects.table()
        return self

    def predict(self, pairs: pd.DataFrame | ArrayLike) -> Array:
        context, action = self.effects_.codes(pairs)
        predicted = self.fallback_.predict(np.stack([context, action], 1))
        for code in np.unique(context):
            asked = np.flatnonzero(context == code)
            there = np.flatnonzero(self._table[code] >= 0)
            weight = np.nan_to_num(np.clip(self.similarity_[np.ix_(action[asked], there)], 0, 1))
            weight[action[asked][:, None] == there] = 0  # a pair that was measured does not predict itself
            if len(there) > self.n_neighbours:
                last = np.partition(weight, -self.n_neighbours, axis=1)[:, -self.n_neighbours, None]
                weight[weight < last] = 0
            total = weight.sum(1, keepdims=True)
            known = total[:, 0] > 0
            signatures = self.effects_.x[self._table[code, there]]
            predicted[asked[known]] = (weight[known] / total[known]) @ signatures
        return predicted


def similarity(effects: Effects) -> Array:
    """Pearson correlation of two actions' signatures, averaged over shared contexts ``[A, A]``; NaN without any."""
    centred = effects.x - effects.x.mean(1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 0)
    total, count = np.zeros((effects.A, effects.A)), np.zeros((effects.A, effects.A))
    for code in range(effects.K):
        rows = np.flatnonzero(effects.context == code)
        block = np.ix_(effects.action[rows], effects.action[rows])
        total[block] += unit[rows] @ unit[rows].T
        count[block] += 1
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)

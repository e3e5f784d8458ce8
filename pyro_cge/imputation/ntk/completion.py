"""Matrix completion with the neural tangent kernel, pairs described by a prior."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from ...errors import ConfigError, DataError
from ..baselines import ContextMean, checked
from ..effects import Array, Codes, Effects
from ..protocol import Imputer
from .kernels import ntk, unit

CONTEXT_WEIGHT = 0.75
IDENTITY_WEIGHT = 1.5


class PriorRows:
    """Row features of a pair (k, a): what the action does in the reference context, and what actions do in context k.

    ::

        row = [0.75 ‖e‖ m̄_k / ‖m̄_k‖,  e,  1.5 · indicator of the row] / its length

    ``e`` is the action's signature in the reference context (there unmeasured: the mean of those measured), ``m̄_k`` the
    context's mean training signature. The indicator is never built: it adds 2.25 to each squared length, and makes a row's
    product with itself 1.

    With ``feature``, ``e`` is what that imputer predicts of the pair, in contexts with at least ``at_least`` training pairs
    (the mixed prior).

    Parameters
    ----------
    effects : Effects
        Training pairs. The reference is the first of ``training_only``, else the context with most pairs.
    feature : imputer, optional
        :class:`~pyro_cge.imputation.neighbours.DNPP` say; it is fitted here on the training pairs. It must not reproduce the
        pairs it was fitted on: features of training rows would give away their targets.
    """

    full_diagonal = True

    def __init__(self, effects: Effects, feature: Imputer | None = None, at_least: int = 150) -> None:
        counts = np.bincount(effects.context, minlength=effects.K)
        reference = int(counts.argmax())
        if effects.training_only:
            reference = effects.context_names.index(effects.training_only[0])
        if not counts[reference]:
            raise DataError(
                f"the reference context {effects.context_names[reference]!r} has no training pair; put another first in "
                "training_only"
            )
        here = effects.context == reference
        self.signatures = np.tile(effects.x[here].mean(0), (effects.A, 1))
        self.signatures[effects.action[here]] = effects.x[here]
        self.means = unit(ContextMean().fit(effects).means_)
        self.imputed = np.zeros(effects.K, dtype=bool)
        if feature is not None:
            self.imputed, self.feature = counts >= at_least, feature
            feature.fit(effects)

    def __call__(self, context: Codes, action: Codes) -> Array:
        e = self.signatures[action]
        asked = np.flatnonzero(self.imputed[context])
        if asked.size:
            e[asked] = self.feature.predict(np.stack([context[asked], action[asked]], 1))
        square = (e**2).sum(1, keepdims=True)
        rows = np.concatenate([CONTEXT_WEIGHT * np.sqrt(square) * self.means[context], e], 1)
        return rows / np.sqrt((1 + CONTEXT_WEIGHT**2) * square + IDENTITY_WEIGHT**2)


class NTKCompletion:
    """Ridgeless regression of signatures on :class:`PriorRows` with the neural tangent kernel, genes independent outputs.

    ::

        x̂[row] = Θ(row, training rows) Θ(training rows)⁻¹ x

    An action never seen in the reference context has the mean signature there, a context without training pairs the mean of
    all.

    Parameters
    ----------
    depth : int
        Hidden layers.
    feature : imputer, optional
        For the mixed prior: :class:`DNPP` or :class:`Falrtc`.
    at_least : int
        Training pairs of contexts that use it.

    Raises
    ------
    DataError
        If the kernel is singular, or the reference context has no training pair.

    References
    ----------
    Radhakrishnan, Stefanakis, Belkin, Uhler (2022), Simple, fast, and flexible framework for matrix completion with
    infinite width neural networks, PNAS.
    """

    def __init__(self, *, depth: int = 1, feature: Imputer | None = None, at_least: int = 150) -> None:
        if depth < 1:
            raise ConfigError(f"depth is a number of hidden layers, at least 1; got {depth}")
        if at_least < 1:
            raise ConfigError(f"at_least is a number of pairs, at least 1; got {at_least}")
        self.depth, self.feature, self.at_least = depth, feature, at_least

    def fit(self, effects: Effects) -> NTKCompletion:
        self.effects_ = checked(effects)
        self.prior_ = PriorRows(effects, self.feature, self.at_least)
        self.rows_ = self.prior_(effects.context, effects.action)
        cosine = self.rows_ @ self.rows_.T
        np.fill_diagonal(cosine, 1)
        try:
            factor = cho_factor(ntk(cosine, self.depth), lower=True, overwrite_a=True, check_finite=False)
        except LinAlgError as error:
            raise DataError(
                "the kernel matrix is singular: signatures are too long to tell apart; rescale x"
            ) from error
        self.weights_ = cho_solve(factor, effects.x, check_finite=False)
        return self

    def predict(self, pairs: pd.DataFrame | ArrayLike) -> Array:
        rows = self.prior_(*self.effects_.codes(pairs))
        return ntk(rows @ self.rows_.T, self.depth) @ self.weights_

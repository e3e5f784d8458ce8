"""Synthetic interventions: the signature never measured as a weighted sum of signatures that were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError
from .baselines import ContextMean, checked
from .effects import Array, Codes, Effects

DONORS = ("actions", "contexts")


@dataclass(frozen=True)
class Regression:
    """The regression of one target on its donors, in moments of the stacked, centred rows.

    ``gram [D, D]``, ``cross [D]`` and ``square`` are the sums of products of donors with donors, donors with the target,
    and the target with itself over the ``n`` stacked entries (shared contexts × genes), each column centred by
    ``donor_mean [D]`` and ``target_mean``. ``rows [D]`` are the donors' signatures in the target's context, ``shared`` the
    contexts (actions, where contexts are donors) whose entries are stacked.
    """

    gram: Array
    cross: Array
    square: float
    n: int
    donor_mean: Array
    target_mean: float
    rows: Codes
    shared: Codes


class SyntheticInterventions:
    """Synthetic interventions with actions (or contexts) as donors.

    Donors of the pair (k, a) are actions measured in k. In the contexts in which a *and all donors* were measured, the
    signatures of a are regressed on theirs, genes and contexts stacked: ``x[l, a] ≈ Σ_b w_b x[l, b]``. The prediction
    is the same sum in context k. With ``donors="contexts"`` the two change places: contexts in which a was measured,
    regressed over the actions that all of them share.

    Donors are chosen greedily: the next is the one that leaves most shared contexts. Where no donor shares one, the
    mean of the context is taken (:class:`ContextMean`).

    Parameters
    ----------
    donors : {"actions", "contexts"}
    method : {"least_squares", "hsvt"}
        Least squares of least norm, or after hard thresholding of the donors' singular values.
    energy : float
        Share of the donors' squared singular values that ``"hsvt"`` keeps.
    max_donors, min_shared : int
        At most so many donors, and only while they share at least so many contexts with the target.

    References
    ----------
    Agarwal, Shah, Shen (2020), Synthetic interventions. Squires, Shen, Agarwal, Shah, Uhler (2022), Causal imputation
    via synthetic interventions, CLeaR.
    """

    def __init__(
        self,
        *,
        donors: str = "actions",
        method: str = "hsvt",
        energy: float = 0.95,
        max_donors: int = 50,
        min_shared: int = 1,
    ) -> None:
        if donors not in DONORS:
            raise ConfigError(f"donors must be 'actions' or 'contexts', got {donors!r}")
        if method not in ("least_squares", "hsvt"):
            raise ConfigError(f"method must be 'least_squares' or 'hsvt', got {method!r}")
        if not 0 < energy <= 1:
            raise ConfigError(f"energy is a share in (0, 1], got {energy}")
        if max_donors < 1 or min_shared < 1:
            raise ConfigError(f"max_donors and min_shared must be at least 1, got {max_donors} and {min_shared}")
        self.donors, self.method, self.energy = donors, method, energy
        self.max_donors, self.min_shared = max_donors, min_shared

    def fit(self, effects: Effects) -> SyntheticInterventions:
        self.donors_ = DonorTable(checked(effects), self.donors, self.max_donors, self.min_shared)
        return self

    def predict(self, pairs: pd.DataFrame | ArrayLike) -> Array:
        effects = self.donors_.effects
        context, action = effects.codes(pairs)
        predicted = ContextMean().fit(effects).predict(np.stack([context, action], 1))
        for i, regression in enumerate(self.donors_.regressions(context, action)):
            if regression is not None:
                weights = self._weights(regression)
                donors = effects.x[regression.rows] - regression.donor_mean[:, None]
                predicted[i] = regression.target_mean + weights @ donors
        return predicted

    def _weights(self, regression: Regression) -> Array:
        """Least squares of least norm from the moments; ``"hsvt"`` keeps the leading directions only."""
        values, vectors = np.linalg.eigh(regression.gram)
        values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
        kept = values > values[0] * len(values) * np.finfo(float).eps
        if self.method == "hsvt":
            kept &= np.concatenate([[True], np.cumsum(values)[:-1] < self.energy * values.sum()])
        inverse = np.divide(1, values, out=np.zeros_like(values), where=kept)
        return vectors @ (inverse * (vectors.T @ regression.cross))


class DonorTable:
    """Choice of donors, and the moments of each regression from the products of signatures within shared contexts."""

    def __init__(self, effects: Effects, donors: str, max_donors: int, min_shared: int) -> None:
        self.effects, self.donors = effects, donors
        self.max_donors, self.min_shared = max_donors, min_shared
        table = effects.table()
        self.table = table if donors == "actions" else table.T  # [shared axis, donor axis]
        self.seen = self.table >= 0
        self.sums = effects.x.sum(1)

    def regressions(self, context: Codes, action: Codes) -> list[Regression | None]:
        """One for each pair; None where it has no donor."""
        where, what = (context, action) if self.donors == "actions" else (action, context)
        return [self._regression(int(i), int(j)) for i, j in zip(where, what, strict=True)]

    def choose(self, where: int, what: int) -> tuple[Codes, Codes]:
        """Donors of the target, and the contexts (actions) that all of them and the target share."""
        shared = self.seen[:, what].copy()
        shared[where] = False
        open_ = self.seen[where].copy()
        open_[what] = False
        chosen: list[int] = []
        while len(chosen) < self.max_donors:
            count = np.where(open_, self.seen[shared].sum(0), 0)
            best = int(count.argmax())
            if count[best] < self.min_shared:
                break
            if count[best] == shared.sum():  # all that lose nothing, at once
                best_ones = np.flatnonzero(count == count[best])[: self.max_donors - len(chosen)]
            else:
                best_ones = np.array([best])
            chosen += best_ones.tolist()
            open_[best_ones] = False
            shared &= self.seen[:, best_ones].all(1)
        return np.array(chosen, dtype=np.int64), np.flatnonzero(shared)

    def _regression(self, where: int, what: int) -> Regression | None:
        donors, shared = self.choose(where, what)
        if not len(donors):
            return None
        columns = np.append(donors, what)
        rows = self.table[np.ix_(shared, columns)]  # [shared, D + 1]
        x = self.effects.x[rows.T.ravel()].reshape(len(columns), -1)  # stacked: shared × genes
        n = x.shape[1]
        mean = self.sums[rows].sum(0) / n
        moments = x @ x.T - n * np.outer(mean, mean)
        return Regression(
            moments[:-1, :-1],
            moments[:-1, -1],
            float(moments[-1, -1]),
            n,
            mean[:-1],
            float(mean[-1]),
            cast(NDArray[np.int64], self.table[where, donors]),
            shared,
        )

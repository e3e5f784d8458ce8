"""One protocol for every imputer: what is held out, and how the predictions are scored."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ..discovery.progress import shown
from ..errors import ConfigError, DataError
from ..metrics.imputation import imputation_scores
from .effects import Array, Codes, Effects

Fold = tuple[Codes, Codes]
LEVEL = 1.6448536269514722  # half-width of a central 90 % interval in standard deviations


class Imputer(Protocol):
    """Anything with ``fit`` and ``predict``; one that takes ``return_std=True`` is scored by its intervals as well."""

    def fit(self, effects: Effects) -> Any: ...
    def predict(self, pairs: pd.DataFrame | ArrayLike) -> Array: ...


def k_fold(
    effects: Effects, n_folds: int = 10, *, fewer_than: int | None = None, random_state: int = 0
) -> Iterator[Fold]:
    """``n_folds`` parts of the pairs *within each context*, each held out once: ``(train rows, test rows)``.

    Parameters
    ----------
    fewer_than : int, optional
        Test only contexts with fewer training pairs than this (150 in Radhakrishnan et al.); the others train whole.
    random_state : int
        Seed of the partition. Contexts of ``training_only`` are never tested.
    """
    if n_folds < 2:
        raise ConfigError(f"n_folds must be at least 2, got {n_folds}")
    rng = np.random.default_rng(random_state)
    part = np.full(effects.m, -1)
    for code in _tested(effects):
        rows = np.flatnonzero(effects.context == code)
        if len(rows) < 2 or (fewer_than is not None and len(rows) * (n_folds - 1) >= fewer_than * n_folds):
            continue
        # A random offset, so that small contexts do not all fill the first parts.
        part[rng.permutation(rows)] = (np.arange(len(rows)) + rng.integers(n_folds)) % n_folds
    if (part < 0).all():
        raise DataError("no context can be held out: each has one pair, is training-only, or is not below fewer_than")
    for number in range(n_folds):
        if (test := np.flatnonzero(part == number)).size:
            yield np.flatnonzero(part != number), test


def few_shot(effects: Effects, b: int, *, random_state: int = 0) -> Iterator[Fold]:
    """One context at a time keeps ``b`` training pairs and is tested on its others: a new context with few experiments.

    The pairs kept are nested: those of a smaller ``b`` are among those of a larger one of the same seed.
    """
    if b < 0:
        raise ConfigError(f"b is a number of training pairs, got {b}")
    rng = np.random.default_rng(random_state)
    found = False
    for code in _tested(effects):
        rows = rng.permutation(np.flatnonzero(effects.context == code))
        if len(rows) > b:
            found = True
            test = np.sort(rows[b:])
            yield np.setdiff1d(np.arange(effects.m), test), test
    if not found:
        raise DataError(f"no context has more than b = {b} pairs")


def leave_one_out(effects: Effects) -> Iterator[Fold]:
    """Each pair of the tested contexts held out alone."""
    everything = np.arange(effects.m)
    for row in np.flatnonzero(np.isin(effects.context, _tested(effects))):
        yield np.delete(everything, row), np.array([row])


def _tested(effects: Effects) -> Codes:
    names = set(effects.training_only)
    return np.array([k for k, name in enumerate(effects.context_names) if name not in names], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Predictions of the held-out rows of all folds.

    Attributes
    ----------
    rows : array ``[p]``
        Rows of the effects that were held out.
    mean : array ``[p, g]``
    std : array ``[p, g]`` or None
        Predictive standard deviation of a new measurement, where the imputer states one.
    fold : array ``[p]``
    cpu_s : float
        Processor seconds of fitting and predicting, all threads.
    """

    rows: Codes
    mean: Array
    std: Array | None
    fold: Codes
    cpu_s: float = field(compare=False)

    def scores(
        self, effects: Effects, average: str = "mean", rows: NDArray[np.bool_] | None = None
    ) -> dict[str, float]:
        """:func:`~pyro_cge.metrics.imputation_scores`, coverage of 90 % intervals and ``cpu_s``.

        ``rows [p]``, boolean, restricts to some of the held-out rows.
        """
        chosen = slice(None) if rows is None else rows
        true, mean = effects.x[self.rows[chosen]], self.mean[chosen]
        result = imputation_scores(true, mean, average)
        if self.std is not None:
            result["coverage_90"] = float((np.abs(true - mean) <= LEVEL * self.std[chosen]).mean())
        return {**result, "cpu_s": self.cpu_s}


def hold_out(imputer: Imputer, effects: Effects, folds: Iterable[Fold], progress: bool | None = None) -> HeldOut:
    """Fit on the training rows and predict the test rows of every fold.

    ``progress``: a bar over folds, by default where standard error is a terminal.

    Raises
    ------
    DataError
        If a fold leaves no training pair, or a prediction is not finite.
    """
    parts: list[tuple[Codes, Array, Array | None]] = []
    given = list(folds)
    started = time.process_time()
    for train, test in shown(given, len(given), progress):
        pairs = np.stack([effects.context[test], effects.action[test]], 1)
        fitted = imputer.fit(effects.take(train))
        mean, std = predicted(imputer if fitted is None else fitted, pairs)
        if not np.isfinite(mean).all():
            raise DataError(f"{type(imputer).__name__} predicts {int((~np.isfinite(mean)).sum())} entries not finite")
        parts.append((test, mean, std))
    stds = [std for _, _, std in parts]
    return HeldOut(
        np.concatenate([test for test, _, _ in parts]),
        np.concatenate([mean for _, mean, _ in parts]),
        None if any(std is None for std in stds) else np.concatenate(stds),  # type: ignore[arg-type]
        np.repeat(np.arange(len(parts)), [len(test) for test, _, _ in parts]),
        time.process_time() - started,
    )


def cross_validate(
    imputers: Mapping[str, Imputer],
    effects: Effects,
    folds: Iterable[Fold],
    *,
    average: str = "mean",
    progress: bool | None = None,
) -> pd.DataFrame:
    """Every imputer on the same folds: one row each with ``r``, ``r2``, ``cosine``, ``profile_r``, ``coverage_90``, ``cpu_s``.

    Held-out rows of all folds are pooled before they are scored. For intervals over seeds, call it with folds of
    several ``random_state``.
    """
    given = list(folds)
    rows = {
        name: hold_out(imputer, effects, given, progress).scores(effects, average) for name, imputer in imputers.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("imputer")


def predicted(imputer: Any, pairs: pd.DataFrame | ArrayLike) -> tuple[Array, Array | None]:
    """Mean and, where the imputer states one, standard deviation of a new measurement of each pair ``[p, g]``."""
    if "return_std" in signature(imputer.predict).parameters:
        mean, std = imputer.predict(pairs, return_std=True)
        return mean, std
    return imputer.predict(pairs), None

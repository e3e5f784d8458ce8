"""Do environments of one class (drugs with one mechanism of action) move the same latents?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from ..scm.shifts import NoiseShift


@dataclass(frozen=True, eq=False)
class ClassAuc:
    """Probability that a same-class pair is more similar than a different-class pair, with a bootstrap interval.

    ``draws`` are the bootstrap values; those of two methods over the same items and seed are paired, so
    ``a.draws - b.draws`` gives the interval of a difference.
    """

    auc: float
    low: float
    high: float
    n_same: int
    n_pairs: int
    draws: np.ndarray = field(repr=False)


def latent_similarity(shift: NoiseShift, probability: Tensor | np.ndarray | None = None) -> np.ndarray:
    """Cosine ``[E, E]`` of the environments' latent shifts, 1 for the same targets moved the same way.

    ``probability [E, d]``, where given, weighs each shift by the probability that the latent is a target at all. An
    environment that moves nothing is similar to none.
    """
    loc = shift.loc.detach().cpu().double().numpy()
    if probability is not None:
        loc = loc * np.asarray(probability, dtype=np.float64)
    length = np.linalg.norm(loc, axis=1, keepdims=True)
    unit = np.divide(loc, length, out=np.zeros_like(loc), where=length > 0)
    return unit @ unit.T


def same_class_auc(
    similarity: np.ndarray,
    classes: Sequence[Sequence[str] | str],
    items: Sequence[str] | None = None,
    *,
    n_boot: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> ClassAuc:
    """Area under the ROC curve of pair similarity as a predictor of "these two share a class".

    Parameters
    ----------
    similarity : array ``[m, m]``, symmetric
        NaN where two environments cannot be compared; such pairs are left out.
    classes : sequence of ``m``
        One class or several (``"A|B"`` or a list); a pair is of one class if it shares any.
    items : sequence of ``m``, optional
        Compound of each environment: two environments of one compound make no pair. Default: all different.
    n_boot, level, seed
        The interval resamples *items* (a compound takes all its pairs with it), because pairs that share a compound
        are not independent; a compound drawn twice makes no pair with itself.

    Raises
    ------
    DataError
        For shapes that disagree, or if there are no pairs of one class, or none of two.
    """
    similarity = np.asarray(similarity, dtype=np.float64)
    m = len(classes)
    if similarity.shape != (m, m) or (items is not None and len(items) != m):
        raise DataError(
            f"similarity must be [{m}, {m}] for {m} classes, got {list(similarity.shape)}"
            + ("" if items is None else f", with {len(items)} items")
        )
    sets = [set(c.split("|")) if isinstance(c, str) else set(c) for c in classes]
    names = {name: k for k, name in enumerate(sorted(set().union(*sets)))}
    member = np.zeros((m, len(names)), dtype=np.float32)
    for row, held in enumerate(sets):
        member[row, [names[name] for name in held]] = 1
    _, item = np.unique(np.arange(m) if items is None else np.asarray(items), return_inverse=True)
    a, b = np.triu_indices(m, 1)
    usable = (item[a] != item[b]) & np.isfinite(similarity[a, b])
    a, b = a[usable], b[usable]
    same, values = (member @ member.T)[a, b] > 0, similarity[a, b]
    if not same.any() or same.all():
        raise DataError(f"an AUC needs pairs of one class and of two; {int(same.sum())} of {len(same)} pairs share one")
    order = np.argsort(values, kind="stable")
    left, right, same = item[a][order], item[b][order], same[order]
    # Blocks of tied similarities, for the half counts.
    block = np.concatenate([[0], np.cumsum(np.diff(values[order]) > 0)])

    def area(multiplicity: np.ndarray) -> float:
        weight = multiplicity[left] * multiplicity[right]
        positive = np.bincount(block, np.where(same, weight, 0))
        negative = np.bincount(block, np.where(same, 0, weight))
        below = np.cumsum(negative) - 0.5 * negative
        total = positive.sum() * negative.sum()
        return float(positive @ below / total) if total else np.nan

    n_items = item.max() + 1
    rng = np.random.default_rng(seed)
    uniform = np.full(n_items, 1 / n_items)
    draws = np.array([area(rng.multinomial(n_items, uniform).astype(float)) for _ in range(n_boot)])
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return ClassAuc(area(np.ones(n_items)), float(low), float(high), int(same.sum()), len(same), draws)

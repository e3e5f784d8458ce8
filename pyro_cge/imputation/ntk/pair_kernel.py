"""What two pairs (context, action) have in common: the kernel of :class:`~pyro_cge.imputation.ntk.gp.NTKGP`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...data.fingerprints import tanimoto
from ..baselines import ContextMean, means, variance_ratio
from ..effects import Array, Codes, Effects, sums
from .kernels import ntk, unit

# Terms of the kernel, each with a variance of its own; κ_c is the similarity of contexts.
TERMS = (
    "constant",
    "context",  # κ_c
    "own_context",  # δ_c
    "structure",  # k_d, from the features of actions
    "structure_context",  # k_d κ_c
    "action",  # δ_d
    "action_context",  # δ_d κ_c
    "signature",  # k_s, from what the actions do elsewhere
    "signature_context",  # k_s κ_c
)
PRIOR_PAIRS = 10.0  # shared actions that weigh as much as the features of two contexts
EVIDENCE = 0.3  # length of the constant beside a signature: a faint signature resembles all others
FOLDS = 4  # of cross-fitted signatures
CHUNK = 500  # rows of a kernel matrix made at once


@dataclass(frozen=True, eq=False)
class Rows:
    """Pairs with their features: codes ``[p]`` and unit (or shorter) row features ``[p, f]``."""

    context: Codes
    action: Codes
    features: Array

    def __len__(self) -> int:
        return len(self.context)

    def __getitem__(self, rows: slice | Codes) -> Rows:
        return Rows(self.context[rows], self.action[rows], self.features[rows])


class CrossFitted:
    """Row features of a pair: the direction into which the action moves *other* contexts.

    The residuals of signatures from their context's mean, scaled to length 1, summed over measured contexts and divided by
    their number + 1; projected on the ``n_components`` main directions of all residuals, with a constant beside them, and
    scaled to length 1. The training pairs of an action are dealt into ``folds``, and those of a pair's own fold are not among
    its features: leaving out only its own would tell it apart from its action's other rows by exactly its own signature, which
    a kernel without much noise reads off (intervals then held 73 % of levels instead of 90 %).
    """

    full_diagonal = False

    def __init__(self, effects: Effects, n_components: int = 60, folds: int = FOLDS) -> None:
        self.effects = effects
        residual = unit(effects.x - ContextMean().fit(effects).means_[effects.context])
        _, directions = np.linalg.eigh(residual.T @ residual)
        self.residual = residual @ directions[:, ::-1][:, :n_components]
        self.table, self.folds = effects.table(), folds
        self.fold = _dealt(effects, folds)
        cell = effects.action * folds + self.fold
        self.sums = sums(self.residual, cell, effects.A * folds).reshape(effects.A, folds, -1)
        self.counts = np.bincount(cell, minlength=effects.A * folds).reshape(effects.A, folds).astype(np.float64)

    def __call__(self, context: Codes, action: Codes) -> Array:
        own = self.table[context, action]
        known, fold = own >= 0, self.fold[own]
        signature = self.sums.sum(1)[action] - np.where(known[:, None], self.sums[action, fold], 0.0)
        others = self.counts.sum(1)[action] - np.where(known, self.counts[action, fold], 0.0)
        signature /= (others + 1)[:, None]
        return unit(np.concatenate([signature, np.full((len(signature), 1), EVIDENCE)], 1))


def _dealt(effects: Effects, folds: int) -> Codes:
    """Fold of each pair ``[m]``: the pairs of an action take turns, contexts in random order, from a random fold on."""
    rng = np.random.default_rng(0)
    place, start = rng.permutation(effects.K)[effects.context], rng.integers(folds, size=effects.A)
    order = np.lexsort((place, effects.action))
    action = effects.action[order]
    fold: Codes = np.empty_like(action)
    fold[order] = (np.arange(len(action)) - np.searchsorted(action, action) + start[action]) % folds
    return fold


class PairKernel:
    """``k((c, d), (c', d')) = M₀ + a_d a_d' (k_d M₁ + δ_d M₂ + k_s M₃)`` with ``[K, K]`` matrices
    ``M₀ = s₀ + s_c κ_c + s_0 δ_c`` and ``M_j = s_j + s_j' κ_c``.

    Parameters
    ----------
    effects : Effects
        Training pairs.
    row_features : callable ``(context, action) → [p, f]``
        Features of length 1 at most, ``k_s = ntk`` of their products. With ``full_diagonal``, what they lack in length is an
        indicator of the row, that no two rows share: ``k_s = ntk(1)`` of a row with itself.
    strength : bool
        Learn how strong each action is, ``a_d``; else 1.
    depth : int
        Hidden layers of the tangent kernel.

    Attributes
    ----------
    contexts : array ``[K, K]``
        ``κ_c``: similarity of contexts, learned from what the same actions do in both.
    actions : array ``[A, A]`` or None
        ``k_d``: Tanimoto similarity where the features of actions are bits, else their tangent kernel.
    strength : array ``[A]``
        ``a_d``: geometric mean of the residuals' lengths, relative to other actions in the same contexts, shrunk.
    """

    def __init__(self, effects: Effects, row_features: object, *, strength: bool = True, depth: int = 1) -> None:
        self.features, self.depth = row_features, depth
        residual = effects.x - ContextMean().fit(effects).means_[effects.context]
        self.strength = strengths(residual, effects) if strength else np.ones(effects.A)
        self.contexts = context_similarity(residual, effects)
        self.actions = _action_kernel(effects, depth)
        self.full_diagonal = bool(getattr(row_features, "full_diagonal", False))
        self.train = self.rows(effects.context, effects.action)

    @property
    def terms(self) -> tuple[str, ...]:
        return tuple(t for t in TERMS if self.actions is not None or not t.startswith("structure"))

    def rows(self, context: Codes, action: Codes) -> Rows:
        return Rows(context, action, self.features(context, action))  # type: ignore[operator]

    def parts(self, a: Rows, b: Rows) -> Iterator[tuple[str, Array]]:
        """Each term of the kernel between two sets of rows, variance 1."""
        kappa = self.contexts[np.ix_(a.context, b.context)]
        yield "constant", np.ones_like(kappa)
        yield "context", kappa
        yield "own_context", (a.context[:, None] == b.context).astype(kappa.dtype)
        for name, kernel in self._action_parts(a, b):
            yield name, kernel
            yield f"{name}_context", kernel * kappa

    def cross(self, a: Rows, b: Rows, variance: dict[str, float], dtype: type = np.float64) -> Array:
        """``[len(a), len(b)]`` with the given variances, terms of variance 0 not computed."""

        def between(name: str) -> Array:
            small = variance.get(name, 0.0) + variance.get(_with_context(name), 0.0) * self.contexts
            if name == "constant":
                small = small + variance.get("own_context", 0.0) * np.eye(len(small))
            return small.astype(dtype)[np.ix_(a.context, b.context)]

        wanted = {n for n in ("structure", "action", "signature") if variance.get(n) or variance.get(_with_context(n))}
        out: Array = between("constant")
        for name, kernel in self._action_parts(a, b, dtype, wanted):
            kernel *= between(name)
            out += kernel
        return out

    def diagonal(self, rows: Rows, variance: dict[str, float]) -> Array:
        """``k`` of each row with itself ``[p]``."""
        own = np.diag(self.contexts)[rows.context]
        total = variance.get("constant", 0.0) + variance.get("context", 0.0) * own + variance.get("own_context", 0.0)
        square = self.strength[rows.action] ** 2
        for name, kernel in (
            ("structure", np.ones(len(rows)) if self.actions is None else np.diag(self.actions)[rows.action]),
            ("action", np.ones(len(rows))),
            ("signature", self._own_signature(rows)),
        ):
            total = total + square * kernel * (variance.get(name, 0.0) + variance.get(_with_context(name), 0.0) * own)
        return total

    def matrix(self, variance: dict[str, float], noise: float, dtype: type = np.float64) -> Array:
        """Upper triangle of ``k + noise`` among training rows ``[m, m]``, made in place; the rest is not defined."""
        m = len(self.train)
        k: Array = np.empty((m, m), dtype)
        for start in range(0, m, CHUNK):
            stop = min(start + CHUNK, m)
            k[start:stop, start:] = self.cross(self.train[start:stop], self.train[start:], variance, dtype)
        k[np.diag_indices(m)] = self.diagonal(self.train, variance) + noise * self.noise(self.train)
        return k

    def noise(self, rows: Rows) -> Array:
        """Relative variance of the noise ``[p]``: strong effects are measured with more of it."""
        return self.strength[rows.action]

    def _own_signature(self, rows: Rows) -> Array:
        length = (rows.features**2).sum(1)
        return ntk(np.ones_like(length) if self.full_diagonal else length, self.depth)

    def _action_parts(
        self, a: Rows, b: Rows, dtype: type = np.float64, wanted: set[str] | None = None
    ) -> Iterator[tuple[str, Array]]:
        scale: Array = self.strength[a.action].astype(dtype)[:, None] * self.strength[b.action].astype(dtype)
        if self.actions is not None and (wanted is None or "structure" in wanted):
            yield "structure", self.actions.astype(dtype, copy=False)[np.ix_(a.action, b.action)] * scale
        if wanted is None or "action" in wanted:
            yield "action", (a.action[:, None] == b.action) * scale
        if wanted is None or "signature" in wanted:
            products: Array = a.features.astype(dtype, copy=False) @ b.features.astype(dtype, copy=False).T
            yield "signature", ntk(products, self.depth) * scale


def strengths(residual: Array, effects: Effects) -> Array:
    """Relative strength of each action ``[A]``, 1 for one never seen: shrunken means of the residuals' log length."""
    length = np.linalg.norm(residual, axis=1)
    typical = np.median(length[length > 0]) if length.any() else 1.0
    log = np.log(np.maximum(length, 0.05 * typical))[:, None]
    log -= means(log, effects.context, effects.K, np.zeros(1))[0][effects.context]
    mean, counts = means(log, effects.action, effects.A, np.zeros(1))
    return np.exp(mean[:, 0] * counts / (counts + min(variance_ratio(log, effects.action, mean, counts), 1e6)))


def context_similarity(residual: Array, effects: Effects, n_components: int = 30) -> Array:
    """``κ_c [K, K]``: mean cosine of the residuals of the same action in two contexts, shrunk by how many they share.

    The estimate for few shared actions is what the features of contexts (correlation over centred columns) say, brought to
    scale by weighted least squares; without features the mean over contexts. Scaled to 1 for the closest contexts, made
    positive semi-definite.
    """
    directions = np.linalg.eigh(residual.T @ residual)[1][:, ::-1][:, :n_components]
    tensor = np.zeros((effects.K, effects.A, directions.shape[1]))
    tensor[effects.context, effects.action] = unit(residual @ directions)
    seen = (effects.table() >= 0).astype(np.float64)
    flat = tensor.reshape(effects.K, -1)
    sums, counts = flat @ flat.T, seen @ seen.T
    upper = np.triu_indices(effects.K, 1)
    weight = counts[upper]
    if not weight.any():
        prior = np.eye(effects.K)
        if effects.context_features is not None:
            prior = _correlation(effects.context_features.to_numpy(np.float64))
        return _semidefinite(prior)
    design = np.ones((len(weight), 1))
    if effects.context_features is not None:
        known = _correlation(effects.context_features.to_numpy(np.float64))
        design = np.column_stack([design, known[upper]])
    root = np.sqrt(weight)
    beta = np.linalg.lstsq(design * root[:, None], sums[upper] / np.maximum(weight, 1) * root, rcond=None)[0]
    shrunk = (sums[upper] + PRIOR_PAIRS * (design @ beta)) / (weight + PRIOR_PAIRS)
    similarity = np.zeros((effects.K, effects.K))
    similarity[upper] = shrunk / max(1.02 * np.abs(shrunk).max(), 1e-12)
    similarity += similarity.T
    np.fill_diagonal(similarity, 1)
    return _semidefinite(similarity)


def _action_kernel(effects: Effects, depth: int) -> Array | None:
    if effects.action_features is None:
        return None
    known = effects.action_features.to_numpy(np.float64)
    if np.isin(known, (0, 1)).all():
        kernel = tanimoto(known, known).astype(np.float64)
        np.fill_diagonal(kernel, 1)
        return kernel
    rows = unit(known - known.mean(0))
    return ntk(rows @ rows.T, depth) / (depth + 1)


def _correlation(known: Array) -> Array:
    rows = known - known.mean(0)
    rows = unit(rows - rows.mean(1, keepdims=True))
    return rows @ rows.T


def _semidefinite(similarity: Array) -> Array:
    """Nearest in spectrum, unit diagonal."""
    values, vectors = np.linalg.eigh(similarity)
    similarity = (vectors * np.maximum(values, 1e-3)) @ vectors.T
    scale = 1 / np.sqrt(np.diag(similarity))
    return similarity * scale[:, None] * scale


def _with_context(name: str) -> str:
    return "context" if name == "constant" else f"{name}_context"

"""Is the right latent found, and is the right one intervened on? Everything up to permutation and sign."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata
from torch import Tensor

from ..scm.shifts import NoiseShift

Matrix = Tensor | NDArray[Any]
Method = Literal["pearson", "spearman"]


@dataclass(frozen=True)
class Matching:
    """Which estimated latent stands for which true one.

    Attributes
    ----------
    order : ndarray ``[d]``
        Estimated latent matched to each true one; −1 where there are too few.
    sign : ndarray ``[d]``
        Sign of their correlation.
    correlation : ndarray ``[d]``
        Its absolute value; 0 for unmatched.
    """

    order: NDArray[np.int64]
    sign: NDArray[np.float64]
    correlation: NDArray[np.float64]

    @property
    def mcc(self) -> float:
        """Mean correlation coefficient: mean of ``|correlation|`` over the true latents."""
        return float(self.correlation.mean())

    def apply(self, values: NDArray[Any], signed: bool = True) -> NDArray[Any]:
        """Columns of ``values [..., k]`` in the order (and with the sign) of the true latents; 0 for unmatched."""
        values = np.asarray(values, dtype=float)
        found = np.where(self.order >= 0, values[..., self.order], 0.0)
        return found * self.sign if signed else found

    def apply_shift(self, shift: NoiseShift) -> NoiseShift:
        """A ``NoiseShift`` in the order and sign of the true latents."""
        loc = torch.from_numpy(self.apply(shift.loc.numpy())).to(shift.loc.dtype)
        log_scale = torch.from_numpy(self.apply(shift.log_scale.numpy(), signed=False)).to(shift.loc.dtype)
        return NoiseShift(loc, log_scale)


def match_latents(estimate: Matrix, truth: Matrix, method: Method = "pearson") -> Matching:
    """Assign estimated latents ``[n, k]`` to true ones ``[n, d]``, maximising the sum of |correlation| (Hungarian).

    Raises
    ------
    ValueError
        If the two have different numbers of profiles, or ``method`` is unknown.
    """
    a, b = _array(estimate), _array(truth)
    if len(a) != len(b):
        raise ValueError(f"estimate has {len(a)} profiles, truth {len(b)}")
    if method not in ("pearson", "spearman"):
        raise ValueError(f"method must be 'pearson' or 'spearman', got {method!r}")
    if method == "spearman":
        a, b = rankdata(a, axis=0), rankdata(b, axis=0)
    correlation = _standardised(a).T @ _standardised(b) / len(a)
    rows, columns = linear_sum_assignment(-np.abs(correlation))
    d = b.shape[1]
    order, sign, size = np.full(d, -1), np.ones(d), np.zeros(d)
    order[columns] = rows
    matched = correlation[rows, columns]
    sign[columns], size[columns] = np.where(matched < 0, -1.0, 1.0), np.abs(matched)
    return Matching(order, sign, np.minimum(size, 1.0))


def mcc(estimate: Matrix, truth: Matrix, method: Method = "pearson") -> float:
    """Mean |correlation| between matched latents: 1 when every true latent is found up to sign and scale."""
    return match_latents(estimate, truth, method).mcc


def linear_r2(estimate: Matrix, truth: Matrix) -> float:
    """Mean R² of the best affine map from estimated to true latents: what any rotation could reach at most."""
    a, b = _array(estimate), _array(truth)
    design = np.column_stack([a, np.ones(len(a))])
    residual = b - design @ np.linalg.lstsq(design, b, rcond=None)[0]
    return float(np.mean(1 - residual.var(0) / b.var(0)))


@dataclass(frozen=True)
class TargetRecovery:
    """How well the intervened latents are named.

    ``precision``, ``recall`` and ``f1`` are over all (environment, latent) pairs of treated environments; ``top1`` is
    the share of treated environments whose strongest latent is a true target.
    """

    precision: float
    recall: float
    f1: float
    top1: float


def target_recovery(
    score: Matrix,
    targets: Matrix,
    matching: Matching,
    *,
    threshold: float = 0.5,
    size: Matrix | None = None,
    min_size: float = 0.0,
) -> TargetRecovery:
    """Compare predicted with true targets.

    Parameters
    ----------
    score : ``[E, k]``
        Probability (or any score) that an estimated latent is intervened on; at or above ``threshold`` it is named.
    targets : bool ``[E, d]``
        Environments without any are left out.
    size : ``[E, d]``, optional
        True shifts; only environments whose largest |shift| exceeds ``min_size`` count.
    """
    truth = _array(targets).astype(bool)
    aligned = matching.apply(_array(score), signed=False)
    keep = truth.any(1)
    if size is not None:
        keep &= np.abs(_array(size)).max(1) > min_size
    if not keep.any():
        raise ValueError("no environment has a target (of the asked size): nothing to score")
    truth, aligned = truth[keep], aligned[keep]
    named = aligned >= threshold
    hit = int((named & truth).sum())
    precision, recall = hit / max(int(named.sum()), 1), hit / int(truth.sum())
    f1 = 2 * precision * recall / (precision + recall) if hit else 0.0
    # The strongest latent may be one that matches nothing: then the environment is wrong.
    strongest = _array(score)[keep].argmax(1)
    inverse = np.full(int(max(strongest.max(), matching.order.max())) + 1, -1)
    inverse[matching.order[matching.order >= 0]] = np.flatnonzero(matching.order >= 0)
    guess = inverse[strongest]
    top1 = float(np.mean((guess >= 0) & truth[np.arange(len(truth)), guess]))
    return TargetRecovery(precision, recall, f1, top1)


def moved_latents(shift: NoiseShift, threshold: float = 0.05) -> Tensor:
    """Number of latents that leave the reference law in each environment ``[E]`` (KL above ``threshold`` nats).

    One or few a environment is what the paper (section 6) calls disentangled from the environment's effect.
    """
    return shift.moved(threshold).sum(-1)


def _array(values: Matrix) -> NDArray[Any]:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=float)


def _standardised(values: NDArray[Any]) -> NDArray[Any]:
    centred = values - values.mean(0)
    sd = centred.std(0)
    return np.divide(centred, sd, out=np.zeros_like(centred), where=sd > 1e-12)

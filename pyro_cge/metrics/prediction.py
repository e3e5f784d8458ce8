"""How close are predicted profiles to measured ones?"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from scipy import stats
from torch import Tensor

TIE = 1e-9  # correlations this close are rounding apart


def reconstruction_loss(x: Tensor, prediction: Tensor) -> Tensor:
    """The paper's reconstruction loss: sum of squared errors over genes, one number a profile ``[n]``."""
    _check(x, prediction)
    return (x.double() - prediction.double()).square().sum(-1)


def pearson_per_profile(x: Tensor, prediction: Tensor) -> Tensor:
    """Pearson r over genes, one number a profile ``[n]``; 0 where either side is constant."""
    _check(x, prediction)
    a, b = (v.double() - v.double().mean(-1, keepdim=True) for v in (x, prediction))
    norm = a.norm(dim=-1) * b.norm(dim=-1)
    return torch.where(norm > 0, (a * b).sum(-1) / norm.clamp_min(1e-300), 0.0)


def r2_per_profile(x: Tensor, prediction: Tensor) -> Tensor:
    """``1 − SS_residual / SS_total`` over genes, one number a profile ``[n]``; NaN for a constant profile."""
    _check(x, prediction)
    return _r2(x.double(), prediction.double(), -1)


def r2_per_gene(x: Tensor, prediction: Tensor) -> Tensor:
    """``1 − SS_residual / SS_total`` over profiles, one number a gene ``[g]``; NaN for a constant gene."""
    _check(x, prediction)
    return _r2(x.double(), prediction.double(), 0)


def per_profile(x: Tensor, prediction: Tensor) -> dict[str, Tensor]:
    """The above, a number a profile ``[n]`` each: ``sse`` (the reconstruction loss), ``mse`` (a gene), ``pearson``, ``r2``."""
    loss = reconstruction_loss(x, prediction)
    return {
        "sse": loss,
        "mse": loss / x.shape[-1],
        "pearson": pearson_per_profile(x, prediction),
        "r2": r2_per_profile(x, prediction),
    }


def means(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Means over profiles; of R², over those that have one."""
    return {name: float(v.nanmean() if name.endswith("r2") else v.mean()) for name, v in values.items()}


def summarise(x: Tensor, prediction: Tensor) -> dict[str, float]:
    """Means of :func:`per_profile` over profiles."""
    return means(per_profile(x, prediction))


def top_gene_overlap(x: Tensor, prediction: Tensor, k: int = 20) -> Tensor:
    """Share of the ``k`` largest genes by absolute value that both have in common, one number a profile ``[n]``.

    By chance ``k / g``. For expression relative to a control (z-scores, differences).
    """
    _check(x, prediction)
    if not 1 <= k <= x.shape[-1]:
        raise ValueError(f"k must lie between 1 and the {x.shape[-1]} genes, got {k}")
    chosen = [
        torch.zeros_like(v, dtype=torch.bool).scatter_(-1, v.abs().topk(k).indices, True) for v in (x, prediction)
    ]
    return (chosen[0] & chosen[1]).sum(-1) / k


def rank_among(x: Tensor, prediction: Tensor, groups: Sequence[Hashable] | np.ndarray) -> Tensor:
    """Is the right profile nearest? Share of the other predictions of its group that are less like it, ``[n]``.

    Likeness is Pearson r over genes; ties count half. 1 where the profile's own prediction is the nearest of its group
    (profiles of one cell line, say), 0.5 by chance, NaN for a profile alone in its group.
    """
    _check(x, prediction)
    a, b = (
        torch.nn.functional.normalize(v.double() - v.double().mean(-1, keepdim=True), dim=-1) for v in (x, prediction)
    )
    labels, result = np.asarray(groups), torch.full((len(x),), torch.nan, dtype=torch.float64, device=x.device)
    for label in np.unique(labels):
        rows = torch.from_numpy(np.flatnonzero(labels == label)).to(x.device)
        if len(rows) > 1:
            likeness = a[rows] @ b[rows].T
            lead = likeness.diagonal()[:, None] - likeness
            below = (lead > TIE).sum(1).double() + 0.5 * ((lead.abs() <= TIE).sum(1) - 1)
            result[rows] = below / (len(rows) - 1)
    return result


def mean_interval(
    values: Tensor, groups: Sequence[Hashable] | np.ndarray, *, level: float = 0.95, n_draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of the mean of ``values [n]``, resampling whole groups (compounds), which are not independent."""
    codes = np.unique(np.asarray(groups), return_inverse=True)[1]
    given = values.double().cpu().numpy()
    if given.shape != codes.shape:
        raise ValueError(f"{given.shape} values for {codes.shape} groups")
    known = ~np.isnan(given)
    totals = np.bincount(codes[known], given[known], minlength=codes.max() + 1)
    counts = np.bincount(codes[known], minlength=codes.max() + 1)
    drawn = np.random.default_rng(seed).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), n_draws)
    means = (drawn @ totals) / np.maximum(drawn @ counts, 1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def t_interval(values: Sequence[float] | np.ndarray, *, level: float = 0.95) -> tuple[float, float]:
    """Student's t interval of a mean, of independent runs (seeds): ``mean ± t s / √n``; NaN for fewer than two values."""
    given = np.asarray(values, dtype=float)
    if len(given) < 2:
        return float("nan"), float("nan")
    half = stats.t.ppf(0.5 + level / 2, len(given) - 1) * given.std(ddof=1) / len(given) ** 0.5
    return float(given.mean() - half), float(given.mean() + half)


def _r2(x: Tensor, prediction: Tensor, dim: int) -> Tensor:
    residual = (x - prediction).square().sum(dim)
    total = (x - x.mean(dim, keepdim=True)).square().sum(dim)
    return torch.where(total > 0, 1 - residual / total.clamp_min(1e-300), torch.nan)


def _check(x: Tensor, prediction: Tensor) -> None:
    if x.shape != prediction.shape:
        raise ValueError(f"profiles have shape {list(x.shape)}, predictions {list(prediction.shape)}")

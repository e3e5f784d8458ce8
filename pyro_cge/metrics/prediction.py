"""How close are predicted profiles to measured ones?"""

from __future__ import annotations

import torch
from torch import Tensor


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


def summarise(x: Tensor, prediction: Tensor) -> dict[str, float]:
    """Means of the above: ``sse`` (the reconstruction loss of a profile), ``mse`` (a gene), ``pearson`` and ``r2`` (a profile)."""
    loss = reconstruction_loss(x, prediction)
    return {
        "sse": float(loss.mean()),
        "mse": float(loss.mean()) / x.shape[-1],
        "pearson": float(pearson_per_profile(x, prediction).mean()),
        "r2": float(r2_per_profile(x, prediction).nanmean()),
    }


def _r2(x: Tensor, prediction: Tensor, dim: int) -> Tensor:
    residual = (x - prediction).square().sum(dim)
    total = (x - x.mean(dim, keepdim=True)).square().sum(dim)
    return torch.where(total > 0, 1 - residual / total.clamp_min(1e-300), torch.nan)


def _check(x: Tensor, prediction: Tensor) -> None:
    if x.shape != prediction.shape:
        raise ValueError(f"profiles have shape {list(x.shape)}, predictions {list(prediction.shape)}")

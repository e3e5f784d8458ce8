"""The suite on the same data: does anything explode, and what does a Student-t likelihood give on held-out data?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from handwritten import EXPLODED
from heavy import Parts

import pyro_cge as cge
from pyro_cge.errors import NonFiniteLossError
from pyro_cge.presets import PRESETS

MODELS = ("basic", "conditional", "environment", "translation", "structured", "structured_translation", "dense")
DEPTH = 5  # layers of the structured models


def build(name: str, data: cge.EnvironmentData, seed: int, hidden: int, d: int, likelihood: str) -> Any:
    """Model and guide of a preset; raw hours and dose are among the features they see."""
    options = {"depth": DEPTH} if name.startswith("structured") else {}
    with cge.isolated(seed):
        return PRESETS[name](data, d, hidden=(hidden,), likelihood=likelihood, **options)


def suite(
    data: Parts, name: str, seed: int, *, epochs: int, batch: int, lr: float, hidden: int, d: int
) -> dict[str, Any]:
    """One preset with ``fit``'s own defaults, but the whole KL term from the first step and no early stopping.

    Losses are divided by that of predicting zero with unit noise, in the standardised units the model sees.
    """
    train, valid = data
    model, guide = build(name, train, seed, hidden, d, "gaussian")
    settings: dict[str, Any] = {"epochs": epochs, "batch_size": batch, "lr": lr, "kl_warmup": 0, "patience": None}
    try:
        fit = cge.fit(model, guide, train, validation=valid, seed=seed, progress=False, **settings)
    except NonFiniteLossError as error:
        return {"exploded": True, "non_finite": 1, "epoch": error.epoch + 1, "site": error.site, "worst": math.inf}
    trivial = [
        0.5 * math.log(2 * math.pi) * part.g + 0.5 * float(fit.scaler.transform(part).x.square().sum()) / part.n
        for part in data
    ]
    losses = fit.history[["train_loss", "valid_loss"]].to_numpy() / trivial
    held_out, non_finite = losses[:, 1], int((~np.isfinite(losses)).sum())
    worst = float(np.nan_to_num(losses, nan=math.inf).max())
    return {
        "exploded": bool(non_finite or worst > EXPLODED),
        "non_finite": non_finite,
        "worst": worst,
        "last": float(held_out[-1]),
        "best": float(held_out.min()),
        "largest_grad_norm": float(fit.history["grad_norm"].max()),
    }


def evidence(
    data: Parts, name: str, likelihood: str, seed: int, *, epochs: int, batch: int, lr: float, hidden: int, d: int
) -> dict[str, Any]:
    """Importance-weighted held-out bound per profile, in nats of the data's own units; weights of the best epoch."""
    train, valid = data
    model, guide = build(name, train, seed, hidden, d, likelihood)
    fit = cge.fit(
        model, guide, train, validation=valid, epochs=epochs, batch_size=batch, lr=lr, seed=seed, progress=False
    )
    posterior = fit.posterior(valid)
    residual = (posterior.reconstruct() - valid.x).abs()
    return {
        "bound": float(posterior.log_evidence(50).mean()),
        "median_error": float(residual.median()),
        "best_epoch": fit.best_epoch,
    }


def untrained(data: Parts) -> dict[str, float]:
    """Held-out log density per profile of each gene's own law, with no latents: normal and Student-t.

    The normal by maximum likelihood; the Student-t by median and quartiles, its degrees of freedom by the training data.
    """
    from scipy import stats

    train, valid = (part.x.double().numpy() for part in data)
    bounds = {"normal": float(stats.norm.logpdf(valid, train.mean(0), train.std(0)).sum(1).mean()), "student": math.nan}
    middle, (low, high), best = np.median(train, 0), np.quantile(train, [0.25, 0.75], 0), -math.inf
    for df in (1.5, 2, 3, 4, 6, 10):
        scale = (high - low) / (2 * stats.t.ppf(0.75, df))
        if (seen := float(stats.t.logpdf(train, df, middle, scale).sum())) > best:
            best, bounds["student"] = seen, float(stats.t.logpdf(valid, df, middle, scale).sum(1).mean())
    return bounds

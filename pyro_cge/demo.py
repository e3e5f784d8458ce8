"""The demonstration: simulate a cell, fit models, compare each with the truth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from . import metrics, plots, report, runs, simulate
from .config import RunConfig
from .data.environment import EnvironmentData
from .train.checkpoint import write_atomically
from .train.fit import Fit

LATENTS, GENES, ENVIRONMENTS, PER_ENV = 5, 60, 25, 100
MODELS: dict[str, dict[str, Any]] = {
    "basic": {},
    "conditional": {},
    "environment": {},
    # Free means, a few latents to spare, trained to the end; then turned to sparse.
    "dense + rotation": {
        "model": "dense",
        "latents": 8,
        "hidden": (512,),
        "lr": 4e-3,
        "schedule": "one_cycle",
        "kl_warmup": 0,
        "patience": None,
        "rotate": True,
    },
}


def demo(out: Path, seed: int = 0, epochs: int = 80, say: Callable[[str], None] = print) -> pd.DataFrame:
    """Fit four models on a simulated growing network; returns and writes the table, and a report (``report.html``).

    Basic, conditional and Environment VAE, and a dense environment model turned to sparse by the rotation step.

    In distribution: unseen cells of the 25 training environments. Out of distribution: 25 other random environments.
    Environments are known to the models by a 16-number descriptor, a fixed random projection of their shifts that
    plays the part of a molecular fingerprint.
    """
    describe = simulate.descriptors(LATENTS, 16, seed=seed)
    training = describe(simulate.random_shifts(LATENTS, ENVIRONMENTS, variance=5, cover=True, seed=seed))
    unseen = describe(simulate.random_shifts(LATENTS, ENVIRONMENTS, variance=5, seed=seed + 1))
    truth = simulate.growing_network(
        n_latents=LATENTS, n_genes=GENES, decoder="neural", environments=training, seed=seed
    )
    data = truth.sample(PER_ENV, seed=seed)
    outside = truth.sample(PER_ENV, environments=unseen, seed=seed + 1)
    inside = truth.sample(PER_ENV // 4, seed=seed + 2)
    say(f"truth: {truth.scm.graph}, {data}")

    rows, histories, fits = {}, {}, {}
    for name, settings in MODELS.items():
        say(f"fitting the {name} model")
        config = RunConfig.model_validate(
            {"model": name, "latents": LATENTS, "epochs": epochs, "lr": 2e-3, "split": "random", "seed": seed}
            | settings
        )
        fit, _ = runs.run(config, data, out / name.replace(" + ", "_"))
        fits[name], histories[name] = fit, fit.history
        rows[name] = {
            "reconstruction, seen environments": _error(fit, inside),
            "reconstruction, new environments": _error(fit, outside),
            "prediction r, new environments": runs.score(fit, outside)["prediction_pearson"],
            **dict(runs.recovery(fit, data).items()),
        }
    mean = data.x.mean(0)
    rows["(gene means)"] = {
        "reconstruction, seen environments": float(
            metrics.reconstruction_loss(inside.x, mean.expand_as(inside.x)).mean()
        ),
        "reconstruction, new environments": float(
            metrics.reconstruction_loss(outside.x, mean.expand_as(outside.x)).mean()
        ),
    }
    table = pd.DataFrame(rows)
    write_atomically(out / "table.csv", table.to_csv().encode())
    plots.learning_curves(histories)
    runs.save_figure(out / "learning_curves.png")
    _out_of_distribution(truth, describe, fits, out)
    report.write([out], out / "report.html", data, title="Four models of a simulated cell")
    say(f"report: {out / 'report.html'}")
    return table


def _error(fit: Fit, data: EnvironmentData) -> float:
    return float(metrics.reconstruction_loss(data.x, fit.posterior(data).reconstruct()).mean())


def _out_of_distribution(
    truth: simulate.GroundTruth,
    describe: Callable[[simulate.Environments], simulate.Environments],
    fits: dict[str, Fit],
    out: Path,
) -> None:
    from matplotlib import pyplot as plt

    offsets = torch.linspace(-20, 20, 17)
    _, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
    for latent, ax in enumerate(axes):
        rows = torch.zeros(len(offsets), LATENTS)
        rows[:, latent] = offsets
        swept = describe(simulate.offsets(rows.tolist()))
        data = truth.sample(50, environments=swept, seed=7)
        losses = {}
        for name, fit in fits.items():
            error = metrics.reconstruction_loss(data.x, fit.posterior(data).reconstruct())
            losses[name] = torch.zeros(len(offsets)).double().index_add_(0, data.env, error) / 50
        span = truth.environments.shift.loc[:, latent]
        plots.ood_curve(
            offsets.numpy(),
            {name: loss.numpy() for name, loss in losses.items()},
            ax,
            direction=f"latent {latent}",
            training_range=(float(span.min()), float(span.max())),
        )
    runs.save_figure(out / "out_of_distribution.png")

"""Real level-5 profiles of perturbagens never seen (paper, section 6.5, figure 10): do the losses explode?

An environment is a perturbagen, described by its Morgan fingerprint; those of the held-out part are never trained on.
978 genes, one hidden layer of 500 ReLU units everywhere, 200 latents, batches of 16, learning rate 3e-4, no early
stopping. Beside the held-out loss, the mean squared error a gene of the reconstruction (of standardised genes: 1 is what
the gene means give).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rows import Job, collect

import pyro_cge as cge
from pyro_cge.config import RunConfig
from pyro_cge.errors import NonFiniteLossError
from pyro_cge.metrics import reconstruction_loss
from pyro_cge.presets import PRESETS
from pyro_cge.runs import build, objective_of

PAPERS = ("basic", "conditional", "environment", "translation", "structured")
STRUCTURED = ("structured", "structured_translation", "discrepancy")
DEPTH = 5  # layers of the SCM: 40 latents each


def perturbagens(data: cge.EnvironmentData) -> cge.EnvironmentData:
    """One environment a perturbagen, whatever the cell line; features are the bits of its fingerprint."""
    env, names = pd.factorize(data.obs["perturbagen"])
    first = data.env[torch.from_numpy(np.unique(env, return_index=True)[1])]
    assert data.env_features is not None
    bits = data.env_features[:, : -data.env_table["cell_line"].nunique()]
    return cge.EnvironmentData(
        x=data.x,
        env=torch.from_numpy(env),
        gene_names=data.gene_names,
        env_names=[str(name) for name in names],
        env_features=bits[first],
        obs=data.obs,
    )


def train(name: str, seed: int, data: cge.EnvironmentData, valid: cge.EnvironmentData, epochs: int) -> list[dict]:
    """One record an epoch: held-out loss and squared error; one with the epoch reached, where training broke off."""
    config = RunConfig(model=name, latents=200, hidden=(500,), depth=DEPTH if name in STRUCTURED else None, seed=seed)
    model, guide = build(config, data)
    scaled = cge.Standardizer.fit(data).transform(valid)
    errors: list[float] = []

    @torch.no_grad()
    def look(epoch: int = 0) -> None:
        batch = scaled.batch()
        losses = reconstruction_loss(batch.x, model.mean(guide.encode(batch)[0], batch))
        errors.append(float(losses.mean()) / valid.g)

    options: dict[str, Any] = {"epochs": epochs, "batch_size": 16, "lr": 3e-4, "validation": valid, "seed": seed}
    try:
        fit = cge.fit(
            model,
            guide,
            data,
            objective=objective_of(config, data),
            patience=None,
            progress=False,
            on_epoch=look,
            **options,
        )
    except NonFiniteLossError as error:
        return [{"epoch": error.epoch, "loss": float("nan"), "mse": float("nan")}]
    columns = ["valid_loss", "valid_log_likelihood", "valid_kl"]
    table = fit.history[columns].rename(columns=lambda column: column.removeprefix("valid_"))
    # ``look`` saw the weights before each epoch: the last epoch's are the best ones by now, and left out.
    return table.assign(epoch=range(1, epochs + 1), mse=[*errors[1:], np.nan]).to_dict("records")


def run(arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    data = perturbagens(cge.read_h5ad(arguments.data))
    part = data.obs["part"].to_numpy()
    fitted, held = (data.rows(np.flatnonzero(part == name)) for name in ("train", "val"))
    epochs, seeds = (2, 1) if arguments.quick else (200, arguments.seeds)
    others = () if arguments.quick else tuple(name for name in PRESETS if name not in PAPERS)

    def jobs() -> Iterator[Job]:
        for names in (PAPERS, others):  # the paper's own first
            for seed in range(seeds):
                for name in names:
                    yield {"model": name, "seed": seed}, partial(train, name, seed, fitted, held, epochs)

    rows = collect(jobs(), out / "l1000", arguments.resume)
    return summary(rows, out)


def summary(rows: pd.DataFrame, out: Path) -> dict[str, Any]:
    """How much worse the last epoch is than the best, and the lowest squared error, by model."""
    runs = rows.groupby(["model", "seed"], sort=False)
    table = pd.DataFrame(
        {
            "epochs": runs["epoch"].max(),
            "best loss": runs["loss"].min(),
            "best epoch": runs.apply(lambda r: r["epoch"].iloc[int(np.nanargmin(r["loss"]))], include_groups=False),
            "last / best": runs["loss"].last() / runs["loss"].min(),
            "best MSE": runs["mse"].min(),
            "last MSE": runs["mse"].apply(lambda m: m.dropna().iloc[-1]),
            "non-finite": runs["loss"].apply(lambda loss: int((~np.isfinite(loss)).sum())),
        }
    )
    by_model = table.groupby("model", sort=False)
    means = by_model.mean().assign(seeds=by_model.size(), worst=by_model["last / best"].max())
    print(means.round(3).to_string())
    draw(rows, out / "l1000.png")
    return {
        "l1000_exploded": int((table["non-finite"] > 0).sum() + (table["last / best"] > 2).sum()),
        "l1000_last_over_best": means["worst"].round(3).to_dict(),
        "l1000_mse": means["best MSE"].round(3).to_dict(),
        "l1000_runs": len(table),
    }


def draw(rows: pd.DataFrame, path: Path) -> None:
    """Held-out loss and squared error along training: mean over seeds, and their range."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for axis, column, label in (
        (axes[0], "loss", "held-out loss per profile (nats)"),
        (axes[1], "mse", "held-out squared error a gene"),
    ):
        for i, (name, runs) in enumerate(rows.groupby("model", sort=False)):
            by_epoch = runs.groupby("epoch")[column]
            mean, style = by_epoch.mean().dropna(), "-" if name in PAPERS else "--"
            axis.plot(mean.index, mean, style, color=f"C{i}" if i < 10 else "k", lw=1.8, label=name)
            axis.fill_between(mean.index, by_epoch.min()[mean.index], by_epoch.max()[mean.index], alpha=0.15, lw=0)
        axis.set_xlabel("epoch")
        axis.set_ylabel(label)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, lw=0.5)
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    raise SystemExit("run it with: python run.py l1000 --data FILE.h5ad")

"""Figure 9, and losses against the number of environments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

TRAINED = ("basic", "conditional", "environment", "translation", "structured", "dense")
COLOURS = {name: f"C{i}" for i, name in enumerate([*TRAINED, "dense, rotated", "basic, as long"])}


TICKS = (0.1, 0.2, 0.5, 1, 2, 5)
PHRASES = {"described": "described", "reference": "as reference"}


def plot(rows: pd.DataFrame, path: Path) -> None:
    """Losses along training with their standard error over graphs, and differences from the basic VAE graph by graph."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12.5, 3.9), width_ratios=(1, 1, 0.9))
    for axis, how in zip(axes, ("described", "reference"), strict=False):
        for name in TRAINED:
            some = rows[(rows["model"] == name) & (rows["unseen"] == how)]
            if some.empty:
                continue
            epochs = some["epochs"].iloc[0]
            graphs = some.groupby("graph")["losses"].apply(lambda c: np.mean(list(c), 0))
            each = np.stack(list(graphs))
            mean, error = each.mean(0), each.std(0) / len(each) ** 0.5
            axis.plot(epochs, mean, color=COLOURS[name], label=name)
            axis.fill_between(epochs, mean - error, mean + error, color=COLOURS[name], alpha=0.15, lw=0)
        axis.set(
            title=f"unseen environments {PHRASES[how]}",
            xlabel="epoch",
            ylabel="reconstruction loss a gene",
            yscale="log",
        )
        axis.set_yticks(TICKS, [str(t) for t in TICKS])
        axis.minorticks_off()
    axes[0].legend(fontsize=7)
    each = rows.groupby(["model", "unseen", "graph"])["last"].mean()
    names = [n for n in COLOURS if n != "basic" and n in set(rows["model"])]
    for i, name in enumerate(names):
        for offset, how, marker in ((-0.12, "described", "o"), (0.12, "reference", "x")):
            ratio = each[name, how] / each["basic", how]
            axes[2].plot(ratio, np.full(len(ratio), i + offset), marker, color=COLOURS[name], ms=4, alpha=0.7)
    axes[2].axvline(1, color="k", lw=0.8)
    axes[2].set(xscale="log", title="over the basic VAE, a graph a dot", xlabel="ratio of losses (× as reference)")
    axes[2].set_xticks(TICKS[2:], [str(t) for t in TICKS[2:]])
    axes[2].minorticks_off()
    axes[2].set_yticks(range(len(names)), names, fontsize=8)
    axes[2].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def plot_counts(rows: pd.DataFrame, path: Path) -> None:
    """Reconstruction and prediction of unseen environments against the number of training environments."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.7))
    some = rows[rows["unseen"] == "described"]
    for name in [*TRAINED, "dense, rotated", "mean profile"]:
        means = some[some["model"] == name].groupby("environments")[["last", "predicted"]].mean()
        for axis, column in zip(axes, ("last", "predicted"), strict=True):
            if column == "last" and name == "mean profile":
                continue
            style = {"color": COLOURS.get(name, "k"), "ls": "-" if name in COLOURS else ":"}
            axis.plot(means.index, means[column], marker="o", ms=3, label=name, **style)
    axes[0].set(title="reconstruction", ylabel="squared error a gene")
    axes[1].set(title="mean profile predicted from the description")
    for axis in axes:
        axis.set(xscale="log", yscale="log", xlabel="training environments")
        counts = sorted(some["environments"].unique())
        axis.set_xticks(counts, [str(c) for c in counts], minor=False)
        axis.set_yticks(TICKS[:-1], [str(t) for t in TICKS[:-1]])
        axis.minorticks_off()
    axes[1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)

"""Plots of training and of generalisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito


def learning_curves(
    history: pd.DataFrame | Mapping[str, pd.DataFrame], ax: Axes | None = None, term: str = "loss"
) -> Axes:
    """Training (thin) and held-out (thick) curves, the best held-out epoch marked.

    Parameters
    ----------
    history : DataFrame or dict of them
        ``Fit.history``, or several by model name.
    term : str
        ``"loss"``, ``"log_likelihood"`` or ``"kl"``: per profile, in nats.
    """
    ax = _axes(ax)
    curves = {"": history} if isinstance(history, pd.DataFrame) else history
    for colour, (name, table) in zip(PALETTE * len(curves), curves.items()):
        label = f"{name} " if name else ""
        ax.plot(table["epoch"], table[f"train_{term}"], color=colour, lw=1, alpha=0.6, label=f"{label}train")
        if f"valid_{term}" in table:
            held = table[f"valid_{term}"]
            ax.plot(table["epoch"], held, color=colour, lw=2, label=f"{label}held out")
            if term == "loss":
                best = int(held.argmin())
                ax.plot(table["epoch"].iloc[best], held.iloc[best], "o", color=colour, mec="white", ms=7, zorder=3)
    ax.set_xlabel("epoch")
    ax.set_ylabel(f"{term.replace('_', ' ')} per profile (nats)")
    _tidy(ax)
    ax.legend(frameon=False, fontsize="small")
    return ax


def ood_curve(
    offsets: ArrayLike,
    losses: Mapping[str, Any],
    ax: Axes | None = None,
    *,
    direction: str = "T",
    training_range: tuple[float, float] | None = None,
    log: bool = True,
) -> Axes:
    """Reconstruction loss as one latent is pushed out of the training range (the paper's Figures 5 and 7).

    Parameters
    ----------
    offsets : ``[m]``
    losses : dict name → ``[m]`` or ``[seeds, m]``
        With several seeds the median is drawn and the range shaded.
    training_range : (low, high), optional
        Offsets seen in training, shaded.
    """
    ax = _axes(ax)
    offsets = np.asarray(offsets, dtype=float)
    if training_range is not None:
        ax.axvspan(*training_range, color="0.85", lw=0, label="seen in training", zorder=0)
    for colour, (name, values) in zip(PALETTE * len(losses), losses.items()):
        runs = np.atleast_2d(np.asarray(values, dtype=float))
        ax.plot(offsets, np.median(runs, 0), color=colour, lw=2, label=name)
        if len(runs) > 1:
            ax.fill_between(offsets, runs.min(0), runs.max(0), color=colour, alpha=0.15, lw=0)
    if log:
        ax.set_yscale("log")
    ax.set_xlabel(f"offset of {direction}")
    ax.set_ylabel("reconstruction loss per profile")
    _tidy(ax)
    ax.legend(frameon=False, fontsize="small")
    return ax


def _axes(ax: Axes | None) -> Axes:
    return plt.subplots(figsize=(6, 4), layout="constrained")[1] if ax is None else ax


def _tidy(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25, lw=0.5)

"""Plots of gene programmes and of their enrichment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from numpy.typing import NDArray

from ..errors import DataError
from .training import PALETTE, _axes, _tidy

LEAST_Q = 1e-10  # dots grow no further


def programmes(
    table: pd.DataFrame,
    latents: Sequence[str] | None = None,
    *,
    n: int = 10,
    unit: str = "effect of one sd of the latent",
    axes: Sequence[Axes] | None = None,
) -> NDArray[np.object_]:
    """The genes of largest weight in each programme as signed bars, a panel a latent.

    Parameters
    ----------
    table : DataFrame, gene × latent
        From :func:`pyro_cge.interpret.gene_programmes`.
    latents : sequence of str, optional
        Columns to show; default the six with the largest sum of squares, in the order of the table.
    n : int
        Genes a panel.
    axes : Axes, one a latent, optional

    Returns
    -------
    ndarray of Axes
    """
    if latents is None:
        largest = (table**2).sum().nlargest(6).index
        latents = [name for name in table.columns if name in largest]
    if axes is None:
        columns = min(3, len(latents))
        rows = ceil(len(latents) / columns)
        size = (3.0 * columns, (0.6 + 0.19 * n) * rows + 0.3)
        made = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)[1].ravel()
        for spare in made[len(latents) :]:
            spare.remove()
        drawn = list(made[: len(latents)])
    else:
        drawn = list(axes)
    for ax, latent in zip(drawn, latents, strict=True):
        weights = table[latent]
        top = weights.loc[weights.abs().nlargest(n).index].sort_values(ascending=False)
        colours = np.where(top > 0, PALETTE[1], PALETTE[0])
        ax.barh(range(len(top)), top, color=colours, height=0.75)
        ax.set_yticks(range(len(top)), [str(gene) for gene in top.index], fontsize=7)
        ax.invert_yaxis()
        ax.axvline(0, color="0.3", lw=0.8)
        ax.set_title(str(latent), fontsize="medium")
        ax.set_xlabel(unit, fontsize="small")
        ax.tick_params(axis="x", labelsize=7)
        ax.locator_params(axis="x", nbins=5)
        ax.tick_params(axis="y", length=0)
        _tidy(ax)
        ax.grid(axis="y", visible=False)
    return np.asarray(drawn, dtype=object)


def enrichment(
    table: pd.DataFrame,
    *,
    n_sets: int = 15,
    n_latents: int = 25,
    latents: Sequence[str] | None = None,
    max_q: float = 0.05,
    ax: Axes | None = None,
) -> Axes:
    """Dots of set against latent: colour is the signed effect, area the significance −log₁₀ q.

    Only pairs with ``q ≤ max_q`` are drawn.

    Parameters
    ----------
    table : DataFrame
        From :func:`pyro_cge.interpret.rank_enrichment` (colour: z) or
        :func:`~pyro_cge.interpret.over_representation` (colour: log₂ of observed over expected, negative for
        ``"down"``).
    n_sets, n_latents : int
        Show the sets, and the latents, with the smallest q anywhere.
    latents : sequence of str, optional
        The latents to show instead, in this order.

    Raises
    ------
    DataError
        If nothing reaches ``max_q``.
    """
    shown = table[table["q"] <= max_q]
    if latents is None:
        latents = _in_order(shown.groupby("latent")["q"].min().nsmallest(n_latents).index)
    shown = shown[shown["latent"].isin(list(latents))]
    if shown.empty:
        raise DataError(f"no set reaches q ≤ {max_q}: the smallest q is {table['q'].min():.2g}; raise max_q")
    if "z" in shown.columns:
        value, label = shown["z"], "z"
    else:
        fold = np.log2(shown["overlap"].clip(lower=0.5) / shown["expected"])
        value, label = fold * np.where(shown["direction"] == "down", -1, 1), "log₂ observed / expected, signed"
    shown = shown.assign(value=value)
    sets = list(shown.groupby("set")["q"].min().nsmallest(n_sets).index)
    shown = shown[shown["set"].isin(sets)]
    there = set(shown["latent"])
    columns = [name for name in latents if name in there]
    if ax is None:
        size = (0.32 * len(columns) + 0.075 * max(len(str(s)) for s in sets) + 2.2, 0.24 * len(sets) + 1.4)
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    ax = _axes(ax)
    limit = float(shown["value"].abs().max())
    strength = -np.log10(shown["q"].clip(lower=LEAST_Q))
    dots = ax.scatter(
        shown["latent"].map({name: k for k, name in enumerate(columns)}),
        shown["set"].map({name: k for k, name in enumerate(sets)}),
        s=12 * strength,
        c=shown["value"],
        cmap="RdBu_r",
        norm=TwoSlopeNorm(0, -limit, limit),
        edgecolors="0.4",
        linewidths=0.5,
    )
    ax.set_xticks(range(len(columns)), [str(c).removeprefix("latent ") for c in columns], fontsize=7)
    ax.set_yticks(range(len(sets)), [str(s) for s in sets], fontsize=7)
    ax.set_xlim(-0.7, len(columns) - 0.3)
    ax.set_ylim(len(sets) - 0.4, -0.6)
    ax.set_xlabel("latent")
    ax.set_title("area: −log₁₀ q", fontsize="small", loc="left")
    ax.grid(color="0.93", lw=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    figure = ax.get_figure()
    assert figure is not None
    figure.colorbar(dots, ax=ax, label=label, shrink=0.7, aspect=12)
    return ax


def _in_order(latents: Iterable[str]) -> list[str]:
    """Latents as in the model: ``latent 2`` before ``latent 10``; others by name."""
    return sorted(latents, key=lambda name: (len(str(name)), str(name)))

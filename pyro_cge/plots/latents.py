"""Plots of latents and of latent interventions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from ..metrics.disentanglement import Matching
from ..scm.shifts import NoiseShift
from .training import PALETTE, _axes, _tidy

OTHERS = "0.8"


def interventions(
    estimate: NoiseShift,
    truth: NoiseShift | None = None,
    matching: Matching | None = None,
    *,
    env_names: Sequence[str] | None = None,
    max_envs: int = 60,
    axes: Sequence[Axes] | None = None,
) -> NDArray[np.object_]:
    """Heat map of the shift of each latent in each environment, the truth (where known) beside the estimate.

    Colour is the shift of the mean. It saturates at one and a half times what nine in ten environments stay below, so
    that one outlier does not wash out the rest; a cross marks what lies beyond. A circle marks a latent whose noise
    widens or narrows by more than a quarter. Latents are in the order of the truth they match, environments by their
    strongest latent and its size.

    Parameters
    ----------
    matching : Matching, optional
        From :func:`pyro_cge.metrics.match_latents`; needed with ``truth``.
    max_envs : int
        Show the environments that move most, at most so many.
    axes : two Axes (one without truth), optional

    Returns
    -------
    ndarray of Axes
    """
    panels = {"estimate": estimate}
    if truth is not None:
        if matching is None:
            raise ValueError("to draw the truth beside the estimate, pass matching= (metrics.match_latents)")
        panels = {"truth": truth, "estimate (matched)": matching.apply_shift(estimate)}
    lead = next(iter(panels.values()))
    rows = _order(lead, max_envs)
    names = np.asarray([f"env {e}" for e in range(lead.n_envs)] if env_names is None else list(env_names))
    if axes is None:
        # Large tables shrink their cells, not grow the page.
        width, height = 1.6 + min(0.32 * lead.d, 8.0), 1.2 + min(0.16 * len(rows), 14.0)
        size = (max(4.5, len(panels) * width + 1.2), max(3.0, height) + 0.35)
        made = plt.subplots(1, len(panels), figsize=size, layout="constrained", sharey=True, squeeze=False)[1]
        drawn = list(made[0])
    else:
        drawn = list(axes)
        if len(drawn) != len(panels):
            raise ValueError(f"axes must be {len(panels)} Axes (one a panel: {', '.join(panels)}), got {len(drawn)}")
    limit = colour_limit(torch.stack([p.loc[rows] for p in panels.values()]))
    handles = {}
    for ax, (title, shift) in zip(drawn, panels.items(), strict=True):
        values = shift.loc[rows].numpy()
        norm = TwoSlopeNorm(0, -limit, limit)
        image = ax.imshow(values, aspect="auto", cmap="RdBu_r", norm=norm, interpolation="none")
        marks = {
            "noise wider or narrower by > 25 %": (shift.log_scale[rows].abs() > np.log(1.25)).numpy(),
            f"beyond ±{limit:.2g}": np.abs(values) > limit * (1 + 1e-6),
        }
        size_of_mark = min(14.0, 4000 / max(values.size, 1) + 3)
        for (label, where), marker in zip(marks.items(), "ox", strict=True):
            y, x = np.nonzero(where)
            colour: dict[str, Any] = (
                {"facecolors": "none", "edgecolors": "0.25"} if marker == "o" else {"color": "white"}
            )
            if len(x):
                ax.scatter(x, y, s=size_of_mark, marker=marker, linewidths=0.8, **colour)
                shown = "0.25" if marker == "o" else "0.5"
                handles[label] = Line2D([], [], ls="", marker=marker, mfc="none", mec=shown, ms=5, label=label)
        ax.set_title(title, fontsize="medium")
        ax.set_xlabel("latent")
        ax.set_xticks(range(lead.d) if lead.d <= 20 else range(0, lead.d, max(1, lead.d // 10)))
        ax.tick_params(length=0)
        if ax is drawn[0] or axes is not None:
            step = max(1, -(-len(rows) // 90))  # with a shared page, at most 90 names a panel
            ax.set_yticks(range(0, len(rows), step), names[rows.numpy()][::step], fontsize=7)
    drawn[0].set_ylabel("environment")
    figure = drawn[0].get_figure()
    assert figure is not None
    extend = "both" if any("beyond" in label for label in handles) else "neither"
    figure.colorbar(image, ax=drawn, label="shift of the noise mean (reference sd)", shrink=0.8, extend=extend)
    if handles:
        drawn[0].legend(
            handles=list(handles.values()),
            loc="upper left",
            bbox_to_anchor=(0, -0.4 / max(drawn[0].get_position().height * figure.get_size_inches()[1], 1e-3)),
            frameon=False,
            fontsize="small",
            borderaxespad=0,
            ncols=1,
        )
    return np.asarray(drawn, dtype=object)


def effects(table: pd.DataFrame, ax: Axes | None = None, *, top: int = 25) -> Axes:
    """Forest plot of the strongest effects: mean shift with its interval, dark where an intervention is likely.

    Parameters
    ----------
    table : DataFrame
        From :meth:`Posterior.effects` or :meth:`Posterior.discoveries`.
    top : int
        Rows with the largest |shift| weighted by probability.
    """
    if table.empty:
        raise ValueError("no effects to draw: the table has no rows (raise fdr= in discoveries?)")
    # A model whose prior knows no environments names no target.
    weight = table["shift"].abs() * (table["probability"] if table["probability"].any() else 1.0)
    rows = table.loc[weight.sort_values(ascending=False, kind="stable").index[:top]].sort_values("shift")
    if ax is None:
        ax = plt.subplots(figsize=(6, 1.1 + 0.22 * len(rows)), layout="constrained")[1]
    y = np.arange(len(rows))
    span = float(rows["shift"].abs().max()) or 1.0
    # An interval from data that say nothing may be endless: the axis follows the estimates.
    low, high = (rows[side].fillna(rows["shift"]).clip(-3 * span, 3 * span).to_numpy() for side in ("low", "high"))
    colours = plt.get_cmap("viridis_r")(0.05 + 0.9 * rows["probability"].to_numpy())
    ax.axvline(0, color="0.6", lw=0.8)
    ax.hlines(y, low, high, color=colours, lw=2)
    points = ax.scatter(
        rows["shift"], y, c=rows["probability"], cmap="viridis_r", vmin=-0.05, vmax=1.05, s=28, zorder=3
    )
    ax.set_yticks(y, [f"{e}, {j}" for e, j in zip(rows["environment"], rows["latent"], strict=True)], fontsize=7)
    ax.set_ylim(-0.7, len(rows) - 0.3)
    ax.set_xlabel("shift of the noise mean (reference sd)")
    _tidy(ax)
    ax.grid(axis="y", visible=False)
    figure = ax.get_figure()
    assert figure is not None
    bar = figure.colorbar(points, ax=ax, label="P(intervention)", shrink=0.6, aspect=12)
    bar.ax.set_ylim(0, 1)
    return ax


def similarity(table: pd.DataFrame, ax: Axes | None = None, *, max_names: int = 60) -> Axes:
    """Heat map of an environment × environment similarity, environments in the order of a hierarchical clustering.

    Parameters
    ----------
    table : DataFrame
        From :meth:`Posterior.similarity`: 0 to 1 (shared targets) or −1 to 1 (shared direction).
    max_names : int
        More environments than this are drawn with some of the names only.
    """
    values = table.to_numpy()
    order = np.arange(len(values))
    if len(values) > 2:
        distance = np.clip(1 - (values + values.T) / 2, 0, None)
        np.fill_diagonal(distance, 0)
        order = leaves_list(linkage(squareform(distance, checks=False), "average", optimal_ordering=len(values) < 500))
    if ax is None:
        side = min(2.8 + 0.16 * len(values), 9.0)
        ax = plt.subplots(figsize=(side + 0.8, side), layout="constrained")[1]
    signed = values.min() < 0
    image = ax.imshow(
        values[np.ix_(order, order)],
        cmap="RdBu_r" if signed else "Blues",
        vmin=-1 if signed else 0,
        vmax=1,
        interpolation="none",
    )
    step = max(1, -(-len(values) // max_names))
    names = [str(table.index[i]) for i in order][::step]
    ax.set_xticks(range(0, len(values), step), names, fontsize=7, rotation=90)
    ax.set_yticks(range(0, len(values), step), names, fontsize=7)
    ax.tick_params(length=0)
    figure = ax.get_figure()
    assert figure is not None
    label = "agreement of direction (cosine)" if signed else "shared targets (Jaccard)"
    figure.colorbar(image, ax=ax, label=label, shrink=0.8)
    return ax


def latent_pairs(
    latents: Tensor | NDArray[np.float64] | pd.DataFrame,
    env: Tensor | NDArray[np.int64],
    *,
    env_names: Sequence[str] | None = None,
    highlight: Sequence[int] = (),
    dims: Sequence[int] | None = None,
    max_points: int = 3000,
    seed: int = 0,
) -> NDArray[np.object_]:
    """Scatter of every pair of latents, histograms on the diagonal, some environments in colour.

    Parameters
    ----------
    latents : ``[n, d]``
    highlight : sequence of int
        Environments to colour (at most 7); the others are grey. Default: the four with most profiles.
    dims : sequence of int, optional
        Latents to show; default the first five.

    Returns
    -------
    ndarray of Axes ``[k, k]``
    """
    values, env = np.asarray(latents, dtype=float), np.asarray(env)
    dims = list(range(min(values.shape[1], 5))) if dims is None else list(dims)
    counts = np.bincount(env)
    shown = list(highlight)[:7] or [int(e) for e in np.argsort(-counts, kind="stable")[:4] if counts[e]]
    keep = np.random.default_rng(seed).permutation(len(values))[:max_points]
    values, env = values[keep], env[keep]
    k = len(dims)
    axes = plt.subplots(k, k, figsize=(1.9 * k + 1, 1.9 * k), layout="constrained", squeeze=False)[1]
    groups = [(~np.isin(env, shown), OTHERS, "others")]
    for colour, e in zip(PALETTE, shown):
        groups.append((env == e, colour, str(env_names[e]) if env_names is not None else f"env {e}"))
    for row, i in enumerate(dims):
        bins = np.linspace(values[:, i].min(), values[:, i].max() + 1e-9, 30)
        for column, j in enumerate(dims):
            ax = axes[row, column]
            for mask, colour, label in groups:
                if row == column:
                    # Outlines: filled histograms of several groups mix into mud.
                    filled = {"histtype": "stepfilled"} if colour == OTHERS else {"histtype": "step", "lw": 1.4}
                    density = bool(mask.any())
                    ax.hist(values[mask, i], bins=list(bins), color=colour, density=density, label=label, **filled)
                else:
                    ax.scatter(values[mask, j], values[mask, i], s=4, color=colour, alpha=0.6, lw=0, label=label)
            ax.tick_params(labelsize=6)
            ax.spines[["top", "right"]].set_visible(False)
            if row == k - 1:
                ax.set_xlabel(f"latent {j}", fontsize="small")
            if column == 0:
                ax.set_ylabel(f"latent {i}", fontsize="small")
    keys = [
        Line2D([], [], ls="", marker="o", ms=5, mew=0, color=colour, label=label)
        for mask, colour, label in groups
        if mask.any()
    ]
    axes[0, 0].get_figure().legend(handles=keys, loc="outside right upper", frameon=False, fontsize="small")
    return axes


def predictions(x: Tensor, prediction: Tensor, ax: Axes | None = None) -> Axes:
    """Measured against predicted expression, all profiles and genes, as a density."""
    ax = _axes(ax)
    a, b = x.flatten().numpy(), prediction.flatten().numpy()
    low, high = float(min(a.min(), b.min())), float(max(a.max(), b.max()))
    margin = 0.03 * (high - low) or 1.0
    low, high = low - margin, high + margin
    cells = ax.hexbin(b, a, gridsize=60, bins="log", mincnt=1, cmap="viridis", extent=(low, high, low, high))
    ax.plot([low, high], [low, high], color="0.3", lw=1, ls="--")
    ax.set(xlim=(low, high), ylim=(low, high), xlabel="predicted", ylabel="measured")
    figure = ax.get_figure()
    assert figure is not None
    figure.colorbar(cells, ax=ax, label="entries (profile × gene)")
    ax.set_title(f"r = {np.corrcoef(a, b)[0, 1]:.3f} over all entries", fontsize="medium")
    _tidy(ax)
    return ax


def _order(shift: NoiseShift, max_envs: int) -> Tensor:
    strength = shift.strength()
    total = strength.sum(-1)
    chosen = total.argsort(descending=True)[:max_envs]
    strongest = strength[chosen].argmax(-1).double()
    # Environments that do nothing go first; then by latent, then by signed size.
    strongest[total[chosen] < 1e-6] = -1
    size = shift.loc[chosen].gather(-1, strength[chosen].argmax(-1, keepdim=True)).squeeze(-1).double()
    return chosen[(strongest * 1e6 + size.clamp(-1e5, 1e5)).argsort(stable=True)] if len(chosen) else torch.arange(0)


def colour_limit(loc: Tensor) -> float:
    """Where colours saturate: 1.5 times what nine in ten environments stay below, the largest shift if that is less."""
    strongest = loc.abs().amax(-1).flatten().double().numpy()
    moved = strongest[strongest > 1e-3 * strongest.max(initial=0.0)]
    if not len(moved):
        return 1.0
    return float(min(1.5 * np.quantile(moved, 0.9, method="lower"), moved.max()))

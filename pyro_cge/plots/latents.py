"""Plots of latents and of latent interventions."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from numpy.typing import NDArray
from torch import Tensor

from ..metrics.disentanglement import Matching
from ..scm.shifts import NoiseShift
from .training import PALETTE, _axes, _tidy


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

    Colour is the shift of the mean; a circle marks a latent whose noise widens or narrows by more than a quarter.
    Latents are in the order of the truth they match, environments by their strongest latent and its size.

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
        width, height = 1.6 + 0.32 * lead.d, 1.2 + 0.16 * len(rows)
        size = (max(4.5, len(panels) * width + 1.2), max(3.0, height))
        made = plt.subplots(1, len(panels), figsize=size, layout="constrained", sharey=True, squeeze=False)[1]
        drawn = list(made[0])
    else:
        drawn = list(axes)
    limit = max(float(p.loc[rows].abs().max()) for p in panels.values()) or 1.0
    for ax, (title, shift) in zip(drawn, panels.items()):
        image = ax.imshow(
            shift.loc[rows].numpy(),
            aspect="auto",
            cmap="RdBu_r",
            norm=TwoSlopeNorm(0, -limit, limit),
            interpolation="none",
        )
        y, x = np.nonzero((shift.log_scale[rows].abs() > np.log(1.25)).numpy())
        ax.scatter(x, y, s=14, facecolors="none", edgecolors="0.25", linewidths=0.8)
        ax.set_title(title, fontsize="medium")
        ax.set_xlabel("latent")
        ax.set_xticks(range(lead.d) if lead.d <= 20 else range(0, lead.d, max(1, lead.d // 10)))
        ax.tick_params(length=0)
    drawn[0].set_yticks(range(len(rows)), names[rows.numpy()], fontsize=7)
    drawn[0].set_ylabel("environment")
    figure = drawn[0].get_figure()
    assert figure is not None
    figure.colorbar(image, ax=drawn, label="shift of the noise mean", shrink=0.8)
    return np.asarray(drawn, dtype=object)


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
    groups = [(~np.isin(env, shown), "0.8", "others")]
    for colour, e in zip(PALETTE, shown):
        groups.append((env == e, colour, str(env_names[e]) if env_names is not None else f"env {e}"))
    for row, i in enumerate(dims):
        bins = np.linspace(values[:, i].min(), values[:, i].max() + 1e-9, 30)
        for column, j in enumerate(dims):
            ax = axes[row, column]
            for mask, colour, label in groups:
                if row == column:
                    ax.hist(values[mask, i], bins=list(bins), color=colour, alpha=0.7, density=bool(mask.any()))
                else:
                    ax.scatter(values[mask, j], values[mask, i], s=4, color=colour, alpha=0.6, lw=0, label=label)
            ax.tick_params(labelsize=6)
            ax.spines[["top", "right"]].set_visible(False)
            if row == k - 1:
                ax.set_xlabel(f"latent {j}", fontsize="small")
            if column == 0:
                ax.set_ylabel(f"latent {i}", fontsize="small")
    if k > 1:
        handles, labels = axes[0, 1].get_legend_handles_labels()
        axes[0, 0].get_figure().legend(
            handles, labels, loc="outside right upper", frameon=False, markerscale=3, fontsize="small"
        )
    return axes


def predictions(x: Tensor, prediction: Tensor, ax: Axes | None = None) -> Axes:
    """Measured against predicted expression, all profiles and genes, as a density."""
    ax = _axes(ax)
    a, b = x.flatten().numpy(), prediction.flatten().numpy()
    low, high = (float(q) for q in np.quantile(np.concatenate([a, b]), [0.001, 0.999]))
    extent = (low, high, low, high)
    ax.hexbin(b, a, gridsize=60, bins="log", mincnt=1, cmap="viridis", extent=extent)
    ax.plot([low, high], [low, high], color="0.3", lw=1, ls="--")
    ax.set_xlabel("predicted")
    ax.set_ylabel("measured")
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

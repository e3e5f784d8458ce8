"""Plots of imputed effects: what was measured, how sure the rest is, and which method is right."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from ..errors import DataError
from ..imputation.effects import Effects
from ..imputation.protocol import LEVEL
from .training import PALETTE, _axes, _tidy

SCORES = {
    "r": "pooled r",
    "r2": "R² of a signature",
    "cosine": "cosine of a signature",
    "profile_r": "r of a signature",
}


def pair_map(
    effects: Effects, missing: ArrayLike | pd.Series | None = None, ax: Axes | None = None, *, label: str = "size"
) -> Axes:
    """Contexts × actions: measured pairs by the root mean square of their signature, the others blank.

    Contexts with most pairs come first, and so do actions.

    Parameters
    ----------
    missing : array of one number for each row of ``effects.missing``, optional
        Drawn in the blanks in a second colour: the standard deviation of an imputed pair, say.
    label : str
        Of ``missing``'s colour bar.
    """
    sizes = np.full((effects.K, effects.A), np.nan)
    sizes[effects.context, effects.action] = np.sqrt((effects.x**2).mean(1))
    seen = ~np.isnan(sizes)
    contexts, actions = np.argsort(-seen.sum(1), kind="stable"), np.argsort(-seen.sum(0), kind="stable")
    if ax is None:
        width = min(3 + 0.12 * effects.A, 11)
        ax = plt.subplots(figsize=(width, 1.4 + 0.16 * effects.K), layout="constrained")[1]
    ax = _axes(ax)
    figure: Any = ax.figure
    drawn = ax.imshow(sizes[np.ix_(contexts, actions)], aspect="auto", cmap="Blues", vmin=0, interpolation="none")
    figure.colorbar(drawn, ax=ax, label="measured: root mean square", pad=0.01)
    if missing is not None:
        blank = np.full_like(sizes, np.nan)
        values = np.asarray(missing, dtype=float)
        if values.shape != (int((~seen).sum()),):
            raise DataError(f"missing needs one number for each of {int((~seen).sum())} pairs, got {values.shape}")
        blank[np.nonzero(~seen)] = values
        over = ax.imshow(blank[np.ix_(contexts, actions)], aspect="auto", cmap="Oranges", interpolation="none")
        figure.colorbar(over, ax=ax, label=f"imputed: {label}", pad=0.01)
    ax.set_yticks(range(effects.K), [str(effects.context_names[k]) for k in contexts], fontsize=7)
    if effects.A <= 60:
        ax.set_xticks(range(effects.A), [str(effects.action_names[a]) for a in actions], fontsize=6, rotation=90)
    else:
        ax.set_xticks([])
    ax.set(xlabel=f"{effects.A:,} actions", ylabel="context")
    return ax


def imputation_scores(table: pd.DataFrame, score: str = "r", ax: Axes | None = None) -> Axes:
    """One dot a method, best on top; several rows of one method (seeds) are drawn with their range.

    Parameters
    ----------
    table : DataFrame
        From :func:`~pyro_cge.imputation.cross_validate`, or several of them below each other.
    score : {"r", "r2", "cosine", "profile_r"}
    """
    if score not in table:
        raise DataError(f"the table has no column {score!r}; there are {', '.join(map(str, table.columns))}")
    groups = table[score].groupby(level=0)
    means = groups.mean().sort_values()
    low, high = groups.min()[means.index], groups.max()[means.index]
    if ax is None:
        ax = plt.subplots(figsize=(5, 0.8 + 0.28 * len(means)), layout="constrained")[1]
    ax = _axes(ax)
    y = np.arange(len(means))
    ax.hlines(y, low, high, color="0.6", lw=2, zorder=1)
    ax.scatter(means, y, color=[PALETTE[1] if i == len(means) - 1 else PALETTE[0] for i in y], s=40, zorder=2)
    for level, value in zip(y, means, strict=True):
        ax.annotate(
            f"{value:.3f}", (value, float(level)), xytext=(7, 0), textcoords="offset points", va="center", fontsize=7
        )
    ax.set_yticks(y, [str(name) for name in means.index], fontsize=8)
    ax.margins(x=0.15)
    ax.set(xlabel=SCORES.get(score, score))
    _tidy(ax)
    return ax


def imputed_signature(
    mean: ArrayLike, std: ArrayLike, true: ArrayLike | None = None, ax: Axes | None = None, *, most: int = 40
) -> Axes:
    """The genes that change most in one imputed signature, with 90 % intervals; dots are what was measured.

    Parameters
    ----------
    mean, std : Series ``[g]`` (its index names the genes) or arrays
    true : array ``[g]``, optional
    most : int
        Genes to draw, by ``|mean| / std``.
    """
    centre, spread = np.asarray(mean, dtype=float), np.asarray(std, dtype=float)
    if centre.shape != spread.shape or centre.ndim != 1:
        raise DataError(f"mean and std need one number a gene, got shapes {centre.shape} and {spread.shape}")
    names = mean.index.astype(str) if isinstance(mean, pd.Series) else np.arange(len(centre)).astype(str)
    chosen = np.argsort(-np.abs(centre) / np.maximum(spread, 1e-300), kind="stable")[:most]
    chosen = chosen[np.argsort(-centre[chosen], kind="stable")]
    if ax is None:
        ax = plt.subplots(figsize=(2 + 0.17 * len(chosen), 3.2), layout="constrained")[1]
    ax = _axes(ax)
    at = np.arange(len(chosen))
    ax.vlines(at, (centre - LEVEL * spread)[chosen], (centre + LEVEL * spread)[chosen], color="0.7", lw=3, zorder=1)
    ax.scatter(at, centre[chosen], color=PALETTE[0], s=14, zorder=2, label="imputed")
    if true is not None:
        ax.scatter(at, np.asarray(true, dtype=float)[chosen], color=PALETTE[1], s=18, zorder=3, label="measured")
        ax.legend(fontsize=7, frameon=False)
    ax.axhline(0, color="0.5", lw=0.7)
    ax.set_xticks(at, [str(name) for name in np.asarray(names)[chosen]], rotation=90, fontsize=6)
    ax.set(ylabel="effect", xlim=(-1, len(chosen)))
    _tidy(ax)
    return ax

"""Plots of calibration: ranks, coverage, predictive checks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from .training import PALETTE, _axes, _tidy


def rank_histogram(ranks: ArrayLike, n_draws: int, ax: Axes | None = None, *, bins: int = 20) -> Axes:
    """Histogram of SBC ranks ``[R]`` with the range that 99 % of bars keep to when the posterior is right.

    A hill means posteriors too wide, a valley too narrow, a slope biased.
    """
    ax = _axes(ax)
    flat = np.asarray(ranks).ravel()
    counts = np.bincount(flat * bins // (n_draws + 1), minlength=bins)
    low, high = stats.binom.ppf([0.005, 0.995], len(flat), 1 / bins)
    edges = np.linspace(0, n_draws + 1, bins + 1)
    ax.axhspan(low, high, color="0.85", lw=0, label="99 % of bars, if calibrated")
    ax.axhline(len(flat) / bins, color="0.4", lw=1)
    ax.stairs(counts, edges, fill=True, color=PALETTE[0], alpha=0.75)
    ax.set(xlabel="rank of the truth among posterior draws", ylabel="replicates", xlim=(0, n_draws + 1))
    ax.set_ylim(0, 1.35 * max(counts.max(), high))
    _tidy(ax)
    ax.legend(frameon=False, fontsize="small", loc="upper left")
    return ax


def rank_ecdf(
    ranks: ArrayLike | Mapping[str, ArrayLike], n_draws: int, ax: Axes | None = None, *, level: float = 0.99
) -> Axes:
    """Distribution function of SBC ranks less the uniform one, with a simultaneous envelope.

    The envelope holds the whole curve with probability ``level`` if the posterior is right (Säilynoja, Bürkner and
    Vehtari 2022, calibrated by simulation). Several parameters may be given by name; each gets its own curve.
    """
    ax = _axes(ax)
    curves = ranks if isinstance(ranks, Mapping) else {"ranks": ranks}
    size = {len(np.asarray(r).ravel()) for r in curves.values()}
    grid = np.arange(1, n_draws + 1) / (n_draws + 1)
    for n in sorted(size):
        low, high = _envelope(n, grid, level)
        ax.fill_between(grid, low - grid, high - grid, color="0.85", lw=0, label=f"{level:.0%} envelope, {n:,} ranks")
    for colour, (name, values) in zip(PALETTE * len(curves), curves.items()):
        flat = np.sort(np.asarray(values).ravel())
        difference = np.searchsorted(flat, np.arange(1, n_draws + 1)) / len(flat) - grid
        ax.plot(grid, difference, color=colour, lw=1.6, label=name)
    ax.axhline(0, color="0.4", lw=0.8)
    ax.set(xlabel="fractional rank", ylabel="observed − uniform distribution", xlim=(0, 1))
    _tidy(ax)
    ax.legend(frameon=False, fontsize="small")
    return ax


def coverage(table: pd.DataFrame | Mapping[str, pd.DataFrame], ax: Axes | None = None) -> Axes:
    """Share of truths inside against the level asked for, from :func:`pyro_cge.metrics.coverage`; one or several by name.

    Below the diagonal posteriors are too sure.
    """
    ax = _axes(ax)
    tables = {"": table} if isinstance(table, pd.DataFrame) else table
    ax.plot([0, 1], [0, 1], color="0.4", lw=1, ls="--", label="calibrated")
    for colour, (name, t) in zip(PALETTE * len(tables), tables.items()):
        errors = np.abs(np.stack([t["coverage"] - t["low"], t["high"] - t["coverage"]]))
        label = name or "measured (95 % interval)"
        ax.errorbar(t["level"], t["coverage"], errors, color=colour, marker="o", ms=5, lw=1.5, capsize=2, label=label)
    ax.set(xlabel="level of the interval", ylabel="share of truths inside", xlim=(0, 1), ylim=(0, 1.02))
    ax.set_aspect("equal")
    _tidy(ax)
    ax.legend(frameon=False, fontsize="small", loc="upper left")
    return ax


def predictive_check(table: pd.DataFrame, statistic: str = "mean", ax: Axes | None = None) -> Axes:
    """Observed against replicated statistic of each gene, from :func:`pyro_cge.metrics.predictive_check`.

    Bars hold 90 % of the replicates; genes with a Bayesian p-value within 0.025 of an end are in colour.
    """
    rows = table[table["statistic"] == statistic]
    if rows.empty:
        raise ValueError(f"no statistic {statistic!r} in the table; it has {list(table['statistic'].unique())}")
    ax = _axes(ax)
    missed = ((rows["p"] < 0.025) | (rows["p"] > 0.975)).to_numpy()
    for mask, colour, label in ((~missed, PALETTE[0], "replicated"), (missed, PALETTE[1], "missed")):
        if not mask.any():
            continue
        part = rows[mask]
        bars = np.abs(np.stack([part["replicated"] - part["low"], part["high"] - part["replicated"]]))
        text = f"{label} ({mask.sum()} of {len(rows)} genes)"
        ax.errorbar(
            part["observed"],
            part["replicated"],
            bars,
            ls="",
            marker="o",
            ms=4,
            lw=1,
            alpha=0.8,
            color=colour,
            label=text,
        )
    ends = [rows[["observed", "low"]].min(axis=None), rows[["observed", "high"]].max(axis=None)]
    ax.plot(ends, ends, color="0.4", lw=1, ls="--", zorder=0)
    ax.set(xlabel=f"{statistic} of each gene, observed", ylabel=f"{statistic}, replicated")
    _tidy(ax)
    ax.legend(frameon=False, fontsize="small")
    return ax


def _envelope(
    n: int, grid: NDArray[np.float64], level: float, simulations: int = 2000
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pointwise binomial bounds at the level that makes them hold everywhere at once with probability ``level``."""
    rng = np.random.default_rng(0)
    cells = np.diff(np.concatenate([[0.0], grid, [1.0]]))
    below = rng.multinomial(n, cells, size=simulations)[:, :-1].cumsum(1)
    # Each curve's most extreme pointwise tail probability; its quantile is the pointwise level to use.
    tail = 2 * np.minimum(stats.binom.cdf(below, n, grid), stats.binom.sf(below - 1, n, grid)).min(1)
    gamma = np.quantile(tail, 1 - level)
    return stats.binom.ppf(gamma / 2, n, grid) / n, stats.binom.ppf(1 - gamma / 2, n, grid) / n

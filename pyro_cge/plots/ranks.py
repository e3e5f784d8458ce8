"""Ranks with their intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..errors import DataError
from .training import PALETTE, _axes, _tidy


def drug_ranks(table: pd.DataFrame, ax: Axes | None = None, *, most: int = 25, mark: list[str] | None = None) -> Axes:
    """The best ranks with their 90 % intervals, a row a drug or a target; deep blue where it is likely among the top.

    Parameters
    ----------
    table : DataFrame
        From :func:`~pyro_cge.imputation.rank_drugs` or :func:`~pyro_cge.imputation.upstream_genes`.
    most : int
        Rows to draw, from the top.
    mark : list of str, optional
        Names to print in bold, drawn even where they are not among the best.
    """
    if absent := [name for name in ("rank", "rank_low", "rank_high") if name not in table]:
        raise DataError(f"the table of ranks has no column {absent[0]!r}: it comes from rank_drugs or upstream_genes")
    if not len(table):
        raise DataError("the table of ranks is empty")
    shown = table.sort_values("rank", kind="stable")
    chosen = np.arange(len(shown)) < most
    if mark:
        chosen |= shown.index.isin(mark)
    shown = shown[chosen]
    if ax is None:
        from matplotlib import pyplot as plt

        ax = plt.subplots(figsize=(5.5, 1.2 + 0.2 * len(shown)), layout="constrained")[1]
    ax = _axes(ax)
    y = np.arange(len(shown))
    middle = (
        shown["rank_median"] if "rank_median" in shown else shown["rank"].clip(shown["rank_low"], shown["rank_high"])
    )
    weight = shown["p_top"] if "p_top" in shown else shown.get("p_upstream", pd.Series(1.0, index=shown.index))
    ax.hlines(y, shown["rank_low"], shown["rank_high"], color="0.6", lw=1.5, zorder=1)
    ax.scatter(middle, y, c=weight, cmap="Blues", vmin=-0.3, vmax=1, edgecolors=PALETTE[0], s=30, zorder=2)
    ax.set_yticks(y, [str(name) for name in shown.index], fontsize=7)
    for label, name in zip(ax.get_yticklabels(), shown.index, strict=True):
        label.set_fontweight("bold" if mark and name in mark else "normal")
    ax.set(xlabel="rank (median and 90 % interval)", ylim=(len(shown) - 0.4, -0.6))
    if shown["rank_high"].max() > 50:
        ax.set_xscale("log")
    _tidy(ax)
    return ax

"""Figures 5 and 6, and those like them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from angles import Matrix, bearing, mirror

FIGURE_5_COLOURS = ("C0", "C3")


def plots(rows: pd.DataFrame, models: list[str], path: Path) -> None:
    """A row a model: losses out of distribution over all seeds, cosine distances of the seed of median sd."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(models), 3, figsize=(11, 3.1 * len(models)), squeeze=False)
    for line, model in zip(axes, models, strict=True):
        some = rows[rows["model"] == model].sort_values("seed")
        draw_losses(line[0], some["curve"])
        line[0].set_title(f"{model}: {len(some)} seeds")
        median = some.sort_values("sd").iloc[len(some) // 2]
        for axis, mirrored in zip(line[1:], (False, True), strict=True):
            draw_distances(axis, np.array(median["M"]), np.array(median["found"]), mirrored)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def draw_losses(axis: Any, curves: Any) -> None:
    """Figure 5: loss against the offset, each seed thin, their median thick."""
    for direction, colour in enumerate(FIGURE_5_COLOURS):
        chosen = [[r for r in c if r["direction"] == direction] for c in curves]
        offsets, each = [r["offset"] for r in chosen[0]], np.array([[r["loss"] for r in c] for c in chosen])
        axis.plot(offsets, each.T, color=colour, alpha=0.25, lw=0.8)
        axis.plot(offsets, np.median(each, 0), color=colour, label=f"direction {direction}")
    axis.set_yscale("log")
    axis.set_xlabel("offset T")
    axis.set_ylabel("reconstruction loss a gene")
    axis.legend(fontsize=8)


def draw_distances(axis: Any, true: Matrix, found: Matrix, mirrored: bool) -> None:
    """Figure 6: cosine distance of each row to the turned row, against the angle."""
    theta = np.linspace(0, 2 * np.pi, 361)
    wanted = bearing(found) - bearing(mirror(true) if mirrored else true)
    axis.plot(theta / np.pi, 1 - np.cos(theta[:, None] - wanted), lw=0.8)
    axis.set_title("first column mirrored" if mirrored else "as it is", fontsize=10)
    axis.set_xlabel("θ / π")
    axis.set_ylabel("cosine distance of rows")

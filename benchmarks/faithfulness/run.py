"""How often do effects almost cancel? Share of random linear models that finite samples cannot tell from unfaithful ones.

Random graphs over ``d`` genes with a given expected neighbourhood size, weights uniform on [−1, 1], noise of variance 1. A
model is counted where some partial correlation that is not zero by d-separation is at most λ ("strong": over all pairs and
conditioning sets; "adjacency": over pairs with an edge and sets no larger than the largest neighbourhood). Uhler, Raskutti,
Bühlmann and Yu (2013). The column "samples" is the n at which Fisher's z-test at level 0.01 just sees a correlation of λ.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import matplotlib
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))
from contract import finish, options

from pyro_cge.discovery import unfaithful_share

LEVELS = (0.1, 0.01, 0.001)
CONDITIONS = ("strong", "adjacency")
SIZES = {
    3: [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0],
    5: [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0],
    10: [0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 9.0],
}


def samples(level: float) -> int:
    """Samples at which a correlation of this size is just significant (two-sided, 0.01, no condition)."""
    return math.ceil((2.5758 / math.atanh(level)) ** 2 + 3)


def draw(table: pd.DataFrame, path: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(SIZES), figsize=(10, 5.4), sharey=True, layout="constrained")
    for row, condition in zip(axes, CONDITIONS, strict=True):
        for ax, d in zip(row, SIZES, strict=True):
            for level in LEVELS:
                part = table[(table.genes == d) & (table.level == level) & (table.condition == condition)]
                (line,) = ax.plot(part.neighbours, part.share, marker="o", markersize=3, label=f"λ = {level:g}")
                ax.fill_between(part.neighbours, part.low, part.high, color=line.get_color(), alpha=0.2, linewidth=0)
            ax.set(title=f"{d} genes, {condition}", ylim=(0, 1.02))
            ax.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("unfaithful share")
    for ax in axes[-1]:
        ax.set_xlabel("expected neighbourhood size")
    axes[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    arguments = options(__doc__ or "", seeds=1).parse_args()
    draws = 200 if arguments.quick else 10_000 * arguments.seeds
    parts = []
    for condition in CONDITIONS:
        for d, sizes in SIZES.items():
            part = unfaithful_share(d, sizes, levels=LEVELS, draws=draws, condition=condition)
            parts.append(part.assign(condition=condition))
            print(f"\n{d} genes, {condition} faithfulness, {draws} models a size")
            print(part.pivot(index="neighbours", columns="level", values="share").round(3).to_string(), flush=True)
    table = pd.concat(parts)
    print("\nsamples:", {level: samples(level) for level in LEVELS})
    figures = {
        f"share_{condition}": {
            f"d{d}_k{size:g}_{level:g}": round(float(share), 4)
            for d, size, level, share in zip(part.genes, part.neighbours, part.level, part.share, strict=True)
        }
        for condition, part in table.groupby("condition")
    }
    figures["draws"] = draws
    figures["widest_interval"] = round(float((table.high - table.low).max()), 4)
    if arguments.out is None and not arguments.quick:
        draw(table, Path(__file__).parent / "shares.png")
    finish(arguments.out or Path(__file__).parent / "results", figures, arguments)


if __name__ == "__main__":
    main()

"""Drug-target check: does what a model says of an environment lead to the gene the environment is known to hit?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from ..errors import ConfigError, DataError

Direction = Literal["down", "up", "both"]


def target_ranks(
    effects: pd.DataFrame,
    targets: Mapping[str, str | Sequence[str]] | pd.Series,
    *,
    direction: Direction = "both",
) -> pd.DataFrame:
    """Rank of each known target gene among all genes, by its effect in that environment.

    Parameters
    ----------
    effects : DataFrame
        Environment (or profile) × gene: a model's predicted effects, or measured z-scores as the baseline.
    targets : mapping or Series, environment → gene or genes
        The answer key, e.g. a column of ``env_table``; text may hold several genes as ``"A|B"``. Environments without
        targets, and targets that are not measured, are passed over.
    direction : {"down", "up", "both"}
        What counts as a strong effect: the most negative (knock-down, inhibition), the most positive, or the largest
        in absolute value.

    Returns
    -------
    DataFrame
        Columns environment, target, effect, rank (1 is best; the mean rank of ties), auc: the fraction of the other
        genes ranked below the target.

    Raises
    ------
    DataError
        If no environment has a measured target.
    """
    if direction not in ("down", "up", "both"):
        raise ConfigError(f"direction must be 'down', 'up' or 'both', got {direction!r}")
    key = dict(targets.dropna()) if isinstance(targets, pd.Series) else targets
    values = effects.to_numpy()
    strength = {"down": -values, "up": values, "both": np.abs(values)}[direction]
    column = {gene: k for k, gene in enumerate(effects.columns)}
    found = [
        (row, environment, gene, column[gene])
        for row, environment in enumerate(effects.index)
        if environment in key
        for gene in _genes(key[environment])
        if gene in column
    ]
    if not found:
        raise DataError(
            f"no environment has a measured target: {len(key)} environments with targets, {len(effects)} with effects "
            f"on genes such as {list(effects.columns[:3])}; check that both use the same names and kind of gene id"
        )
    rows, environments, genes, columns = (list(v) for v in zip(*found, strict=True))
    own = strength[rows, columns][:, None]
    above, tied = (strength[rows] > own).sum(1), (strength[rows] == own).sum(1)
    rank = above + (tied + 1) / 2
    return pd.DataFrame(
        {
            "environment": environments,
            "target": genes,
            "effect": values[rows, columns],
            "rank": rank,
            "auc": 1 - (rank - 1) / max(1, values.shape[1] - 1),
        }
    )


def summarise_ranks(ranks: pd.DataFrame, *, n_boot: int = 2000, level: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """Top-1, top-10, median rank and mean AUC with bootstrap intervals: rows by figure, columns value, low, high.

    Target genes are resampled, not rows: several wells or hairpins of one gene are one piece of evidence. Every
    environment counts the same within a draw.
    """
    clusters, _ = pd.factorize(ranks["target"])
    n_clusters = clusters.max() + 1
    members = [np.flatnonzero(clusters == c) for c in range(n_clusters)]
    rng = np.random.default_rng(seed)
    rank, auc = ranks["rank"].to_numpy(), ranks["auc"].to_numpy()

    def figures(rows: np.ndarray) -> list[float]:
        chosen = rank[rows]
        return [(chosen < 1.5).mean(), (chosen <= 10).mean(), float(np.median(chosen)), auc[rows].mean()]

    draws = [
        figures(np.concatenate([members[c] for c in rng.integers(n_clusters, size=n_clusters)])) for _ in range(n_boot)
    ]
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return pd.DataFrame(
        {"value": figures(np.arange(len(ranks))), "low": low, "high": high},
        index=["top1", "top10", "median_rank", "auc"],
    )


def _genes(given: str | Sequence[str]) -> list[str]:
    names = given.split("|") if isinstance(given, str) else list(given)
    return list(dict.fromkeys(names))

"""How often causal effects almost cancel: the share of distributions that finite samples cannot tell from unfaithful ones."""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError

CONDITIONS = ("strong", "adjacency")
MOST = 16  # genes: there are 2^d conditioning sets
CONFIDENCE = 0.95


def faithfulness_margin(weights: ArrayLike, *, condition: str = "strong") -> NDArray[np.float64]:
    """Smallest partial correlation that is not zero by d-separation, of linear models with noise of variance 1.

    ::

        min { |corr(x_i, x_j | x_S)| :  i, j not d-separated given S }

    A distribution is λ-strong-faithful if it is above ``λ``. The PC algorithm and its like are uniformly consistent over
    those only with ``λ`` of the order of ``√(log d / n)`` (Zhang & Spirtes 2003; Uhler et al. 2013).

    Parameters
    ----------
    weights : array ``[..., d, d]``
        ``W[i, j] ≠ 0`` means ``i → j``; each an acyclic graph, up to 16 genes.
    condition : {"strong", "adjacency"}
        The second, weaker one asks for pairs with an edge only, and sets ``S`` no larger than the largest number of
        neighbours of a gene.

    Returns
    -------
    ndarray ``[...]``
        Infinite where a graph has no edge.

    Raises
    ------
    ConfigError
        For weights with a cycle, or too many genes.
    """
    from .compiled.separation import smallest

    W = np.asarray(weights, dtype=float)
    d = W.shape[-1]
    if W.ndim < 2 or W.shape[-2] != d:
        raise ConfigError(f"weights must be [..., d, d], got shape {list(W.shape)}")
    if not 2 <= d <= MOST:
        raise ConfigError(f"all conditioning sets are tried, which takes 2 to {MOST} genes, got {d}")
    if condition not in CONDITIONS:
        raise ConfigError(f"condition is one of {', '.join(map(repr, CONDITIONS))}, got {condition!r}")
    flat = W.reshape(-1, d, d)
    for one in flat[np.tril(flat).any((1, 2))]:  # upper triangles are acyclic
        if not nx.is_directed_acyclic_graph(nx.from_numpy_array(one != 0, create_using=nx.DiGraph)):
            raise ConfigError("weights have a cycle; d-separation is defined for acyclic graphs")
    total = np.linalg.inv(np.eye(d) - flat)  # x = ε (I − W)⁻¹
    margins = smallest(flat != 0, total.transpose(0, 2, 1) @ total, condition == "adjacency")
    return np.asarray(margins.reshape(W.shape[:-2]))


def unfaithful_share(
    d: int,
    neighbours: float | Sequence[float],
    *,
    levels: Sequence[float] = (0.1, 0.01, 0.001),
    draws: int = 10_000,
    condition: str = "strong",
    random_state: int = 0,
) -> pd.DataFrame:
    """Share of random linear-Gaussian models that are not λ-strong-faithful (Monte Carlo; Uhler et al. 2013).

    ::

        i → j for i < j with probability neighbours / (d − 1),   W_ij ~ U[−1, 1],   x = Wᵀx + ε,   ε ~ N(0, I)

    Parameters
    ----------
    d : int
        Genes.
    neighbours : float or sequence of float
        Expected neighbourhood size of a gene, 0 < neighbours ≤ d − 1.
    levels : sequence of float
        ``λ``; all from the same draws.
    draws : int
        Models a neighbourhood size.
    condition : {"strong", "adjacency"}
        See :func:`faithfulness_margin`.
    random_state : int

    Returns
    -------
    DataFrame
        One row a neighbourhood size and level: ``genes``, ``neighbours``, ``level``, ``share``, ``low``, ``high`` (exact 95 %
        binomial interval), ``draws``.

    References
    ----------
    Uhler, Raskutti, Bühlmann, Yu 2013, Geometry of the faithfulness assumption in causal inference.
    """
    from scipy.stats import binomtest

    sizes = np.atleast_1d(np.asarray(neighbours, dtype=float))
    if not 2 <= d <= MOST:
        raise ConfigError(f"all conditioning sets are tried, which takes 2 to {MOST} genes, got {d}")
    if (sizes <= 0).any() or (sizes > d - 1).any():
        raise ConfigError(f"neighbours must be above 0 and at most d − 1 = {d - 1}, got {sizes.tolist()}")
    if draws < 1 or not all(0 < level < 1 for level in levels):
        raise ConfigError(f"draws must be at least 1 and levels between 0 and 1, got {draws} and {list(levels)}")
    rng, rows = np.random.default_rng(random_state), []
    above = np.triu(np.ones((d, d)), 1)
    for size in sizes:
        edges = (rng.random((draws, d, d)) < size / (d - 1)) * above
        margins = faithfulness_margin(edges * rng.uniform(-1, 1, (draws, d, d)), condition=condition)
        for level in levels:
            count = int((margins <= level).sum())
            low, high = binomtest(count, draws).proportion_ci(CONFIDENCE)
            rows.append((d, float(size), float(level), count / draws, low, high, draws))
    return pd.DataFrame(rows, columns=["genes", "neighbours", "level", "share", "low", "high", "draws"])

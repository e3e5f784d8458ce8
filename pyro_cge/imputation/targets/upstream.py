"""Which genes are upstream of the disease genes: causal graphs drawn from a posterior, or found in sub-samples."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from ...discovery import Knowledge, OrderDAG
from ...discovery.progress import shown
from ...discovery.results import named_graph
from ...errors import ConfigError, DataError

LEVEL = 0.9


@dataclass(frozen=True, eq=False)
class GraphDraws:
    """Directed graphs over the same genes, equally likely.

    Parameters
    ----------
    edges : bool array ``[S, d, d]``
        ``edges[s, i, j]`` where ``i → j`` in draw ``s``.
    genes : list of ``d`` names
    """

    edges: NDArray[np.bool_]
    genes: list[str]

    @property
    def probabilities(self) -> pd.DataFrame:
        """Share of draws with each edge ``[d, d]``, causes down."""
        return pd.DataFrame(self.edges.mean(0), index=self.genes, columns=self.genes)

    @cached_property
    def reach(self) -> NDArray[np.bool_]:
        """``[S, d, d]``: whether a directed path leads from ``i`` to ``j``; no gene reaches itself."""
        d = len(self.genes)
        paths = (self.edges | np.eye(d, dtype=bool)).astype(np.float32)
        for _ in range(max(1, int(np.ceil(np.log2(max(d, 2)))))):
            longer = (paths @ paths > 0).astype(np.float32)
            if np.array_equal(longer, paths):
                break
            paths = longer
        return (paths > 0) & ~np.eye(d, dtype=bool)

    def graph(self, threshold: float = 0.5) -> nx.DiGraph:
        """Edges in more than ``threshold`` of the draws, with ``probability``; above ½ of sure orders it is acyclic."""
        share = self.edges.mean(0)
        return named_graph(share > threshold, self.genes, probability=share)


def causal_graphs(
    expression: pd.DataFrame,
    *,
    network: nx.Graph | None = None,
    density: float | None = None,
    estimator: Any = None,
    draws: int = 200,
    subsamples: int = 0,
    fraction: float = 0.7,
    random_state: int = 0,
    progress: bool | None = None,
) -> GraphDraws:
    """Graphs that explain the expression of some genes, as many as are needed to say how sure they are.

    Parameters
    ----------
    expression : DataFrame ``[n, d]``
        Observations of one condition, a row a cell or sample; every gene must vary.
    network : Graph, optional
        Only genes that are joined in it may act on each other directly, in the direction data tell.
    density : float, optional
        Prior probability of an edge between two genes that may be joined, given their order. Default: what data say of
        their number (empirical Bayes): where few cells tell nothing, few edges remain.
    estimator : optional
        Of :mod:`pyro_cge.discovery`, not yet fitted, such as ``Igsp()`` or ``OrderSearch()``; it is fitted to every
        sub-sample. Knowledge is its own, so it does not go with ``network``. Default: :class:`OrderDAG`, whose posterior
        is drawn from, so that a direction the data leave open comes out both ways.
    draws : int
        Graphs of the posterior, in all.
    subsamples : int
        Sub-samples of a share ``fraction`` of the rows, without replacement (Meinshausen & Bühlmann 2010); 0, possible
        for a posterior only, uses all rows once.
    """
    if not isinstance(expression, pd.DataFrame):
        raise DataError(f"expression is a DataFrame, a row a cell and a column a gene, got {type(expression).__name__}")
    if draws < 1 or subsamples < 0 or not 0 < fraction <= 1:
        raise ConfigError(
            f"draws must be ≥ 1, subsamples ≥ 0 and 0 < fraction ≤ 1, got {draws}, {subsamples} and {fraction}"
        )
    if estimator is not None and (not subsamples or network is not None):
        raise ConfigError("an estimator needs subsamples= > 0, and takes prior knowledge itself instead of network=")
    values, genes = expression.to_numpy(dtype=float), [str(gene) for gene in expression.columns]
    if not np.isfinite(values).all():
        raise DataError(
            f"expression has {int((~np.isfinite(values)).sum())} values that are not finite: drop or impute them"
        )
    constant = [gene for gene, spread in zip(genes, np.ptp(values, axis=0), strict=True) if not spread > 0]
    if constant:
        raise DataError(
            f"{len(constant)} genes do not vary, {constant[0]} among them: drop them (no graph can tell what they do)"
        )
    if estimator is None and density is None and subsamples:  # of all rows, for all sub-samples
        density = _posterior(expression.set_axis(genes, axis=1), network, None, 200, random_state).density_
    rng = np.random.default_rng(random_state)
    parts: list[NDArray[np.bool_]] = []
    for k, rows in enumerate(shown(list(_rows(rng, len(values), subsamples, fraction)), max(subsamples, 1), progress)):
        part = values[rows]
        varies = (
            np.ptp(part, axis=0) > 0
        )  # a gene seen in few cells may be constant in a sub-sample: it has no edges there
        names = [gene for gene, kept in zip(genes, varies, strict=True) if kept]
        table = pd.DataFrame(part[:, varies], columns=names)
        if estimator is not None:
            found = np.asarray(deepcopy(estimator).fit(table).adjacency_)[None] != 0
        else:
            each = -(-draws // max(subsamples, 1))
            found = _posterior(table, network, density, max(each, 200), random_state + k).graphs(each)
        whole = np.zeros((len(found), len(genes), len(genes)), dtype=bool)
        whole[np.ix_(np.arange(len(found)), varies, varies)] = found
        parts.append(whole)
    return GraphDraws(np.concatenate(parts), genes)


def upstream_genes(
    graphs: GraphDraws,
    terminals: Collection[str],
    candidates: Collection[str] | None = None,
    *,
    by: str = "downstream",
) -> pd.DataFrame:
    """Genes by how many of the disease genes they act on, through any number of others.

    Parameters
    ----------
    terminals : names
        Disease genes; a gene is not counted as downstream of itself.
    candidates : names, optional
        Genes to rank, such as drug targets. Default: all.
    by : {"downstream", "excess"}
        What ranks them. The number downstream favours hubs, which act on everything; the excess asks for disease genes.

    Returns
    -------
    DataFrame
        A row a gene, best first: ``downstream``, the expected number of terminals downstream, ``downstream_low`` and
        ``downstream_high`` (90 % interval over graphs); ``excess``, by how much it exceeds the number among as many genes
        at random; ``p_upstream``, the probability that there is any; ``rank`` (ties shared) and ``rank_low`` and
        ``rank_high``, the 90 % interval of its rank in single graphs; ``terminal``: whether it is one itself.

    Raises
    ------
    DataError
        If no terminal, or no candidate, is in the graphs.
    """
    place = {gene: j for j, gene in enumerate(graphs.genes)}
    ends = [place[gene] for gene in dict.fromkeys(terminals) if gene in place]
    wanted = list(dict.fromkeys(graphs.genes if candidates is None else candidates))
    rows = [place[gene] for gene in wanted if gene in place]
    for kind, found, given in (("terminal", ends, list(terminals)), ("candidate", rows, wanted)):
        if not found:
            raise DataError(
                f"no {kind} ({', '.join(map(str, given[:4])) or 'none given'}) is among the {len(place)} genes of the graphs"
            )
    if by not in ("downstream", "excess"):
        raise ConfigError(f"by must be 'downstream' or 'excess', got {by!r}")
    reach, own = graphs.reach[:, rows], np.isin(rows, ends)
    counts = reach[:, :, ends].sum(-1)
    excess = counts - reach.sum(-1) * (len(ends) - own) / max(1, len(place) - 1)
    value = counts if by == "downstream" else excess
    ranks = rankdata(-value, axis=1)
    quantiles = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    (low, high), (first, last) = np.quantile(counts, quantiles, axis=0), np.quantile(ranks, quantiles, axis=0)
    table = pd.DataFrame(
        {
            "downstream": counts.mean(0),
            "downstream_low": low,
            "downstream_high": high,
            "excess": excess.mean(0),
            "p_upstream": (counts > 0).mean(0),
            "rank": rankdata(-value.mean(0)),
            "rank_low": first,
            "rank_high": last,
            "terminal": own,
        },
        index=pd.Index([graphs.genes[j] for j in rows], name="gene"),
    )
    return table.sort_values(["rank", "p_upstream"], ascending=[True, False], kind="stable")


def edge_stability(graphs: GraphDraws, other: GraphDraws) -> float:
    """Correlation of the edge probabilities of two sets of draws over the same genes, edges of either way apart.

    Raises
    ------
    DataError
        For other genes.
    """
    if graphs.genes != other.genes:
        raise DataError("the draws are over other genes, or in another order")
    off = ~np.eye(len(graphs.genes), dtype=bool)
    a, b = graphs.edges.mean(0)[off], other.edges.mean(0)[off]
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) > 0 and np.ptp(b) > 0 else float("nan")


def _rows(rng: np.random.Generator, n: int, subsamples: int, fraction: float) -> Iterator[NDArray[np.int64]]:
    if not subsamples:
        yield np.arange(n)
    for _ in range(subsamples):
        yield np.sort(rng.permutation(n)[: max(2, int(fraction * n))])


def _posterior(table: pd.DataFrame, network: nx.Graph | None, density: float | None, draws: int, seed: int) -> OrderDAG:
    knowledge = None if network is None else Knowledge.allowed(nx.Graph(network), list(table.columns))
    return OrderDAG(knowledge=knowledge, density=density, draws=draws, random_state=seed, progress=False).start(table)

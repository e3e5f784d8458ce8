"""How far is one graph from another, and do the probabilities of edges mean what they say?

Graphs are adjacencies ``A [d, d]`` (``A[i, j] ≠ 0``: i → j; both ways: undirected), dense, sparse or tables, or networkx graphs,
in any combination. Networkx graphs and tables are matched by the names of their nodes, one beside an array by the order of its
nodes. Edges are counted on sparse matrices; only what ranks or tests all pairs takes ``d²`` memory.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import networkx as nx
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse, stats
from torch import Tensor

from ..discovery.equivalence import essential_graph

Graph: TypeAlias = Tensor | NDArray[Any] | sparse.sparray | sparse.spmatrix | pd.DataFrame | nx.Graph
Bool = NDArray[np.bool_]
Edges: TypeAlias = sparse.csr_array  # bool [d, d], of which only the edges are stored


def structural_hamming_distance(estimate: Graph, truth: Graph) -> int:
    """Pairs of nodes whose state differs: no edge, →, ← or undirected (a reversal counts once).

    Between two DAGs this is the usual SHD; between two essential graphs it compares what data can tell.

    Raises
    ------
    ValueError
        If the two differ in size, or in the names of their nodes.
    """
    a, b = _pair(estimate, truth)
    return _pairs(a != b)


def essential_distance(estimate: Graph, truth: Graph, targets: Iterable[Collection[Hashable]] = ()) -> int:
    """Structural Hamming distance between the essential graphs of two DAGs: 0 if and only if they are equivalent.

    Parameters
    ----------
    estimate : DAG, or the essential graph a method returns
        Taken as it is if it has an undirected edge (or a cycle, which has no equivalence class).
    truth : DAG
    targets : iterable of collections of nodes
        Of the interventions that data were seen under: nodes of ``truth``, or positions where it is an array.
    """
    a, b = _pair(estimate, truth)
    names = _names(truth) or list(range(b.shape[0]))
    place = {name: j for j, name in enumerate(names)}
    sets = [{place[node] for node in chosen} for chosen in targets]
    graph = _digraph(a)
    if nx.is_directed_acyclic_graph(graph):
        a = _adjacency(essential_graph(graph, sets))
    return _pairs(a != _adjacency(essential_graph(_digraph(b), sets)))


@dataclass(frozen=True)
class EdgeRecovery:
    """Edges of an estimate by what the truth has there, and the rates that NOTEARS's papers report.

    ``correct`` counts edges of the right direction and undirected ones where the truth has an edge, ``reversed`` those the
    wrong way round, ``extra`` and ``missing`` pairs that only one of the two joins.
    """

    correct: int
    reversed: int
    extra: int
    missing: int
    undirected: int

    @property
    def n_edges(self) -> int:
        return self.correct + self.reversed + self.extra

    @property
    def n_true(self) -> int:
        return self.correct + self.reversed + self.missing

    @property
    def shd(self) -> int:
        """Missing, extra and reversed: undirected edges are no error here, unlike in :func:`structural_hamming_distance`."""
        return self.missing + self.extra + self.reversed

    @property
    def recall(self) -> float:
        """Or TPR: share of the true edges that are found."""
        return self.correct / max(self.n_true, 1)

    @property
    def precision(self) -> float:
        return self.correct / max(self.n_edges, 1)

    @property
    def fdr(self) -> float:
        """Share of the edges given that are reversed or extra."""
        return (self.reversed + self.extra) / max(self.n_edges, 1)

    @property
    def f1(self) -> float:
        return 2 * self.correct / max(self.n_edges + self.n_true, 1)

    @property
    def skeleton_f1(self) -> float:
        """F1 of which pairs are joined, whatever the direction."""
        return 2 * (self.correct + self.reversed) / max(self.n_edges + self.n_true, 1)


def edge_recovery(estimate: Graph, truth: Graph) -> EdgeRecovery:
    """Count right, reversed, extra and missing edges; ``truth`` is a DAG, ``estimate`` may have undirected edges."""
    a, b = _pair(estimate, truth)
    both = a.multiply(a.T)
    correct, turned = a.multiply(b), (a > both).multiply(b.T) > b
    shared = _pairs((a + a.T).multiply(b + b.T))
    return EdgeRecovery(
        correct=correct.nnz,
        reversed=turned.nnz,
        extra=_pairs(a) - shared,
        missing=_pairs(b) - shared,
        undirected=_pairs(both),
    )


def edge_aupr(scores: Graph, truth: Graph) -> float:
    """Area under the precision–recall curve of ranked edges (average precision), all ordered pairs of nodes.

    Pairs with equal scores enter together, so that their order does not matter; a constant score gives the share of
    pairs that are edges.

    Parameters
    ----------
    scores : ``[d, d]``
        Edge probabilities or weights (their size counts, not their sign); of networkx graphs, the attribute
        ``probability`` or ``weight`` of edges.
    """
    from sklearn.metrics import average_precision_score

    score, true = ranked_edges(scores, truth)
    if not true.any():
        raise ValueError("the true graph has no edges: there is nothing to rank")
    return float(average_precision_score(true, score))


def ranked_edges(scores: Graph, truth: Graph) -> tuple[NDArray[np.float64], Bool]:
    """|Score| of each ordered pair of nodes, and whether it is an edge: ``[d (d − 1)]`` both."""
    table, edges = _values(scores, _names(truth), ("probability", "weight")), _adjacency(truth)
    _check(table, edges)
    score, true = np.abs(table.toarray()), edges.toarray()
    apart = ~np.eye(len(score), dtype=bool)
    if not np.isfinite(score[apart]).all():
        raise ValueError("scores of edges must be finite")
    return score[apart], true[apart]


def structural_intervention_distance(estimate: Graph, truth: Graph) -> int:
    """Ordered pairs ``(i, j)`` whose effect ``P(x_j | do(x_i))`` the estimate gets wrong (SID; Peters & Bühlmann 2015).

    The estimate says: adjust for the parents of ``i``. That is right if in the true graph no such parent is (a descendant
    of) a node behind ``i`` on a directed path to ``j``, and they block all other paths between ``i`` and ``j``. Takes
    ``d²`` tests of d-separation: seconds at ``d = 50``.

    Raises
    ------
    ValueError
        If one of the graphs is not a DAG.
    """
    a, b = _pair(estimate, truth)
    for name, adjacency in (("estimate", a), ("truth", b)):
        if not nx.is_directed_acyclic_graph(_digraph(adjacency)):
            raise ValueError(f"the structural intervention distance compares DAGs, but the {name} has a cycle")
    graph, causes = _digraph(b), a.tocsc()
    below = [nx.descendants(graph, i) for i in graph]
    wrong = 0
    for i in graph:
        parents = set(causes.indices[causes.indptr[i] : causes.indptr[i + 1]].tolist())
        for j in graph:
            if j == i:
                continue
            if j in parents:
                wrong += j in below[i]
                continue
            between = {k for k in below[i] if k == j or j in below[k]}
            forbidden = between.union(*(below[k] for k in between))
            if parents & forbidden:
                wrong += 1
                continue
            cut = graph.copy()
            cut.remove_edges_from([(i, k) for k in between if graph.has_edge(i, k)])
            wrong += not nx.is_d_separator(cut, {i}, {j}, parents)
    return wrong


@dataclass(frozen=True)
class EdgeCalibration:
    """Edge probabilities against how often they are right.

    Attributes
    ----------
    table : DataFrame
        A row a bin that is not empty: ``low`` and ``high`` edge of the bin, mean ``probability`` in it, ``share`` of its
        pairs that are edges with its 95 % interval ``share_low``, ``share_high`` (Clopper–Pearson), ``n`` pairs.
    """

    table: pd.DataFrame

    @property
    def error(self) -> float:
        """Expected calibration error: mean ``|probability − share|`` over pairs. Most pairs are no edges and near 0."""
        gap = (self.table["probability"] - self.table["share"]).abs()
        return float((gap * self.table["n"]).sum() / self.table["n"].sum())

    @property
    def largest(self) -> float:
        """Largest ``|probability − share|`` of a bin: few pairs in a bin make it large by chance alone."""
        return float((self.table["probability"] - self.table["share"]).abs().max())

    @property
    def excess(self) -> float:
        """Largest distance of a bin's probability from the 95 % interval of its share; 0 if all intervals hold it."""
        outside = np.maximum(
            self.table["share_low"] - self.table["probability"], self.table["probability"] - self.table["share_high"]
        )
        return float(outside.clip(lower=0).max())


def edge_calibration(probabilities: Any, truth: Any, *, bins: int = 10) -> EdgeCalibration:
    """Among edges given probability ``p``, is a share ``p`` true?

    Parameters
    ----------
    probabilities, truth : ``[d, d]``, or a sequence of such over graphs (of any sizes)
        The diagonal does not count.
    bins : int
        Of equal width.
    """
    several = isinstance(probabilities, (list, tuple)) or getattr(probabilities, "ndim", 2) == 3
    pairs = zip(probabilities, truth, strict=True) if several else [(probabilities, truth)]
    ranked = [ranked_edges(p, t) for p, t in pairs]
    p, true = (np.concatenate(part) for part in zip(*ranked, strict=True))
    if p.min() < 0 or p.max() > 1 + 1e-9:
        raise ValueError(f"probabilities of edges lie between 0 and 1, got up to {p.max():.3g}")
    place = np.minimum((p * bins).astype(int), bins - 1)
    rows = []
    for k in np.unique(place):
        inside = place == k
        n, hits = int(inside.sum()), int(true[inside].sum())
        interval = stats.binomtest(hits, n).proportion_ci()
        rows.append((k / bins, (k + 1) / bins, p[inside].mean(), hits / n, interval.low, interval.high, n))
    names = ["low", "high", "probability", "share", "share_low", "share_high", "n"]
    return EdgeCalibration(pd.DataFrame(rows, columns=names))


def target_precision_recall(estimate: Any, truth: Any) -> tuple[float, float]:
    """Of the (environment, gene) pairs named as intervened on, the share that is; and of those that are, the share named.

    Parameters
    ----------
    estimate, truth : bool ``[E, d]``, array or DataFrame
        Two DataFrames are matched by their labels. The control counts: what is named there is wrong.
    """
    if isinstance(estimate, pd.DataFrame) and isinstance(truth, pd.DataFrame):
        if set(estimate.index) != set(truth.index) or set(estimate.columns) != set(truth.columns):
            raise ValueError("the tables of targets name other environments or genes")
        truth = truth.loc[estimate.index, estimate.columns]
    named, true = np.asarray(estimate) != 0, np.asarray(truth) != 0
    if named.shape != true.shape:
        raise ValueError(f"both need targets [E, d] of one size, got {list(named.shape)} and {list(true.shape)}")
    hit = int((named & true).sum())
    return (
        hit / int(named.sum()) if named.any() else float(not true.any()),
        hit / int(true.sum()) if true.any() else float(not named.any()),
    )


def _names(graph: Graph) -> list[Hashable] | None:
    if isinstance(graph, pd.DataFrame):
        return list(graph.columns)
    return list(graph) if isinstance(graph, nx.Graph) else None


def _values(graph: Graph, names: Sequence[Hashable] | None, attributes: Sequence[str] = ()) -> sparse.csr_array:
    """``[d, d]``, in the order of ``names`` where the graph has names; of edges, the first attribute that there is."""
    own = _names(graph)
    order = own if names is None else list(names)
    if own is not None and order is not None and set(own) != set(order):
        raise ValueError(f"the graphs have other nodes: {sorted(map(str, set(own) ^ set(order)))[:5]}")
    if isinstance(graph, nx.Graph):
        facts = {name for *_, edge in graph.edges(data=True) for name in edge}
        key = next((name for name in attributes if name in facts), None)
        values = nx.to_scipy_sparse_array(graph, nodelist=order, weight=key, dtype=float, format="csr")
    elif isinstance(graph, pd.DataFrame):
        if set(graph.index) != set(graph.columns) or not graph.index.is_unique or not graph.columns.is_unique:
            raise ValueError("rows and columns of a graph's table need the same names, each once")
        values = _sparse(graph.loc[order, order].to_numpy(dtype=float))
    else:
        values = _sparse(graph.detach().cpu().numpy() if isinstance(graph, Tensor) else graph)
    if np.isnan(values.data).any():
        raise ValueError("the graph's adjacency has NaN in it")
    return values


def _sparse(values: Any) -> sparse.csr_array:
    table = values if sparse.issparse(values) else np.asarray(values, dtype=float)
    if table.ndim != 2:
        raise ValueError(f"a graph needs an adjacency [d, d], got an array of shape {list(table.shape)}")
    matrix = sparse.csr_array(table, dtype=float, copy=True)
    matrix.sum_duplicates()
    return matrix


def _adjacency(graph: Graph, names: Sequence[Hashable] | None = None) -> Edges:
    values = _values(graph, names)
    values.data[np.repeat(np.arange(values.shape[0]), np.diff(values.indptr)) == values.indices] = 0
    values.eliminate_zeros()
    return values.astype(bool)


def _digraph(adjacency: Edges) -> nx.DiGraph:
    graph = nx.DiGraph()
    graph.add_nodes_from(range(adjacency.shape[0]))
    graph.add_edges_from(zip(*(part.tolist() for part in adjacency.nonzero()), strict=True))
    return graph


def _pairs(edges: Edges) -> int:
    """Number of pairs of nodes that are joined in one direction or both."""
    return int(sparse.triu(edges + edges.T).nnz)


def _pair(estimate: Graph, truth: Graph) -> tuple[Edges, Edges]:
    a, b = _adjacency(estimate, _names(truth)), _adjacency(truth)
    _check(a, b)
    return a, b


def _check(a: sparse.csr_array, b: sparse.csr_array) -> None:
    if a.shape != b.shape or a.shape[0] != a.shape[1]:
        raise ValueError(f"both graphs need an adjacency [d, d] of one size, got {list(a.shape)} and {list(b.shape)}")

"""From disease genes to a small connected part of a protein network: prize-collecting Steiner trees and forests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ...errors import ConfigError, DataError
from ..effects import Array, Codes

MOST = 18  # nodes of an exact solution: all their subsets are tried


@dataclass(frozen=True, eq=False)
class SteinerTree:
    """What was chosen of a network.

    Attributes
    ----------
    graph : Graph
        Chosen nodes (with ``prize``) and edges (with ``cost``); one tree, or several of a forest.
    cost : float
        ``Σ costs of its edges + Σ prizes left out``, and ``omega`` for each tree of a forest.
    lower_bound : float
        No tree costs less: the dual solution the moats grew. ``cost / lower_bound`` bounds what better ones could gain.
    missing : tuple of str
        Genes with a prize that the network does not have.
    """

    graph: nx.Graph
    cost: float
    lower_bound: float
    missing: tuple[str, ...] = ()

    @property
    def nodes(self) -> list[str]:
        return list(self.graph)

    def table(self) -> pd.DataFrame:
        """One row a gene, terminals (genes with a prize) first: ``prize``, ``terminal``, ``degree``, ``tree``."""
        trees = {v: k for k, part in enumerate(nx.connected_components(self.graph)) for v in part}
        rows = [
            (v, facts["prize"], facts["prize"] > 0, self.graph.degree(v), trees[v])
            for v, facts in self.graph.nodes(data=True)
        ]
        table = pd.DataFrame(rows, columns=["gene", "prize", "terminal", "degree", "tree"]).set_index("gene")
        return table.sort_values(["prize", "degree"], ascending=False, kind="stable")


def protein_network(
    edges: pd.DataFrame, *, cost: str | None = None, confidence: str | None = None, hub_penalty: float | None = None
) -> nx.Graph:
    """Network of a table whose first two columns are proteins, with ``cost`` on its edges.

    Parameters
    ----------
    cost, confidence : str
        One of them: the column of costs ≥ 0, or of confidences between 0 and 1, which cost ``1 − confidence``. Of an
        interaction listed twice the cheaper counts; interactions of a protein with itself are passed over.
    hub_penalty : float, optional
        ``γ``: each edge costs ``10^γ d_u d_v / ((n − d_u − 1)(n − d_v − 1) + d_u d_v)`` more, of its ends' degrees, so
        that paths do not all lead through hubs (Omics Integrator 2's ``g``).

    Raises
    ------
    DataError
        For an absent column, missing names, costs that are negative or not finite, confidences outside 0 … 1.
    """
    if (cost is None) == (confidence is None):
        raise ConfigError("name the column of edge costs (cost=) or that of confidences (confidence=), one of them")
    column = cost or confidence
    if column not in edges or len(edges.columns) < 3:
        raise DataError(f"the network has no column {column!r}; there are {', '.join(map(str, edges.columns))}")
    names = edges.iloc[:, :2]
    if names.isna().to_numpy().any():
        raise DataError(
            f"row {int(names.isna().any(axis=1).to_numpy().argmax())} of the network lacks a protein's name"
        )
    values = pd.to_numeric(edges[column], errors="coerce").to_numpy(dtype=float)
    wrong = ~((values >= 0) & (values <= (np.inf if cost else 1)) & np.isfinite(values))
    if wrong.any():
        row = int(wrong.argmax())
        expected = "a finite cost ≥ 0" if cost else "a confidence between 0 and 1"
        raise DataError(
            f"edge {names.iloc[row, 0]} – {names.iloc[row, 1]} has {column} {edges[column].iloc[row]}, expected {expected}"
        )
    table = pd.DataFrame(
        {"a": names.iloc[:, 0].astype(str), "b": names.iloc[:, 1].astype(str), "cost": values if cost else 1 - values}
    )
    # The cheaper of two comes later and so replaces the other.
    table = table[table["a"] != table["b"]].sort_values("cost", ascending=False, kind="stable")
    network = nx.Graph()
    network.add_weighted_edges_from(table.itertuples(index=False, name=None), weight="cost")
    if hub_penalty is not None:
        n, degree = len(network), dict(network.degree)
        for u, v, facts in network.edges(data=True):
            both = degree[u] * degree[v]
            facts["cost"] += 10**hub_penalty * both / ((n - degree[u] - 1) * (n - degree[v] - 1) + both)
    return network


def steiner_tree(
    network: nx.Graph, prizes: Mapping[str, float] | pd.Series, *, cost: str = "cost", omega: float | None = None
) -> SteinerTree:
    """A cheap connected part of a network that collects most prizes::

        min over trees T:   Σ_{e ∈ T} cost_e + Σ_{v ∉ T} prize_v

    by Goemans and Williamson's growing moats, of whose edges the best subtree is kept; nodes are then left out one by one
    where the cheapest spanning tree of the others gains. At most twice as costly as the best tree; ``lower_bound`` says
    how far from it at most.

    Parameters
    ----------
    network : Graph
        With ``cost ≥ 0`` on every edge; see :func:`protein_network`. A tree lies in one of its components.
    prizes : mapping or Series, gene → prize ≥ 0
        Of the terminals, such as ``genes.abs()`` of :func:`~pyro_cge.imputation.disease_genes`. Genes that are not in the
        network are reported in ``missing``.
    omega : float, optional
        Makes it a forest: a dummy root is joined to every terminal at this cost, so that trees cost ``omega`` each, and
        terminals that are expensive to reach make a tree of their own where their prize is worth it.

    Raises
    ------
    DataError
        For prizes that are negative or not finite, none above zero, none in the network, edges without a usable cost.

    References
    ----------
    Goemans, Williamson 1995; Johnson, Minkoff, Phillips 2000 (strong pruning); Tuncbag et al. 2013 (the forest); Belyaeva
    et al. 2021, Causal network models of SARS-CoV-2 expression and aging.
    """
    return _solve(_Arrays.of(network, prizes, cost, omega))


def exact_steiner_tree(
    network: nx.Graph, prizes: Mapping[str, float] | pd.Series, *, cost: str = "cost", omega: float | None = None
) -> SteinerTree:
    """The best tree (or forest) of a network of at most 18 nodes, by trying all sets of nodes; see :func:`steiner_tree`."""
    from .moats import best_subset, spanning_forest

    arrays = _Arrays.of(network, prizes, cost, omega)
    if len(arrays.prize) > MOST:
        raise ConfigError(
            f"an exact solution tries all subsets of nodes: at most {MOST}, got {len(arrays.prize)}; use steiner_tree"
        )
    nodes, value = best_subset(arrays.order, arrays.ends, arrays.cost, arrays.prize, arrays.root)
    total = float(arrays.prize.sum() - value)
    return arrays.tree(nodes, spanning_forest(arrays.order, arrays.ends, nodes), total, total)


def inclusion_frequency(
    network: nx.Graph,
    prizes: Mapping[str, float] | pd.Series,
    *,
    cost: str = "cost",
    omega: float | None = None,
    noise: float = 0.2,
    draws: int = 100,
    random_state: int = 0,
) -> pd.Series:
    """How often each node is chosen when prizes and costs are multiplied by ``exp(noise · Normal(0, 1))``, each its own.

    Nodes never chosen are left out.
    """
    if not noise >= 0 or draws < 1:
        raise ConfigError(
            f"noise is a standard deviation ≥ 0 of logarithms and draws at least 1, got {noise} and {draws}"
        )
    arrays = _Arrays.of(network, prizes, cost, omega)
    rng = np.random.default_rng(random_state)
    count = np.zeros(len(arrays.prize))
    for _ in range(draws):
        factors = (np.exp(noise * rng.standard_normal(len(values))) for values in (arrays.prize, arrays.cost))
        count += _choose(arrays.scaled(*factors))[0]
    share = pd.Series(count / draws, index=pd.Index([*arrays.names, *([] if omega is None else [""])], name="gene"))
    return share[(share > 0) & (share.index != "")].rename("frequency").sort_values(ascending=False, kind="stable")


@dataclass(frozen=True, eq=False)
class _Arrays:
    """A network and its prizes as :mod:`.moats` takes them; the dummy root of a forest is the last node."""

    names: list[str]
    missing: tuple[str, ...]
    ends: Codes
    cost: Array
    prize: Array
    root: int
    start: Codes
    near: Codes
    along: Codes

    @classmethod
    def of(cls, network: nx.Graph, prizes: Any, attribute: str, omega: float | None) -> _Arrays:
        given = pd.Series(prizes, dtype=float)
        given.index = given.index.map(str)
        if (bad := ~((given >= 0) & np.isfinite(given))).any():
            raise DataError(
                f"the prize of {given.index[int(bad.to_numpy().argmax())]} is {given[bad].iloc[0]}; expected finite numbers ≥ 0"
            )
        if given.index.has_duplicates:
            raise DataError(f"{given.index[given.index.duplicated()][0]} has two prizes: give each gene one")
        if not (given > 0).any():
            raise DataError("no gene has a prize above zero: there is no terminal to connect")
        if omega is not None and not 0 <= omega < np.inf:
            raise ConfigError(f"omega is the cost of a tree, a finite number ≥ 0, got {omega}")
        if network.is_directed() or network.is_multigraph():
            raise DataError(
                "the network must be an undirected networkx.Graph: network.to_undirected(), nx.Graph(network)"
            )
        names = [str(v) for v in network]
        place = {v: i for i, v in enumerate(network)}
        prize = given.reindex(names, fill_value=0.0).to_numpy()
        missing = tuple(given.index[(given > 0) & ~given.index.isin(names)])
        if not prize.any():
            raise DataError(
                f"none of the {int((given > 0).sum())} terminals ({', '.join(given.index[:3])}, …) is in the network of {len(names):,} "
                f"nodes ({', '.join(names[:3])}, …): use the same kind of gene names in both"
            )
        rows = [
            (place[u], place[v], facts.get(attribute, np.nan)) for u, v, facts in network.edges(data=True) if u != v
        ]
        table = np.array(rows, dtype=float).reshape(-1, 3)
        ends, cost = table[:, :2].astype(np.int64), np.ascontiguousarray(table[:, 2])
        if (bad := ~((cost >= 0) & np.isfinite(cost))).any():
            e = int(bad.argmax())
            u, v = names[ends[e, 0]], names[ends[e, 1]]
            raise DataError(
                f"edge {u} – {v} has {attribute} {cost[e]}; every edge needs a finite one ≥ 0 (see protein_network)"
            )
        root = -1
        if omega is not None:
            root, terminals = len(names), np.flatnonzero(prize)
            ends = np.concatenate([ends, np.stack([np.full(len(terminals), root), terminals], 1)])
            cost, prize = np.concatenate([cost, np.full(len(terminals), omega)]), np.append(prize, 0.0)
        return cls(names, missing, ends, cost, prize, root, *_neighbours(ends, len(prize)))

    def induced(self, nodes: NDArray[np.bool_]) -> tuple[_Arrays, Codes, Codes]:
        """The network of some nodes, and where its nodes and edges are in the whole."""
        own, joining = np.flatnonzero(nodes), np.flatnonzero(nodes[self.ends].all(1))
        ends = np.searchsorted(own, self.ends[joining])
        root = int(np.searchsorted(own, self.root)) if self.root >= 0 else -1
        near = _neighbours(ends, len(own))
        return _Arrays([], (), ends, self.cost[joining], self.prize[own], root, *near), own, joining

    @property
    def order(self) -> Codes:
        """Edges, the cheapest first."""
        return np.argsort(self.cost, kind="stable")

    def scaled(self, prize: Array, cost: Array) -> _Arrays:
        return replace(self, prize=self.prize * prize, cost=self.cost * cost)

    def tree(self, nodes: NDArray[np.bool_], edges: NDArray[np.bool_], cost: float, bound: float) -> SteinerTree:
        graph = nx.Graph()
        graph.add_nodes_from(
            (self.names[v], {"prize": float(self.prize[v])}) for v in np.flatnonzero(nodes) if v != self.root
        )
        for e in np.flatnonzero(edges):
            u, v = self.ends[e]
            if self.root not in (u, v):
                graph.add_edge(self.names[u], self.names[v], cost=float(self.cost[e]))
        return SteinerTree(graph, cost, bound, self.missing)


def _choose(arrays: _Arrays) -> tuple[NDArray[np.bool_], NDArray[np.bool_], float, float]:
    """Nodes, edges, their prizes less their costs, and the lower bound."""
    from .moats import grow, improve, prune

    neighbours = arrays.start, arrays.near, arrays.along
    covered, spent, moats = grow(*neighbours, arrays.ends, arrays.cost, arrays.prize, arrays.root)
    nodes, edges, value = prune(*neighbours, covered, arrays.cost, arrays.prize, arrays.root)
    part, own, joining = arrays.induced(nodes)
    kept, used, better = improve(
        part.start, part.near, part.along, part.ends, part.order, part.cost, part.prize, part.root
    )
    if better > value:
        nodes, edges, value = np.zeros_like(nodes), np.zeros_like(edges), better
        nodes[own[kept]] = edges[joining[used]] = True
    return nodes, edges, value, spent - (moats.max() if arrays.root < 0 else 0.0)


def _solve(arrays: _Arrays) -> SteinerTree:
    nodes, edges, value, bound = _choose(arrays)
    return arrays.tree(nodes, edges, float(arrays.prize.sum() - value), float(bound))


def _neighbours(ends: Codes, n: int) -> tuple[Codes, Codes, Codes]:
    """Where the neighbours of each node start, the neighbours, and the edges that lead to them."""
    both, edge = np.concatenate([ends, ends[:, ::-1]]), np.tile(np.arange(len(ends)), 2)
    by = np.argsort(both[:, 0], kind="stable")
    start = np.concatenate([[0], np.cumsum(np.bincount(both[:, 0], minlength=n))])
    return start, both[by, 1], edge[by]

"""Prior knowledge about edges, enforced exactly: forbidden, required, tiers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError

Edge = tuple[str, str]
FORBIDDEN, REQUIRED = 1, 2  # 0: free


@dataclass(frozen=True)
class Knowledge:
    """What is known of the graph before data are seen; edges are pairs ``(cause, effect)`` of gene names.

    Attributes
    ----------
    forbidden : iterable of pairs
        "X never acts on Y directly".
    required : iterable of pairs
        Edges that are in the graph.
    tiers : sequence of sequences of str
        Genes of a later tier never act on those of an earlier one; genes in no tier are free.
    roots, leaves : iterable of str
        Genes without causes, and without effects, among those given.
    """

    forbidden: Iterable[Edge] = ()
    required: Iterable[Edge] = ()
    tiers: Sequence[Sequence[str]] = ()
    roots: Iterable[str] = ()
    leaves: Iterable[str] = ()

    @classmethod
    def allowed(cls, graph: nx.DiGraph, genes: Sequence[str]) -> Knowledge:
        """Only edges of ``graph`` are possible, both ways where it is undirected."""
        directed = graph if graph.is_directed() else graph.to_directed()
        possible = set(directed.edges)
        return cls(forbidden=[(a, b) for a in genes for b in genes if a != b and (a, b) not in possible])

    def table(self, genes: Sequence[str]) -> NDArray[np.int8]:
        """``[d, d]``: 0 free, 1 forbidden, 2 required, at ``[cause, effect]``.

        Raises
        ------
        ConfigError
            For names that are no genes, edges both required and forbidden, and required edges that form a cycle.
        """
        place: Mapping[str, int] = {gene: j for j, gene in enumerate(genes)}
        d = len(genes)
        table = np.zeros((d, d), dtype=np.int8)

        def at(name: str) -> int:
            if name not in place:
                raise ConfigError(
                    f"prior knowledge names {name!r}, which is not among the {d} genes (such as {genes[0]!r})"
                )
            return place[name]

        for cause, effect in self.forbidden:
            table[at(cause), at(effect)] = FORBIDDEN
        for name in self.roots:
            table[:, at(name)] = FORBIDDEN
        for name in self.leaves:
            table[at(name), :] = FORBIDDEN
        levels = [[at(name) for name in tier] for tier in self.tiers]
        named = [j for level in levels for j in level]
        if len(set(named)) < len(named):
            twice = sorted({genes[j] for j in named if named.count(j) > 1})
            raise ConfigError(f"genes in more than one tier: {twice[:5]}")
        for later in range(len(levels)):
            for earlier in range(later):
                table[np.ix_(levels[later], levels[earlier])] = FORBIDDEN
        required = [(at(cause), at(effect)) for cause, effect in self.required]
        for a, b in required:
            if a == b:
                raise ConfigError(f"{genes[a]!r} cannot be its own cause")
            if table[a, b] == FORBIDDEN:
                raise ConfigError(
                    f"the edge {genes[a]!r} → {genes[b]!r} is required and forbidden (perhaps by a tier, root or leaf)"
                )
        graph = nx.DiGraph(required)
        if not nx.is_directed_acyclic_graph(graph):
            loop = " → ".join(genes[a] for a, _ in nx.find_cycle(graph))
            raise ConfigError(f"required edges form a cycle: {loop} → {genes[nx.find_cycle(graph)[0][0]]}")
        for a, b in required:
            table[a, b] = REQUIRED
        np.fill_diagonal(table, FORBIDDEN)
        return table


def precedence(table: NDArray[np.int8]) -> NDArray[np.bool_]:
    """``[d, d]``: who must stand before whom in every order, because a path of required edges leads there."""
    graph = nx.DiGraph(list(zip(*np.nonzero(table == REQUIRED), strict=True)))
    before = np.zeros(table.shape, dtype=bool)
    for node in graph:
        before[node, list(nx.descendants(graph, node))] = True
    return before

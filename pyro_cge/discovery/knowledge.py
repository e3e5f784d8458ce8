"""Prior knowledge about edges, enforced exactly: forbidden, required, tiers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..errors import ConfigError

Edge = tuple[str, str]
FORBIDDEN, REQUIRED = 1, 2  # 0: free


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What is known of the graph before data are seen; edges are pairs ``(cause, effect)`` of gene names.

    Attributes
    ----------
    forbidden : iterable of pairs, or bool DataFrame
        "X never acts on Y directly". The table has causes as rows and effects as columns: with thousands of genes it takes
        a byte a pair, which a list of pairs does not.
    required : iterable of pairs
        Edges that are in the graph.
    tiers : sequence of sequences of str
        Genes of a later tier never act on those of an earlier one; genes in no tier are free.
    roots, leaves : iterable of str
        Genes without causes, and without effects, among those given.
    """

    forbidden: Iterable[Edge] | pd.DataFrame = ()
    required: Iterable[Edge] = ()
    tiers: Sequence[Sequence[str]] = ()
    roots: Iterable[str] = ()
    leaves: Iterable[str] = ()

    def __post_init__(self) -> None:
        for name in ("forbidden", "required", "roots", "leaves"):  # which are read more than once
            if not isinstance(getattr(self, name), pd.DataFrame):
                object.__setattr__(self, name, tuple(getattr(self, name)))

    @classmethod
    def allowed(cls, graph: nx.DiGraph, genes: Sequence[str]) -> Knowledge:
        """Only edges of ``graph`` are possible, both ways where it is undirected."""
        place = {gene: j for j, gene in enumerate(genes)}
        forbidden = np.ones((len(genes), len(genes)), dtype=bool)
        for a, b in graph.edges():
            if a in place and b in place:
                forbidden[place[a], place[b]] = False
                if not graph.is_directed():
                    forbidden[place[b], place[a]] = False
        np.fill_diagonal(forbidden, False)
        return cls(forbidden=pd.DataFrame(forbidden, index=list(genes), columns=list(genes)))

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

        if isinstance(self.forbidden, pd.DataFrame):
            if self.forbidden.isna().to_numpy().any():
                raise ConfigError("the table of forbidden edges has missing values; expected True and False")
            mask = self.forbidden.to_numpy(dtype=bool)
            causes, effects = ([at(name) for name in axis] for axis in self.forbidden.axes)
            table[np.ix_(causes, effects)] = np.where(mask, np.int8(FORBIDDEN), np.int8(0))
        else:
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

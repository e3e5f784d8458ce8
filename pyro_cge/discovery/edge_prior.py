"""What is believed of edges before data are seen: a probability for each, from a network or a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real

import networkx as nx
import numpy as np
import pandas as pd

from ..errors import ConfigError
from .inputs import Array
from .knowledge import Edge


@dataclass(frozen=True)
class EdgePrior:
    """Probability of an edge ``cause → effect``, given that the order of the genes allows it.

    Attributes
    ----------
    probability : mapping of pairs ``(cause, effect)`` to numbers in (0, 1)
        Pairs of other genes than those at hand are left out.
    otherwise : float
        Of every pair not named.
    """

    probability: Mapping[Edge, float] = field(default_factory=dict)
    otherwise: float = 0.05

    def __post_init__(self) -> None:
        for name, p in [("otherwise", self.otherwise), *((f"{a} → {b}", p) for (a, b), p in self.probability.items())]:
            if not isinstance(p, Real) or not 0 < p < 1:
                raise ConfigError(
                    f"edge probabilities must lie between 0 and 1 (for certainty use Knowledge), got {p!r} for {name}"
                )

    @classmethod
    def from_graph(cls, graph: nx.Graph, *, present: float = 0.5, otherwise: float = 0.05) -> EdgePrior:
        """From a network: TF–target pairs as a DiGraph; protein interactions, which say nothing of direction, as a Graph.

        Edges with an attribute ``probability`` have that, others ``present``.
        """
        pairs = list(graph.edges(data="probability"))
        if not graph.is_directed():
            pairs += [(b, a, p) for a, b, p in pairs]
        return cls({(str(a), str(b)): float(present if p is None else p) for a, b, p in pairs}, otherwise)

    @classmethod
    def from_table(cls, table: pd.DataFrame, *, present: float = 0.5, otherwise: float = 0.05) -> EdgePrior:
        """From columns ``cause``, ``effect`` and, where there is one, ``probability``.

        Raises
        ------
        ConfigError
            If a column is missing.
        """
        missing = {"cause", "effect"} - set(table.columns)
        if missing:
            raise ConfigError(f"a table of edges needs columns cause and effect, got {list(table.columns)}")
        values = table["probability"] if "probability" in table else [present] * len(table)
        pairs = zip(table["cause"].astype(str), table["effect"].astype(str), strict=True)
        return cls(dict(zip(pairs, values, strict=True)), otherwise)

    def matrix(self, genes: Sequence[str]) -> Array:
        """``[d, d]`` at ``[cause, effect]``; 0 on the diagonal."""
        place = {gene: j for j, gene in enumerate(genes)}
        matrix = np.full((len(genes), len(genes)), self.otherwise)
        for (cause, effect), p in self.probability.items():
            if cause in place and effect in place:
                matrix[place[cause], place[effect]] = p
        np.fill_diagonal(matrix, 0.0)
        return matrix

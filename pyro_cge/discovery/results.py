"""Graphs with gene names: how estimators hand out what they found, and how it is written to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ..data.files import replacing
from ..errors import ConfigError


def named_graph(adjacency: ArrayLike, genes: list[str], **values: ArrayLike) -> nx.DiGraph:
    """DiGraph over ``genes`` with an edge ``i → j`` wherever ``adjacency[i, j] ≠ 0``.

    Parameters
    ----------
    adjacency : array ``[d, d]``
    genes : list of str
    **values : array ``[d, d]``
        Attributes of the edges, such as ``weight=`` and ``probability=``.
    """
    graph = nx.DiGraph()
    graph.add_nodes_from(genes)
    tables = {name: np.asarray(table) for name, table in values.items()}
    for i, j in zip(*np.nonzero(np.asarray(adjacency)), strict=True):
        graph.add_edge(genes[i], genes[j], **{name: float(table[i, j]) for name, table in tables.items()})
    return graph


def edge_table(graph: nx.DiGraph) -> pd.DataFrame:
    """One row an edge: ``cause``, ``effect`` and the edge's attributes, the strongest first where there are weights."""
    rows: list[dict[str, Any]] = [{"cause": a, "effect": b, **facts} for a, b, facts in graph.edges(data=True)]
    table = pd.DataFrame(rows, columns=None if rows else ["cause", "effect"])
    for name in ("probability", "weight"):
        if name in table:
            return table.sort_values(name, key=np.abs, ascending=False, ignore_index=True)
    return table


def write_graph(graph: nx.DiGraph, path: Path | str) -> None:
    """Write as GraphML (Cytoscape, igraph, networkx) or as a CSV table of edges, by the file's ending.

    Raises
    ------
    ConfigError
        For another ending.
    """
    path = Path(path)
    if path.suffix not in (".graphml", ".csv"):
        raise ConfigError(f"a graph is written as .graphml or .csv, got {path.name!r}")
    with replacing(path) as part:
        if path.suffix == ".csv":
            edge_table(graph).to_csv(part, index=False)
        else:
            nx.write_graphml(graph, part)

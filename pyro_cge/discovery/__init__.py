"""Causal structure: among known causes, or among genes, from environments with known or unknown targets."""

from .edge_prior import EdgePrior
from .equivalence import d_separated, essential_graph
from .interventional import InterventionalSCM
from .knowledge import Knowledge
from .order_dag import OrderDAG
from .order_search import OrderSearch
from .results import edge_table, named_graph, write_graph
from .trees import TreeClass, changed_causes, trees_of

__all__ = [
    "EdgePrior",
    "InterventionalSCM",
    "Knowledge",
    "OrderDAG",
    "OrderSearch",
    "TreeClass",
    "changed_causes",
    "d_separated",
    "edge_table",
    "essential_graph",
    "named_graph",
    "trees_of",
    "write_graph",
]

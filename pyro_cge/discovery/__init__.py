"""Causal structure: among known causes, or among genes, from environments with known or unknown targets."""

from .acyclicity import to_dag
from .constrained import AugmentedLagrangian, CentralPath, SoftPenalty
from .daggnn import DAGGNN
from .edge_prior import EdgePrior
from .edge_weights import EdgeWeights
from .equivalence import d_separated, essential_graph
from .factor import FactorDAG
from .faithfulness import faithfulness_margin, unfaithful_share
from .independence import KernelTests, LinearTests, OracleTests
from .inputs import samples
from .interventional import InterventionalSCM
from .knockouts import KnockoutRanking
from .knowledge import Knowledge
from .large import LargeOrderSearch
from .linear import LinearSCM
from .lingam import LiNGAM
from .nonparametric import NonparametricSCM
from .order_dag import OrderDAG
from .order_search import OrderSearch
from .permutations import Igsp, UtIgsp
from .results import edge_table, named_graph, write_graph
from .tissues import ENHANCES, REPRESSES, TissueSCM
from .trees import TreeClass, changed_causes, trees_of

__all__ = [
    "DAGGNN",
    "ENHANCES",
    "REPRESSES",
    "AugmentedLagrangian",
    "CentralPath",
    "EdgePrior",
    "EdgeWeights",
    "FactorDAG",
    "Igsp",
    "InterventionalSCM",
    "KernelTests",
    "KnockoutRanking",
    "Knowledge",
    "LargeOrderSearch",
    "LiNGAM",
    "LinearSCM",
    "LinearTests",
    "NonparametricSCM",
    "OracleTests",
    "OrderDAG",
    "OrderSearch",
    "SoftPenalty",
    "TissueSCM",
    "TreeClass",
    "UtIgsp",
    "changed_causes",
    "d_separated",
    "edge_table",
    "essential_graph",
    "faithfulness_margin",
    "named_graph",
    "samples",
    "to_dag",
    "trees_of",
    "unfaithful_share",
    "write_graph",
]

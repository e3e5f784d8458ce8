"""Causal imputation: predict interventions never done, carry effects to new contexts, find drugs and targets."""

from .baselines import ActionMean, ContextMean, FixedEffects, ShrunkMean, TwoWayMean
from .bayesian_synthetic import BayesianSyntheticInterventions
from .classifier import DeepNTKClassifier
from .cross_modal import CrossModalAutoencoder
from .design import ActiveDesign
from .effects import Effects
from .environments import EnvironmentImputer
from .hermite import HermiteActivation
from .interpolation import InterpolatingAutoencoder, alignment
from .kernels import arc_cosine, dual_activation
from .low_rank import FaLRTC, MaskedCP
from .modalities import Cells, CrossModalGuide, CrossModalModel
from .neighbours import DNPP
from .ntk import NTKCompletion, PriorRows
from .ntk_gp import NTKGP
from .protocol import HeldOut, cross_validate, few_shot, hold_out, k_fold, leave_one_out
from .ranking import rank_drugs
from .signatures import disease_genes, log_fold_changes
from .steiner import SteinerTree, exact_steiner_tree, inclusion_frequency, protein_network, steiner_tree
from .synthetic import SyntheticInterventions
from .targets import TargetSearch, identify_targets
from .upstream import GraphDraws, causal_graphs, edge_stability, upstream_genes
from .weight_posterior import ShiftSCM, WeightPosterior

__all__ = [
    "DNPP",
    "NTKGP",
    "ActionMean",
    "ActiveDesign",
    "BayesianSyntheticInterventions",
    "Cells",
    "ContextMean",
    "CrossModalAutoencoder",
    "CrossModalGuide",
    "CrossModalModel",
    "DeepNTKClassifier",
    "Effects",
    "EnvironmentImputer",
    "FaLRTC",
    "FixedEffects",
    "GraphDraws",
    "HeldOut",
    "HermiteActivation",
    "InterpolatingAutoencoder",
    "MaskedCP",
    "NTKCompletion",
    "PriorRows",
    "ShiftSCM",
    "ShrunkMean",
    "SteinerTree",
    "SyntheticInterventions",
    "TargetSearch",
    "TwoWayMean",
    "WeightPosterior",
    "alignment",
    "arc_cosine",
    "causal_graphs",
    "cross_validate",
    "disease_genes",
    "dual_activation",
    "edge_stability",
    "exact_steiner_tree",
    "few_shot",
    "hold_out",
    "identify_targets",
    "inclusion_frequency",
    "k_fold",
    "leave_one_out",
    "log_fold_changes",
    "protein_network",
    "rank_drugs",
    "steiner_tree",
    "upstream_genes",
]

"""Causal imputation: predict interventions never done, carry effects to new contexts, find drugs and targets."""

from .autoencoders.cross_modal import CrossModalAutoencoder
from .autoencoders.interpolation import InterpolatingAutoencoder, alignment
from .autoencoders.modalities import Cells, CrossModalGuide, CrossModalModel
from .baselines import ActionMean, ContextMean, FixedEffects, ShrunkMean, TwoWayMean
from .bayesian_synthetic import BayesianSyntheticInterventions
from .design.active import ActiveDesign
from .design.weight_posterior import ShiftSCM, WeightPosterior
from .effects import Effects
from .environments import EnvironmentImputer
from .low_rank import FaLRTC, MaskedCP
from .neighbours import DNPP
from .ntk.classifier import DeepNTKClassifier
from .ntk.completion import NTKCompletion, PriorRows
from .ntk.gp import NTKGP
from .ntk.hermite import HermiteActivation
from .ntk.kernels import arc_cosine, dual_activation
from .protocol import HeldOut, cross_validate, few_shot, hold_out, k_fold, leave_one_out
from .synthetic import SyntheticInterventions
from .targets.identify import TargetSearch, identify_targets
from .targets.ranking import rank_drugs
from .targets.signatures import disease_genes, log_fold_changes
from .targets.steiner import SteinerTree, exact_steiner_tree, inclusion_frequency, protein_network, steiner_tree
from .targets.upstream import GraphDraws, causal_graphs, edge_stability, upstream_genes

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

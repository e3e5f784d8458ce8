"""Plots. Each returns matplotlib Axes and never calls ``show``."""

from .calibration import coverage, predictive_check, rank_ecdf, rank_histogram
from .genes import enrichment, programmes
from .graphs import edge_calibration, edge_probabilities, graph, precision_recall, targets
from .imputation import imputation_scores, imputed_signature, pair_map
from .latents import effects, interventions, latent_pairs, predictions, similarity
from .ranks import drug_ranks
from .training import learning_curves, ood_curve

__all__ = [
    "coverage",
    "drug_ranks",
    "edge_calibration",
    "edge_probabilities",
    "effects",
    "enrichment",
    "graph",
    "imputation_scores",
    "imputed_signature",
    "interventions",
    "latent_pairs",
    "learning_curves",
    "ood_curve",
    "pair_map",
    "precision_recall",
    "predictions",
    "predictive_check",
    "programmes",
    "rank_ecdf",
    "rank_histogram",
    "similarity",
    "targets",
]

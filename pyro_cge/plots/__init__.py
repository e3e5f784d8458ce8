"""Plots. Each returns matplotlib Axes and never calls ``show``."""

from .calibration import coverage, predictive_check, rank_ecdf, rank_histogram
from .genes import enrichment, programmes
from .graphs import edge_calibration, edge_probabilities, graph, precision_recall, targets
from .latents import effects, interventions, latent_pairs, predictions, similarity
from .training import learning_curves, ood_curve

__all__ = [
    "coverage",
    "edge_calibration",
    "edge_probabilities",
    "effects",
    "enrichment",
    "graph",
    "interventions",
    "latent_pairs",
    "learning_curves",
    "ood_curve",
    "precision_recall",
    "predictions",
    "predictive_check",
    "programmes",
    "rank_ecdf",
    "rank_histogram",
    "similarity",
    "targets",
]

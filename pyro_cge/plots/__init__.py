"""Plots. Each returns matplotlib Axes and never calls ``show``."""

from .calibration import coverage, predictive_check, rank_ecdf, rank_histogram
from .genes import enrichment, programmes
from .latents import effects, interventions, latent_pairs, predictions, similarity
from .training import learning_curves, ood_curve

__all__ = [
    "coverage",
    "effects",
    "enrichment",
    "interventions",
    "latent_pairs",
    "learning_curves",
    "ood_curve",
    "predictions",
    "predictive_check",
    "programmes",
    "rank_ecdf",
    "rank_histogram",
    "similarity",
]

"""Plots. Each returns matplotlib Axes and never calls ``show``."""

from .latents import interventions, latent_pairs, predictions
from .training import learning_curves, ood_curve

__all__ = ["interventions", "latent_pairs", "learning_curves", "ood_curve", "predictions"]

"""Ground-truth simulator: random latent SCM, sparse observation map, designed environments."""

from .environments import (
    Environments,
    combinations,
    descriptors,
    graded_doses,
    multi_target,
    offsets,
    one_per_latent,
    random_shifts,
    reference,
)
from .truth import GroundTruth, growing_network, independent, observation_mask, simulator

__all__ = [
    "Environments",
    "GroundTruth",
    "combinations",
    "descriptors",
    "graded_doses",
    "growing_network",
    "independent",
    "multi_target",
    "observation_mask",
    "offsets",
    "one_per_latent",
    "random_shifts",
    "reference",
    "simulator",
]

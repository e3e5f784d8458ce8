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
from .peers import additive_sparse, latent_chain, sparse_shift
from .truth import GroundTruth, growing_network, independent, observation_mask, simulator

__all__ = [
    "Environments",
    "GroundTruth",
    "additive_sparse",
    "combinations",
    "descriptors",
    "graded_doses",
    "growing_network",
    "independent",
    "latent_chain",
    "multi_target",
    "observation_mask",
    "offsets",
    "one_per_latent",
    "random_shifts",
    "reference",
    "simulator",
    "sparse_shift",
]

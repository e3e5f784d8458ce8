"""Metrics: disentanglement, prediction, calibration, stability."""

from .calibration import coverage, holm, predictive_check, sbc_ranks, uniformity
from .disentanglement import (
    Matching,
    TargetRecovery,
    linear_r2,
    match_latents,
    mcc,
    moved_latents,
    target_recovery,
)
from .graphs import structural_hamming_distance
from .prediction import (
    mean_interval,
    pearson_per_profile,
    r2_per_gene,
    r2_per_profile,
    rank_among,
    reconstruction_loss,
    summarise,
    top_gene_overlap,
)
from .stability import Stability, stability

__all__ = [
    "Matching",
    "Stability",
    "TargetRecovery",
    "coverage",
    "holm",
    "linear_r2",
    "match_latents",
    "mcc",
    "mean_interval",
    "moved_latents",
    "pearson_per_profile",
    "predictive_check",
    "r2_per_gene",
    "r2_per_profile",
    "rank_among",
    "reconstruction_loss",
    "sbc_ranks",
    "stability",
    "structural_hamming_distance",
    "summarise",
    "target_recovery",
    "top_gene_overlap",
    "uniformity",
]

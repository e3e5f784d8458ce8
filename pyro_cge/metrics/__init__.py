"""Metrics: disentanglement, prediction, calibration, stability, graphs."""

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
from .graphs import (
    EdgeCalibration,
    EdgeRecovery,
    edge_aupr,
    edge_calibration,
    edge_recovery,
    essential_distance,
    structural_hamming_distance,
    structural_intervention_distance,
    target_precision_recall,
)
from .imputation import imputation_scores
from .prediction import (
    mean_interval,
    means,
    pearson_per_profile,
    per_profile,
    r2_per_gene,
    r2_per_profile,
    rank_among,
    reconstruction_loss,
    summarise,
    t_interval,
    top_gene_overlap,
)
from .retrieval import retrieval_scores
from .stability import Stability, stability

__all__ = [
    "EdgeCalibration",
    "EdgeRecovery",
    "Matching",
    "Stability",
    "TargetRecovery",
    "coverage",
    "edge_aupr",
    "edge_calibration",
    "edge_recovery",
    "essential_distance",
    "holm",
    "imputation_scores",
    "linear_r2",
    "match_latents",
    "mcc",
    "mean_interval",
    "means",
    "moved_latents",
    "pearson_per_profile",
    "per_profile",
    "predictive_check",
    "r2_per_gene",
    "r2_per_profile",
    "rank_among",
    "reconstruction_loss",
    "retrieval_scores",
    "sbc_ranks",
    "stability",
    "structural_hamming_distance",
    "structural_intervention_distance",
    "summarise",
    "t_interval",
    "target_precision_recall",
    "target_recovery",
    "top_gene_overlap",
    "uniformity",
]

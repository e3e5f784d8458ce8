"""Metrics: disentanglement and prediction."""

from .disentanglement import (
    Matching,
    TargetRecovery,
    linear_r2,
    match_latents,
    mcc,
    moved_latents,
    target_recovery,
)
from .prediction import pearson_per_profile, r2_per_gene, r2_per_profile, reconstruction_loss, summarise

__all__ = [
    "Matching",
    "TargetRecovery",
    "linear_r2",
    "match_latents",
    "mcc",
    "moved_latents",
    "pearson_per_profile",
    "r2_per_gene",
    "r2_per_profile",
    "reconstruction_loss",
    "summarise",
    "target_recovery",
]

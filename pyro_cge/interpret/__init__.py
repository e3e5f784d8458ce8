"""Reading a fitted model in genes: programmes, enrichment, drug targets, classes of drugs."""

from .classes import ClassAuc, latent_similarity, same_class_auc
from .effects import environment_effects, relative_effects, strongest_latent_effects
from .enrichment import over_representation, rank_enrichment, read_gmt, read_weighted_sets
from .programmes import gene_interactions, gene_programmes, profile_programmes, top_genes
from .targets import summarise_ranks, target_ranks

__all__ = [
    "ClassAuc",
    "environment_effects",
    "gene_interactions",
    "gene_programmes",
    "latent_similarity",
    "over_representation",
    "profile_programmes",
    "rank_enrichment",
    "read_gmt",
    "read_weighted_sets",
    "relative_effects",
    "same_class_auc",
    "strongest_latent_effects",
    "summarise_ranks",
    "target_ranks",
    "top_genes",
]

"""What the results page compares: our figure, whose figures it stands against, and which way is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Claim:
    """Paths lead into ``figures`` of a benchmark's ``figures.json``, keys joined by ``/``."""

    benchmark: str
    question: str
    ours: str
    others: Mapping[str, str]
    name: str = "ours"
    higher: bool = True
    interval: str | None = field(default=None)  # of the gain over the best other: [low, high] or [mean, low, high]


RECOVERY = {
    "d5_linear": "5 causes, linear genes",
    "d5_mlp": "5 causes, neural genes",
    "d15_linear": "15 causes, linear genes",
    "d15_mlp": "15 causes, neural genes",
}

CLAIMS = (
    *(
        Claim(
            "recovery",
            f"true noise recovered (MCC), growing network, {what}",
            f"z_mcc/{key}",
            {
                "in-loop softmax": f"in_loop_softmax/z_mcc/{key}",
                "dense, not rotated": f"without_rotation/z_mcc/{key}",
            },
            name="rotate and refit",
        )
        for key, what in RECOVERY.items()
    ),
    *(
        Claim(
            "recovery",
            f"intervened latent named, growing network, {what}",
            f"target_accuracy/{key}",
            {
                "in-loop softmax": f"in_loop_softmax/target_accuracy/{key}",
                "dense, not rotated": f"without_rotation/target_accuracy/{key}",
            },
            name="rotate and refit",
        )
        for key, what in RECOVERY.items()
    ),
    *(
        Claim(
            "latent_graph",
            f"edges of the latent graph wrong (SHD), {kind} interventions, {d} latents, {when}",
            f"shd/{kind}_d{d}/{ours}",
            {name: f"shd/{kind}_d{d}/{theirs}" for name, theirs in others.items()},
            name="LearnedSCM",
            higher=False,
        )
        for when, ours, others in (
            ("order search", "shd_start", {"empty graph": "shd_empty", "random graph": "shd_chance"}),
            ("after SVI", "shd", {"order search alone": "shd_start"}),
        )
        for kind in ("hard", "mechanism")
        for d in (5, 10)
    ),
    Claim(
        "invariance",
        "environment read from the latents by a fresh critic (accuracy)",
        "critic_accuracy_z_count",
        {"plain noise Z": "critic_accuracy_z", "the truth": "critic_accuracy_truth_count"},
        name="adversarial prior",
        higher=False,
    ),
    Claim(
        "knockdown_targets",
        "silenced gene named first, unseen wells of a real knock-down plate",
        "top1_model",
        {"z-score": "top1_zscore"},
        name="rotated latents",
        interval="gain/well",
    ),
    Claim(
        "knockdown_targets",
        "silenced gene named first, against z-scores relative to the gene's other wells",
        "top1_model",
        {"relative z-score": "top1_zscore_relative"},
        name="rotated latents",
        interval="gain/well_relative",
    ),
    Claim(
        "mechanism_classes",
        "same mechanism of action (AUC), real L1000, against the signatures",
        "auc_model",
        {"signature correlation": "auc_signature"},
        name="latent programme",
        interval="gain/signature correlation",
    ),
    Claim(
        "mechanism_classes",
        "same mechanism of action (AUC), real L1000, against principal components whitened within drugs",
        "auc_model",
        {"PCA-100, whitened": "auc_pca_whitened"},
        name="latent programme",
        interval="gain/PCA-100, whitened within drugs",
    ),
    Claim(
        "mechanism_classes",
        "same mechanism of action (AUC), real L1000, against fingerprints",
        "auc_model",
        {"Tanimoto": "auc_tanimoto"},
        name="latent programme",
        interval="gain/Tanimoto of fingerprints",
    ),
)

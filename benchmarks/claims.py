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

OTHERS = (  # on the peers' simulators: models without a model, and ours with sparsity in the loop
    "PCA, means rotated",
    "FastICA",
    "PCA",
    "mean effects added",
    "basic",
    "conditional",
    "environment",
    "translation",
    "structured",
    "structured_translation",
    "adversarial",
    "sams",
    "svae_plus",
    "discrepancy",
    "dense",
)

IMPUTERS = (
    "context mean",
    "action mean",
    "fixed effects",
    "shrunk mean",
    "DNPP",
    "FaLRTC",
    "masked CP",
    "NTK",
    "synthetic interventions (actions)",
    "synthetic interventions (contexts)",
    "environment model",
)
SCORES = {"r": "pooled r", "r2": "R² of a signature", "cosine": "cosine of a signature"}

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
    Claim(
        "paper",
        "latents off the true axes, two independent latents (degrees), section 6.1",
        "rotated_angle_error_deg",
        {"dense, not rotated": "dense_angle_error_deg"},
        name="rotated",
        higher=False,
    ),
    Claim(
        "paper",
        "loss at an offset of 20 over the basic VAE's, section 6.3",
        "ood_ratio_6_3",
        {"basic VAE": "ood_ratio_6_3_by_model/wide, described/basic/ratio"},
        name="translation, weight decay",
        higher=False,
    ),
    Claim(
        "paper",
        "loss a gene in environments never seen, section 6.4, against a basic VAE trained as long",
        "ood_6_4/dense, rotated",
        {"basic VAE": "ood_6_4/basic, as long"},
        name="dense, rotated and refitted",
        higher=False,
        interval="ood_6_4_rotated_gain",
    ),
    *(
        Claim(
            "paper",
            "loss a gene in environments never seen, section 6.4",
            f"ood_6_4/{model}",
            {"basic VAE": "ood_6_4/basic"},
            name=name,
            higher=False,
            interval=f"ood_6_4_gain/{model}",
        )
        for model, name in (
            ("translation", "Translation VAE"),
            ("environment", "Environment VAE"),
            ("structured", "structured VAE"),
            ("conditional", "Conditional VAE"),
        )
    ),
    *(
        Claim(
            "simulators",
            question,
            ours,
            {name: f"{kind}/{name}" for kind in (f"{part}_in_loop", f"{part}_trivial") for name in OTHERS},
            higher=higher,
        )
        for question, part, ours, higher in (
            ("true noise recovered (MCC), sparse-shift counts", "sparse_shift", "sparse_shift_mcc", True),
            ("true noise recovered (MCC), additive sparse shifts", "additive", "additive_mcc", True),
            ("unseen double interventions of the latent chain (MMD)", "chain", "chain_mmd_double", False),
        )
    ),
    *(
        Claim(
            "l1000_models",
            f"expression of {what} (mean r of a profile), real L1000",
            f"{key}/{ours}",
            {
                name: f"{key}/{path}"
                for name, path in {
                    "additive": "additive",
                    "drug mean": "drug_mean",
                    "compound mean": "compound_mean",
                    "20 neighbours": "knn_20",
                    "kernel ridge": "kernel_ridge",
                }.items()
            },
            name=name,
        )
        for what, key, ours, name in (
            (
                "compounds never seen",
                "l1000_unseen_r",
                "kernel_annotated",
                "environment model, kernel prior, annotations",
            ),
            ("compounds never seen", "l1000_unseen_r", "kernel", "environment model, kernel prior"),
            ("compounds never seen", "l1000_unseen_r", "conditional", "Conditional VAE"),
            ("compounds never seen", "l1000_unseen_r", "environment", "Environment VAE"),
            ("drug × cell pairs never seen", "unseen_pairs_r", "kernel", "environment model, kernel prior"),
            ("cell lines never seen", "unseen_cell_lines_r", "kernel", "environment model, kernel prior"),
            ("doses never seen", "unseen_doses_r", "kernel", "environment model, kernel prior"),
        )
    ),
    *(
        Claim(
            "explosion",
            f"held-out bound with a robust likelihood (nats a profile), {what}",
            f"held_out_bound/{what}/student_t",
            {"Gaussian likelihood": f"held_out_bound/{what}/gaussian"},
            name="Student-t",
            interval=f"student_t_gain/{what}",
        )
        for what in ("Student-t, basic", "plates, basic")
    ),
    *(
        Claim(
            "peers",
            f"samples a second, one thread, batch 128, against {peer}",
            f"samples_per_s/tensors, batch 128/{ours}",
            {peer: f"samples_per_s/tensors, batch 128/{peer}"},
            name=ours.removeprefix("ours: "),
        )
        for ours, peer in (
            ("ours: basic", "paper's code: basic"),
            ("ours: environment", "paper's code: environment"),
            ("ours: sams_vae", "SAMS-VAE's code, 1 particle"),
            ("ours: svae_plus", "SAMS-VAE's code: sVAE+"),
            ("ours: svae_plus, counts", "sVAE+'s code (counts)"),
        )
    ),
    *(
        Claim(
            "structure",
            f"{what} wrong, targets unknown, {group}",
            f"unknown_target_{key}_by_contender/{group}/OrderSearch",
            {
                who: f"unknown_target_{key}_by_contender/{group}/{who}"
                for who in ("UtIgsp", "FLOP, pooled", "FLOP, control only", "empty graph")
            },
            name="OrderSearch",
            higher=False,
        )
        for key, what in (("shd", "edges"), ("essential", "pairs of the equivalence class"))
        for group in (
            "ER2 d20 soft",
            "ER2 d20 hard",
            "SF4 d20 soft",
            "SF4 d20 hard",
            "ER4 d20 soft",
            "ER4 d20 hard",
            "ER2 d50 soft",
        )
    ),
    *(
        Claim(
            "structure",
            f"edges wrong, targets unknown, 20 genes, {what}",
            f"misspecified_shd/{what}/OrderSearch",
            {who: f"misspecified_shd/{what}/{who}" for who in ("UtIgsp", "FLOP, pooled", "empty graph")},
            name="OrderSearch",
            higher=False,
        )
        for what in (
            "mean shifts only",
            "nonlinear mechanisms",
            "50 cells an environment",
            "50 cells, control too",
            "Laplace noise",
            "skewed noise",
            "heavy-tailed noise",
            "uniform noise",
            "a hidden confounder",
            "two hidden confounders",
        )
    ),
    *(
        Claim(
            "structure",
            f"edges wrong, observations of {group}",
            f"observational_shd/{group}/OrderSearch",
            {
                who: f"observational_shd/{group}/{who}"
                for who in (
                    "FLOP",
                    "BOSS (causal-learn)",
                    "GRaSP (causal-learn)",
                    "GES (causal-learn)",
                    "DAGMA",
                    "empty graph",
                )
            },
            name="OrderSearch",
            higher=False,
        )
        for group in ("ER2 d100 standardised", "ER4 d100 standardised", "SF4 d100 standardised")
    ),
    *(
        Claim(
            "large_graphs",
            f"{what}, 1,000 genes, standardised",
            f"d1000/ours/{key}",
            {
                "FLOP, no restarts": f"d1000/FLOP/{key}",
                "order of variances": f"d1000/by variance/{key}",
                "no edges": f"d1000/no edges/{key}",
            },
            name="LargeOrderSearch",
            higher=False,
        )
        for key, what in (("shd", "edges wrong of 2,000"), ("cpu_s", "CPU seconds"))
    ),
    *(
        Claim(
            "nonlinear",
            f"edges wrong of 40, nonlinear mechanisms, {family}",
            f"nonlinear_shd/{family}",
            {
                who: f"others_shd/{who}/{family}"
                for who in ("empty graph", "OrderSearch (linear)", "order by variance", "cold: mlp, trace-exponential")
            },
            name="NonparametricSCM",
            higher=False,
        )
        for family in ("mlp", "gp", "gp-add")
    ),
    *(
        Claim(
            "imputation",
            f"drug × cell line never measured, real level-5 L1000, {what}",
            f"l5_{key}/NTKGP",
            {who: f"l5_{key}/{who}" for who in IMPUTERS},
            name="NTKGP",
        )
        for key, what in {**SCORES, "seen_profile_r": "r of a profile, drug seen in two other lines"}.items()
    ),
    Claim(
        "imputation",
        "drug × dose never measured, one L1000 plate, pooled r",
        "plate_r_by_method/NTKGP",
        {who: f"plate_r_by_method/{who}" for who in IMPUTERS},
        name="NTKGP",
    ),
    *(
        Claim(
            "imputation",
            f"a new cell line with {b} experiments, pooled r",
            f"few_r/{b}/NTKGP",
            {who: f"few_r/{b}/{who}" for who in IMPUTERS},
            name="NTKGP",
        )
        for b in (2, 10)
    ),
    Claim(
        "imputation",
        "drug × cell line, simulated cell under a real pattern of missing pairs, pooled r with the truth",
        "semi_true_r/NTKGP",
        {who: f"semi_true_r/{who}" for who in IMPUTERS},
        name="NTKGP",
    ),
    *(
        Claim(
            "active_design",
            f"distance to the wanted state after 50 interventions, {graph} graph of 10",
            f"civ_{graph}",
            {
                "random": f"{graph}/random",
                "greedy": f"{graph}/greedy",
                "largest variance": f"{graph}/max_variance",
            },
            name="CIV",
            higher=False,
        )
        for graph in ("complete", "path")
    ),
    *(
        Claim(
            "cross_modal",
            f"RNA and ATAC of one cell, sci-CAR, {what}",
            f"{key}/ours, anchors 1",
            {who: f"{key}/{who}, anchors 1" for who in ("ridge", "CCA", "CCA regularised")},
            higher=higher,
        )
        for key, what, higher in (
            ("sci_car_knn50", "partner among 50 nearest", True),
            ("sci_car_foscttm", "share closer than the partner", False),
            ("sci_car_transfer_to_rna", "time of treatment carried over", True),
        )
    ),
    Claim(
        "targets",
        "drivers of a simulated disease among 30 drug targets (AUC)",
        "known_auc",
        {
            "degree": "known_auc_degree",
            "own change": "known_auc_own_change",
            "genes of the Steiner tree": "known_auc_tree",
        },
        name="causal graphs",
    ),
    Claim(
        "targets",
        "RIPK1's rank among the study's 14 targets, 74 cells",
        "covid_ripk1_rank",
        {"degree": "covid_rankings/degree in the network/ripk1_rank"},
        name="causal graphs",
        higher=False,
    ),
)

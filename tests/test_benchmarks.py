"""Every benchmark keeps the contract: ``--quick`` ends with one ``figures:`` line and writes its JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
KEYS = {
    "large_graphs": {"d1000_shd", "big_tpr", "big_fdr", "big_cpu_s", "big_standardised_tpr", "big_standardised_fdr"},
    "faithfulness": {"share_strong", "share_adjacency", "draws"},
    "explosion": {"exploded", "non_finite", "student_t_gain"},
    "peers": {"samples_per_s_ratio", "held_out"},
    "paper": {"angle_sd_deg", "rotated_angle_error_deg", "ood_ratio_6_3", "ood_6_4"},
    "recovery": {"z_mcc", "target_accuracy", "without_rotation"},
    "latent_graph": {"shd"},
    "svi_overhead": {"ratio_l1000", "ratio_tiny", "samples_per_s_restated"},
    "scaling": {
        "slope_n",
        "slope_g",
        "slope_e",
        "slope_e_names",
        "slope_d",
        "slope_d_structured",
        "speedup_2",
        "speedup_2_cpu",
    },
    "ensemble": {"ratio_16", "ratio_l1000_member"},
    "faults": {
        "kills",
        "unloadable",
        "resume_differs",
        "bad_inputs",
        "foreign_tracebacks",
        "silent",
        "flips_undetected",
        "pickles_executed",
        "non_finite",
    },
    "out_of_core": {"ratio_stream", "peak_gb", "peak_gb_sparse"},
    "l1000_models": {"non_finite", "last_over_best", "val_r", "l1000_unseen_r", "coverage_90", "leak"},
    "simulator": {"cells_per_s", "ratio_noise"},
    "simulators": {
        "sparse_shift_mcc",
        "sparse_shift_f1",
        "additive_f1",
        "additive_mcc",
        "chain_shd",
        "chain_mmd_double",
    },
    "structure": {
        "unknown_target_shd",
        "target_precision",
        "target_recall",
        "misspecified_shd",
        "std_er2_d100_shd",
        "rescaled_distance",
        "edge_calibration_error",
        "edge_calibration_largest_bin",
    },
    "active_design": {"civ_complete", "civ_path", "complete", "path", "unknown_graph", "latent"},
    "deep_ntk": {"gap_hilbert", "agreement", "accuracy"},
    "cross_modal": {"sci_car_knn50", "sci_car_knn5", "sci_car_foscttm", "sci_car_transfer_to_rna"},
    "interpolation": {"alignment_cosine", "alignment_separation", "interpolation_loss", "attractors"},
    "imputation": {"l5_r", "l5_r2", "l5_cosine", "gp_coverage_90", "plate_r", "fold_cpu_s", "semi_r"},
    "targets": {"covid_ripk1_rank", "covid_overlap", "covid_stability", "known_auc", "known_auc_degree"},
    "knockdown_targets": {"top1_model", "top1_zscore", "top1_model_env", "top1_zscore_env"},
    "mechanism_classes": {"auc_model", "auc_signature", "auc_pca", "auc_tanimoto"},
    "nonlinear": {"nonlinear_shd", "linear_parity"},
    "invariance": {
        "critic_accuracy_z",
        "critic_accuracy_z_count",
        "chance",
        "irm_ood_ratio",
        "irm_penalty_ratio",
    },
}
# Lower is better here; the interval is of the gain.
PAIRS = [
    (1.0, 2.0, None, "ahead"),
    (2.0, 1.0, None, "behind"),
    (1.0, 1.0, None, "level"),
    (1.0, 2.0, (0.5, 1.5), "ahead"),
    (1.0, 2.0, (-0.5, 2.5), "level"),
    (2.0, 1.0, (-1.5, -0.5), "behind"),
]


def test_every_benchmark_is_listed_and_has_a_conclusion():
    assert {p.parent.name for p in FOLDER.glob("*/run.py")} == set(KEYS)
    assert all((FOLDER / name / "README.md").exists() for name in KEYS)


def test_results_page_is_what_the_figures_say():
    """``python benchmarks/report.py`` writes it; a figure is not edited by hand."""
    code = "import report; print(report.page(), end='')"
    page = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, check=True, capture_output=True, text=True).stdout
    assert (FOLDER / "README.md").read_text() == page


def test_structure_is_what_its_rows_say():
    """``run.py --derive`` makes figures and tables of the committed rows; each row names what it was measured with."""
    folder = FOLDER / "structure"
    code = (
        "import sys, json; sys.path.insert(0, '..'); from pathlib import Path; import figures, tables; "
        "measured = figures.read(Path('rows')); text = Path('README.md').read_text(); "
        "print(json.dumps([figures.derive(measured), tables.filled(text, measured) == text, "
        "[len(one) for one in measured.values()], "
        "all(one[['seed', 'limit', 'commit', 'hardware']].notna().all(None) for one in measured.values())]))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True).stdout
    figures, tables_follow, rows, complete = json.loads(out)
    record = json.loads((folder / "figures.json").read_text())
    assert record["figures"] == figures
    assert tables_follow and complete
    assert record["arguments"]["rows"] == str(sum(rows))


@pytest.mark.parametrize("ours, theirs, interval, verdict", PAIRS)
def test_verdicts(ours, theirs, interval, verdict):
    code = (
        "from claims import Claim; from report import find; "
        f"figures = {{'a': {ours}, 'b': {theirs}, 'gain': {interval}}}; "
        "print(find(Claim('x', 'q', 'a', {'b': 'b'}, higher=False, interval='gain'), figures).verdict)"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, check=True, capture_output=True, text=True).stdout
    assert out.strip() == verdict


@pytest.mark.slow
@pytest.mark.parametrize("name", KEYS)
def test_quick_run(name, tmp_path):
    command = [sys.executable, str(FOLDER / name / "run.py"), "--quick", "--out", str(tmp_path)]
    last = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1]
    assert last.startswith("figures: ")
    figures = json.loads(last.removeprefix("figures: "))
    record = json.loads((tmp_path / "figures.json").read_text())
    assert set(figures) >= KEYS[name] and record["figures"] == figures
    assert record["versions"]["torch"] and record["commit"] and record["arguments"]["seeds"]

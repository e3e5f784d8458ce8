"""Which imputer predicts the pair of context and action that nobody measured? One protocol, three metrics, every method.

``--data`` is the folder of the L1000 files (``l1000_level5_gps24``, ``l1000_level2mean_squires20x24``, one LJP005 plate, the
availability table); without it only the simulated problem and the full-size fold are run. Sections: ``level5`` (ten folds
within each cell line), ``few`` (``b`` training actions in a new cell line), ``squires`` (leave one out), ``plate`` (doses as
contexts), ``semi`` (a simulated cell under the real pattern of missing pairs, with the noise-free effects as
ceiling), ``study`` (the same with 1,000 actions, one seed), ``fold``
(18,000 training pairs).

``figures``: ``l5_r``, ``l5_r2``, ``l5_cosine`` and ``l5_seen_profile_r`` (pairs whose action has two training pairs or more) by
method, ``gp_coverage_90``, ``plate_r``, ``fold_cpu_s``, and the same for the other sections. Means over seeds. Every row measured is
kept in ``scores.csv`` with its commit; a run replaces the rows of its sections, and figures follow from the whole file.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import problems
from contract import finish, measured, options

import pyro_cge as cge
from pyro_cge.imputation import (
    DNPP,
    NTKGP,
    ActionMean,
    BayesianSyntheticInterventions,
    ContextMean,
    Effects,
    EnvironmentImputer,
    FaLRTC,
    FixedEffects,
    MaskedCP,
    NTKCompletion,
    ShrunkMean,
    SyntheticInterventions,
    TwoWayMean,
    few_shot,
    hold_out,
    k_fold,
    leave_one_out,
)
from pyro_cge.metrics import imputation_scores

SCORES = Path(__file__).parent / "scores.csv"
SCORED = ("r", "r2", "cosine", "seen_profile_r", "true_r", "median_r2", "median_cosine")
SECTIONS = ("level5", "few", "squires", "plate", "semi", "study", "fold")
STUDY = ("context mean", "DNPP", "FaLRTC", "NTK", "NTKGP")  # the rows of the PNAS study's table, and ours
SLOW = ("environment model", "masked CP", "FaLRTC", "synthetic interventions (Bayesian)")


def methods(seed: int) -> dict[str, Callable[[], Any]]:
    """Every row of the tables, made afresh for each fold set."""
    return {
        "context mean": ContextMean,
        "action mean": ActionMean,
        "two-way mean": TwoWayMean,
        "fixed effects": FixedEffects,
        "shrunk mean": ShrunkMean,
        "DNPP": DNPP,
        "FaLRTC": lambda: FaLRTC(n_components=100, dtype=torch.float32, progress=False),
        "masked CP": lambda: MaskedCP(rank=10, random_state=seed),
        "synthetic interventions (actions)": SyntheticInterventions,
        "synthetic interventions (contexts)": lambda: SyntheticInterventions(donors="contexts"),
        "synthetic interventions (Bayesian)": lambda: BayesianSyntheticInterventions(
            donors="contexts", progress=False, random_state=seed
        ),
        "environment model": lambda: EnvironmentImputer(
            lambda data: cge.dense_vae(data, d=40, hidden=(256,)),
            epochs=40,
            lr=3e-3,
            schedule="one_cycle",
            validation=None,
            patience=None,
            progress=False,
            random_state=seed,
        ),
        "NTK": NTKCompletion,
        "NTK with DNPP prior": lambda: NTKCompletion(feature=DNPP()),
        "NTKGP": lambda: NTKGP(random_state=seed),
    }


def measure(
    name: str,
    seed: int,
    effects: Effects,
    folds: Iterable[Any],
    wanted: Iterable[str],
    exact: np.ndarray | None = None,
) -> Iterator[dict[str, Any]]:
    """Scores of every method on the same folds. ``exact``: the effects without noise."""
    parts = list(folds)
    seen = np.concatenate([problems.seen_elsewhere(effects, train, test) for train, test in parts])
    if exact is not None:
        tested = np.concatenate([test for _, test in parts])
        ceiling = imputation_scores(effects.x[tested], exact[tested])
        yield {"section": name, "seed": seed, "method": "noise-free effects", **ceiling}
    for label, make in methods(seed).items():
        if label not in wanted:
            continue
        try:
            held = hold_out(make(), effects, parts, progress=False)
        except cge.errors.ConfigError as error:  # an optional package that is not here
            print(f"{name:10} {label}: left out ({error})", flush=True)
            continue
        row = {"section": name, "seed": seed, "method": label, **held.scores(effects)}
        if seen.any():
            row["seen_profile_r"] = held.scores(effects, rows=seen)["profile_r"]
        median = held.scores(effects, "median")
        row |= {"median_r2": median["r2"], "median_cosine": median["cosine"]}
        if exact is not None:
            row |= {f"true_{k}": v for k, v in imputation_scores(exact[held.rows], held.mean).items()}
        print(
            f"{name:10}{seed:3}  {label:36}" + "  ".join(f"{k} {row[k]:7.3f}" for k in ("r", "r2", "cosine")),
            f"  cover {row.get('coverage_90', np.nan):.2f}  {row['cpu_s']:7.1f} s",
            flush=True,
        )
        yield row


def semi(name: str, folder: Path | None, seeds: int, wanted: Iterable[str], **size: int) -> Iterator[dict[str, Any]]:
    """The simulated cell, another one a seed."""
    for seed in range(seeds):
        effects, exact = problems.semi_synthetic(folder, seed, **size)
        yield from measure(name, seed, effects, k_fold(effects, 5, random_state=seed), wanted, exact)


def sections(
    wanted: Iterable[str], chosen: set[str], folder: Path | None, seeds: int, quick: bool
) -> Iterator[dict[str, Any]]:
    """Rows of the wanted sections, as they are measured."""
    if "fold" in wanted:  # first: its peak memory is the process's
        yield from fold()
    if folder is not None and not quick:
        if {"level5", "few"} & set(wanted):
            table = problems.level5(folder)
        for seed in range(seeds):
            if "level5" in wanted:
                yield from measure("level5", seed, table, k_fold(table, 10, random_state=seed), chosen)
            if "few" in wanted:
                for b in (2, 10):
                    folds = few_shot(table, b, random_state=seed)
                    yield from measure(f"few {b}", seed, table, folds, chosen - set(SLOW))
            if "plate" in wanted:
                doses = problems.plate(folder)
                yield from measure("plate", seed, doses, k_fold(doses, 10, random_state=seed), chosen)
        if "squires" in wanted:
            early = problems.squires(folder)
            yield from measure("squires", 0, early, leave_one_out(early), chosen - set(SLOW))
    if "semi" in wanted:
        size = {"n_actions": 60, "n_contexts": 8, "n_genes": 60} if quick else {}
        yield from semi("semi", folder, seeds, chosen, **size)
    if "study" in wanted:
        yield from semi("study", folder, 1, chosen & set(STUDY), n_actions=1000)


def fold() -> Iterator[dict[str, Any]]:
    """Processor seconds and memory of one fit and prediction of NTKGP at 18,000 training pairs."""
    effects = problems.full_size(0)
    train, test = np.arange(18_000), np.arange(18_000, 20_000)
    for dtype in ("float32", "float64"):  # in this order: peak memory only grows
        started = time.process_time()
        gp = NTKGP(dtype=dtype).fit(effects.take(train))
        mean = gp.predict(np.stack([effects.context[test], effects.action[test]], 1))
        seconds = time.process_time() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        row = {"section": "fold", "seed": 0, "method": f"NTKGP, {dtype}", **imputation_scores(effects.x[test], mean)}
        yield {**row, "cpu_s": round(seconds, 1), "peak_gb": round(peak, 2)}
        print(f"fold       {dtype}: {seconds:.1f} s, {peak:.2f} GB, r {row['r']:.3f}", flush=True)


def filled(text: str, results: pd.DataFrame) -> str:
    """The README with the tables between ``<!-- section -->`` and ``<!-- end -->`` made from these rows."""
    for name in dict.fromkeys(results["section"]):
        opening = f"<!-- {name} -->\n"
        if opening in text:
            before, rest = text.split(opening)
            text = before + opening + markdown(results[results["section"] == name]) + rest[rest.index("<!-- end -->") :]
    return text


def markdown(rows: pd.DataFrame) -> str:
    """One section: a row a method, means over seeds, best ``r`` first, the best of each column in bold."""
    shown = {
        "r": "pooled r",
        "r2": "R²",
        "cosine": "cosine",
        "seen_profile_r": "profile r, action seen twice",
        "true_r": "pooled r with the truth",
        "median_r2": "median R²",
        "median_cosine": "median cosine",
        "coverage_90": "in 90 % interval",
        "peak_gb": "peak GB",
        "cpu_s": "CPU s",
    }
    chosen = {k: v for k, v in shown.items() if k in rows and rows[k].notna().any()}
    means = rows.groupby("method", sort=False)[list(chosen)].mean().sort_values("r", ascending=False, kind="stable")
    lines = ["| method | " + " | ".join(chosen.values()) + " | seeds |", "|---" * (len(chosen) + 2) + "|"]
    for method, row in means.iterrows():
        cells = []
        for key, value in row.items():
            best = key in SCORED and value == means.drop(index="noise-free effects", errors="ignore")[key].max()
            text = "" if np.isnan(value) else f"{value:.3f}" if key not in ("cpu_s", "peak_gb") else f"{value:.3g}"
            cells.append(f"**{text}**" if best else text)
        cells.append(str(rows.loc[rows["method"] == method, "seed"].nunique()))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def by_method(table: pd.DataFrame, section_name: str, column: str) -> dict[str, float]:
    part = table[table["section"] == section_name]
    if column not in part:
        return {}
    means = part.groupby("method", sort=False)[column].mean().dropna()
    return {str(k): round(float(v), 4) for k, v in means.items()}


def main() -> None:
    parser = options(__doc__ or "", seeds=3)
    parser.add_argument("--data", type=Path, default=None, help="folder of the L1000 files (default: simulated only)")
    parser.add_argument("--derive", action="store_true", help="figures and tables of the rows kept; measures nothing")
    parser.add_argument("--methods", default=",".join(methods(0)), help="comma-separated (default all)")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="comma-separated (default all)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    wanted = ["semi"] if arguments.quick else [] if arguments.derive else arguments.sections.split(",")
    seeds = 1 if arguments.quick else arguments.seeds
    chosen = {name.strip() for name in arguments.methods.split(",")} - set(SLOW if arguments.quick else ())
    if unknown := chosen - set(methods(0)):
        parser.error(f"unknown methods {sorted(unknown)}; known are {', '.join(methods(0))}")
    folder = arguments.out or Path(__file__).parent / "results"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "scores.csv" if arguments.out or arguments.quick else SCORES
    results = keep([], path)
    for row in sections(wanted, chosen, arguments.data, seeds, arguments.quick):
        results = keep([row], path)
    if len(results):
        shown = results.drop(columns=["seed", "commit", "hardware"]).groupby(["section", "method"], sort=False)
        print(f"\n{shown.mean().round(3).to_string()}")
    if not (arguments.out or arguments.quick):
        readme = Path(__file__).parent / "README.md"
        readme.write_text(filled(readme.read_text(), results))
    finish(folder, derive(results), arguments, results.assign(hardware=results["hardware"].map(json.loads)).to_dict("records"))  # fmt: skip


def keep(rows: list[dict[str, Any]], path: Path) -> pd.DataFrame:
    """All rows measured so far: the new ones in place of those of the same section, seed and method."""
    now = measured()
    new = pd.DataFrame(rows).assign(commit=now["commit"], hardware=json.dumps(now["hardware"]))
    if path.is_file():
        old = pd.read_csv(path)
        key = ["section", "seed", "method"]
        replaced = pd.MultiIndex.from_frame(old[key]).isin(pd.MultiIndex.from_frame(new[key])) if len(new) else False
        new = pd.concat([old[~np.broadcast_to(replaced, len(old))], new], ignore_index=True)
    new.to_csv(path, index=False, float_format="%.6g")
    return new


def derive(results: pd.DataFrame) -> dict[str, Any]:
    """The figures of these rows."""
    figures: dict[str, Any] = {
        f"l5_{name}": by_method(results, "level5", name) for name in ("r", "r2", "cosine", "seen_profile_r", "cpu_s")
    }
    full = results[results["section"] == "fold"].set_index("method")
    return {
        **figures,
        "gp_coverage_90": by_method(results, "level5", "coverage_90").get("NTKGP"),
        "plate_r": by_method(results, "plate", "r").get("NTKGP"),
        "plate_r_by_method": by_method(results, "plate", "r"),
        "squires_median_cosine": by_method(results, "squires", "median_cosine"),
        "few_r": {str(b): by_method(results, f"few {b}", "r") for b in (2, 10)},
        "semi_r": by_method(results, "semi", "r"),
        "semi_true_r": by_method(results, "semi", "true_r"),
        "study_r": by_method(results, "study", "r"),
        "fold_cpu_s": float(full["cpu_s"]["NTKGP, float64"]) if len(full) else None,
        "fold_peak_gb": {str(k): float(v) for k, v in full["peak_gb"].items()} if len(full) else {},
    }


if __name__ == "__main__":
    main()

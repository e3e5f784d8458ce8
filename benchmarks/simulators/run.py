"""All models of the suite on the peers' simulators: are the true noise, the targets and the graph found?

Each result is kept as a small JSON in ``OUT/rows``; ``--resume`` skips those already there.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import chain as joined
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "recovery"))
import chain
import experiment as recovery
from contract import finish, options
from recipe import CASES, STEPS, Case, adapted, combined, latents, ours, own_targets, preset, threshold
from scoring import centre_of, environment_means, oracle, present, score, summary, trivial

import pyro_cge as cge
from pyro_cge.metrics import match_latents, target_recovery
from pyro_cge.presets import PRESETS

PAIRS = 50  # unseen combinations of the additive simulator
PARTS = (*CASES, "chain", "growing_network")
GROWING = ("d5_mlp", "d15_mlp")
TRIVIAL = ("random directions", "PCA", "FastICA", "PCA, means rotated", "no effect", "mean effects added")
Rows = dict[str, dict[str, Any]]
Job = tuple[dict[str, Any], Callable[[], Rows]]


def case_jobs(name: str, case: Case, seeds: int, few: int, steps: int) -> Iterator[Job]:
    for seed in range(seeds):
        yield {"part": name, "method": "ours", "seed": seed}, lambda s=seed: our_rows(name, case, s)
        yield {"part": name, "method": "trivial", "seed": seed}, lambda s=seed: trivial_rows(case, s)
        if seed < few:
            for model in PRESETS:
                key = {"part": name, "method": model, "seed": seed}
                yield key, lambda s=seed, m=model: preset_rows(case, m, s, steps)


@lru_cache(maxsize=1)
def world(case: Case, seed: int) -> tuple[cge.simulate.GroundTruth, cge.EnvironmentData, cge.EnvironmentData]:
    """A truth, profiles of the environments seen in training, and of those held out."""
    truth = case.truth(seed)
    return truth, *case.split(case.data(truth, seed))


def our_rows(name: str, case: Case, seed: int) -> Rows:
    truth, seen, held = world(case, seed)
    started = time.process_time()
    fits = ours(case, seen, seed)
    seconds = time.process_time() - started
    rows: Rows = {stage: score(latents(fit, seen), seen, own_targets(fit, seen)) for stage, fit in fits.items()}
    rows["ours"]["seconds"] = seconds
    if held.n:
        rows["ours"] |= held_out(fits["ours"], seen, held, seed)
    if name == "additive":
        for stage, fit in fits.items():
            rows[stage]["pair_error"] = pair_errors(truth, seen, seed, fit)["model"]
    return rows


def held_out(fit: cge.Fit, seen: cge.EnvironmentData, held: cge.EnvironmentData, seed: int) -> dict[str, float]:
    """Targets of environments not seen in training; assignment of latents and threshold come from those seen."""
    z, limit = latents(fit, seen), threshold(fit, seen)
    matching = match_latents(z, seen.truth.z)
    after = latents(adapted(fit, held, seed), held)
    shift = np.abs(environment_means(after, held, centre_of(z, seen)))[present(held)]
    recovery_ = target_recovery(shift, seen.truth.targets[present(held)], matching, threshold=limit)
    return {"f1_held_out": recovery_.f1, "mcc_held_out": match_latents(after, held.truth.z).mcc}


def pair_errors(
    truth: cge.simulate.GroundTruth, data: cge.EnvironmentData, seed: int, fit: cge.Fit | None = None
) -> dict[str, float]:
    """Squared error of the mean expression of unseen pairs, as a share of that of predicting the control's."""
    rng = np.random.default_rng(seed)
    names, treated = list(data.env_names), [e for e in range(data.n_envs) if e not in data.control]
    pairs = [tuple(rng.choice(treated, 2, replace=False)) for _ in range(PAIRS)]
    both = cge.simulate.combinations(truth.environments, [(names[a], names[b]) for a, b in pairs])
    there = truth.under(both)
    cells = [0] * len(names) + [1000] * PAIRS
    target, again = (_means(there.sample(cells, seed=seed + shift), PAIRS) for shift in (500, 501))
    x = torch.stack([data.x[data.env == e].mean(0) for e in range(data.n_envs)])
    control = x[data.control[0]]
    added = torch.stack([x[a] + x[b] - control for a, b in pairs])
    scale = (target - control).square().mean()
    guesses = {"mean effects added": added, "the truth, sampled again": again}
    if fit is not None:
        parts = [f"{names[a]}+{names[b]}" for a, b in pairs]
        guesses["model"] = combined(fit, data, parts, 1000, seed).unflatten(0, (PAIRS, 1000)).mean(1)
    return {name: float((guess - target).square().mean() / scale) for name, guess in guesses.items()}


def _means(data: cge.EnvironmentData, n: int) -> torch.Tensor:
    return data.x.unflatten(0, (n, -1)).mean(1)


def trivial_rows(case: Case, seed: int) -> Rows:
    truth, seen, _ = world(case, seed)
    rows: Rows = {name: score(z, seen) for name, z in trivial(seen, case.counts, case.d, seed).items()}
    fresh, _ = case.split(case.data(truth, seed + 1000))
    rows["oracle regression"] = oracle(seen, fresh, case.counts, seed, case.oracle)
    if not case.counts:
        rows |= {name: {"pair_error": error} for name, error in pair_errors(truth, seen, seed).items()}
        rows["no effect"] = {"pair_error": 1.0}
    return rows


def preset_rows(case: Case, model: str, seed: int, steps: int) -> Rows:
    truth, seen, _ = world(case, seed)
    started = time.process_time()
    fit, read = preset(model, seen, case.d, case.counts, seed, steps)
    row = score(latents(fit, read), read, own_targets(fit, read))
    if not case.counts and model != "conditional":  # whose decoder knows no sums of environments
        row["pair_error"] = pair_errors(truth, seen, seed, fit)["model"]
    return {model: {**row, "seconds": time.process_time() - started}}


def chain_jobs(seeds: int, few: int, steps: int, cells: int, file: Path | None) -> Iterator[Job]:
    sources: list[tuple[str, int, Callable[[], Any]]] = [
        ("chain", seed, lambda s=seed: chain.fresh(s, cells)) for seed in range(seeds)
    ]
    if file is not None:
        sources.append(("chain_published", 0, lambda: chain.published(file)))
    for part, seed, source in sources:
        yield {"part": part, "method": "ours", "seed": seed}, lambda g=source, s=seed: chain.ours(*g(), s)
        yield {"part": part, "method": "trivial", "seed": seed}, lambda g=source, s=seed: chain.trivial(*g(), s, cells)
        if seed < few:
            for model in PRESETS:
                key = {"part": part, "method": model, "seed": seed}
                yield key, lambda g=source, s=seed, m=model: {m: chain.in_loop(m, *g(), s, steps)}


def growing_jobs(seeds: int, few: int, steps: int) -> Iterator[Job]:
    for name in GROWING:
        case = recovery.SETTINGS[name]
        for seed in range(few):
            part = f"growing_network_{name}"
            yield {"part": part, "method": "ours", "seed": seed}, lambda c=case, s=seed: growing_rows(c, s)
            for model in PRESETS:
                key = {"part": part, "method": model, "seed": seed}
                yield key, lambda c=case, s=seed, m=model: growing_preset(c, m, s, steps)


def growing_rows(case: recovery.Case, seed: int) -> Rows:
    """The recipe of the recovery benchmark, and the trivial methods, scored as everything here."""
    data = case.data(seed)
    dense = recovery.train(case, data, recovery.PRIORS["dense"], seed)
    rotated = recovery.rotated(dense, data, case, seed)["rotated"]
    rows = {
        name: score(latents(fit, data), data, own_targets(fit, data))
        for name, fit in (("ours, dense", dense), ("ours", rotated))
    }
    return rows | {name: score(z, data) for name, z in trivial(data, False, case.causes, seed).items()}


def growing_preset(case: recovery.Case, model: str, seed: int, steps: int) -> Rows:
    data = case.data(seed)
    fit, read = preset(model, data, case.causes, False, seed, steps)
    return {model: score(latents(fit, read), read, own_targets(fit, read))}


def run(jobs: Iterator[Job], folder: Path, resume: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not resume:
        for path in folder.glob("*.json"):
            path.unlink()
    for key, job in sorted(jobs, key=lambda job: (job[0]["method"] in PRESETS, job[0]["seed"])):  # ours first
        path = folder / ("_".join(map(str, key.values())) + ".json")
        if path.exists():
            continue
        rows = job()
        path.write_text(json.dumps({**key, "rows": rows}, indent=1) + "\n")
        for method, values in rows.items():
            print(f"{key['part']:<24}{key['seed']:<3}{method:<26}{summary(values)}", flush=True)


def table_of(folder: Path) -> pd.DataFrame:
    records = []
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        records += [
            {"part": record["part"], "seed": record["seed"], "method": method, **values}
            for method, values in record["rows"].items()
        ]
    return pd.DataFrame(records).drop_duplicates(["part", "seed", "method"])


def figures_of(table: pd.DataFrame) -> dict[str, Any]:
    """Means over seeds; every table is printed, the best method first."""
    for part, rows in table.groupby("part", sort=False):
        groups = rows.drop(columns=["part"]).groupby("method")
        means = groups.mean().drop(columns="seed").dropna(axis=1, how="all")
        by = "mcc" if "mcc" in means else means.columns[0]
        means.insert(0, "seeds", groups["seed"].nunique())
        print(f"\n{part}\n{means.sort_values(by, ascending=False).round(3).to_string(na_rep='')}")
    figures: dict[str, Any] = {}
    wanted = {
        "sparse_shift": ("sparse_shift", {"mcc": "mcc", "f1": "f1", "f1_held_out": "f1_held_out"}),
        "sparse_shift_genes": ("sparse_shift_genes", {"mcc": "mcc", "f1": "f1", "f1_held_out": "f1_held_out"}),
        "additive": ("additive", {"mcc": "mcc", "f1": "f1", "overlap_f1": "mask_f1", "pair_error": "pair_error"}),
        "chain": ("chain", {"shd": "shd", "mmd_double": "mmd_double", "top1": "top1"}),
        "chain_published": ("chain_published", {"shd": "shd", "mmd_double": "mmd_double", "top1": "top1"}),
    }
    for part, (prefix, columns) in wanted.items():
        rows = table[(table["part"] == part) & (table["method"] == "ours")]
        if rows.empty:
            continue
        for key, column in columns.items():
            values = rows[column].astype(float)
            figures[f"{prefix}_{key}"] = _rounded(values.mean())
            figures[f"{prefix}_{key}_sd"] = _rounded(values.std())
        ceiling = table[(table["part"] == part) & (table["method"] == "oracle regression")]
        if not ceiling.empty:
            figures[f"{prefix}_ceiling"] = round(float(ceiling["mcc"].mean()), 4)
    for part in table["part"].unique():
        rows = table[table["part"] == part].set_index("method")
        measure = "mmd_double" if part.startswith("chain") else "mcc"
        for kind, names in (("in_loop", tuple(PRESETS)), ("trivial", TRIVIAL)):
            means = rows[rows.index.isin(names)].groupby("method")[measure].mean().dropna()
            if not means.empty:
                figures[f"{part}_{kind}"] = {str(m): round(float(v), 4) for m, v in means.items()}
        if part.startswith("growing"):
            figures[f"{part}_mcc"] = round(
                float(table[(table["part"] == part) & (table["method"] == "ours")]["mcc"].mean()), 4
            )
    return figures


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None


def main() -> None:
    parser = options(__doc__ or "", seeds=5)
    parser.add_argument(
        "--data", type=Path, help="the discrepancy-VAE's own instance of the chain (.npz, see chain.py)"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--preset-seeds", type=int, default=5, help="seeds of the models with sparsity in the loop")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps of each of those")
    parser.add_argument("--resume", action="store_true", help="keep the rows in OUT and add to them")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts, seeds, few, steps, cells = (
        arguments.parts,
        arguments.seeds,
        arguments.preset_seeds,
        arguments.steps,
        chain.CELLS,
    )
    cases = CASES
    if arguments.quick:
        small = {"profiles": 50, "epochs": 4, "hidden": (64,), "latents": 15, "oracle": 100}
        parts, seeds, few, steps, cells = ["sparse_shift", "additive", "chain"], 1, 1, 20, 256
        cases = {name: replace(case, **small) for name, case in CASES.items()}
    out = arguments.out or Path(__file__).parent / "results"
    folder = out / ("quick" if arguments.quick else "rows")
    jobs: dict[str, Iterator[Job]] = {n: case_jobs(n, c, seeds, few, steps) for n, c in cases.items()}
    jobs["chain"] = chain_jobs(seeds, few, steps, cells, arguments.data)
    jobs["growing_network"] = growing_jobs(seeds, few, steps)
    run(joined.from_iterable(jobs[part] for part in parts), folder, arguments.resume)
    finish(out, figures_of(table_of(folder)), arguments)


if __name__ == "__main__":
    main()

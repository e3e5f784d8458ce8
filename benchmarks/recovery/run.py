"""Are the true noise and the intervened latents recovered? Dense fit, dense fit + rotation, sparsity in the loop.

Each result is kept as a small JSON in ``OUT/rows``; ``--resume`` skips those already there, so a long run can be split
(``--settings``, ``--parts``) and put together: tables and figures are made from all rows found.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from contract import finish, options
from experiment import PRIORS, SETTINGS, Case, after_rotation, dense_and_rotated, in_loop

PARTS = ("settings", "degradation", "designs", "priors")
Row = dict[str, dict[str, float]]
Job = tuple[dict[str, Any], Callable[[], Row]]


def settings_jobs(cases: dict[str, Case], seeds: int, peers: int) -> Iterator[Job]:
    for seed in range(seeds):
        for name, case in cases.items():
            yield {"part": "settings", "row": name, "seed": seed}, lambda c=case, s=seed: dense_and_rotated(c, s)
            if seed < peers:
                key = {"part": "peers", "row": name, "seed": seed}
                yield key, lambda c=case, s=seed: in_loop(c, s, "softmax")


def degraded(case: Case) -> dict[str, list[tuple[float, Case]]]:
    d = case.causes
    return {
        "environments per latent": [(k, replace(case, environments=k * d)) for k in (1, 2, 3)],
        "profiles per environment": [(n, replace(case, profiles=n)) for n in (20, 50, 100)],
        "variance of the shifts": [(v, replace(case, variance=v)) for v in (0.25, 1.0, 2.5)],
        "latents per cause": [(r, replace(case, latents=round(r * d))) for r in (1, 2, 3)],
    }


def degradation_jobs(cases: dict[str, Case], seeds: int) -> Iterator[Job]:
    for seed in range(seeds):
        for name, case in cases.items():
            for what, steps in degraded(case).items():
                for value, harder in steps:
                    key = {"part": "degradation", "row": f"{name}, {what}", "value": value, "seed": seed}
                    yield key, lambda c=harder, s=seed: dense_and_rotated(c, s)


def design_jobs(cases: dict[str, Case], seeds: int) -> Iterator[Job]:
    for seed in range(seeds):
        for name, case in cases.items():
            for design, moves in (("two targets", "loc"), ("scale only", "scale"), ("scale only", "both")):
                other = replace(case, design=design)
                key = {"part": "designs", "row": f"{name}, {design}, prior moves {moves}", "seed": seed}
                yield key, lambda c=other, s=seed, m=moves: dense_and_rotated(c, s, m)


def prior_jobs(cases: dict[str, Case], seeds: int) -> Iterator[Job]:
    for seed in range(seeds):
        for name, case in cases.items():
            yield (
                {"part": "rotated priors", "row": name, "seed": seed},
                (lambda c=case, s=seed: after_rotation(c, s, list(PRIORS))),
            )
            for prior in PRIORS:
                key = {"part": "priors", "row": name, "prior": prior, "seed": seed}
                yield key, lambda c=case, s=seed, p=prior: in_loop(c, s, p)


def run(jobs: Iterator[Job], folder: Path, resume: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not resume:
        for path in folder.glob("*.json"):
            path.unlink()
    for key, job in jobs:
        name = "_".join(str(v).replace(" ", "-").replace(",", "") for v in key.values())
        path = folder / f"{name}.json"
        if resume and path.exists():
            continue
        scores = job()
        path.write_text(json.dumps({**key, "scores": scores}, indent=1) + "\n")
        for variant, values in scores.items():
            about = f"MCC {values['z_mcc']:.4f} of {values['ceiling']:.4f}, target {values['target_accuracy']:.3f}"
            print(f"{name:<60}{variant:<20}{about}  {values['seconds']:.0f} s", flush=True)


def table_of(folder: Path) -> pd.DataFrame:
    records = []
    for path in sorted(folder.glob("*.json")):
        row = json.loads(path.read_text())
        for variant, values in row.pop("scores").items():
            records.append({**row, "variant": variant, **values})
    return pd.DataFrame(records)


def summary(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean over seeds, the worst MCC, and environments pooled: they are what accuracy is a share of."""
    right = rows["target_accuracy"] * rows["environments"]
    groups = rows.assign(right=right).groupby(by, sort=False)
    return pd.DataFrame(
        {
            "seeds": groups["seed"].nunique(),
            "MCC": groups["z_mcc"].mean(),
            "worst": groups["z_mcc"].min(),
            "ceiling": groups["ceiling"].mean(),
            "target": groups["right"].sum() / groups["environments"].sum(),
            "F1": groups["target_f1"].mean(),
            "seconds": groups["seconds"].mean(),
        }
    )


def dictionary(table: pd.DataFrame, column: str, variant: str) -> dict[str, float]:
    """``{row: value}`` of one variant of a summary indexed by row and variant."""
    if variant not in table.index.get_level_values("variant"):
        return {}
    return {str(k): round(float(v), 4) for k, v in table.xs(variant, level="variant")[column].items()}


def figures_of(rows: pd.DataFrame) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for part in rows["part"].unique():
        some = rows[rows["part"] == part]
        by = ["row", *(c for c in ("value", "prior") if c in some and some[c].notna().all()), "variant"]
        table = summary(some, by)
        print(f"\n{part}\n{table.round({'F1': 3, 'seconds': 0}).round(4).to_string()}")
        if part == "settings":
            figures |= {
                "z_mcc": dictionary(table, "MCC", "rotated"),
                "target_accuracy": dictionary(table, "target", "rotated"),
                "z_mcc_worst_seed": dictionary(table, "worst", "rotated"),
                "ceiling": dictionary(table, "ceiling", "rotated"),
                "without_rotation": {
                    "z_mcc": dictionary(table, "MCC", "dense"),
                    "target_accuracy": dictionary(table, "target", "dense"),
                },
            }
        elif part == "peers":
            figures["in_loop_softmax"] = {
                "z_mcc": dictionary(table, "MCC", "in loop"),
                "target_accuracy": dictionary(table, "target", "in loop"),
            }
        else:
            figures[part.replace(" ", "_")] = {
                ", ".join(map(str, index)): [round(float(r["MCC"]), 4), round(float(r["target"]), 4)]
                for index, r in table.iterrows()
            }
    return figures


def plot(rows: pd.DataFrame, path: Path) -> None:
    """How recovery degrades, one panel a cause; the unchanged setting is the last point."""
    from matplotlib import pyplot as plt

    changed = rows[rows["part"] == "degradation"]
    if changed.empty:
        return
    kinds = list(dict.fromkeys(row.split(", ", 1)[1] for row in changed["row"]))
    names = list(dict.fromkeys(row.split(", ", 1)[0] for row in changed["row"]))
    figure, axes = plt.subplots(2, len(kinds), figsize=(3 * len(kinds), 5.2), sharey="row", sharex="col", squeeze=False)
    styles = {"rotated": "-", "dense": ":"}
    for column, kind in enumerate(kinds):
        for i, name in enumerate(names):
            base, case = rows[(rows["part"] == "settings") & (rows["row"] == name)], SETTINGS[name]
            usual = {
                "environments per latent": case.environments / case.causes,
                "profiles per environment": case.profiles,
                "variance of the shifts": case.variance,
                "latents per cause": case.latents / case.causes,
            }[kind]
            here = pd.concat([changed[changed["row"] == f"{name}, {kind}"], base.assign(value=usual)])
            for line, measure in enumerate(("z_mcc", "target_accuracy")):
                for variant, style in styles.items():
                    means = here[here["variant"] == variant].groupby("value")[measure].mean()
                    label = f"{name}, {variant}"
                    axes[line, column].plot(
                        means.index, means.to_numpy(), style, marker="o", color=f"C{i}", label=label
                    )
        axes[1, column].set_xlabel(kind)
        for axis in axes[:, column]:
            axis.set_ylim(0, 1.03)
            axis.grid(alpha=0.3)
            if kind == "profiles per environment":
                axis.set_xscale("log")
                axis.set_xticks([20, 50, 100, 200], ["20", "50", "100", "200"], minor=False)
                axis.minorticks_off()
    axes[0, 0].set_ylabel("MCC to the true noise")
    axes[1, 0].set_ylabel("intervened latent right")
    axes[0, 0].legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = options(__doc__ or "", seeds=5)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--peers", type=int, default=2, help="seeds of the in-loop softmax beside the settings")
    parser.add_argument("--other-seeds", type=int, default=2, help="seeds of the parts beyond the settings")
    parser.add_argument(
        "--others", nargs="+", choices=list(SETTINGS), default=["d5_mlp"], help="settings of those parts"
    )
    parser.add_argument("--resume", action="store_true", help="keep the rows in OUT and add to them")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # run two parts side by side rather than one on two cores
    cases = {name: SETTINGS[name] for name in arguments.settings}
    others = {name: SETTINGS[name] for name in arguments.others}
    parts, seeds, peers, few = arguments.parts, arguments.seeds, arguments.peers, arguments.other_seeds
    if arguments.quick:
        small = {n: replace(c, profiles=80, genes=40, epochs=60) for n, c in cases.items() if c.causes == 5}
        cases, parts, seeds, peers = small, ["settings"], 1, 1
    out = arguments.out or Path(__file__).parent / "results"
    folder = out / ("quick" if arguments.quick else "rows")
    jobs = {
        "settings": settings_jobs(cases, seeds, peers),
        "degradation": degradation_jobs(others, few),
        "designs": design_jobs(others, few),
        "priors": prior_jobs(others, few),
    }
    run(chain.from_iterable(jobs[part] for part in parts), folder, arguments.resume)
    rows = table_of(folder)
    figures = figures_of(rows)
    plot(rows, out / "degradation.png")
    finish(out, figures, arguments)


if __name__ == "__main__":
    main()

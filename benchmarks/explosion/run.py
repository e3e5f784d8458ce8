"""Why do losses explode on L1000, and does anything here? One switch at a time, then the whole suite.

``cause``: the paper's basic and Environment VAE in hand-written torch, as published (log variances unbounded, summed
loss, nothing clipped or standardised), and with one thing changed. ``suite``: seven presets of ours, many seeds (``long``:
few seeds, as many steps as it takes the published models to explode on real wells). ``likelihood``: Gaussian against
Student-t on held-out data. Data are simulated with Student-t noise of 2 degrees of freedom at the size of L1000, and with
``--data`` also real wells. Results are kept one by one in ``OUT/rows`` (``--resume``).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from contract import finish, options
from handwritten import Switches, train
from heavy import Parts, plates, student
from ours import MODELS, evidence, suite, untrained

PARTS = ("cause", "likelihood", "suite", "long")
LONG = 2000  # steps
PAPER = {"batch": 16, "lr": 3e-4, "hidden": 500, "d": 200}
Job = tuple[dict[str, Any], Callable[[], dict[str, Any]]]

MENDS: dict[str, dict[str, Any]] = {
    "log variance clamped to [-8, 4]": {"bound": "clamp"},
    "gradient norm clipped at 100": {"clip": 100.0},
    "genes standardised": {"standardise_genes": True},
    "log variance softly bounded (ours)": {"bound": "soft"},
    "Student-t likelihood": {"student": True},
}
BASE: dict[str, dict[str, Any]] = {
    "basic": {},
    "environment": {"model": "environment"},
    "environment, raw hours and dose": {"model": "environment", "features": "raw"},
    "environment, standardised hours and dose": {"model": "environment", "features": "standardised"},
}


def switches() -> dict[str, Switches]:
    """Each model as published, and the basic and the raw environment model with one mend."""
    rows = {f"{name}: as published": Switches(**given) for name, given in BASE.items()}
    for name in ("basic", "environment, raw hours and dose"):
        rows |= {f"{name}: {mend}": Switches(**BASE[name], **one) for mend, one in MENDS.items()}
    return rows


def cause_jobs(data: dict[str, Callable[[], Parts]], seeds: int, steps: int, size: dict[str, Any]) -> Iterator[Job]:
    for which, load in data.items():
        enough = LONG if which == "plates" else steps  # smaller values explode later
        for seed in range(seeds):
            for name, one in switches().items():
                if which != "Student-t" and not name.endswith("as published"):
                    continue
                key = {"part": "cause", "data": which, "row": name, "seed": seed}
                yield key, lambda f=load, s=one, i=seed, k=enough: train(f(), s, i, epochs=epochs(f(), k, size), **size)


def suite_jobs(
    data: dict[str, Callable[[], Parts]], seeds: int, steps: int, size: dict[str, Any], part: str = "suite"
) -> Iterator[Job]:
    for seed in range(seeds):
        for which, load in data.items():
            for name in MODELS:
                key = {"part": part, "data": which, "row": name, "seed": seed}
                yield key, lambda f=load, n=name, i=seed: suite(f(), n, i, epochs=epochs(f(), steps, size), **size)


def likelihood_jobs(
    data: dict[str, Callable[[], Parts]], seeds: int, steps: int, size: dict[str, Any]
) -> Iterator[Job]:
    size = {**size, "batch": 64, "lr": 1e-3}
    for seed in range(seeds):
        for which, load in data.items():
            for name in ("basic", "environment"):
                for likelihood in ("gaussian", "student_t"):
                    key = {"part": "likelihood", "data": which, "row": name, "likelihood": likelihood, "seed": seed}
                    yield key, partial(_evidence, load, name, likelihood, seed, steps, size)
    for which, load in data.items():
        yield {"part": "no latents", "data": which}, lambda f=load: untrained(f())


def _evidence(
    load: Callable[[], Parts], name: str, likelihood: str, seed: int, steps: int, size: Any
) -> dict[str, Any]:
    return evidence(load(), name, likelihood, seed, epochs=epochs(load(), steps, size), **size)


def epochs(data: Parts, steps: int, size: dict[str, Any]) -> int:
    """At least so many steps."""
    return -(-steps // -(-data[0].n // size["batch"]))


def run(jobs: Iterator[Job], folder: Path, resume: bool) -> pd.DataFrame:
    """Run the jobs whose file is not there yet; all rows as one table."""
    folder.mkdir(parents=True, exist_ok=True)
    if not resume:
        for path in folder.glob("*.json"):
            path.unlink()
    for key, job in jobs:
        path = folder / ("_".join(str(v).replace(" ", "-").replace(",", "") for v in key.values()) + ".json")
        if path.exists():
            continue
        started = time.perf_counter()
        row = {**key, **job(), "seconds": time.perf_counter() - started}
        path.write_text(json.dumps(row) + "\n")
        print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{v}" for k, v in row.items()), flush=True)
    return pd.DataFrame([json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))])


def figures_of(rows: pd.DataFrame) -> dict[str, Any]:
    """Tables on the screen, figures for the record."""
    figures: dict[str, Any] = {}
    cause = rows[rows["part"] == "cause"]
    if len(cause):
        order = {name: i for i, name in enumerate(switches())}
        groups = cause.sort_values("row", key=lambda names: names.map(order)).groupby(["data", "row"], sort=False)
        table = pd.DataFrame(
            {"runs": groups.size(), "exploded": groups["exploded"].sum(), "first epoch": groups["epoch"].min()}
        )
        table["worst / predicting zero"] = groups["worst"].median()
        table["last held out"] = groups["last"].median()
        print(f"\nHand-written torch\n{table.round(3).to_string()}")
        figures["handwritten"] = {f"{d}, {r}": [int(x.exploded), int(x.runs)] for (d, r), x in table.iterrows()}
    ours = rows[rows["part"].isin(["suite", "long"])]
    if len(ours):
        ours, by = ours.assign(**{"last over best": ours["last"] / ours["best"]}), ["part", "row", "data"]
        groups = ours.groupby(by, sort=False)
        table = pd.DataFrame(
            {
                "runs": groups.size(),
                "exploded": groups["exploded"].sum(),
                "non-finite": groups["non_finite"].sum(),
                "worst": groups["worst"].max(),
                "best held out": groups["best"].mean(),
                "last / best (worst run)": groups["last over best"].max(),
            }
        )
        print(f"\nThe suite (losses over that of predicting zero)\n{table.round(3).to_string()}")
        figures |= {
            "exploded": int(ours["exploded"].sum()),
            "fits": len(ours),
            "non_finite": int(ours["non_finite"].sum()),
        }
        figures["last_over_best"] = round(float(ours["last over best"].max()), 4)
    bounds = rows[rows["part"] == "likelihood"]
    if len(bounds):
        wide = bounds.pivot_table(index=["data", "row", "seed"], columns="likelihood", values="bound")
        wide["gain"] = wide["student_t"] - wide["gaussian"]
        groups = wide.groupby(["data", "row"])
        table = groups.mean()
        table["± (95 %)"] = 1.96 * groups["gain"].std() / np.sqrt(groups.size())
        error = bounds.pivot_table(index=["data", "row"], columns="likelihood", values="median_error")
        print(f"\nHeld-out bound, nats a profile in the data's units\n{table.round(1).to_string()}")
        print(f"\nMedian absolute error of a held-out value\n{error.round(4).to_string()}")
        print(rows.loc[rows["part"] == "no latents", ["data", "normal", "student"]].round(1).to_string(index=False))
        figures["student_t_gain"] = {
            f"{d}, {r}": [_or_none(x["gain"] + k * x["± (95 %)"]) if k else _or_none(x["gain"]) for k in (0, -1, 1)]
            for (d, r), x in table.iterrows()
        }
        figures["held_out_bound"] = {
            f"{d}, {r}": {"gaussian": _or_none(x["gaussian"]), "student_t": _or_none(x["student_t"])}
            for (d, r), x in table.iterrows()
        } | {
            f"{x['data']}, no latents": {"gaussian": _or_none(x["normal"]), "student_t": _or_none(x["student"])}
            for _, x in rows[rows["part"] == "no latents"].iterrows()
        }
    return figures


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 1)


def main() -> None:
    parser = options(__doc__ or "", seeds=20, data=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--few", type=int, default=5, help="seeds of the parts beside the suite")
    parser.add_argument("--resume", action="store_true", help="keep the rows in OUT and add to them")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quick = arguments.quick
    size = {**PAPER, "hidden": 64, "d": 20} if quick else PAPER
    shape = (
        {"profiles": 1500, "genes": 200, "environments": 300, "bits": 64}
        if quick
        else {"profiles": 3000, "environments": 1000}
    )
    seeds, few, steps, long = (1, 1, 100, 280) if quick else (arguments.seeds, arguments.few, 300, 800)
    data: dict[str, Callable[[], Parts]] = {"Student-t": cache(partial(student, **shape))}
    if arguments.data is not None:
        data["plates"] = cache(partial(plates, arguments.data))
    normal = {"normal tails": cache(partial(student, **shape, df=1e6))}
    out = arguments.out or Path(__file__).parent / "results"
    jobs = {
        "cause": cause_jobs(normal | data, few, long, size),
        "suite": suite_jobs(data, seeds, steps, size),
        "long": suite_jobs({k: f for k, f in data.items() if k == "plates"}, few, LONG, size, part="long"),
        "likelihood": likelihood_jobs(data, few, long if not quick else 60, size),
    }
    table = run(
        (job for part in arguments.parts for job in jobs[part]), out / ("quick" if quick else "rows"), arguments.resume
    )
    finish(out, figures_of(table), arguments)


if __name__ == "__main__":
    main()

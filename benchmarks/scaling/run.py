"""Cost of training against the number of profiles, genes, latents and environments, and with two processes.

One size grows at a time, the others stay. CPU seconds of one thread, median over seeds, with each of which all sizes are timed
in turn; a slope is that of log cost on log size over the larger half of the sizes, where arithmetic and not bookkeeping is
what costs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from contract import finish, options

import pyro_cge as cge

USUAL = {"n": 1280, "g": 200, "d": 10, "e": 50}
SIZES = {
    "n": [1250, 2500, 5000, 10_000, 20_000, 40_000],
    "g": [250, 500, 1000, 2000, 4000, 8000, 16_000],
    "d": [8, 16, 32, 64, 128, 256, 512],
    "e": [50, 200, 800, 3200, 12_800, 51_200],
}
QUICK = {"n": [1250, 5000, 10_000], "g": [500, 2000, 8000], "d": [16, 64, 256], "e": [200, 3200, 51_200]}
STRUCTURED = [8, 16, 32, 64, 128]  # latents of the structured model, of which mechanisms have d² weights
BATCH, FEATURES = 128, 50


def make_data(n: int, g: int, e: int, features: bool, seed: int) -> cge.EnvironmentData:
    generator = torch.Generator().manual_seed(seed)
    return cge.EnvironmentData(
        x=torch.randn(n, g, generator=generator),
        env=torch.randint(e, (n,), generator=generator),
        gene_names=[f"g{i}" for i in range(g)],
        env_names=[f"e{i}" for i in range(e)],
        env_features=torch.randn(e, FEATURES, generator=generator) if features else None,
        control=[0],
    )


def epoch_cost(build: Callable, data: cge.EnvironmentData, epochs: int = 2) -> float:
    """CPU seconds of the last of some epochs, as ``fit`` runs them."""
    with cge.isolated(0):
        model, guide = build(data)
    begun: list[float] = []
    ended: list[float] = []
    cge.fit(
        model,
        guide,
        data,
        epochs=epochs,
        batch_size=BATCH,
        validation=None,
        progress=False,
        on_epoch=lambda _: begun.append(time.process_time()),
        on_record=lambda _: ended.append(time.process_time()),
    )
    return ended[-1] - begun[-1]


def slope(sizes: list[int], costs: list[float]) -> float:
    """Of log cost on log size, over the larger half."""
    half = min(len(sizes) // 2, len(sizes) - 2)
    return float(np.polyfit(np.log(sizes[half:]), np.log(costs[half:]), 1)[0])


def curves(sizes: dict[str, list[int]], structured: list[int], seeds: int) -> dict[str, dict[int, float]]:
    """Milliseconds a step (for ``n``: seconds an epoch) by what grows and how large it is."""
    cases: list[tuple[str, int, Callable, dict[str, int], bool]] = []
    for name, values in sizes.items():
        for value in values:
            shape = USUAL | {name: value}
            d = shape["d"]
            cases.append((name, value, lambda data, d=d: cge.environment_vae(data, d, hidden=(128,)), shape, True))
            if name == "e":
                names = "e, names only"
                cases.append((names, value, lambda data: cge.environment_vae(data, 10, hidden=(128,)), shape, False))
    for d in structured:
        shape = USUAL | {"d": d}
        cases.append(("d, structured", d, lambda data, d=d: cge.structured_vae(data, d, hidden=(128,)), shape, True))
    times: dict[str, dict[int, list[float]]] = {}
    for seed in range(seeds):
        for name, value, build, shape, features in cases:
            seconds = epoch_cost(build, make_data(shape["n"], shape["g"], shape["e"], features, seed))
            cost = seconds if name == "n" else seconds / -(-shape["n"] // BATCH) * 1e3
            times.setdefault(name, {}).setdefault(value, []).append(cost)
    return {name: {k: float(np.median(v)) for k, v in rows.items()} for name, rows in times.items()}


def two_processes(quick: bool) -> list[dict[str, float]]:
    """What pair.py measures under torchrun, a row a batch size."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "pair.json"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        script = [str(Path(__file__).with_name("pair.py")), str(out), *(["--quick"] if quick else [])]
        subprocess.run([*launch, *script], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        return json.loads(out.read_text())


def main() -> None:
    arguments = options(__doc__ or "", seeds=3).parse_args()
    torch.set_num_threads(1)
    sizes = QUICK if arguments.quick else SIZES
    costs = curves(
        sizes, STRUCTURED[1::2] if arguments.quick else STRUCTURED, 1 if arguments.quick else arguments.seeds
    )
    slopes = {name: slope(list(rows), list(rows.values())) for name, rows in costs.items()}
    for name, rows in costs.items():
        unit = "s an epoch" if name == "n" else "ms a step"
        shown = "  ".join(f"{size:,}: {cost:.3g}" for size, cost in rows.items())
        print(f"{name:<14} {unit:<10}  {shown}   slope {slopes[name]:.2f}", flush=True)
    pairs = two_processes(arguments.quick)
    print(
        f"\n{'batch':<8}{'1 process':>12}{'2 threads':>12}{'2 processes':>14}{'speed-up':>10}   quartiles      CPU only"
    )
    for row in pairs:
        print(
            f"{row['batch']:<8}{row['one']:>10,.0f}/s{row['threads']:>10,.0f}/s{row['two']:>12,.0f}/s"
            f"{row['speedup']:>10.2f}   {row['low']:.2f}-{row['high']:.2f}      {row['cpu']:.2f}"
        )
    figures = {
        "slope_n": round(slopes["n"], 3),
        "slope_g": round(slopes["g"], 3),
        "slope_e": round(slopes["e"], 3),
        "slope_e_names": round(slopes["e, names only"], 3),
        "slope_d": round(slopes["d"], 3),
        "slope_d_structured": round(slopes["d, structured"], 3),
        "speedup_2": round(pairs[-1]["speedup"], 3),
        "speedup_2_cpu": round(pairs[-1]["cpu"], 3),
    }
    finish(arguments.out or Path(__file__).parent / "results", figures, arguments)


if __name__ == "__main__":
    main()

"""How fast is the simulator? Cells a second for 978 genes from 50 latents, beside filling an array with noise.

Drawing one normal number for each entry is the least any simulator with measurement noise can do.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from contract import finish, options

import pyro_cge as cge


def main() -> None:
    arguments = options(__doc__ or "", seeds=1).parse_args()
    n = 100_000 if arguments.quick else 1_000_000
    environments = cge.simulate.random_shifts(50, 99, variance=5)
    figures: dict[str, float] = {"cells": n}
    rows = {}
    for graph in ("growing network", "chain"):
        truth = cge.simulate.simulator(graph, n_latents=50, n_genes=978, environments=environments, seed=0)
        start = time.perf_counter()
        data = truth.sample(n // 100)
        seconds = time.perf_counter() - start
        rows[graph] = data.n / seconds
        del data
    noise = torch.empty(n, 978)
    start = time.perf_counter()
    noise.normal_()
    rows["(noise alone)"] = n / (time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{'':<18}{'cells/s':>12}{'of noise alone':>16}")
    for name, rate in rows.items():
        print(f"{name:<18}{rate:>12,.0f}{rate / rows['(noise alone)']:>16.2f}")
    print(f"peak memory {peak:.1f} GiB, of which {n * 978 * 4 / 2**30:.1f} GiB are the expression matrix")
    figures |= {"cells_per_s": round(rows["growing network"]), "cells_per_s_chain": round(rows["chain"])}
    figures |= {"ratio_noise": round(rows["growing network"] / rows["(noise alone)"], 3), "peak_gib": round(peak, 2)}
    finish(arguments.out or Path(__file__).parent / "results", figures, arguments)


if __name__ == "__main__":
    main()

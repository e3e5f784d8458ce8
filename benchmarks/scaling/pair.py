"""Samples a second of the L1000-size Environment VAE in one process and in two, in turn; started by run.py with torchrun.

In each round the first process trains alone (the second waits to be joined), on one thread and on two, then both train
together on one thread each.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

import pyro_cge as cge

G, HIDDEN, D, FEATURES, ENVIRONMENTS = 978, 500, 200, 2048, 1074


def trained(batch: int, steps: int, threads: int = 1) -> tuple[float, float]:
    """Seconds and CPU seconds of the last of two epochs."""
    torch.manual_seed(0)
    n = batch * steps
    data = cge.EnvironmentData(
        x=torch.randn(n, G),
        env=torch.randint(ENVIRONMENTS, (n,)),
        gene_names=[f"g{i}" for i in range(G)],
        env_names=[f"e{i}" for i in range(ENVIRONMENTS)],
        env_features=(torch.rand(ENVIRONMENTS, FEATURES) < 0.05).float(),
        control=[0],
    )
    model, guide = cge.environment_vae(data, D, hidden=(HIDDEN,), conditioning="concat")
    used: list[float] = []
    torch.set_num_threads(threads)
    fit = cge.fit(
        model,
        guide,
        data,
        epochs=2,
        batch_size=batch,
        lr=1e-4,
        validation=None,
        progress=False,
        on_epoch=lambda _: used.append(time.process_time()),
        on_record=lambda _: used.append(time.process_time()),
    )
    torch.set_num_threads(1)
    return float(fit.history.seconds.iloc[-1]), used[-1] - used[-2]


def main() -> None:
    out, quick = Path(sys.argv[1]), "--quick" in sys.argv
    first, run = os.environ["RANK"] == "0", os.environ["TORCHELASTIC_RUN_ID"]
    rows = []
    for batch, steps in ((512, 4),) if quick else ((128, 24), (512, 8), (2048, 3)):
        times = []
        for _ in range(1 if quick else 6):
            alone = []
            if first:
                del os.environ["TORCHELASTIC_RUN_ID"]  # as if it had not been started by torchrun
                alone = [trained(batch, steps, threads) for threads in (1, 2)]
                os.environ["TORCHELASTIC_RUN_ID"] = run
            times.append([*alone, trained(batch, steps)])
        if first:
            (one, one_cpu), (threads, _), (two, two_cpu) = np.array(times).transpose(1, 2, 0)
            rows.append(
                {
                    "batch": batch,
                    **{k: batch * steps / np.median(v) for k, v in (("one", one), ("threads", threads), ("two", two))},
                    "speedup": np.median(one / two),
                    "low": np.quantile(one / two, 0.25),
                    "high": np.quantile(one / two, 0.75),
                    "threads_speedup": np.median(one / threads),
                    # What two idle cores would give at best: arithmetic and messages, no waiting.
                    "cpu": np.median(one_cpu / two_cpu),
                }
            )
    if first:
        out.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()

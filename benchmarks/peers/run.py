"""Ours and peers' own code on the same arrays, at equal batch and width: held-out figures and samples a second.

Peers run from checkouts given by path (``--paper``, ``--sams``, ``--svae``); a hand-written tensor-batch loop of the
paper's architecture is always there. Contenders are timed in turn within every round, in processor time of one thread, so
that other work on the machine counts as little as it can; ratios are of neighbours in time. Ours is paired with the peer of
the same architecture.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from adapters import ADAPTERS, Missing
from arrays import simulated
from contenders import Contender, Size, handwritten, no_model, ours
from contract import finish, options

REGIMES = {"tensors, batch 128": ("tensors", 128), "loader, batch 16": ("loader", 16)}


def gather(arguments: Any, train: Any, held: Any, size: Size, seed: int) -> tuple[list[Contender], list[str]]:
    """Everyone who can be run, ours for each architecture among them first; and why others cannot."""
    peers: list[Contender] = [handwritten(train, held, size, seed, fused=fused) for fused in (False, True)]
    absent = []
    for name, adapter in ADAPTERS.items():
        path = getattr(arguments, name)
        if path is None:
            absent.append(f"--{name} was not given: not run")
            continue
        try:
            peers += adapter(path, train, held, size, seed)
        except Missing as error:
            absent.append(f"--{name} cannot be run: {error}")
    presets = list(dict.fromkeys(["basic", "environment", *(p.match for p in peers)]))
    return [*(ours(preset, train, held, size, seed) for preset in presets), *peers], absent


def pace(contenders: list[Contender], regime: str, seconds: float, rounds: int) -> pd.DataFrame:
    """Samples a second ``[round, contender]``, all in turn within each round, in an order that changes."""
    kind, size = REGIMES[regime]
    budget = seconds / rounds / len(contenders)
    epochs = {c.name: getattr(c, kind)(size) for c in contenders}
    rows: list[dict[str, float]] = []
    rng = np.random.default_rng(0)
    for number in range(rounds + 1):
        row = {}
        for i in rng.permutation(len(contenders)):
            one, samples, spent = contenders[i], 0, 0.0
            while spent < budget:
                started = time.process_time()
                batch = next(epochs[one.name], None)
                if batch is None:
                    epochs[one.name] = getattr(one, kind)(size)
                    batch = next(epochs[one.name])
                one.step(batch)
                spent += time.process_time() - started
                samples += size
            row[one.name] = samples / spent
        if number:  # the first warms up
            rows.append(row)
    return pd.DataFrame(rows)


def quality(make: Callable[[int], list[Contender]], seeds: int, epochs: int) -> pd.DataFrame:
    """Held-out figures of everyone after the same number of epochs in batches of 128."""
    rows = []
    for seed in range(seeds):
        for one in make(seed):
            torch.manual_seed(seed)
            for _ in range(epochs):
                for batch in one.tensors(128):
                    one.step(batch)
            rows.append({"contender": one.name, "seed": seed, **one.held_out()})
            print(
                "  " + "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else str(v) for k, v in rows[-1].items()),
                flush=True,
            )
    return pd.DataFrame(rows)


def main() -> None:
    parser = options(__doc__ or "", seeds=3)
    for name in ADAPTERS:
        parser.add_argument(f"--{name}", type=Path, default=None, metavar="PATH", help="root of a checkout")
    parser.add_argument("--seconds", type=float, default=120.0, help="of processor time, in each of the two regimes")
    parser.add_argument("--epochs", type=int, default=20, help="of training before held-out data are scored")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quick = arguments.quick
    size, seeds, epochs = (Size(), 1, 2) if quick else (Size(), arguments.seeds, arguments.epochs)
    seconds, rounds = (6.0, 6) if quick else (arguments.seconds, 20)
    n, held_out = (1024, 256) if quick else (2560, 512)
    train, held = simulated(n, held_out, 978, 65, 256, 0)

    with pyro.validation_enabled(False):
        contenders, absent = gather(arguments, train, held, size, 0)
        print(*absent, sep="\n")
        speeds = {regime: pace(contenders, regime, seconds, rounds) for regime in REGIMES}
        print("\nHeld out")
        judged = quality(lambda seed: gather(arguments, train, held, size, seed)[0], seeds, epochs)

    match = {c.name: f"ours: {c.match}" for c in contenders}
    medians = pd.DataFrame({regime: rates.median() for regime, rates in speeds.items()})
    ratios = {
        regime: {c: rates[match[c]] / rates[c] for c in rates if not c.startswith("ours")}
        for regime, rates in speeds.items()
    }
    print(f"\nSamples a second (median of {rounds} rounds, one thread)\n{medians.round(0).astype(int).to_string()}")
    table = pd.DataFrame({regime: {c: r.median() for c, r in by.items()} for regime, by in ratios.items()})
    print(f"\nOurs over the peer of the same architecture\n{table.round(2).to_string()}")
    groups = judged.drop(columns="seed").groupby("contender", sort=False)
    baseline = no_model(train, held)
    print(f"\nHeld out, mean over {seeds} seeds\n{groups.mean().round(3).to_string()}\nno model: {baseline}")
    spread = groups.std().fillna(0.0)
    print(f"sd over seeds\n{spread.round(4).to_string()}")
    first = ratios["tensors, batch 128"]
    figures = {
        "samples_per_s_ratio": {c: round(float(r.median()), 3) for c, r in first.items()},
        "samples_per_s_ratio_quartiles": {
            c: [round(float(r.quantile(q)), 3) for q in (0.25, 0.75)] for c, r in first.items()
        },
        "samples_per_s_ratio_loader": {c: round(float(r.median()), 3) for c, r in ratios["loader, batch 16"].items()},
        "samples_per_s": {
            regime: {c: round(float(v)) for c, v in column.items()} for regime, column in medians.items()
        },
        "held_out": {c: {k: round(float(v), 4) for k, v in row.items()} for c, row in groups.mean().iterrows()}
        | {"no model": {k: round(v, 4) for k, v in baseline.items()}},
        "not_run": absent,
    }
    finish(arguments.out or Path(__file__).parent / "results", figures, arguments)


if __name__ == "__main__":
    main()

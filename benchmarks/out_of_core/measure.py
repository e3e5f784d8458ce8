"""One measurement in a process of its own, so that its peak memory is its own: ``measure.py WHAT FILE OPTIONS``."""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import pyro
import torch

import pyro_cge as cge
from pyro_cge.data.opening import stream

PARTS = 4
KEYS = ("drug", "fingerprint", "drug 0000")  # environment, its features, the control


def peak_gb() -> float:
    """Largest resident memory of this process so far, in GB (10⁹ bytes): Python, torch and the page tables of files."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024 / 1e9


def train(data: Any, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of the last epoch, and the peak of the whole process."""
    likelihood = "negative_binomial" if options.counts else "gaussian"
    with cge.isolated(0):
        model, guide = cge.environment_vae(data, options.latents, hidden=(options.hidden,), likelihood=likelihood)
    marks: list[tuple[float, float]] = []

    def mark(_: object) -> None:
        marks.append((time.perf_counter(), time.process_time()))

    fit = cge.fit(
        model,
        guide,
        data,
        epochs=options.epochs,
        batch_size=options.batch,
        validation=None,
        on_epoch=mark,
        on_record=mark,
        progress=False,
    )
    (wall, cpu), (wall_end, cpu_end) = marks[-2:]
    return {
        "seconds": wall_end - wall,
        "cpu": cpu_end - cpu,
        "profiles": data.n,
        "loss": float(fit.history["train_loss"].iloc[-1]),
        "peak_gb": peak_gb(),
    }


def alternate(path: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of training on a window from disk, and on as many batches from memory: a quarter of each in turn.

    One model takes all the steps, so that both sides do the same and whatever else the machine does falls on both. A
    quarter is longer than reading the next window takes, which therefore falls on the side that asked for it.
    """
    disk, memory = stream(path, *KEYS), cge.read_h5ad(path, *KEYS)
    scaler = cge.Standardizer.fit(memory)
    disk, memory = scaler.transform(disk), scaler.transform(memory)
    with cge.isolated(0):
        model, guide = cge.environment_vae(memory, options.latents, hidden=(options.hidden,))
    elbo, parameters = cge.Elbo(), [*model.parameters(), *guide.parameters()]
    adam = torch.optim.Adam(parameters, lr=1e-3, fused=True)
    each = max(disk.window // options.batch, 1)
    times: dict[str, list[float]] = {f"{side}_{clock}": [] for side in ("disk", "memory") for clock in ("wall", "cpu")}
    with cge.isolated(0), pyro.validation_enabled(False):
        sources = {
            side: data.batches(options.batch, shuffle=True) for side, data in (("disk", disk), ("memory", memory))
        }
        # The last window is a part of one, and has no other to read ahead of.
        for _ in range(min(options.windows, disk.n // (each * options.batch))):
            spent = dict.fromkeys(times, 0.0)
            for part in range(PARTS):
                count = each * (part + 1) // PARTS - each * part // PARTS
                for side, batches in sources.items():
                    wall, cpu = time.perf_counter(), time.process_time()
                    for batch in itertools.islice(batches, count):
                        loss = elbo(model, guide, batch)["loss"]
                        adam.zero_grad(set_to_none=True)
                        loss.backward()
                        torch.nn.utils.clip_grad_norm_(parameters, 100.0, foreach=True)
                        adam.step()
                    spent[f"{side}_wall"] += time.perf_counter() - wall
                    spent[f"{side}_cpu"] += time.process_time() - cpu
            for name, seconds in spent.items():
                times[name].append(seconds)
        for batches in sources.values():
            batches.close()
    return times


def read(data: Any, options: argparse.Namespace) -> dict[str, float]:
    """An epoch with nothing to train: what reading and shuffling cost by themselves."""
    wall, cpu = time.perf_counter(), time.process_time()
    for batch in data.batches(options.batch, shuffle=True):
        assert batch.x is not None
    return {
        "seconds": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "profiles": data.n,
        "peak_gb": peak_gb(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("stream", "memory", "read", "alternate"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--counts", action="store_true")
    for name, default in (("latents", 200), ("hidden", 500), ("batch", 128), ("epochs", 1), ("windows", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "alternate":
        print(json.dumps(alternate(options.file, options)))
        return
    if options.what == "memory":
        data: Any = cge.read_h5ad(options.file, *KEYS)
    else:
        data = stream(options.file, *KEYS)
    result = read(data, options) if options.what == "read" else train(data, options)
    if options.what != "memory":
        result["clumping"] = data.clumping(options.batch)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

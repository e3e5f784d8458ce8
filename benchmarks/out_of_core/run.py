"""Training from disk against training in memory: profiles a second and peak memory, on files made for the purpose.

Ratios come from one process that trains on a window from disk and on as many batches from memory in turn (``--seeds``
pairs); peaks from processes that do one thing each.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from contract import finish, options
from files import write_dense, write_sparse

GENES = 978
# latents, hidden units: the L1000 model of the paper's size, and one whose steps are short, so that reading weighs most
SIZES = {"l1000": (200, 500), "small": (10, 64)}


def measured(what: str, path: Path, **settings: int | bool) -> dict[str, Any]:
    """What ``measure.py`` says, run by itself."""
    given = [f"--{name}" if value is True else f"--{name}={value}" for name, value in settings.items() if value]
    command = [sys.executable, str(Path(__file__).parent / "measure.py"), what, str(path), *given]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def dense(path: Path, windows: int, quick: bool) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """By size of model: disk and memory in turn, and the peaks of an epoch of each by itself; and reading alone."""
    rows: list[dict[str, Any]] = []
    figures: dict[str, float] = {}
    for size in ("small",) if quick else SIZES:
        latents, hidden = SIZES[size]
        times = measured("alternate", path, latents=latents, hidden=hidden, windows=windows)
        for clock, suffix in (("wall", ""), ("cpu", "_cpu")):
            ratios = np.array(times[f"memory_{clock}"]) / np.array(times[f"disk_{clock}"])
            figures[f"ratio_stream_{size}{suffix}"] = round(float(np.median(ratios)), 3)
        for what in ("stream", "memory"):
            found = measured(what, path, latents=latents, hidden=hidden)
            rows.append(row(f"{size}, {what}", found))
            figures[f"peak_gb_{what}_{size}"] = round(found["peak_gb"], 3)
            figures["clumping"] = round(found.get("clumping", figures.get("clumping", 0.0)), 5)
    rows.append(row("reading alone", measured("read", path)))
    main = "small" if quick else "l1000"
    figures |= {f"ratio_stream{suffix}": figures[f"ratio_stream_{main}{suffix}"] for suffix in ("", "_cpu")}
    figures["peak_gb"] = max(value for name, value in figures.items() if name.startswith("peak_gb_stream"))
    return rows, figures


def row(name: str, found: dict[str, float]) -> dict[str, Any]:
    return {
        "name": name,
        "per_second": found["profiles"] / found["seconds"],
        "per_cpu_second": found["profiles"] / found["cpu"],
        "peak_gb": found["peak_gb"],
    }


def main() -> None:
    arguments = options(__doc__ or "", seeds=5).parse_args()
    quick = arguments.quick
    windows = 1 if quick else arguments.seeds
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dense.h5ad"
        write_dense(path, 20_000 if quick else 118_050, GENES)
        rows, figures = dense(path, windows, quick)
        path.unlink()
        path = Path(folder) / "sparse.h5ad"
        write_sparse(path, 10_000 if quick else 1_000_000, 2_000)
        batch = 256 if quick else 512
        found = measured("stream", path, counts=True, latents=10, hidden=64, batch=batch)
        rows.append(row("counts, stream", found))
        figures |= {
            "peak_gb_sparse": round(found["peak_gb"], 3),
            "per_second_sparse": round(found["profiles"] / found["seconds"]),
            "clumping_sparse": round(found["clumping"], 5),
        }
    print(f"{'':<18}{'profiles/s':>12}{'per CPU s':>12}{'peak GB':>10}")
    for r in rows:
        print(f"{r['name']:<18}{r['per_second']:>12,.0f}{r['per_cpu_second']:>12,.0f}{r['peak_gb']:>10.2f}")
    finish(arguments.out or Path(__file__).parent / "results", figures, arguments)


if __name__ == "__main__":
    main()

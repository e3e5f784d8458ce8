"""What does it survive? Kills, full disks, bad input, flipped bits, pickles, heavy tails: a table, and every row checked.

Exits with an error if any row is not as it should be.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import damage
import inputs
import kills
import tails
from contract import finish, options


def bad_inputs(folder: Path, quick: bool) -> dict[str, int]:
    """Every case, and how many ended how; those that should not have are printed."""
    counts = {"typed": 0, "repaired": 0, "foreign": 0, "silent": 0}
    for name, case in {**inputs.CASES, **inputs.REPAIRS}.items():
        if quick and name.startswith("cli"):  # a process each
            continue
        kind, message = inputs.outcome(case, folder, name in inputs.REPAIRS)
        counts[kind] += 1
        if kind in ("foreign", "silent"):
            print(f"  {kind}: {name}: {message}")
    return counts


def main() -> None:
    arguments = options(__doc__ or "", seeds=20).parse_args()
    quick = arguments.quick
    torch.set_num_threads(1)  # before anything is forked
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs.good_files(folder)
        inputs_found = bad_inputs(folder, quick)
        disk = kills.disks(folder)
        (folder / "kills").mkdir()
        killed = kills.kill(folder / "kills", 4 if quick else 200)
        print(killed, disk, flush=True)
        weights, data = (
            damage.flip_weights(folder, 100 if quick else 1000),
            damage.flip_data(folder, 10 if quick else 200),
        )
        pickled = damage.pickles(folder)
        exploded = tails.explosions(1 if quick else arguments.seeds)
    figures = {
        "kills": killed["kills"],
        "kills_in_write": killed["kills_in_write"],
        "unloadable": killed["unloadable"],
        "resume_differs": killed["resume_differs"] + killed["errors"],
        "left_behind": killed["left_behind"],
        "disk_faults_broken": sum("intact" not in v and v != "same bytes" for k, v in disk.items() if k != "how"),
        "bad_inputs": sum(inputs_found.values()),
        "foreign_tracebacks": inputs_found["foreign"],
        "silent": inputs_found["silent"],
        "flips": sum(weights.values()) + sum(data.values()),
        "flips_undetected": weights["undetected"] + data["undetected"],
        "flips_crashed": data["crashed or foreign"],
        "pickle_attempts": pickled["attempts"],
        "pickles_executed": pickled["executed"],
        "heavy_tailed_fits": len(exploded) * (1 if quick else arguments.seeds),
        "non_finite": sum(exploded.values()),
    }
    rows = {
        f"{killed['kills']} × kill -9, {killed['kills_in_write']} of them inside a write": (
            f"{killed['unloadable']} files unloadable; of {killed['runs']} runs resumed to their end, "
            f"{killed['resume_differs']} differ from one never killed, {killed['left_behind']} leave a file behind, "
            f"{killed['errors']} failed"
        ),
        **{f"{what} ({disk['how']})": became for what, became in disk.items() if what != "how"},
        f"{figures['bad_inputs']} kinds of bad input": ", ".join(f"{n} {k}" for k, n in inputs_found.items()),
        "a bit of weights or checkpoint flipped": ", ".join(f"{n} {k}" for k, n in weights.items()),
        "a bit of an .h5ad flipped": ", ".join(f"{n} {k}" for k, n in data.items()),
        "pickles through every loader": ", ".join(f"{n} {k}" for k, n in pickled.items()),
        f"{figures['heavy_tailed_fits']} fits of heavy tails": f"{figures['non_finite']} not finite",
    }
    for fault, became in rows.items():
        print(f"{fault:<62}{became}")
    finish(arguments.out or Path(__file__).parent / "results", figures, arguments)
    wrong = (
        "unloadable",
        "resume_differs",
        "left_behind",
        "disk_faults_broken",
        "foreign_tracebacks",
        "silent",
        "flips_undetected",
    )
    if failed := [name for name in (*wrong, "pickles_executed", "non_finite") if figures[name]]:
        sys.exit(f"not survived: {', '.join(failed)}")


if __name__ == "__main__":
    main()

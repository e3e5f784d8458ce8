"""Runs killed with SIGKILL, at random moments and inside writes, then resumed until they end; full and read-only disks.

Their figures are empty ones: drawing takes three quarters of so small a run, and is no place where a kill could do harm.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from inputs import TINY, data

from pyro_cge import runs
from pyro_cge.config import RunConfig
from pyro_cge.errors import PyroCgeError
from pyro_cge.train.checkpoint import load_tensors

CONFIG = TINY.model_copy(update={"epochs": 12, "patience": None})
COMPARED = ("weights.safetensors", "metrics.json", "split.json", "config.json")
KILLS_A_RUN = 5  # then it is left alone, to be compared with one never killed
AT_ONCE = 2
PATIENCE = 600.0  # seconds after which a run counts as hanging


@dataclass
class Chain:
    """A run folder, and the process working on it at the moment."""

    folder: Path
    kills: int = 0
    process: int = 0
    begun: float = 0.0
    deadline: float = 0.0
    in_write: bool = False
    left: frozenset[str] = frozenset()


def fitted(config: RunConfig, folder: Path, resume: bool = False) -> None:
    """A whole run, but for what its figures show."""
    from matplotlib import pyplot as plt

    def empty(_: object, __: object, place: Path) -> None:
        for name in ("learning_curves", "interventions", "latent_pairs"):
            plt.figure()
            runs.save_figure(place / f"{name}.png")

    runs.draw = empty  # type: ignore[assignment]
    runs.run(config, data(), folder, resume=resume, progress=False)


def start(folder: Path) -> int:
    """Fork a run, resumed where there is something to resume; everything is imported already."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1), os.dup2(nowhere.fileno(), 2)
        fitted(CONFIG, folder, resume=True)
        code = 0
    finally:
        os._exit(code)


def unloadable(folder: Path) -> list[str]:
    """Files of a run folder that a reader cannot read."""
    bad = []
    for path in folder.glob("*.*"):
        if path.name.startswith("."):
            continue
        try:
            if path.suffix == ".safetensors":
                load_tensors(path)
            elif path.suffix == ".json":
                json.loads(path.read_text())
        except (PyroCgeError, ValueError):
            bad.append(path.name)
    return bad


def kill(folder: Path, n_kills: int, seed: int = 0) -> dict[str, int]:
    """Kill runs ``n_kills`` times, half of them at a uniformly random moment, half once a file is being written."""
    rng = random.Random(seed)
    os.waitpid(start(folder / "straight"), 0)
    begun = time.monotonic()
    os.waitpid(start(folder / "again"), 0)
    longest = time.monotonic() - begun
    counts = dict.fromkeys(
        ("kills", "kills_in_write", "unloadable", "runs", "resume_differs", "left_behind", "errors"), 0
    )
    if not same(folder / "again", folder / "straight"):
        raise RuntimeError("two runs that were never killed differ: there is nothing to compare with")
    chains: list[Chain] = []
    number = 0
    while chains or counts["kills"] < n_kills:
        while len(chains) < AT_ONCE and counts["kills"] < n_kills:
            chains.append(Chain(folder / str(number)))
            number += 1
        for chain in list(chains):
            if not chain.process:
                more = chain.kills < KILLS_A_RUN and counts["kills"] < n_kills
                chain.in_write = more and rng.random() < 0.5
                chain.begun = time.monotonic()
                chain.deadline = chain.begun + (rng.uniform(0, longest) if more else PATIENCE)
                chain.left = writing(chain.folder)
                chain.process = start(chain.folder)
            ended, status = os.waitpid(chain.process, os.WNOHANG)
            if ended:
                chain.process = 0
                if not chain.kills:
                    longest = time.monotonic() - chain.begun  # the machine may be less busy by now
                if status:
                    counts["errors"] += 1
                if chain.kills:  # one that ended before its moment resumed nothing
                    counts["runs"] += 1
                    counts["resume_differs"] += not same(chain.folder, folder / "straight")
                    counts["left_behind"] += not tidy(chain.folder, folder / "straight")
                shutil.rmtree(chain.folder)
                chains.remove(chain)
            elif time.monotonic() > chain.deadline and (not chain.in_write or writing(chain.folder) - chain.left):
                os.kill(chain.process, signal.SIGKILL)
                os.waitpid(chain.process, 0)
                chain.process = 0
                chain.kills += 1
                counts["kills"] += 1
                counts["kills_in_write"] += bool(writing(chain.folder) - chain.left)
                counts["unloadable"] += len(unloadable(chain.folder))
                if counts["kills"] % 50 == 0:
                    print(f"  {counts}", flush=True)
        time.sleep(0.0005)
    return counts


def writing(folder: Path) -> frozenset[str]:
    """Temporary files of writes under way, or of writes that were killed."""
    return frozenset(n for n in os.listdir(folder) if n.endswith(".tmp")) if folder.exists() else frozenset()


def same(folder: Path, other: Path) -> bool:
    """Whether two finished runs hold the same bytes."""
    return all((folder / n).exists() and (folder / n).read_bytes() == (other / n).read_bytes() for n in COMPARED)


def tidy(folder: Path, other: Path) -> bool:
    """Whether two finished runs have the same files, and nothing left of a write."""
    files, others = ({path.relative_to(f) for path in f.rglob("*")} for f in (folder, other))
    return files == others


# Disks


def disks(folder: Path) -> dict[str, str]:
    """What a full and a read-only disk do to a run: real ones in a namespace of their own, else limits of the kernel."""
    place = folder / "disk"
    place.mkdir()
    command = [sys.executable, __file__, str(place)]
    mounted = [
        "unshare",
        "-Urm",
        "sh",
        "-c",
        f"mount -t tmpfs -o size=1m tmpfs {place} && exec {' '.join(command)} mounted",
    ]
    for how, attempt in (("tmpfs of 1 MB in a mount namespace", mounted), ("RLIMIT_FSIZE", [*command, "limited"])):
        done = subprocess.run(attempt, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return {"how": how, **json.loads(done.stdout.strip().splitlines()[-1])}
    raise RuntimeError(done.stderr)


def on_disk(place: Path, mounted: bool) -> dict[str, str]:
    """Each case: the error is ours, the earlier files are untouched, nothing is left behind, and a resume ends as ever."""
    found = {}
    out = place / "run"
    longer = CONFIG.model_copy(update={"epochs": 14})
    fitted(CONFIG, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def attempt(name: str) -> None:
        try:
            fitted(longer, out, resume=True)
            found[name] = "no error"
        except PyroCgeError as error:
            # config.json may say the new number of epochs: it is written first, and whole.
            changed = [p.name for p, old in before.items() if p.name != "config.json" and p.read_bytes() != old]
            left = [p.name for p in out.rglob(".*.tmp")]
            broken = changed or left or unloadable(out)
            found[name] = f"broken: {broken}" if broken else f"{type(error).__name__}, earlier files intact"
        except OSError as error:
            found[name] = f"foreign: {error!r}"

    if mounted:
        with open(place / "filler", "wb") as filler:
            space = os.statvfs(place)
            filler.write(b"\0" * (space.f_bavail * space.f_frsize - 8192))
        attempt("disk full")
        (place / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        attempt("read-only")
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        attempt("disk full")
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        if os.geteuid():  # permissions say nothing to root
            out.chmod(0o555)
            attempt("read-only")
            out.chmod(0o755)
    fitted(longer, out, resume=True)
    fitted(longer, place / "straight")
    found["resumed afterwards"] = "same bytes" if same(out, place / "straight") else "differs"
    return found


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    print(json.dumps(on_disk(Path(sys.argv[1]), sys.argv[2] == "mounted")))

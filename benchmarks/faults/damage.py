"""Flipped bits, and files that run code when unpickled."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import random
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
from inputs import TINY, data, effects
from safetensors.torch import save

import pyro_cge as cge
from pyro_cge.config import RunConfig, read_settings
from pyro_cge.data.geo import read_side_table
from pyro_cge.data.l1000 import read_gct
from pyro_cge.data.opening import stream
from pyro_cge.data.prepare import read_smiles
from pyro_cge.data.splits import Split
from pyro_cge.data.tables import read_table
from pyro_cge.discover import read_knowledge, read_profiles, read_targets
from pyro_cge.errors import PyroCgeError
from pyro_cge.imputation.reading import read_effects
from pyro_cge.impute import read_features, read_pairs
from pyro_cge.interpret.enrichment import read_gmt, read_weighted_sets
from pyro_cge.rank_drugs import read_signature
from pyro_cge.runs import load_fit, run
from pyro_cge.train.checkpoint import load_tensors

SECONDS = 30  # that reading a damaged file of some kilobytes may take


def flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flip_weights(folder: Path, n: int, seed: int = 0) -> dict[str, int]:
    """A bit of weights or of a checkpoint flipped: refused, without consequence, or undetected."""
    rng = random.Random(seed)
    counts = {"refused": 0, "harmless": 0, "undetected": 0}
    for number in range(n):
        source = folder / "run" / ("weights.safetensors", "checkpoint.safetensors")[number % 2]
        path = folder / "flipped.safetensors"
        path.write_bytes(flipped(source.read_bytes(), rng))
        try:
            tensors, manifest = load_tensors(path)
        except PyroCgeError:
            counts["refused"] += 1
            continue
        true, said = load_tensors(source)
        equal = (
            said == manifest and true.keys() == tensors.keys() and all(torch.equal(true[k], tensors[k]) for k in true)
        )
        counts["harmless" if equal else "undetected"] += 1
    return counts


def flip_data(folder: Path, n: int, seed: int = 0) -> dict[str, int]:
    """A bit of an .h5ad flipped: refused, without consequence, another digest (so refused by ``--resume``), undetected.

    Each is read in a process of its own, with limits: HDF5 is C.
    """
    rng = random.Random(seed)
    content, true = (folder / "good.h5ad").read_bytes(), cge.read_h5ad(folder / "good.h5ad")
    names = ("refused", "harmless", "other digest", "undetected", "crashed or foreign")
    counts = dict.fromkeys(names, 0)
    for _ in range(n):
        path = folder / "flipped.h5ad"
        path.write_bytes(flipped(content, rng))
        process = os.fork()
        if not process:
            os._exit(_read_flipped(path, true))
        status = os.waitpid(process, 0)[1]
        code = os.waitstatus_to_exitcode(status)
        counts[names[code if 0 <= code < 4 else 4]] += 1
    return counts


def _read_flipped(path: Path, true: cge.EnvironmentData) -> int:
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        found = cge.read_h5ad(path)
        if found.digest != true.digest:
            return 2
        equal = torch.equal(found.x, true.x) and torch.equal(found.env, true.env) and found.control == true.control
        equal &= list(found.gene_names) == list(true.gene_names) and list(found.env_names) == list(true.env_names)
        return 1 if equal else 3
    except PyroCgeError:
        return 0
    except BaseException:
        return 4


# Pickles


class Trap:
    """Unpickling this makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> tuple[object, ...]:
        return open, (self.target, "w")


def traps(canary: Path, folder: Path) -> dict[str, bytes]:
    """Contents that run code in a reader that unpickles."""
    trap = Trap(canary)
    made = {f"pickle protocol {p}": pickle.dumps(trap, protocol=p) for p in (0, 2, 4, 5)}
    for name, zipped in (("torch.save", True), ("torch.save, old", False)):
        buffer = io.BytesIO()
        torch.save({"model": trap}, buffer, _use_new_zipfile_serialization=zipped)
        made[name] = buffer.getvalue()
    for name, write in (("npy", np.save), ("npz", np.savez)):
        buffer = io.BytesIO()
        write(buffer, np.array([trap, trap], dtype=object), allow_pickle=True)
        made[name] = buffer.getvalue()
    made["gzipped pickle"] = gzip.compress(pickle.dumps(trap))
    text = pickle.dumps(trap, protocol=0).decode("latin-1")
    made["safetensors header"] = save({"a": torch.zeros(1)}, metadata={"pyro_cge": text})
    made["yaml tag"] = f"latents: !!python/object/apply:builtins.open ['{canary}', 'w']\n".encode()
    with h5py.File(folder / "trap.h5", "w") as file:
        raw = np.void(pickle.dumps(trap))
        for key in ("X", "obs", "var", "uns", "0/DATA/0/matrix", "0/META/COL/id", "0/META/ROW/id"):
            file[key] = raw
            file[key].attrs["encoding-type"] = "pickle"
        file.attrs["encoding-type"], file.attrs["encoding-version"], file.attrs["pickled"] = "anndata", "0.1.0", raw
    made["HDF5 of pickles"] = (folder / "trap.h5").read_bytes()
    return made


def loaders(folder: Path) -> dict[str, Callable[[Path], object]]:
    """Everything that reads a file, by the ending of what it reads."""
    own = cge.read_h5ad
    return {
        ".safetensors": load_tensors,
        ".pt": load_tensors,
        ".h5ad": own,
        "stream.h5ad": stream,
        "stream.gctx": stream,
        "discover.h5ad": lambda path: read_profiles(path, None),
        "effects.h5ad": lambda path: read_effects(path, "context", "action"),
        ".gct": read_gct,
        ".gctx": read_gct,
        ".csv": read_table,
        ".csv.gz": read_table,
        ".tsv": read_table,
        "side.txt": read_side_table,
        "side.txt.gz": read_side_table,
        "smiles.csv": read_smiles,
        "effects.csv": lambda path: read_effects(path, "context", "action"),
        "signature.csv": lambda path: read_signature(path, ["log2fc"]),
        "profiles.csv": lambda path: read_profiles(path, None),
        "knowledge.csv": lambda path: read_knowledge(path),
        "targets.csv": read_targets,
        "pairs.csv": lambda path: read_pairs(path, effects()),
        "features.csv": lambda path: effects(context_features=read_features(path)),
        ".gmt": read_gmt,
        "sets.csv": read_weighted_sets,
        "split.json": Split.load,
        ".yaml": lambda path: read_settings(RunConfig, path),
    }


def pickles(folder: Path) -> dict[str, int]:
    """Every trap through every loader, in place of every file of a run too."""
    canary = folder / "canary"
    counts = {"attempts": 0, "executed": 0, "foreign": 0, "read as data": 0}

    def attempt(name: str, read: Callable[[], object]) -> None:
        counts["attempts"] += 1
        try:
            read()
            counts["read as data"] += 1
            print(f"  read as data: {name}")
        except PyroCgeError:
            pass
        except Exception as error:
            counts["foreign"] += 1
            print(f"  foreign: {name}: {error!r}")
        if canary.exists():
            counts["executed"] += 1
            canary.unlink()

    for trap, content in traps(canary, folder).items():
        for ending, read in loaders(folder).items():
            path = folder / f"trap{ending}"
            path.write_bytes(content)
            attempt(f"{trap} as {ending}", lambda read=read, path=path: read(path))  # type: ignore[misc]
        for name in ("weights", "checkpoint", "config", "split", "history"):
            path = next((folder / "run").glob(f"{name}.*"))
            kept = path.read_bytes()
            path.write_bytes(content)
            loading = name in ("weights", "history")
            attempt(f"{trap} as {name} of a run", lambda loading=loading: _load_or_resume(folder / "run", loading))  # type: ignore[misc]
            path.write_bytes(kept)
    zarr = folder / "trap.zarr"
    pickled_zarr(zarr, Trap(canary))
    attempt("zarr", lambda: stream(zarr, env_key="e").batch(torch.arange(2)))
    return counts


def _load_or_resume(folder: Path, loading: bool) -> object:
    return load_fit(folder) if loading else run(TINY, data(), folder, resume=True, progress=False)


def pickled_zarr(folder: Path, trap: Trap) -> None:
    """A zarr folder whose names are stored through zarr's own codec of pickles."""
    import json

    for place in (folder, folder / "obs", folder / "var"):
        place.mkdir()
        (place / ".zgroup").write_text('{"zarr_format": 2}')
    codec = [{"id": "pickle", "protocol": 5}]
    about = {"zarr_format": 2, "order": "C", "compressor": None, "fill_value": None, "chunks": [2], "shape": [2]}
    for name in ("obs/e", "obs/_index", "var/_index"):
        (folder / name).mkdir()
        (folder / name / ".zarray").write_text(json.dumps(about | {"dtype": "|O", "filters": codec}))
        (folder / name / "0").write_bytes(pickle.dumps(trap))
        (folder / name / ".zattrs").write_text('{"encoding-type": "string-array", "encoding-version": "0.2.0"}')
    for name, columns in (("obs", ["e"]), ("var", [])):
        frame = {"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index", "column-order": columns}
        (folder / name / ".zattrs").write_text(json.dumps(frame))
    (folder / ".zattrs").write_text('{"encoding-type": "anndata", "encoding-version": "0.1.0"}')

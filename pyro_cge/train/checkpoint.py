"""Weights and checkpoints on disk: safetensors with a JSON manifest inside, written so that a kill loses nothing.

The manifest holds format, package versions, version of the site table, what the writer adds, and ``sha256`` of all that
and of the tensors, which is checked whenever the file is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .. import sites
from ..data.environment import some
from ..data.files import replacing
from ..errors import CheckpointError, DataError

FORMAT = 2
PACKAGES = ("pyro-cge", "torch", "pyro-ppl", "numpy", "pandas", "anndata")


@cache
def versions() -> dict[str, str]:
    """Versions of the packages a fit depends on."""
    return {name: version(name) for name in PACKAGES}


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a temporary file beside ``path``, flush it to disk, then rename: readers see the old file or the new.

    Raises
    ------
    CheckpointError
        If the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror or error}. Choose a folder you may write to, with enough space."
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    write_atomically(path, (json.dumps(content, indent=2, default=str) + "\n").encode())


def save_tensors(path: Path, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> None:
    """Write tensors and a JSON manifest as one safetensors file, atomically."""
    # safetensors refuses tensors that share memory; a copy of each keeps tied weights simple.
    flat = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    header = {**manifest, "format": FORMAT, "sites": sites.VERSION, "versions": versions()}
    header["sha256"] = _sha256(flat, header)
    # One entry: safetensors keeps several in no order, and the same fit shall be the same bytes.
    write_atomically(Path(path), save(flat, metadata={"pyro_cge": json.dumps(header)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and manifest of a file written by :func:`save_tensors`, in today's format. Nothing is ever unpickled.

    Raises
    ------
    CheckpointError
        If the file is missing, truncated, of another kind (a pickled ``.pt``, say), of an unknown format or site table,
        or no longer what was written (its hash differs).
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if path.is_dir():
        raise CheckpointError(f"cannot read {path}: it is a folder, expected a .safetensors file")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"cannot read {path}: {_kind(path)} ({error})") from error
    if "pyro_cge" not in metadata:
        raise CheckpointError(f"{path} is a safetensors file, but not one of pyro_cge (no manifest in its header)")
    try:
        manifest = json.loads(metadata["pyro_cge"])
        written_as = int(manifest["format"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path}: the manifest in its header is damaged ({error!r})") from error
    if written_as > FORMAT:
        raise CheckpointError(f"{path} has format {written_as}, this version reads up to {FORMAT}: upgrade pyro_cge")
    said = manifest.pop("sha256", None)
    if (written_as > 1 or said) and said != _sha256(tensors, manifest):  # format 1 had none
        raise CheckpointError(
            f"{path} is not what was written: its SHA-256 differs from the one in its header. The file is damaged or was "
            "edited; copy it again from where it came, or fit again"
        )
    for number in range(written_as, FORMAT):
        if number not in MIGRATIONS:
            raise CheckpointError(f"{path} has format {written_as}, which this version no longer reads: fit again")
        manifest = MIGRATIONS[number](manifest)
    if manifest.get("sites") != sites.VERSION:
        raise CheckpointError(
            f"{path} was fitted under version {manifest.get('sites')} of the table of sample sites, this is version "
            f"{sites.VERSION}: use the pyro_cge it was written with ({manifest.get('versions')}), or fit again"
        )
    return tensors, manifest


def _from_format_1(manifest: dict[str, Any]) -> dict[str, Any]:
    """No hash, and no version of the site table, of which there was only the first."""
    return {"versions": {}, **manifest, "format": 2, "sites": 1}


MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_format_1}
"""From a format to the next."""


def _sha256(tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> str:
    """Of the manifest as JSON, then of name, dtype, shape and bytes of each tensor, in the order of names."""
    sha = hashlib.sha256(json.dumps(manifest).encode())
    for name, value in sorted(tensors.items()):
        sha.update(f"\n{name} {value.dtype} {list(value.shape)}\n".encode())
        sha.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _kind(path: Path) -> str:
    """What a file that is no safetensors file seems to be."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError:
        return "it cannot be opened"
    if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return "it is a pickled or zipped PyTorch file, which is refused because unpickling runs code"
    return "it is not a complete safetensors file"


def name_differences(field: str, theirs: list[str], mine: list[str]) -> list[str]:
    """What differs between names then and now: those missing, those new, or their order."""
    here, there = set(mine), set(theirs)
    changes = {
        f"{field} no longer there": [name for name in theirs if name not in here],
        f"new {field}": [name for name in mine if name not in there],
    }
    found = [f"{change}: {some(names)}" for change, names in changes.items() if names]
    return found or [f"{field} in another order"] * (theirs != mine)


def load_into(modules: Mapping[str, torch.nn.Module], tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load ``{module name}.{parameter}`` tensors into modules; all or nothing.

    Raises
    ------
    CheckpointError
        With the list of differences when names or shapes do not fit.
    """
    differences = []
    for prefix, module in modules.items():
        mine = module.state_dict()
        theirs = {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}
        differences += [f"missing {prefix}.{k}" for k in mine.keys() - theirs.keys()]
        differences += [f"unexpected {prefix}.{k}" for k in theirs.keys() - mine.keys()]
        differences += [
            f"{prefix}.{k} has shape {list(theirs[k].shape)}, expected {list(mine[k].shape)}"
            for k in mine.keys() & theirs.keys()
            if mine[k].shape != theirs[k].shape
        ]
    if differences:
        shown = "; ".join(sorted(differences)[:6]) + (" …" if len(differences) > 6 else "")
        raise CheckpointError(f"{path} holds another model, {len(differences)} differences: {shown}")
    for prefix, module in modules.items():
        own = {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}
        module.load_state_dict(own)

"""Weights and checkpoints on disk: safetensors with a JSON manifest inside, written so that a kill loses nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..data.files import replacing
from ..errors import CheckpointError, DataError

FORMAT = 1


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
    except (OSError, DataError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CheckpointError(
            f"cannot write {path}: {reason}. Choose a folder you may write to, with enough space."
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    write_atomically(path, (json.dumps(content, indent=2, default=str) + "\n").encode())


def save_tensors(path: Path, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> None:
    """Write tensors and a JSON manifest as one safetensors file, atomically."""
    flat = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    # safetensors refuses tensors that share memory; a copy of each keeps tied weights simple.
    flat = {name: value.clone() for name, value in flat.items()}
    header = {"format": FORMAT, **manifest}
    write_atomically(Path(path), save(flat, metadata={"pyro_cge": json.dumps(header)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and manifest of a file written by :func:`save_tensors`. Nothing is ever unpickled.

    Raises
    ------
    CheckpointError
        If the file is missing, truncated, of another kind (a pickled ``.pt``, say) or of a newer format.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if path.is_dir():
        raise CheckpointError(f"cannot read {path}: it is a folder, expected a .safetensors file")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = (file.metadata() or {}).get("pyro_cge")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        with path.open("rb") as file_bytes:
            start = file_bytes.read(4)
        kind = (
            "a pickled or zipped PyTorch file, which is refused because unpickling runs code"
            if (start[:2] in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05"))
            else "not a complete safetensors file"
        )
        raise CheckpointError(f"cannot read {path}: it is {kind} ({error})") from error
    if header is None:
        raise CheckpointError(f"{path} is a safetensors file, but not one of pyro_cge (no manifest in its header)")
    try:
        manifest = json.loads(header)
        newer = int(manifest["format"]) > FORMAT
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"cannot read {path}: the manifest in its header is damaged ({error!r})") from error
    if newer:
        raise CheckpointError(
            f"{path} has format {manifest['format']}, this version reads up to {FORMAT}: upgrade pyro_cge"
        )
    return tensors, manifest


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

"""Run folders before anything heavy is loaded: may a run begin here, go on, or be used?"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import CheckpointError, ConfigError


def check_new(folder: Path, otherwise: str = "") -> None:
    """Refuse a folder that holds something; ``otherwise`` is what else one may do.

    Raises
    ------
    ConfigError
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"{folder} exists and is not an empty folder: choose another with --out, or remove it{otherwise}"
        )


def check_run(settings: Mapping[str, Any], folder: Path, resume: bool) -> bool:
    """Whether a run of these settings (as JSON has them) was begun in the folder and goes on there.

    Raises
    ------
    ConfigError
        If the folder holds a run and ``resume`` is False, a run of other settings, or something else than a run.
    CheckpointError
        If what it was begun with cannot be read.
    """
    known = folder / "config.json"
    if not known.exists():
        # All that a run killed in its first write leaves is that write.
        if not folder.is_dir() or any(path.suffix != ".tmp" for path in folder.iterdir()):
            check_new(folder)
        return False
    if not resume:
        raise ConfigError(f"{folder} holds a run already: choose another folder, or continue it with --resume")
    previous = read_json(known)
    # Learning rate and temperature follow the number of epochs, where they change at all.
    free = () if settings["schedule"] or settings["final_temperature"] else ("epochs",)
    if changed := [k for k in settings if k not in free and previous.get(k) != settings[k]]:
        differences = "; ".join(f"{k} was {previous.get(k)!r}, is {settings[k]!r} now" for k in changed)
        raise ConfigError(
            f"{folder} was run with other settings ({differences}): give the same again, --config {known}"
        )
    return True


def finished_fits(folder: Path) -> list[tuple[str, int]]:
    """Model and seed of each finished run ``model/seed0`` in a folder of ``compare``."""
    found = (
        re.fullmatch(r"(\w+)/seed(\d+)", path.parent.relative_to(folder).as_posix())
        for path in folder.glob("*/seed*/weights.safetensors")
    )
    return sorted((match[1], int(match[2])) for match in found if match)


def check_finished(folder: Path) -> Path:
    """The weights of a finished run.

    Raises
    ------
    CheckpointError
        If the folder holds none.
    """
    path = folder / "weights.safetensors"
    if not path.exists():
        raise CheckpointError(
            f"{folder} holds no finished run (no {path.name}): check the path; pyro-cge fit makes one, and with --resume "
            "ends one that was stopped"
        )
    return path


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a run folder.

    Raises
    ------
    CheckpointError
        If it cannot be read or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {path} ({error}): restore it, or start again in another folder") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, found {type(content).__name__}: restore it")
    return content

"""What run folders hold, read without the data: settings, versions, split, history, metrics."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..config import RunConfig, validated
from ..errors import CheckpointError, ConfigError
from ..folders import read_json
from ..train.checkpoint import load_tensors

PARTS = ("train", "valid", "test")


@dataclass(frozen=True, eq=False)
class Run:
    """One run folder.

    Attributes
    ----------
    versions : dict
        Package versions.
    data : str
        SHA-256 of the data (:attr:`~pyro_cge.data.environment.EnvironmentData.digest`).
    sizes : dict
        Profiles in each part of the split, which is ``by`` something.
    history : DataFrame
        One row an epoch, also of a run that did not finish.
    metrics : dict
        ``{part: {metric: value}}``; empty where the run did not finish.
    best_epoch : int
    """

    path: Path
    config: RunConfig
    versions: dict[str, str]
    data: str
    by: str
    sizes: dict[str, int]
    history: pd.DataFrame
    metrics: dict[str, dict[str, float]]
    best_epoch: int

    @property
    def finished(self) -> bool:
        return bool(self.metrics)

    @property
    def held_out(self) -> str:
        """The part to judge by: test, else valid, else train."""
        return next((part for part in reversed(PARTS) if self.sizes[part]), "train")

    @property
    def best_loss(self) -> float:
        """Lowest held-out loss during training: what chooses among seeds, so that the test part chooses nothing."""
        column = "valid_loss" if "valid_loss" in self.history else "train_loss"
        return float(self.history[column].min()) if len(self.history) else float("inf")


@dataclass(frozen=True, eq=False)
class Configuration:
    """Runs of the same settings on the same data, which differ in their seed.

    Attributes
    ----------
    name : str
        Of the folder, with as many parents as tell it from the others.
    differs : tuple of str
        Settings in which it differs from another configuration.
    """

    name: str
    runs: list[Run]
    differs: tuple[str, ...] = ()

    @property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.finished]

    @property
    def best(self) -> Run | None:
        return min(self.finished, key=lambda run: run.best_loss, default=None)

    @property
    def best_loss(self) -> float:
        return float("inf") if self.best is None else self.best.best_loss


def find(folders: Sequence[Path]) -> list[Run]:
    """Read run folders; a folder that holds run folders, at any depth, stands for all of them.

    Raises
    ------
    ConfigError
        If no folder is given.
    CheckpointError
        If there is no run, or one is damaged: the message names folder and file.
    """
    if not folders:
        raise ConfigError("no run folders were given: name at least one")
    found: dict[Path, Path] = {}  # a folder given twice, by whatever path, is one run
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is not a folder: give folders that pyro-cge fit, compare or demo wrote")
        inside = [folder] if (folder / "config.json").exists() else []
        inside = inside or sorted(file.parent for file in folder.rglob("split.json") if _is_run(file.parent))
        if not inside:
            raise CheckpointError(
                f"{folder} holds no run (no config.json): give a folder that pyro-cge fit, compare or demo wrote"
            )
        for run in inside:
            found.setdefault(run.resolve(), run)
    return [read(folder) for folder in found.values()]


def read(folder: Path) -> Run:
    """Read one run folder, finished or not.

    Raises
    ------
    CheckpointError, ConfigError
        If a file is missing or damaged.
    """
    config = validated(RunConfig, read_json(folder / "config.json"), str(folder / "config.json"))
    versions, parts = read_json(folder / "versions.json"), read_json(folder / "split.json")
    weights, checkpoint = folder / "weights.safetensors", folder / "checkpoint.safetensors"
    # A finished run that is being continued has the old weights and asks for more epochs.
    manifest = load_tensors(weights)[1] if weights.exists() else {}
    metrics: dict[str, dict[str, float]] = {}
    try:
        if manifest and manifest["config"]["epochs"] == config.epochs:
            scores, history = read_json(folder / "metrics.json"), _history(folder / "history.csv")
            metrics = {part: {k: float(v) for k, v in values.items()} for part, values in scores.items()}
        else:
            manifest = load_tensors(checkpoint)[1] if checkpoint.exists() else {"history": [], "best_epoch": -1}
            history = pd.DataFrame(manifest["history"], dtype=float)
        sizes = {part: len(parts[part]) for part in PARTS}
        by, data = str(parts["by"]), str(parts["data_digest"])
        best = int(manifest["best_epoch"])
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{folder} is damaged: its split, metrics or weights are not those of a run ({error!r}); run it again"
        ) from error
    versions = {name: version for name, version in versions.items() if name != "data"}
    return Run(folder, config, versions, data, by, sizes, history, metrics, best)


def configurations(runs: Sequence[Run]) -> list[Configuration]:
    """Runs of several seeds grouped by settings and data, named by their folders.

    Seeds in a folder of their own have its name (``environment`` for ``environment/seed0`` and ``environment/seed1``,
    as ``compare`` writes them), others those of all their folders.
    """
    groups: dict[tuple[str, int], list[Run]] = {}
    seen: Counter[tuple[str, int]] = Counter()
    for run in runs:
        settings = run.config.model_dump(mode="json", exclude={"seed"})
        key = json.dumps([settings, run.data], sort_keys=True), run.config.seed
        # The same seed again is no further evidence: it stands by itself.
        groups.setdefault((key[0], seen[key]), []).append(run)
        seen[key] += 1
    places = [_places(members, runs) for members in groups.values()]
    names = _short([path for paths in places for path in paths])
    dumps = [members[0].config.model_dump(exclude={"seed"}) for members in groups.values()]
    differs = tuple(key for key in dumps[0] if any(dump[key] != dumps[0][key] for dump in dumps))
    return [
        Configuration(_listed([names[path] for path in paths]), members, differs)
        for paths, members in zip(places, groups.values(), strict=True)
    ]


def _places(members: Sequence[Run], runs: Sequence[Run]) -> list[Path]:
    """The folder that holds these runs and no others, else the folder of each."""
    own = [run.path.resolve() for run in members]
    shared = Path(os.path.commonpath(own))
    if re.fullmatch(r"seed\d+", shared.name):
        shared = shared.parent
    alone = not any(run.path.resolve().is_relative_to(shared) for run in runs if run not in members)
    return [shared] if alone and shared.name else own


def _short(paths: Sequence[Path]) -> dict[Path, str]:
    """The end of each path, as long as it takes to be that of no other."""

    def end(path: Path, length: int) -> str:
        return Path(*path.parts[-length:]).as_posix()

    return {
        path: next(
            end(path, k)
            for k in range(1, len(path.parts) + 1)
            if k == len(path.parts) or all(end(other, k) != end(path, k) for other in paths if other != path)
        )
        for path in paths
    }


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} … {names[-1]}"


def _is_run(folder: Path) -> bool:
    return (folder / "config.json").exists() and (folder / "versions.json").exists()


def _history(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
        return table.astype(float).astype({"epoch": int})
    except (OSError, ValueError, KeyError, pd.errors.ParserError) as error:
        raise CheckpointError(f"{path.parent} is damaged: cannot read {path.name} ({error}); run it again") from error

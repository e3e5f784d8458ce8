"""What run folders hold, read without the data: settings, versions, split, history, metrics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..config import RunConfig, validated
from ..errors import CheckpointError, ConfigError
from ..train.checkpoint import load_tensors, read_json

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
    """Runs of the same settings on the same data, which differ in their seed."""

    name: str
    runs: list[Run]

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
    found: dict[Path, None] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is not a folder: give folders that pyro-cge fit, compare or demo wrote")
        inside = [folder] if (folder / "config.json").exists() else []
        inside = inside or sorted(file.parent for file in folder.rglob("split.json") if _is_run(file.parent))
        if not inside:
            raise CheckpointError(
                f"{folder} holds no run (no config.json): give a folder that pyro-cge fit, compare or demo wrote"
            )
        found |= dict.fromkeys(inside)
    return [read(folder) for folder in found]


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
    """Runs grouped by settings and data, named by model and what sets them apart."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        settings = run.config.model_dump(mode="json", exclude={"seed"})
        groups.setdefault(json.dumps([settings, run.data], sort_keys=True), []).append(run)
    firsts = [members[0] for members in groups.values()]
    return [Configuration(_name(members[0], firsts), members) for members in groups.values()]


def _name(run: Run, others: Sequence[Run]) -> str:
    alike = [other for other in others if other.config.model == run.config.model]
    varying = [
        f"{key.replace('_', ' ')} {value}"
        for key, value in run.config
        if key not in ("seed", "rotate") and any(getattr(other.config, key) != value for other in alike)
    ]
    if any(other.data != run.data for other in alike):
        varying.append(f"data {run.data[:8]}")
    model = run.config.model.replace("_", " ") + (" + rotation" if run.config.rotate else "")
    return ", ".join([model, *varying])


def _is_run(folder: Path) -> bool:
    return (folder / "config.json").exists() and (folder / "versions.json").exists()


def _history(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
        return table.astype(float).astype({"epoch": int})
    except (OSError, ValueError, KeyError, pd.errors.ParserError) as error:
        raise CheckpointError(f"{path.parent} is damaged: cannot read {path.name} ({error}); run it again") from error

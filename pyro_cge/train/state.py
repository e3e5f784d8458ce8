"""The state of a training run, and how it is kept on disk between epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.environment import EnvironmentData
from ..errors import CheckpointError
from .checkpoint import load_into, load_tensors, name_differences, save_tensors


@dataclass
class TrainingState:
    """Everything that changes during training, and its checkpoint file.

    ``history`` has a row an epoch; ``best`` are the weights of the best held-out loss, at ``best_epoch``. The file holds
    the names of genes and environments of ``schema`` too, to say what changed where other data are given.
    """

    modules: Mapping[str, nn.Module]
    optimizer: torch.optim.Optimizer
    schema: EnvironmentData | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = -1

    @property
    def epoch(self) -> int:
        """The next epoch to run."""
        return len(self.history)

    def record(self, row: dict[str, float]) -> None:
        self.history.append(row)
        loss = row.get("valid_loss")
        if loss is None or not self.best:
            self.best_epoch = self.epoch - 1
        if loss is None or not math.isfinite(loss):
            return
        if not self.best or loss < self.history[self.best_epoch]["valid_loss"]:
            self.best_epoch = self.epoch - 1
            self.best = {k: v.clone() for k, v in self._weights().items()}

    def exhausted(self, patience: int | None, kl_warmup: int) -> bool:
        if patience is None or not self.best:
            return False
        return self.epoch - 1 - max(self.best_epoch, kl_warmup - 1) >= patience

    def restore_best(self) -> None:
        if self.best:
            load_into(self.modules, self.best, Path("best weights"))

    def _weights(self) -> dict[str, Tensor]:
        return {f"{m}.{k}": v.detach() for m, module in self.modules.items() for k, v in module.state_dict().items()}

    def save(self, path: Path, settings: Mapping[str, Any]) -> None:
        optimizer = self.optimizer.state_dict()
        tensors = {f"now.{k}": v for k, v in self._weights().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        tensors |= {
            f"optimizer.{i}.{k}": torch.as_tensor(v) for i, s in optimizer["state"].items() for k, v in s.items()
        }
        manifest = {
            "kind": "checkpoint",
            "settings": dict(settings),
            "history": self.history,
            "best_epoch": self.best_epoch,
            "param_groups": optimizer["param_groups"],
            **self._names(),
        }
        save_tensors(path, tensors, manifest)

    def load(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Put the state of a checkpoint in place; nothing is changed where it does not fit.

        Raises
        ------
        CheckpointError
            If the file cannot be read, or belongs to a run with other settings, data or model: with the differences.
        """
        tensors, manifest = load_tensors(path)
        if manifest.get("kind") != "checkpoint":
            raise CheckpointError(f"{path} holds {manifest.get('kind')}, not a training checkpoint")
        try:
            theirs, history = manifest["settings"], list(manifest["history"])
            best_epoch, groups = int(manifest["best_epoch"]), manifest["param_groups"]
            changed = [
                f"{k}: {theirs.get(k)!r} then, {v!r} now"
                for k, v in settings.items()
                if k != "epochs" and theirs.get(k) != v
            ]
            for field, mine in self._names().items():
                changed += name_differences(field, manifest.get(field, mine), mine)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"cannot read {path}: its manifest lacks parts of a checkpoint ({error!r})"
            ) from error
        if changed:
            raise CheckpointError(f"{path} belongs to a run with other settings ({'; '.join(changed)})")
        if len(history) > settings.get("epochs", math.inf):
            raise CheckpointError(
                f"{path} is of a run of {len(history)} epochs already: give epochs={len(history)} or more, or start anew"
            )

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        load_into(self.modules, part("now."), path)
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in part("optimizer.").items():
            number, slot = name.split(".", 1)
            slots.setdefault(int(number), {})[slot] = value
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        self.history, self.best_epoch = history, best_epoch
        self.best = part("best.")

    def _names(self) -> dict[str, list[str]]:
        if self.schema is None:
            return {}
        return {"genes": list(self.schema.gene_names), "environments": list(self.schema.env_names)}

"""The state of a training run, and how it is kept on disk between epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .checkpoint import load_into, load_tensors, save_tensors


@dataclass
class TrainingState:
    """Everything that changes during training, and its checkpoint file.

    ``history`` has a row an epoch; ``best`` are the weights of the best held-out loss, at ``best_epoch``.
    """

    modules: Mapping[str, nn.Module]
    optimizer: torch.optim.Optimizer
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = -1
    rng: dict[str, Tensor] | None = None

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

    def save(self, path: Path, settings: Mapping[str, Any], rng: Mapping[str, Tensor]) -> None:
        optimizer = self.optimizer.state_dict()
        tensors = {f"now.{k}": v for k, v in self._weights().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        tensors |= {f"rng.{k}": v for k, v in rng.items()}
        tensors |= {
            f"optimizer.{i}.{k}": torch.as_tensor(v) for i, s in optimizer["state"].items() for k, v in s.items()
        }
        manifest = {
            "kind": "checkpoint",
            "settings": dict(settings),
            "history": self.history,
            "best_epoch": self.best_epoch,
            "param_groups": optimizer["param_groups"],
            "versions": {"torch": torch.__version__, "pyro": pyro.__version__},
        }
        save_tensors(path, tensors, manifest)

    def load(self, path: Path, settings: Mapping[str, Any]) -> None:
        tensors, manifest = load_tensors(path)
        if manifest.get("kind") != "checkpoint":
            raise CheckpointError(f"{path} holds {manifest.get('kind')}, not a training checkpoint")
        theirs = manifest["settings"]
        changed = [
            f"{k}: {theirs.get(k)!r} then, {v!r} now"
            for k, v in settings.items()
            if k != "epochs" and theirs.get(k) != v
        ]
        if changed:
            raise CheckpointError(f"{path} belongs to a run with other settings ({'; '.join(changed)})")

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        load_into(self.modules, part("now."), path)
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in part("optimizer.").items():
            number, slot = name.split(".", 1)
            slots.setdefault(int(number), {})[slot] = value
        self.optimizer.load_state_dict({"state": slots, "param_groups": manifest["param_groups"]})
        self.history, self.best_epoch = manifest["history"], manifest["best_epoch"]
        self.best, self.rng = part("best."), part("rng.")


def get_rng(device: torch.device) -> dict[str, Tensor]:
    """Random states in force, on the CPU and on ``device``."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_rng(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Put random states of :func:`get_rng` back in force."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)

"""The training loop of the models that are fitted by SVI."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import torch
from torch import Tensor

from ..seeds import isolated
from .progress import shown


def train_guide(
    loss: Callable[[], Tensor],
    optimiser: torch.optim.Optimizer,
    *,
    steps: int,
    decay: float,
    seed: int,
    progress: bool | None,
) -> list[float]:
    """Minimise, with a learning rate that falls to ``decay`` of itself; the loss of each step.

    Neither the global generator nor the parameter store is touched.
    """
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, decay ** (1 / steps))
    history = []
    with isolated(seed), pyro.get_param_store().scope():
        for _ in shown(range(steps), steps, progress):
            optimiser.zero_grad()
            value = loss()
            value.backward()
            optimiser.step()
            schedule.step()
            history.append(float(value.detach()))
    return history

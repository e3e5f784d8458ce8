"""How an encoder sees the environment: not at all, concatenated, by FiLM, or through its noise law."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn

from ..data.environment import Batch, EnvironmentData
from ..models.networks import EnvironmentNetwork
from ..scm.shifts import NoiseShift

Conditioning = Literal["concat", "film", "shift"] | None


class Concat(nn.Module):
    """``h = W [x, e] + b``: concatenation, written as an additive term so that features are read once an environment."""

    def __init__(self, data: EnvironmentData, width: int) -> None:
        super().__init__()
        self.environment = EnvironmentNetwork(data, width)

    def forward(self, hidden: Tensor, batch: Batch, shift: NoiseShift | None = None) -> Tensor:
        return hidden + self.environment(batch).index_select(-2, batch.env)


class FiLM(nn.Module):
    """``h' = (1 + γ(e)) ⊙ h + β(e)`` (Perez et al. 2017)."""

    def __init__(self, data: EnvironmentData, width: int) -> None:
        super().__init__()
        self.environment = EnvironmentNetwork(data, 2 * width)

    def forward(self, hidden: Tensor, batch: Batch, shift: NoiseShift | None = None) -> Tensor:
        gamma, beta = self.environment(batch).index_select(-2, batch.env).chunk(2, -1)
        return (1 + gamma) * hidden + beta


class OnShift(nn.Module):
    """``h = W [x, loc_e, log_scale_e] + b``: the encoder sees what was drawn for the environment (Bereket & Karaletsos 2023).

    ``z`` and the environment's effects are then correlated in the posterior.
    """

    def __init__(self, d: int, width: int) -> None:
        super().__init__()
        self.law = nn.Linear(2 * d, width, bias=False)

    def forward(self, hidden: Tensor, batch: Batch, shift: NoiseShift | None = None) -> Tensor:
        law = cast(NoiseShift, shift)
        return hidden + self.law(torch.cat([law.loc, law.log_scale], -1)).index_select(-2, batch.env)

"""How an encoder sees the environment: not at all, concatenated, or by FiLM."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from ..data.environment import Batch, EnvironmentData
from ..models.networks import EnvironmentNetwork

Conditioning = Literal["concat", "film"] | None


class Concat(nn.Module):
    """``h = W [x, e] + b``: concatenation, written as an additive term so that features are read once an environment."""

    def __init__(self, data: EnvironmentData, width: int) -> None:
        super().__init__()
        self.environment = EnvironmentNetwork(data, width)

    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        return hidden + self.environment(batch).index_select(-2, batch.env)


class FiLM(nn.Module):
    """``h' = (1 + γ(e)) ⊙ h + β(e)`` (Perez et al. 2017)."""

    def __init__(self, data: EnvironmentData, width: int) -> None:
        super().__init__()
        self.environment = EnvironmentNetwork(data, 2 * width)

    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        gamma, beta = self.environment(batch).index_select(-2, batch.env).chunk(2, -1)
        return (1 + gamma) * hidden + beta

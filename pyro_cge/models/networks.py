"""Small building blocks shared by priors, decoders and guides."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

from ..data.environment import Batch, EnvironmentData
from ..errors import DataError, check_sizes


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers ``sizes[0] → … → sizes[-1]`` with ReLU between them.

    Raises
    ------
    ConfigError
        If a hidden layer has no units.
    """
    for size in sizes[1:-1]:
        check_sizes(hidden=size)
    steps: list[nn.Module] = []
    for below, above in itertools.pairwise(sizes):
        steps += [nn.Linear(below, above), nn.ReLU()]
    return nn.Sequential(*steps[:-1])


def soft_clamp(raw: Tensor, low: float, high: float) -> Tensor:
    """Smooth map into ``(low, high)``, the identity to second order at the middle.

    Every log standard deviation in the package passes through it: an unbounded ``exp`` of a network output is what
    makes losses explode on heavy-tailed data.
    """
    middle, half = (low + high) / 2, (high - low) / 2
    # ``a + alpha · b`` on tensors: arithmetic with Python numbers takes twice as many operations, each twice as long.
    inside = torch.add(_number(-middle / half, raw.dtype), raw, alpha=1 / half)
    return torch.add(_number(middle, raw.dtype), torch.tanh(inside), alpha=half)


@cache
def _number(value: float, dtype: torch.dtype) -> Tensor:
    """``value`` as a tensor of no dimensions on the CPU, which goes with tensors of any device."""
    return torch.tensor(value, dtype=dtype, device="cpu")


class EnvironmentNetwork(nn.Module):
    """What a model knows of an environment: a network on its features, or a free row where it has none.

    Parameters
    ----------
    data : EnvironmentData
        Only the number of environments and features is read.
    out : int
        Outputs an environment.
    hidden : sequence of int
        Hidden layers of the feature network; none gives a linear map. Ignored without features.
    """

    def __init__(self, data: EnvironmentData, out: int, hidden: Sequence[int] = ()) -> None:
        super().__init__()
        self.network: nn.Module | None = None
        self.table: nn.Embedding | None = None
        if data.n_features is not None:
            self.network = mlp([data.n_features, *hidden, out])
        else:
            self.table = nn.Embedding(data.n_envs, out)
            nn.init.normal_(self.table.weight, std=1 / math.sqrt(out))

    def forward(self, batch: Batch) -> Tensor:
        """``[E_b, out]``, one row an environment of the batch.

        Raises
        ------
        DataError
            For an environment that was not in training and has no features.
        """
        if self.network is not None:
            if batch.env_features is None:
                raise DataError("this model was trained with environment features, but the batch has none")
            return self.network(batch.env_features)
        assert self.table is not None
        return self.table(batch.envs)

    def start_at(self, values: Tensor, batch: Batch, steps: int = 500) -> None:
        """Set the outputs for the batch's environments to ``values [E_b, out]``: a table exactly, a network by regression."""
        if self.table is not None:
            with torch.no_grad():
                self.table.weight.index_copy_(0, batch.envs, values.to(self.table.weight))
            return
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-2)
        with torch.enable_grad():
            for _ in range(steps):
                optimizer.zero_grad(set_to_none=True)
                (self(batch) - values.detach()).square().mean().backward()
                optimizer.step()
        self.zero_grad(set_to_none=True)

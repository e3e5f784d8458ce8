"""Amortised guides: an encoder network gives the posterior of each profile's noise."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from ..data.environment import Batch
from ..errors import ConfigError
from ..models.cell import CellModel
from ..models.networks import soft_clamp
from ..sites import cells_plate
from .conditioning import Concat, Conditioning, FiLM

LOG_SCALE_RANGE = (-7.0, 3.0)


class AmortizedGuide(PyroModule):
    """Mean-field encoder: ``q(z | x, e) = Normal(μ(x, e), diag(σ(x, e)²))``.

    ``h = relu(W x + b)`` through the hidden layers, then one linear layer to ``(μ, log σ)`` with ``log σ`` smoothly
    bounded. Under ``"concat"`` the environment joins the first layer; under ``"film"`` it scales and shifts every
    hidden layer.

    Parameters
    ----------
    model : CellModel
        Read for the numbers of latents, genes and environments.
    conditioning : {"concat", "film"} or None
        How the encoder sees the environment.
    hidden : sequence of int
        Hidden layers; none gives a linear encoder.
    """

    def __init__(
        self,
        model: CellModel,
        conditioning: Conditioning = None,
        *,
        hidden: Sequence[int] = (64,),
    ) -> None:
        super().__init__()
        if conditioning not in ("concat", "film", None):
            raise ConfigError(f"conditioning must be 'concat', 'film' or None, got {conditioning!r}")
        if conditioning is not None and not hidden:
            raise ConfigError(f"conditioning={conditioning!r} needs at least one hidden layer, got hidden=()")
        data = model.prior.environments
        sizes = [model.g, *hidden]
        self.d, self.conditioning = model.d, conditioning
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.head = nn.Linear(sizes[-1], 2 * model.d)
        self.conditions = nn.ModuleList()
        if conditioning == "concat":
            self.conditions.append(Concat(data, hidden[0]))
        elif conditioning == "film":
            self.conditions.extend(FiLM(data, width) for width in hidden)

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation ``[n, d]`` of ``q(z | x, e)``."""
        if batch.x is None:
            raise ValueError("the guide encodes observed profiles, but batch.x is None; use the model's prior instead")
        h = batch.x
        for i, layer in enumerate(self.layers):
            h = layer(h)
            if i < len(self.conditions):
                h = self.conditions[i](h, batch)
            h = torch.relu(h)
        loc, raw = self.head(h).chunk(2, -1)
        return loc, soft_clamp(raw, *LOG_SCALE_RANGE)

    def posterior(self, batch: Batch) -> dist.TorchDistribution:
        """``q(z | x, e)`` over ``[n, d]`` (event dimension 1)."""
        loc, log_scale = self.encode(batch)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def forward(self, batch: Batch) -> Tensor:
        with cells_plate(batch):
            return pyro.sample("z", self.posterior(batch))

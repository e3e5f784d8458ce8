"""Semi-amortised inference: the encoder's answer, improved for each profile at test time."""

from __future__ import annotations

from typing import cast

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor

from ..data.environment import Batch
from ..errors import ConfigError
from ..models.cell import CellModel
from ..scm.shifts import NoiseShift
from ..sites import cells_plate
from .amortized import LOG_SCALE_RANGE, AmortizedGuide


class RefinedGuide(PyroModule):
    """Gradient ascent on each profile's own ELBO, from where the encoder puts it (Kim et al. 2018)::

        max_{μ_i, σ_i}  E_{N(μ_i, σ_i²)}[log P(x_i | z)] − KL[N(μ_i, σ_i²) ‖ P(z | e)]

    A mean-field guide in every respect but that its parameters are found for the batch at hand. Weights of model and
    encoder stay as they are; the environments' effects too.

    Parameters
    ----------
    guide : AmortizedGuide
        Trained.
    steps : int
        Gradient steps (Adam).
    lr : float
    n_samples : int
        Draws of ``z`` a step (an even number), the same noise at every step.
    """

    def __init__(self, guide: AmortizedGuide, *, steps: int = 100, lr: float = 0.03, n_samples: int = 32) -> None:
        super().__init__()
        if steps < 1 or n_samples < 2 or n_samples % 2 or not lr > 0:
            raise ConfigError(f"steps and lr must be positive and n_samples even, got {steps}, {lr} and {n_samples}")
        self._guide = (guide,)
        self.steps, self.lr, self.n_samples = steps, lr, n_samples

    @property
    def guide(self) -> AmortizedGuide:
        return self._guide[0]

    @property
    def model(self) -> CellModel:
        return self.guide.model

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation ``[n, d]`` of the refined posterior."""
        model, x = self.model, cast(Tensor, batch.x)
        with torch.no_grad():
            start_loc, start_log_scale = self.guide.encode(batch)
            law = self.guide.shift(batch).select(batch.env)
        loc, log_scale = start_loc.clone().requires_grad_(), start_log_scale.clone().requires_grad_()
        # Pairs of opposite draws of unit variance: fixed noise that the search could exploit has none in its first two
        # moments. Drawn on the CPU, so that every device refines alike.
        generator = torch.Generator().manual_seed(2_718_281)
        half = torch.randn(self.n_samples // 2, *loc.shape, generator=generator, dtype=loc.dtype).to(loc.device)
        noise = torch.cat([half, -half]) / half.square().mean(0).sqrt()
        optimizer = torch.optim.Adam([loc, log_scale], lr=self.lr)
        with torch.enable_grad(), poutine.block():  # the search leaves no sites in a trace
            for _ in range(self.steps):
                spread = log_scale.clamp(*LOG_SCALE_RANGE)
                z = loc + spread.exp() * noise
                fit = model.likelihood(model.scm(z), batch).log_prob(x).mean(0)
                squared = ((loc - law.loc).square() + (2 * spread).exp()) * (-2 * law.log_scale).exp()
                kl = (0.5 * squared + law.log_scale - spread).sum(-1)
                # Only these two are moved; the weights collect no gradient.
                grads = torch.autograd.grad((kl - fit).sum(), [loc, log_scale])
                loc.grad, log_scale.grad = grads
                optimizer.step()
        return loc.detach(), log_scale.detach().clamp(*LOG_SCALE_RANGE)

    def posterior(self, batch: Batch, shift: NoiseShift | None = None) -> dist.TorchDistribution:
        loc, log_scale = self.encode(batch)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def forward(self, batch: Batch) -> Tensor:
        self.guide.draw_shared(batch)
        with cells_plate(batch):
            return pyro.sample("z", self.posterior(batch))

    def shift(self, batch: Batch) -> NoiseShift:
        return self.guide.shift(batch)

    def draw_shift(self, batch: Batch, n_samples: int) -> NoiseShift:
        return self.guide.draw_shift(batch, n_samples)

    def draw_effects(self, batch: Batch, n_samples: int) -> dict[str, Tensor]:
        return self.guide.draw_effects(batch, n_samples)

    def target_probability(self, batch: Batch) -> Tensor | None:
        return self.guide.target_probability(batch)

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
from .amortized import LOG_SCALE_RANGE, AmortizedGuide, sample_children


class RefinedGuide(PyroModule):
    """Gradient ascent on each profile's own ELBO, from where the encoder puts it (Kim et al. 2018)::

        max_{μ_i, σ_i}  E_{N(μ_i, σ_i²)}[log P(x_i | z)] − KL[N(μ_i, σ_i²) ‖ P(z | e)]

    over ``z`` and, where the SCM's children have noise of their own, over that too. A mean-field guide in every respect but that its parameters are found for the batch at hand. Weights of model and
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
        loc, log_scale = self._refined(batch)
        return loc[:, : self.model.d], log_scale[:, : self.model.d]

    def _refined(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation ``[n, d + k]`` of the noise and of what children have of their own."""
        model, x, d = self.model, cast(Tensor, batch.x), self.model.d
        with torch.no_grad():
            start_loc, start_log_scale = self.guide.encode(batch)
            law = self.guide.shift(batch).select(batch.env)
            own, prior = self.guide.own_noise(batch), model.scm.own_law
            if own is not None and prior is not None:
                start_loc = torch.cat([start_loc, own.mean], -1)
                start_log_scale = torch.cat([start_log_scale, 0.5 * own.variance.log()], -1)
                laws = (law.loc, torch.zeros_like(own.mean)), (law.log_scale, prior.scale.log().expand_as(own.mean))
                law = NoiseShift(*(torch.cat(pair, -1) for pair in laws))
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
                c = model.causes(z[..., :d], batch, None if own is None else z[..., d:])
                fit = model.likelihood(c, batch).log_prob(x).mean(0)
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

    def own_noise(self, batch: Batch, shift: NoiseShift | None = None) -> dist.TorchDistribution | None:
        if not self.model.scm.own_noise:
            return None
        loc, log_scale = (values[:, self.model.d :] for values in self._refined(batch))
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def forward(self, batch: Batch) -> Tensor:
        self.guide.draw_shared(batch)
        d, nonroots = self.model.d, self.model.scm.nonroots
        with cells_plate(batch):
            loc, log_scale = self._refined(batch)
            z = pyro.sample("z", dist.Normal(loc[:, :d], log_scale[:, :d].exp()).to_event(1))
            if self.model.scm.own_noise:
                own = (z.new_zeros(z.shape).index_copy(-1, nonroots, values[:, d:]) for values in (loc, log_scale))
                sample_children(self.model, z, *own)
            return z

    def shift(self, batch: Batch) -> NoiseShift:
        return self.guide.shift(batch)

    def draw_shift(self, batch: Batch, n_samples: int) -> NoiseShift:
        return self.guide.draw_shift(batch, n_samples)

    def draw_effects(self, batch: Batch, n_samples: int) -> dict[str, Tensor]:
        return self.guide.draw_effects(batch, n_samples)

    def target_probability(self, batch: Batch) -> Tensor | None:
        return self.guide.target_probability(batch)

"""Binary latent tables (edges of a graph, support of a decoder) with their posterior beside them."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..errors import ConfigError

RELAXATION = 0.5  # temperature of the straight-through gradient


class StraightThroughBernoulli(dist.Bernoulli):
    """Bernoulli whose draws are exact zeros and ones, with the gradient of their concrete relaxation.

    Densities and KL are the Bernoulli's own, so an ELBO's value is exact; only its gradient in the logits is biased
    (Bengio et al. 2013; Maddison et al. 2017).
    """

    has_rsample = True

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        logits = self.logits.expand(self._extended_shape(sample_shape))
        u = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
        noisy = logits + u.log() - (-u).log1p()
        relaxed = torch.sigmoid(noisy / RELAXATION)
        return (noisy > 0).to(relaxed.dtype) + (relaxed - relaxed.detach())

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            return self.rsample(sample_shape)


class Gates(nn.Module):
    """``gate[r, j] ~ Bernoulli(ρ)``, ``q(gate[r, j]) = Bernoulli(σ(a[r, j]))``, one site over a plate of rows.

    A global latent of a model's part, so the part holds both sides: the model draws from the prior, the guide from the
    posterior, and what is asked outside a trace uses ``probability``.

    Parameters
    ----------
    site, plate : str
        Names of the sample site and of the plate over rows.
    shape : (int, int)
        Rows and columns.
    probability : float
        Initial ``ρ``; learned.
    allowed : Tensor, bool, optional
        Gates that may open at all.
    """

    allowed: Tensor

    def __init__(
        self, site: str, plate: str, shape: tuple[int, int], probability: float, allowed: Tensor | None = None
    ) -> None:
        super().__init__()
        if not 0 < probability < 1:
            raise ConfigError(f"probability must lie strictly between 0 and 1, got {probability}")
        self.site, self.plate, self.shape = site, plate, shape
        self.prior_logit = nn.Parameter(torch.tensor(math.log(probability / (1 - probability))))
        self.logits = nn.Parameter(torch.zeros(shape))
        self.register_buffer("allowed", torch.ones(shape, dtype=torch.bool) if allowed is None else allowed)

    @property
    def probability(self) -> Tensor:
        """Posterior probability of each gate, 0 where none is allowed."""
        return self.logits.sigmoid() * self.allowed

    def draw(self) -> Tensor:
        """Sample from the prior (in the model)."""
        return self._sample(dist.Bernoulli(logits=self.prior_logit.expand(self.shape)))

    def draw_posterior(self) -> Tensor:
        """Sample from the posterior (in the guide), with straight-through gradients."""
        return self._sample(StraightThroughBernoulli(logits=self.logits))

    def _sample(self, law: dist.TorchDistribution) -> Tensor:
        with pyro.plate(self.plate, self.shape[0], dim=-1):
            return pyro.sample(self.site, law.to_event(1)) * self.allowed

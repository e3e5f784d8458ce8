"""Decoders: causes → distribution over genes. None but the Conditional VAE's sees the environment (X ⟂ e | C)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..data.environment import Batch, EnvironmentData
from ..errors import check_sizes
from ..scm.gates import Gates
from ..scm.mechanisms import Mechanism
from .likelihoods import GaussianLikelihood, Likelihood
from .networks import EnvironmentNetwork, mlp


class Decoder(nn.Module):
    """``X | C ~ likelihood(mean(C))``.

    Subclasses give ``output``, what their network puts out; the likelihood's link makes a mean of it.

    Parameters
    ----------
    d, g : int
        Latents and genes.
    likelihood : Likelihood, optional
        Default :class:`~pyro_cge.models.likelihoods.GaussianLikelihood`, one learned scale a gene.
    """

    def __init__(self, d: int, g: int, *, likelihood: Likelihood | None = None) -> None:
        super().__init__()
        check_sizes(d=d, g=g)
        self.d, self.g = d, g
        self.likelihood = GaussianLikelihood(g) if likelihood is None else likelihood

    def output(self, c: Tensor) -> Tensor:
        """The network's output ``[..., n, g]`` given causes ``c [..., n, d]``."""
        raise NotImplementedError

    def mean(self, c: Tensor) -> Tensor:
        """Expected expression ``[..., n, g]`` given causes ``c [..., n, d]``."""
        return self.likelihood.mean(self.output(c))

    @property
    def scale(self) -> Tensor:
        """Noise standard deviation of each gene ``[g]``, where the likelihood has one."""
        return self.likelihood.scale

    def set_scale(self, scale: Tensor) -> None:
        """Set each gene's noise standard deviation ``[g]``."""
        self.likelihood.set_scale(scale)

    def forward(self, c: Tensor) -> dist.TorchDistribution:
        return self.likelihood(self.mean(c))

    def drawn(self) -> Callable[[Tensor], dist.TorchDistribution]:
        """This decoder with its global latents (if any) drawn, for use inside the cells plate."""
        return self

    def draw_posterior(self) -> None:
        """Sample the same sites from their posterior: the guide's side of :meth:`drawn`."""


class LinearDecoder(Decoder):
    """``mean = W c + b``."""

    def __init__(self, d: int, g: int, *, likelihood: Likelihood | None = None) -> None:
        super().__init__(d, g, likelihood=likelihood)
        self.linear = nn.Linear(d, g)

    def output(self, c: Tensor) -> Tensor:
        return self.linear(c)


class MLPDecoder(Decoder):
    """``mean = MLP(c)`` with ReLU hidden layers of the given sizes."""

    def __init__(self, d: int, g: int, *, hidden: Sequence[int] = (64,), likelihood: Likelihood | None = None) -> None:
        super().__init__(d, g, likelihood=likelihood)
        self.network = mlp([d, *hidden, g])

    def output(self, c: Tensor) -> Tensor:
        return self.network(c)


class SparseDecoder(Decoder):
    """Sparse gene programmes: ``mean = (W ⊙ M) c + b`` with latent support ``M [g, d]``::

        gene_mask_kj ~ Bernoulli(ρ)                             genes × d

    A gene read by few latents (and a latent with genes of its own, "anchors") is what makes a latent graph identifiable
    from interventions. Outside a trace ``output`` uses the support's posterior probabilities.

    Parameters
    ----------
    probability : float
        Initial ``ρ``; learned.
    """

    def __init__(self, d: int, g: int, *, probability: float = 0.3, likelihood: Likelihood | None = None) -> None:
        super().__init__(d, g, likelihood=likelihood)
        self.weight = nn.Parameter(torch.randn(g, d) / d**0.5)
        self.bias = nn.Parameter(torch.zeros(g))
        self.support = Gates("gene_mask", "genes", (g, d), probability)

    def output(self, c: Tensor, mask: Tensor | None = None) -> Tensor:
        mask = self.support.probability if mask is None else mask
        return c @ (self.weight * mask).mT + self.bias

    def drawn(self) -> Callable[[Tensor], dist.TorchDistribution]:
        mask = self.support.draw()
        return lambda c: self.likelihood(self.likelihood.mean(self.output(c, mask)))

    def draw_posterior(self) -> None:
        self.support.draw_posterior()


class MechanismDecoder(Decoder):
    """Each gene is a structural equation of a few latents: the simulator's observation map.

    Parameters
    ----------
    mechanism : Mechanism
        With a parent mask ``[d, g]``.
    """

    def __init__(self, mechanism: Mechanism, *, likelihood: Likelihood | None = None) -> None:
        d, g = mechanism.mask.shape
        super().__init__(d, g, likelihood=likelihood)
        self.mechanism = mechanism

    def output(self, c: Tensor) -> Tensor:
        return self.mechanism.effect(c)


class ConditionalDecoder(Decoder):
    """The Conditional VAE's decoder: ``mean = MLP([c, h_e])``, the only one that sees the environment.

    The environment enters as an additive term of the first layer, which is concatenation written without copying the
    features to every profile.
    """

    def __init__(
        self,
        data: EnvironmentData,
        d: int,
        g: int,
        *,
        hidden: Sequence[int] = (64,),
        likelihood: Likelihood | None = None,
    ) -> None:
        super().__init__(d, g, likelihood=likelihood)
        width, *rest = [*hidden, g]
        check_sizes(hidden=width)
        self.latent = nn.Linear(d, width)
        self.environment = EnvironmentNetwork(data, width)
        self.rest = nn.Sequential(nn.ReLU(), mlp([width, *rest])) if rest else nn.Identity()

    def forward(self, c: Tensor, batch: Batch | None = None) -> dist.TorchDistribution:
        if batch is None:
            raise TypeError("a ConditionalDecoder needs the batch: use it in a ConditionalCellModel")
        first = self.latent(c) + self.environment(batch).index_select(-2, batch.env)
        return self.likelihood(self.likelihood.mean(self.rest(first)))

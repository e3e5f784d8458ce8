"""Encoders beyond mean field: correlated Gaussians, the SCM's own structure, normalising flows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import networkx as nx
import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from torch import Tensor, nn
from torch.distributions import constraints

from ..data.environment import Batch
from ..errors import ConfigError
from ..models.cell import CellModel
from .amortized import AmortizedGuide
from .conditioning import Conditioning


class FullCovarianceGuide(AmortizedGuide):
    """``q(z | x, e) = N(μ, U Uᵀ + diag(σ²))``, all three functions of the profile; ``U [d, rank]``.

    Parameters
    ----------
    rank : int, optional
        Columns of ``U``; default ``min(d, 4)``. With ``rank = d − 1`` every covariance is within reach.
    """

    def __init__(
        self,
        model: CellModel,
        conditioning: Conditioning = None,
        *,
        rank: int | None = None,
        hidden: Sequence[int] = (64,),
    ) -> None:
        if rank is not None and not 1 <= rank <= model.d:
            raise ConfigError(f"rank must lie between 1 and the number of latents {model.d}, got {rank}")
        self.rank = min(model.d, 4) if rank is None else rank
        super().__init__(model, conditioning, hidden=hidden)

    def _head_width(self) -> int:
        return self.d * (2 + self.rank)

    def _law(self, h: Tensor) -> dist.TorchDistribution:
        raw = self.head(h)
        loc, log_scale = self._normal(raw)
        factor = raw[..., 2 * self.d :].unflatten(-1, (self.d, self.rank)) / math.sqrt(self.rank)
        return dist.LowRankMultivariateNormal(loc, factor * log_scale.exp().unsqueeze(-1), (2 * log_scale).exp())

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        law = self.posterior(batch)
        return law.mean, 0.5 * law.variance.log()


class FactorNormal(dist.TorchDistribution):
    """``N(loc, L Lᵀ)`` with ``L [..., d, d]`` any invertible factor whose ``log |det L|`` is known."""

    arg_constraints = {"loc": constraints.real_vector}  # noqa: RUF012 (torch's own convention)
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, factor: Tensor, log_det: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.factor, self.log_det = loc, factor, log_det
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> FactorNormal:
        d, shape = self.loc.shape[-1], tuple(batch_shape)
        return FactorNormal(
            self.loc.expand(*shape, d), self.factor.expand(*shape, d, d), self.log_det.expand(shape), False
        )

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self.factor.square().sum(-1)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        noise = torch.randn(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + (self.factor @ noise.unsqueeze(-1)).squeeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        noise = torch.linalg.solve(self.factor, (value - self.loc).unsqueeze(-1)).squeeze(-1)
        return -0.5 * (noise.square().sum(-1) + self.loc.shape[-1] * math.log(2 * math.pi)) - self.log_det

    def entropy(self) -> Tensor:
        return 0.5 * self.loc.shape[-1] * (1 + math.log(2 * math.pi)) + self.log_det


class StructuredGuide(AmortizedGuide):
    """A Gaussian that follows the SCM: each latent's noise depends on that of its ancestors (paper, section 4.9)::

        q(z | x, e) = Π_j N(z_j; μ_j(x) + Σ_{i ancestor of j} b_ij(x) (z_i − μ_i(x)), σ_j(x)²)

    written as ``z = μ + T diag(σ) ε`` with ``T`` unit-triangular along the graph. Without edges it is the mean field.
    """

    pairs: Tensor

    def __init__(self, model: CellModel, conditioning: Conditioning = None, *, hidden: Sequence[int] = (64,)) -> None:
        pairs = _dependencies(model)
        self._n_pairs = len(pairs)
        super().__init__(model, conditioning, hidden=hidden)
        self.register_buffer("pairs", torch.tensor(pairs, dtype=torch.long).reshape(-1, 2), persistent=False)

    def _head_width(self) -> int:
        return 2 * self.d + self._n_pairs

    def _law(self, h: Tensor) -> dist.TorchDistribution:
        raw = self.head(h)
        loc, log_scale = self._normal(raw)
        entries = self.pairs[:, 1] * self.d + self.pairs[:, 0]
        flat = torch.diag_embed(torch.ones_like(loc)).flatten(-2).index_add(-1, entries, raw[..., 2 * self.d :])
        unit = flat.unflatten(-1, (self.d, self.d))
        return FactorNormal(loc, unit * log_scale.exp().unsqueeze(-2), log_scale.sum(-1))

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        law = self.posterior(batch)
        return law.mean, 0.5 * law.variance.log()


class FlowGuide(AmortizedGuide):
    """A normalising flow on top of the mean field: ``z = T_K ∘ … ∘ T_1(μ + σ ε)``, each ``T`` seeing the profile.

    The ``T`` are Pyro's conditional affine autoregressive transforms (inverse autoregressive flow, Kingma et al. 2016)
    with the order of latents reversed in between.

    Parameters
    ----------
    n_transforms : int
    """

    noise: Tensor

    def __init__(
        self,
        model: CellModel,
        conditioning: Conditioning = None,
        *,
        n_transforms: int = 2,
        hidden: Sequence[int] = (64,),
    ) -> None:
        super().__init__(model, conditioning, hidden=hidden)
        if model.d < 2:
            raise ConfigError("a flow correlates latents: it needs at least two, the model has one")
        if n_transforms < 1:
            raise ConfigError(f"n_transforms must be at least 1, got {n_transforms}")
        context = self.head.in_features
        self.transforms = nn.ModuleList(
            transforms.conditional_affine_autoregressive(self.d, context, hidden_dims=[4 * self.d])
            for _ in range(n_transforms)
        )
        # Moments have no closed form: they are averages over these fixed draws, the same at every call.
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("noise", torch.randn(64, 1, self.d, generator=generator), persistent=False)

    def _law(self, h: Tensor) -> dist.TorchDistribution:
        base = super()._law(h)
        reverse = torch.arange(self.d - 1, -1, -1, device=h.device)
        steps: list[torch.distributions.Transform] = []
        for transform in self.transforms:
            steps += [cast(Any, transform).condition(h), transforms.Permute(reverse)]
        return dist.TransformedDistribution(base, steps)

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        h = self.hidden_layer(batch)
        loc, log_scale = self._normal(self.head(h))
        z = loc + log_scale.exp() * self.noise
        for transform in self._law(h).transforms:
            z = transform(z)
        return z.mean(0), z.std(0).log()


def _dependencies(model: CellModel) -> list[tuple[int, int]]:
    """``(ancestor, descendant)`` pairs of the SCM's graph; all pairs in order where the graph is learned."""
    if len(model.scm.layers) == model.d > 1 and not model.scm.graph.edges:
        return [(i, j) for j in range(model.d) for i in range(j)]
    return sorted((i, j) for j in model.scm.graph for i in nx.ancestors(model.scm.graph, j))

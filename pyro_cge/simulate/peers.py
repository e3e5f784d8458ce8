"""The simulators that other systems report on, from their descriptions, as ground truths of ours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..errors import ConfigError, check_seed, check_sizes
from ..models.decoders import Decoder, LinearDecoder
from ..models.likelihoods import GaussianLikelihood, Likelihood, PoissonLikelihood
from ..scm import graphs
from ..scm.latent import LatentSCM
from ..scm.mechanisms import LinearMechanism
from ..scm.shifts import NoiseShift
from ..seeds import isolated
from .environments import Environments, combinations, one_per_latent
from .truth import GroundTruth

SLOPE = 0.2  # of the leaky rectifier below zero
REFERENCE = 100_000  # cells that scales and normalisers are taken from


def sparse_shift(
    *,
    n_latents: int = 15,
    n_genes: int = 100,
    n_environments: int = 100,
    n_targets: tuple[int, int] = (1, 3),
    loc: float = 5.0,
    sd: float = 0.5,
    hidden: Sequence[int] = (40, 40, 40),
    mean_count: float = 40.0,
    over: Literal["cells", "genes"] = "cells",
    environments: Environments | None = None,
    seed: int = 0,
) -> GroundTruth:
    """The simulator of sVAE+ (Lopez et al. 2023): sparse mechanism shifts, counts through a random network.

    ::

        targets_e : 1 … 3 latents drawn with replacement      shift_ej ~ ±N(5, 0.5²) on targets, no control
        z ~ N(shift_e, I)
        l = W₄ ρ(W₃ ρ(W₂ ρ(W₁ z))) / sd                       ρ leaky ReLU, orthogonal weights, no bias
        x_k ~ Poisson(N m p_k)                                m counts a gene and cell on average

    Their demo takes the softmax ``p`` *over cells* (``over="cells"``), so that each gene has the same total: this
    couples all cells of a sample. Here the normaliser of each gene is the mean of ``exp(l_k)`` over 100,000 reference
    cells of the same design, drawn once; theirs differs by its sampling error over 25,000. ``over="genes"`` is the softmax
    one would expect: each cell has ``m g`` expected counts. ``sd``, the standard deviation of all logits, is taken from
    the reference cells too.

    Parameters
    ----------
    n_targets : (int, int)
        Fewest and most draws an environment, uniform; a latent drawn twice counts once.
    loc, sd : float
        Of the size of a shift, in sd of the reference noise.
    hidden : sequence of int
        Hidden layers, each at least as wide as the one before.
    mean_count : float
        ``m``: their 10⁶ over 25,000 cells.
    environments : Environments, optional
        Instead of the random ones.
    """
    if over not in ("cells", "genes"):
        raise ConfigError(f"over must be 'cells' or 'genes', got {over!r}")
    low, high = n_targets
    if not 1 <= low <= high:
        raise ConfigError(f"n_targets must satisfy 1 <= low <= high, got {n_targets}")
    check_sizes(n_latents=n_latents, n_genes=n_genes, n_environments=n_environments)
    check_seed(seed)
    rng = np.random.default_rng(seed)
    mask = np.zeros((n_environments, n_latents), dtype=bool)
    for row in mask:
        row[rng.integers(n_latents, size=rng.integers(low, high + 1))] = True
    environments = _signed(mask, loc, sd, rng) if environments is None else environments
    gain = math.sqrt(2 / (1 + SLOPE**2))
    network = OrthogonalNetwork([environments.d, *hidden, n_genes], seed=seed, kaiming=gain)
    logits = network(_reference_noise(environments, seed))
    spread = logits.std()
    blank = environments.schema([f"gene {k}" for k in range(n_genes)])  # no data: the decoder puts out log means
    if over == "genes":
        depth = torch.full((n_genes,), math.log(mean_count * n_genes))
        decoder = NetworkDecoder(network, spread, depth, PoissonLikelihood(blank), compositional=True)
    else:
        mean_log = (logits / spread).logsumexp(0) - math.log(len(logits))
        decoder = NetworkDecoder(network, spread, math.log(mean_count) - mean_log, PoissonLikelihood(blank))
    return _truth(environments, LatentSCM.identity(environments.d), decoder)


def additive_sparse(
    *,
    n_latents: int = 15,
    n_genes: int = 100,
    n_environments: int = 100,
    probability: float = 2 / 15,
    loc: float = 5.0,
    sd: float = 0.5,
    hidden: Sequence[int] = (50, 50, 50, 50),
    noise: float = 0.2,
    environments: Environments | None = None,
    seed: int = 0,
) -> GroundTruth:
    """The simulator of SAMS-VAE (Bereket & Karaletsos 2023): sparse additive shifts, Gaussian noise.

    ::

        M_ej ~ Bernoulli(2/15),  E_ej ~ ±N(5, 0.5²)           no shift in environment 0, the control
        z = N(0, I) + M_e ⊗ E_e
        x_k ~ N(μ_k(z) / sd_k, σ²)                            μ of 4 hidden layers, leaky ReLU, orthogonal, no bias

    with ``σ² = noise / (1 − noise)``: the share ``noise`` of each gene's variance. ``sd_k`` is taken from 100,000
    reference cells of the design. Combine environments by :func:`~pyro_cge.simulate.environments.combinations`: shifts
    add up.

    Parameters
    ----------
    probability : float
        Of a latent to be a target.
    noise : float
        Share of measurement noise in the variance of a gene, 0 < noise < 1.
    environments : Environments, optional
        Instead of the random ones.
    """
    if not 0 < noise < 1:
        raise ConfigError(f"noise is a share of a gene's variance, between 0 and 1, got {noise}")
    if not 0 <= probability <= 1:
        raise ConfigError(f"probability must lie between 0 and 1, got {probability}")
    check_sizes(n_latents=n_latents, n_genes=n_genes, n_environments=n_environments)
    check_seed(seed)
    rng = np.random.default_rng(seed)
    mask = rng.random((n_environments, n_latents)) < probability
    mask[0] = False
    environments = _signed(mask, loc, sd, rng, control=True) if environments is None else environments
    network = OrthogonalNetwork([environments.d, *hidden, n_genes], seed=seed)
    spread = network(_reference_noise(environments, seed)).std(0)
    likelihood = GaussianLikelihood(n_genes, scale=math.sqrt(noise / (1 - noise)))
    decoder = NetworkDecoder(network, spread, torch.zeros(n_genes), likelihood)
    return _truth(environments, LatentSCM.identity(environments.d), decoder)


def latent_chain(
    *, n_latents: int = 5, n_genes: int = 10, shift: float = 5.0, environments: Environments | None = None
) -> GroundTruth:
    """The simulator of the discrepancy-VAE (Zhang et al. 2023): soft interventions on a rectified chain, no noise on top.

    ::

        c_1 = z_1,  c_j = z_j + max(c_{j−1}, 0)               z ~ N(shift_e, I)
        x = (c_1 … c_d, 0 … 0)                                identity mixing

    Nothing is random but the cells.

    Parameters
    ----------
    shift : float
        Added to the noise of a target.
    environments : Environments, optional
        Default: a control, every latent alone, and all pairs.
    """
    if not 1 <= n_latents <= n_genes:
        raise ConfigError(f"the identity needs as many genes as latents, got {n_latents} latents and {n_genes} genes")
    if environments is None:
        environments = combinations(one_per_latent(n_latents, value=shift))
    decoder = LinearDecoder(environments.d, n_genes, likelihood=NoNoise())
    with torch.no_grad():
        decoder.linear.weight.copy_(torch.eye(n_genes, environments.d))
        decoder.linear.bias.zero_()
    return _truth(environments, LatentSCM(graphs.chain(environments.d), RectifiedMechanism), decoder)


class RectifiedMechanism(LinearMechanism):
    """``f_j = Σ_i W[i, j] max(C_i, 0)``, weights in {−1, 1} drawn as 1: the structural equations of :func:`latent_chain`."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask)
        with torch.no_grad():
            self.weight.fill_(1.0)

    def effect(self, parents: Tensor) -> Tensor:
        return torch.relu(parents) @ self.W


class OrthogonalNetwork(nn.Module):
    """Linear maps with orthonormal rows or columns and leaky rectifiers between them, no bias: one-to-one if it widens.

    Parameters
    ----------
    sizes : sequence of int
        Inputs, hidden layers, outputs.
    kaiming : float, optional
        Multiply each map by this and by ``√(2 / (inputs + outputs))``.
    """

    def __init__(self, sizes: Sequence[int], *, seed: int, kaiming: float | None = None) -> None:
        super().__init__()
        if list(sizes) != sorted(sizes):
            raise ConfigError(f"layers must not narrow (the network would not be one-to-one), got {list(sizes)}")
        generator = torch.Generator().manual_seed(seed)
        self.weights = nn.ParameterList()
        for a, b in itertools.pairwise(sizes):
            rows, triangle = torch.linalg.qr(torch.randn(b, a, generator=generator))
            rows = rows * triangle.diagonal().sign()  # uniform over orthonormal frames
            scale = 1.0 if kaiming is None else kaiming * math.sqrt(2 / (a + b))
            self.weights.append(nn.Parameter(rows.mT * scale, requires_grad=False))

    def forward(self, c: Tensor) -> Tensor:
        for layer, weight in enumerate(self.weights):
            c = (nn.functional.leaky_relu(c, SLOPE) if layer else c) @ weight
        return c


class NetworkDecoder(Decoder):
    """A known network: ``output = network(c) / spread + offset``, with a log-softmax over genes before the offset if asked.

    Parameters
    ----------
    network : OrthogonalNetwork
    spread : Tensor ``[]`` or ``[g]``
    offset : Tensor ``[g]``
    compositional : bool
    """

    spread: Tensor
    offset: Tensor

    def __init__(
        self,
        network: OrthogonalNetwork,
        spread: Tensor,
        offset: Tensor,
        likelihood: Likelihood,
        *,
        compositional: bool = False,
    ) -> None:
        super().__init__(len(network.weights[0]), len(offset), likelihood=likelihood)
        self.network, self.compositional = network, compositional
        self.register_buffer("spread", spread)
        self.register_buffer("offset", offset)

    def output(self, c: Tensor) -> Tensor:
        y = self.network(c) / self.spread
        return (y.log_softmax(-1) if self.compositional else y) + self.offset


class NoNoise(Likelihood):
    """Expression is its mean: to sample from, not to fit."""

    def forward(self, mean: Tensor) -> dist.TorchDistribution:
        return dist.Delta(mean, event_dim=1)


def _signed(
    mask: np.ndarray, loc: float, sd: float, rng: np.random.Generator, *, control: bool = False
) -> Environments:
    """Shifts ``±N(loc, sd²)`` where the mask says so."""
    size = rng.choice([-1, 1], mask.shape) * rng.normal(loc, sd, mask.shape)
    shift = torch.from_numpy((mask * size).astype(np.float32))
    names = [f"env {e}" for e in range(len(mask))]
    return Environments(names, NoiseShift(shift, torch.zeros_like(shift)), control=(0,) if control else ())


def _reference_noise(environments: Environments, seed: int) -> Tensor:
    """Noise ``[REFERENCE, d]`` of cells spread evenly over the environments."""
    env = torch.arange(REFERENCE) % len(environments)
    with isolated(seed, "reference"):
        return environments.shift.law(env).sample()


def _truth(environments: Environments, scm: LatentSCM, decoder: Decoder) -> GroundTruth:
    genes = [f"gene {k}" for k in range(decoder.g)]
    return GroundTruth(environments, scm, decoder, genes, torch.ones(environments.d))

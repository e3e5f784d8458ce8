"""The ground truth: a ``CellModel`` whose prior is known and whose parts are drawn once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast

import networkx as nx
import numpy as np
import pandas as pd
import pyro
import torch
from pyro import poutine
from torch import Tensor

from ..data.environment import Batch, EnvironmentData, Truth
from ..errors import ConfigError, check_seed, check_sizes
from ..models.cell import CellModel
from ..models.decoders import Decoder, MechanismDecoder
from ..models.priors import TablePrior
from ..scm import graphs
from ..scm.latent import LatentSCM
from ..scm.mechanisms import BinaryMechanism, LinearMechanism, Mechanism, NeuralMechanism, PolynomialMechanism
from ..scm.shifts import NoiseShift
from ..seeds import isolated
from .environments import Environments, reference

DETERMINISTIC_SD = 1e-4  # own noise of a latent that is "a deterministic function" of its parents
CHUNK = 32_768  # cells simulated at a time: bounds the memory beyond the result

MechanismKind = Literal["linear", "noisy linear", "random linear", "neural", "binary", "polynomial"]
MECHANISMS: dict[str, Callable[..., Mechanism]] = {
    "linear": LinearMechanism,
    "noisy linear": LinearMechanism,
    "random linear": partial(LinearMechanism, weights="uniform"),
    "neural": NeuralMechanism,
    "binary": BinaryMechanism,
    "polynomial": PolynomialMechanism,
}
GRAPHS: dict[str, Callable[..., nx.DiGraph]] = {
    "empty": lambda d, rng: graphs.empty(d),
    "chain": lambda d, rng: graphs.chain(d),
    "growing network": graphs.growing_network,
    "union of growing networks": graphs.union_of_growing_networks,
    "erdos renyi": graphs.erdos_renyi,
    "scale free": graphs.scale_free,
}


class GroundTruth(CellModel):
    """A simulator: known environments → latent SCM → genes. A ``CellModel`` with nothing left to learn.

    Everything a fitted model can be asked (``predict``, handlers, ``pyro.render_model``) is asked of the truth with
    the same call. Made by :func:`simulator` and its relatives.

    Parameters
    ----------
    environments : Environments
    scm : LatentSCM
    decoder : Decoder
    gene_names : sequence of str
    noise_sd : Tensor ``[d]``
        Standard deviation of each latent's own noise in the reference law.
    """

    def __init__(
        self,
        environments: Environments,
        scm: LatentSCM,
        decoder: Decoder,
        gene_names: Sequence[str],
        noise_sd: Tensor,
    ) -> None:
        if environments.d != scm.d:
            raise ConfigError(f"these environments act on {environments.d} latents, the truth has {scm.d}")
        shift = NoiseShift(environments.shift.loc, environments.shift.log_scale + noise_sd.log())
        super().__init__(TablePrior(environments.schema(gene_names), shift), scm, decoder)
        self.environments, self.gene_names, self.noise_sd = environments, list(gene_names), noise_sd
        self.requires_grad_(False).eval()

    def forward(self, batch: Batch) -> Tensor:
        with self.environments.handlers(batch.envs.index_select(0, batch.env)):
            return super().forward(batch)

    def causes(self, z: Tensor, batch: Batch, own: Tensor | None = None) -> Tensor:
        with self.environments.handlers(batch.envs.index_select(0, batch.env)):
            return super().causes(z, batch, own)

    def under(self, environments: Environments) -> GroundTruth:
        """The same cell in other environments (out of distribution, say): SCM and decoder are shared."""
        return GroundTruth(environments, self.scm, self.decoder, self.gene_names, self.noise_sd)

    @torch.no_grad()
    def sample(
        self,
        n_per_env: int | Sequence[int],
        *,
        environments: Environments | None = None,
        seed: int = 0,
    ) -> EnvironmentData:
        """Profiles with their truth.

        Parameters
        ----------
        n_per_env : int or sequence of int
            Profiles in each environment.
        environments : Environments, optional
            Instead of the truth's own.
        """
        if environments is not None:
            return self.under(environments).sample(n_per_env, seed=seed)
        n_envs = len(self.environments)
        counts = torch.as_tensor([n_per_env] * n_envs if isinstance(n_per_env, int) else list(n_per_env))
        if len(counts) != n_envs or (counts < 0).any():
            raise ConfigError(
                f"n_per_env needs one non-negative count for each of {n_envs} environments, got {n_per_env}"
            )
        env = torch.arange(n_envs).repeat_interleave(counts)
        n = len(env)
        x, z, c = torch.empty(n, self.g), torch.empty(n, self.d), torch.empty(n, self.d)
        with isolated(seed), pyro.validation_enabled(False):  # checks would read every entry again
            for start in range(0, n, CHUNK):
                rows = slice(start, min(start + CHUNK, n))
                trace = poutine.trace(self.forward).get_trace(self.prior.environments.cells(env[rows]))
                x[rows], z[rows] = (cast(Tensor, trace.nodes[site]["value"]) for site in ("x", "z"))
                c[rows] = self.scm.causes(trace)
        truth = Truth(self.scm.graph, self._law, self.environments.targets, z, c)
        return replace(
            self.environments.schema(self.gene_names),
            x=x,
            env=env,
            obs=pd.DataFrame(index=pd.RangeIndex(n).astype(str)),
            truth=truth,
        )

    @torch.no_grad()
    def counterfactual(self, data: EnvironmentData, environment: str) -> EnvironmentData:
        """The same cells, had they been in ``environment``: noise abducted from the truth, mechanisms re-run.

        Measurement noise is kept: ``x' = x + mean(z') − mean(z)``.
        """
        if data.truth is None:
            raise ConfigError("counterfactuals of the truth need simulated data (data.truth)")
        if list(data.env_names) != list(self.environments.names):
            raise ConfigError(
                "these data are from other environments than the truth's own: use truth.under(environments)"
            )
        [target] = data.environments([environment])
        source, goal = data.env, torch.full_like(data.env, target)
        z = data.truth.z
        before, after = self.prior.environments.cells(source), self.prior.environments.cells(goal)
        z_new = self._law.transport(z, source, goal)
        with self.environments.handlers(goal):
            trace = poutine.trace(self.scm.forward).get_trace(z_new)
        x = data.x + self.mean(z_new, after) - self.mean(z, before)
        truth = replace(data.truth, z=z_new, c=self.scm.causes(trace))
        return replace(data, x=x, env=goal, truth=truth)

    @property
    def _law(self) -> NoiseShift:
        prior = cast(TablePrior, self.prior)
        return NoiseShift(prior.loc, prior.log_scale)


def simulator(
    graph: str | nx.DiGraph,
    *,
    n_latents: int,
    n_genes: int,
    mechanism: MechanismKind = "noisy linear",
    decoder: Literal["linear", "neural"] = "linear",
    attach: float = 0.5,
    gene_noise: float = 0.1,
    environments: Environments | None = None,
    seed: int = 0,
) -> GroundTruth:
    """Draw a ground truth: a graph, its mechanisms, and a sparse observation map.

    ::

        C_j = f_j(PA_j) + Z_j                       the latent SCM
        X_k = h_k(C_{pa(k)}) + N(0, gene_noise²)    each gene a function of a few latents

    Parameters
    ----------
    graph : str or networkx.DiGraph
        One of "empty", "chain", "growing network", "union of growing networks", "erdos renyi", "scale free", or a DAG
        over ``0 … d−1`` (see :mod:`pyro_cge.scm.graphs`, also for hierarchical layers).
    mechanism : str
        "linear" (±1, children have no noise of their own), "noisy linear" (±1), "random linear" (±U(0.25, 1)),
        "neural" (3 ReLU units, weights in {−1, 1}), "binary" (thresholded) or "polynomial" (degree 2).
    decoder : {"linear", "neural"}
        Linear ±1, or one 3-unit ReLU network a gene with weights in {−1, 1}.
    attach : float
        Probability that a gene takes a given latent as a parent; a gene left with none gets one at random.
    gene_noise : float
        Measurement noise sd, relative to the sd of the noiseless signal of each gene in the reference environment.
    environments : Environments, optional
        Default: the reference environment alone.
    """
    check_sizes(n_latents=n_latents, n_genes=n_genes)
    check_seed(seed)
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    if isinstance(graph, str):
        if graph not in GRAPHS:
            raise ConfigError(f"unknown graph {graph!r}; known are {', '.join(GRAPHS)}, or give a networkx.DiGraph")
        graph = GRAPHS[graph](n_latents, rng)
    if len(graph) != n_latents:
        raise ConfigError(f"the graph has {len(graph)} nodes but n_latents={n_latents}")
    if mechanism not in MECHANISMS:
        raise ConfigError(f"unknown mechanism {mechanism!r}; known are {', '.join(MECHANISMS)}")
    if decoder not in ("linear", "neural"):
        raise ConfigError(f"decoder must be 'linear' or 'neural', got {decoder!r}")
    scm = LatentSCM(graph, partial(MECHANISMS[mechanism], generator=generator))
    mask = observation_mask(n_latents, n_genes, attach, rng)
    observe = NeuralMechanism if decoder == "neural" else LinearMechanism
    decode = MechanismDecoder(observe(mask, generator=generator))
    noise_sd = torch.ones(n_latents)
    if mechanism == "linear":
        noise_sd[torch.tensor([scm.graph.in_degree(j) > 0 for j in range(n_latents)])] = DETERMINISTIC_SD
    genes = [f"gene {k}" for k in range(n_genes)]
    truth = GroundTruth(environments or reference(n_latents), scm, decode, genes, noise_sd)
    with torch.no_grad():
        z = torch.randn(2000, n_latents, generator=generator) * noise_sd
        signal = decode.mean(scm(z)).std(0).clamp_min(1e-3)
        decode.set_scale(gene_noise * signal)
    return truth


def growing_network(*, n_latents: int, n_genes: int, **options: Any) -> GroundTruth:
    """:func:`simulator` on the paper's growing network (section 6.4)."""
    return simulator("growing network", n_latents=n_latents, n_genes=n_genes, **options)


def independent(*, n_latents: int, n_genes: int, **options: Any) -> GroundTruth:
    """:func:`simulator` on independent latents (paper, section 6.1)."""
    return simulator("empty", n_latents=n_latents, n_genes=n_genes, **options)


def observation_mask(d: int, n_genes: int, attach: float, rng: np.random.Generator) -> Tensor:
    """Parent mask ``[d, g]``: each gene takes each latent with probability ``attach``, and at least one."""
    if not 0 <= attach <= 1:
        raise ConfigError(f"attach is a probability, got {attach}")
    mask = rng.random((d, n_genes)) < attach
    orphans = np.flatnonzero(~mask.any(0))
    mask[rng.integers(d, size=len(orphans)), orphans] = True
    return torch.from_numpy(mask.astype(np.float32))

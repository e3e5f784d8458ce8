"""Orders and edges as sample sites, and their posterior given tables of local scores."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ConfigError
from .inputs import Array
from .knowledge import FORBIDDEN, REQUIRED
from .progress import shown

EXACT = 16  # genes up to which orders are summed over, not walked over
MOST = 20  # candidates of a gene
BLOCK = 50  # draws of the Markov chain between two ticks of a progress bar
SWEEPS = 3  # of the Markov chain, from draw to draw


def sample_graph(rho: Tensor) -> Tensor:
    """Edges ``[d, d]`` along an order: sites ``potential`` and ``edge``; ``rho [d, d]`` are their probabilities::

    potential_j ~ Normal(0, 1)
    edge_ij     ~ Bernoulli(ρ_ij) if potential_i < potential_j, else 0
    """
    potential = pyro.sample("potential", dist.Normal(rho.new_zeros(len(rho)), 1.0).to_event(1))
    along = potential.unsqueeze(-1) < potential.unsqueeze(-2)
    return pyro.sample("edge", dist.Bernoulli(torch.where(along, rho, 0.0)).to_event(2))


class GraphPosterior:
    """Orders drawn from ``P(order | data)``, and graphs given an order, whose parent sets are summed over exactly.

    Parameters
    ----------
    tables : ndarray ``[d, 2^m]``
        Log evidence of every subset of a gene's candidates, written as bits.
    near, counts : ndarray ``[d, m]`` and ``[d]``
        Candidates of each gene and their number; see :func:`candidates`.
    prior : ndarray ``[d, d]``
        Probability of each edge, given that the order allows it.
    knowledge : ndarray ``[d, d]``
        Table of :class:`Knowledge`.
    start : ndarray ``[d]``
        An order that respects required edges.
    draws : int
        Of orders.
    seed : int
    progress : bool, optional
        A bar over the Markov chain (of more than 16 genes); None: only on a terminal.

    Attributes
    ----------
    orders : ndarray ``[draws, d]``
    edge_probabilities : ndarray ``[d, d]``
        Averaged over the orders, exact given each.
    """

    def __init__(
        self,
        tables: Array,
        near: NDArray[np.int64],
        counts: NDArray[np.int64],
        prior: Array,
        knowledge: NDArray[np.int8],
        start: NDArray[np.int64],
        draws: int,
        seed: int,
        progress: bool | None = False,
    ) -> None:
        from .compiled.orders import edge_marginals, exact_orders, gibbs_orders, subset_sums

        self.near, self.counts = near, counts
        self.weight = _prior_weight(tables, prior, knowledge, near, counts)
        self.total = subset_sums(self.weight, counts)
        self.absent = np.where(knowledge == 0, np.log1p(-prior), 0.0)
        if len(start) <= EXACT:
            self.orders = exact_orders(self.total, near, counts, self.absent, draws, seed)[0]
        else:
            parts: list[NDArray[np.int64]] = []
            for first in shown(range(0, draws, BLOCK), math.ceil(draws / BLOCK), progress):
                chain = (draws // 5, seed) if not parts else (0, -1)  # so many before the first, which seeds the chain
                size, here = min(BLOCK, draws - first), parts[-1][-1] if parts else start
                parts.append(
                    gibbs_orders(self.total, near, counts, self.absent, here, size, SWEEPS, chain[1], chain[0])
                )
            self.orders = np.concatenate(parts)
        self.edge_probabilities = edge_marginals(self.total, near, counts, self.orders)

    def sample(self, logits: Tensor) -> Tensor:
        """Sites ``which`` (auxiliary), ``potential`` and ``edge`` of a guide, with their exact densities; the edges.

        Parameters
        ----------
        logits : Tensor ``[draws]``
            Of the orders; equal ones are the posterior.
        """
        from .compiled.orders import draw_parents

        d = len(self.counts)
        which = pyro.sample("which", dist.Categorical(logits=logits), infer={"is_auxiliary": True})
        rows = self.orders[which.cpu().numpy()]
        # Normal potentials sorted into this order: the density is d! times that of independent ones.
        ascending = torch.randn((*which.shape, d), dtype=logits.dtype, device=logits.device).sort(-1)[0]
        index = torch.as_tensor(rows, device=logits.device)
        potential = torch.empty_like(ascending).scatter_(-1, index, ascending)
        log_q = math.lgamma(d + 1) - 0.5 * (potential**2 + math.log(2 * math.pi)).sum(-1)
        pyro.sample("potential", dist.Delta(potential, log_q, event_dim=1))
        seeds = torch.randint(2**31, which.shape).flatten().tolist()
        drawn = [
            draw_parents(self.weight, self.near, self.counts, row, seed)
            for row, seed in zip(rows.reshape(-1, d), seeds, strict=True)
        ]
        edge = torch.from_numpy(np.stack([edges for edges, _ in drawn])).to(logits).reshape((*which.shape, d, d))
        log_q = torch.tensor([q for _, q in drawn]).to(logits).reshape(which.shape)
        return pyro.sample("edge", dist.Delta(edge, log_q, event_dim=2))

    def best_dag(self) -> NDArray[np.int64]:
        """Edges more probable than not, along the order that keeps most of them: ``[d, d]``, acyclic."""
        gain = np.maximum(self.edge_probabilities - 0.5, 0)
        rank = np.argsort(np.unique(self.orders, axis=0), axis=1)
        kept = [float(gain[row[:, None] < row].sum()) for row in rank]
        row = rank[int(np.argmax(kept))]
        return ((row[:, None] < row) & (gain > 0)).astype(np.int64)


def candidates(
    correlation: Array, adjacency: NDArray[np.int64], knowledge: NDArray[np.int8], most: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Possible parents of each gene ``[d, m]`` and their number ``[d]``, ``most`` or as many as are required.

    Required ones come first, then neighbours in a graph found before, then the largest partial correlations.

    Raises
    ------
    ConfigError
        If a gene has more than 20 required parents: the table of their subsets would not fit.
    """
    d = len(correlation)
    required = (knowledge == REQUIRED).sum(0)
    if required.max() > MOST:
        raise ConfigError(
            f"{required.max()} parents are required of gene number {required.argmax()}: a posterior over graphs takes up to "
            f"{MOST}; OrderSearch takes any number"
        )
    inverse = np.linalg.inv(correlation + 1e-3 * np.eye(d))
    scale = np.sqrt(inverse.diagonal())
    rank = np.abs(inverse / scale / scale[:, None]) + 2 * (adjacency | adjacency.T) + 4 * (knowledge == REQUIRED)
    rank[knowledge == FORBIDDEN] = -1
    wanted = np.minimum(np.maximum(most, required), d - 1)
    near = np.argsort(-rank, axis=0, kind="stable")[: wanted.max()].T.copy()
    counts = np.minimum((knowledge != FORBIDDEN).sum(0), wanted)
    return near.astype(np.int64), counts.astype(np.int64)


def certain(prior: Array, knowledge: NDArray[np.int8]) -> Array:
    """Edge probabilities ``[d, d]`` with forbidden ones at 0 and required ones at 1."""
    return np.where(knowledge == FORBIDDEN, 0.0, np.where(knowledge == REQUIRED, 1.0, prior))


def _prior_weight(
    evidences: Array,
    prior: Array,
    knowledge: NDArray[np.int8],
    near: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> Array:
    """Evidence plus prior log odds of each parent set ``[d, 2^m]``; sets without a required parent have none."""
    weight, subsets = evidences.copy(), np.arange(evidences.shape[1])
    for j in range(len(weight)):
        for a, i in enumerate(near[j, : counts[j]]):
            has = (subsets >> a & 1).astype(bool)
            if knowledge[i, j] == REQUIRED:
                weight[j, ~has] = -np.inf
            else:
                weight[j, has] += math.log(prior[i, j]) - math.log1p(-prior[i, j])
    return weight

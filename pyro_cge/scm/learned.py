"""A latent SCM whose graph is learned: a total order, and the edges that go along it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import networkx as nx
import torch
from pyro import poutine
from torch import Tensor, nn

from ..errors import ConfigError, check_sizes
from ..sites import layer_site
from . import graphs
from .gates import Gates
from .latent import LatentSCM, LayerInputs, assign
from .mechanisms import LinearMechanism, Mechanism

# An encoder does not see which edges were drawn: edges that come and go would cost it its fit, and it would rather have none.
CONFIDENT = 6.0


class LearnedSCM(LatentSCM):
    """``C_j := f_j(C ⊙ A[:, j]) + Z_j`` with an unknown DAG ``A``, acyclic in every draw::

        edge_ij ~ Bernoulli(ρ)                                  latents × d
        A_ij    = edge_ij · 1[potential_i < potential_j]        masked strictly triangular in the learned order

    Latents are assigned one after the other along the order, one site ``c_1 … c_d`` each. Order and edges have
    straight-through gradients. The graph is identified by hard or mechanism interventions, or by a sparse decoder; shifts
    with a free decoder leave it open, because ``C`` is then any invertible function of ``Z``.

    Parameters
    ----------
    d : int
        Latents.
    mechanism : callable, parent mask ``[d, d]`` → Mechanism
        One mechanism for all latents at once.
    probability : float
        Initial ``ρ``; learned.
    order : sequence of int, optional
        A known order, causes first: only edges along it are learned.
    """

    potential: Tensor

    def __init__(
        self,
        d: int,
        mechanism: Callable[[Tensor], Mechanism] = LinearMechanism,
        *,
        probability: float = 0.3,
        order: list[int] | None = None,
    ) -> None:
        check_sizes(d=d)
        super().__init__(graphs.empty(d))
        self.layers = [[j] for j in range(d)]  # as many as latents; which one comes when is learned
        self.mechanism = mechanism(1 - torch.eye(d))
        off_diagonal = ~torch.eye(d, dtype=torch.bool)
        self.edges = Gates("edge", "latents", (d, d), probability, off_diagonal)
        if order is not None and sorted(order) != list(range(d)):
            raise ConfigError(f"order must have each of the {d} latents once, got {order}")
        start = torch.zeros(d)
        start[torch.tensor(order if order is not None else range(d))] = torch.linspace(-1, 1, d) if d > 1 else 0.0
        if order is None:
            self.potential = nn.Parameter(start)
        else:
            self.register_buffer("potential", start)

    @torch.no_grad()
    def start_at(self, c: Tensor, touched: Tensor) -> None:
        """Start order, edges and (linear) weights at what the causes say: a search for the best-scoring order.

        Order and edges maximise the Gaussian score of each cause given the earlier ones, over the profiles in which its own
        equation was left alone (the score of Hauser & Bühlmann 2012); an edge stays if it improves the BIC.

        Parameters
        ----------
        c : Tensor ``[n, d]``
            Causes, or estimates of them.
        touched : Tensor ``[n, d]``, bool
            Where an intervention replaced or changed the cause's equation.
        """
        order, W = best_order(c.double(), touched)
        self.potential[torch.tensor(order)] = torch.linspace(-1, 1, self.d).to(self.potential) if self.d > 1 else 0.0
        self.edges.logits.copy_(torch.where(W != 0, CONFIDENT, -CONFIDENT))
        if isinstance(self.mechanism, LinearMechanism):
            self.mechanism.weight.copy_(W.to(self.mechanism.weight))

    @property
    def along(self) -> Tensor:
        """``[d, d]``: 1 where the order allows ``i → j``; gradients flow to the potentials."""
        gap = self.potential - self.potential.unsqueeze(-1)  # gap[i, j] = potential_j − potential_i
        soft = torch.sigmoid(gap / 0.2)
        return (gap > 0).to(soft.dtype) + (soft - soft.detach())

    @property
    def edge_probability(self) -> Tensor:
        """Posterior probability of ``i → j`` ``[d, d]``, under the learned order."""
        return (self.edges.probability * self.along).detach()

    @property
    def A(self) -> Tensor:
        """Adjacency of the most probable graph ``[d, d]``."""
        return (self.edge_probability > 0.5).to(self.potential.dtype)

    @property
    def graph(self) -> nx.DiGraph:
        """The most probable graph, edges with their ``probability``."""
        probability = self.edge_probability
        graph = graphs.empty(self.d)
        for i, j in self.A.nonzero().tolist():
            graph.add_edge(i, j, probability=float(probability[i, j]))
        return graph

    def drawn(self) -> Callable[[Tensor], Tensor]:
        edges = self.edges.draw()
        return lambda z: self.assign_all(z, edges * self.along)

    def draw_posterior(self) -> None:
        self.edges.draw_posterior()

    def forward(self, z: Tensor, own: Tensor | None = None) -> Tensor:
        return self.assign_all(z, self.A)

    def assign_all(self, z: Tensor, A: Tensor) -> Tensor:
        """Causes ``c [..., n, d]`` from noise under the graph ``A [d, d]``, latents in their own numbering."""
        order = self.potential.argsort().tolist()
        done: dict[int, Tensor] = {}
        for position, node in enumerate(order):
            parents = self._columns(done, torch.zeros_like(z[..., 0]))
            column = _Column(self.mechanism, A[..., :, node].unsqueeze(-2), node)
            noise = z[..., node : node + 1]
            value = column(parents, noise) if position else noise
            inputs = LayerInputs(self.d, [node], parents, noise, column if position else None)
            done[node] = assign(position + 1, value, inputs)[..., 0]
        return self._columns(done, z[..., 0])

    def _columns(self, done: dict[int, Tensor], absent: Tensor) -> Tensor:
        """``[..., n, d]``; an intervention may have given some latents more leading dimensions than others."""
        return torch.stack(torch.broadcast_tensors(*(done.get(i, absent) for i in range(self.d))), -1)

    def causes(self, trace: poutine.Trace) -> Tensor:
        order = self.potential.argsort()
        columns = [cast(Tensor, trace.nodes[layer_site(i + 1)]["value"]) for i in range(self.d)]
        return torch.cat(columns, -1).index_select(-1, order.argsort())


class _Column(Mechanism):
    """One latent's share of a mechanism for all: parents are masked on the way in (``mask [..., 1, d]``)."""

    def __init__(self, mechanism: Mechanism, mask: Tensor, node: int) -> None:
        nn.Module.__init__(self)
        object.__setattr__(self, "whole", mechanism)
        self.gate, self.node = mask, node

    def effect(self, parents: Tensor) -> Tensor:
        whole = cast(Mechanism, self.__dict__["whole"])
        return whole.effect(parents * self.gate)[..., self.node : self.node + 1]

    def combine(self, effect: Tensor, noise: Tensor) -> Tensor:
        return cast(Mechanism, self.__dict__["whole"]).combine(effect, noise)


def best_order(c: Tensor, touched: Tensor) -> tuple[list[int], Tensor]:
    """Order of the causes and weights ``W [d, d]`` of the best-scoring linear SCM; see :meth:`LearnedSCM.start_at`.

    Latents are taken out and put back where the score gains most, until no move gains.
    """
    d = c.shape[1]
    untouched = [c[~touched[:, j]] for j in range(d)]
    covariances = [(x - x.mean(0)).T @ (x - x.mean(0)) / max(len(x), 1) for x in untouched]
    counts = [len(x) for x in untouched]

    def cost(order: list[int]) -> float:
        return sum(
            _residual_cost(covariances[j], counts[j], _pruned(covariances[j], counts[j], order[:k], j), j)
            for k, j in enumerate(order)
        )

    order, best, gained = list(range(d)), math.inf, True
    while gained:
        gained = False
        for j in range(d):
            rest = [i for i in order if i != j]
            moves = [[*rest[:k], j, *rest[k:]] for k in range(d)]
            costs = [cost(move) for move in moves]
            if min(costs) < best - 1e-9:
                best, gained = min(costs), True
                order = moves[costs.index(best)]
    W = torch.zeros(d, d, dtype=c.dtype)
    for k, j in enumerate(order):
        parents = _pruned(covariances[j], counts[j], order[:k], j)
        if parents:
            W[parents, j] = _weights(covariances[j], parents, j)
    return order, W


def _weights(covariance: Tensor, parents: list[int], j: int) -> Tensor:
    block = covariance[parents][:, parents]
    ridge = 1e-8 * block.diagonal().mean() * torch.eye(len(parents), dtype=covariance.dtype)
    return torch.linalg.solve(block + ridge, covariance[parents, j])


def _residual_cost(covariance: Tensor, n: int, parents: list[int], j: int) -> float:
    """``n log σ²`` of ``j`` given ``parents``, plus the BIC of its coefficients."""
    variance = covariance[j, j]
    if parents:
        variance = variance - covariance[parents, j] @ _weights(covariance, parents, j)
    return n * math.log(max(float(variance), 1e-12)) + len(parents) * math.log(max(n, 2))


def _pruned(covariance: Tensor, n: int, parents: list[int], j: int) -> list[int]:
    """Parents left when none can go without a worse BIC."""
    kept = list(parents)
    while kept:
        now = _residual_cost(covariance, n, kept, j)
        without = [_residual_cost(covariance, n, [i for i in kept if i != k], j) for k in kept]
        if min(without) > now:
            break
        kept.pop(without.index(min(without)))
    return kept

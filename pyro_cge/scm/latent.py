"""The latent structural causal model: exogenous noise in, causes out, one sample site a layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import networkx as nx
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from ..errors import check_positive
from ..sites import deterministic, layer_site
from . import graphs
from .mechanisms import LinearMechanism, Mechanism
from .normal import DiagonalNormal


class LatentSCM(nn.Module):
    """``C_j := f_j(PA_j, Z_j)``, assigned layer by layer along the graph (paper, Definition 1).

    Layers are the topological generations of the graph; each is one vectorised assignment and one deterministic site
    ``c_1 … c_L``, so handlers can cut or change mechanisms there::

        z ~ env law            cells × d
        c_1 = z[layer 1]       roots
        c_l = f_l(c_1 … c_{l−1}) + z[layer l]

    Parameters
    ----------
    graph : networkx.DiGraph
        Over nodes ``0 … d−1``.
    mechanism : callable, parent mask ``[p, q]`` → Mechanism
        Called once for each layer after the first.
    own_noise : float or None
        Initial sd of a second noise that children have beside ``Z``: ``c_l ~ Normal(f_l(…) + z[layer l], s²)``, ``s``
        learned. Those layers are then latent sites, which the guide infers. Called by itself, ``scm(z, own)``, it is the
        value ``own`` of that noise, or zero.
    """

    order: Tensor
    inverse: Tensor

    def __init__(
        self,
        graph: nx.DiGraph,
        mechanism: Callable[[Tensor], Mechanism] = LinearMechanism,
        *,
        own_noise: float | None = None,
    ) -> None:
        super().__init__()
        if own_noise is not None:
            check_positive(own_noise=own_noise)
        self._graph = graph
        self.d = len(graph)
        self.layers = graphs.layers(graph)
        order = torch.tensor([node for layer in self.layers for node in layer])
        self._trivial = order.tolist() == list(range(self.d))
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("inverse", order.argsort(), persistent=False)
        adjacency = graphs.adjacency(graph)
        widths = [len(layer) for layer in self.layers]
        starts = torch.tensor(widths).cumsum(0).tolist()
        self.mechanisms = nn.ModuleList(
            mechanism(adjacency[order[:start]][:, layer])
            for start, layer in zip(starts[:-1], self.layers[1:], strict=True)
        )
        self._widths = widths
        self.log_own: nn.ParameterList | None = None
        if own_noise is not None:
            self.log_own = nn.ParameterList(torch.full((width,), math.log(own_noise)) for width in widths[1:])

    @property
    def graph(self) -> nx.DiGraph:
        return self._graph

    @property
    def own_noise(self) -> bool:
        """Whether children have noise of their own beside ``Z``."""
        return self.log_own is not None

    @property
    def nonroots(self) -> Tensor:
        """Latents of all layers but the first ``[k]``, in topological order."""
        return self.order[self._widths[0] :]

    @property
    def own_law(self) -> DiagonalNormal | None:
        """Law of the children's own noise over ``[k]`` (event dimension 1); None where they have none."""
        if self.log_own is None:
            return None
        scale = soft_sd(torch.cat(list(self.log_own)))
        return DiagonalNormal(torch.zeros_like(scale), scale)

    def draw_own(self, shape: Sequence[int]) -> Tensor | None:
        """Draws of the children's own noise ``[*shape, k]``; None where they have none."""
        return None if self.own_law is None else self.own_law.expand(shape).rsample()

    @staticmethod
    def identity(d: int) -> LatentSCM:
        """No edges: causes are the noise itself."""
        return LatentSCM(graphs.empty(d))

    @staticmethod
    def autoregressive(d: int, mechanism: Callable[[Tensor], Mechanism] = LinearMechanism, **options: Any) -> LatentSCM:
        """Every latent depends on all earlier ones: ``C_i := f_i(C_1 … C_{i−1}, Z_i)``, any DAG over a known order."""
        return LatentSCM(graphs.layered(d, 1), mechanism, **options)

    @staticmethod
    def layered(
        depth: int, width: int, mechanism: Callable[[Tensor], Mechanism] = LinearMechanism, **options: Any
    ) -> LatentSCM:
        """``depth`` layers of ``width`` latents, each a child of all earlier layers (paper, section 4.9)."""
        return LatentSCM(graphs.layered(depth, width), mechanism, **options)

    @property
    def A(self) -> Tensor:
        """Adjacency ``[d, d]``, ``A[i, j] = 1`` where ``i → j``."""
        return graphs.adjacency(self.graph)

    def drawn(self) -> Callable[[Tensor], Tensor]:
        """This SCM with its latents drawn: what a model calls inside the cells plate."""
        return self if self.log_own is None else partial(self._causes, draw=True)

    def draw_posterior(self) -> None:
        """Sample global latents (a learned graph's edges) from their posterior: the guide's side of :meth:`drawn`."""

    def forward(self, z: Tensor, own: Tensor | None = None) -> Tensor:
        """Causes ``c [..., n, d]`` from noise ``z [..., n, d]``, nodes in the graph's own order.

        ``own [..., n, k]``: what the :attr:`nonroots` have of their own (:meth:`draw_own`, a guide's ``own_noise``).
        """
        return self._causes(z, own)

    def _causes(self, z: Tensor, own: Tensor | None = None, draw: bool = False) -> Tensor:
        ordered = z if self._trivial else z.index_select(-1, self.order)
        noises = ordered.split(self._widths, -1) if len(self._widths) > 1 else (ordered,)
        owns = [None] * len(noises) if own is None else [None, *own.split(self._widths[1:], -1)]
        done: list[Tensor] = []
        for layer, (nodes, noise) in enumerate(zip(self.layers, noises, strict=True)):
            parents = _join(done) if done else noise[..., :0]
            mechanism = cast(Mechanism, self.mechanisms[layer - 1]) if layer else None
            value = noise if mechanism is None else mechanism(parents, noise)
            if (added := owns[layer]) is not None:
                value = value + added
            scale = soft_sd(cast(nn.ParameterList, self.log_own)[layer - 1]) if draw and layer else None
            done.append(assign(layer + 1, value, LayerInputs(self.d, nodes, parents, noise, mechanism, added), scale))
        c = _join(done)
        return c if self._trivial else c.index_select(-1, self.inverse)

    def causes(self, trace: poutine.Trace) -> Tensor:
        """Causes ``c [..., n, d]`` put together from the layer sites of a trace."""
        c = _join([cast(Tensor, trace.nodes[layer_site(i + 1)]["value"]) for i in range(len(self.layers))])
        return c.index_select(-1, self.inverse)


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """What a layer was computed from, handed to handlers in ``msg["infer"]["layer"]``.

    Attributes
    ----------
    d : int
        Latents in all.
    nodes : list of int
        The layer's own.
    parents : Tensor ``[..., n, p]``
        Values of all earlier layers, in topological order.
    noise : Tensor ``[..., n, k]``
    mechanism : Mechanism or None
        None for the roots.
    own : Tensor ``[..., n, k]`` or None
        Noise of their own that was added.
    """

    d: int
    nodes: list[int]
    parents: Tensor
    noise: Tensor
    mechanism: Mechanism | None
    own: Tensor | None = None


def _join(blocks: list[Tensor]) -> Tensor:
    """Columns of several layers side by side; an intervention may have given some of them more leading dimensions."""
    if len(blocks) == 1:
        return blocks[0]
    if any(block.shape[:-1] != blocks[0].shape[:-1] for block in blocks):
        shape = torch.broadcast_shapes(*(block.shape[:-1] for block in blocks))
        blocks = [block.expand(*shape, block.shape[-1]) for block in blocks]
    return torch.cat(blocks, -1)


def soft_sd(log_sd: Tensor) -> Tensor:
    """Standard deviation, kept within e^±5."""
    return (5 * torch.tanh(log_sd / 5)).exp()


def assign(layer: int, value: Tensor, inputs: LayerInputs, own_noise: Tensor | None = None) -> Tensor:
    """One layer's site with its inputs attached for handlers: deterministic, or with noise of its own a draw."""
    if own_noise is not None:
        return pyro.sample(
            layer_site(layer), dist.Normal(value, own_noise).to_event(1), infer=cast(Any, {"layer": inputs})
        )
    return deterministic(layer_site(layer), value, layer=inputs)

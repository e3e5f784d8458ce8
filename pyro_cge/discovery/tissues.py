"""Effects that differ between tissues, with beliefs about their signs, as a Pyro model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ..errors import ConfigError
from .distributions import LinearSEM, LinearSEMMoments, SignedNormal
from .inputs import Samples, samples
from .knowledge import Edge, Knowledge
from .order_search import OrderSearch
from .results import named_graph
from .variational import train_guide

ENHANCES, REPRESSES, UNKNOWN = (
    (8.0, 2.0),
    (2.0, 8.0),
    (1.0, 1.0),
)  # Beta laws of the share of tissues with a positive effect


class TissueSCM(PyroModule):
    """One graph, and in each tissue its own weights, of which something is believed: "A enhances B in most tissues".

    ::

        share_ij       ~ Beta(a_ij, b_ij)                     of tissues in which i enhances j; Beta(8, 2) is "most"
        weight[t, ij]  ~ SignedNormal(share_ij, 1)            tissues × edges
        noise_scale_tj ~ LogNormal(−1/2, 1)
        x | tissue t   ~ LinearSEM(W[t], noise_scale[t])      genes at mean 0 in each tissue, sd 1 over tissues

    Tissues with few samples borrow the sign, and nothing else, from the others.

    Parameters
    ----------
    graph : DiGraph, optional
        Edges considered, a DAG over (some of) the genes. Default: :class:`OrderSearch` on all samples, tissue means removed,
        with the edges of ``signs`` required: who says that A enhances B says that there is an effect, and its direction,
        which observations cannot always tell. Where data know of none, its weights come out near 0.
    signs : mapping of pairs ``(cause, effect)`` to ``(a, b)``
        ``ENHANCES``, ``REPRESSES`` or a Beta law of one's own; uniform for edges not named. Edges of ``graph``, where that is
        given.
    steps, lr, random_state
        Of SVI.
    progress : bool, optional
        A bar over the restarts of the search and the steps of SVI; by default only on a terminal.

    Attributes
    ----------
    shares_ : DataFrame
        ``cause``, ``effect``, ``mean`` and ``sd`` of the share of tissues in which the effect is positive.
    effects_ : DataFrame
        ``tissue``, ``cause``, ``effect``, ``mean``, ``sd`` of the weight, in the units of the data, and ``positive``, the
        probability that it is.
    adjacency_ : ndarray ``[d, d]``
        The same in all tissues.
    weights_ : ndarray ``[T, d, d]``
    graph_ : DiGraph
        With the mean ``weight`` over tissues and the ``share``.
    order_ : list of str
        Causes first.
    tissues_, genes_ : list of str
    history_ : list of float
    """

    grams: Tensor
    log_a: Tensor
    log_b: Tensor
    weight_loc: Tensor
    weight_log_sd: Tensor
    noise_loc: Tensor
    noise_log_sd: Tensor
    cause: Tensor
    effect: Tensor
    a: Tensor
    b: Tensor

    def __init__(
        self,
        graph: nx.DiGraph | None = None,
        *,
        signs: Mapping[Edge, tuple[float, float]] | None = None,
        steps: int = 600,
        lr: float = 0.03,
        random_state: int = 0,
        progress: bool | None = None,
    ) -> None:
        super().__init__()
        if graph is not None and not nx.is_directed_acyclic_graph(graph):
            raise ConfigError(f"the graph must be a DAG, but has the cycle {nx.find_cycle(graph)}")
        for (cause, effect), law in (signs or {}).items():
            if len(law) != 2 or min(law) <= 0:
                raise ConfigError(f"the sign of {cause!r} → {effect!r} needs two positive numbers (a, b), got {law}")
        self.graph, self.signs, self.steps, self.lr = graph, signs or {}, steps, lr
        self.random_state, self.progress = random_state, progress

    # The model and its guide

    @pyro_method
    def model(self, grams: Tensor | None = None, n: int = 1) -> Tensor:
        """Gram matrices of the tissues' genes ``[T, d+1, d+1]``; without data, ``n`` new rows of each tissue."""
        self._started()
        T, d = self.grams.shape[0], self.grams.shape[-1] - 1
        zero = self.a.new_zeros(())
        by_edge, by_tissue = pyro.plate("edges", len(self.a), dim=-1), pyro.plate("tissues", T, dim=-2)
        with by_edge:
            share = pyro.sample("share", dist.Beta(self.a, self.b))
        with by_tissue, by_edge:
            W = self._dense(pyro.sample("weight", SignedNormal(share, zero + 1.0)))
        genes = pyro.plate("genes", d, dim=-1)
        with by_tissue, genes:
            scale = pyro.sample("noise_scale", dist.LogNormal(zero - 0.5, 1.0))
        if grams is None:
            with pyro.plate("cells", n, dim=-3), by_tissue:
                law = LinearSEM(W.unsqueeze(-3), 0.0, scale.unsqueeze(-2), acyclic=True)
                return pyro.sample("x", law).squeeze(-2)
        with by_tissue, genes:
            law = LinearSEMMoments(W, torch.zeros_like(scale), scale, torch.ones_like(scale))
            return pyro.sample("x", law, obs=LinearSEMMoments.observed(grams))

    @pyro_method
    def guide(self, grams: Tensor | None = None, n: int = 1) -> None:
        """Beta shares, Normal weights, LogNormal scales."""
        self._started()
        T, d = self.grams.shape[0], self.grams.shape[-1] - 1
        by_edge, by_tissue = pyro.plate("edges", len(self.a), dim=-1), pyro.plate("tissues", T, dim=-2)
        with by_edge:
            pyro.sample("share", dist.Beta(self.log_a.exp(), self.log_b.exp()))
        with by_tissue, by_edge:
            pyro.sample("weight", dist.Normal(self.weight_loc, self.weight_log_sd.exp()))
        with by_tissue, pyro.plate("genes", d, dim=-1):
            pyro.sample("noise_scale", dist.LogNormal(self.noise_loc, self.noise_log_sd.exp()))

    def _dense(self, weight: Tensor) -> Tensor:
        """``W [T, d, d]`` of weights ``[T, edges]``."""
        d = self.grams.shape[-1] - 1
        W = weight.new_zeros(*weight.shape[:-1], d * d)
        return W.index_copy(-1, self.cause * d + self.effect, weight).reshape(*weight.shape[:-1], d, d)

    # From data

    def start(self, X: Any, tissue: ArrayLike | str) -> TissueSCM:
        """Edges, Gram matrices and a guide at the least-squares weights of each tissue.

        Raises
        ------
        ConfigError
            If the graph or a sign names genes that are not in the data, a sign an edge that is not in the graph given, or
            the signs' edges form a cycle.
        DataError
            As :class:`OrderSearch`.
        """
        data = samples(X, tissue)
        x, scale = _within(data)
        graph = self.graph if self.graph is not None else self._search(pd.DataFrame(x, columns=data.genes))
        strangers = sorted(set(map(str, graph)) - set(data.genes))
        absent = [pair for pair in self.signs if not graph.has_edge(*pair)]
        if strangers or absent:
            raise ConfigError(
                f"the graph has {strangers[:5]}, which are not among the genes of the data"
                if strangers
                else f"a sign is given for {absent[0][0]!r} → {absent[0][1]!r}, which is not an edge of the graph"
            )
        self.genes_, self.tissues_, self._scale = data.genes, data.environments, scale
        place = {gene: j for j, gene in enumerate(data.genes)}
        pairs = [(str(a), str(b)) for a, b in graph.edges]
        rows = np.c_[x / scale, np.zeros(len(x))]  # means are taken out, so that the constant has no part
        grams = np.stack([rows[data.env == t].T @ rows[data.env == t] for t in range(len(data.environments))])
        grams[:, -1, -1] = data.sizes
        beliefs = np.array([self.signs.get(pair, UNKNOWN) for pair in pairs]).reshape(-1, 2)
        cause, effect = (np.array([place[pair[k]] for pair in pairs], dtype=np.int64) for k in (0, 1))
        buffers = {"grams": grams, "cause": cause, "effect": effect, "a": beliefs[:, 0], "b": beliefs[:, 1]}
        for name, value in buffers.items():
            self.register_buffer(name, torch.as_tensor(value))
        weight, sd, noise = _least_squares(grams, cause, effect)
        start = {"log_a": np.log(beliefs[:, 0] + 1), "log_b": np.log(beliefs[:, 1] + 1)}
        start |= {"weight_loc": weight, "weight_log_sd": np.log(sd), "noise_loc": np.log(noise)}
        start["noise_log_sd"] = -0.5 * np.log(2 * data.sizes)[:, None] * np.ones_like(noise)
        for name, value in start.items():
            setattr(self, name, nn.Parameter(torch.as_tensor(value)))
        return self

    def _search(self, x: pd.DataFrame) -> nx.DiGraph:
        settings: dict[str, Any] = {"random_state": self.random_state, "progress": self.progress}
        return OrderSearch(knowledge=Knowledge(required=list(self.signs)), **settings).fit(x).graph_

    def fit(self, X: Any, tissue: ArrayLike | str, *, device: torch.device | str = "cpu") -> TissueSCM:
        """Train by SVI. ``X`` as in :func:`~pyro_cge.discovery.inputs.samples`, ``tissue`` one label a sample."""
        self.start(X, tissue).to(device)
        optimiser = torch.optim.Adam(self.parameters(), lr=self.lr, betas=(0.9, 0.99))
        elbo = Trace_ELBO()
        self.history_ = train_guide(
            lambda: elbo.differentiable_loss(self.model, self.guide, self.grams),
            optimiser,
            steps=self.steps,
            decay=0.03,
            seed=self.random_state,
            progress=self.progress,
        )
        self._summarise()
        return self

    def _started(self) -> None:
        if not hasattr(self, "grams"):
            raise ConfigError("TissueSCM has seen no data yet: call start(X, tissue) or fit(X, tissue) first")

    def _summarise(self) -> None:
        cause, effect = self.cause.cpu().numpy(), self.effect.cpu().numpy()
        names = {"cause": [self.genes_[i] for i in cause], "effect": [self.genes_[j] for j in effect]}
        law = dist.Beta(self.log_a.exp(), self.log_b.exp())
        mean, variance = (value.detach().cpu().numpy() for value in (law.mean, law.variance))
        self.shares_ = pd.DataFrame({**names, "mean": mean, "sd": np.sqrt(variance)})
        loc, sd = self.weight_loc.detach(), self.weight_log_sd.exp().detach()
        positive = torch.distributions.Normal(0.0, 1.0).cdf(loc / sd).cpu().numpy()
        units = self._scale[effect] / self._scale[cause]
        w, s = loc.cpu().numpy() * units, sd.cpu().numpy() * units
        parts = [
            pd.DataFrame({"tissue": name, **names, "mean": w[t], "sd": s[t], "positive": positive[t]})
            for t, name in enumerate(self.tissues_)
        ]
        self.effects_ = pd.concat(parts, ignore_index=True)
        d = len(self.genes_)
        self.weights_ = np.zeros((len(self.tissues_), d, d))
        self.weights_[:, cause, effect] = w
        share = np.zeros((d, d))
        share[cause, effect] = mean
        self.adjacency_ = np.zeros((d, d), dtype=np.int64)
        self.adjacency_[cause, effect] = 1
        self.graph_ = named_graph(self.adjacency_, self.genes_, weight=self.weights_.mean(0), share=share)
        self.order_ = list(nx.topological_sort(self.graph_))


def _within(data: Samples) -> tuple[np.ndarray, np.ndarray]:
    """Genes with each tissue's mean taken out ``[n, d]``, and their standard deviation ``[d]``."""
    means = np.stack([data.x[data.env == t].mean(0) for t in range(len(data.environments))])
    x = data.x - means[data.env]
    return x, x.std(0)


def _least_squares(
    grams: np.ndarray, cause: np.ndarray, effect: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ridge weights of each tissue ``[T, edges]`` with standard errors, and noise scales ``[T, d]``."""
    T, d = len(grams), grams.shape[-1] - 1
    weight, sd, noise = np.zeros((T, len(cause))), np.ones((T, len(cause))), np.ones((T, d))
    for j in range(d):
        mine = np.flatnonzero(effect == j)
        parents = cause[mine]
        n = grams[:, -1, -1]
        block = grams[:, parents][:, :, parents] + np.eye(len(parents))
        right = grams[:, parents, j]
        inverse = np.linalg.inv(block)
        beta = (inverse @ right[..., None])[..., 0]
        left = np.maximum(grams[:, j, j] - (beta * right).sum(-1), 1e-3 * n)
        noise[:, j] = np.sqrt(left / n)
        weight[:, mine] = beta
        sd[:, mine] = noise[:, j, None] * np.sqrt(np.diagonal(inverse, axis1=1, axis2=2))
    return weight, sd, noise

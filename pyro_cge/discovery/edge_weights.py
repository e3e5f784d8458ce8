"""A posterior of the weights of given edges, as a Pyro model that has no matrix of genes by genes."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import networkx as nx
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike
from pyro.distributions import constraints
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ..errors import ConfigError
from ..seeds import isolated
from .distributions import NOISE_WIDTH
from .inputs import one_law
from .large import DENSE, LargeOrderSearch
from .mean_field import horseshoe_curvature, horseshoe_kl, laplace_curvature, laplace_kl, log_normal_kl
from .progress import shown
from .results import edge_table

PRIORS = ("laplace", "horseshoe")


class SparseSEM(dist.TorchDistribution):
    """``x_j = Σ_{e: i → j} w_e x_i + scale_j ε_j`` over the edges of a DAG: :class:`LinearSEM` with a list of edges.

    Parameters
    ----------
    edges : Tensor ``[2, m]``, int
        Causes and effects.
    weight : Tensor ``[..., m]``
    scale : Tensor ``[..., d]``
    generation : Tensor ``[m]``, int
        Length of the longest path to each edge's effect, from 1 on: what can be drawn together.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, edges: Tensor, weight: Tensor, scale: Tensor, generation: Tensor, *, validate_args: bool | None = None
    ) -> None:
        self.edges, self.weight, self.scale, self.generation = edges, weight, scale, generation
        batch = torch.broadcast_shapes(weight.shape[:-1], scale.shape[:-1])
        super().__init__(batch, scale.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> SparseSEM:
        scale = self.scale.expand(*batch_shape, self.scale.shape[-1])
        return SparseSEM(self.edges, self.weight, scale, self.generation, validate_args=False)

    def mean_given(self, x: Tensor) -> Tensor:
        """``x W``: what each gene's causes say of it ``[..., d]``."""
        parts = x[..., self.edges[0]] * self.weight
        return x.new_zeros(*parts.shape[:-1], x.shape[-1]).index_add(-1, self.edges[1], parts)

    def log_prob(self, value: Tensor) -> Tensor:
        return dist.Normal(self.mean_given(value), self.scale, validate_args=False).log_prob(value).sum(-1)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        x = self.scale * torch.randn(shape, dtype=self.scale.dtype, device=self.scale.device)
        for g in range(1, int(self.generation.max()) + 1 if len(self.generation) else 1):
            here = self.generation == g
            x = x.index_add(-1, self.edges[1, here], x[..., self.edges[0, here]] * self.weight[..., here])
        return x


class EdgeWeights(PyroModule):
    """Weights of the edges of a given DAG, for graphs of up to tens of thousands of genes.

    ::

        W_e         ~ Laplace(0, b)   or   W_e ~ Normal(0, τ local_e), local_e ~ HalfCauchy(1)      one an edge e: i → j
        noise_scale ~ LogNormal(0, 2)                                                              one a gene
        x_j         = Σ_{e: i → j} W_e x_i + noise_scale_j ε

    The guide (independent normal weights, log-normal scales) starts from each gene's least squares and their standard errors,
    in units of which it is trained, by minibatches of cells. The bound has a closed form, so that nothing is drawn.

    Parameters
    ----------
    graph : DiGraph, optional
        Default: that of :class:`LargeOrderSearch`, with its defaults.
    prior : {"laplace", "horseshoe"}
    prior_scale : float
        ``b`` or ``τ``, in units of the standardised columns.
    epochs, batch_size, lr
        Passes over the cells, cells a step, and learning rate of Adam, which falls to zero.
    progress : bool, optional
        Progress bar; by default only on a terminal.
    random_state : int

    Attributes
    ----------
    graph_ : DiGraph
        With ``weight`` (posterior mean) and ``sd`` on the edges, in the units of the data.
    adjacency_, weights_ : ndarray or scipy.sparse.csr_array ``[d, d]``
        The same as matrices; sparse for more than 2,000 genes.
    order_ : list of str
        Causes first.
    genes_ : list of str
    history_ : list of float
        Negative bound a cell, after each epoch.
    """

    shift: nn.Parameter
    log_stretch: nn.Parameter
    noise_loc: nn.Parameter
    noise_log_scale: nn.Parameter
    local_loc: nn.Parameter
    local_log_scale: nn.Parameter
    adjacency_: Any
    weights_: Any
    x_: Tensor
    edges: Tensor
    generation: Tensor
    squares: Tensor
    errors: Tensor

    def __init__(
        self,
        graph: nx.DiGraph | None = None,
        *,
        prior: str = "laplace",
        prior_scale: float = 0.5,
        epochs: int = 20,
        batch_size: int = 128,
        lr: float = 0.05,
        progress: bool | None = None,
        random_state: int = 0,
    ) -> None:
        super().__init__()
        if prior not in PRIORS:
            raise ConfigError(f"prior is one of {list(PRIORS)}, got {prior!r}")
        if not (prior_scale > 0 and lr > 0) or epochs < 0 or batch_size < 1:
            raise ConfigError(
                "prior_scale and lr must be positive, epochs not negative, batch_size at least 1, got "
                f"{prior_scale}, {lr}, {epochs}, {batch_size}"
            )
        if graph is not None and not nx.is_directed_acyclic_graph(graph):
            raise ConfigError("edge weights are those of a DAG, but the graph given has a cycle")
        self.graph, self.prior, self.prior_scale = graph, prior, prior_scale
        self.epochs, self.batch_size, self.lr = epochs, batch_size, lr
        self.progress, self.random_state = progress, random_state

    # The model and its guide

    @pyro_method
    def model(self, x: Tensor | None = None, index: Tensor | None = None, n: int | None = None) -> Tensor:
        """Rows ``x [B, d]`` of the standardised ``x_`` (``index``: which ones, of a minibatch), or ``n`` new ones."""
        self._started()
        m, d = len(self.squares), self.x_.shape[-1]
        width = self.x_.new_full((m,), self.prior_scale)
        if self.prior == "horseshoe":
            width = width * pyro.sample("local", dist.HalfCauchy(torch.ones_like(width)).to_event(1))
            W = pyro.sample("W", dist.Normal(torch.zeros_like(width), width).to_event(1))
        else:
            W = pyro.sample("W", dist.Laplace(torch.zeros_like(width), width).to_event(1))
        scale = pyro.sample("noise_scale", dist.LogNormal(self.x_.new_zeros(d), NOISE_WIDTH).to_event(1))
        size = len(self.x_) if index is not None else len(x) if x is not None else n or 1
        with pyro.plate("cells", size, subsample=index):
            return pyro.sample("x", SparseSEM(self.edges, W, scale, self.generation), obs=x)

    @pyro_method
    def guide(self, x: Tensor | None = None, index: Tensor | None = None, n: int | None = None) -> None:
        """Independent weights and scales."""
        self._started()
        if self.prior == "horseshoe":
            pyro.sample("local", dist.LogNormal(self.local_loc, self.local_log_scale.exp()).to_event(1))
        loc, log_scale = self._weights()
        pyro.sample("W", dist.Normal(loc, log_scale.exp()).to_event(1))
        pyro.sample("noise_scale", dist.LogNormal(self.noise_loc, self.noise_log_scale.exp()).to_event(1))

    def _weights(self) -> tuple[Tensor, Tensor]:
        """Means and log standard deviations of the weights of the standardised columns ``[m]``."""
        return self.squares + self.errors * self.shift, self.errors.log() + self.log_stretch

    def bound(self, index: Tensor) -> Tensor:
        """Negative evidence lower bound a cell ``[]`` on a minibatch, in closed form."""
        loc, log_scale = self._weights()
        x, n = self.x_[index], len(self.x_)
        precision = (2 * (2 * self.noise_log_scale).exp() - 2 * self.noise_loc).exp()
        error = x - SparseSEM(self.edges, loc, precision, self.generation).mean_given(x)
        spread = x.square()[:, self.edges[0]].mean(0) * (2 * log_scale).exp() * precision[self.edges[1]]
        likelihood = (error.square().mean(0) * precision).sum() + spread.sum() + 2 * self.noise_loc.sum()
        likelihood = 0.5 * (likelihood + len(precision) * math.log(2 * math.pi))
        if self.prior == "horseshoe":
            kl = horseshoe_kl(loc, log_scale, self.local_loc, self.local_log_scale, self.prior_scale).sum()
        else:
            kl = laplace_kl(loc, log_scale, self.prior_scale).sum()
        return likelihood + (kl + log_normal_kl(self.noise_loc, self.noise_log_scale, NOISE_WIDTH).sum()) / n

    # Estimation

    def start(self, X: Any) -> EdgeWeights:
        """Make the parameters, at each gene's least squares.

        Raises
        ------
        DataError, ConfigError
            For data that cannot be used, and a graph over other genes.
        """
        data = one_law(X)
        graph = self.graph
        if graph is None:
            graph = LargeOrderSearch(random_state=self.random_state, progress=self.progress).fit(data).graph_
        place = {gene: j for j, gene in enumerate(data.genes)}
        strange = [str(node) for node in graph if node not in place]
        if strange:
            raise ConfigError(f"nodes of the graph that are no genes of the data: {strange[:5]}")
        level = {gene: g for g, genes in enumerate(nx.topological_generations(graph)) for gene in genes}
        pairs = sorted(((place[a], place[b]) for a, b in graph.edges), key=lambda pair: pair[::-1])
        edges = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        self.genes_, self.scale_, x = data.genes, data.x.std(0), data.scaled
        squares, errors, noise = _least_squares(x, edges)
        for name, value in {
            "x_": torch.tensor(x),
            "edges": torch.tensor(edges),
            "generation": torch.tensor([level[data.genes[j]] for j in edges[1]], dtype=torch.int64),
            "squares": torch.tensor(squares),
            "errors": torch.tensor(errors),
        }.items():
            self.register_buffer(name, value, persistent=False)
        flat = torch.zeros(len(squares), dtype=torch.float64)
        self.shift, self.log_stretch = nn.Parameter(flat.clone()), nn.Parameter(flat.clone())
        self.noise_loc = nn.Parameter(torch.tensor(noise).log())
        self.noise_log_scale = nn.Parameter(torch.full_like(self.noise_loc, -0.5 * math.log(2 * len(x))))
        if self.prior == "horseshoe":
            size = (self.squares.abs() / self.prior_scale).clamp_min(1e-3)
            self.local_loc, self.local_log_scale = nn.Parameter(size.log()), nn.Parameter(flat.clone())
        return self

    def fit(
        self,
        X: Any,
        env: ArrayLike | str | None = None,
        *,
        control: Any = None,
        device: torch.device | str = "cpu",
    ) -> EdgeWeights:
        """Start, then lower the bound; ConfigError for environments: this is one law.

        Raises
        ------
        DataError, ConfigError
            As :meth:`start`.
        """
        self.start(one_law(X, env, control)).to(device)
        n, self.history_ = len(self.x_), list[float]()
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr, fused=True)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, max(1, self.epochs))
        with isolated(self.random_state, "edge weights"):
            for _ in shown(range(self.epochs), self.epochs, self.progress):
                total = 0.0
                for index in torch.randperm(n).split(self.batch_size):
                    loss = self.bound(index)
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
                    total += float(loss.detach()) * len(index) / n
                schedule.step()
                self.history_.append(total)
        self.graph_ = nx.DiGraph()
        self.graph_.add_nodes_from(self.genes_)
        table = self.posterior()
        for row in table.itertuples(index=False):
            self.graph_.add_edge(row.cause, row.effect, weight=row.weight, sd=row.sd)
        self.order_ = list(nx.topological_sort(self.graph_))
        kinds: tuple[tuple[str | None, Any], ...] = ((None, np.int64), ("weight", np.float64))
        found = (nx.to_scipy_sparse_array(self.graph_, self.genes_, dtype, weight) for weight, dtype in kinds)
        self.adjacency_, self.weights_ = (m if len(self.genes_) > DENSE else m.toarray() for m in found)
        return self

    @torch.no_grad()
    def posterior(self) -> pd.DataFrame:
        """One row an edge: ``cause``, ``effect``, ``weight`` (posterior mean) and ``sd``, in the units of the data.

        The guide's own deviations are those given the gene's other weights; these are corrected by linear response
        (Giordano, Broderick, Jordan 2015).
        """
        self._started()
        loc, log_scale = self._weights()
        if self.prior == "horseshoe":
            prior = horseshoe_curvature(self.local_loc, self.local_log_scale, self.prior_scale)
        else:
            prior = laplace_curvature(loc, log_scale, self.prior_scale)
        precision = (2 * (2 * self.noise_log_scale).exp() - 2 * self.noise_loc).exp().cpu().numpy()
        x, (causes, effects), sd = self.x_.cpu().numpy(), self.edges.cpu().numpy(), np.zeros(len(loc))
        mean, curved = loc.cpu().numpy(), prior.cpu().numpy()
        start = np.searchsorted(effects, np.arange(x.shape[1] + 1))
        for j in np.flatnonzero(np.diff(start)):
            here = slice(start[j], start[j + 1])
            block = x[:, causes[here]]
            curvature = precision[j] * block.T @ block + np.diag(curved[here])
            sd[here] = np.sqrt(np.diag(np.linalg.inv(curvature)))
        units = self.scale_[effects] / self.scale_[causes]
        graph = nx.DiGraph()
        for a, b, weight, s in zip(causes, effects, mean * units, sd * units, strict=True):
            graph.add_edge(self.genes_[a], self.genes_[b], weight=float(weight), sd=float(s))
        return edge_table(graph)

    def _started(self) -> None:
        if not hasattr(self, "shift"):
            raise ConfigError("EdgeWeights has seen no data yet: call start(X) or fit(X) first")


def _least_squares(x: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights and their standard errors ``[m]``, and noise scales ``[d]``; edges are sorted by effect."""
    n, d = x.shape
    weights, errors, noise = np.zeros(edges.shape[1]), np.zeros(edges.shape[1]), np.ones(d)
    start = np.searchsorted(edges[1], np.arange(d + 1))
    for j in np.flatnonzero(np.diff(start)):
        here = slice(start[j], start[j + 1])
        block = x[:, edges[0, here]]
        inverse = np.linalg.inv(block.T @ block + 1e-9 * n * np.eye(block.shape[1]))
        beta = inverse @ (block.T @ x[:, j])
        noise[j] = max(np.sqrt(((x[:, j] - block @ beta) ** 2).mean()), 1e-6)
        weights[here], errors[here] = beta, noise[j] * np.sqrt(np.diag(inverse))
    return weights, errors, noise

"""A variational autoencoder whose encoder and decoder share a graph: DAG-GNN, in Pyro."""

from __future__ import annotations

import math
from typing import Any

import networkx as nx
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ..errors import ConfigError
from ..seeds import isolated
from .acyclicity import penalty, to_dag
from .constrained import Adam, Path, table_on, train
from .distributions import NOISE_WIDTH
from .inputs import one_law
from .knowledge import FORBIDDEN, REQUIRED, Knowledge
from .results import named_graph


class DAGGNN(PyroModule):
    """Noise of every gene, spread along a graph and bent by a network that all genes share.

    ::

        W_ij          ~ Laplace(0, 1/(n λ))
        noise_scale_j ~ LogNormal(0, 2)
        z             ~ Normal(0, 1)                                   exogenous noise, one a gene
        x_j           ~ Normal(decoder((z (I − W)⁻¹)_j), noise_scale_j)

        guide:        [mean | log scale] of z = encoder(x) (I − W),    W and noise_scale points

    The generalised structural model ``f⁻¹(x) = f⁻¹(x) W + z`` of Yu et al. (2019), equations 3, 4, 6 and 7. By default the graph
    comes from the order search on Gaussian-process evidence and the autoencoder learns the weights of its edges; with a
    ``path`` it finds the graph itself, from ``W = 0``, as the original does (far worse: ``benchmarks/nonlinear``).

    Parameters
    ----------
    hidden : int
        Width of encoder and decoder, which have one hidden layer.
    l1 : float
        ``λ``.
    path : AugmentedLagrangian, CentralPath or SoftPenalty, optional
        How acyclicity is imposed; None starts from the order search.
    acyclicity : {"trace-exponential", "log-det", "spectral"}
        Of the path.
    threshold : float, optional
        Smaller weights are left out in the end, but for those of required edges. Default: 0.3 with a path, none without.
    lr : float
    steps : int
        Of Adam, for each problem of the path; without one, in all.
    batch_size : int
    knowledge : Knowledge, optional
        Enforced exactly. Required edges need the order search.
    random_state : int
    progress : bool, optional
        A bar over the restarts of the order search or the problems of a path; by default only on a terminal.

    Attributes
    ----------
    adjacency_ : ndarray ``[d, d]``
        A DAG, always.
    weights_ : ndarray ``[d, d]``
        ``W``, which is between the hidden values of the genes and has no units.
    graph_ : DiGraph
    order_ : list of str
        Causes first.
    objective_ : float
        Negative evidence lower bound a sample, nats (standardised columns).
    genes_ : list of str

    References
    ----------
    Yu, Chen, Gao, Yu 2019, "DAG-GNN: DAG structure learning with graph neural networks".
    """

    W_loc: nn.Parameter
    noise_log_scale: nn.Parameter
    x_: Tensor
    free: Tensor

    def __init__(
        self,
        *,
        hidden: int = 64,
        l1: float = 1e-3,
        path: Path | None = None,
        acyclicity: str = "trace-exponential",
        threshold: float | None = None,
        lr: float = 3e-3,
        steps: int = 1500,
        batch_size: int = 100,
        knowledge: Knowledge | None = None,
        random_state: int = 0,
        progress: bool | None = None,
    ) -> None:
        super().__init__()
        if min(hidden, steps, batch_size) < 1 or not (l1 > 0 and lr > 0):
            raise ConfigError(
                f"hidden, steps and batch_size must be at least 1, l1 and lr positive, got {hidden}, {steps}, {batch_size}, {l1}, {lr}"
            )
        if threshold is not None and threshold < 0:
            raise ConfigError(f"threshold must not be negative, got {threshold}")
        self.hidden, self.l1, self.path, self.h = hidden, l1, path, penalty(acyclicity)
        self.threshold = (0.0 if path is None else 0.3) if threshold is None else threshold
        self.lr, self.steps, self.batch_size = lr, steps, batch_size
        self.knowledge, self.random_state, self.progress = knowledge or Knowledge(), random_state, progress
        with isolated(random_state, "networks"):
            self.encoder = _network(1, hidden, 2)
            self.decoder = _network(1, hidden, 1)

    # The model and its guide

    @pyro_method
    def model(self, x: Tensor | None = None, n: int | None = None) -> Tensor:
        """Rows ``x [n, d]`` in the units of ``x_`` (standardised), or ``n`` new ones."""
        self._started()
        zero = torch.zeros_like(self.W_loc)
        W = pyro.sample("W", dist.Laplace(zero, 1 / (self.n_ * self.l1)).mask(self.free).to_event(2)) * self.free
        scale = pyro.sample("noise_scale", dist.LogNormal(zero[0], NOISE_WIDTH).to_event(1))
        with self._cells(x, n):
            z = pyro.sample("z", dist.Normal(zero[0], 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(self.decode(z, W), scale).to_event(1), obs=x)

    @pyro_method
    def guide(self, x: Tensor | None = None, n: int | None = None) -> None:
        """Points for the weights and noise scales; the encoder for the noise (without data, its prior)."""
        self._started()
        pyro.sample("W", dist.Delta(self.W_loc).mask(self.free).to_event(2))
        pyro.sample("noise_scale", dist.Delta(self.noise_log_scale.exp()).to_event(1))
        if x is not None:
            with self._cells(x, n):
                mean, log_scale = self.encode(x, self.W_loc * self.free)
                pyro.sample("z", dist.Normal(mean, log_scale.exp()).to_event(1))

    def _cells(self, x: Tensor | None, n: int | None) -> pyro.plate:
        """The plate over samples; rows passed that are part of the data stand for all of them."""
        if x is None:
            return pyro.plate("cells", n or 1)
        return pyro.plate("cells", max(self.n_, len(x)), subsample=torch.arange(len(x), device=x.device))

    def encode(self, x: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log scale of ``z``, each ``[..., n, d]``."""
        mean, log_scale = self.encoder(x.unsqueeze(-1)).unbind(-1)
        through = torch.eye(W.shape[-1], dtype=W.dtype, device=W.device) - W
        return mean @ through, (log_scale @ through).clamp(-7, 7)

    def decode(self, z: Tensor, W: Tensor) -> Tensor:
        """Means of the genes ``[..., n, d]``."""
        through = torch.eye(W.shape[-1], dtype=W.dtype, device=W.device) - W
        if W.dim() > 2:
            spread = torch.linalg.solve(through.mT, z.unsqueeze(-1)).squeeze(-1)
        else:
            spread = torch.linalg.solve(through, z, left=False)
        return self.decoder(spread.unsqueeze(-1)).squeeze(-1)

    def objective(self, x: Tensor) -> Tensor:
        """Negative evidence lower bound a sample ``[]``, from one draw of ``z``; all rows count as much as these."""
        W, scale = self.W_loc * self.free, self.noise_log_scale
        mean, log_scale = self.encode(x, W)
        z = mean + log_scale.exp() * torch.randn_like(mean)
        left = (x - self.decode(z, W)) * (-scale).exp()
        likelihood = 0.5 * (left * left).sum(-1).mean() + scale.sum() + 0.5 * x.shape[-1] * math.log(2 * math.pi)
        kl = 0.5 * (mean * mean + (2 * log_scale).exp() - 2 * log_scale - 1).sum(-1).mean()
        prior = (0.5 * (scale / NOISE_WIDTH) ** 2 + scale + math.log(NOISE_WIDTH * math.sqrt(2 * math.pi))).sum()
        laplace = W.abs().sum() * self.l1 + self.free.sum() / self.n_ * math.log(2 / (self.n_ * self.l1))
        return likelihood + kl + laplace + prior / self.n_

    # From data

    def start(self, X: Any) -> DAGGNN:
        """The order search, and weights of least squares along its edges; with a path, zero weights. Networks untrained.

        Raises
        ------
        DataError, ConfigError
            For unusable data (:func:`~pyro_cge.discovery.inputs.samples`) and contradictory knowledge.
        """
        data = one_law(X)
        table = table_on(self.path, self.knowledge, data.genes)
        self.genes_, self.n_, d, x = data.genes, len(data.x), data.d, data.scaled
        free, W, self._required = table != FORBIDDEN, np.zeros((d, d)), table == REQUIRED
        if self.path is None:
            from .gaussian_process import process_order

            settings: dict[str, Any] = {"edge": 1.0, "max_parents": 6, "restarts": 3, "progress": self.progress}
            _, edges, _ = process_order(x, data.genes, self.knowledge, seed=self.random_state, **settings)
            free = edges > 0
            for j in range(d):
                W[free[:, j], j] = np.linalg.lstsq(x[:, free[:, j]], x[:, j], rcond=None)[0]
        device = next(self.encoder.parameters()).device
        for name, value in (("x_", x), ("free", free)):
            self.register_buffer(name, torch.as_tensor(value, device=device), persistent=name != "x_")
        self.W_loc = nn.Parameter(torch.as_tensor(W, device=device))
        self.noise_log_scale = nn.Parameter(torch.zeros(d, dtype=torch.double, device=device))
        return self

    def fit(self, X: Any, env: ArrayLike | str | None = None, *, control: Any = None) -> DAGGNN:
        """Train; ConfigError for environments: this is one law."""
        data = one_law(X, env, control)
        self.start(data)
        inner = Adam(list(self.parameters()), lr=self.lr, steps=self.steps)
        with isolated(self.random_state, "training"):
            if self.path is None:
                inner(self._minibatch)
            else:
                train(self._minibatch, self._strength, inner, self.path, self.h, progress=self.progress)
            with torch.no_grad():
                self.objective_ = float(torch.stack([self.objective(self.x_) for _ in range(20)]).mean())
                W = (self.W_loc * self.free).cpu().numpy()
                self.weights_ = to_dag(W, self.threshold, self._required)
                self.W_loc.copy_(torch.as_tensor(self.weights_))
        self.adjacency_ = ((self.weights_ != 0) | self._required).astype(np.int64)
        self.graph_ = named_graph(self.adjacency_, self.genes_, weight=self.weights_)
        self.order_ = list(nx.topological_sort(self.graph_))
        return self

    def _minibatch(self) -> Tensor:
        rows = torch.randint(self.n_, (min(self.batch_size, self.n_),), device=self.x_.device)
        return self.objective(self.x_[rows])

    def _strength(self) -> Tensor:
        W = self.W_loc * self.free
        return W * W

    def _started(self) -> None:
        if not hasattr(self, "W_loc"):
            raise ConfigError("DAGGNN has seen no data yet: call start(X) or fit(X) first")


def _network(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs)).double()

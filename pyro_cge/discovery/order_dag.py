"""A posterior over directed acyclic graphs, as a Pyro model in which every draw is one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike, NDArray
from pyro import poutine
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ..arviz_export import graph_data
from ..errors import ConfigError
from ..seeds import isolated
from .distributions import LinearSEM
from .edge_prior import EdgePrior
from .graph_posterior import MOST, GraphPosterior, candidates, certain, sample_graph
from .inputs import Array, one_law
from .knowledge import FORBIDDEN, Knowledge
from .order_search import OrderSearch
from .progress import shown
from .results import named_graph

LEARNING = 4  # rounds in which the density of edges is learned
WIDTHS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.5, 7.0, 10.0)  # of the slab, of which the evidence chooses


class OrderDAG(PyroModule):
    """Order, edges and weights of a linear-Gaussian structural causal model, with their joint posterior.

    ::

        potential_j      ~ Normal(0, 1)                                  their order is that of the genes
        edge_ij          ~ Bernoulli(ρ_ij) if potential_i < potential_j, else 0
        noise_variance_j ~ InverseGamma((3 + Σ_i edge_ij)/2, 1/(2 slab²))
        W_ij             ~ Normal(0, slab² noise_variance_j)
        x                ~ LinearSEM(W ⊙ edge, noise_variance)           columns at mean 0 and standard deviation 1

    It is the BGe model of Geiger and Heckerman: equivalent graphs are equally likely, so edges that data cannot direct come
    out both ways in the draws. The guide is not an approximation chosen for convenience: given an order, parents are summed
    over and weights are conjugate, and orders are drawn exactly (up to 16 genes) or by a Markov chain that starts from
    :class:`OrderSearch`. What is approximate is stated in ``candidates``.

    Parameters
    ----------
    density : float or EdgePrior, optional
        ``ρ``. Default: what the expected number of edges says (empirical Bayes).
    slab : float, optional
        Weights over noise, a priori. Default: the evidence chooses.
    candidates : int
        Possible parents of a gene that are considered: its neighbours in the best graph, then those with the largest partial
        correlations. All others are where there are no more than this. A gene with more required parents has all of those.
    draws : int
        Orders drawn.
    knowledge : Knowledge, optional
        Enforced exactly.
    random_state : int
    progress : bool, optional
        Bars over the search and over the draws; by default only on a terminal.

    Attributes
    ----------
    edge_probabilities_ : ndarray ``[d, d]``
        ``P(i → j | data)``, averaged over orders, exact given each.
    adjacency_ : ndarray ``[d, d]``
        Of the DAG that agrees best with them (each edge more probable than not, along one of the orders).
    weights_ : ndarray ``[d, d]``
        Posterior mean of ``W ⊙ edge`` in the units of the data.
    graph_ : DiGraph
        With ``weight`` and ``probability``.
    density_ : float
        Prior probability of an edge between two genes that knowledge leaves open, given their order, where it is one.
    genes_ : list of str

    References
    ----------
    Geiger, Heckerman 2002 (BGe); Friedman, Koller 2003; Koivisto, Sood 2004; Kuipers, Suter, Moffa 2022 (candidates).
    """

    logits: nn.Parameter
    gram: Tensor
    rho: Tensor

    def __init__(
        self,
        *,
        density: float | EdgePrior | None = None,
        slab: float | None = None,
        candidates: int = 12,
        draws: int = 2000,
        knowledge: Knowledge | None = None,
        random_state: int = 0,
        progress: bool | None = None,
    ) -> None:
        super().__init__()
        if isinstance(density, float | int) and not 0 < density < 1:
            raise ConfigError(f"density is a probability between 0 and 1, got {density}")
        if slab is not None and not slab > 0:
            raise ConfigError(f"slab must be positive, got {slab}")
        if not 1 <= candidates <= MOST or draws < 1:
            raise ConfigError(f"candidates must be 1 … {MOST} and draws at least 1, got {candidates} and {draws}")
        self.density, self.slab, self.candidates, self.draws = density, slab, candidates, draws
        self.knowledge, self.random_state, self.progress = knowledge or Knowledge(), random_state, progress

    # The model and its guide

    @pyro_method
    def model(self, x: Tensor | None = None, n: int | None = None) -> Tensor:
        """Genes ``x [n, d]``, standardised; without data, ``n`` new rows."""
        self._started()
        t = 1 / self.slab_**2
        edge = sample_graph(self.rho)
        shape = (3 + edge.sum(-2)) / 2
        variance = pyro.sample("noise_variance", dist.InverseGamma(shape, shape.new_tensor(t / 2)).to_event(1))
        W = pyro.sample("W", dist.Normal(torch.zeros_like(edge), (variance / t).sqrt().unsqueeze(-2)).to_event(2))
        with pyro.plate("cells", len(x) if x is not None else n or 1):
            law = LinearSEM(W * edge, 0.0, variance.sqrt(), acyclic=True)
            return pyro.sample("x", law, obs=x)

    @pyro_method
    def guide(self, x: Tensor | None = None, n: int | None = None) -> None:
        """The posterior; its one parameter are the logits of the orders drawn (equal to begin with)."""
        self._started()
        edge = self._graphs.sample(self.logits)
        near = torch.as_tensor(self._graphs.near, device=edge.device).expand(*edge.shape[:-2], -1, -1)
        variance_law, loc, factor = self._conjugate(edge.transpose(-1, -2).gather(-1, near))
        variance = pyro.sample("noise_variance", variance_law.to_event(1)).unsqueeze(-1)
        noise, t = (
            torch.randn_like(edge),
            1 / self.slab_**2,
        )  # one row an effect; weights without an edge have their prior
        column = noise.gather(-1, near).unsqueeze(-1)
        away = torch.linalg.solve_triangular(factor.transpose(-1, -2), column, upper=True).squeeze(-1)
        value = (noise / t**0.5).scatter(-1, near, away) * variance.sqrt()
        value = value.scatter_add(-1, near, loc)
        d, m = near.shape[-2:]
        log_q = factor.diagonal(dim1=-2, dim2=-1).log().sum((-1, -2)) + 0.5 * d * (d - m) * math.log(t)
        log_q = log_q - 0.5 * (noise**2 + (2 * math.pi * variance).log()).sum((-1, -2))
        pyro.sample("W", dist.Delta(value.transpose(-1, -2), log_q, event_dim=2))

    def _conjugate(self, edge: Tensor) -> tuple[Any, Tensor, Tensor]:
        """Posterior given edges from candidates ``[..., d, m]``, a row an effect: law of the noise variances, means of the
        weights, and the factor ``L [..., d, m, m]`` of their precision ``L Lᵀ / noise_variance``."""
        t, n = 1 / self.slab_**2, self.n_
        near = torch.as_tensor(self._graphs.near, device=edge.device)
        gram, right = self.gram[near.unsqueeze(-1), near.unsqueeze(-2)], edge * self.gram.gather(-1, near)
        identity = torch.eye(edge.shape[-1], dtype=edge.dtype, device=edge.device)
        factor = torch.linalg.cholesky(edge.unsqueeze(-1) * gram * edge.unsqueeze(-2) + t * identity)
        loc = torch.cholesky_solve(right.unsqueeze(-1), factor).squeeze(-1)
        shape = (3 + edge.sum(-1) + n) / 2
        rate = (t + self.gram.diagonal() - (loc * right).sum(-1)) / 2
        return dist.InverseGamma(shape, rate), loc, factor

    # From data

    def start(self, X: Any, env: ArrayLike | str | None = None, *, control: Any = None) -> OrderDAG:
        """Tables of evidence, orders, and the priors that data choose: everything the guide needs.

        Raises
        ------
        DataError, ConfigError
            As :class:`OrderSearch`; and for more than one environment.
        """
        from .compiled.orders import evidence_tables, gaussian_evidence

        data = one_law(X, env, control)
        table = self.knowledge.table(data.genes)
        search = OrderSearch(knowledge=self.knowledge, random_state=self.random_state, progress=self.progress)
        best = search.fit(data)
        self.genes_, self.n_, x = data.genes, len(data.x), data.scaled
        gram = x.T @ x
        near, counts = candidates(gram / self.n_, best.adjacency_, table, self.candidates)

        def evidence(slab: float) -> float:
            parents = [np.flatnonzero(best.adjacency_[:, j]) for j in range(data.d)]
            return sum(gaussian_evidence(gram, self.n_, j, p, len(p), 3.0, slab**-2) for j, p in enumerate(parents))

        self.slab_ = max(WIDTHS, key=evidence) if self.slab is None else self.slab
        tables = evidence_tables(gram, self.n_, near, counts, 3.0, self.slab_**-2)
        start = np.array([data.genes.index(gene) for gene in best.order_])
        for prior, draws in self._priors(best.adjacency_, table):
            self._graphs = GraphPosterior(
                tables, near, counts, prior, table, start, draws, self.random_state, progress=self.progress
            )
            start = self._graphs.orders[-1]
        device = self.logits.device if hasattr(self, "logits") else torch.device("cpu")
        self.register_buffer("gram", torch.as_tensor(gram, device=device))
        self.register_buffer("rho", torch.as_tensor(certain(prior, table), device=device))
        self.logits = nn.Parameter(torch.zeros(self.draws, dtype=torch.double, device=device))
        return self

    def _priors(
        self, adjacency: NDArray[np.int64], table: NDArray[np.signedinteger[Any]]
    ) -> Iterator[tuple[Array, int]]:
        """Prior probabilities ``[d, d]`` and the number of draws under each: a density not given is learned on a few.

        It is a share of the pairs that knowledge leaves open.
        """
        d = len(adjacency)
        if isinstance(self.density, EdgePrior):
            yield self.density.matrix(self.genes_), self.draws
        elif self.density is not None:
            self.density_ = float(self.density)
            yield np.full((d, d), self.density_), self.draws
        else:
            open_ = table != FORBIDDEN
            edges, pairs = adjacency.sum(), np.triu(open_ | open_.T, 1).sum()
            for number in range(LEARNING + 1):
                self.density_ = float((edges + 1) / (pairs + 2))
                yield np.full((d, d), self.density_), self.draws if number == LEARNING else max(1, self.draws // 10)
                edges = self._graphs.edge_probabilities.sum()

    def fit(self, X: Any, env: ArrayLike | str | None = None, *, control: Any = None) -> OrderDAG:
        """Posterior of a graph given observations of one environment; see :meth:`start`."""
        self.start(X, env, control=control)
        data = one_law(X, env, control)
        self.edge_probabilities_, self.adjacency_ = self._graphs.edge_probabilities, self._graphs.best_dag()
        drawn = self.posterior(200)
        scale = data.x[data.env == 0].std(0)
        mean = (drawn["W"] * drawn["edge"]).mean(0).cpu().numpy()
        self.weights_ = mean * scale / scale[:, None]
        self.graph_ = named_graph(
            self.adjacency_, data.genes, weight=self.weights_, probability=self.edge_probabilities_
        )
        return self

    def graphs(self, draws: int = 1000) -> NDArray[np.bool_]:
        """Draws of the graph alone ``[draws, d, d]``: many times faster than with their weights."""
        self._started()
        with isolated(self.random_state, "graphs"), torch.no_grad(), pyro.get_param_store().scope():
            return np.stack([self._graphs.sample(self.logits).cpu().numpy() != 0 for _ in range(draws)])

    def posterior(self, draws: int = 1000) -> dict[str, Tensor]:
        """Joint draws of ``potential``, ``edge``, ``noise_variance`` and ``W``, standardised units ``[draws, ...]``."""
        self._started()
        with isolated(self.random_state), torch.no_grad(), pyro.get_param_store().scope():
            steps = shown(range(draws), draws, self.progress)
            traces = [poutine.trace(self.guide).get_trace() for _ in steps]
        names = ("potential", "edge", "noise_variance", "W")
        return {name: torch.stack([cast(Tensor, trace.nodes[name]["value"]) for trace in traces]) for name in names}

    def to_arviz(self, draws: int = 1000) -> Any:
        """:meth:`posterior` as ArviZ ``InferenceData``: ``edge`` and ``W`` by cause and effect."""
        return graph_data(self.posterior(draws), self.genes_, [])

    def _started(self) -> None:
        if not hasattr(self, "logits"):
            raise ConfigError("OrderDAG has seen no data yet: call start(X) or fit(X) first")

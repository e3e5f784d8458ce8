"""A posterior over directed acyclic graphs, as a Pyro model in which every draw is one."""

from __future__ import annotations

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
from .graph_posterior import GraphPosterior, candidates, certain, sample_graph
from .inputs import Array, one_law
from .knowledge import Knowledge
from .order_search import OrderSearch
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
        correlations. All others are where there are no more than this.
    draws : int
        Orders drawn.
    knowledge : Knowledge, optional
        Enforced exactly.
    random_state : int

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
    ) -> None:
        super().__init__()
        if isinstance(density, float | int) and not 0 < density < 1:
            raise ConfigError(f"density is a probability between 0 and 1, got {density}")
        if slab is not None and not slab > 0:
            raise ConfigError(f"slab must be positive, got {slab}")
        if not 1 <= candidates <= 20 or draws < 1:
            raise ConfigError(f"candidates must be 1 … 20 and draws at least 1, got {candidates} and {draws}")
        self.density, self.slab, self.candidates, self.draws = density, slab, candidates, draws
        self.knowledge, self.random_state = knowledge or Knowledge(), random_state

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
        variance_law, weights_law = self._conjugate(edge)
        variance = pyro.sample("noise_variance", variance_law.to_event(1))
        by_effect = weights_law(variance).to_event(1)  # one row an effect
        value = by_effect.rsample()
        pyro.sample("W", dist.Delta(value.transpose(-1, -2), by_effect.log_prob(value), event_dim=2))

    def _conjugate(self, edge: Tensor) -> tuple[Any, Any]:
        """Posterior of the noise variances given edges ``[..., d, d]``, and of the weights given both."""
        t, n = 1 / self.slab_**2, self.n_
        mask = edge.transpose(-1, -2)  # [..., effect, cause]
        identity = torch.eye(edge.shape[-1], dtype=edge.dtype, device=edge.device)
        precision = mask.unsqueeze(-1) * self.gram * mask.unsqueeze(-2) + t * identity
        factor = torch.linalg.cholesky(precision)
        loc = torch.cholesky_solve((mask * self.gram).unsqueeze(-1), factor).squeeze(-1)
        explained = (loc * mask * self.gram).sum(-1)
        shape = (3 + edge.sum(-2) + n) / 2
        variance = dist.InverseGamma(shape, (t + self.gram.diagonal() - explained) / 2)

        def weights(variance: Tensor) -> Any:
            scaled = precision / variance.unsqueeze(-1).unsqueeze(-1)
            return dist.MultivariateNormal(loc, precision_matrix=scaled)

        return variance, weights

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
        best = OrderSearch(knowledge=self.knowledge, random_state=self.random_state).fit(X)
        self.genes_, self.n_, x = data.genes, len(data.x), data.scaled
        gram = x.T @ x
        near, counts = candidates(gram / self.n_, best.adjacency_, table, self.candidates)

        def evidence(slab: float) -> float:
            parents = [np.flatnonzero(best.adjacency_[:, j]) for j in range(data.d)]
            return sum(gaussian_evidence(gram, self.n_, j, p, len(p), 3.0, slab**-2) for j, p in enumerate(parents))

        self.slab_ = max(WIDTHS, key=evidence) if self.slab is None else self.slab
        tables = evidence_tables(gram, self.n_, near, counts, 3.0, self.slab_**-2)
        start = np.array([data.genes.index(gene) for gene in best.order_])
        for prior, draws in self._priors(best.adjacency_):
            self._graphs = GraphPosterior(tables, near, counts, prior, table, start, draws, self.random_state)
            start = self._graphs.orders[-1]
        device = self.logits.device if hasattr(self, "logits") else torch.device("cpu")
        self.register_buffer("gram", torch.as_tensor(gram, device=device))
        self.register_buffer("rho", torch.as_tensor(certain(prior, table), device=device))
        self.logits = nn.Parameter(torch.zeros(self.draws, dtype=torch.double, device=device))
        return self

    def _priors(self, adjacency: NDArray[np.int64]) -> Iterator[tuple[Array, int]]:
        """Prior probabilities ``[d, d]`` and the number of draws under each: a density not given is learned on a few."""
        d = len(adjacency)
        if isinstance(self.density, EdgePrior):
            yield self.density.matrix(self.genes_), self.draws
        elif self.density is not None:
            yield np.full((d, d), self.density), self.draws
        else:
            edges, pairs = adjacency.sum(), d * (d - 1) / 2
            for _ in range(LEARNING):
                yield np.full((d, d), (edges + 1) / (pairs + 2)), max(1, self.draws // 10)
                edges = self._graphs.edge_probabilities.sum()
            yield np.full((d, d), (edges + 1) / (pairs + 2)), self.draws

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

    def posterior(self, draws: int = 1000) -> dict[str, Tensor]:
        """Joint draws of ``potential``, ``edge``, ``noise_variance`` and ``W``, standardised units ``[draws, ...]``."""
        self._started()
        with isolated(self.random_state), torch.no_grad(), pyro.get_param_store().scope():
            traces = [poutine.trace(self.guide).get_trace() for _ in range(draws)]
        names = ("potential", "edge", "noise_variance", "W")
        return {name: torch.stack([cast(Tensor, trace.nodes[name]["value"]) for trace in traces]) for name in names}

    def to_arviz(self, draws: int = 1000) -> Any:
        """:meth:`posterior` as ArviZ ``InferenceData``: ``edge`` and ``W`` by cause and effect."""
        return graph_data(self.posterior(draws), self.genes_, [])

    def _started(self) -> None:
        if not hasattr(self, "logits"):
            raise ConfigError("OrderDAG has seen no data yet: call start(X) or fit(X) first")

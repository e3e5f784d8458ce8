"""A posterior over directed acyclic graphs, as a Pyro model in which every draw is one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from pyro import poutine
from torch import Tensor, nn

from ..errors import ConfigError
from ..seeds import isolated
from .distributions import LinearSEM
from .edge_prior import EdgePrior
from .inputs import Array, samples
from .knowledge import FORBIDDEN, REQUIRED, Knowledge
from .order_search import OrderSearch
from .results import named_graph

EXACT = 16  # genes up to which orders are summed over, not walked over
LEARNING = 4  # rounds in which the density of edges is learned
SWEEPS = 3  # of the Markov chain, from draw to draw
WIDTHS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.5, 7.0, 10.0)  # of the slab, of which the evidence chooses


class OrderDAG(nn.Module):
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
    orders: Tensor

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

    def model(self, x: Tensor | None = None, n: int | None = None) -> Tensor:
        """Genes ``x [n, d]``, standardised; without data, ``n`` new rows."""
        self._started()
        d = len(self.genes_)
        t = 1 / self.slab_**2
        potential = pyro.sample("potential", dist.Normal(self.gram.new_zeros(d), 1.0).to_event(1))
        along = potential.unsqueeze(-1) < potential.unsqueeze(-2)
        edge = pyro.sample("edge", dist.Bernoulli(torch.where(along, self.rho, 0.0)).to_event(2))
        shape = (3 + edge.sum(-2)) / 2
        variance = pyro.sample("noise_variance", dist.InverseGamma(shape, shape.new_tensor(t / 2)).to_event(1))
        W = pyro.sample("W", dist.Normal(torch.zeros_like(edge), (variance / t).sqrt().unsqueeze(-2)).to_event(2))
        with pyro.plate("cells", len(x) if x is not None else n or 1):
            law = LinearSEM(W * edge, 0.0, variance.sqrt(), acyclic=True)
            return pyro.sample("x", law, obs=x)

    def guide(self, x: Tensor | None = None, n: int | None = None) -> None:
        """The posterior; its one parameter are the logits of the orders drawn (equal to begin with)."""
        self._started()
        from .orders import draw_parents

        d = len(self.genes_)
        which = pyro.sample("which", dist.Categorical(logits=self.logits), infer={"is_auxiliary": True})
        # Normal potentials sorted into this order: the density is d! times that of independent ones.
        sorted_ = torch.randn((*which.shape, d), dtype=self.gram.dtype, device=self.gram.device).sort(-1)[0]
        orders = self.orders[which]
        potential = torch.empty_like(sorted_).scatter_(-1, orders, sorted_)
        log_q = math.lgamma(d + 1) - 0.5 * (potential**2 + math.log(2 * math.pi)).sum(-1)
        pyro.sample("potential", dist.Delta(potential, log_q, event_dim=1))
        seeds = torch.randint(2**31, which.shape).flatten().tolist()
        rows = orders.reshape(-1, d).cpu().numpy()
        drawn = [
            draw_parents(self._weight, self._near, self._counts, row, seed)
            for row, seed in zip(rows, seeds, strict=True)
        ]
        edge = torch.from_numpy(np.stack([edges for edges, _ in drawn])).to(self.gram).reshape((*which.shape, d, d))
        log_q = torch.tensor([q for _, q in drawn]).to(self.gram).reshape(which.shape)
        edge = pyro.sample("edge", dist.Delta(edge, log_q, event_dim=2))
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

    def start(self, X: Any) -> OrderDAG:
        """Tables of evidence, orders, and the priors that data choose: everything the guide needs.

        Raises
        ------
        DataError, ConfigError
            As :class:`OrderSearch`.
        """
        from .orders import evidence_tables, gaussian_evidence

        data = samples(X)
        table = self.knowledge.table(data.genes)
        best = OrderSearch(knowledge=self.knowledge, random_state=self.random_state).fit(X)
        self.genes_, self.n_, x = data.genes, len(data.x), data.scaled
        gram = x.T @ x
        self._near, self._counts = _candidates(gram / self.n_, best.adjacency_, table, self.candidates)

        def evidence(slab: float) -> float:
            parents = [np.flatnonzero(best.adjacency_[:, j]) for j in range(data.d)]
            return sum(gaussian_evidence(gram, self.n_, j, p, len(p), 3.0, slab**-2) for j, p in enumerate(parents))

        self.slab_ = max(WIDTHS, key=evidence) if self.slab is None else self.slab
        tables = evidence_tables(gram, self.n_, self._near, self._counts, 3.0, self.slab_**-2)
        orders = np.array([[data.genes.index(gene) for gene in best.order_]])
        for prior, draws in self._priors(best.adjacency_):
            orders = self._orders(tables, prior, table, orders[-1], draws)
        device = self.logits.device if hasattr(self, "logits") else torch.device("cpu")
        for name, value in (("gram", gram), ("rho", _certain(prior, table)), ("orders", orders)):
            self.register_buffer(name, torch.as_tensor(value, device=device))
        self.logits = nn.Parameter(torch.zeros(len(orders), dtype=torch.double, device=device))
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
                edges = self.edge_probabilities_.sum()
            yield np.full((d, d), (edges + 1) / (pairs + 2)), self.draws

    def _orders(
        self, tables: Array, prior: Array, table: NDArray[np.int8], start: NDArray[np.int64], draws: int
    ) -> NDArray[np.int64]:
        """Orders drawn under a prior, and the edge probabilities they give."""
        from .orders import edge_marginals, exact_orders, gibbs_orders, subset_sums

        absent = np.where(table == 0, np.log1p(-prior), 0.0)
        self._weight = _prior_weight(tables, prior, table, self._near, self._counts)
        total = subset_sums(self._weight, self._counts)
        if len(start) <= EXACT:
            orders = exact_orders(total, self._near, self._counts, absent, draws, self.random_state)[0]
        else:
            orders = gibbs_orders(total, self._near, self._counts, absent, start, draws, SWEEPS, self.random_state)
        self.edge_probabilities_ = edge_marginals(total, self._near, self._counts, orders)
        return orders

    def fit(self, X: Any) -> OrderDAG:
        """Posterior of a graph given observations; see :meth:`start`."""
        self.start(X)
        data = samples(X)
        self.adjacency_ = best_dag(self.edge_probabilities_, self.orders.cpu().numpy())
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
        with isolated(self.random_state), torch.no_grad():
            traces = [poutine.trace(self.guide).get_trace() for _ in range(draws)]
        names = ("potential", "edge", "noise_variance", "W")
        return {name: torch.stack([cast(Tensor, trace.nodes[name]["value"]) for trace in traces]) for name in names}

    def _started(self) -> None:
        if not hasattr(self, "orders"):
            raise ConfigError("OrderDAG has seen no data yet: call start(X) or fit(X) first")


def _candidates(
    correlation: Array, adjacency: NDArray[np.int64], table: NDArray[np.int8], most: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Possible parents of each gene ``[d, m]``, required ones first, then neighbours, then the largest partial correlations."""
    d = len(correlation)
    inverse = np.linalg.inv(correlation + 1e-3 * np.eye(d))
    scale = np.sqrt(inverse.diagonal())
    rank = np.abs(inverse / scale / scale[:, None]) + 2 * (adjacency | adjacency.T) + 4 * (table == REQUIRED)
    rank[table == FORBIDDEN] = -1
    m = min(most, d - 1)
    near = np.argsort(-rank, axis=0, kind="stable")[:m].T.copy()
    counts = np.minimum((table != FORBIDDEN).sum(0), m)
    return near.astype(np.int64), counts.astype(np.int64)


def _certain(prior: Array, table: NDArray[np.int8]) -> Array:
    """Edge probabilities ``[d, d]`` with forbidden ones at 0 and required ones at 1."""
    return np.where(table == FORBIDDEN, 0.0, np.where(table == REQUIRED, 1.0, prior))


def _prior_weight(
    evidences: Array,
    prior: Array,
    table: NDArray[np.int8],
    near: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> Array:
    """Evidence plus prior log odds of each parent set ``[d, 2^m]``; sets without a required parent have none."""
    weight, subsets = evidences.copy(), np.arange(evidences.shape[1])
    for j in range(len(weight)):
        for a, i in enumerate(near[j, : counts[j]]):
            has = (subsets >> a & 1).astype(bool)
            if table[i, j] == REQUIRED:
                weight[j, ~has] = -np.inf
            else:
                weight[j, has] += math.log(prior[i, j]) - math.log1p(-prior[i, j])
    return weight


def best_dag(probability: Array, orders: NDArray[np.int64]) -> NDArray[np.int64]:
    """Edges more probable than not, along the order that keeps most of them: ``[d, d]``, acyclic."""
    gain = np.maximum(probability - 0.5, 0)
    rank = np.argsort(np.unique(orders, axis=0), axis=1)
    kept = [float(gain[row[:, None] < row].sum()) for row in rank]
    row = rank[int(np.argmax(kept))]
    return ((row[:, None] < row) & (gain > 0)).astype(np.int64)

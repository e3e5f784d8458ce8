"""The graph behind observations and interventions with unknown targets: an order search, as an estimator."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from ..errors import ConfigError
from .edge_prior import EdgePrior
from .equivalence import essential_graph
from .inputs import Array, Samples, known_targets, samples
from .knowledge import REQUIRED, Knowledge, precedence
from .results import named_graph

DOUBT = 4.0  # standard errors by which the kurtosis of normal samples does not exceed 3
HEAVIEST = 10.0
TINY = 1e-30


class OrderSearch:
    """Linear-Gaussian structural equations; where environments are given, which of them change which mechanism.

    ::

        x_j = Σ_i W[i, j] x_i + μ_j + σ_j ε,   ε ~ N(0, 1)              in the reference environment
        the same with W[·, j], μ_j, σ_j of its own                      in environments that target j

    The score is a penalised likelihood, ``log L − λ/2 log n · #edges − Σ_targets (log d + λ_t/2 log n_e · #parameters)``; targets are
    profiled out node by node, so that only the order is searched. Nothing is assumed of an intervention: shift, scale,
    weaker or absent effects of parents are all "a mechanism of its own". Equal columns up to scale give equal answers up to
    equivalence, so standardising the data changes nothing.

    Where noise has heavier tails than normal, variances differ between environments by chance: when the graph is found, the price
    of a target is raised by what the kurtosis of the residuals says, and targets are called anew.

    Every gene is tried as a cause of every other, in each environment: with more than some 500 genes in one environment use
    :class:`LargeOrderSearch`, which looks at candidates only; with unknown targets choose a few hundred genes, those that vary
    or were perturbed.

    Parameters
    ----------
    penalty : float
        ``λ``: 1 is the BIC; 2, the default, that of a sparse graph (FLOP, BOSS).
    target_penalty : float
        ``λ_t``; 1 is the BIC.
    gamma : float
        Extended BIC: ``2 γ log d`` more for each edge (Foygel & Drton 2010).
    restarts : int, optional
        Times the best order is shaken and improved again. Default: 10, and ``1000 / d`` where that is more and there is one
        environment, which leaves more local optima and costs less.
    max_parents : int, optional
        Default: a third of the reference's samples.
    knowledge : Knowledge, optional
        Forbidden and required edges, tiers: enforced exactly.
    prior : EdgePrior, optional
        An edge's price falls by its prior log odds over those of edges not named.
    random_state : int
    progress : bool, optional
        A bar over restarts; by default only on a terminal.

    Attributes
    ----------
    adjacency_ : ndarray ``[d, d]``
        1 where ``i → j``.
    weights_ : ndarray ``[d, d]``
        ``W`` in the units of the data, from the samples whose mechanism is the reference's.
    graph_ : DiGraph
        With gene names, and ``weight`` on the edges.
    essential_graph_ : DiGraph
        What data and prior knowledge can tell: undirected (both ways) where another member of the equivalence class that
        agrees with the knowledge disagrees.
    targets_ : DataFrame ``[E, d]``
        Which environment changed which gene's mechanism.
    order_ : list of str
    score_ : float
        In nats, of the search.
    genes_, environments_ : list of str

    References
    ----------
    Andrews, Ramsey, Sánchez-Romero, Camchong, Kummerfeld 2023 (BOSS); Squires, Wang, Uhler 2020 (unknown targets).
    """

    def __init__(
        self,
        *,
        penalty: float = 2.0,
        target_penalty: float = 1.0,
        gamma: float = 0.0,
        restarts: int | None = None,
        max_parents: int | None = None,
        knowledge: Knowledge | None = None,
        prior: EdgePrior | None = None,
        random_state: int = 0,
        progress: bool | None = None,
    ) -> None:
        for name, value in (("penalty", penalty), ("target_penalty", target_penalty)):
            if not value > 0:
                raise ConfigError(f"{name} must be positive, got {value}")
        if gamma < 0 or (restarts is not None and restarts < 0) or (max_parents is not None and max_parents < 1):
            raise ConfigError(
                f"gamma and restarts must not be negative and max_parents at least 1, got {gamma}, {restarts}, {max_parents}"
            )
        self.penalty, self.target_penalty, self.gamma = penalty, target_penalty, gamma
        self.restarts, self.max_parents, self.knowledge = restarts, max_parents, knowledge
        self.prior, self.random_state, self.progress = prior, random_state, progress

    def __repr__(self) -> str:
        return f"OrderSearch(penalty={self.penalty}, target_penalty={self.target_penalty}, restarts={self.restarts})"

    def fit(
        self,
        X: Any,
        env: ArrayLike | str | None = None,
        *,
        control: Any = None,
        targets: Mapping[Any, Collection[str] | str] | None = None,
    ) -> OrderSearch:
        """Search the order; see :func:`~pyro_cge.discovery.inputs.samples` for what is accepted.

        Parameters
        ----------
        targets : mapping of environments to genes (or one gene), optional
            Targets that are known. Those of environments not named are inferred.

        Raises
        ------
        DataError, ConfigError
            For data no graph can be estimated from, and prior knowledge that contradicts itself.
        """
        from .compiled.scores import fresh_memo
        from .compiled.search import search

        data = samples(X, env, control=control)
        table = (self.knowledge or Knowledge()).table(data.genes)
        d = data.d
        most = min(d - 1, max(1, int(data.sizes[0] // 3))) if self.max_parents is None else self.max_parents
        most = min(d - 1, max(most, int((table == REQUIRED).sum(0).max())))
        grams = data.grams()
        each, once = target_prices(data, self.target_penalty)
        prices = (self._edge_prices(data), each, once, known_targets(targets, data))
        problem = (grams, data.sizes, prices, np.zeros(len(data.sizes), dtype=bool), fresh_memo(d))
        usual = max(10, 1000 // d) if len(data.sizes) == 1 else 10
        restarts = usual if self.restarts is None else self.restarts
        order, _, parents, counts, scores = search(
            problem,
            self._start(table),
            table,
            precedence(table),
            most,
            restarts=restarts,
            seed=self.random_state,
            progress=self.progress,
        )
        self.genes_, self.environments_ = data.genes, data.environments
        self.order_, self.score_ = [data.genes[j] for j in order], float(scores.sum())
        self.adjacency_ = np.zeros((d, d), dtype=np.int64)
        for j in range(d):
            self.adjacency_[parents[j, : counts[j]], j] = 1
        self._profile(data, problem)
        return self

    def _edge_prices(self, data: Samples) -> Array:
        """What each edge costs in nats ``[d, d]``; a prior that favours it makes it cheaper."""
        base = 0.5 * self.penalty * math.log(len(data.x)) + 2 * self.gamma * math.log(data.d)
        if self.prior is None:
            return np.full((data.d, data.d), base)
        p = self.prior.matrix(data.genes)
        np.fill_diagonal(p, self.prior.otherwise)
        return base - np.log(p / (1 - p)) + math.log(self.prior.otherwise / (1 - self.prior.otherwise))

    def _start(self, table: NDArray[np.int8]) -> NDArray[np.int64]:
        """A random order in which required causes come first."""
        rng, d = np.random.default_rng(self.random_state), len(table)
        rank = rng.permutation(d)
        graph = nx.DiGraph()
        graph.add_nodes_from(range(d))
        graph.add_edges_from(zip(*np.nonzero(table == REQUIRED), strict=True))
        return np.array(list(nx.lexicographical_topological_sort(graph, key=lambda j: rank[j])), dtype=np.int64)

    def _profile(self, data: Samples, problem: tuple[Any, ...]) -> None:
        """Targets, weights and graphs that go with the adjacency found."""
        from .compiled.scores import local_score

        grams, sizes, (edges, each, once, known), *_ = problem
        targets = np.zeros((len(sizes), data.d), dtype=bool)
        self.weights_ = np.zeros((data.d, data.d))
        scale = data.x[data.env == 0].std(0)

        def profile(j: int, tail: float) -> None:
            parents = np.flatnonzero(self.adjacency_[:, j])
            k, chosen = len(parents), np.zeros(len(sizes), dtype=bool)
            prices = (edges, each * (k + 1 + tail) / (k + 2), float(once * tail), known)
            local_score(grams, sizes, j, np.append(parents, 0), k, prices, chosen)
            targets[:, j] = chosen
            gram = grams[~chosen].sum(0)
            rows = np.append(parents, data.d)
            coefficients = np.linalg.lstsq(gram[np.ix_(rows, rows)], gram[rows, j], rcond=None)[0][:-1]
            self.weights_[parents, j] = coefficients * scale[j] / scale[parents]

        for j in range(data.d):
            profile(j, 1.0)
        if len(sizes) > 1:
            tail = tails(data, self.weights_)
            for j in np.flatnonzero(tail > 1).tolist():
                profile(j, tail[j])
        self.targets_ = pd.DataFrame(targets, index=data.environments, columns=data.genes)
        self.graph_ = named_graph(self.adjacency_, data.genes, weight=self.weights_)
        sets = [set(self.targets_.columns[row]) for row in targets if row.any()]
        self.essential_graph_ = essential_graph(self.graph_, sets, self.knowledge)


def tails(data: Samples, weights: Array) -> Array:
    """How much more the variance of each gene's noise differs between samples than that of normal noise ``[d]``: at least 1.

    ``(κ − 1) / 2`` with the kurtosis ``κ`` of ``x − Wᵀx`` within environments, and 1 unless that is heavier than normal beyond
    doubt, and at most 10: one outlier among many samples is no law. Twice the log-likelihood ratio of a variance is this many times ``χ²`` (Box 1953; Satorra & Bentler 1994).
    """
    left, n = data.x - data.x @ weights, len(data.x)
    member = csr_array((np.ones(n), (data.env, np.arange(n))), shape=(len(data.environments), n))
    left -= ((member @ left) / data.sizes[:, None])[data.env]
    variance = (member @ left**2) / data.sizes[:, None]
    kurtosis = (left**4 / np.maximum(variance[data.env] ** 2, TINY)).mean(0)
    return np.where(kurtosis - 3 > DOUBT * math.sqrt(24 / n), np.minimum((kurtosis - 1) / 2, HEAVIEST), 1.0)


def target_prices(data: Samples, penalty: float = 1.0) -> tuple[Array, float]:
    """In nats: a parameter of a target in each environment ``[E]``, by what ``n_e`` samples tell of it, and a target.

    The latter is the log odds against one gene in ``d`` being targeted.
    """
    return 0.5 * penalty * np.log(data.sizes), math.log(max(data.d - 1, 1))

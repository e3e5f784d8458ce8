"""Graphs among thousands of genes, as an estimator: an order search in which every gene has a few candidate neighbours."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from ..errors import ConfigError
from .equivalence import essential_graph
from .inputs import Samples, one_law
from .knowledge import FORBIDDEN, REQUIRED, Knowledge
from .progress import shown

NOISES = ("free", "equal")
DENSE = 2000  # genes up to which matrices are dense
COOLING, WARM = 0.8, 8  # the price of an edge is its own times 0.8^8, 0.8^7, ..., 1
REACH = 0.2  # of the genes: how far beyond or before a gene's place in the order regressors are looked for
DRIFTS = 3

Ints = NDArray[np.int64]


class LargeOrderSearch:
    """Linear-Gaussian structural equations among hundreds to ten thousands of genes, from one environment.

    Of a screen with many environments it takes one (the control); unknown targets are the business of :class:`OrderSearch`,
    for up to a few hundred genes.

    ::

        x_j = Σ_i W[i, j] x_i + μ_j + σ_j ε,   ε ~ N(0, 1);      σ_j free, or the same for all genes

    The extended BIC of :class:`OrderSearch`, and the same reinsertion of one gene after the other, but a gene's parents are
    among its candidates and it walks past these alone. Candidates are chosen anew in every round, as the order changes; the
    price of an edge starts low and rises to its own, so that early rounds are not caught by the mistakes of a bad order
    (simulated annealing, on the penalty). Gaussian data tell a graph up to equivalence: compare ``essential_graph_``.

    With ``noise="equal"`` (and data in units in which it holds: never standardised) the graph itself is identified, and the
    search starts from the order in which each gene has the least variance left.

    Needs ``8 d²`` bytes for the covariances (0.8 GB for 10,000 genes) and about as much again for the data and the rest.

    Parameters
    ----------
    noise : {"free", "equal"}
    penalty : float
        ``λ``: 1 is the BIC; 2, the default, that of a sparse graph. An edge costs ``λ/2 log n + 2 γ log d`` nats.
    gamma : float
        Of the extended BIC. Where there are as many genes as samples it must not be 0: with ``d²/2`` edges to choose from,
        the BIC alone admits hundreds that mean nothing.
    candidates : int
        At most so many others are added to a gene's candidates in each way of choosing them. Graphs with more than some
        three edges a gene want more; up to 200 genes :class:`OrderSearch`, which looks at all, is the better choice.
    rounds : int, optional
        Choices of candidates and searches after the price of an edge has reached its own. Default: ``100,000 / d``, 10 to 30.
    starts : int, optional
        Annealings, of which the best is kept. Default: ``1000 / d``, 1 to 5: in small graphs one mistake is a large part,
        and a start costs little.
    max_parents : int, optional
        Default: a third of the samples, at most 100.
    knowledge : Knowledge, optional
        Forbidden and required edges, tiers: enforced exactly. Takes ``d²`` bytes.
    random_state : int
    progress : bool, optional
        A bar over the rounds of each start; by default only on a terminal.

    Attributes
    ----------
    adjacency_, weights_ : ndarray or scipy.sparse.csr_array ``[d, d]``
        1 where ``i → j``, and ``W`` in the units of the data. Sparse for more than 2,000 genes.
    noise_scale_ : ndarray ``[d]``
        ``σ``, in the units of the data.
    graph_, essential_graph_ : DiGraph
        With gene names, and ``weight`` on the edges; undirected (both ways) where another member of the equivalence class
        that agrees with the prior knowledge disagrees. With equal noise variances there is none: both are the same.
    order_ : list of str
    score_ : float
        In nats, of the columns standardised (with equal noise variances, in units of the smallest standard deviation).
    genes_, environments_ : list of str
        The latter has one entry.

    References
    ----------
    Andrews et al. 2023 (BOSS); Wienöbst et al. 2025 (FLOP); Foygel & Drton 2010 (extended BIC); Chen, Drton & Wang 2019
    (equal variances).
    """

    def __init__(
        self,
        *,
        noise: str = "free",
        penalty: float = 2.0,
        gamma: float = 0.5,
        candidates: int = 30,
        rounds: int | None = None,
        starts: int | None = None,
        max_parents: int | None = None,
        knowledge: Knowledge | None = None,
        random_state: int = 0,
        progress: bool | None = None,
    ) -> None:
        if noise not in NOISES:
            raise ConfigError(f"noise is one of {list(NOISES)}, got {noise!r}")
        if not penalty > 0 or gamma < 0:
            raise ConfigError(f"penalty must be positive and gamma not negative, got {penalty} and {gamma}")
        counts = {"candidates": candidates, "rounds": rounds, "starts": starts, "max_parents": max_parents}
        if any(value is not None and value < 1 for value in counts.values()):
            raise ConfigError(f"{', '.join(counts)} must be at least 1, got {list(counts.values())}")
        self.noise, self.penalty, self.gamma = noise, penalty, gamma
        self.candidates, self.rounds, self.starts, self.max_parents = candidates, rounds, starts, max_parents
        self.knowledge, self.random_state, self.progress = knowledge, random_state, progress

    def __repr__(self) -> str:
        return f"LargeOrderSearch(noise={self.noise!r}, penalty={self.penalty}, gamma={self.gamma})"

    def fit(self, X: Any, env: ArrayLike | str | None = None, *, control: Any = None) -> LargeOrderSearch:
        """Search the order; see :func:`~pyro_cge.discovery.inputs.samples` for what is accepted.

        Raises
        ------
        DataError, ConfigError
            For data no graph can be estimated from, more than one environment, and prior knowledge that contradicts itself.
        """
        data = one_law(X, env, control)
        n, d = data.x.shape
        known = None if self.knowledge is None else self.knowledge.table(data.genes)
        scaled = data.scaled
        scale = data.x.std(0)
        problem = _Problem(
            gram=scaled.T @ scaled,
            n=float(n),
            edge=0.5 * self.penalty * math.log(n) + 2 * self.gamma * math.log(d),
            scale=scale / scale.min() if self.noise == "equal" else np.ones(d),
            most=min(d - 1, max(1, n // 3), 100) if self.max_parents is None else self.max_parents,
            candidates=min(self.candidates, d - 1),
            known=known,
        )
        del scaled
        rng = np.random.default_rng(self.random_state)
        starts = max(1, min(5, 1000 // d)) if self.starts is None else self.starts
        rounds = max(10, min(30, 100_000 // d)) if self.rounds is None else self.rounds
        schedule = [*range(WARM, 0, -1), *[0] * rounds]
        tries = (
            _anneal(problem, self.noise == "equal", shown(schedule, len(schedule), self.progress), number, rng)
            for number in range(starts)
        )
        label, score, causes, effects = max(tries, key=lambda answer: answer[1])
        self._report(data, problem.gram, label, score, causes, effects)
        return self

    def _report(self, data: Samples, gram: NDArray[Any], label: Any, score: float, causes: Ints, effects: Ints) -> None:
        n, d = data.x.shape
        genes, scale = data.genes, data.x.std(0)
        self.genes_, self.environments_, self.score_ = genes, data.environments, score
        self.order_ = [genes[j] for j in np.argsort(label)]
        weights, self.noise_scale_ = np.zeros(len(causes)), scale.copy()
        start = np.searchsorted(effects, np.arange(d + 1))
        for j in np.flatnonzero(np.diff(start)):
            here = slice(start[j], start[j + 1])
            parents = causes[here]
            beta = np.linalg.lstsq(gram[np.ix_(parents, parents)], gram[parents, j], rcond=None)[0]
            weights[here] = beta * scale[j] / scale[parents]
            self.noise_scale_[j] *= math.sqrt(max(1 - beta @ gram[parents, j] / n, 0.0))
        where = (causes, effects)
        adjacency = csr_array((np.ones(len(causes), dtype=np.int64), where), shape=(d, d))
        matrix = csr_array((weights, where), shape=(d, d))
        dense = d <= DENSE
        self.adjacency_: Any = adjacency.toarray() if dense else adjacency
        self.weights_: Any = matrix.toarray() if dense else matrix
        self.graph_ = nx.DiGraph()
        self.graph_.add_nodes_from(genes)
        for i, j, weight in zip(causes, effects, weights, strict=True):
            self.graph_.add_edge(genes[i], genes[j], weight=float(weight))
        self.essential_graph_ = (
            self.graph_ if self.noise == "equal" else essential_graph(self.graph_, (), self.knowledge)
        )


class _Problem:
    """Covariances, prices and prior knowledge of one fit, and its search with given candidates."""

    def __init__(
        self,
        *,
        gram: NDArray[np.float64],
        n: float,
        edge: float,
        scale: NDArray[np.float64],
        most: int,
        candidates: int,
        known: NDArray[np.int8] | None,
    ) -> None:
        self.gram, self.n, self.edge, self.scale, self.most = gram, n, edge, scale, most
        self.candidates, self.known, self.d = candidates, known, len(gram)
        required = np.nonzero(known == REQUIRED) if known is not None else (np.empty(0, int), np.empty(0, int))
        self.required = required[0] * self.d + required[1]

    def pairs(self, a: Ints, b: Ints) -> Ints:
        """Both directions of some pairs, as sorted numbers ``a · d + b``."""
        return np.unique(np.r_[a * self.d + b, b * self.d + a])

    def start(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """A random order in which required causes come first."""
        rank = rng.permutation(self.d)
        if len(self.required):
            graph = nx.DiGraph()
            graph.add_nodes_from(range(self.d))
            graph.add_edges_from(zip(self.required // self.d, self.required % self.d, strict=True))
            order = list(nx.lexicographical_topological_sort(graph, key=lambda j: rank[j]))
            rank[order] = np.arange(self.d)
        return rank.astype(float)

    def net(self, pairs: Ints) -> tuple[Any, ...]:
        """What the compiled search needs to know of the candidates."""
        from .compiled.candidates import blocks_of

        pairs = np.union1d(pairs, self.pairs(self.required // self.d, self.required % self.d))
        node, near = pairs // self.d, pairs % self.d
        start = np.searchsorted(node, np.arange(self.d + 1))
        back = np.searchsorted(pairs, near * self.d + node) - start[near]
        law = self.known[near, node] if self.known is not None else np.zeros(len(pairs), dtype=np.int8)
        offset, flat = blocks_of(self.gram, self.scale, start, near)
        return start, near, back, offset, flat, law == FORBIDDEN, law == REQUIRED

    def beyond(self, place: NDArray[np.float64], limit: NDArray[np.float64]) -> Ints:
        """Candidates by forward regression on those placed below each gene's limit."""
        from .compiled.candidates import forward

        return self.pairs(*forward(self.gram, self.n, self.edge, self.candidates, place, limit))

    def near(self, label: NDArray[np.float64], causes: Ints, effects: Ints, rng: np.random.Generator) -> Ints:
        """Candidates for an order and its edges: those, what is related to a gene given its parents, and regressors among
        the genes before a random place in its surroundings, as it would have if it moved there."""
        from .compiled.candidates import related

        start = np.searchsorted(effects, np.arange(self.d + 1))
        place = np.argsort(np.argsort(label)).astype(float)
        others = related(self.gram, self.n, 0.5 * self.edge, self.candidates, start, causes)
        moved = (self.beyond(place, place + REACH * self.d * rng.standard_normal(self.d)) for _ in range(2))
        return np.unique(np.concatenate([self.pairs(causes, effects), self.pairs(*others), *moved]))

    def search(
        self, pairs: Ints, edge: float, noise: float, label: NDArray[np.float64], causes: Ints, effects: Ints, seed: int
    ) -> tuple[NDArray[np.float64], Ints, Ints]:
        """Improve the order (in place) and the edges: scores, causes, effects."""
        from .compiled.sparse_order import search

        net = self.net(pairs)
        start, near = net[:2]
        node = np.repeat(np.arange(self.d), np.diff(start))
        chosen = np.isin(node * self.d + near, effects * self.d + causes)
        score = search(net, (self.n, edge, noise, self.most), label, chosen, DRIFTS, seed)
        return score, near[chosen], node[chosen]


def _anneal(
    problem: _Problem, equal: bool, schedule: Iterable[int], number: int, rng: np.random.Generator
) -> tuple[Any, float, Ints, Ints]:
    """Order, score, causes and effects; the schedule is by how many steps the price is below its own in each round."""
    from .compiled.sparse_order import least_variance_first

    p, d = problem, problem.d
    blanket = pairs = p.beyond(np.zeros(d), np.ones(d))
    label, noise, price = p.start(rng), float(equal), p.edge
    score, causes = np.zeros(d), np.empty(0, dtype=np.int64)
    effects = causes
    if number == 0 and not len(p.required):
        label[least_variance_first(p.net(blanket), p.n)] = np.arange(d)
    for warm in schedule:
        if warm < WARM:
            pairs = np.union1d(blanket, p.near(label, causes, effects, rng))
            if equal:
                noise *= -2 * (score.sum() + price * len(causes)) / (p.n * d - len(causes))
        price = p.edge * COOLING**warm
        score, causes, effects = p.search(pairs, price, noise, label, causes, effects, int(rng.integers(2**31)))
    # Terms that no graph changes: as those of OrderSearch.
    constant = 0.5 * p.n * d * (math.log(noise) if equal else 1.0)
    return label, float(score.sum()) - constant, causes, effects

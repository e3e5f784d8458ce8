"""Evidence of a node given its parents under a Gaussian process, and the search for an order on it.

``x_j = f_j(parents) + noise`` has a direction that data show where ``f_j`` bends (Hoyer et al. 2009; Peters et al. 2014): the noise
is independent of the parents one way round only. A Gaussian process says how probable the data are whatever ``f_j`` is
(Friedman & Nachman 2000), and needs no penalty for its flexibility.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular

from .inputs import Array
from .knowledge import FORBIDDEN, REQUIRED, Knowledge, precedence
from .order_search import OrderSearch
from .progress import shown

Parents = frozenset[int]
AMPLITUDES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # of the function's variance over the noise's
LENGTHS = (1.0, 2.0)  # over which joint functions bend, in standard deviations
BUMPS = 8  # of an additive function
JITTER = 1e-4


class Evidence:
    """``log p(x_j | x_P)`` of every node ``j`` at once, for a set ``P`` of parents.

    ::

        x_j = Σ_{i∈P} β_i x_i + g(x_P) + σ ε,    (β, g) ~ GP(0, a σ² k),    flat in log σ

    with ``k`` additive (bumps on each parent), joint (squared exponential on all of them, on random landmarks: Nyström) or both.
    Kernel, length and amplitude ``a`` are those of the highest evidence; ``σ`` has a closed form.

    Parameters
    ----------
    x : array ``[n, d]``
        Standardised columns.
    edge : float
        Nats an edge costs.
    landmarks : int
    seed : int
        Of the landmarks.
    """

    def __init__(self, x: Array, *, edge: float = 1.0, landmarks: int = 60, seed: int = 0) -> None:
        self.x, self.edge, (n, d) = x, edge, x.shape
        self.squares = (x * x).sum(0)
        self.bumps = [_bumps(x[:, j]) for j in range(d)]
        rows = np.random.default_rng(seed).choice(n, min(landmarks, max(2, n // 4)), replace=False)
        self.landmarks = x[rows]
        self.known: dict[Parents, Array] = {}

    def __call__(self, parents: Parents) -> Array:
        """Evidence less the price of the edges ``[d]``, in nats; entries of nodes that are in ``parents`` mean nothing."""
        if parents not in self.known:
            self.known[parents] = self._evidence(sorted(parents)) - self.edge * len(parents)
        return self.known[parents]

    def _evidence(self, parents: list[int]) -> Array:
        n = len(self.x)
        best = -0.5 * n * np.log(self.squares / n) if not parents else np.full(len(self.squares), -np.inf)
        if not parents:
            return best
        parts = [self.x[:, parents], np.hstack([self.bumps[i] for i in parents])]
        if len(parents) > 1:
            parts += [self._joint(parents, length) for length in LENGTHS]
        features = np.hstack(parts)
        gram, products = features.T @ features, features.T @ self.x
        ends = np.cumsum([0, *(part.shape[1] for part in parts)])
        linear, additive, *joint = (np.arange(a, b) for a, b in itertools.pairwise(ends))
        kernels = [[linear, additive], *([linear, j] for j in joint), *([linear, additive, j] for j in joint)]
        for chosen in map(np.concatenate, kernels):
            value, vectors = np.linalg.eigh(gram[np.ix_(chosen, chosen)])
            value, along = np.maximum(value, 0), (vectors.T @ products[chosen]) ** 2
            for a in AMPLITUDES:
                left = self.squares - (a / (1 + a * value)) @ along
                fit = -0.5 * n * np.log(np.maximum(left, 1e-9) / n) - 0.5 * np.log1p(a * value).sum()
                best = np.maximum(best, fit)
        return best

    def _joint(self, parents: list[int], length: float) -> Array:
        """Features of the squared-exponential kernel of all parents ``[n, m]``."""
        x, z = self.x[:, parents] / length, self.landmarks[:, parents] / length
        factor = cholesky(np.exp(-0.5 * _distances(z, z)) + JITTER * np.eye(len(z)), lower=True)
        features = solve_triangular(factor, np.exp(-0.5 * _distances(z, x)), lower=True).T
        return features - features.mean(0)


def _bumps(column: Array) -> Array:
    """Gaussian bumps at quantiles, of unit variance in all ``[n, BUMPS]``."""
    centres = np.quantile(column, np.linspace(0.02, 0.98, BUMPS))
    width = max(1.5 * (centres[-1] - centres[0]) / (BUMPS - 1), 0.1)
    features = np.exp(-0.5 * ((column[:, None] - centres) / width) ** 2)
    features -= features.mean(0)
    return features / math.sqrt(max((features**2).sum(1).mean(), 1e-12))


def _distances(a: Array, b: Array) -> Array:
    return np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T, 0)


class ProcessSearch:
    """Order of the nodes by reinsertion, each with the parents among its predecessors that have the highest evidence.

    Parameters
    ----------
    evidence : Evidence
    table : array ``[d, d]``
        Prior knowledge (:meth:`~pyro_cge.discovery.knowledge.Knowledge.table`), enforced exactly.
    max_parents : int
    """

    def __init__(self, evidence: Evidence, table: NDArray[np.int8], max_parents: int = 6) -> None:
        self.evidence, self.before, self.most = evidence, precedence(table), max_parents
        d = range(len(table))
        self.free = [frozenset(int(i) for i in d if table[i, j] != FORBIDDEN) for j in d]
        self.required = [frozenset(int(i) for i in d if table[i, j] == REQUIRED) for j in d]
        self.known: dict[tuple[int, Parents], tuple[float, Parents]] = {}

    def best(self, node: int, predecessors: Iterable[int]) -> tuple[float, Parents]:
        """Evidence and parents of a node, grown and shrunk one by one among its predecessors."""
        free = self.free[node].intersection(predecessors)
        if (node, free) not in self.known:
            self.known[node, free] = self._grow(node, free)
        return self.known[node, free]

    def _grow(self, node: int, free: Parents) -> tuple[float, Parents]:
        parents = self.required[node]
        value = float(self.evidence(parents)[node])
        while len(parents) < max(self.most, len(self.required[node])) and free - parents:
            new, chosen = max((float(self.evidence(parents | {i})[node]), i) for i in free - parents)
            if new <= value:
                break
            value, parents = new, parents | {chosen}
            while parents - self.required[node]:
                new, gone = max((float(self.evidence(parents - {i})[node]), i) for i in parents - self.required[node])
                if new <= value:
                    break
                value, parents = new, parents - {gone}
        return value, parents

    def run(self, order: list[int], *, restarts: int = 3, seed: int = 0, progress: bool | None = None) -> list[int]:
        """A better order: nodes are put back where the total evidence is highest, until none moves.

        Restarts move three nodes of the best order to random places and go on from there. The progress bar is over climbs.
        """
        rng, best = np.random.default_rng(seed), order
        for climb in shown(range(restarts + 1), restarts + 1, progress):
            if climb:
                order = self._disturbed(best, rng)
            order = self._climb(order, rng)
            best = max(best, order, key=self.total) if climb else order
        return best

    def _disturbed(self, order: list[int], rng: np.random.Generator) -> list[int]:
        for node in rng.choice(len(order), min(3, len(order)), replace=False).tolist():
            rest, low, high = self._places(order, node)
            place = int(rng.integers(low, high + 1))
            order = [*rest[:place], node, *rest[place:]]
        return order

    def total(self, order: list[int]) -> float:
        """Evidence of the best graph of an order, in nats."""
        return sum(self.best(node, order[:place])[0] for place, node in enumerate(order))

    def _climb(self, order: list[int], rng: np.random.Generator) -> list[int]:
        while True:
            start = order
            for node in rng.permutation(len(order)).tolist():
                order = self._reinsert(order, node)
            if order == start:
                return order

    def _places(self, order: list[int], node: int) -> tuple[list[int], int, int]:
        """The others, and the first and last place that prior knowledge has for a node among them."""
        rest = [other for other in order if other != node]
        low = max((p + 1 for p, other in enumerate(rest) if self.before[other, node]), default=0)
        return rest, low, min((p for p, other in enumerate(rest) if self.before[node, other]), default=len(rest))

    def _reinsert(self, order: list[int], node: int) -> list[int]:
        rest, low, high = self._places(order, node)
        # What others lose or gain is known once for each of them: with the node after it, and with the node before it.
        after = np.array([self.best(other, rest[:p])[0] for p, other in enumerate(rest)])
        ahead = np.array([self.best(other, [*rest[:p], node])[0] for p, other in enumerate(rest)])
        gain = np.r_[0.0, np.cumsum(after - ahead)]  # of the others, for the node at place p
        total = [gain[p] + self.best(node, rest[:p])[0] for p in range(low, high + 1)]
        home = order.index(node)
        p = low + int(np.argmax(total))
        return [*rest[:p], node, *rest[p:]] if total[p - low] > total[home - low] + 1e-6 else order

    def graph(self, order: list[int]) -> tuple[NDArray[np.int64], Array]:
        """Adjacency ``[d, d]``, and of each edge the order admits its probability given all others ``[d, d]``."""
        d = len(order)
        adjacency, probability = np.zeros((d, d), dtype=np.int64), np.zeros((d, d))
        for place, node in enumerate(order):
            _, parents = self.best(node, order[:place])
            adjacency[list(parents), node] = 1
            for i in self.free[node].intersection(order[:place]):
                odds = self.evidence(parents | {i})[node] - self.evidence(parents - {i})[node]
                probability[i, node] = (
                    1.0 if i in self.required[node] else 1 / (1 + math.exp(-min(max(odds, -700), 700)))
                )
        return adjacency, probability


def process_order(
    x: Array,
    genes: list[str],
    knowledge: Knowledge,
    *,
    edge: float,
    max_parents: int,
    restarts: int,
    seed: int,
    progress: bool | None = None,
) -> tuple[list[int], NDArray[np.int64], Array]:
    """Order, adjacency and edge probabilities of standardised columns: from the best linear order to a better one."""
    linear = OrderSearch(knowledge=knowledge, random_state=seed, progress=progress).fit(pd.DataFrame(x, columns=genes))
    search = ProcessSearch(Evidence(x, edge=edge, seed=seed), knowledge.table(genes), max_parents)
    order = search.run([genes.index(gene) for gene in linear.order_], restarts=restarts, seed=seed, progress=progress)
    return order, *search.graph(order)

"""Greedy sparsest permutations: the classical way from tests of independence and invariance to a graph.

Every order of the genes has a sparsest graph that agrees with the tests (its minimal I-MAP): an edge from an earlier to a
later gene wherever the two are dependent given all that come before. The search walks between such graphs by turning
covered edges round (edges ``i → j`` whose ends have the same other parents), which keeps to graphs that agree with the
observational tests; what interventions say decides between graphs of equally many edges.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError
from .equivalence import essential_graph
from .independence import KernelTests, LinearTests, Tests
from .inputs import TARGET, UNKNOWN, Samples, known_targets, samples
from .progress import shown
from .results import named_graph

TESTS: dict[str, Callable[[Samples], Tests]] = {"partial correlation": LinearTests, "kernel": KernelTests}
Score = tuple[int, int]
Edge = tuple[int, int]


@dataclass(frozen=True)
class _Node:
    """A graph on the walk: parents of each gene as bit masks, and its score."""

    parents: tuple[int, ...]
    score: Score


class _Walk:
    """Depth-first search over minimal I-MAPs; every test is made once.

    ``known [E−1, d]`` are targets: laws that change there break nothing. ``fixed [d, d]`` are edges never turned round.
    """

    def __init__(
        self, tests: Tests, known: NDArray[np.bool_], fixed: NDArray[np.bool_], alpha: float, alpha_invariance: float
    ) -> None:
        self.tests, self.known, self.fixed = tests, known, fixed
        self.alpha, self.alpha_invariance, self.d = alpha, alpha_invariance, known.shape[1]
        self._kept: dict[Edge, int] = {}
        self._changed: dict[Edge, NDArray[np.bool_]] = {}
        self._broken: dict[Edge, int] = {}

    def kept(self, node: int, candidates: int) -> int:
        """Those of ``candidates`` that ``node`` depends on given the others."""
        key = node, candidates
        if key not in self._kept:
            others = _members(candidates)
            p = self.tests.independence(node, others) if others else ()
            self._kept[key] = sum(1 << o for o, value in zip(others, p, strict=True) if value < self.alpha)
        return self._kept[key]

    def changed(self, node: int, parents: int) -> NDArray[np.bool_]:
        """Environments ``[E−1]`` in which the law of ``node`` given ``parents`` is not that of the reference."""
        key = node, parents
        if key not in self._changed:
            self._changed[key] = np.asarray(self.tests.invariance(node, _members(parents))) < self.alpha_invariance
        return self._changed[key]

    def broken(self, node: int, parents: int) -> int:
        """Number of environments that change ``node`` and are not known to target it."""
        key = node, parents
        if key not in self._broken:
            changed = self.changed(node, parents)
            self._broken[key] = int((changed & ~self.known[:, node]).sum()) if len(changed) else 0
        return self._broken[key]

    def imap(self, order: Sequence[int]) -> _Node:
        """The sparsest graph of an order."""
        parents, before = [0] * self.d, 0
        for node in order:
            parents[node] = self.kept(node, before)
            before |= 1 << node
        broken = sum(self.broken(node, parents[node]) for node in range(self.d))
        return _Node(tuple(parents), (sum(map(int.bit_count, parents)), broken))

    def neighbours(self, here: _Node) -> Iterator[_Node]:
        """Graphs one covered edge away that score no worse."""
        parents, (edges, broken) = here.parents, here.score
        for j, above in enumerate(parents):
            for i in _members(above):
                common = parents[i]
                if above ^ (1 << i) != common or self.fixed[i, j]:
                    continue
                new_j = self.kept(j, common)
                new_i = (self.kept(i, common | 1 << j) & common) | 1 << j
                more = new_i.bit_count() + new_j.bit_count() - common.bit_count() - above.bit_count()
                worse = self.broken(i, new_i) + self.broken(j, new_j) - self.broken(i, common) - self.broken(j, above)
                if (more, worse) <= (0, 0):
                    new = list(parents)
                    new[i], new[j] = new_i, new_j
                    yield _Node(tuple(new), (edges + more, broken + worse))

    def search(self, start: _Node, depth: int, rng: np.random.Generator) -> _Node:
        """Improve until no graph within ``depth`` steps of equal score leads to a better one."""
        here, trail, seen = start, list[tuple[_Node, list[_Node]]](), {start.parents}
        ahead = list(self.neighbours(here))
        while True:
            better = min(ahead, key=lambda node: node.score, default=here)
            ahead = [node for node in ahead if node.parents not in seen]
            if better.score < here.score:
                here, trail, seen = better, [], {better.parents}
            elif ahead and len(trail) < depth:
                following = ahead.pop(int(rng.integers(len(ahead))))
                trail.append((here, ahead))
                here = following
                seen.add(here.parents)
            elif trail:
                here, ahead = trail.pop()
                continue
            else:
                return here
            ahead = list(self.neighbours(here))

    def starts(self, rng: np.random.Generator) -> Iterator[list[int]]:
        """Orders by minimum degree in the graph of dependence given all others, ties at random (Solus et al. 2021)."""
        everyone = (1 << self.d) - 1
        near = [self.kept(j, everyone ^ 1 << j) for j in range(self.d)]
        near = [row | sum(1 << i for i in range(self.d) if near[i] >> j & 1) for j, row in enumerate(near)]
        while True:
            masks, left, last = list(near), everyone, []
            while left:
                degrees = {j: (masks[j] & left).bit_count() for j in _members(left)}
                least = min(degrees.values())
                node = int(rng.choice([j for j, degree in degrees.items() if degree == least]))
                left ^= 1 << node
                for i in _members(masks[node] & left):
                    masks[i] |= masks[node] & left & ~(1 << i)
                last.append(node)
            yield last[::-1]


def _members(mask: int) -> list[int]:
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found


class UtIgsp:
    """Unknown-target interventional greedy sparsest permutation (UT-IGSP).

    Minimises, over orders, the number of edges and then the number of (environment, gene) pairs whose law given the gene's
    parents differs from the reference's: those pairs are the targets. With right answers to all tests, ``depth`` and
    ``restarts`` large enough, graph and targets are those of the truth up to equivalence (Squires, Wang & Uhler 2020,
    theorem 4). Where tests err, :class:`~pyro_cge.discovery.OrderSearch`, which weighs all evidence in one score, is more
    accurate and faster.

    Parameters
    ----------
    test : {"partial correlation", "kernel"} or callable
        A callable takes :class:`~pyro_cge.discovery.inputs.Samples` and returns an object with the methods
        ``independence`` and ``invariance`` of :class:`~pyro_cge.discovery.independence.Tests`.
    alpha : float
        Level of the tests of independence. Small: an edge needs strong evidence.
    alpha_invariance : float
        Level of the tests of invariance.
    depth : int
        Longest walk between graphs of equal score.
    restarts : int
        Further starting orders, after the first.
    random_state : int
    progress : bool, optional
        A bar over the starting orders; by default only on a terminal.

    Attributes
    ----------
    adjacency_ : ndarray ``[d, d]``
        1 where ``i → j``.
    weights_ : ndarray ``[d, d]``
        Least-squares coefficients in the units of the data, from samples whose mechanism is the reference's.
    graph_, essential_graph_ : DiGraph
        With gene names; the second is undirected (both ways) where the data cannot tell.
    targets_ : DataFrame ``[E, d]``
    score_ : tuple of int
        Edges, and changed laws (those that are not known targets).
    genes_, environments_ : list of str
    """

    def __init__(
        self,
        *,
        test: str | Callable[[Samples], Tests] = "partial correlation",
        alpha: float = 1e-3,
        alpha_invariance: float = 1e-5,
        depth: int = 4,
        restarts: int = 49,
        random_state: int = 0,
        progress: bool | None = None,
    ) -> None:
        if not callable(test) and test not in TESTS:
            raise ConfigError(f"test is one of {', '.join(map(repr, TESTS))} or a callable, got {test!r}")
        for name, value in (("alpha", alpha), ("alpha_invariance", alpha_invariance)):
            if not 0 < value < 1:
                raise ConfigError(f"{name} is the level of a test, between 0 and 1, got {value}")
        if depth < 0 or restarts < 0:
            raise ConfigError(f"depth and restarts must not be negative, got {depth} and {restarts}")
        self.test, self.alpha, self.alpha_invariance = test, alpha, alpha_invariance
        self.depth, self.restarts, self.random_state, self.progress = depth, restarts, random_state, progress

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(test={self.test!r}, alpha={self.alpha}, alpha_invariance={self.alpha_invariance})"
        )

    def fit(self, X: Any, env: ArrayLike | str | None = None, *, control: Any = None) -> UtIgsp:
        """Search from several orders; see :func:`~pyro_cge.discovery.inputs.samples` for what is accepted.

        Raises
        ------
        DataError
            For data no graph can be estimated from.
        """
        data = samples(X, env, control=control)
        known = np.zeros((len(data.environments) - 1, data.d), dtype=bool)
        walk = self._walk(data, known)
        best = self._search(walk)
        changed = np.array([walk.changed(j, best.parents[j]) for j in range(data.d)], dtype=bool).reshape(data.d, -1)
        self._keep(data, best, changed.T)
        return self

    def _walk(self, data: Samples, known: NDArray[np.bool_]) -> _Walk:
        tests = self.test(data) if callable(self.test) else TESTS[self.test](data)
        walk = _Walk(tests, known, np.zeros((data.d, data.d), dtype=bool), self.alpha, self.alpha_invariance)
        alone = np.flatnonzero(known.sum(1) == 1)
        if len(alone):  # what changes when i alone is targeted is an effect of i: such edges stay (Yang et al. 2018)
            below = np.stack([walk.changed(j, 0) for j in range(data.d)], axis=1)
            for e in alone:
                walk.fixed[known[e].argmax()] |= below[e]
        return walk

    def _search(self, walk: _Walk) -> _Node:
        rng = np.random.default_rng(self.random_state)
        attempts = shown(range(self.restarts + 1), self.restarts + 1, self.progress)
        ends = [
            walk.search(walk.imap(order), self.depth, rng) for _, order in zip(attempts, walk.starts(rng), strict=False)
        ]
        return min(ends, key=lambda node: node.score)

    def _keep(self, data: Samples, best: _Node, targets: NDArray[np.bool_]) -> None:
        d = data.d
        self.genes_, self.environments_, self.score_ = data.genes, data.environments, best.score
        self.adjacency_ = np.array([[mask >> i & 1 for mask in best.parents] for i in range(d)], dtype=np.int64)
        every = np.vstack([np.zeros((1, d), dtype=bool), targets])
        self.targets_ = pd.DataFrame(every, index=data.environments, columns=data.genes)
        self.weights_ = np.zeros((d, d))
        for j in range(d):
            rows, parents = ~every[data.env, j], np.flatnonzero(self.adjacency_[:, j])
            x = data.x[rows] - data.x[rows].mean(0)
            self.weights_[parents, j] = np.linalg.lstsq(x[:, parents], x[:, j], rcond=None)[0]
        self.graph_ = named_graph(self.adjacency_, data.genes, weight=self.weights_)
        sets = [{data.genes[j] for j in np.flatnonzero(row)} for row in targets if row.any()]
        self.essential_graph_: nx.DiGraph = essential_graph(self.graph_, sets)


class Igsp(UtIgsp):
    """Interventional greedy sparsest permutation (IGSP): :class:`UtIgsp` told what each environment targets.

    An edge ``i → j`` is not turned round where an environment with the single target ``i`` changes ``j`` (it is not
    I-covered), and between graphs of equally many edges the one is taken in which the fewest laws of genes that are no
    targets change (Wang, Solus, Yang & Uhler 2017; Yang, Katcoff & Uhler 2018, whose I-contradicting edges ask the same of
    pairs of neighbours). Without environments it is the greedy sparsest permutation algorithm (GSP).
    """

    def fit(
        self,
        X: Any,
        env: ArrayLike | str | None = None,
        *,
        targets: Mapping[Any, Collection[str] | str] | None = None,
        control: Any = None,
    ) -> Igsp:
        """Search from several orders.

        Parameters
        ----------
        targets : mapping
            ``{environment: genes}`` (or one gene) for every environment but the reference; an empty list for one that changes nothing.

        Raises
        ------
        ConfigError
            For environments without targets, and names that are not in the data.
        """
        data = samples(X, env, control=control)
        told = known_targets(targets, data)
        missing = [name for name, row in zip(data.environments, told, strict=True) if (row == UNKNOWN).any()]
        if missing:
            raise ConfigError(f"targets are missing for {missing[:5]}; use UtIgsp where they are not known")
        known = told[1:] == TARGET
        self._keep(data, self._search(self._walk(data, known)), known)
        return self

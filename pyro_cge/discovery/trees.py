"""Trees among known causes, from environments that each intervene on one of them (paper, section 4.2)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError, DataError

OUTSIDE = -1  # stands above the roots of a forest, which makes it a tree

Branch = tuple[int, list[tuple[int, int]]]  # a root, and edges from parent to child


@dataclass(frozen=True)
class TreeClass:
    """All trees (or forests) that explain which causes change in which environments.

    Causes that change in exactly the same environments form a class; classes form a tree of their own. What is open is
    how the causes of a class hang together, and on which of its causes the next class hangs.

    Attributes
    ----------
    d : int
        Number of causes ``0 … d−1``.
    classes : tuple of tuples of int
        Parents before children. The class of a forest that no environment touches has ``-1`` first, which stands above
        all roots.
    parents : tuple of int or None
        Position in ``classes`` of each one's parent class; None for the first.
    """

    d: int
    classes: tuple[tuple[int, ...], ...]
    parents: tuple[int | None, ...]

    @property
    def n_consistent(self) -> int:
        """How many trees or forests explain the changes: Cayley's ``m^(m−1)`` rooted trees a class of ``m`` causes
        (``m^(m−2)`` where the root is known), and ``m`` places for every class below it."""
        inside = math.prod(len(c) ** (len(c) - 1 - (c[0] == OUTSIDE)) for c in self.classes if len(c) > 1)
        return inside * math.prod(len(self.classes[p]) for p in self.parents if p is not None)

    @property
    def identified(self) -> bool:
        """Exactly one tree or forest explains the changes."""
        return self.n_consistent == 1

    @property
    def ambiguous(self) -> list[frozenset[int]]:
        """Sets of causes that no environment tells apart (or tells from a root, for those never touched)."""
        if self.identified:
            return []
        return [frozenset(c) - {OUTSIDE} for c in self.classes if len(c) > 1]

    @property
    def graph(self) -> nx.DiGraph:
        """The edges that all consistent trees share, over ``0 … d−1``; the tree itself where it is identified."""
        graph = nx.empty_graph(self.d, create_using=nx.DiGraph)
        for members, parent in zip(self.classes, self.parents, strict=True):
            above = () if parent is None else self.classes[parent]
            if len(members) == len(above) == 1 and above != (OUTSIDE,):
                graph.add_edge(above[0], members[0])
        return graph

    def consistent(self) -> Iterator[nx.DiGraph]:
        """Every tree or forest that explains the changes, ``n_consistent`` of them."""
        places = [self.classes[p] if p is not None else (OUTSIDE,) for p in self.parents]
        for branches in itertools.product(*(list(_rooted_trees(c)) for c in self.classes)):
            inside = [edge for _, edges in branches for edge in edges]
            for above in itertools.product(*places):
                edges = [*inside, *((p, root) for p, (root, _) in zip(above, branches, strict=True))]
                graph = nx.empty_graph(self.d, create_using=nx.DiGraph)
                graph.add_edges_from((i, j) for i, j in edges if OUTSIDE not in (i, j))
                yield graph


def trees_of(changed: ArrayLike, *, connected: bool = False) -> TreeClass:
    """Which trees among the causes explain which of them change in which environments?

    The algorithm the paper sketches: count the environments in which each cause changes. The cause with the fewest is a
    root; what changes with it is its tree. Take root and its environments away and split what is left of the tree in
    the same way, then the other trees.

    *Assumptions*: the graph is a forest, each environment intervenes on one cause (which one need not be known), and a
    change of a cause changes the law of all of its descendants (faithfulness: effects along a path neither vanish nor
    saturate; in a tree there is only one path, so none can cancel).

    *Proof sketch.* By faithfulness and because interventions do not travel upwards, the causes that change in an
    environment are its target and the target's descendants, ``D(t)``. (i) A cause changes wherever an ancestor of it is
    the target, so counts never decrease from parent to child, and increase if the child is a target at least once: a
    cause with the smallest count is a root, or no environment tells it from one. (ii) In a forest two sets ``D(s)``,
    ``D(t)`` are nested or disjoint. So environments in which that cause changes all change the same set ``S``, and any
    other environment stays inside of ``S`` or outside of it: the recursion splits. (iii) Members of ``S`` that no
    environment inside of ``S`` touches form its class: the target is among them, their parents (but the target's) are
    too, and the sets next below hang on any of them. Nothing else is fixed by the changes, so the trees counted by
    :attr:`TreeClass.n_consistent` are exactly those that explain them. Hence

    * a forest is identified if and only if every cause is a target (or there is only one cause);
    * one tree (``connected=True``) if and only if every cause but the root is: the root is what never changes.

    *What fails otherwise.* Causes never targeted are not told from their parents: they come back as a class. With
    vanishing effects, two targets an environment or a second parent, the sets need be neither nested nor disjoint (then
    an error says so) but may happen to be, as the sets of a wrong tree: two targets that are parent and child leave no
    trace, and a cause with two parents, one above the other, looks like a child of the lower one.

    Parameters
    ----------
    changed : array_like ``[E, d]``, bool
        Whether a cause's law in an environment differs from that in the reference environment. Rows without changes
        (controls) say nothing; repeated environments do no harm.
    connected : bool
        One tree, rather than any forest.

    Raises
    ------
    DataError
        Where no tree or forest explains the changes; two environments that contradict each other are named.

    References
    ----------
    Towards learning cell causal embeddings, section 4.2, where the question is left open.
    """
    matrix = np.asarray(changed)
    if matrix.dtype != bool or matrix.ndim != 2 or not matrix.shape[1]:
        raise DataError(f"changed must be a boolean matrix [E, d], got {matrix.dtype} of shape {list(matrix.shape)}")
    untouched = tuple(np.flatnonzero(~matrix.any(0)).tolist())
    top = untouched if connected else (OUTSIDE, *untouched)
    classes: list[tuple[int, ...]] = [top] if top else []
    parents: list[int | None] = [None] if top else []
    counts = matrix.sum(0)
    todo = [(np.flatnonzero(matrix.any(1)), np.flatnonzero(counts), 0 if top else None)]
    while todo:
        rows, causes, parent = todo.pop()
        while len(causes):
            first = causes[np.argmin(counts[causes])]
            with_it = matrix[rows, first]
            here, others = rows[with_it], rows[~with_it]
            tree = matrix[here[0]]
            touches = (matrix[others] & tree).any(1)
            inner = others[touches]
            _check_nested(matrix, first, here, inner)
            own = tree & ~matrix[inner].any(0)
            classes.append(tuple(np.flatnonzero(own).tolist()))
            parents.append(parent)
            todo.append((inner, np.flatnonzero(tree & ~own), len(classes) - 1))
            rows, causes = others[~touches], causes[~tree[causes]]
    if connected and parents.count(None) != 1:
        roots = [list(c) for c, p in zip(classes, parents, strict=True) if p is None]
        raise DataError(f"no single tree has these changes: {roots} never change together; try connected=False")
    return TreeClass(matrix.shape[1], tuple(classes), tuple(parents))


def changed_causes(causes: ArrayLike, env: ArrayLike, control: Sequence[int], *, alpha: float = 0.05) -> NDArray[Any]:
    """Whether each cause's mean or scale differs between an environment and the control ``[E, d]``, bool.

    Per environment and cause, Welch's test of the means and Brown and Forsythe's of the scales (Welch's test of the
    distances from each environment's median); the smaller p-value, doubled, goes into Holm's step-down correction over
    all ``E × d`` pairs. With probability at least ``1 − alpha`` no cause is reported that did not change, however the
    tests depend on each other: exactly so with many profiles, and between 0.015 and 0.053 of 400 data sets without a change
    had one at ``alpha = 0.05``, for normal, exponential and Student-t (3) noise from 10 profiles an environment on. What is
    missed is not bounded: it takes shifts that stand out of the noise all the way down the tree.

    Parameters
    ----------
    causes : array_like ``[n, d]``
        Known causes, or posterior means of them.
    env : array_like ``[n]``, int
        Environment of each profile, 0 … E−1.
    control : sequence of int
        Reference environments, pooled. Their rows of the result are all False.
    alpha : float
        Probability of any false change, 0 < alpha < 1.

    Raises
    ------
    ConfigError, DataError
        If there is no control, or an environment has a single profile.
    """
    from scipy.stats import ttest_ind_from_stats

    values, numbers = np.asarray(causes, dtype=np.float64), np.asarray(env)
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha is the probability of any false change, between 0 and 1, got {alpha}")
    group = np.where(np.isin(numbers, list(control)), OUTSIDE, numbers)
    sizes = pd.Series(group).value_counts()
    if OUTSIDE not in sizes:
        raise ConfigError(f"changes are told by comparison: no profile is in a control environment (control={control})")
    if (sizes < 2).any():
        raise DataError(f"environment {sizes.index[sizes < 2][0]} has one profile: changes of scale need at least two")
    frame = pd.DataFrame(values)
    distances = (frame - frame.groupby(group).transform("median")).abs()
    p = np.ones((max(numbers.max(), *control) + 1, values.shape[1]))
    treated = sorted(set(sizes.index) - {OUTSIDE})
    smallest = np.ones((len(treated), values.shape[1]))
    for table in (frame, distances):
        by = table.groupby(group)
        mean, sd, n = by.mean(), by.std(), by.size()
        there, here = (
            (mean.loc[rows].to_numpy(), sd.loc[rows].to_numpy(), n.loc[rows].to_numpy()[:, None])
            for rows in ([OUTSIDE], treated)
        )
        with np.errstate(divide="ignore", invalid="ignore"):  # constant in both: no difference, or one for certain
            one = ttest_ind_from_stats(*here, *there, equal_var=False).pvalue
        smallest = np.fmin(smallest, one)
    p[treated] = np.minimum(1.0, 2 * smallest)
    order = np.sort(smallest, axis=None) * 2 * np.arange(smallest.size, 0, -1)
    n_found = int(np.argmax(np.append(order, np.inf) > alpha))
    found = np.zeros(p.size, dtype=bool)
    found[np.argsort(p, axis=None, kind="stable")[:n_found]] = True
    return found.reshape(p.shape)


def _check_nested(matrix: NDArray[Any], first: int, here: NDArray[Any], inner: NDArray[Any]) -> None:
    """Environments in which ``first`` changes are alike, and those among the same causes stay among them."""
    tree = matrix[here[0]]
    different = here[(matrix[here] != tree).any(1)]
    outside = inner[(matrix[inner] & ~tree).any(1)]
    for other in (*different[:1], *outside[:1]):
        sets = [np.flatnonzero(matrix[e]).tolist() for e in (here[0], other)]
        raise DataError(
            f"no tree has these changes: environments {here[0]} and {other} change causes {sets[0]} and {sets[1]}, and "
            f"cause {first} changes in no more environments than any of the first. Either an environment intervenes on "
            "more than one cause, a cause has several parents, or a change was missed or found in error."
        )


def _rooted_trees(nodes: tuple[int, ...]) -> Iterator[Branch]:
    """All rooted labelled trees over ``nodes``, each with its root; ``OUTSIDE`` is always the root (Prüfer's code)."""
    m = len(nodes)
    if m == 1:
        yield nodes[0], []
        return
    roots = [0] if nodes[0] == OUTSIDE else range(m)
    for code in itertools.product(range(m), repeat=m - 2):
        shape = nx.from_prufer_sequence(list(code))
        for root in roots:
            yield nodes[root], [(nodes[i], nodes[j]) for i, j in nx.bfs_edges(shape, root)]

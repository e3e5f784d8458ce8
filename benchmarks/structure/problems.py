"""Problems with a known graph: random linear ones, their misspecified relatives, and those of a folder of files."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Law = Callable[[np.random.Generator, tuple[int, ...]], Array]


@dataclass(frozen=True)
class Problem:
    """Values ``x [n, d]`` and the graph ``[d, d]`` behind them; environments (0 is the control) and targets ``[E, d]``."""

    name: str
    x: Array
    adjacency: NDArray[np.int64]
    env: NDArray[np.int64] | None = None
    targets: NDArray[np.bool_] | None = None

    @property
    def d(self) -> int:
        return self.x.shape[1]

    @property
    def law(self) -> str:
        """``ER2``, ``SF4`` and so on, of the graph; empty for data."""
        found = re.search(r"(ER|SF)\d+", self.name)
        return found[0] if found else ""

    @property
    def seed(self) -> int:
        """It was drawn with; 0 for data."""
        found = re.search(r"_s(\d+)$", self.name)
        return int(found[1]) if found else 0

    @property
    def control(self) -> Array:
        return self.x if self.env is None else self.x[self.env == 0]

    @property
    def target_sets(self) -> list[set[int]]:
        return [] if self.targets is None else [set(np.flatnonzero(row).tolist()) for row in self.targets if row.any()]

    def rescaled(self, scale: Array) -> Problem:
        return replace(self, x=self.x * scale)

    def standardised(self) -> Problem:
        """Columns at mean 0 and standard deviation 1 in the control."""
        return replace(self, x=(self.x - self.control.mean(0)) / self.control.std(0))


def read(path: Path) -> Problem:
    """A file of arrays ``X``, ``B`` (``B[i, j] = 1`` for i → j) and, where interventional, ``env`` and ``targets``."""
    with np.load(path) as arrays:
        env, targets = (arrays.get(name) for name in ("env", "targets"))
        return Problem(
            path.stem,
            arrays["X"].astype(float),
            (arrays["B"] != 0).astype(np.int64),
            None if env is None else env.astype(np.int64),
            None if targets is None else targets.astype(bool),
        )


def random_dag(kind: str, d: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """``ERk``: ``k d`` edges at random; ``SFk``: each node acts on ``k`` earlier ones, the more the better connected."""
    k = int(kind[2:])
    dag = np.zeros((d, d), dtype=np.int64)
    if kind.startswith("ER"):
        pairs = np.argwhere(np.triu(np.ones((d, d)), 1))
        chosen = pairs[rng.choice(len(pairs), min(k * d, len(pairs)), replace=False)]
        dag[chosen[:, 0], chosen[:, 1]] = 1
    else:
        degree = np.ones(d)
        for node in range(1, d):
            near = rng.choice(node, min(k, node), replace=False, p=degree[:node] / degree[:node].sum())
            dag[node, near] = 1
            degree[near] += 1
            degree[node] += len(near)
    order = rng.permutation(d)
    return dag[np.ix_(order, order)]


def observational(kind: str, d: int, n: int, seed: int, *, standardised: bool) -> Problem:
    """NOTEARS's problems: weights ±U(0.5, 2), noise of variance 1; standardised or as they come."""
    rng = np.random.default_rng(seed)
    dag = random_dag(kind, d, rng)
    W = dag * rng.uniform(0.5, 2, (d, d)) * rng.choice([-1, 1], (d, d))
    x = rng.standard_normal((n, d)) @ np.linalg.inv(np.eye(d) - W)
    name = f"{kind}_d{d}_n{n}_{'std' if standardised else 'ev'}_s{seed}"
    problem = Problem(name, x, dag)
    return problem.standardised() if standardised else problem


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.standard_normal(shape)


def laplace(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.laplace(scale=0.5**0.5, size=shape)


def skewed(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Exponential, at mean 0 and variance 1."""
    return rng.exponential(size=shape) - 1


def heavy(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Student-t with 4 degrees of freedom, at variance 1."""
    return rng.standard_t(4, size=shape) / 2**0.5


def uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.uniform(-(3**0.5), 3**0.5, size=shape)


def interventional(
    kind: str,
    d: int,
    seed: int,
    *,
    style: str = "soft",
    environments: int = 10,
    cells: int = 300,
    controls: int = 1000,
    noise: Law = normal,
    bent: bool = False,
    hidden: int = 0,
) -> Problem:
    """A control and environments with one or two hidden targets each.

    Weights ±U(0.25, 1), noise of standard deviation U(0.7, 1.5). A target's mechanism is, by ``style``: *soft*, its
    parents' weights halved, mean ±1, noise × 0.5 or × 1.5; *hard*, parents cut, mean 2, standard deviation 0.5; *shift*,
    mean ±1 and nothing else. With ``bent`` parents act through random curves; ``hidden`` confounders act on four genes
    each and are not shown.
    """
    rng = np.random.default_rng(seed)
    dag = random_dag(kind, d, rng)
    W = dag * rng.uniform(0.25, 1, (d, d)) * rng.choice([-1, 1], (d, d))
    scale = rng.uniform(0.7, 1.5, d)
    targets = np.zeros((environments + 1, d), dtype=bool)
    for e in range(1, environments + 1):
        targets[e, rng.choice(d, rng.integers(1, 3), replace=False)] = True
    env = np.repeat(np.arange(environments + 1), [controls, *[cells] * environments])
    curves: list[Callable[[Array], Array]] = [
        lambda v: 1.5 * np.tanh(v),
        lambda v: np.maximum(v, 0.2 * v),
        lambda v: v + np.sin(2 * v),
    ]
    which = rng.integers(3, size=(d, d)) if bent else None
    confounds = np.zeros((hidden, d))
    for h in range(hidden):
        confounds[h, rng.choice(d, 4, replace=False)] = rng.uniform(0.5, 1, 4) * rng.choice([-1, 1], 4)
    beside = rng.standard_normal((len(env), hidden)) @ confounds
    own = noise(rng, (len(env), d)) * scale
    sign, width = rng.choice([-1, 1], targets.shape), rng.choice([0.5, 1.5], targets.shape)
    x = np.zeros((len(env), d))
    for j in nx.topological_sort(nx.from_numpy_array(dag, create_using=nx.DiGraph)):
        parents = np.flatnonzero(dag[:, j])
        shaped = x[:, parents] if which is None else np.column_stack(
            [curves[which[i, j]](x[:, i]) for i in parents] or [np.zeros((len(env), 0))]
        )  # fmt: skip
        acted, mean, spread = shaped @ W[parents, j], np.zeros(len(env)), np.ones(len(env))
        hit = targets[env, j]
        e = env[hit]
        if style == "soft":
            acted[hit] *= 0.5
            mean[hit], spread[hit] = sign[e, j], width[e, j]
        elif style == "hard":
            acted[hit] = 0
            mean[hit], spread[hit] = 2, 0.5 / scale[j]
        else:
            mean[hit] = sign[e, j]
        x[:, j] = acted + mean + own[:, j] * spread + beside[:, j] * (~hit if style == "hard" else 1)
    return Problem(f"INT_{kind}_d{d}_{style}_s{seed}", x, dag, env, targets)


MISSPECIFIED: dict[str, dict[str, Any]] = {
    "mean shifts only": {"style": "shift"},
    "nonlinear mechanisms": {"bent": True},
    "50 cells an environment": {"cells": 50},
    "50 cells, control too": {"cells": 50, "controls": 50},
    "Laplace noise": {"noise": laplace},
    "skewed noise": {"noise": skewed},
    "heavy-tailed noise": {"noise": heavy},
    "uniform noise": {"noise": uniform},
    "a hidden confounder": {"hidden": 1},
    "two hidden confounders": {"hidden": 2},
}


def misspecified(what: str, kind: str, d: int, seed: int) -> Problem:
    """One thing about the model is wrong."""
    problem = interventional(kind, d, seed, **MISSPECIFIED[what])
    return replace(problem, name=f"{what}, {kind}_d{d}_s{seed}")

"""Everyone who is given a problem, ours and others' through their own packages, each behind one function.

A contender takes a problem and returns a function without arguments that is timed; packages are imported and data
converted before. What is not installed raises :class:`ModuleNotFoundError` and is named as left out.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from problems import Problem

Adjacency = NDArray[np.int64]


@dataclass(frozen=True)
class Answer:
    """``adjacency [d, d]`` (undirected edges both ways), and what a method says besides."""

    adjacency: Adjacency
    targets: NDArray[np.bool_] | None = None


Run = Callable[[], Answer]
Contender = Callable[[Problem], Run]


# Baselines


def empty(problem: Problem) -> Run:
    return lambda: Answer(np.zeros((problem.d, problem.d), dtype=np.int64))


def sort_and_regress(x: NDArray[np.float64], key: NDArray[np.float64]) -> Answer:
    """Each gene on those before it by ``key``, Lasso with the BIC's penalty (Reisach et al. 2021)."""
    from sklearn.linear_model import LassoLarsIC, LinearRegression

    adjacency = np.zeros((x.shape[1], x.shape[1]), dtype=np.int64)
    order = np.argsort(key)
    for k in range(1, len(order)):
        before, j = order[:k], order[k]
        size = np.abs(LinearRegression().fit(x[:, before], x[:, j]).coef_)
        kept = LassoLarsIC("bic").fit(x[:, before] * size, x[:, j]).coef_ * size
        adjacency[before, j] = np.abs(kept) > 1e-6
    return Answer(adjacency)


def variance_order(problem: Problem) -> Run:
    return lambda: sort_and_regress(problem.control, problem.control.var(0))


def r2_order(problem: Problem) -> Run:
    def search() -> Answer:
        precision = np.linalg.inv(np.corrcoef(problem.control.T))
        return sort_and_regress(problem.control, 1 - 1 / np.diag(precision))

    return search


# Ours


def order_search(problem: Problem, restarts: int | None = None) -> Run:
    """The graph found; without environments its essential graph, as all who learn from observations give."""
    from pyro_cge.discovery import OrderSearch

    def search() -> Answer:
        if problem.env is None:
            return _essential(OrderSearch().fit(problem.x))
        model = OrderSearch(restarts=restarts).fit(problem.x, problem.env)
        return Answer(model.adjacency_, model.targets_.to_numpy())

    return search


def _essential(model: Any) -> Answer:
    return Answer(nx.to_numpy_array(model.essential_graph_, nodelist=model.genes_, weight=None).astype(np.int64))


def order_search_control(problem: Problem) -> Run:
    from pyro_cge.discovery import OrderSearch

    return lambda: _essential(OrderSearch().fit(problem.control))


def named_targets(problem: Problem) -> dict[Any, list[str]]:
    assert problem.targets is not None
    return {e: [f"x{j}" for j in np.flatnonzero(row)] for e, row in enumerate(problem.targets) if e}


def order_search_told(problem: Problem) -> Run:
    from pyro_cge.discovery import OrderSearch

    targets = named_targets(problem)
    return lambda: Answer(OrderSearch().fit(problem.x, problem.env, targets=targets).adjacency_)


def ut_igsp(problem: Problem) -> Run:
    from pyro_cge.discovery import UtIgsp

    model = UtIgsp()

    def search() -> Answer:
        model.fit(problem.x, problem.env)
        return Answer(model.adjacency_, model.targets_.to_numpy())

    return search


def igsp(problem: Problem) -> Run:
    from pyro_cge.discovery import Igsp

    targets = named_targets(problem)
    return lambda: Answer(Igsp().fit(problem.x, problem.env, targets=targets).adjacency_)


# Others' packages


def flop(problem: Problem, pooled: bool = False) -> Run:
    import flopsearch

    x = np.ascontiguousarray(problem.x if pooled else problem.control)
    # 1: directed; 2: undirected, in both places.
    return lambda: Answer((np.asarray(flopsearch.flop(x, 2.0, restarts=20)) != 0).astype(np.int64))


def _of_causallearn(graph: Any) -> Answer:
    """causal-learn: ``[i, j] = −1`` a tail at i, ``1`` an arrow head at i."""
    marks = graph.graph
    tail, head = marks == -1, marks == 1
    return Answer(((tail & head.T) | (tail & tail.T)).astype(np.int64))


def ges(problem: Problem, pooled: bool = False) -> Run:
    from causallearn.search.ScoreBased.GES import ges as search

    x = problem.x if pooled else problem.control
    return lambda: _of_causallearn(search(x, score_func="local_score_BIC_from_cov")["G"])


def boss(problem: Problem) -> Run:
    from causallearn.search.PermutationBased.BOSS import boss as search

    return lambda: _of_causallearn(_quiet(search, problem.control, verbose=False))


def grasp(problem: Problem) -> Run:
    from causallearn.search.PermutationBased.GRaSP import grasp as search

    return lambda: _of_causallearn(_quiet(search, problem.control, verbose=False))


def pc(problem: Problem) -> Run:
    from causallearn.search.ConstraintBased.PC import pc as search

    return lambda: _of_causallearn(search(problem.control, alpha=0.01, show_progress=False).G)


def dagma(problem: Problem) -> Run:
    from dagma.linear import DagmaLinear

    def search() -> Answer:
        W = _quiet(DagmaLinear("l2").fit, problem.control - problem.control.mean(0), lambda1=0.02)
        return Answer((W != 0).astype(np.int64))

    return search


def direct_lingam(problem: Problem) -> Run:
    import lingam

    def search() -> Answer:
        model = lingam.DirectLiNGAM()
        model.fit(problem.control)
        return Answer((np.abs(model.adjacency_matrix_.T) > 1e-6).astype(np.int64))

    return search


def gies(problem: Problem) -> Run:
    import gies as package

    assert problem.env is not None and problem.targets is not None
    values = [problem.x[problem.env == e] for e in range(len(problem.targets))]
    targets = [np.flatnonzero(row).tolist() for row in problem.targets]
    return lambda: Answer((package.fit_bic(values, targets)[0] != 0).astype(np.int64))


def _quiet(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return function(*arguments, **options)


OBSERVATIONAL: dict[str, Contender] = {
    "empty graph": empty,
    "variance order": variance_order,
    "R² order": r2_order,
    "OrderSearch": order_search,
    "FLOP": flop,
    "BOSS (causal-learn)": boss,
    "GRaSP (causal-learn)": grasp,
    "GES (causal-learn)": ges,
    "PC (causal-learn)": pc,
    "DAGMA": dagma,
    "DirectLiNGAM": direct_lingam,
}
INTERVENTIONAL: dict[str, Contender] = {
    "empty graph": empty,
    "variance order": variance_order,
    "R² order": r2_order,
    "OrderSearch": order_search,
    "OrderSearch, no restarts": lambda problem: order_search(problem, restarts=0),
    "OrderSearch, told the targets": order_search_told,
    "OrderSearch, control only": order_search_control,
    "FLOP, control only": flop,
    "FLOP, pooled": lambda problem: flop(problem, pooled=True),
    "GES, pooled (causal-learn)": lambda problem: ges(problem, pooled=True),
    "GIES, told the targets": gies,
    "UtIgsp": ut_igsp,
    "Igsp, told the targets": igsp,
}

"""Is a nonlinear graph of 20 genes found within a minute of a CPU? Three families, every stage on its own.

``--data`` is a folder of ``NL_ER2_d20_{mlp,gp,gp-add}_s{0,1,...}.npz`` with arrays ``X [n, d]`` and ``B [d, d]`` (``B[i, j] = 1``:
``i → j``); without it, problems of the same kind are drawn here. ``figures``: ``nonlinear_shd`` by family (mean over seeds, a
reversed edge counts once) and ``linear_parity``, the graph and objective of the NOTEARS and DAGMA settings of ``LinearSCM``
against those of the originals on their demos.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LassoLarsIC

sys.path.insert(0, str(Path(__file__).parents[1]))
from contract import finish, options

from pyro_cge.discovery import DAGGNN, AugmentedLagrangian, CentralPath, LinearSCM, NonparametricSCM, OrderSearch

FAMILIES = ("mlp", "gp", "gp-add")
ORIGINALS = Path(__file__).parents[2] / "tests" / "discovery" / "originals.npz"


def problem(family: str, seed: int, d: int = 20, n: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Samples of a random graph with two edges a gene and noise of variance 1, as in Zheng et al. 2020, and the graph."""
    rng = np.random.default_rng([seed, FAMILIES.index(family)])
    order, truth, x = rng.permutation(d), np.zeros((d, d), dtype=int), np.zeros((n, d))
    pairs = [(order[a], order[b]) for a in range(d) for b in range(a + 1, d)]
    for k in rng.choice(len(pairs), 2 * d, replace=False):
        truth[pairs[k]] = 1
    for j in order:
        parents = x[:, truth[:, j] == 1]
        if parents.shape[1]:
            if family == "mlp":
                inner = rng.uniform(0.5, 2, (parents.shape[1], 100)) * rng.choice([-1, 1], (parents.shape[1], 100))
                outer = rng.uniform(0.5, 2, 100) * rng.choice([-1, 1], 100)
                x[:, j] = (1 / (1 + np.exp(-parents @ inner))) @ outer
            elif family == "gp":
                x[:, j] = gaussian_process(parents, rng)
            else:
                x[:, j] = sum(gaussian_process(column[:, None], rng) for column in parents.T)
        x[:, j] += rng.normal(size=n)
    return x, truth


def gaussian_process(inputs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A draw with squared-exponential kernel, variance and length 1."""
    square = (inputs * inputs).sum(1)
    kernel = np.exp(-0.5 * np.maximum(square[:, None] + square - 2 * inputs @ inputs.T, 0))
    return np.linalg.cholesky(kernel + 1e-6 * np.eye(len(inputs))) @ rng.normal(size=len(inputs))


def shd(truth: np.ndarray, found: np.ndarray) -> int:
    """Pairs of genes whose edge differs: missing, extra, or the other way round."""
    different = truth.astype(bool) != found.astype(bool)
    return int((different | different.T)[np.triu_indices(len(truth), 1)].sum())


def variance_order(x: np.ndarray) -> np.ndarray:
    """Sort genes by variance, then choose linear parents among predecessors (Reisach, Seiler, Weichwald 2021)."""
    order, found = np.argsort(x.var(0)), np.zeros((x.shape[1],) * 2, dtype=int)
    for k in range(1, len(order)):
        before = order[:k]
        found[before, order[k]] = LassoLarsIC("bic").fit(x[:, before], x[:, order[k]]).coef_ != 0
    return found


def methods(quick: bool) -> dict[str, Callable[[np.ndarray], Any]]:
    steps = 100 if quick else 300
    cold: dict[str, Any] = {"l1": 0.01, "l2": 0.01, "steps": steps}
    lagrangian = AugmentedLagrangian(rho_max=1e4 if quick else 1e8)
    return {
        "empty graph": lambda x: np.zeros((x.shape[1],) * 2, dtype=int),
        "order by variance": variance_order,
        "OrderSearch (linear)": lambda x: OrderSearch().fit(x).adjacency_,
        "NonparametricSCM": lambda x: NonparametricSCM().fit(x),
        "cold: mlp, trace-exponential": lambda x: NonparametricSCM(
            path=lagrangian, acyclicity="trace-exponential", **cold
        ).fit(x),
        "cold: mlp, log-det": lambda x: NonparametricSCM(path=CentralPath(), **cold).fit(x),
        "cold: Sobolev, log-det": lambda x: NonparametricSCM(path=CentralPath(), head="sobolev", **cold).fit(x),
        "cold: DAGGNN": lambda x: DAGGNN(path=lagrangian, steps=steps).fit(x),
    }


def problems(arguments: Any) -> list[tuple[str, int, np.ndarray, np.ndarray]]:
    chosen = []
    for family in FAMILIES:
        for seed in range(1 if arguments.quick else arguments.seeds):
            if arguments.data is None:
                x, truth = problem(family, seed, *((8, 300) if arguments.quick else (20, 1000)))
            else:
                with np.load(arguments.data / f"NL_ER2_d20_{family}_s{seed}.npz") as arrays:
                    x, truth = arrays["X"].astype(float), arrays["B"]
            chosen.append((family, seed, x, truth))
    return chosen


def parity(quick: bool) -> dict[str, dict[str, float]]:
    """Our answers to the originals' demos, from the Gram matrix of their data (all that their objectives look at)."""
    found = {}
    with np.load(ORIGINALS) as originals:
        for name, scm in (("dagma", LinearSCM.dagma(l1=0.02)), ("notears", LinearSCM.notears(l1=0.1))):
            if quick and name == "notears":
                continue
            gram, n, W = originals[f"{name}_gram"], int(originals[f"{name}_n"]), originals[f"{name}_W"]
            raw = np.random.default_rng(0).normal(size=(n, len(gram)))
            q, _ = np.linalg.qr(raw - raw.mean(0))
            scm.fit(np.sqrt(n) * q @ np.linalg.cholesky(gram).T)
            gap = abs(scm.objective_ - float(originals[f"{name}_objective"]))
            found[name] = {"shd": shd(np.abs(W) >= 0.3, scm.adjacency_), "objective_gap": float(f"{gap:.1e}")}
    return found


def main() -> None:
    parser = options(__doc__ or "", seeds=2)
    parser.add_argument("--data", type=Path, default=None, help="folder of NL_ER2_d20_*.npz (default: drawn here)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    OrderSearch().fit(np.random.default_rng(0).normal(size=(50, 3)))  # compiles
    rows: list[dict[str, Any]] = []
    for family, seed, x, truth in problems(arguments):
        for name, method in methods(arguments.quick).items():
            started = time.process_time()
            answer = method(x)
            seconds = time.process_time() - started
            adjacency = answer if isinstance(answer, np.ndarray) else answer.adjacency_
            assert nx.is_directed_acyclic_graph(nx.from_numpy_array(adjacency, create_using=nx.DiGraph))
            row = {"family": family, "seed": seed, "method": name, "shd": shd(truth, adjacency), "cpu_s": seconds}
            rows.append(row)
            if name == "NonparametricSCM":
                search = shd(truth, answer.search_adjacency_)
                rows.append({**row, "method": "its order search alone", "shd": search, "cpu_s": np.nan})
            print(f"{family:8}{seed:3}  {name:32}{row['shd']:4}  of {truth.sum()} edges  {seconds:6.1f} s", flush=True)
    table = pd.DataFrame(rows)
    means = table.groupby(["method", "family"], sort=False)[["shd", "cpu_s"]].mean().unstack()
    print(f"\n{means.round(1).to_string()}")
    shds = {str(name): part.groupby("family")["shd"].mean().to_dict() for name, part in table.groupby("method")}
    own = table[table["method"] == "NonparametricSCM"]
    figures = {
        "nonlinear_shd": shds["NonparametricSCM"],
        "nonlinear_worst_shd": int(own["shd"].max()),
        "nonlinear_cpu_s": round(float(own["cpu_s"].max()), 1),
        "others_shd": {name: by for name, by in shds.items() if name != "NonparametricSCM"},
        "linear_parity": parity(arguments.quick),
    }
    finish(arguments.out or Path(__file__).parent / "results", figures, arguments)


if __name__ == "__main__":
    main()

"""Graphs among a thousand and ten thousand genes: how much is found, at what cost, and what the weights' posterior is worth.

Random DAGs with two edges a gene (Erdős–Rényi), weights ±U(0.5, 2), standard normal noise, 1,000 cells. "equal variances":
as generated, which identifies the graph; "standardised": every column to variance 1, which leaves its equivalence class.
TPR and FDR count directed edges against the DAG, an undirected edge of the class found on a true edge as right (NOTEARS's
way); "skeleton" ignores directions. The structural Hamming distance counts missing, extra and wrongly directed edges, again
with undirected ones on true edges as right. Baselines: no edges, and the genes in order of their variances with each gene's
best-correlated predecessors. The peer, where its package is installed: FLOP (Wienöbst, Henckel, Weichwald 2025) from
``flopsearch``, without restarts.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from contract import finish, measured, options

from pyro_cge.discovery import EdgeWeights, FactorDAG, LargeOrderSearch, OrderSearch, essential_graph

Edges = set[tuple[int, int]]
Figures = dict[str, Any]
N = 1000


def erdos_renyi(d: int, seed: int, n: int = N, degree: int = 2) -> tuple[np.ndarray, dict[tuple[int, int], float]]:
    """Samples ``[n, d]`` in random order of columns, and the weights by edge."""
    rng = np.random.default_rng(seed)
    order, m = rng.permutation(d), degree * d
    pairs = np.sort(rng.integers(0, d, (3 * m, 2)), axis=1)
    pairs = np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0)
    pairs = pairs[np.sort(rng.permutation(len(pairs))[:m])]
    pairs = pairs[np.argsort(pairs[:, 1], kind="stable")]
    values = rng.choice([-1, 1], m) * rng.uniform(0.5, 2, m)
    x, start = rng.standard_normal((n, d)), np.searchsorted(pairs[:, 1], np.arange(d + 1))
    for j in range(d):
        here = slice(start[j], start[j + 1])
        x[:, j] += x[:, pairs[here, 0]] @ values[here]
    out = np.empty_like(x)
    out[:, order] = x
    return out, {(int(order[a]), int(order[b])): float(w) for (a, b), w in zip(pairs, values, strict=True)}


def compare(found: Edges, true: Edges) -> dict[str, float]:
    """Edges of a DAG or of an essential graph (undirected: both ways) against those of the true DAG."""
    both = {edge for edge in found if edge[::-1] in found}
    directed = found - both
    right = len(directed & true) + len(both & true)
    claimed = len(directed) + len(both) // 2
    reverse = len({edge[::-1] for edge in directed} & true)
    skeleton, truth = {frozenset(edge) for edge in found}, {frozenset(edge) for edge in true}
    shared = len(skeleton & truth)
    return {
        "tpr": right / len(true),
        "fdr": (claimed - right) / max(claimed, 1),
        "skeleton_tpr": shared / len(truth),
        "skeleton_fdr": 1 - shared / max(len(skeleton), 1),
        "shd": len(skeleton - truth) + len(truth - skeleton) + reverse,
    }


def by_variance(x: np.ndarray) -> Edges:
    """As many edges as the truth has on average: two best-correlated predecessors in order of variance."""
    order = np.argsort(x.var(0))
    scaled = ((x - x.mean(0)) / x.std(0))[:, order].astype(np.float32)
    edges: Edges = set()
    for j in range(1, x.shape[1]):
        r = np.abs(scaled[:, :j].T @ scaled[:, j])
        edges |= {(int(order[i]), int(order[j])) for i in np.argsort(r)[-2:]}
    return edges


def edges_of(graph: nx.DiGraph) -> Edges:
    return {(int(a[1:]), int(b[1:])) for a, b in graph.edges}


def search(x: np.ndarray, true: Edges, noise: str, seed: int) -> tuple[dict[str, float], LargeOrderSearch]:
    """What the search finds, its processor seconds, and the largest memory of the process so far."""
    began = time.process_time()
    found = LargeOrderSearch(noise=noise, random_state=seed).fit(x)
    seconds = time.process_time() - began
    edges = edges_of(found.essential_graph_)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return compare(edges, true) | {"cpu_s": seconds, "peak_gb": memory}, found


def between_classes(found: Edges, true: Edges) -> int:
    """Pairs of genes that two essential graphs see differently, the second given by its DAG."""
    return len({frozenset(edge) for edge in found ^ set(essential_graph(nx.DiGraph(list(true))).edges)})


def flop(x: np.ndarray, true: Edges) -> dict[str, float] | None:
    """What one local search of FLOP's own package finds, and its processor seconds; None where it is not installed."""
    try:
        import flopsearch
    except ModuleNotFoundError:
        return None
    began = time.process_time()
    found = np.asarray(flopsearch.flop(x, 2.0, restarts=0))  # 1 a directed edge; 2, both ways, an undirected one
    seconds = time.process_time() - began
    edges = {(int(a), int(b)) for a, b in np.argwhere(found)}
    return compare(edges, true) | {"cpu_s": seconds, "shd_between_classes": between_classes(edges, true)}


def weights(x: np.ndarray, graph: nx.DiGraph, true: dict[tuple[int, int], float], seed: int) -> dict[str, float]:
    """Share of the true edges' weights within 1.96 posterior standard deviations of their mean."""
    began = time.process_time()
    table = EdgeWeights(graph, random_state=seed).fit(x).posterior()
    seconds = time.process_time() - began
    pairs = [(int(a[1:]), int(b[1:])) for a, b in zip(table["cause"], table["effect"], strict=True)]
    known = [k for k, pair in enumerate(pairs) if pair in true]
    error = np.array([table["weight"].iloc[k] - true[pairs[k]] for k in known]) / table["sd"].to_numpy()[known]
    return {
        "coverage_95": round(float((np.abs(error) < 1.96).mean()), 4),
        "edges": len(table),
        "cpu_s": round(seconds, 1),
    }


def planted(d: int, modules: int, seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Standardised samples of a random factor graph, and W: modules read six genes below them, and write their level's."""
    rng = np.random.default_rng(seed)
    roots = int(0.3 * d)
    level = np.sort(np.r_[np.zeros(roots, int), rng.integers(1, modules + 1, d - roots)])
    U, V = np.zeros((d, modules)), np.zeros((modules, d))
    for k in range(modules):
        U[rng.choice(np.flatnonzero(level <= k), 6, replace=False), k] = rng.choice([-1, 1], 6) * rng.uniform(0.5, 1, 6)
    for j in range(roots, d):
        V[level[j] - 1, j] = rng.choice([-1, 1]) * rng.uniform(0.5, 1)
        if rng.random() < 0.3:
            V[rng.integers(level[j]), j] = rng.choice([-1, 1]) * rng.uniform(0.5, 1)
    W, genes, x = 0.9 * U @ V, rng.permutation(d), rng.standard_normal((n, d))
    for j in range(roots, d):
        x[:, j] += x @ W[:, j]
    x, W = x[:, genes], W[np.ix_(genes, genes)]
    return (x - x.mean(0)) / x.std(0), W


def given(x: np.ndarray, graph: np.ndarray, test: np.ndarray) -> float:
    """Mean log density of held-out cells, nats a cell, by least squares for a graph."""
    total = 0.0
    for j in range(x.shape[1]):
        parents = np.flatnonzero(graph[:, j])
        beta = np.linalg.lstsq(x[:, parents], x[:, j], rcond=None)[0]
        s2 = ((x[:, j] - x[:, parents] @ beta) ** 2).mean()
        total += float((-0.5 * np.log(2 * np.pi * s2) - 0.5 * (test[:, j] - test[:, parents] @ beta) ** 2 / s2).mean())
    return total


def factor(d: int, modules: int, seed: int, steps: int, starts: int) -> dict[str, float]:
    """A planted factor graph: held-out log density and average precision of edges, ours and the baselines'."""
    from sklearn.metrics import average_precision_score

    x, W = planted(d, modules, seed, 2 * N)
    x, test = x[:N], x[N:]
    off, empty = ~np.eye(d, dtype=bool), np.zeros((d, d))
    began = time.process_time()
    scm = FactorDAG(modules, steps=steps, starts=starts, random_state=seed).fit(x)
    row: dict[str, float] = {"cpu_s": time.process_time() - began}
    order = (OrderSearch(restarts=0) if d <= 100 else LargeOrderSearch(random_state=seed)).fit(x)
    row |= {
        "held_out": scm.log_likelihood(test),
        "held_out_order_search": given(x, order.adjacency_, test),
        "held_out_truth": given(x, W, test),
        "held_out_empty": given(x, empty, test),
    }
    later = np.triu(np.ones((d, d)), 1)[np.ix_(*[np.argsort(np.argsort(x.var(0)))] * 2)]
    for name, score in {
        "precision": scm.weights_,
        "precision_order_search": order.weights_,
        "precision_by_variance": later * np.corrcoef(x.T),
        "precision_chance": empty,
    }.items():
        row[name] = float(average_precision_score((W != 0)[off], np.abs(score)[off]))
    return row


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(float(np.mean([row[name] for row in rows])), 4) for name in rows[0]}


def shown(title: str, row: dict[str, Any]) -> None:
    print(title.ljust(40) + "  ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)


def thousand(quick: bool, seeds: range) -> Figures:
    """1,000 genes, standardised, beside FLOP and the baselines."""
    d, rows = 300 if quick else 1000, {}
    for seed in seeds:
        x, truth = erdos_renyi(d, seed)
        x = (x - x.mean(0)) / x.std(0)
        row, found = search(x, set(truth), "free", seed)
        row["shd_between_classes"] = between_classes(edges_of(found.essential_graph_), set(truth))
        rows.setdefault("ours", []).append(row)
        if (peer := flop(x, set(truth))) is not None:
            rows.setdefault("FLOP", []).append(peer)
        rows.setdefault("by variance", []).append(compare(by_variance(x), set(truth)))
        rows.setdefault("no edges", []).append(compare(set(), set(truth)))
    for name, runs in rows.items():
        shown(f"{d} genes, standardised, {name}", mean(runs))
    found_by: dict[str, Any] = {name: mean(runs) for name, runs in rows.items()}
    if "FLOP" not in rows:
        found_by["FLOP"] = "flopsearch is not installed"
        print(f"{d} genes, FLOP: flopsearch is not installed")
    return {f"d{d}": found_by, "d1000_shd": found_by["ours"]["shd"]}


def ten_thousand(quick: bool, seeds: range) -> Figures:
    """10,000 genes, raw and standardised, and the posterior of the weights."""
    d, figures = 300 if quick else 10_000, {}
    for noise, title in (("equal", "equal variances"), ("free", "standardised")):
        x, truth = erdos_renyi(d, 0)
        if noise == "free":
            x = (x - x.mean(0)) / x.std(0)
        row, found = search(x, set(truth), noise, 0)
        shown(f"{d} genes, {title}, ours", row)
        baseline = compare(by_variance(x), set(truth))
        shown(f"{d} genes, {title}, by variance", baseline)
        figures[f"big_{noise}"] = {name: round(value, 4) for name, value in row.items()}
        figures[f"big_{noise}_by_variance"] = {name: round(value, 4) for name, value in baseline.items()}
        if noise == "equal":
            posterior = weights(x, found.graph_, truth, 0)
            shown(f"{d} genes, weights", posterior)
            figures["big_weights"] = posterior
    for key, noise in (("big", "equal"), ("big_standardised", "free")):
        figures |= {f"{key}_{name}": figures[f"big_{noise}"][name] for name in ("tpr", "fdr", "cpu_s", "peak_gb")}
    return figures


def factors(quick: bool, seeds: range) -> Figures:
    """Factor graphs of 60 and of 2,000 genes."""
    figures = {"factor_d60": mean([factor(60, 5, seed, 1000 if quick else 2000, 1 if quick else 4) for seed in seeds])}
    shown("60 genes, 5 modules", figures["factor_d60"])
    if not quick:
        figures["factor_d2000"] = mean([factor(2000, 10, 0, 1000, 1)])
        shown("2000 genes, 10 modules", figures["factor_d2000"])
    return figures


SECTIONS: dict[str, Callable[[bool, range], Figures]] = {
    "thousand": thousand,
    "ten_thousand": ten_thousand,
    "factors": factors,
}


def main() -> None:
    parser = options(__doc__ or "", seeds=3)
    parser.add_argument("--sections", default=",".join(SECTIONS), help="some of them; the others keep their figures")
    arguments = parser.parse_args()
    seeds = range(1 if arguments.quick else arguments.seeds)
    kept = Path(__file__).parent / "figures.json"
    whole = arguments.quick or arguments.sections == ",".join(SECTIONS) or not kept.exists()
    figures: Figures = {} if whole else json.loads(kept.read_text())["figures"]
    # Compiled outside of the clock.
    LargeOrderSearch(starts=1, rounds=1).fit(np.random.default_rng(0).normal(size=(60, 6)))
    for name in arguments.sections.split(","):
        figures |= SECTIONS[name](arguments.quick, seeds)
        figures["measured"] = figures.get("measured", {}) | {name: measured()}
    out = arguments.out or Path(__file__).parent / "results"
    finish(out, figures, arguments, list(figures["measured"].values()))


if __name__ == "__main__":
    main()

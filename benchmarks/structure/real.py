"""Real data, and the in-silico networks of DREAM4: files of a folder, described in the README."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import contenders as them
import networkx as nx
import numpy as np
import pandas as pd
from figures import GRAPHS
from problems import Array, Problem
from rows import Rows, attempt
from scipy.optimize import nnls

from pyro_cge.discovery import KnockoutRanking, OrderSearch
from pyro_cge.metrics import edge_aupr, edge_recovery, essential_distance, structural_hamming_distance

SCALES: dict[str, Callable[[Array], Array]] = {
    "log": np.log,
    "arcsinh": lambda x: np.arcsinh(x / 5),
    "raw": lambda x: x,
}


def real(arguments: argparse.Namespace, rows: Rows) -> None:
    """Sachs's proteins, DREAM4's networks, Dixit's knock-outs."""
    if arguments.data is None:
        print("  --data was not given: not run")
        return
    sachs(arguments, rows)
    dream4(arguments, rows)
    dixit(arguments, rows)


def sachs(arguments: argparse.Namespace, rows: Rows) -> None:
    """5,846 cells in a control and five environments, and 853 of the control; each consensus graph is a truth."""
    table = pd.read_csv(arguments.data / "sachs_14conditions.csv.gz")
    edges = pd.read_csv(arguments.data / "sachs_edges.csv")
    genes = list(table.columns[:11])
    truths = {}
    for name in GRAPHS:
        kept = edges[edges[name] == 1]
        graph = nx.DiGraph(zip(kept["cause"], kept["effect"], strict=True))
        truths[name] = nx.to_numpy_array(graph, nodelist=genes).astype(np.int64)
    cells = table[table["experiment"] <= 7]
    names = ["none", *pd.unique(cells["target"].dropna())]
    env = cells["target"].fillna("none").map(names.index).to_numpy()
    targets = np.array([[gene == name for gene in genes] for name in names])
    first = cells["experiment"].to_numpy() == 1
    none = np.zeros((11, 11), dtype=np.int64)
    for scale, transform in SCALES.items():
        x = transform(cells[genes].to_numpy(dtype=float))
        sets: dict[str, tuple[Problem, dict[str, them.Contender]]] = {
            "5,846 cells": (
                Problem("Sachs", x, none, env, targets),
                them.INTERVENTIONAL,
            ),
            "853 cells": (Problem("Sachs, observational", x[first], none), them.OBSERVATIONAL),
        }
        for cells_of, (problem, contenders) in sets.items():
            for who, contender in contenders.items():
                if scale != "log" and not who.startswith("OrderSearch"):
                    continue  # everyone is compared on logarithms; ours on the other scales too

                def job(problem: Problem = problem, contender: them.Contender = contender) -> dict[str, Any]:
                    result = attempt(contender, problem, arguments.limit)
                    answer = result.pop("answer", None)
                    return result if answer is None else result | against(truths, answer, problem)

                rows.add({"data": "sachs", "set": cells_of, "scale": scale, "contender": who, "seed": 0}, job)


def against(truths: dict[str, Any], answer: them.Answer, problem: Problem) -> dict[str, float]:
    row: dict[str, float] = {}
    for name, truth in truths.items():
        counts = edge_recovery(answer.adjacency, truth)
        row["edges"] = counts.n_edges
        row[f"state {name}"] = structural_hamming_distance(answer.adjacency, truth)
        row[f"correct {name}"] = counts.correct
        row[f"skeleton_f1 {name}"] = counts.skeleton_f1
        if nx.is_directed_acyclic_graph(nx.from_numpy_array(truth, create_using=nx.DiGraph)):
            row[f"essential {name}"] = essential_distance(answer.adjacency, truth, problem.target_sets)
    return row


def dream4(arguments: argparse.Namespace, rows: Rows) -> None:
    """Average precision of ranked edges; knock-outs, knock-downs and wild types, one profile each."""
    for size in (10, 100):
        for number in (1, 2, 3):

            def job(size: int = size, number: int = number) -> dict[str, Any]:
                with np.load(arguments.data / f"dream4_insilico_size{size}_{number}.npz") as z:
                    truth = (z["adjacency"] != 0).astype(np.int64)
                    kinds = ("knockouts", "knockdowns", "wildtype", "timeseries")
                    out, down, wild, series = (z[kind].astype(float) for kind in kinds)
                starts = series[series[:, 0] == 0, 1:]  # each series starts from an unperturbed steady state
                unperturbed = np.vstack([wild, starts])
                genes, none = [*range(size)], [None] * len(unperturbed)
                both = KnockoutRanking().fit(np.vstack([out, down, unperturbed]), [*genes, *genes, *none])
                one = KnockoutRanking().fit(np.vstack([out, wild]), [*genes, *none[: len(wild)]])
                steady = np.vstack([out, down, unperturbed])
                scores = {
                    "ours": both.scores_,
                    "ours, knock-outs only": one.scores_,
                    "total effects (z), both": both.total_,
                    "knock-out z-score": (out - out.mean(0)) / out.std(0),
                    "knock-out z-score, against the wild type": (out - wild[0]) / out.std(0),
                    "correlation": np.corrcoef(steady.T),
                    "OrderSearch, as if observed": OrderSearch().fit(steady).weights_
                    * steady.std(0)[:, None]
                    / steady.std(0),
                    "at random": np.ones((size, size)),
                }
                return {name: edge_aupr(score, truth) for name, score in scores.items()}

            rows.add({"data": "dream4", "size": size, "network": number, "seed": 0}, job)


def dixit(arguments: argparse.Namespace, rows: Rows) -> None:
    """What does knocking out a factor do to the others, for factors no profile of which was seen knocked out?

    Shifts of the means are in standard deviations of the control. A knock-out hardly lowers its own transcript, so that the
    step is the mean shift of the other knock-outs on their own genes. *Weighed* gives each guess the weight that predicts
    the other knock-outs best, each from the rest.
    """
    with np.load(arguments.data / "dixit_bmdc24.npz") as z:
        x, label, genes = z["X"].astype(float), z["label"], list(map(str, z["gene"]))
    reference = x[label == "control"]
    x = (x - reference.mean(0)) / reference.std(0)
    d, knocked = len(genes), [str(name) for name in pd.unique(label) if name != "control"]
    shift = {name: x[label == name].mean(0) for name in knocked}
    kept: dict[frozenset[str], Array] = {}

    def weights(rest: Sequence[str]) -> Array:
        """Of the graph found in the control and these knock-outs."""
        key = frozenset(rest)
        if key not in kept:
            seen = np.isin(label, ["control", *rest])
            kept[key] = OrderSearch().fit(x[seen], label[seen], control="control").weights_
        return kept[key]

    def guesses(name: str, rest: Sequence[str]) -> dict[str, Array]:
        """Shifts of the other genes when ``name`` is knocked out, from the control and the knock-outs ``rest``."""
        j, others = genes.index(name), np.arange(d) != genes.index(name)
        step = np.mean([shift[other][genes.index(other)] for other in rest])
        effects = {
            "no effect": np.zeros(d),
            "mean of the other knock-outs": np.mean([shift[other] for other in rest], axis=0),
            "graph": step * np.linalg.inv(np.eye(d) - weights(rest))[j],
            "graph, control only": step * np.linalg.inv(np.eye(d) - weights([]))[j],
        }
        return {kind: effect[others] for kind, effect in effects.items()}

    def truth(name: str) -> Array:
        return shift[name][np.arange(d) != genes.index(name)]

    combined = {"mean, weighed": ["mean of the other knock-outs"]}
    combined["graph and mean, weighed"] = [*combined["mean, weighed"], "graph"]
    for name in knocked:

        def job(name: str = name) -> dict[str, Any]:
            rest = [other for other in knocked if other != name]
            effects = guesses(name, rest)
            inner = {other: guesses(other, [third for third in rest if third != other]) for other in rest}
            for kind, parts in combined.items():
                design = np.column_stack([np.concatenate([inner[other][part] for other in rest]) for part in parts])
                share = nnls(design, np.concatenate([truth(other) for other in rest]))[0]
                effects[kind] = np.column_stack([effects[part] for part in parts]) @ share
            cells = np.random.default_rng(0).permutation(np.flatnonzero(label == name))
            others = np.arange(d) != genes.index(name)
            halves = [x[part][:, others].mean(0) for part in np.array_split(cells, 2)]
            row: dict[str, Any] = {"r of halves": np.corrcoef(*halves)[0, 1]}
            for kind, guess in effects.items():
                row[f"r {kind}"] = np.corrcoef(guess, truth(name))[0, 1] if guess.std() > 1e-12 else 0.0
                row[f"mse {kind}"] = float(((guess - truth(name)) ** 2).mean())
            return row

        rows.add({"data": "dixit", "knock-out": name, "seed": 0}, job)

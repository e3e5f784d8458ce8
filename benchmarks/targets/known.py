"""Problems whose answer is known: genes that drive a disease through a causal network, among genes that do not."""

from __future__ import annotations

import time
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd

from pyro_cge.imputation import disease_genes, identify_targets, protein_network

FIRST = 100  # seed; the methods were looked at on those below
GENES, CELLS, DRIVERS, DRUGGABLE, TERMINALS = 120, 250, 4, 30, 25


def problem(seed: int) -> dict[str, Any]:
    """Interactions, a third of them causal along a hidden order; a disease that switches on four drug targets; healthy cells."""
    rng = np.random.default_rng(seed)
    names = [f"G{j}" for j in range(GENES)]
    network = nx.barabasi_albert_graph(GENES, 3, seed=seed)
    place = rng.permutation(GENES)
    W = np.zeros((GENES, GENES))
    for a, b in network.edges:
        if rng.random() < 1 / 3:
            i, j = (a, b) if place[a] < place[b] else (b, a)
            W[i, j] = rng.choice([-1, 1]) * rng.uniform(0.5, 1.0)
    total = np.linalg.inv(np.eye(GENES) - W)
    reach = (np.abs(total) > 1e-9).sum(1)
    drivers = rng.choice(np.flatnonzero(reach >= np.quantile(reach, 0.6)), DRIVERS, replace=False)
    shift = np.zeros(GENES)
    shift[drivers] = rng.choice([-1, 1], DRIVERS) * 3.0
    changes = shift @ total
    changes[drivers] = 0.0  # they are switched on as proteins: their own expression does not show it
    changes += 0.3 * rng.standard_normal(GENES)
    others = rng.choice(np.setdiff1d(np.arange(GENES), drivers), DRUGGABLE - DRIVERS, replace=False)
    druggable = [names[j] for j in rng.permutation(np.concatenate([drivers, others]))]
    edges = pd.DataFrame(
        [(names[a], names[b], rng.uniform(0.2, 0.9)) for a, b in network.edges], columns=["a", "b", "confidence"]
    )
    return {
        "genes": disease_genes(pd.Series(changes, index=names), n=TERMINALS),
        "network": protein_network(edges, confidence="confidence", hub_penalty=0),
        "cells": pd.DataFrame(rng.standard_normal((CELLS, GENES)) @ total, columns=names),
        "acts": pd.DataFrame({"gene": druggable, "drug": [f"drug {gene}" for gene in druggable]}),
        "drivers": [names[j] for j in drivers],
    }


def auc(score: pd.Series, positive: list[str]) -> float:
    """Probability that a driver scores above another target, ties half."""
    yes = score.index.isin(positive)
    if not yes.any() or yes.all():
        return float("nan")
    a, b = score.to_numpy()[yes][:, None], score.to_numpy()[~yes]
    return float(((a > b) + 0.5 * (a == b)).mean())


def rows(seeds: int) -> pd.DataFrame:
    """A row a seed: AUC of the drivers among all 30 targets; those that are not in the graphs come last."""
    found = []
    for seed in range(FIRST, FIRST + seeds):
        p = problem(seed)
        targets, row = list(p["acts"]["gene"]), {}
        started = time.process_time()
        for name, settings in {
            "tree, downstream": {"scope": "tree"},
            "network, downstream": {"scope": "network"},
            "network, excess": {"scope": "network", "by": "excess"},
        }.items():
            search = identify_targets(
                p["genes"], p["network"], p["cells"], p["acts"], draws=60, random_state=seed, **settings
            )
            row[name] = auc(-search.targets["rank"].reindex(targets, fill_value=1e6), p["drivers"])
        row["cpu_s"] = (time.process_time() - started) / 3
        row["degree"] = auc(pd.Series(dict(p["network"].degree(targets))), p["drivers"])
        row["own change"] = auc(p["genes"].abs().reindex(targets, fill_value=0.0), p["drivers"])
        found.append(row)
    return pd.DataFrame(found)

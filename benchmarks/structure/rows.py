"""Every contender on every problem: each in a process of its own with a limit, each result kept as it comes."""

from __future__ import annotations

import json
import multiprocessing
import random
import resource
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from contenders import Answer, Contender
from problems import Problem

from pyro_cge.metrics import edge_recovery, essential_distance, structural_hamming_distance, target_precision_recall

LEFT_OUT = "not installed"
TOO_SLOW = "out of time"


def score(problem: Problem, answer: Answer) -> dict[str, float]:
    """Distances to the true graph and to its equivalence class, rates, and targets where the method names them."""
    found = edge_recovery(answer.adjacency, problem.adjacency)
    row: dict[str, float] = {
        "shd": found.shd,  # an undirected edge on a true one is right
        "state": structural_hamming_distance(answer.adjacency, problem.adjacency),
        "essential": essential_distance(answer.adjacency, problem.adjacency, problem.target_sets),
        "tpr": found.recall,
        "fdr": found.fdr,
        "skeleton_f1": found.skeleton_f1,
        "edges": found.n_edges,
        "undirected": found.undirected,
    }
    if answer.targets is not None and problem.targets is not None:
        row["target_precision"], row["target_recall"] = target_precision_recall(answer.targets, problem.targets)
    return row


def _work(pipe: Connection, contender: Contender, problem: Problem, limit: float) -> None:
    warnings.simplefilter("ignore")  # others' deprecations
    random.seed(0)  # some peers start at random and take no seed
    np.random.seed(0)
    used = time.process_time()
    try:
        run = contender(problem)
        soft = int(time.process_time() - used + limit) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (soft, soft))
        started = time.process_time()
        answer = run()
        pipe.send({"cpu_s": time.process_time() - started, "answer": answer})
    except ModuleNotFoundError as error:
        pipe.send({"failed": f"{LEFT_OUT} ({error.name})"})
    except Exception as error:  # a peer that fails is a row of the table
        pipe.send({"failed": f"{type(error).__name__}: {error}"[:200]})


def attempt(contender: Contender, problem: Problem, limit: float) -> dict[str, Any]:
    """The contender's answer and its processor seconds, or why there is none."""
    context = multiprocessing.get_context("fork")  # compiled code comes along
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, contender, problem, limit))
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        result = {"failed": f"{TOO_SLOW} ({limit:.0f} s)"}
    process.join()
    return result


class Rows:
    """Rows of one section, a file each; with ``resume`` those that are there are not done again."""

    def __init__(self, folder: Path, resume: bool) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        if not resume:
            for path in folder.glob("*.json"):
                path.unlink()

    def add(self, key: Mapping[str, Any], job: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        name = "__".join(str(value) for value in key.values())
        path = self.folder / ("".join(c if c.isalnum() or c in "_-." else "-" for c in name) + ".json")
        if not path.exists():
            row = {**key, **job()}
            path.write_text(json.dumps(row, default=float) + "\n")
            shown = {
                k: v for k, v in row.items() if k in ("shd", "essential", "cpu_s", "aupr", "failed", "correlation")
            }
            text = "  ".join(f"{k} {v:.3g}" if isinstance(v, float | int) else f"{v}" for k, v in shown.items())
            print(f"  {name:<70} {text}", flush=True)
        return json.loads(path.read_text())

    def table(self) -> pd.DataFrame:
        return pd.DataFrame([json.loads(path.read_text()) for path in sorted(self.folder.glob("*.json"))])


def compare(
    rows: Rows, contenders: Mapping[str, Contender], problems: Iterable[tuple[str, Problem]], limit: float
) -> pd.DataFrame:
    """Each contender on each problem, given as ``(group, problem)``, small problems of a group first.

    One that ran out of time is not tried on a problem with as many genes or more.
    """
    slow: dict[str, float] = {}
    for group, problem in problems:
        for name, contender in contenders.items():
            if problem.d >= slow.get(name, np.inf):
                continue

            def job(problem: Problem = problem, contender: Contender = contender) -> dict[str, Any]:
                result = attempt(contender, problem, limit)
                answer = result.pop("answer", None)
                return result | (score(problem, answer) if answer is not None else {})

            key = {"group": group, "problem": problem.name, "d": problem.d, "contender": name}
            row = rows.add(key, job)
            failed = str(row.get("failed", ""))
            if failed.startswith(LEFT_OUT):
                slow[name] = 0
            elif failed.startswith(TOO_SLOW):
                slow[name] = problem.d
    return rows.table()


def summary(table: pd.DataFrame, columns: Iterable[str]) -> str:
    """Means by group and contender, the number of problems beside them; those without an answer are named."""
    if "failed" in table:
        for reason, part in table[table["failed"].notna()].groupby("failed"):
            print(f"  without an answer, {reason}: " + ", ".join(sorted(set(part["contender"]))))
        table = table[table["failed"].isna()]
    shown = [c for c in columns if c in table]
    by = table.groupby(["group", "contender"], sort=False)
    means = by[shown].mean(numeric_only=True)
    means.insert(0, "n", by.size())
    return means.round(3).to_string()

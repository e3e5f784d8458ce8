"""Every contender on every problem: each in a process of its own with a limit, each row kept as it comes."""

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
from contract import measured
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
        result = {"failed": TOO_SLOW}
    process.join()
    return result


class Rows:
    """Rows of one section in a file of lines of JSON, each with the limit, commit and hardware it was measured under.

    With ``resume`` those that are there are not done again, but for those that ran out of a smaller limit.
    """

    def __init__(self, path: Path, limit: float, resume: bool) -> None:
        self.path, self.limit = path, limit
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = read(path) if resume else []

    def add(self, key: Mapping[str, Any], job: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        there = [k for k, row in enumerate(self.rows) if all(row.get(name) == value for name, value in key.items())]
        kept = self.rows[there[0]] if there else None
        if kept is not None and not (kept.get("failed") == TOO_SLOW and kept["limit"] < self.limit):
            return kept
        row = {**key, **job(), "limit": self.limit, **measured()}
        row = json.loads(json.dumps(row, default=float), parse_float=_rounded)
        self.rows = [other for other in self.rows if other is not kept] + [row]
        self.path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows))
        shown = {k: row[k] for k in ("shd", "essential", "cpu_s", "failed") if k in row}
        text = "  ".join(f"{k} {v:.3g}" if isinstance(v, float | int) else f"{v}" for k, v in shown.items())
        print(f"  {'  '.join(map(str, key.values())):<70} {text}", flush=True)
        return row

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows)


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of a file, none where there is none."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _rounded(number: str) -> float:
    return float(f"{float(number):.6g}")


def compare(
    rows: Rows, contenders: Mapping[str, Contender], problems: Iterable[tuple[str, Problem]], limit: float
) -> pd.DataFrame:
    """Each contender on each problem, given as ``(group, problem)``, small problems of a group first.

    One that ran out of time is not tried on a problem of the same law with as many genes or more.
    """
    slow: dict[tuple[str, str], float] = {}
    for group, problem in problems:
        for name, contender in contenders.items():
            if problem.d >= slow.get((name, problem.law), np.inf):
                continue

            def job(problem: Problem = problem, contender: Contender = contender) -> dict[str, Any]:
                result = attempt(contender, problem, limit)
                answer = result.pop("answer", None)
                return result | (score(problem, answer) if answer is not None else {})

            key = {"group": group, "problem": problem.name, "d": problem.d, "contender": name, "seed": problem.seed}
            row = rows.add(key, job)
            failed = str(row.get("failed", ""))
            if failed.startswith(LEFT_OUT):
                slow[name, problem.law] = 0
            elif failed == TOO_SLOW:
                slow[name, problem.law] = problem.d
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

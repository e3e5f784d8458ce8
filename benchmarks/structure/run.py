"""Which graph, and which targets? Order search beside peers' own packages, on raw and on standardised data.

Sections: ``unknown`` (interventions with unknown targets), ``misspecified`` (one assumption wrong at a time), ``observational``
(raw and standardised), ``rescaling``, ``calibration`` (of edge probabilities), ``real`` (Sachs, DREAM4, Dixit). With
``--data`` the reference problems of that folder are run as well as fresh ones; without it, fresh ones only. What is measured
goes to ``rows/``, a file a section; ``figures.json`` and the tables of the README are made from those (``--derive``: without
measuring anything).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # processor seconds are those of one thread

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import contenders as them
import figures
import problems as make
import tables
from contract import finish, options
from real import real
from rows import Rows, attempt, compare, summary

from pyro_cge.discovery import OrderSearch
from pyro_cge.metrics import structural_hamming_distance

HERE = Path(__file__).parent
COLUMNS = ("shd", "essential", "tpr", "fdr", "skeleton_f1", "target_precision", "target_recall", "cpu_s")
FRESH = 100  # first seed of the fresh problems
Section = Callable[[argparse.Namespace, Rows], None]


def reference(arguments: argparse.Namespace, pattern: str) -> list[make.Problem]:
    """Reference problems whose file name fits, small ones first."""
    if arguments.data is None:
        return []
    found = [make.read(path) for path in sorted((arguments.data / "reference").glob(pattern))]
    return sorted(found, key=lambda problem: problem.d)


def asked_for(arguments: argparse.Namespace, everyone: dict[str, them.Contender]) -> dict[str, them.Contender]:
    parts = [part for part in arguments.contenders.split(",") if part]
    return {name: one for name, one in everyone.items() if not parts or any(part in name for part in parts)}


def unknown(arguments: argparse.Namespace, rows: Rows) -> None:
    """Interventions with unknown targets."""

    def problems() -> Iterator[tuple[str, make.Problem]]:
        kinds = ("ER2",) if arguments.quick else ("ER2", "SF4", "ER4")
        for problem in reference(arguments, "INT_*_d20_*"):
            _, kind, d, style, _ = problem.name.split("_")
            yield f"{kind} {d} {style}", problem
        d = 10 if arguments.quick else 20
        for kind in kinds:
            for style in ("soft", "hard"):
                for seed in range(arguments.seeds):
                    yield f"{kind} d{d} {style}, fresh", make.interventional(kind, d, FRESH + seed, style=style)
        for problem in reference(arguments, "INT_*_d50_*"):
            yield "ER2 d50 soft", problem
        if not arguments.quick:
            for seed in range(min(2, arguments.seeds)):
                yield "ER2 d50 soft, fresh", make.interventional("ER2", 50, FRESH + seed, environments=25)

    table = compare(rows, asked_for(arguments, them.INTERVENTIONAL), problems(), arguments.limit)
    print(summary(table, COLUMNS))


def misspecified(arguments: argparse.Namespace, rows: Rows) -> None:
    """One assumption wrong at a time."""
    kinds, d = (("ER2",), 10) if arguments.quick else (("ER2", "SF4", "ER4"), 20)
    names = list(make.MISSPECIFIED)[:2] if arguments.quick else list(make.MISSPECIFIED)

    def problems() -> Iterator[tuple[str, make.Problem]]:
        for seed in range(min(2, arguments.seeds)):
            for what in names:
                for kind in kinds:
                    yield what, make.misspecified(what, kind, d, FRESH + seed)

    left_out = ("R² order", "OrderSearch, control only", "FLOP, control only", "GES, pooled (causal-learn)")
    who = {name: one for name, one in them.INTERVENTIONAL.items() if name not in left_out}
    table = compare(rows, asked_for(arguments, who), problems(), arguments.limit)
    print(summary(table, COLUMNS))


def observational(arguments: argparse.Namespace, rows: Rows) -> None:
    """One environment, raw and standardised."""
    sizes = (20,) if arguments.quick else (20, 50, 100, 200)
    kinds = ("ER2",) if arguments.quick else ("ER2", "ER4", "SF4")

    def problems() -> Iterator[tuple[str, make.Problem]]:
        for d in sizes:
            for kind in kinds:
                for scale in ("std", "ev"):
                    found = reference(arguments, f"{kind}_d{d}_n1000_{scale}_*")
                    fresh = make.observational(kind, d, 1000, FRESH, standardised=scale == "std")
                    for problem in found or [fresh]:
                        yield f"{kind} d{d} {'standardised' if scale == 'std' else 'raw'}", problem
        if arguments.quick:
            yield "ER2 d100 standardised", make.observational("ER2", 100, 1000, FRESH, standardised=True)

    who = dict(them.OBSERVATIONAL)
    if arguments.quick:
        who = {name: who[name] for name in ("empty graph", "variance order", "R² order", "OrderSearch", "FLOP")}
    table = compare(rows, asked_for(arguments, who), problems(), arguments.limit)
    print(summary(table, COLUMNS))


def rescaling(arguments: argparse.Namespace, rows: Rows) -> None:
    """Columns multiplied by 10 to the power U(−2, 2): pairs whose state in the essential graph changes."""
    sizes = (20,) if arguments.quick else (20, 50, 100)
    for d in sizes:
        for kind in ("ER2", "ER4"):

            def job(d: int = d, kind: str = kind) -> dict[str, float]:
                problem = make.observational(kind, d, 1000, FRESH, standardised=False)
                scale = 10 ** np.random.default_rng(d).uniform(-2, 2, d)
                found = [OrderSearch().fit(one.x) for one in (problem, problem.rescaled(scale))]
                a, b = (one.essential_graph_ for one in found)
                W, V = (one.weights_ for one in found)
                same = ((W != 0) == (V != 0)).all(0) & (W != 0)  # genes with the same parents in both DAGs
                units = np.abs(V * scale[:, None] / scale / np.where(W != 0, W, 1) - 1)[same]
                return {"distance": structural_hamming_distance(a, b), "weights_off": float(units.max(initial=0.0))}

            rows.add({"kind": kind, "d": d, "seed": FRESH}, job)
    print(rows.table().to_string(index=False))


def calibration(arguments: argparse.Namespace, rows: Rows) -> None:
    """Edge probabilities of random graphs of ten genes: is a share p of those given p true?"""
    from pyro_cge.discovery import OrderDAG

    # Weak edges, few cells: a posterior that is sure of everything says nothing about calibration.
    laws: dict[str, tuple[int, Callable[[np.random.Generator], Any]]] = {
        "weights N(0, 0.7²), 100 cells": (100, lambda rng: rng.normal(0, 0.7, (10, 10))),
        "weights ±U(0.25, 1), 300 cells": (
            300,
            lambda rng: rng.uniform(0.25, 1, (10, 10)) * rng.choice([-1, 1], (10, 10)),
        ),
    }
    graphs = 4 if arguments.quick else 50
    for law, (n, draw) in laws.items():
        for seed in range(graphs):

            def job(seed: int = seed, n: int = n, draw: Callable[[np.random.Generator], Any] = draw) -> dict[str, Any]:
                rng = np.random.default_rng(FRESH + seed)
                dag = make.random_dag("ER1" if seed % 2 else "ER2", 10, rng)
                inverse = np.linalg.inv(np.eye(10) - dag * draw(rng))
                x = rng.standard_normal((n, 10)) * rng.uniform(0.7, 1.5, 10) @ inverse
                problem = make.Problem(f"seed {seed}", x, dag).standardised()

                def fit(problem: make.Problem) -> Callable[[], them.Answer]:
                    return lambda: them.Answer(OrderDAG().fit(problem.x).edge_probabilities_)  # type: ignore[arg-type]

                result = attempt(fit, problem, 10 * arguments.limit)
                answer = result.pop("answer")
                edges = [[int(i), int(j)] for i, j in np.argwhere(dag)]
                return result | {"edges": edges, "p": np.round(answer.adjacency, 4).tolist()}

            rows.add({"law": law, "seed": FRESH + seed}, job)
    for law, one in figures.calibrations(rows.table()).items():
        print(f"{law}\n{figures.bins(one).round(3).to_string(index=False)}")


SECTIONS: dict[str, Section] = {
    "unknown": unknown,
    "misspecified": misspecified,
    "observational": observational,
    "rescaling": rescaling,
    "calibration": calibration,
    "real": real,
}


def warm_up() -> None:
    """Compile before anything is timed."""
    problem = make.interventional("ER2", 6, 0, environments=2, cells=30, controls=60)
    OrderSearch(restarts=1).fit(problem.x, problem.env)
    OrderSearch(restarts=1).fit(problem.control)


def main() -> None:
    parser = options(__doc__ or "", seeds=3)
    parser.add_argument(
        "--data", type=Path, default=None, help="folder of reference problems and real data, see README"
    )
    parser.add_argument("--sections", default=",".join(SECTIONS), help="some of them, comma-separated")
    parser.add_argument("--contenders", default="", help="only those whose names contain one of these, comma-separated")
    parser.add_argument("--limit", type=float, default=100.0, help="processor seconds a contender has for a problem")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    parser.add_argument("--derive", action="store_true", help="figures and tables of the rows there; measures nothing")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.limit = 1, min(arguments.limit, 5.0)
    chosen = arguments.sections.split(",")
    if strange := set(chosen) - set(SECTIONS):
        parser.error(f"no sections {sorted(strange)}; there are {', '.join(SECTIONS)}")
    place = arguments.out or (
        HERE / "results" if arguments.quick else HERE
    )  # a whole run's rows are kept with the code
    if not arguments.derive:
        warm_up()
        for name in chosen:
            print(f"\n{name}: {(SECTIONS[name].__doc__ or '').splitlines()[0]}", flush=True)
            SECTIONS[name](arguments, Rows(place / "rows" / f"{name}.jsonl", arguments.limit, arguments.resume))
    measured = figures.read(place / "rows")
    rows = [row for table in measured.values() for row in table.to_dict("records")]
    told = argparse.Namespace(quick=arguments.quick, out=arguments.out, rows=len(rows), seeds=figures.seeds(measured))
    finish(arguments.out or HERE / "results", figures.derive(measured), told, rows)
    if place == HERE:
        readme = HERE / "README.md"
        readme.write_text(tables.filled(readme.read_text(), measured))


if __name__ == "__main__":
    main()

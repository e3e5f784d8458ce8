"""Which trees over known causes are found, from how many environments and profiles (paper, section 4.2)?

A random growing network, its causes renumbered at random; every environment shifts the noise of one cause. Tests of each
cause in each environment against the control give the changes, :func:`~pyro_cge.discovery.trees_of` the trees that explain
them. An answer is *right* (the one tree left is the true one), *open* (several are left), *refused* (none is) or *wrong*.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rows import Job, collect

import pyro_cge as cge
from pyro_cge.discovery import changed_causes, trees_of
from pyro_cge.errors import DataError
from pyro_cge.metrics import match_latents, mcc
from pyro_cge.models.decoders import MechanismDecoder
from pyro_cge.scm import graphs
from pyro_cge.scm.mechanisms import LinearMechanism
from pyro_cge.scm.shifts import NoiseShift

ALPHA = 0.05
ANSWERS = ("right", "open", "refused", "wrong")
PROFILES = (10, 20, 50, 100, 200, 500)
ENVIRONMENTS = (0.5, 1, 2, 3, 5, 8)  # a cause
SIZES = (5, 10, 20)
FITTED = {"epochs": 150, "batch_size": 128, "validation": None, "patience": None, "progress": False}


@dataclass(frozen=True)
class Case:
    """A truth and a design. ``shift`` is the size of every shift in sd of the noise; None draws them from N(0, 5)."""

    d: int = 10
    per_cause: float = 1.0
    profiles: int = 200
    shift: float | None = 3.0
    cover: bool = True
    mechanism: str = "noisy linear"
    second_parents: int = 0
    targets: int = 1
    missing: int = 0
    strength: float = 1.0
    kind: str = "shift"
    genes: int = 1

    def truth(self, seed: int) -> cge.simulate.GroundTruth:
        rng = np.random.default_rng([seed, 1])
        names = rng.permutation(self.d).tolist()
        graph = nx.relabel_nodes(graphs.growing_network(self.d, rng), dict(enumerate(names)))
        for child in names[self.d - self.second_parents :]:
            others = [p for p in names[: names.index(child)] if not graph.has_edge(p, child)]
            graph.add_edge(int(rng.choice(others)), child)
        truth = cge.simulate.simulator(
            graph,
            n_latents=self.d,
            n_genes=self.genes,
            mechanism=self.mechanism,
            attach=0.3,
            gene_noise=0.3,
            environments=self.design(rng),
            seed=seed,
        )
        if self.strength != 1.0:
            with torch.no_grad():
                for layer in truth.scm.parameters():
                    layer.mul_(self.strength)
        return truth

    def design(self, rng: np.random.Generator) -> cge.simulate.Environments:
        count = round(self.per_cause * self.d)
        order = rng.permutation(self.d)
        visits = order[np.arange(count) % self.d] if self.cover else rng.integers(self.d, size=count)
        visits = visits[~np.isin(visits, order[: self.missing])]
        change = np.zeros((len(visits) + 1, self.d), dtype=np.float32)
        size = rng.choice([-1.0, 1.0], len(visits)) * (self.shift or 0.0)
        change[np.arange(len(visits)) + 1, visits] = rng.normal(0, 5**0.5, len(visits)) if self.shift is None else size
        for row, first in zip(change[1:], visits, strict=True):
            row[rng.permutation(np.delete(np.arange(self.d), first))[: self.targets - 1]] = self.shift or 0.0
        table, none = torch.from_numpy(change), torch.zeros(change.shape)
        law = NoiseShift(table, none) if self.kind == "shift" else NoiseShift(none, (table.abs().log1p()))
        names = ["control", *(f"env {e}" for e in range(len(visits)))]
        return cge.simulate.Environments(names, law, control=(0,))


WRONG: dict[str, Case] = {
    "none: a tree, one target, all visited": Case(),
    "scale (× 4) instead of shift": Case(kind="scale"),
    "neural mechanisms": Case(mechanism="neural"),
    "one cause never intervened on": Case(missing=1),
    "effects of 0.3 instead of 1": Case(strength=0.3),
    "effects of 0.1 instead of 1": Case(strength=0.1),
    "one cause with a second parent": Case(second_parents=1),
    "three causes with a second parent": Case(second_parents=3),
    "two targets an environment": Case(targets=2),
}


def answer(changed: NDArray[Any], truth: nx.DiGraph) -> dict[str, Any]:
    """One of ``ANSWERS``, and how many edges were named and how many of them are true."""
    try:
        found = trees_of(changed)
    except DataError:
        return {"answer": "refused", "edges": 0, "true_edges": 0}
    shared = set(found.graph.edges)
    right = {(int(i), int(j)) for i, j in truth.edges}
    verdict = "open" if not found.identified else "right" if shared == right else "wrong"
    return {"answer": verdict, "edges": len(shared), "true_edges": len(shared & right)}


def chow_liu(control: NDArray[Any], changed: NDArray[Any]) -> nx.DiGraph:
    """The baseline: the tree of largest correlations in the control, rooted where fewest environments change anything."""
    weight = np.abs(np.corrcoef(control.T))
    tree = nx.maximum_spanning_tree(nx.from_numpy_array(weight - np.diag(np.diag(weight))))
    return nx.bfs_tree(tree, int(np.argmin(changed.sum(0))))


def known(case: Case, seed: int) -> list[dict[str, Any]]:
    """Causes known: from tests, from the true changes (what the design allows at best), and the baseline."""
    truth = case.truth(seed)
    data = truth.sample(case.profiles, seed=seed)
    assert data.truth is not None
    causes, env = data.truth.c.numpy(), data.env.numpy()
    changed = changed_causes(causes, env, data.control, alpha=ALPHA)
    reach = nx.to_numpy_array(nx.transitive_closure(data.truth.graph, reflexive=True), nodelist=range(case.d)) > 0
    exact = data.truth.targets.numpy().astype(float) @ reach > 0
    baseline = set(chow_liu(causes[env == 0], changed).edges) == set(data.truth.graph.edges)
    return [
        {"method": "tests", **answer(changed, data.truth.graph)},
        {"method": "true changes", **answer(exact, data.truth.graph)},
        {"method": "Chow-Liu", "answer": "right" if baseline else "wrong"},
    ]


def unknown(seed: int, d: int, profiles: int, epochs: int) -> list[dict[str, Any]]:
    """Causes estimated by a fitted model: after the rotation step, and with a decoder of known support."""
    case = Case(d=d, profiles=profiles, genes=10 * d, per_cause=2.0)
    truth = case.truth(seed)
    data = truth.sample(profiles, seed=seed)
    assert data.truth is not None
    settings: dict[str, Any] = {**FITTED, "epochs": epochs, "seed": seed, "schedule": "one_cycle"}
    with cge.isolated(seed):
        free = cge.CellModel(cge.DensePrior(data, d), None, cge.LinearDecoder(d, data.g))
        mask = truth.decoder.mechanism.mask
        anchored = cge.CellModel(
            cge.DensePrior(data, d), None, MechanismDecoder(LinearMechanism(mask, weights="small"))
        )
        guides = [cge.AmortizedGuide(model, None, hidden=()) for model in (free, anchored)]
    plain = cge.fit(free, guides[0], data, lr=4e-3, **settings)
    known_support = cge.fit(anchored, guides[1], data, lr=1e-2, standardize=False, **settings)
    estimates = {
        "true causes": data.truth.c,
        "dense fit": torch.tensor(plain.posterior(data).latents().to_numpy()),
        "rotated fit": torch.tensor(cge.rotate(plain, data).posterior(data).latents().to_numpy()),
        "decoder of known support": torch.tensor(known_support.posterior(data).latents().to_numpy()),
    }
    records = []
    for method, values in estimates.items():
        order = np.arange(d)  # with its support known, a latent has a name
        scores = {"c_mcc": mcc(values, data.truth.c), "z_mcc": mcc(values, data.truth.z)}
        if "fit" in method:
            order = match_latents(values, data.truth.z).order
        changed = changed_causes(values, data.env, data.control, alpha=ALPHA)
        moved = float(changed[1:].sum(1).mean())
        records.append({"method": method, **answer(changed[:, order], data.truth.graph), **scores, "moved": moved})
    return records


def jobs(seeds: int, fits: int, quick: bool) -> Iterator[Job]:
    """One job a setting, all seeds in it: they take milliseconds each."""
    sizes, profiles, environments = (SIZES[:1], (20, 100), (1, 3)) if quick else (SIZES, PROFILES, ENVIRONMENTS)

    def many(case: Case) -> list[dict[str, Any]]:
        return [{"seed": seed, **record} for seed in range(seeds) for record in known(case, seed)]

    for d in sizes:
        for n in profiles:
            for shift in (3.0, 1.0, None):
                key = {
                    "part": "profiles",
                    "d": d,
                    "value": n,
                    "design": f"shifts of {shift}" if shift else "shifts N(0, 5)",
                }
                yield key, partial(many, Case(d=d, profiles=n, shift=shift))
        for times in environments:
            for cover in (True, False):
                key = {"part": "environments", "d": d, "value": times, "design": "in turn" if cover else "at random"}
                yield key, partial(many, Case(d=d, per_cause=times, cover=cover))
    for name, case in WRONG.items():
        case = replace(case, d=sizes[0]) if quick else case
        yield {"part": "assumptions", "design": name}, partial(many, case)
    for seed in range(fits):
        d, n, epochs = (4, 100, 25) if quick else (6, 200, 150)
        yield {"part": "unknown causes", "seed": seed}, partial(unknown, seed, d, n, epochs)


def run(arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Tables, a plot, and the figures of section 4.2."""
    quick = arguments.quick
    seeds, fits = (5, 1) if quick else (50, arguments.seeds)
    rows = collect(jobs(seeds, fits, quick), out / "trees", arguments.resume)
    verdicts = pd.get_dummies(rows["answer"]).reindex(columns=list(ANSWERS), fill_value=False)
    rows = rows.join(verdicts.astype(float))
    by = ["method", "d", "design", "value"]
    for part in ("profiles", "environments"):
        table = rows[rows["part"] == part].pivot_table(index=["d", "design", "method"], columns="value", values="right")
        print(f"\nShare of trees recovered, by {part}\n{table.round(2).to_string()}")
    assumptions = rows[rows["part"] == "assumptions"].groupby(["design", "method"])[list(ANSWERS)].mean()
    order = [(name, method) for name in WRONG for method in ("tests", "true changes", "Chow-Liu")]
    print(f"\nAgainst wrong assumptions\n{assumptions.reindex(order).round(2).to_string()}")
    fitted = rows[rows["part"] == "unknown causes"]
    columns = ["c_mcc", "z_mcc", "moved", "edges", "true_edges", *ANSWERS]
    table = fitted.groupby("method", sort=False)[columns].mean()
    print(f"\nCauses unknown, {fits} fits (moved: latents an environment changes)\n{table.round(2).to_string()}")
    draw(rows, out / "trees.png")
    curves = (
        rows[(rows["part"] != "assumptions") & (rows["method"] == "tests")].groupby(["part", *by[1:]])["right"].mean()
    )
    tests = assumptions.xs("tests", level="method")
    return {
        "trees_recovered": {
            f"{part}, d={d:g}, {design}, {value:g}": round(float(v), 3)
            for (part, d, design, value), v in curves.items()
        },
        "trees_assumptions": {name: {a: round(float(tests.loc[name, a]), 3) for a in ANSWERS} for name in WRONG},
        "trees_causes_unknown": {str(m): {c: round(float(v[c]), 3) for c in columns} for m, v in table.iterrows()},
    }


def draw(rows: pd.DataFrame, path: Path) -> None:
    """Share of trees recovered against profiles and environments, and the answers under wrong assumptions."""
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), width_ratios=(1, 1, 1.15), layout="constrained")
    panels = {
        "profiles": (
            "profiles an environment (one environment a cause)",
            {"shifts of 3.0": "-", "shifts of 1.0": "--", "shifts N(0, 5)": ":"},
        ),
        "environments": ("environments a cause (200 profiles each)", {"in turn": "-", "at random": "--"}),
    }
    for ax, (part, (label, styles)) in zip(axes, panels.items(), strict=False):
        some = rows[(rows["part"] == part) & (rows["method"] == "tests")]
        for i, (_, sized) in enumerate(some.groupby("d")):
            for design, style in styles.items():
                share = sized[sized["design"] == design].groupby("value")["right"].mean()
                ax.plot(share.index, share, style, color=f"C{i}", marker="o", ms=3)
        ax.set(xlabel=label, ylim=(-0.03, 1.03), xscale="log")
        ticks = sorted(some["value"].unique())
        ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
        ax.minorticks_off()
        ax.grid(alpha=0.3)
        names = {design.replace("3.0", "3 sd").replace("1.0", "1 sd"): style for design, style in styles.items()}
        keys = [Line2D([], [], color="0.3", linestyle=style, label=name) for name, style in names.items()]
        keys += [Line2D([], [], color=f"C{i}", label=f"{d:g} causes") for i, d in enumerate(sorted(some["d"].unique()))]
        ax.legend(handles=keys, fontsize=7, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0), handlelength=2.5)
    axes[0].set_ylabel("share of trees recovered")
    shares = rows[(rows["part"] == "assumptions") & (rows["method"] == "tests")].groupby("design")[list(ANSWERS)].mean()
    shares, left = shares.reindex(list(WRONG)[::-1]), 0.0
    for name, colour in zip(ANSWERS, ("C2", "C7", "C1", "C3"), strict=True):
        axes[2].barh(shares.index, shares[name], left=left, color=colour, label=name)
        left = left + shares[name]
    axes[2].tick_params(axis="y", labelsize=7)
    axes[2].set_xlabel("share of answers")
    axes[2].legend(fontsize=7, ncols=2, loc="lower center", bbox_to_anchor=(0.4, 1.0))
    figure.savefig(path, dpi=95)
    plt.close(figure)

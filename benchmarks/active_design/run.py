"""Which shift to try next? Distance to a target mean after 50 experiments of one sample each, by the rule that chose them.

The setting of Zhang, Cammarata, Squires, Sapsis and Uhler (2023): a linear structural causal model over 10 nodes with a known
graph, weights ±U(0.25, 1), noise of variance 1, then every node scaled to variance 1; the optimal shift acts on the last five
nodes of the order, ±U(0.25, 1), scaled to norm 1. Shifts tried have norm at most 1. The figure is the distance of the mean
under the estimated optimal shift to the target, over the target's norm. Every rule meets the same graphs and the same noise.
Three more settings: noise variances unknown; the graph unknown, its posterior from 50 observations; and the causes of a latent
model whose mechanisms are known up to noise.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from contract import finish, options

import pyro_cge as cge
from pyro_cge.discovery import OrderDAG
from pyro_cge.imputation import ActiveDesign, WeightPosterior
from pyro_cge.imputation.design.active import Acquisition
from pyro_cge.scm.latent import LatentSCM
from pyro_cge.scm.mechanisms import LinearMechanism

P, STEPS, RUNS = 10, 50, 4
RULES: tuple[str, ...] = get_args(Acquisition)
SHORT = {rule: rule.replace(" ", "_").replace("-", "_") for rule in RULES}
CHECKS = (10, 25, 50)


def problem(kind: str, rng: np.random.Generator) -> dict[str, Tensor]:
    """One standardised model and its target: ``W``, ``variance``, ``target``; nodes in causal order."""
    A = np.triu(np.ones((P, P)), 1) if kind == "complete" else np.eye(P, k=1)
    W = A * rng.uniform(0.25, 1, (P, P)) * rng.choice([-1, 1], (P, P))
    sd = np.sqrt((np.linalg.inv(np.eye(P) - W) ** 2).sum(0))
    W = W * sd[:, None] / sd
    shift = np.zeros(P)
    shift[P // 2 :] = rng.uniform(0.25, 1, P - P // 2) * rng.choice([-1, 1], P - P // 2)
    target = shift / np.linalg.norm(shift) @ np.linalg.inv(np.eye(P) - W)
    return {name: torch.as_tensor(value) for name, value in {"W": W, "variance": sd**-2, "target": target}.items()}


def problems(kind: str, graphs: int, seed: int) -> dict[str, Tensor]:
    """Several, each ``RUNS`` times: ``[graphs, RUNS, ...]``."""
    rng = np.random.default_rng(seed)
    drawn = [problem(kind, rng) for _ in range(graphs)]
    stacked = {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}
    return {name: value.unsqueeze(1).expand(graphs, RUNS, *value.shape[1:]) for name, value in stacked.items()}


def loop(
    design: ActiveDesign, experiment: Callable[[Tensor], Tensor], miss: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """Relative distances ``[...]`` to the target after each of the ``STEPS`` experiments."""
    distances = []
    for _ in range(STEPS):
        shift = design.ask()
        design.tell(experiment(shift), shift)
        distances.append(miss(design.optimal_shift_))
    return distances


def known_graph(kind: str, rule: str, graphs: int, seed: int, known_noise: bool = True) -> tuple[Tensor, float]:
    """Relative distances ``[STEPS, graphs, RUNS]`` and CPU seconds a run."""
    p = problems(kind, graphs, seed)
    generator = torch.Generator().manual_seed(seed)
    effects = torch.linalg.inv(torch.eye(P).double() - p["W"])

    def experiment(shift: Tensor) -> Tensor:
        noise = torch.randn(shift.shape, generator=generator).double() * p["variance"].sqrt()
        return (shift + noise).unsqueeze(-2) @ effects

    def miss(shift: Tensor) -> Tensor:
        reached = (shift.unsqueeze(-2) @ effects).squeeze(-2)
        return (reached - p["target"]).norm(dim=-1) / p["target"].norm(dim=-1)

    start = time.process_time()
    prior = WeightPosterior.prior(p["W"] != 0, p["variance"] if known_noise else None)
    distances = loop(ActiveDesign(prior, p["target"], acquisition=rule, random_state=seed), experiment, miss)
    return torch.stack(distances), (time.process_time() - start) / (graphs * RUNS)


def unknown_graph(rule: str, seed: int, n_seen: int = 50) -> dict[str, float]:
    """A path over 6 nodes: a design over the graphs that 50 observations leave, and one on the best of these graphs."""
    d, rng = 6, np.random.default_rng(seed)
    W = np.eye(d, k=1) * rng.uniform(0.5, 1, (d, d)) * rng.choice([-1, 1], (d, d))
    order = rng.permutation(d)
    W = W[np.ix_(order, order)]
    solve = np.linalg.inv(np.eye(d) - W)
    x = rng.normal(size=(n_seen, d)) @ solve
    mean, sd = x.mean(0), x.std(0)
    a = rng.normal(size=d)
    target = a / np.linalg.norm(a) @ solve / sd
    estimator = OrderDAG(draws=200, random_state=seed).fit(x)
    several = ActiveDesign.over_graphs(estimator, x, target, draws=300, acquisition=rule, random_state=seed)
    probabilities = several.graph_probabilities_
    assert probabilities is not None
    best = several.posterior_.A[probabilities.argmax()]
    single = WeightPosterior.prior(best, precision=estimator.slab_**-2)
    single = single.update(torch.from_numpy((x - mean) / sd), torch.zeros(d))

    def miss(shift: Tensor) -> Tensor:
        reached = torch.as_tensor((shift.numpy() * sd) @ solve / sd)
        return (reached - torch.as_tensor(target)).norm() / float(np.linalg.norm(target))

    scores = {}
    designs = {"posterior": several, "best": ActiveDesign(single, target, acquisition=rule, random_state=seed)}
    for name, design in designs.items():
        noise = np.random.default_rng(1000 + seed)

        def experiment(shift: Tensor, noise: np.random.Generator = noise) -> Tensor:
            return torch.as_tensor((((shift.numpy() * sd) + noise.normal(size=d)) @ solve - mean) / sd).unsqueeze(0)

        scores[name] = float(loop(design, experiment, miss)[-1])
    return scores


def on_latents(rule: str, seed: int) -> float:
    """Causes of a simulated cell, read from 200 genes: the next environment's noise shift is chosen on a latent SCM.

    The design starts from an SCM with the right graph and other weights. Each environment is one profile, whose causes are
    read off by least squares.
    """
    truth = cge.simulate.simulator(
        "union of growing networks", n_latents=8, n_genes=200, mechanism="random linear", gene_noise=0.5, seed=seed
    )
    rng = np.random.default_rng(seed)
    a = rng.normal(size=8)
    target = truth.scm(torch.as_tensor(a / np.linalg.norm(a)).float())
    guess = LatentSCM(truth.scm.graph, lambda m: LinearMechanism(m, "small", torch.Generator().manual_seed(seed)))
    design = ActiveDesign.on_latents(guess, target, acquisition=rule, random_state=seed)
    decoder = truth.decoder.mean(torch.eye(8)) - truth.decoder.mean(torch.zeros(1, 8))
    origin = truth.decoder.mean(torch.zeros(1, 8))
    for step in range(STEPS):
        shift = design.ask_environment()
        law = cge.NoiseShift(shift.loc.float(), shift.log_scale.float())
        profiles = truth.sample(1, environments=cge.simulate.Environments(["next"], law), seed=1000 * seed + step)
        causes = torch.linalg.lstsq(decoder.T, (profiles.x - origin).T).solution.T
        design.tell(causes, shift)
    return float((truth.scm(design.optimal_shift_.float()) - target).norm() / target.norm())


def main() -> None:
    torch.set_num_threads(1)
    arguments = options(__doc__ or "", seeds=20).parse_args()
    graphs = 4 if arguments.quick else arguments.seeds
    few = 1 if arguments.quick else min(arguments.seeds, 8)
    figures: dict[str, object] = {"graphs": graphs, "runs": RUNS, "error": {}, "after": {}, "cpu_s": {}}
    for kind in ("complete", "path"):
        rows, curves = {}, {}
        for rule in RULES:
            distance, cpu = known_graph(kind, rule, graphs, seed=0)
            curves[rule] = distance
            by_graph = distance[-1].mean(-1)
            rows[rule] = {
                **{f"after {t}": float(distance[t - 1].mean()) for t in CHECKS},
                "se over graphs": float(by_graph.std() / len(by_graph) ** 0.5),
                "cpu_s": cpu,
            }
            print(f"{kind:9s}{rule:22s}", *(f"{name} {value:.4f}" for name, value in rows[rule].items()), flush=True)
        table = pd.DataFrame(rows).T
        figures[kind] = {SHORT[rule]: round(value, 4) for rule, value in table["after 50"].items()}
        figures[f"civ_{kind}"] = round(float(table.loc["civ", "after 50"]), 4)
        gains = (curves["random"][-1] - curves["civ"][-1]).mean(-1)
        half = 1.96 * float(gains.std() / len(gains) ** 0.5)
        figures[f"gain_{kind}"] = [round(float(gains.mean()) + sign * half, 4) for sign in (-1, 1)]
        figures["error"] |= {kind: round(float(table.loc["civ", "se over graphs"]), 4)}  # type: ignore[operator]
        figures["cpu_s"] |= {kind: {SHORT[rule]: round(v, 4) for rule, v in table["cpu_s"].items()}}  # type: ignore[operator]
        figures["after"] |= {  # type: ignore[operator]
            kind: {SHORT[rule]: [round(table.loc[rule, f"after {t}"], 4) for t in CHECKS] for rule in RULES}
        }
    unknown = {rule: known_graph("complete", rule, graphs, seed=0, known_noise=False)[0] for rule in ("random", "civ")}
    figures["unknown_noise"] = {rule: round(float(d[-1].mean()), 4) for rule, d in unknown.items()}
    print("\nnoise unknown, complete:", figures["unknown_noise"], flush=True)
    rules = ("random", "civ")
    graph_rows = {rule: pd.DataFrame([unknown_graph(rule, seed) for seed in range(few)]).mean() for rule in rules}
    figures["unknown_graph"] = {SHORT[rule]: row.round(4).to_dict() for rule, row in graph_rows.items()}
    print("graph unknown, path of 6:", figures["unknown_graph"], flush=True)
    latent_rows = {rule: float(np.mean([on_latents(rule, seed) for seed in range(few)])) for rule in rules}
    figures["latent"] = {SHORT[rule]: round(value, 4) for rule, value in latent_rows.items()}
    print("causes of a latent SCM:", figures["latent"], flush=True)
    finish(arguments.out or Path(__file__).parent / "results", figures, arguments)


if __name__ == "__main__":
    main()

"""What do 16 seeds cost, trained as one program, against one of them alone?

The same fits in turn: one seed by ``fit``, then many by ``fit_ensemble``, whole calls from first to last line (weights,
scaling, tracing, held-out losses and all). Times are CPU seconds of one thread, so that other work on the machine does not
count; ratios are medians over pairs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from contract import finish, options

import pyro_cge as cge
from pyro_cge.train.ensembles.ensemble import fit_ensemble


@dataclass(frozen=True)
class Study:
    """A data set, a preset with its sizes, and how it is trained."""

    data: Callable[[], cge.EnvironmentData]
    build: Callable[..., Any]
    members: int
    epochs: int
    quick: int  # epochs


def five_latents() -> cge.EnvironmentData:
    """Five latents, 100 genes, 25 environments and a control of 200 profiles each."""
    environments = cge.simulate.random_shifts(5, 25, variance=5.0, cover=True)
    return cge.simulate.growing_network(n_latents=5, n_genes=100, environments=environments).sample(200)


def l1000() -> cge.EnvironmentData:
    """Noise of the shape of L1000: 978 genes, 1,074 environments with fingerprints."""
    generator = torch.Generator().manual_seed(0)
    n, n_envs = 20 * 128, 1074
    return cge.EnvironmentData(
        x=torch.randn(n, 978, generator=generator),
        env=torch.randint(n_envs, (n,), generator=generator),
        gene_names=[f"g{i}" for i in range(978)],
        env_names=[f"e{i}" for i in range(n_envs)],
        env_features=(torch.rand(n_envs, 2048, generator=generator) < 0.05).float(),
        control=[0],
    )


STUDIES = {
    "5 latents": Study(five_latents, partial(cge.environment_vae, d=5), 16, 60, 8),
    "L1000": Study(l1000, partial(cge.environment_vae, d=200, hidden=(500,)), 4, 8, 2),
}


def cpu_seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def pairs(study: Study, rounds: int, epochs: int) -> tuple[list[float], list[float]]:
    """CPU seconds of one fit and of the ensemble, in turn."""
    data = study.data()
    common: dict[str, Any] = {
        "epochs": epochs,
        "validation": 0.1 if data.n_features is None else None,
        "patience": None,
        "progress": False,
    }

    def one(seed: int) -> None:
        with cge.isolated(seed):
            model, guide = study.build(data)
        cge.fit(model, guide, data, seed=seed, **common)

    alone, together = [], []
    for seed in range(rounds):
        alone.append(cpu_seconds(partial(one, seed)))
        together.append(cpu_seconds(lambda: fit_ensemble(study.build, data, seeds=study.members, **common)))
    return alone, together


def main() -> None:
    parser = options(__doc__ or "", seeds=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{'study':<12}{'members':>8}{'one s':>9}{'all s':>9}{'ratio':>8}{'a member':>10}   ratios")
    figures = {}
    for name, study in STUDIES.items():
        epochs = study.quick if arguments.quick else study.epochs
        alone, together = pairs(study, 1 if arguments.quick else arguments.seeds, epochs)
        ratios = np.array(together) / np.array(alone)
        ratio = float(np.median(ratios))
        print(
            f"{name:<12}{study.members:>8}{np.median(alone):>9.1f}{np.median(together):>9.1f}{ratio:>8.2f}"
            f"{ratio / study.members:>10.3f}   {', '.join(f'{r:.2f}' for r in ratios)}",
            flush=True,
        )
        figures[name] = ratio
    record = {"ratio_16": figures["5 latents"], "ratio_l1000_member": figures["L1000"] / STUDIES["L1000"].members}
    finish(arguments.out or Path(__file__).parent / "results", {k: round(v, 3) for k, v in record.items()}, arguments)


if __name__ == "__main__":
    main()

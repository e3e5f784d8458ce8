"""Is the graph among latents found, where it can be? Hard and mechanism interventions, and a decoder of known support.

The decoder's support (which genes each latent reaches) is known, its weights are not. Each latent is intervened on in one
environment, hard (do(C_j = 3)) or by cutting its parents' contribution, beside a control. First a model with free causes
gives estimates of them; their best-scoring order starts the learned graph; then graph, weights and edge probabilities are
fitted by SVI. Distances are structural Hamming distances (a reversal counts once), "chance" that of another random graph
of the same law.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from contract import finish, options

import pyro_cge as cge
from pyro_cge.discovery import OrderSearch
from pyro_cge.metrics import mcc, structural_hamming_distance
from pyro_cge.scm.graphs import adjacency, erdos_renyi
from pyro_cge.scm.mechanisms import LinearMechanism

EDGES = 1.0  # expected edges a latent
small = partial(LinearMechanism, weights="small")


def one(kind: str, d: int, seed: int, epochs: int) -> dict[str, float]:
    """Distances and edge probabilities of one random graph."""
    design = cge.simulate.one_per_latent(d, kind=kind, value=3.0 if kind == "hard" else 0.0)
    truth = cge.simulate.simulator(
        "erdos renyi", n_latents=d, n_genes=10 * d, attach=0.3, gene_noise=0.3, environments=design, seed=seed
    )
    data = truth.sample(200, seed=seed)
    table = design.hard if kind == "hard" else design.gain
    touched = ~table.isnan()[data.env]
    training = {"lr": 1e-2, "schedule": "one_cycle", "validation": None, "patience": None, "standardize": False}
    torch.manual_seed(seed)
    decoder = cge.MechanismDecoder(small(truth.decoder.mechanism.mask))
    free = cge.CellModel(cge.DensePrior(data, d), None, decoder)
    first = cge.fit(free, cge.AmortizedGuide(free, hidden=()), data, epochs=epochs, seed=seed, **training)
    causes = torch.tensor(first.posterior(data).latents().to_numpy())
    found = mcc(causes, data.truth.c)
    blind = OrderSearch().fit(causes.numpy(), data.env.numpy(), control=0)  # not told what was intervened on
    told = ~table.isnan().numpy()
    if kind == "mechanism":  # roots have no mechanism to change
        told &= truth.scm.A.numpy().any(0)

    # Unit noise and the value set fix the scale and sign that free causes leave open.
    scm = cge.LearnedSCM(d, small)
    scm.start_at(causes, touched)
    scale = (causes - causes @ scm.mechanism.W.detach())[~touched.any(1)].std(0)
    if kind == "hard":
        scale = torch.stack([causes[data.env == e, e - 1].mean() / 3.0 for e in range(1, d + 1)])
    with torch.no_grad():
        decoder.mechanism.weight.mul_(scale[:, None])
    scm.start_at(causes / scale, touched)
    start = structural_hamming_distance(scm.A, truth.scm.A)

    interventions = {"hard": table} if kind == "hard" else {"gain": table}
    model = cge.IntervenedCellModel(cge.StandardPrior(data, d), scm, decoder, **interventions)
    guide = cge.AmortizedGuide(model, "concat")
    # The new encoder first learns the model it starts from: an untrained one would have it close edges.
    cge.fit(model.requires_grad_(False), guide, data, epochs=epochs, seed=seed, **training)
    cge.fit(
        model.requires_grad_(True), guide, data, epochs=epochs, seed=seed, **training | {"lr": 3e-3, "kl_warmup": 0}
    )
    probability, edges = scm.edge_probability, truth.scm.A.bool()
    rng = np.random.default_rng(10_000 + seed)
    others = [adjacency(erdos_renyi(d, rng, EDGES * d)) for _ in range(50)]
    return {
        "shd": structural_hamming_distance(scm.A, truth.scm.A),
        "shd_start": start,
        "shd_blind": structural_hamming_distance(blind.adjacency_, truth.scm.A),
        "targets_blind": float((blind.targets_.to_numpy() == told).all(1).mean()),
        "shd_empty": int(truth.scm.A.sum()),
        "shd_chance": float(np.mean([structural_hamming_distance(A, truth.scm.A) for A in others])),
        "c_mcc": found,
        "true_edge_probability": float(probability[edges].mean()) if edges.any() else float("nan"),
        "false_edge_probability": float(probability[~edges].mean()),
    }


def main() -> None:
    arguments = options(__doc__ or "", seeds=5).parse_args()
    epochs, sizes = (30, (4,)) if arguments.quick else (80, (5, 10))
    figures: dict[str, dict[str, float]] = {}
    names = (
        "shd",
        "shd_start",
        "shd_blind",
        "targets_blind",
        "shd_empty",
        "shd_chance",
        "c_mcc",
        "true_edge_probability",
        "false_edge_probability",
    )
    print(f"{'':<18}" + "".join(f"{name.replace('_probability', ''):>13}" for name in names))
    for kind in ("hard", "mechanism"):
        for d in sizes:
            runs = [one(kind, d, seed, epochs) for seed in range(1 if arguments.quick else arguments.seeds)]
            row = {name: float(np.nanmean([run[name] for run in runs])) for name in names}
            figures[f"{kind}_d{d}"] = {name: round(value, 3) for name, value in row.items()}
            print(f"{kind}, {d} latents".ljust(18) + "".join(f"{row[name]:>13.2f}" for name in names), flush=True)
    finish(arguments.out or Path(__file__).parent / "results", {"shd": figures}, arguments)


if __name__ == "__main__":
    main()

"""The paper's models on real L1000 level-5 signatures of perturbagens never seen.

Paper's size (one hidden layer of 500, 200 latents), 200 epochs, several seeds, early stopping off: does any loss become
non-finite or explode? And how well is a profile predicted from its environment alone, beside trivial baselines?
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from contract import finish, options

import pyro_cge as cge
from pyro_cge.config import RunConfig
from pyro_cge.data.fingerprints import tanimoto
from pyro_cge.errors import NonFiniteLossError
from pyro_cge.metrics import pearson_per_profile
from pyro_cge.presets import PRESETS
from pyro_cge.runs import build, objective_of
from pyro_cge.train.fit import evaluate

FIRST = ("basic", "conditional", "environment")
STRUCTURED = ("structured", "structured_translation", "discrepancy")


def synthetic() -> cge.EnvironmentData:
    """A stand-in of the same shape of problem, for ``--quick`` without data: 60 drugs in 4 cell lines."""
    rng = np.random.default_rng(0)
    drugs, cells, g = 60, 4, 100
    bits = (rng.random((drugs, 64)) < 0.2).astype(np.float32)
    effect = bits @ rng.normal(size=(64, g)) * 0.3
    names = [(f"drug {i}", f"cell {j}") for i in range(drugs) for j in range(cells)]
    basal = rng.normal(size=(cells, g))
    x = np.stack([effect[i] + basal[j] for i in range(drugs) for j in range(cells)]) + rng.normal(size=(len(names), g))
    part = ["val" if i >= 48 else "train" for i in range(drugs) for _ in range(cells)]
    table = pd.DataFrame(names, columns=["perturbagen", "cell_line"]).assign(part=part)
    table.index = pd.Index([f"{a} in {b}" for a, b in names])
    one_hot = np.tile(np.eye(cells, dtype=np.float32), (drugs, 1))
    return cge.EnvironmentData(
        x=torch.from_numpy(x.astype(np.float32)),
        env=torch.arange(len(names)),
        gene_names=[f"g{k}" for k in range(g)],
        env_names=list(table.index),
        env_features=torch.from_numpy(np.concatenate([np.repeat(bits, cells, 0), one_hot], 1)),
        obs=table.set_index(pd.RangeIndex(len(table)).astype(str)),
        env_table=table,
    )


def with_similarities(data: cge.EnvironmentData) -> cge.EnvironmentData:
    """Raw bits overfit a thousand compounds: replace them by Tanimoto similarities to the training compounds."""
    assert data.env_features is not None
    n_cells = data.env_table["cell_line"].nunique()
    bits, cells = data.env_features[:, :-n_cells].numpy(), data.env_features[:, -n_cells:]
    reference = np.unique(bits[(data.env_table["part"] == "train").to_numpy()], axis=0)
    similarity = torch.from_numpy(tanimoto(bits, reference).astype(np.float32))
    return replace(data, env_features=torch.cat([similarity, cells], 1))


def baselines(train: cge.EnvironmentData, valid: cge.EnvironmentData, bits: Tensor, k: int = 20) -> dict[str, float]:
    """Mean per-profile r of gene means, cell-line means, and the k most similar compounds in the same cell line.

    Neighbours weigh by squared Tanimoto similarity and are shrunk towards the cell-line mean (as by a neighbour of
    similarity √0.3).
    """
    lines, wanted = train.obs["cell_line"].to_numpy(), valid.obs["cell_line"].to_numpy()
    by_cell = {line: train.x[torch.from_numpy(lines == line)].mean(0) for line in np.unique(lines)}
    mean = train.x.mean(0)
    cell = torch.stack([by_cell.get(line, mean) for line in wanted])
    similarity = torch.from_numpy(tanimoto(bits[valid.env].numpy(), bits[train.env].numpy()))
    neighbours = torch.empty_like(valid.x)
    for i, line in enumerate(wanted):
        pool = torch.from_numpy(np.flatnonzero(lines == line))
        near = pool[similarity[i, pool].topk(min(k, len(pool))).indices]
        weight = similarity[i, near].float().square().unsqueeze(1)
        neighbours[i] = ((weight * train.x[near]).sum(0) + 0.3 * cell[i]) / (weight.sum() + 0.3)
    predictions = {"mean": mean.expand_as(valid.x), "cell_mean": cell, f"knn_{k}": neighbours}
    return {name: float(pearson_per_profile(valid.x, p).mean()) for name, p in predictions.items()}


def main() -> None:
    parser = options(__doc__ or "", seeds=3, data=True)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", default=",".join(FIRST), help=f"comma-separated, or all: {', '.join(PRESETS)}")
    arguments = parser.parse_args()
    if arguments.data is None and not arguments.quick:
        parser.error("--data FILE.h5ad is needed (made by convert.py), or --quick for a synthetic stand-in")
    names = list(PRESETS) if arguments.models == "all" else arguments.models.split(",")
    seeds, epochs = (1, 10) if arguments.quick else (arguments.seeds, arguments.epochs)
    data = synthetic() if arguments.data is None else cge.read_h5ad(arguments.data)
    assert data.env_features is not None
    bits = data.env_features[:, : -data.env_table["cell_line"].nunique()]
    data = with_similarities(data)
    part = data.obs["part"].to_numpy()
    train, valid = (data.rows(np.flatnonzero(part == name)) for name in ("train", "val"))
    print(f"train {train.n:,} profiles, held out {valid.n:,} of perturbagens never seen, {data.g} genes")

    scores = baselines(train, valid, bits)
    ratios: dict[str, list[float]] = {name: [] for name in names}
    rs: dict[str, list[float]] = {name: [] for name in names}
    reconstruction: dict[str, list[float]] = {name: [] for name in names}
    non_finite = 0
    histories = {}
    latents, width = (200, 500) if data.g > 500 else (20, 64)
    for name in names:
        config = RunConfig(model=name, latents=latents, hidden=(width,), depth=5 if name in STRUCTURED else None)
        for seed in range(seeds):
            config = config.model_copy(update={"seed": seed})
            model, guide = build(config, train)
            settings = {"epochs": epochs, "batch_size": arguments.batch_size, "lr": 3e-4, "validation": valid}
            settings["objective"] = objective_of(config, train)
            try:
                fit = cge.fit(model, guide, train, patience=None, seed=seed, device=arguments.device, **settings)
            except NonFiniteLossError as error:
                non_finite += 1
                print(f"{name} seed {seed}: {error}")
                continue
            losses = fit.history["valid_loss"]
            non_finite += int((~np.isfinite(losses)).sum())
            ratios[name].append(float(losses.iloc[-1] / losses.min()))
            posterior = fit.posterior(valid)
            predicted = posterior.predict(n_samples=50)[posterior.raw.env]
            rs[name].append(float(pearson_per_profile(valid.x, predicted).mean()))
            reconstruction[name].append(float(pearson_per_profile(valid.x, posterior.reconstruct()).mean()))
            histories[f"{name} {seed}"] = fit.history
            best = evaluate(fit.model, fit.guide, posterior.data)["loss"]
            print(
                f"{name} seed {seed}: best held-out loss {best:.1f} at epoch {fit.best_epoch}, last/best "
                f"{ratios[name][-1]:.3f}, unseen r {rs[name][-1]:.3f}, reconstruction r {reconstruction[name][-1]:.3f}",
                flush=True,
            )
    print(f"{'':<14}{'unseen r':>10}{'reconstruction r':>18}{'last/best':>11}")
    for name in names:
        values = (np.mean(v[name]) if v[name] else np.nan for v in (rs, reconstruction, ratios))
        print("{:<14}{:>10.3f}{:>18.3f}{:>11.3f}".format(name, *values))
    for name, r in scores.items():
        print(f"{name:<14}{r:>10.3f}")
    out = arguments.out or Path(__file__).parent / "results"
    out.mkdir(parents=True, exist_ok=True)
    draw(histories, out / "learning_curves.png")
    figures = {
        "non_finite": non_finite,
        "last_over_best": {name: round(max(v), 3) for name, v in ratios.items() if v},
        "val_r": {name: round(float(np.mean(v)), 3) for name, v in rs.items() if v}
        | {name: round(r, 3) for name, r in scores.items()},
        "seeds": seeds,
        "epochs": epochs,
    }
    finish(out, figures, arguments)


def draw(histories: dict[str, pd.DataFrame], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    firsts = {name.removesuffix(" 0"): table for name, table in histories.items() if name.endswith(" 0")}
    cge.plots.learning_curves(firsts)
    plt.savefig(path, dpi=120)


if __name__ == "__main__":
    main()

"""Does a network that interpolates signatures align the effects of drugs between cell lines?

Over-parameterised autoencoders of one hidden layer are trained on level-5 signatures until they reproduce each of them. For
drugs measured in several cell lines, the cosine of the same drug's effect in two lines is compared in the hidden layer and
in gene space, beside principal components, random features (the network before training) and pairs of different drugs.
A second part trains small networks on random examples and asks which of them are attractors of the iterated map.

``--data`` is a folder with ``l1000_level5_gps24.npz`` (``X`` [signatures, genes], ``gene``) and its
``_obs.csv.gz`` (columns ``compound_key``, ``cell_id``); without it the first part runs on simulated effects.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # processor seconds are those of one thread

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))
from contract import finish, options

from pyro_cge.imputation import Effects, InterpolatingAutoencoder, alignment

COLUMNS = ("cosine", "cosine_other", "separation", "sign_agreement")


def level5(folder: Path, contexts: int, actions: int) -> Effects:
    """Signatures of the drugs measured in most of the best-covered cell lines."""
    with np.load(folder / "l1000_level5_gps24.npz", allow_pickle=False) as arrays:
        x, genes = arrays["X"].astype(np.float64), [str(name) for name in arrays["gene"]]
    obs = pd.read_csv(folder / "l1000_level5_gps24_obs.csv.gz")
    lines = obs["cell_id"].value_counts().index[:contexts]
    rows = obs["cell_id"].isin(lines)
    drugs = obs.loc[rows, "compound_key"].value_counts().index[:actions]
    kept = np.flatnonzero(rows & obs["compound_key"].isin(drugs))
    kept = kept[~obs.iloc[kept].duplicated(["cell_id", "compound_key"]).to_numpy()]
    context, context_names = pd.factorize(obs["cell_id"].iloc[kept], sort=True)
    action, action_names = pd.factorize(obs["compound_key"].iloc[kept], sort=True)
    return Effects(x[kept], context, action, list(context_names), list(action_names), genes)


def simulated(contexts: int, actions: int, genes: int, seed: int) -> Effects:
    """Effects of rank five in part shared by contexts, with noise."""
    rng = np.random.default_rng(seed)
    shared, own = rng.normal(size=(actions, 5)), rng.normal(size=(contexts, actions, 5))
    loadings = rng.normal(size=(5, genes))
    x = ((shared + own) @ loadings + rng.normal(size=(contexts, actions, genes))).reshape(-1, genes)
    context, action = np.divmod(np.arange(len(x)), actions)
    names = [[f"{what}{i}" for i in range(n)] for what, n in (("line", contexts), ("drug", actions), ("gene", genes))]
    return Effects(x, context, action, *names)


def spaces(effects: Effects, seed: int, width: int, steps: int) -> dict[str, dict[str, float]]:
    """Alignment in each space; for networks also how well they interpolate and the Jacobians at some examples."""
    from sklearn.decomposition import PCA

    pca = PCA(min(50, effects.m - 1), random_state=seed).fit(effects.x)
    table = {
        "genes": alignment(effects),
        "principal components": alignment(effects, pca.transform),
    }
    for name, settings in {
        "leaky ReLU, no bias": {"activation": "leaky_relu"},
        "leaky ReLU, bias": {"activation": "leaky_relu", "bias": True},
        "SELU, no bias": {"activation": "selu"},
    }.items():
        began = time.process_time()
        network = InterpolatingAutoencoder(hidden=(width,), steps=steps, random_state=seed, **settings).fit(effects)
        seconds = time.process_time() - began
        rng = np.random.default_rng(seed)
        some = effects.x[rng.choice(effects.m, min(3, effects.m), replace=False)]
        radius = network.spectral_radius(some)
        table[name] = alignment(effects, network.transform) | {
            "loss": network.loss_,
            "radius_min": float(radius.min()),
            "radius_max": float(radius.max()),
            "cpu_s": seconds,
        }
    untrained = InterpolatingAutoencoder(hidden=(width,), steps=0, random_state=seed).fit(effects)
    table["random features"] = alignment(effects, untrained.transform)
    return table


def attractors(seed: int, n: int, genes: int, depth: int, width: int) -> dict[str, dict[str, float]]:
    """Small deep networks on random examples: largest |eigenvalue|, share of examples recovered from noisy ones."""
    rng = np.random.default_rng(seed)
    x = 0.1 * rng.normal(size=(n, genes))
    noisy = x + 0.1 * np.linalg.norm(x, axis=1, keepdims=True) * rng.normal(size=x.shape) / np.sqrt(genes)
    table = {}
    for activation in ("leaky_relu", "selu"):
        began = time.process_time()
        network = InterpolatingAutoencoder(
            hidden=(width,) * depth, activation=activation, learning_rate=3e-4, steps=3000, random_state=seed
        ).fit(x)
        radius = network.spectral_radius()
        table[activation] = {
            "loss": network.loss_,
            "radius_max": float(radius.max()),
            "radius_min": float(radius.min()),
            "attractors": float((radius < 1 - 1e-6).mean()),
            "recovered": network.recovered(noisy),
            "cpu_s": time.process_time() - began,
        }
    return table


def mean(runs: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        name: {key: float(f"{np.mean([run[name][key] for run in runs]):.4g}") for key in runs[0][name]}
        for name in runs[0]
    }


def main() -> None:
    parser = options(__doc__ or "", seeds=3)
    parser.add_argument("--data", type=Path, default=None, help="folder of l1000_level5_gps24.npz")
    arguments = parser.parse_args()
    quick, seeds = arguments.quick, range(1 if arguments.quick else arguments.seeds)

    def effects(seed: int) -> Effects:
        if arguments.data is None:
            return simulated(3, 15, 60, seed)
        return level5(arguments.data, 2 if quick else 4, 20 if quick else 60)

    width, steps = (128, 100) if quick else (1024, 50)
    aligned = mean([spaces(effects(seed), seed, width, steps) for seed in seeds])
    print(pd.DataFrame(aligned).T.to_string(float_format="{:.4g}".format))
    memory = mean([attractors(seed, 5, 30, 4 if quick else 10, 64 if quick else 256) for seed in seeds])
    print(pd.DataFrame(memory).T.to_string(float_format="{:.4g}".format))
    figures: dict[str, Any] = {f"alignment_{key}": {name: row[key] for name, row in aligned.items()} for key in COLUMNS}
    networks = {name: row for name, row in aligned.items() if "loss" in row}
    figures |= {
        "interpolation_loss": max(row["loss"] for row in networks.values()),
        "homogeneous_radius_min": aligned["leaky ReLU, no bias"]["radius_min"],
        "networks": networks,
        "pairs": aligned["genes"]["pairs"],
        "attractors": memory,
    }
    finish(arguments.out or Path(__file__).parent / "results", figures, arguments)


if __name__ == "__main__":
    main()

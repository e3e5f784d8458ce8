"""Do two drugs of one mechanism of action move the same latents more often than two random drugs?

An environment is a drug, known by name only; each cell line's mean signature is subtracted first, so that a drug is not
known by where it was tested. Similarity of two drugs is the cosine of their latent shifts in a dense Environment VAE, as
fitted and after the rotation step, and of the shifts weighted by the probability of a target. Beside it the correlation
of mean signatures, principal components (plain, and whitened within drugs), and fingerprints.

AUC over pairs of drugs tested in a common cell line, never a drug with itself; intervals resample drugs.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata

sys.path.insert(0, str(Path(__file__).parents[1]))
from contract import finish, options

import pyro_cge as cge
from pyro_cge.data.fingerprints import morgan, tanimoto
from pyro_cge.interpret import latent_similarity, same_class_auc
from pyro_cge.train.rotation import rotate


def synthetic(drugs: int = 60, cells: int = 4, g: int = 100, classes: int = 12) -> cge.EnvironmentData:
    """A stand-in for ``--quick`` without data: a class moves two of ten latents, and a common toxicity varies freely."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(11, g))
    label = np.arange(drugs) % classes
    direction = (rng.random((classes, 10)) < 0.2) * rng.normal(size=(classes, 10))
    z = np.concatenate([direction[label] * rng.uniform(0.5, 2, (drugs, 1)), 2 * rng.normal(size=(drugs, 1))], 1)
    drug, cell = np.repeat(np.arange(drugs), cells), np.tile(np.arange(cells), drugs)
    noise = rng.normal(size=(len(drug), 11)) * np.array([*([0.3] * 10), 2.0])
    x = (z[drug] + noise) @ weights + rng.normal(size=(cells, g))[cell] + 2 * rng.normal(size=(len(drug), g))
    names = [f"drug {i}" for i in range(drugs)]
    chains = ["C" * (1 + i % 20) + ["O", "N", "Cl"][i % 3] for i in range(drugs)]
    return cge.EnvironmentData(
        x=torch.from_numpy(x.astype(np.float32)),
        env=torch.from_numpy(drug),
        gene_names=[f"g{k}" for k in range(g)],
        env_names=names,
        obs=pd.DataFrame({"cell_line": [f"cell {c}" for c in cell]}, index=[str(i) for i in range(len(drug))]),
        env_table=pd.DataFrame({"smiles": chains, "moa": [f"class {c}" for c in label]}, index=names),
    )


def centred(data: cge.EnvironmentData) -> cge.EnvironmentData:
    """Without the mean signature of each cell line."""
    frame = pd.DataFrame(data.x.numpy())
    means = frame.groupby(data.obs["cell_line"].to_numpy()).transform("mean")
    return replace(data, x=torch.from_numpy((frame - means).to_numpy(np.float32)))


def drug_means(values: np.ndarray, env: np.ndarray) -> np.ndarray:
    return pd.DataFrame(values).groupby(env).mean().to_numpy()


def cosine(values: np.ndarray) -> np.ndarray:
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    return unit @ unit.T


def principal_components(x: np.ndarray, d: int) -> np.ndarray:
    x = (x - x.mean(0)) / x.std(0)
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    return u[:, :d] * s[:d]


def whitened(scores: np.ndarray, env: np.ndarray) -> np.ndarray:
    """Drug means of scores, in units of their covariance between signatures of one drug."""
    means = drug_means(scores, env)
    several = np.bincount(env)[env] > 1
    residual = (scores - means[env])[several]
    values, vectors = np.linalg.eigh(residual.T @ residual / len(residual))
    return means @ (vectors / np.sqrt(values)) @ vectors.T


def both(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean rank of two similarities."""
    upper = np.triu_indices(len(a), 1)
    out = np.zeros_like(a)
    out[upper] = rankdata(a[upper]) + rankdata(b[upper])
    return out + out.T


def fitted(data: cge.EnvironmentData, d: int, epochs: int, seed: int) -> cge.Fit:
    """Dense shifts of the noise mean, linear encoder and decoder: the model of the rotation step."""
    with cge.isolated(seed):
        model = cge.CellModel(cge.DensePrior(data, d, moves="loc"), None, cge.LinearDecoder(d, data.g))
        guide = cge.AmortizedGuide(model, None, hidden=())
    settings = {"epochs": epochs, "batch_size": 128, "lr": 3e-3, "validation": None, "patience": None}
    return cge.fit(model, guide, data, seed=seed, progress=False, **settings)


def main() -> None:
    parser = options(__doc__ or "", seeds=3, data=True)
    parser.add_argument("--latents", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=60)
    arguments = parser.parse_args()
    if arguments.data is None and not arguments.quick:
        parser.error("--data FILE.h5ad is needed (made by convert.py), or --quick for a synthetic stand-in")
    data = centred(synthetic() if arguments.data is None else cge.read_h5ad(arguments.data))
    seeds = 1 if arguments.quick else arguments.seeds
    d = arguments.latents if data.g > 500 else 12
    torch.set_num_threads(1)  # the matrices are small: more threads only wait for each other

    env, x = data.env.numpy(), data.x.numpy()
    known = np.flatnonzero(data.env_table["moa"].notna())
    classes = list(data.env_table["moa"].to_numpy()[known])
    lines = pd.crosstab(env, data.obs["cell_line"].to_numpy()).to_numpy().astype(np.float32)[known] > 0
    together = lines.astype(np.float32) @ lines.T.astype(np.float32) > 0

    def known_pairs(similarity: np.ndarray) -> np.ndarray:
        return similarity[np.ix_(known, known)]

    structure = tanimoto(fingerprints := np.stack(morgan(data.env_table["smiles"])), fingerprints).astype(np.float64)
    scores = principal_components(x.astype(np.float64), d)
    signature = np.corrcoef(drug_means(x, env))
    similarities: dict[str, list[np.ndarray]] = {
        "signature correlation": [signature],
        f"PCA-{d}": [cosine(drug_means(scores, env))],
        f"PCA-{d}, whitened within drugs": [cosine(whitened(scores, env))],
        "Tanimoto of fingerprints": [structure],
        "signature + Tanimoto": [both(signature, structure)],
    }
    for seed in range(seeds):
        fit = fitted(data, d, arguments.epochs, seed)
        rows = {"model, no rotation": latent_similarity(fit.posterior(data).shift())}
        posterior = rotate(fit, data, seed=seed).posterior(data)
        shift = posterior.shift()
        rows["model"] = latent_similarity(shift)
        rows["model, shared targets"] = latent_similarity(shift, posterior.targets().to_numpy())
        rows["model + Tanimoto"] = both(rows["model"], structure)
        for name, similarity in rows.items():
            similarities.setdefault(name, []).append(similarity)
        print(f"seed {seed} done", flush=True)

    # Over seeds the AUC and its draws are averaged: the interval is that of the drugs, not of the optimiser.
    table, draws = {}, {}
    print(f"{'AUC, same mechanism against different':<38}{'common cell line':>24}{'any two drugs':>24}")
    for name, many in similarities.items():
        cells = {}
        for scope in ("common", "any"):
            results = [
                same_class_auc(np.where(together | (scope == "any"), known_pairs(s), np.nan), classes) for s in many
            ]
            mean = np.mean([r.draws for r in results], axis=0)
            low, high = np.quantile(mean, [0.025, 0.975])
            draws[name, scope] = mean
            cells[scope] = [round(float(v), 3) for v in (np.mean([r.auc for r in results]), low, high)]
            pairs = (results[0].n_same, results[0].n_pairs)
            cells[f"pairs_{scope}"] = pairs
        table[name] = cells
        print(f"{name:<38}" + "".join("{:>10.3f} ({:.3f}–{:.3f})".format(*cells[s]) for s in ("common", "any")))
    gains = {}
    for other in ("signature correlation", f"PCA-{d}", f"PCA-{d}, whitened within drugs", "Tanimoto of fingerprints"):
        gap = draws["model", "common"] - draws[other, "common"]
        low, high = np.quantile(gap, [0.025, 0.975])
        value = table["model"]["common"][0] - table[other]["common"][0]
        gains[other] = [round(float(v), 3) for v in (value, low, high)]
        print("model beyond {}: {:+.3f} ({:+.3f} to {:+.3f})".format(other, *gains[other]))
    figures = {
        "auc_model": table["model"]["common"][0],
        "auc_signature": table["signature correlation"]["common"][0],
        "auc_pca": table[f"PCA-{d}"]["common"][0],
        "auc_pca_whitened": table[f"PCA-{d}, whitened within drugs"]["common"][0],
        "auc_tanimoto": table["Tanimoto of fingerprints"]["common"][0],
        "auc_model_tanimoto": table["model + Tanimoto"]["common"][0],
        "gain": gains,
        "table": table,
        "latents": d,
        "seeds": seeds,
    }
    finish(arguments.out or Path(__file__).parent / "results", figures, arguments)


if __name__ == "__main__":
    main()

"""Does the posterior name the gene a hairpin was made to silence?

Environments are hairpins known by name only. A dense Environment VAE is fitted and rotated to sparse; each environment
(or single well) is then read by its one strongest latent, whose gene programme names a gene: is it the target? Beside it
the most negative z-score, plain and in units of the gene's spread over the other environments. Single wells are read by
models that never saw them (four folds, one replicate each).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from contract import finish, options

import pyro_cge as cge
from pyro_cge.interpret import (
    environment_effects,
    gene_programmes,
    relative_effects,
    strongest_latent_effects,
    summarise_ranks,
    target_ranks,
)
from pyro_cge.train.rotation import rotate

FOLDS = 4


def synthetic(hairpins: int = 16, wells: int = 4, g: int = 80) -> cge.EnvironmentData:
    """A stand-in for ``--quick`` without data: each hairpin silences a gene and moves two of six shared programmes."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(6, g)) * np.exp(rng.normal(size=g) / 2)
    effect = (rng.random((hairpins, 6)) < 1 / 3) * rng.normal(size=(hairpins, 6)) @ shared
    effect[np.arange(hairpins), np.arange(hairpins)] -= 5
    means = np.concatenate([np.zeros((2, g)), effect])
    x = np.repeat(means, wells, 0) + rng.normal(size=(len(means) * wells, g))
    names = ["empty", "untreated", *(f"hairpin {i}" for i in range(hairpins))]
    return cge.EnvironmentData(
        x=torch.from_numpy(x.astype(np.float32)),
        env=torch.arange(len(means)).repeat_interleave(wells),
        gene_names=[f"g{k}" for k in range(g)],
        env_names=names,
        env_table=pd.DataFrame({"target": [None, None, *(f"g{i}" for i in range(hairpins))]}, index=names),
        control=[0, 1],
    )


def fitted(data: cge.EnvironmentData, d: int, epochs: int, seed: int) -> cge.Fit:
    """Dense shifts of the noise mean, linear encoder and decoder: the model of the rotation step."""
    with cge.isolated(seed):
        model = cge.CellModel(cge.DensePrior(data, d, moves="loc"), None, cge.LinearDecoder(d, data.g))
        guide = cge.AmortizedGuide(model, None, hidden=())
    settings = {
        "epochs": epochs,
        "batch_size": 64 if data.g > 500 else 16,
        "lr": 3e-3,
        "validation": None,
        "patience": None,
    }
    return cge.fit(model, guide, data, seed=seed, progress=False, **settings)


def named_by_environment(fit: cge.Fit, data: cge.EnvironmentData, sd: pd.Series) -> pd.DataFrame:
    posterior = fit.posterior(data)
    programmes = gene_programmes(posterior, wrt="z").div(sd, axis=0)
    shifts = pd.DataFrame(posterior.shift().loc.numpy(), index=data.env_names, columns=programmes.columns)
    return strongest_latent_effects(shifts, programmes)


def named_by_well(fit: cge.Fit, wells: cge.EnvironmentData, names: list[str], sd: pd.Series) -> pd.DataFrame:
    posterior = fit.posterior(wells)
    programmes = gene_programmes(posterior, wrt="z").div(sd, axis=0)
    return strongest_latent_effects(posterior.latents().set_axis(names), programmes)


def difference(model: pd.DataFrame, baseline: pd.DataFrame, seed: int = 0) -> list[float]:
    """Top-1 of the model minus that of the baseline, with an interval over target genes (paired)."""
    hits = [t.assign(hit=t["rank"] < 1.5).groupby("target")["hit"].mean() for t in (model, baseline)]
    gap = (hits[0] - hits[1]).to_numpy()
    draws = gap[np.random.default_rng(seed).integers(len(gap), size=(2000, len(gap)))].mean(1)
    return [round(float(v), 3) for v in (gap.mean(), *np.quantile(draws, [0.025, 0.975]))]


def main() -> None:
    parser = options(__doc__ or "", seeds=3, data=True)
    parser.add_argument("--latents", type=int, default=80)
    parser.add_argument("--epochs", type=int, default=200)
    arguments = parser.parse_args()
    if arguments.data is None and not arguments.quick:
        parser.error("--data FILE.h5ad is needed (made by convert.py), or --quick for a synthetic stand-in")
    data = synthetic() if arguments.data is None else cge.read_h5ad(arguments.data)
    seeds = 1 if arguments.quick else arguments.seeds
    d = arguments.latents if data.g > 500 else 22
    torch.set_num_threads(1)  # the matrices are small: more threads only wait for each other

    env = data.env.numpy()
    wells = np.array([f"well {i}" for i in range(data.n)])
    key = data.env_table["target"].dropna().astype(str)
    keys = {
        "environment": key,
        "well": {w: key[data.env_names[e]] for w, e in zip(wells, env) if data.env_names[e] in key},
    }
    z = pd.DataFrame(data.x.numpy(), index=wells, columns=data.gene_names)
    sd = z.std()
    means = z.groupby(env).mean().set_axis(data.env_names)
    print(f"{data}; {len(key)} hairpins with a measured target, {len(keys['well'])} wells")

    # Each row: what names genes, for wells or environments, over the seeds.
    effects: dict[tuple[str, str], list[pd.DataFrame]] = {
        ("well", "z-score"): [z],
        ("well", "z-score, relative"): [relative_wells(z, env)],
        ("environment", "z-score"): [means],
        ("environment", "z-score, relative"): [relative_effects(means)],
    }
    replicate = pd.Series(env).groupby(env).cumcount().to_numpy() % FOLDS
    for seed in range(seeds):
        unseen = []
        for fold in range(FOLDS):
            train, test = np.flatnonzero(replicate != fold), np.flatnonzero(replicate == fold)
            fit = rotate(fitted(data.rows(train), d, arguments.epochs, seed), data.rows(train), seed=seed)
            unseen.append(named_by_well(fit, data.rows(test), list(wells[test]), sd))
        rows = {("well", "model, unseen wells"): pd.concat(unseen)}
        fit = fitted(data, d, arguments.epochs, seed)
        rows["environment", "model, whole effect"] = environment_effects(fit.posterior(data)).div(sd)
        rows["environment", "model, no rotation"] = named_by_environment(fit, data, sd)
        rows["environment", "model"] = named_by_environment(rotate(fit, data, seed=seed), data, sd)
        for name, table in rows.items():
            effects.setdefault(name, []).append(table)
        print(f"seed {seed} done", flush=True)

    if seeds > 1:
        for level, name in (("well", "model, unseen wells"), ("environment", "model")):
            effects[level, f"{name}, mean"] = [sum(effects[level, name][1:], effects[level, name][0]) / seeds]
    ranks = {
        (level, name): pd.concat(target_ranks(table, keys[level], direction="down") for table in tables)
        for (level, name), tables in effects.items()
    }
    print(f"{'':<36}{'top-1':>22}{'top-10':>22}{'median rank':>22}")
    summaries = {}
    for (level, name), table in sorted(ranks.items(), key=lambda item: item[0][0], reverse=True):
        summaries[f"{level}: {name}"] = summary = summarise_ranks(table)
        cells = ["{:.3f} ({:.3f}–{:.3f})".format(*summary.loc[row]) for row in ("top1", "top10")]
        cells.append("{:.1f} ({:.1f}–{:.1f})".format(*summary.loc["median_rank"]))
        print(f"{level + ': ' + name:<36}" + "".join(f"{cell:>22}" for cell in cells))
    gaps = {
        "well": difference(ranks["well", "model, unseen wells"], ranks["well", "z-score"]),
        "well_relative": difference(ranks["well", "model, unseen wells"], ranks["well", "z-score, relative"]),
        "environment": difference(ranks["environment", "model"], ranks["environment", "z-score"]),
        "environment_relative": difference(ranks["environment", "model"], ranks["environment", "z-score, relative"]),
        "rotation": difference(ranks["environment", "model"], ranks["environment", "model, no rotation"]),
    }
    for name, (gap, low, high) in gaps.items():
        print(f"top-1 gained, {name}: {gap:+.3f} ({low:+.3f} to {high:+.3f})")

    def top1(name: str) -> float:
        return round(float(summaries[name].loc["top1", "value"]), 3)

    figures = {
        "top1_model": top1("well: model, unseen wells"),
        "top1_model_seeds_averaged": top1("well: model, unseen wells" + ", mean" * (seeds > 1)),
        "top1_zscore": top1("well: z-score"),
        "top1_zscore_relative": top1("well: z-score, relative"),
        "top1_model_env": top1("environment: model"),
        "top1_model_env_without_rotation": top1("environment: model, no rotation"),
        "top1_zscore_env": top1("environment: z-score"),
        "top1_zscore_env_relative": top1("environment: z-score, relative"),
        "gain": gaps,
        "table": {name: table.round(3).T.to_dict("list") for name, table in summaries.items()},
        "latents": d,
        "seeds": seeds,
    }
    finish(arguments.out or Path(__file__).parent / "results", figures, arguments)


def relative_wells(z: pd.DataFrame, env: np.ndarray) -> pd.DataFrame:
    """z-scores in standard deviations of the gene over the wells of all other environments."""
    x = z.to_numpy(dtype=np.float64)
    out = np.empty_like(x)
    for e in np.unique(env):
        rest = x[env != e]
        out[env == e] = (x[env == e] - rest.mean(0)) / rest.std(0)
    return pd.DataFrame(out, index=z.index, columns=z.columns)


if __name__ == "__main__":
    main()

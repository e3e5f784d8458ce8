# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Drug × cell line: imputing experiments nobody did, with intervals
#
# Of all pairs of drug and cell line a few per cent are ever measured. `Effects` holds those that were, an imputer predicts
# the others, and one protocol says how well. Everything here has `fit` and `predict`; `NTKGP` also says how sure it is.
#
# ## A table with holes
#
# A simulated cell of twelve latent causes. A cell line offsets all of them, a drug shifts one to three; drugs that shift the
# same causes share bits of their fingerprints. A quarter of 10 × 60 pairs is measured, with noise as large as the effects.

# %%
import os
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import pyro_cge as cge
from pyro_cge.imputation import (
    DNPP,
    NTKGP,
    ActionMean,
    ContextMean,
    Effects,
    NTKCompletion,
    ShrunkMean,
    SyntheticInterventions,
    cross_validate,
    hold_out,
    k_fold,
)

rng = np.random.default_rng(3)
K, A, d = 10, 60, 12
base = 0.7 * rng.normal(size=(K, d))
shift = np.zeros((A, d))
for row in shift:
    hit = rng.choice(d, rng.integers(1, 4), replace=False)
    row[hit] = 2 * rng.choice([-1, 1], len(hit))
context, action = np.divmod(np.arange(K * A), A)
everything = cge.simulate.Environments(
    [f"e{i}" for i in range(K * A + K)],
    cge.NoiseShift(
        torch.tensor(np.concatenate([base[context] + shift[action], base]), dtype=torch.float32),
        torch.zeros(K * A + K, d),
    ),
)
truth = cge.simulate.growing_network(n_latents=d, n_genes=80, decoder="neural", attach=0.2, environments=everything)
with torch.no_grad(), cge.isolated(0):
    mean = (
        truth.predict(everything.schema(truth.gene_names).cells(torch.arange(K * A + K)), n_samples=100)
        .double()
        .numpy()
    )
exact = mean[: K * A] - mean[K * A :][context]
exact /= exact.std()
bits = (shift @ rng.normal(size=(d, 96)) + 0.5 * rng.normal(size=(A, 96))) > 1.0

lines, drugs = [f"line {k}" for k in range(K)], [f"drug {a:02d}" for a in range(A)]
seen = rng.random(K * A) < 0.25 + 0.5 * (context == 0)
effects = Effects(
    (exact + rng.normal(size=exact.shape))[seen],
    context[seen],
    action[seen],
    lines,
    drugs,
    truth.gene_names,
    training_only=["line 0"],
    action_features=pd.DataFrame(bits.astype(float), index=drugs),
)
print(effects)

# %% [markdown]
# From AnnData: `Effects.from_anndata(adata, context="cell_line", action="drug", control="DMSO", replicates="mean")`.
#
# ## One protocol
#
# Each measured pair is held out once, within its cell line; `line 0` is the reference and always trains. Three numbers:
# correlation pooled over all held-out entries, R² and cosine of a signature. `NTKGP` is scored by its 90 % intervals too.

# %%
methods = {
    "cell line mean": ContextMean(),
    "drug mean": ActionMean(),
    "shrunk mean": ShrunkMean(),
    "DNPP": DNPP(),
    "synthetic interventions": SyntheticInterventions(donors="contexts"),
    "NTK": NTKCompletion(),
    "NTKGP": NTKGP(),
}
scores = cross_validate(methods, effects, k_fold(effects, 5), progress=False)
print(scores.drop(columns="cpu_s").round(3).to_string())
fig, axes = plt.subplots(1, 3, figsize=(11, 3), layout="constrained", sharey=False)
for ax, score in zip(axes, ("r", "r2", "cosine"), strict=True):
    cge.plots.imputation_scores(scores, score, ax=ax)

# %% [markdown]
# Measured noise limits all of them: the exact effects themselves would only reach

# %%
print({k: round(v, 3) for k, v in cge.metrics.imputation_scores(effects.x, exact[seen]).items()})

# %% [markdown]
# ## What nobody measured, and how sure we are

# %%
gp = NTKGP().fit(effects)
missing = effects.missing
mean, std = gp.predict(missing, return_std=True)
hidden = exact[~seen]
print(
    f"r with the exact effects of the {len(missing)} missing pairs: {np.corrcoef(mean.ravel(), hidden.ravel())[0, 1]:.3f}"
)
noisy = hidden + rng.normal(size=hidden.shape)
print(f"90 % intervals hold {(np.abs(noisy - mean) < 1.645 * std).mean():.1%} of new measurements")

# %%
cge.plots.pair_map(effects, std.mean(1), label="standard deviation")
# %% [markdown]
# The map shows where the next plate would teach most: drugs seen in no other line, in lines with few drugs. One imputed
# signature against what was then measured:

# %%
surest = int((np.abs(mean) / std).mean(1).argmax())
pair = missing.iloc[surest]
ax = cge.plots.imputed_signature(
    pd.Series(mean[surest], index=list(effects.gene_names)), std[surest], true=noisy[surest], most=40
)
ax.set_title(f"{pair.action} in {pair.context}", fontsize=9)
# %% [markdown]
# The variances the data chose say what a signature is made of:

# %%
print(gp.variances_.round(3).to_string())

# %% [markdown]
# ## Real data
#
# With `PYRO_CGE_DATA` set to a folder of the level-5 L1000 table (1,074 structures × 24 cell lines, 13 % measured): one fold of
# ten. `benchmarks/imputation` has all folds, seeds and methods.

# %%
folder = os.environ.get("PYRO_CGE_DATA")
if folder and (Path(folder) / "l1000_level5_gps24.npz").is_file():
    sys.path.insert(0, str(Path("../benchmarks/imputation").resolve()))
    from problems import level5

    table = level5(Path(folder))
    fold = [next(k_fold(table, 10))]
    chosen = {"cell line mean": ContextMean(), "drug mean": ActionMean(), "shrunk mean": ShrunkMean(), "NTKGP": NTKGP()}
    real = pd.DataFrame(
        {name: hold_out(one, table, fold, progress=False).scores(table) for name, one in chosen.items()}
    ).T
    print(table)
    print(real.drop(columns="cpu_s").round(3).to_string())

# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Gene programmes: what the latents say about genes
#
# A latent is a direction in gene space: its *programme*. We fit a model to L1000 signatures of drugs, read the programmes,
# test them against gene sets, and ask whether drugs with one mechanism move the same latents. Then the hardest question,
# on a plate of gene knock-downs: does the model name the gene that was silenced?
#
# Real data are read from the folder in `PYRO_CGE_DATA`; without it a small simulated stand-in of the same form is used.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import pyro_cge as cge
from pyro_cge import interpret
from pyro_cge.train.rotation import rotate

folder = os.environ.get("PYRO_CGE_DATA")

# %% [markdown]
# ## Data
#
# Files hold a matrix (`X`, `gene`) and a table with a row a profile. An environment is a drug, or a hairpin, known by name
# only: what is known of its mechanism or target is the answer key, and no model sees it.


# %%
def read(name):
    with np.load(Path(folder) / f"{name}.npz") as arrays:
        x = pd.DataFrame(arrays["X"].astype(np.float32), columns=arrays["gene"].astype(str))
    table = pd.read_csv(Path(folder) / f"{name}_obs.csv.gz", dtype=str)
    symbols = pd.read_csv(Path(folder) / "genes_landmark978.csv", dtype=str).set_index("entrez_id")["symbol"]
    return x.rename(columns=symbols), table, symbols


def simulated(n_environments, n_profiles, own_gene):
    """Environments of five classes, each moving one of five programmes of ten genes, or silencing a gene of their own."""
    rng = np.random.default_rng(0)
    genes = [f"gene {k}" for k in range(60)]
    label = np.arange(n_environments) % 5
    effect = np.kron(np.eye(5), np.ones(12))[label] * rng.uniform(0.5, 2, (n_environments, 1))
    if own_gene:
        effect[np.arange(n_environments), np.arange(n_environments)] -= 3
    x = np.repeat(effect, n_profiles, 0) + rng.normal(size=(n_environments * n_profiles, 60))
    names = [f"environment {e}" for e in range(n_environments)]
    table = pd.DataFrame({"name": names, "moa": [f"class {c}" for c in label], "target": genes[:n_environments]})
    return pd.DataFrame(x, columns=genes), table.loc[table.index.repeat(n_profiles)].reset_index(drop=True)


def environments(x, table, column, control=None):
    codes, names = pd.factorize(table[column])
    return cge.EnvironmentData(
        x=torch.from_numpy(x.to_numpy(np.float32)),
        env=torch.from_numpy(codes.astype(np.int64)),
        gene_names=list(x.columns),
        env_names=list(names),
        env_table=table.drop_duplicates(column).set_index(column),
        control=[] if control is None else np.unique(codes[control]).tolist(),
    )


if folder:
    x, table, symbols = read("l1000_level5_gps24")
    x = x - x.groupby(table["cell_id"]).transform("mean")  # a drug is not known by the cell lines it was tested in
    drugs = environments(x, table.rename(columns={"compound_key": "name"}), "name")
    gene_sets = interpret.read_gmt(Path(folder) / "bio" / "hallmark_v7.0.gmt")
else:
    drugs = environments(*simulated(40, 4, own_gene=False), "name")
    gene_sets = {f"programme {c}": drugs.gene_names[12 * c : 12 * c + 12] for c in range(5)}
drugs

# %% [markdown]
# ## Fit
#
# A linear decoder makes programmes the same everywhere; `gene_programmes` works for any decoder (it averages exact
# derivatives over the profiles, and `profile_programmes` gives one for each). The rotation step turns the dense fit to
# latents that are on one scale and moved by few drugs each.


# %%
def fitted(data, d, epochs, batch_size=128):
    with cge.isolated(0):
        model = cge.CellModel(cge.DensePrior(data, d, moves="loc"), None, cge.LinearDecoder(d, data.g))
        guide = cge.AmortizedGuide(model, hidden=())
    settings = {"epochs": epochs, "batch_size": batch_size, "lr": 3e-3}
    fit = cge.fit(model, guide, data, validation=None, patience=None, seed=0, **settings)
    return rotate(fit, data).posterior(data)


posterior = fitted(drugs, d=50 if folder else 5, epochs=40 if folder else 150)

# %% [markdown]
# ## Programmes
#
# Genes are in standard deviations, so that all can be compared. The sign of a latent is arbitrary: only shift × programme
# means anything, and `gene_interactions`, where signs cancel. Latents that drugs move most come first; in the interactions
# they count by how far drugs move them.

# %%
programmes = interpret.gene_programmes(posterior, units="sd")
cge.plots.programmes(programmes, list(programmes.columns[:6]), n=8)
plt.show()

# %%
spread = posterior.shift().loc.std(0).numpy()
interpret.gene_interactions(programmes * spread, n=8).round(2)

# %% [markdown]
# ## Enrichment
#
# `rank_enrichment` is the Mann–Whitney test for plain sets, and its signed, weighted form for transcription-factor targets
# or pathway footprints (`read_weighted_sets`). q-values are over all latents and sets. On the real data
# hypoxia, NF-κB signalling, cholesterol and p53 each come out as one latent.

# %%
enriched = interpret.rank_enrichment(programmes, gene_sets)
cge.plots.enrichment(enriched)
plt.show()

# %% [markdown]
# ## Do drugs of one mechanism move the same latents?
#
# The area under the ROC curve over all pairs of drugs, with an interval that resamples drugs. Mechanisms were not in the
# model. Beside it the correlation of the mean signatures.

# %%
key = drugs.env_table["moa"]
known = np.flatnonzero(key.notna())
pairs = np.ix_(known, known)
signatures = pd.DataFrame(drugs.x.numpy()).groupby(drugs.env.numpy()).mean()
similarities = {
    "latent shifts": interpret.latent_similarity(posterior.shift()),
    "mean signatures": np.corrcoef(signatures),
}
results = {
    name: interpret.same_class_auc(s[pairs], list(key.iloc[known]), n_boot=100) for name, s in similarities.items()
}
pd.DataFrame({name: {"AUC": r.auc, "low": r.low, "high": r.high} for name, r in results.items()}).T.round(3)

# %% [markdown]
# ## Does the model name the silenced gene?
#
# One plate of short hairpins, four wells each. The model's expected effect of each hairpin, in units of the gene's spread
# over the other hairpins, ranks all genes; the baseline is the mean z-score.

# %%
if folder:
    x, table, symbols = read("l1000_kd_plate374")
    table["target"] = table["target_entrez"].map(symbols)
    plate = environments(x, table, "pert_id", control=table["pert_type"] != "trt_sh")
else:
    plate = environments(*simulated(40, 4, own_gene=True), "name")
posterior = fitted(plate, d=80 if folder else 45, epochs=100, batch_size=64 if folder else 16)

# %%
targets = plate.env_table["target"]
measured = pd.DataFrame(plate.x.numpy(), columns=plate.gene_names).groupby(plate.env.numpy()).mean()
candidates = {
    "model": interpret.relative_effects(interpret.environment_effects(posterior)),
    "z-score": measured.set_axis(plate.env_names),
}
ranks = {name: interpret.target_ranks(effects, targets, direction="down") for name, effects in candidates.items()}
pd.concat({name: interpret.summarise_ranks(r) for name, r in ranks.items()}).round(2)

# %%
for name, table in ranks.items():
    plt.plot(np.sort(table["rank"]), np.linspace(0, 1, len(table)), label=name)
plt.xscale("log")
plt.xlabel("rank of the silenced gene")
plt.ylabel("share of hairpins")
plt.legend(frameon=False)
plt.show()

# %% [markdown]
# Part of the gain is the yardstick: a gene that answers to every hairpin is no evidence. The benchmark
# `benchmarks/knockdown_targets` takes the two apart, reads each hairpin by its single strongest latent, and
# scores wells the model never saw; `benchmarks/mechanism_classes` does the same for drugs.

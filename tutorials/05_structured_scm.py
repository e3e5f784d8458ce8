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
# # A structured latent SCM, and counterfactuals
#
# Causes inside a cell act on one another: C_j = f_j(parents of C_j) + Z_j. We fit such a model along a given graph,
# intervene on it and on the truth with the same calls, and ask what each single cell would have looked like under another
# treatment. And we look at what the data do not tell.

# %%
import re

import matplotlib.pyplot as plt
import networkx as nx
import pandas as pd
import pyro
import torch

import pyro_cge as cge
from pyro_cge.scm.mechanisms import LinearMechanism
from pyro_cge.train.rotation import rotate

# %% [markdown]
# ## A cell with a graph inside
#
# A diamond with a tail. Mechanisms are small neural networks, so the same push moves different cells differently. Twenty
# environments shift the noise of one latent each by N(0, variance 4). Genes read a few latents each.

# %%
graph = nx.DiGraph([(0, 1), (0, 2), (1, 3), (2, 3), (3, 4)])
environments = cge.simulate.random_shifts(5, 20, variance=4, cover=True, seed=2)
truth = cge.simulate.simulator(
    graph,
    n_latents=5,
    n_genes=50,
    mechanism="neural",
    attach=0.3,
    gene_noise=0.3,
    environments=environments,
    seed=5,
)
data = truth.sample(120, seed=11)
data

# %% [markdown]
# `LatentSCM` assigns one layer of the graph at a time, a sample site each. `pyro.render_model` sees them (with Graphviz
# installed the object draws itself; here networkx does).

# %%
source = pyro.render_model(truth, model_args=(data.batch(),), render_deterministic=True).source
sites = nx.DiGraph(re.findall(r"(\w+) -> (\w+)", source))

column = dict.fromkeys(["env_loc", "env_log_scale"], 0) | {"z": 1, "c_1": 2, "c_2": 3, "c_3": 4, "c_4": 5, "x": 6}
height = {"env_loc": 0.5, "env_log_scale": -0.5, "c_1": 0.9, "c_2": 0.3, "c_3": -0.3, "c_4": -0.9}
layouts = {
    "latent graph": (graph, {0: (0, 0), 1: (1, 0.5), 2: (1, -0.5), 3: (2, 0), 4: (3, 0)}),
    "sample sites": (sites, {site: (column[site], height.get(site, 0)) for site in sites}),
}
axes = plt.subplots(1, 2, figsize=(11, 3), layout="constrained", width_ratios=[1, 2])[1]
for ax, (title, (network, place)) in zip(axes, layouts.items()):
    nx.draw(
        network, place, ax=ax, with_labels=True, node_size=1100, node_color="#DCE9F2", edge_color="0.5", font_size=8
    )
    ax.set_title(title, fontsize="medium")
    ax.margins(0.15)
plt.show()

# %% [markdown]
# ## Three fits
#
# 1. **Known support**: the graph, and which genes read which latent (from known targets of regulators, say). The weights
#    and the mechanisms are learned.
# 2. **Free decoder**: the graph alone.
# 3. **No graph**: a dense fit with C = Z, rotated so that each environment moves few latents.


# %%
def structured(support=None):
    with cge.isolated(0):
        options = {"mechanism": "neural", "decoder": "linear", "guide": "structured", "moves": "loc"}
        model, guide = cge.structured_vae(data, d=5, graph=graph, **options)
        if support is not None:
            model.decoder = cge.MechanismDecoder(LinearMechanism(support, weights="small"))
    return fitted(model, guide)


def unstructured():
    with cge.isolated(0):
        model = cge.CellModel(cge.DensePrior(data, d=5, moves="loc"), scm=None, decoder=cge.MLPDecoder(5, data.g))
        guide = cge.AmortizedGuide(model, conditioning="concat")
    return rotate(fitted(model, guide), data)


def fitted(model, guide):
    options = {"schedule": "one_cycle", "patience": None, "standardize": False}
    return cge.fit(model, guide, data, epochs=80, batch_size=256, lr=2e-2, **options)


fits = {
    "known support": structured(truth.decoder.mechanism.mask),
    "free decoder": structured(),
    "no graph, rotated": unstructured(),
}
matchings = {
    name: cge.metrics.match_latents(fit.posterior(data).latents().to_numpy(), data.truth.z)
    for name, fit in fits.items()
}
pd.DataFrame(
    {
        "held-out loss": {name: fit.history["valid_loss"].min() for name, fit in fits.items()},
        "MCC with true Z": {name: matching.mcc for name, matching in matchings.items()},
        "MCC with true C": {
            name: cge.metrics.mcc(fit.posterior(data).latents("c").to_numpy(), data.truth.c)
            for name, fit in fits.items()
        },
    }
).round(2)

# %% [markdown]
# ## Intervene
#
# Three handlers, the same on truth and model: replace the law of a latent's noise, set the latent, or change its
# mechanism (here: cut its parents). Same thousand control cells, before and after; the fitted latent is the one matched
# to the true one, with its sign.

# %%
cells = data.cells(torch.zeros(1000, dtype=torch.long))  # environment 0 is the control
HANDLERS = {
    "noise: Z_j ~ N(3, 1)": lambda j, sign: cge.NoiseIntervention(j, loc=3.0 * sign),
    "hard: do(C_j = −3)": lambda j, sign: cge.HardIntervention(j, value=-3.0 * sign),
    "mechanism: parents cut": lambda j, sign: cge.MechanismIntervention(j, gain=0.0),
}


def effect(model, handler):
    """Mean change of each gene ``[g]`` over the same cells."""
    with cge.isolated(1):
        before = model.predict(cells, n_samples=1)
    with cge.isolated(1), handler:
        return (model.predict(cells, n_samples=1) - before).mean(-2)


figure, axes = plt.subplots(3, 3, figsize=(9, 8), layout="constrained", sharex="row", sharey="row")
for row, (kind, handler) in zip(axes, HANDLERS.items()):
    latents = range(1, 5) if "cut" in kind else range(5)  # latent 0 has no parents
    goal = torch.cat([effect(truth, handler(j, 1)) for j in latents])
    for ax, (name, fit) in zip(row, fits.items()):
        found = [(int(matchings[name].order[j]), float(matchings[name].sign[j])) for j in latents]
        guess = torch.cat([effect(fit.model, handler(*latent)) for latent in found])
        r2 = 1 - (guess - goal).square().sum() / goal.square().sum()
        ax.axline((0, 0), slope=1, color="0.6", lw=1)
        ax.scatter(guess, goal, s=8, alpha=0.6, lw=0)
        ax.set_title(f"{name}: R² = {r2:.2f}" if r2 > 0 else f"{name}: no better than none", fontsize="medium")
        ax.spines[["top", "right"]].set_visible(False)
    row[0].set_ylabel(f"{kind}\ntrue effect on a gene")
figure.supxlabel("effect in the fitted model", fontsize="medium")
plt.show()

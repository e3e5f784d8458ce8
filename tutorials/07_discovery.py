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
# # Causal graphs from interventions nobody labelled
#
# A screen perturbs a gene in each arm, but a guide may miss, hit a second gene, or weaken a mechanism without switching it
# off. `OrderSearch` finds the graph among genes *and* which arm changed which gene's mechanism, from expression alone.
#
# ## A screen
#
# Twenty genes: five regulators, fifteen they act on. Nine guides, 150 cells each, and 400 cells with a non-targeting guide.
# Guides act in different ways: a knock-out cuts a gene from its causes, a knock-down halves what its causes do to it and
# lowers it, one guide has an off-target nobody knows of, and one does nothing.

# %%
import os
from pathlib import Path

import anndata
import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
import pandas as pd

import pyro_cge as cge
from pyro_cge.discovery import Knowledge, OrderDAG, OrderSearch, UtIgsp, named_graph

rng = np.random.default_rng(7)
regulators = ["Spi1", "Cebpb", "Rela", "Irf1", "Stat1"]
effectors = [
    "Tnf",
    "Il6",
    "Il1b",
    "Cxcl10",
    "Isg15",
    "Mx1",
    "Ccl5",
    "Nos2",
    "Cd40",
    "Ptgs2",
    "Ifit1",
    "Csf1",
    "Lyz2",
    "Socs3",
    "Cd86",
]
genes = regulators + effectors
d = len(genes)
W = np.zeros((d, d))
for i, j in [(0, 1), (0, 2), (2, 3), (3, 4), (1, 4)]:
    W[i, j] = rng.choice([-1, 1]) * rng.uniform(0.4, 0.9)
for j in range(5, d):
    causes = rng.choice(j, 2, replace=False)
    W[causes, j] = rng.choice([-1, 1], 2) * rng.uniform(0.4, 0.9, 2)
truth = named_graph(W, genes, weight=W)
scale = rng.uniform(0.6, 1.2, d)


def cells(n, effects=()):
    """n cells; effects: (gene, what is left of its causes' action, shift, noise factor)."""
    left, shift, spread = np.ones(d), np.zeros(d), scale.copy()
    for gene, gamma, by, factor in effects:
        j = genes.index(gene)
        left[j], shift[j], spread[j] = gamma, by, spread[j] * factor
    noise = shift + spread * rng.standard_normal((n, d))
    return noise @ np.linalg.inv(np.eye(d) - W * left)


guides = {
    "sgSpi1": [("Spi1", 0.0, -2.0, 0.5)],
    "sgCebpb": [("Cebpb", 0.0, -2.0, 0.5)],
    "sgRela": [("Rela", 0.0, -2.0, 0.5), ("Socs3", 1.0, -1.5, 1.0)],  # an off-target
    "sgIrf1": [("Irf1", 0.5, -1.0, 1.0)],
    "sgStat1": [("Stat1", 0.5, -1.0, 1.0)],
    "sgTnf": [("Tnf", 0.0, -2.0, 0.5)],
    "sgNos2": [("Nos2", 0.5, -1.0, 1.0)],
    "sgCd40": [("Cd40", 1.0, 0.0, 2.0)],  # noisier, the mean as it was
    "sgLyz2": [],  # a guide that does nothing
}
parts = {"NTC": cells(400)} | {guide: cells(150, effects) for guide, effects in guides.items()}
labels = np.repeat(list(parts), [len(x) for x in parts.values()])
adata = anndata.AnnData(
    np.vstack(list(parts.values())) + 3.0,
    obs=pd.DataFrame({"guide": labels}, index=[f"cell{i}" for i in range(len(labels))]),
    var=pd.DataFrame(index=genes),
)
hit = pd.DataFrame(0, index=list(parts), columns=genes)
for guide, effects in guides.items():
    hit.loc[guide, [gene for gene, *_ in effects]] = 1
adata

# %% [markdown]
# ## Graph and targets
#
# The label of the guide is only used to tell cells apart: nothing says what it targets.

# %%
model = OrderSearch().fit(adata, env="guide", control="NTC")
precision, recall = cge.metrics.target_precision_recall(model.targets_, hit)
print(f"edges wrong (SHD): {cge.metrics.structural_hamming_distance(model.graph_, truth)} of {truth.number_of_edges()}")
print(f"targets: precision {precision:.2f}, recall {recall:.2f}")
cge.plots.targets(model.targets_, hit)
plt.show()

# %% [markdown]
# The off-target of *sgRela* is among them, the guide that does nothing has none, and the one that only makes its gene noisier
# has its target. The graph, with edges as wide as they are strong:

# %%
cge.plots.graph(model.graph_)
plt.show()

# %% [markdown]
# ### What interventions add
#
# From the 400 unperturbed cells alone, directions are open where both fit the data (blue, no arrow heads). An intervention on
# one end of an edge tells its direction, without anyone saying which end that was.

# %%
alone = OrderSearch().fit(adata[adata.obs["guide"] == "NTC"])
figure, axes = plt.subplots(1, 2, figsize=(15, 6), layout="constrained")
cge.plots.graph(alone.essential_graph_, truth, axes[0]).set_title("non-targeting cells")
cge.plots.graph(model.essential_graph_, truth, axes[1]).set_title("with nine unlabelled interventions")
plt.show()

# %%
rows = {
    "no edges": named_graph(np.zeros((d, d)), genes),
    "control only": alone.essential_graph_,
    "all cells, arms ignored": OrderSearch().fit(pd.DataFrame(adata.X, columns=genes)).essential_graph_,
    "UT-IGSP": UtIgsp().fit(adata, env="guide", control="NTC").graph_,
    "order search, unknown targets": model.graph_,
}
pd.DataFrame(
    {
        name: {
            "SHD": cge.metrics.structural_hamming_distance(graph, truth),
            "SHD of the equivalence class": cge.metrics.essential_distance(
                graph, truth, [{gene for gene, *_ in effects} for effects in guides.values() if effects]
            ),
            "recall": round(cge.metrics.edge_recovery(graph, truth).recall, 2),
            "FDR": round(cge.metrics.edge_recovery(graph, truth).fdr, 2),
        }
        for name, graph in rows.items()
    }
).T

# %% [markdown]
# ## A posterior of targets and effects
#
# `InterventionalSCM` starts from the search and is a Pyro model: edges along an order, weights, and for each arm and gene
# whether it is a target, how far its noise moves, and what is left of its causes' action (`gamma`; 0 is a knock-out).

# %%
scm = cge.discovery.InterventionalSCM().fit(adata, env="guide", control="NTC")
scm.interventions_.round(2)

# %%
cge.plots.targets(scm.target_probabilities_, hit)
plt.show()

# %% [markdown]
# Every draw is in ArviZ, by name. And the fitted model answers what it has not seen, with the handlers of the latent models:
# *Spi1* held one standard deviation of its noise above and below.

# %%
draws = scm.to_arviz(500)
left = float(draws.posterior["gamma"].sel(environment="sgNos2", gene="Nos2").mean())
print(f"left of what acts on Nos2: {left:.2f} (truth 0.50)")
levels = {}
for value in (-1.0, 1.0):
    with cge.HardIntervention(genes.index("Spi1"), value=value):
        levels[value] = scm.predict(n=2000).mean()
effect = (levels[1.0] - levels[-1.0]).sort_values(key=abs, ascending=False)
effect[effect.abs() > 0.02].drop("Spi1").round(2).to_frame("change")

# %% [markdown]
# ## Prior knowledge
#
# With 60 unperturbed cells there is little to go by. What is known beforehand is enforced exactly: regulators come before
# effectors (tiers), *Spi1* acts on *Rela* (required), *Cd86* and *Socs3* on nothing (leaves). So is what is wrong: it is not
# weighed against the data.

# %%
few = pd.DataFrame(parts["NTC"][:60], columns=genes)
known = Knowledge(tiers=[regulators, effectors], required=[("Spi1", "Rela")], leaves=["Cd86", "Socs3"])
for name, knowledge in {"without": None, "with": known}.items():
    found = OrderSearch(knowledge=knowledge).fit(few)
    counts = cge.metrics.edge_recovery(found.graph_, truth)
    print(f"{name:>8} prior knowledge: {counts.correct} right, {counts.reversed} reversed, {counts.extra} extra")

# %% [markdown]
# ## How sure?
#
# `OrderDAG` gives the posterior probability of each edge, causes down, effects across; true edges are outlined. From
# observations alone an edge whose direction is open has its probability split between both.

# %%
posterior = OrderDAG(knowledge=known, random_state=0).fit(pd.DataFrame(parts["NTC"][:150], columns=genes))
P = pd.DataFrame(posterior.edge_probabilities_, index=genes, columns=genes)
figure, axes = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
cge.plots.edge_probabilities(P, truth, axes[0])
correlation = np.abs(np.corrcoef(parts["NTC"][:150].T))
cge.plots.precision_recall({"posterior": P.to_numpy(), "|correlation|": correlation}, W, axes[1])
plt.show()

# %% [markdown]
# ## The same from the command line
#
# ```
# pyro-cge discover --data screen.h5ad --env-key guide --control NTC --known-edges known.csv --out found
# ```
#
# writes the graph (GraphML for Cytoscape, CSV), the targets, drawings and a manifest of settings and versions.
#
# ## Real cells: Sachs's signalling proteins
#
# Eleven proteins in 5,846 single cells: unstimulated, and five inhibitors or activators. The targets are known (Akt, PKC,
# PIP2, Mek, PIP3), but are not told to the search. There are several consensus graphs; this one has 18 edges. The files are
# read from the folder named in `PYRO_CGE_DATA`; without it this part is left out.

# %%
folder = Path(os.environ.get("PYRO_CGE_DATA", "nowhere")) / "causal"
if folder.exists():
    sachs = pd.read_csv(folder / "sachs_14conditions.csv.gz").query("experiment <= 7")
    proteins = list(sachs.columns[:11])
    consensus = pd.read_csv(folder / "sachs_edges.csv").query("utigsp_dag18 == 1")
    agreed = nx.DiGraph()
    agreed.add_nodes_from(proteins)
    agreed.add_edges_from(zip(consensus["cause"], consensus["effect"], strict=True))
    arm = sachs["target"].fillna("none").to_numpy()
    found = OrderSearch().fit(np.log(sachs[proteins]), arm, control="none")
    figure, axes = plt.subplots(1, 2, figsize=(13, 4.6), layout="constrained", width_ratios=[1.2, 1])
    cge.plots.graph(found.graph_, agreed, axes[0])
    cge.plots.targets(found.targets_, ax=axes[1])
    plt.show()
    counts = cge.metrics.edge_recovery(found.graph_, agreed)
    print(
        f"SHD {counts.shd}, where the empty graph has {agreed.number_of_edges()}: {counts.correct} of the edges found are "
        f"in the consensus graph, {counts.reversed} more the other way round"
    )

# %% [markdown]
# Two lessons. The consensus graph is a summary of the literature, and nobody gets near it from these cells: 15 is better
# than GES, GIES, IGSP and UT-IGSP do here (17 to 40, `benchmarks/structure`), and not far from an empty graph's 18. And
# almost every protein changes its mechanism in almost every arm: reagents act on activity, not abundance, batches differ,
# and a search that is told "one target each" has to put those changes into edges.

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
# # From a disease signature to ranked drugs and targets
#
# A disease changes some genes. Which drugs change them back, and which proteins are worth hitting because the changed genes
# lie downstream of them? Four steps, each with its doubt: drugs by anticorrelation with a *posterior of ranks*; a Steiner
# tree that joins the changed genes in a protein network; causal graphs of the tree's genes drawn from a posterior; drug
# targets by the *expected number* of changed genes downstream.
#
# Belyaeva et al. (2021) took this way for SARS-CoV-2. Their data are read from the folder `covid` in `PYRO_CGE_DATA`;
# without it, a small simulated study of the same make is used, so that everything below runs anywhere.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
import pandas as pd

import pyro_cge as cge
from pyro_cge.imputation import (
    ActionMean,
    Effects,
    causal_graphs,
    disease_genes,
    edge_stability,
    identify_targets,
    inclusion_frequency,
    protein_network,
    rank_drugs,
    steiner_tree,
)

folder = Path(os.environ.get("PYRO_CGE_DATA", "nowhere"))
real = (folder / "covid").exists()
rng = np.random.default_rng(3)


def simulated():
    """150 proteins; a third of the interactions are causal. The disease shifts three of them, two of which drugs hit."""
    names = [f"P{j:03d}" for j in range(150)]
    wires = nx.barabasi_albert_graph(150, 3, seed=1)
    order = rng.permutation(150)
    W = np.zeros((150, 150))
    for a, b in wires.edges:
        if rng.random() < 1 / 3:
            i, j = (a, b) if order[a] < order[b] else (b, a)
            W[i, j] = rng.choice([-1, 1]) * rng.uniform(0.5, 1.0)
    total = np.linalg.inv(np.eye(150) - W)
    driven = np.argsort(-(np.abs(total) > 1e-9).sum(1))[[2, 5, 9]]
    shift = np.zeros(150)
    shift[driven] = [3.0, -3.0, 3.0]
    disease = pd.Series(shift @ total + 0.3 * rng.standard_normal(150), index=names, name="log2fc")
    edges = pd.DataFrame([(names[a], names[b], rng.uniform(0.1, 0.9)) for a, b in wires.edges], columns=["a", "b", "w"])
    cells = pd.DataFrame(rng.standard_normal((200, 150)) @ total, columns=names)
    hit = rng.permutation(np.concatenate([driven[:2], rng.choice(150, 28, replace=False)]))
    acts = pd.DataFrame({"gene": [names[j] for j in hit], "drug": [f"drug {k:02d}" for k in range(30)]})
    # A drug lowers its target in each cell line, most strongly in the first; every third pair was measured.
    lines, strength = ["A549", "MCF7", "PC3", "HA1E"], [2.0, 1.5, 1.2, 0.8]
    pairs = [(c, k) for c in range(4) for k in range(30) if rng.random() < 0.6 and c > 0]
    toward = {k: -np.sign(shift[hit[k]]) if shift[hit[k]] else rng.choice([-1, 1]) for k in range(30)}
    x = np.array([toward[k] * strength[c] * total[hit[k]] + 0.7 * rng.standard_normal(150) for c, k in pairs])
    effects = Effects(x, *np.array(pairs).T, lines, [f"drug {k:02d}" for k in range(30)], names)
    return disease, edges, cells, acts, effects, {names[j] for j in driven}


if not real:
    disease, edges, cells, acts, effects, driven = simulated()
    aliases = None
else:
    covid = folder / "covid"
    disease = pd.read_csv(covid / "blanco_a549_sarscov2_l2fc.csv.gz").set_index("symbol")["log2fc"]
    edges = pd.read_csv(covid / "ppi_edges_252nodes.csv")
    cells = pd.read_csv(covid / "GSE81861_log2_ppi_252nodes.csv", index_col=0).T
    acts = pd.read_csv(covid / "final_drug_target_table.tsv", sep="\t").rename(columns={"name": "gene"})
    arrays = np.load(folder / "l1000_level5_gps24.npz")
    table = pd.read_csv(folder / "l1000_level5_gps24_obs.csv.gz")
    line, lines = pd.factorize(table["cell_id"])
    drug, drug_names = pd.factorize(table["pert_iname"].str.lower())
    once = ~pd.DataFrame({"line": line, "drug": drug}).duplicated().to_numpy()
    effects = Effects(
        arrays["X"][once].astype(float),
        line[once],
        drug[once],
        [*lines, "A549"],
        drug_names,
        arrays["gene"].astype(str),
    )
    aliases = pd.read_csv(folder / "genes_landmark978.csv").set_index("symbol")["entrez_id"].astype(str)
print("COVID-19 data" if real else "simulated stand-in")
effects

# %% [markdown]
# ## Drugs that reverse the signature
#
# Nothing was measured in A549, the cell line of the disease signature: effects have to be transported there. Any fitted
# imputer does that (here the plainest, a drug's mean over other cells). An imputer with `return_std` gives a posterior of
# signatures; without one, genes are resampled, which says how far the ranking hangs on a few of them.

# %%
drugs = rank_drugs(disease, effects, context="A549", imputer=ActionMean().fit(effects), aliases=aliases, draws=300)
print(f"{drugs.attrs['genes']} genes compared")
drugs.head(10).round(2)

# %%
cge.plots.drug_ranks(drugs, mark=sorted(set(acts["drug"]))[:6])
plt.show()

# %% [markdown]
# The intervals are wide: which drug is *the* best is not known, that some are far better than most is. A ranking without
# them hides that.
#
# ## Disease genes
#
# Genes that change most, without those a confounder changes as well (`exclude`: what infection does to cells without the
# receptor, what the receptor does alone) and, where there is reason, only those another process changes in the same
# direction (`agree`: ageing). Of the real data the list of the paper is used, which is the outcome of exactly this.

# %%
confounder = pd.Series(rng.standard_normal(len(disease)) * 0.3, index=disease.index)
if real:
    genes = pd.read_csv(covid / "terminals_ppi_analysis.tsv", sep="\t").set_index("name")["log2FC_blanco"]
else:
    genes = disease_genes(disease, n=30, exclude=[confounder])
genes.head().round(2)

# %% [markdown]
# ## What connects them
#
# A prize-collecting Steiner tree pays for interactions (sure ones are cheap) and collects the genes' changes as prizes. The
# objective comes with a lower bound from the dual, so it is known how far from optimal a tree can be at most; and each node
# with the frequency at which it is chosen when prizes and costs are perturbed.

# %%
network = protein_network(edges, cost="w")
tree = steiner_tree(network, genes.abs(), omega=1.4)
table = tree.table()
print(f"{len(table)} of {len(network)} proteins, {int(table['terminal'].sum())} of {len(genes)} disease genes")
print(f"cost {tree.cost:.2f}, no tree costs less than {tree.lower_bound:.2f}")
frequency = inclusion_frequency(network, genes.abs(), omega=1.4, noise=0.3)
between = table.index[~table["terminal"]]
figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
ax.hist(frequency.reindex(between, fill_value=0), bins=np.linspace(0, 1, 21), color=cge.plots.training.PALETTE[0])
ax.set(xlabel="chosen in this share of perturbed problems", ylabel="connecting proteins")
plt.show()

# %% [markdown]
# ## Targets upstream
#
# The same steps in one call, and on to causal graphs of the tree's genes (edges only between proteins that interact) and the
# targets in them. `downstream` is the expected number of disease genes downstream over the posterior of graphs.

# %%
found = identify_targets(genes, network, cells, acts, drugs=drugs, omega=1.4, scope="tree", random_state=0)
found.targets.drop(columns="drugs").head(8).round(2)

# %%
cge.plots.drug_ranks(found.targets)
plt.show()

# %%
if real:
    print(f"RIPK1, the paper's proposal: rank {found.targets.loc['RIPK1', 'rank']:g} of {len(found.targets)}")
else:
    print("shifted by the disease:", ", ".join(sorted(driven)))
shown = found.graphs.graph(0.2 if real else 0.5)
shown.remove_nodes_from([gene for gene in list(shown) if shown.degree(gene) == 0])
cge.plots.graph(shown)
plt.show()

# %% [markdown]
# ## How stable is the graph?
#
# Two halves of the cells should give the same edges. The number to look at before a target is believed:

# %%
part = cells[found.graphs.genes].sample(frac=1, random_state=0)
half = len(part) // 2
first, second = part.iloc[:half], part.iloc[half:]
both = [gene for gene in part if first[gene].nunique() > 1 and second[gene].nunique() > 1]
graphs = [causal_graphs(cells_[both], network=network, draws=100, progress=False) for cells_ in (first, second)]
print(f"expected edges: {[round(float(g.edges.sum((1, 2)).mean()), 1) for g in graphs]}")
print(f"correlation of edge probabilities: {edge_stability(*graphs):.2f}")

# %% [markdown]
# On the real data 74 single cells say little of some eight hundred possible edges: few edges are likely, and the ranking of
# targets follows how many partners a protein has. That is a result as well: more cells, and perturbed ones, before a target
# is picked. With enough cells, as in the simulated study, the halves agree and the genes the disease shifts come out on top.
#
# ## The same from the command line
#
# ```
# pyro-cge rank-drugs --disease signature.csv --effects signatures.h5ad --context A549 --imputer mean \
#     --network interactions.csv --expression cells.csv --drug-targets targets.csv --out found
# ```

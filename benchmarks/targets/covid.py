"""Steps and figures of the COVID-19 study: network, drugs, causal graphs, targets."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
from known import auc
from scipy.stats import norm, rankdata

from pyro_cge.discovery import OrderSearch
from pyro_cge.imputation import (
    Effects,
    GraphDraws,
    causal_graphs,
    edge_stability,
    identify_targets,
    protein_network,
    rank_drugs,
    steiner_tree,
    upstream_genes,
)

OMEGA, SCALE = 1.4, 40.0  # w and b that the paper chose; its g = 0 is hub_penalty=0
PAPER_DRUGS = 142  # drugs above the paper's threshold


def figures(data: Path, interactome: Path | None, draws: int) -> dict[str, Any]:
    covid = data / "covid"
    edges = pd.read_csv(covid / "ppi_edges_252nodes.csv")
    genes = pd.read_csv(covid / "terminals_ppi_analysis.tsv", sep="\t").set_index("name")["log2FC_blanco"]
    cells = pd.read_csv(covid / "GSE81861_log2_ppi_252nodes.csv", index_col=0).T
    paper = pd.read_csv(covid / "final_drug_target_table.tsv", sep="\t").rename(columns={"name": "gene"})
    acting = pd.read_csv(data / "bio" / "lincs2020_drug_target_edges.csv.gz")
    acting = pd.DataFrame({"gene": acting["target"], "drug": acting["pert_iname"].str.lower()})
    disease = pd.read_csv(covid / "blanco_a549_sarscov2_l2fc.csv.gz").set_index("symbol")["log2fc"]
    # The 252 genes were chosen with the hub penalty of the whole interactome, which their part alone cannot give.
    network = protein_network(edges, cost="w")
    found: dict[str, Any] = {}
    found |= trees(network, genes, interactome)
    drugs = ranked_drugs(data, disease, set(paper["drug"]), found)
    found |= ranked_targets(network, genes, cells, paper, acting, draws)
    found |= stability(network, genes, cells, draws)
    started = time.process_time()
    search = identify_targets(
        genes, network, cells, acting, drugs=drugs, top=PAPER_DRUGS, omega=OMEGA, draws=draws, scope="tree"
    )  # the study's way
    inside, wanted = set(search.targets.index), set(paper["gene"])
    pool = set(acting["gene"]) & set(search.graphs.genes)
    found["covid_end_to_end"] = {
        "targets": len(inside),
        "in_paper": len(inside & wanted),
        "expected_by_chance": round(len(inside) * len(pool & wanted) / len(pool), 2),
        "cpu_s": round(time.process_time() - started, 1),
    }
    print(f"\nend to end, targets of the {PAPER_DRUGS} best drugs: {found['covid_end_to_end']}")
    print(search.targets.drop(columns="drugs").round(2).head(10).to_string())
    return found


def trees(network: nx.Graph, genes: pd.Series, interactome: Path | None) -> dict[str, Any]:
    prizes = genes.abs() * SCALE
    result: dict[str, Any] = {}
    problems = {"252 genes": network}
    if interactome is not None:
        table = pd.read_csv(interactome, sep="\t")
        table[["protein1", "protein2"]] = table[["protein1", "protein2"]].apply(lambda column: column.str.upper())
        problems["interactome"] = protein_network(table, cost="cost", hub_penalty=0)
    for name, graph in problems.items():
        started = time.process_time()
        tree = steiner_tree(graph, prizes, omega=OMEGA)
        seconds = time.process_time() - started
        chosen, theirs = set(tree.graph), set(network)
        part = nx.minimum_spanning_tree(graph.subgraph(theirs), weight="cost")
        cost = sum(c for *_, c in part.edges(data="cost")) + OMEGA * nx.number_connected_components(part)
        result[name] = {
            "nodes": len(graph),
            "chosen": len(chosen),
            "jaccard_with_paper": round(len(chosen & theirs) / len(chosen | theirs), 3),
            "cost": round(tree.cost, 3),
            "cost_of_the_papers_nodes": round(cost, 3),
            "cost_over_bound": round(tree.cost / tree.lower_bound, 3),
            "cpu_s": round(seconds, 3),
        }
    print(pd.DataFrame(result).to_string())
    return {"covid_tree": result}


def ranked_drugs(data: Path, disease: pd.Series, theirs: set[str], found: dict[str, Any]) -> pd.DataFrame:
    """Where the paper's drugs come; none of the cell lines is the paper's A549, so effects are means over the others."""
    z = np.load(data / "l1000_level5_gps24.npz")
    obs = pd.read_csv(data / "l1000_level5_gps24_obs.csv.gz")
    context, contexts = pd.factorize(obs["cell_id"])
    action, actions = pd.factorize(obs["pert_iname"].str.lower())
    once = ~pd.DataFrame({"c": context, "a": action}).duplicated().to_numpy()  # two structures of one name: the first
    x = z["X"][once].astype(float)
    effects = Effects(x, context[once], action[once], list(contexts), list(actions), [str(gene) for gene in z["gene"]])
    entrez = pd.read_csv(data / "genes_landmark978.csv").set_index("symbol")["entrez_id"].astype(str)
    rows = {}
    for score in ("pearson", "spearman", "cosine"):
        started = time.process_time()
        table = rank_drugs(disease, effects, aliases=entrez, score=score, draws=100, top=50)
        there = [drug for drug in table.index if drug in theirs]
        rows[score] = {
            "drugs": len(table),
            "genes": table.attrs["genes"],
            "of_paper": len(there),
            "auc_of_paper": round(auc(-table["rank"], there), 3),
            "median_interval": float((table["rank_high"] - table["rank_low"]).median()),
            "cpu_s": round(time.process_time() - started, 1),
        }
        if score == "pearson":
            best = table
            print("\nbest drugs and the paper's drugs")
            print(pd.concat([table.head(8), table.loc[there]]).round(2).to_string())
    found["covid_drugs"] = rows
    print(pd.DataFrame(rows).to_string())
    return best


def ranked_targets(
    network: nx.Graph, genes: pd.Series, cells: pd.DataFrame, paper: pd.DataFrame, acting: pd.DataFrame, draws: int
) -> dict[str, Any]:
    """RIPK1 among the paper's targets, and the paper's targets among all that are druggable, by several graphs."""
    x = expressed(cells)
    scores = pd.DataFrame(norm.ppf((rankdata(x, axis=0) - 0.5) / len(x)), columns=x.columns)
    rng = np.random.default_rng(0)
    shuffled = x.apply(lambda column: rng.permutation(column.to_numpy()))
    wanted = [gene for gene in dict.fromkeys(paper["gene"]) if gene in x]
    pool = [gene for gene in dict.fromkeys([*wanted, *acting["gene"]]) if gene in x]
    ways: dict[str, tuple[pd.DataFrame, dict[str, Any]]] = {
        "posterior on the network": (x, {"network": network}),
        "the same, normal scores": (scores, {"network": network}),
        "the same, prior density 0.5": (x, {"network": network, "density": 0.5}),
        "posterior, any edges": (x, {}),
        "order search, 20 sub-samples": (
            x,
            {"estimator": OrderSearch(max_parents=5, restarts=1, progress=False), "subsamples": 20},
        ),
        "cells shuffled gene by gene": (shuffled, {"network": network, "density": 0.5}),
    }
    rows: dict[str, dict[str, float]] = {}
    downstream: dict[str, pd.Series] = {}
    for name, (expression, settings) in ways.items():
        started = time.process_time()
        graphs = causal_graphs(expression, draws=draws, progress=False, **settings)
        table = upstream_genes(graphs, genes.index, pool)
        downstream[name] = table["downstream"]
        rows[name] = {
            **scored(table["downstream"], wanted),
            "ripk1_rank_by_excess": scored(table["excess"], wanted)["ripk1_rank"],
            "overlap_by_excess": scored(table["excess"], wanted)["overlap"],
            "ripk1_low": upstream_genes(graphs, genes.index, wanted).loc["RIPK1", "rank_low"],
            "ripk1_high": upstream_genes(graphs, genes.index, wanted).loc["RIPK1", "rank_high"],
            "edges": round(float(graphs.edges.sum((1, 2)).mean()), 1),
            "cpu_s": round(time.process_time() - started, 1),
        }
    dense = downstream["the same, prior density 0.5"]
    rows["density 0.5 less shuffled"] = scored(dense - downstream["cells shuffled gene by gene"][dense.index], wanted)
    degree = pd.Series(dict(network.subgraph(x.columns).degree(pool)), dtype=float)
    rows["degree in the network"] = scored(degree, wanted)
    rows["at random"] = {
        "ripk1_rank": (len(wanted) + 1) / 2,
        "overlap": round(len(wanted) * len(wanted) / len(pool), 2),
        "ripk1_rank_of_all": (len(pool) + 1) / 2,
    }
    print(
        f"\nRIPK1 among {len(wanted)} targets of the paper; those among the best {len(wanted)} of {len(pool)} druggable genes"
    )
    print(pd.DataFrame(rows).T.to_string())
    first = rows["posterior on the network"]
    return {
        "covid_ripk1_rank": first["ripk1_rank"],
        "covid_ripk1_interval": [first["ripk1_low"], first["ripk1_high"]],
        "covid_targets": len(wanted),
        "covid_druggable": len(pool),
        "covid_overlap": first["overlap"],
        "covid_overlap_by_degree": rows["degree in the network"]["overlap"],
        "covid_overlap_by_chance": rows["at random"]["overlap"],
        "covid_rankings": rows,
    }


def scored(downstream: pd.Series, wanted: list[str]) -> dict[str, float]:
    """``overlap`` counts genes tied at the edge of the best by their share."""
    among = pd.Series(rankdata(-downstream[wanted]), index=wanted)
    every = pd.Series(rankdata(-downstream), index=downstream.index)
    level = downstream.nlargest(len(wanted)).iloc[-1]
    above, tied = downstream > level, downstream == level
    share = (len(wanted) - above.sum()) / tied.sum()
    mine = downstream.index.isin(wanted)
    return {
        "ripk1_rank": float(among["RIPK1"]),
        "ripk1_rank_of_all": float(every["RIPK1"]),
        "overlap": round(float((above & mine).sum() + share * (tied & mine).sum()), 2),
    }


def stability(network: nx.Graph, genes: pd.Series, cells: pd.DataFrame, draws: int) -> dict[str, Any]:
    """Two halves of the cells, and sub-samples of 70 %: do they give the same edges?"""
    x = expressed(cells)
    order = np.random.default_rng(0).permutation(len(x))
    halves = [x.iloc[np.sort(part)] for part in np.array_split(order, 2)]
    varies = [column for column in x if all(half[column].nunique() > 1 for half in halves)]
    result: dict[str, Any] = {}
    for name, density in (("learned density", None), ("density 0.5", 0.5)):
        settings: dict[str, Any] = {"network": network, "density": density, "draws": draws, "progress": False}
        a, b = (causal_graphs(half[varies], **settings) for half in halves)
        again = causal_graphs(x, subsamples=5, random_state=1, **settings)
        whole = causal_graphs(x, **settings)
        other = causal_graphs(x, random_state=1, **settings)
        result[name] = {
            "halves": round(edge_stability(a, b), 3),
            "halves, either direction": round(edge_stability(both_ways(a), both_ways(b)), 3),
            "sub-samples and all cells": round(edge_stability(again, whole), 3),
            "two seeds, all cells": round(edge_stability(other, whole), 3),
            "edges above one half": int((again.edges.mean(0) > 0.5).sum()),
        }
    print("\ncorrelation of edge probabilities")
    print(pd.DataFrame(result).to_string())
    return {"covid_stability": result}


def both_ways(graphs: GraphDraws) -> GraphDraws:
    return GraphDraws(graphs.edges | graphs.edges.transpose(0, 2, 1), graphs.genes)


def expressed(cells: pd.DataFrame) -> pd.DataFrame:
    """Genes seen in more than a tenth of the cells, as in the paper."""
    return cells.loc[:, (cells > 0).mean() > 0.1]

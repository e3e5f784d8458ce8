"""The whole way from a disease signature to targets, where the truth is known, and on the COVID-19 data."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pandas as pd
import pytest

from pyro_cge.errors import ConfigError, DataError
from pyro_cge.imputation import identify_targets, protein_network


@pytest.fixture(scope="module")
def world():
    """K and M act through T on disease genes D0 … D4; U is a drug target with no effect, W is not in the network's middle."""
    rng = np.random.default_rng(0)
    wires = [("K", "T"), ("M", "T"), *(("T", f"D{j}") for j in range(5)), ("D0", "U"), ("W", "far")]
    x = pd.DataFrame(
        0.0, index=range(300), columns=["K", "M", "T", *(f"D{j}" for j in range(5)), "U", "W", "far", "idle"]
    )
    e = rng.standard_normal(x.shape)
    for j, gene in enumerate(x.columns):
        x[gene] = e[:, j]
    x["T"] += 0.9 * x["K"] + 0.9 * x["M"]
    for j in range(5):
        x[f"D{j}"] += 0.9 * x["T"]
    x["idle"] = 0.0
    network = protein_network(pd.DataFrame(wires, columns=["a", "b"]).assign(cost=0.1), cost="cost")
    genes = pd.Series(
        {f"D{j}": (-1.0) ** j * (2 + j) for j in range(5)} | {"K": 0.5, "M": 0.5, "U": 0.5, "unheard": 1.0}
    )
    acts = pd.DataFrame({"gene": ["K", "M", "U", "W", "K"], "drug": ["kib", "mib", "uib", "wib", "pan"]})
    return genes, network, x, acts


def test_targets_upstream_are_found(world):
    genes, network, x, acts = world
    found = identify_targets(genes, network, x, acts, scope="tree", draws=60)
    assert set(found.targets.index) == {"K", "M", "U"}, "W is not in the tree"
    assert (found.targets.loc[["K", "M"], "downstream"] > 4).all() and found.targets.loc["U", "rank"] == 3
    assert found.targets.loc["K", "drugs"] == "kib, pan" and "drug_rank" not in found.targets
    assert found.tree.missing == ("unheard",) and {"T", "D3"} <= set(found.genes.index)
    assert found.genes.loc["D1", "log2fc"] == -3 and found.genes["frequency"].between(0, 1).all()
    assert found.genes["expressed"].all() and set(found.graph) == set(found.graphs.genes)


def test_all_of_the_network_finds_what_the_tree_leaves_out(world):
    genes, network, x, acts = world
    found = identify_targets(genes[[f"D{j}" for j in range(5)]], network, x, acts, by="excess", draws=40)
    assert set(found.tree.graph) == {"T", "D0", "D1", "D2", "D3", "D4"}
    assert set(found.targets.index) == {"K", "M", "U", "W"} and set(found.targets.index[:2]) == {"K", "M"}
    assert found.targets["excess"].is_monotonic_decreasing


def test_only_targets_of_the_best_drugs_count_where_asked(world):
    genes, network, x, acts = world
    drugs = pd.DataFrame({"rank": [1.0, 2.0, 3.0]}, index=pd.Index(["uib", "pan", "kib"], name="drug"))
    found = identify_targets(genes, network, x, acts, drugs=drugs, draws=20)
    assert set(found.targets.index) == {"K", "U"} and found.targets["drug_rank"].to_dict() == {"K": 2.0, "U": 1.0}
    assert found.targets.loc["K", "drugs"] == "pan, kib", "the best ranked first"
    assert list(identify_targets(genes, network, x, acts, drugs=drugs, top=1, draws=20).targets.index) == ["U"]


def test_unusable_input_is_refused(world):
    genes, network, x, acts = world
    cases = [
        ((genes * np.nan, network, x, acts), {}, DataError, "signature of gene D0"),
        ((genes * 0, network, x, acts), {}, DataError, "no gene has a prize"),
        ((genes.add_prefix("h"), network, x, acts), {}, DataError, "none of the 9 terminals"),
        ((genes, network, x.add_prefix("h"), acts), {}, DataError, "0 of the network's"),
        ((genes, network, x, acts.rename(columns={"gene": "symbol"})), {}, DataError, "no column 'gene'"),
        ((genes, network, x, acts.assign(gene="W")), {"scope": "tree"}, DataError, "is the target of one of"),
        ((genes, network, x, acts), {"top": 3}, ConfigError, "give drugs= as well"),
        ((genes, network, x, acts), {"scope": "all"}, ConfigError, "scope must be"),
        ((genes, nx.Graph(), x, acts), {}, DataError, "none of the 9 terminals"),
    ]
    for arguments, options, kind, message in cases:
        with pytest.raises(kind, match=message):
            identify_targets(*arguments, **options)


@pytest.mark.slow
def test_covid(real_data):
    folder = real_data / "covid"
    if not folder.exists():
        pytest.skip(f"no folder covid in {real_data}")
    edges = pd.read_csv(folder / "ppi_edges_252nodes.csv")
    genes = pd.read_csv(folder / "terminals_ppi_analysis.tsv", sep="\t").set_index("name")["log2FC_blanco"]
    cells = pd.read_csv(folder / "GSE81861_log2_ppi_252nodes.csv", index_col=0).T
    paper = pd.read_csv(folder / "final_drug_target_table.tsv", sep="\t").rename(columns={"name": "gene"})
    network = protein_network(edges, cost="w", hub_penalty=0)
    found = identify_targets(genes, network, cells, paper, omega=1.4, scope="tree")
    assert len(found.tree.missing) == 0 and len(set(genes.index) - set(found.genes.index)) <= 2
    assert 0.85 < len(found.genes) / network.number_of_nodes() <= 1
    assert len(set(found.targets.index) & set(paper["gene"])) >= 12
    assert found.targets.loc["RIPK1", "rank"] <= len(found.targets) / 2

"""``pyro-cge rank-drugs`` as a user types it."""

from __future__ import annotations

import json

import anndata
import networkx as nx
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from pyro_cge.cli import app
from pyro_cge.errors import ConfigError, DataError, PyroCgeError
from pyro_cge.imputation import NTKGP, ActionMean, Effects, rank_drugs

GENES = [f"G{j}" for j in range(30)]


def invoke(*arguments):
    result = CliRunner().invoke(app, ["rank-drugs", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0
    return result.output


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A disease, twelve drugs in two cells (the first ones reverse it), a network, cells in which G0 drives G1 … G4."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    disease = rng.standard_normal(30)
    disease[:5] = [4, 5, -5, 4, -4]
    pd.DataFrame({"symbol": GENES, "log2fc": disease, "again": disease + 0.1}).to_csv(
        folder / "disease.csv", index=False
    )
    rows = []
    for k in range(12):
        for cell in ("A549", "MCF7"):
            x = (k - 5.5) * disease + 3 * rng.standard_normal(30)
            rows.append({"context": cell, "action": f"drug{k}", **dict(zip(GENES, x, strict=True))})
    table = pd.DataFrame(rows)
    table.to_csv(folder / "effects.csv")
    obs = (
        table[["context", "action"]]
        .rename(columns={"context": "cell", "action": "drug"})
        .set_axis(table.index.astype(str))
    )
    anndata.AnnData(table[GENES].to_numpy(), obs=obs, var=pd.DataFrame(index=GENES)).write_h5ad(folder / "effects.h5ad")
    cells = rng.standard_normal((200, 8))
    cells[:, 1:5] += cells[:, :1]
    pd.DataFrame(cells, columns=GENES[:8]).to_csv(folder / "cells.csv")
    wires = [("G0", f"G{j}", 0.9) for j in range(1, 5)] + [("G5", "G6", 0.9), ("G4", "G5", 0.1)]
    pd.DataFrame(wires, columns=["a", "b", "confidence"]).to_csv(folder / "network.csv", index=False)
    pd.DataFrame({"gene": ["G0", "G1", "G7"], "drug": ["drug0", "drug1", "drug2"]}).to_csv(
        folder / "acts.csv", index=False
    )
    return folder


def test_folder_holds_the_ranking_and_how_it_came_about(files, tmp_path):
    out = tmp_path / "found"
    text = invoke("--disease", files / "disease.csv", "--effects", files / "effects.csv", "--out", out, "--seed", 3)
    assert {p.name for p in out.iterdir()} == {"drugs.csv", "drugs.png", "manifest.json"}
    drugs = pd.read_csv(out / "drugs.csv", index_col="drug")
    assert drugs.index[0] in ("drug0", "drug1") and len(drugs) == 12 and drugs["score"].is_monotonic_increasing
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["settings"]["seed"] == 3 and manifest["genes_compared"] == 30 and manifest["context"] is None
    assert len(manifest["files"]["effects"]["sha256"]) == 64 and manifest["files"]["network"] is None
    assert "12 drugs by 30 genes" in text and not list(tmp_path.glob(".found*")), "nothing is left beside it"
    assert out.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(("name", "imputer"), [("mean", ActionMean), ("ntk-gp", NTKGP)])
def test_the_answer_is_that_of_the_function(files, tmp_path, name, imputer):
    text = invoke("--disease", files / "disease.csv", "--effects", files / "effects.h5ad", "--context-key", "cell",
           "--action-key", "drug", "--context", "Calu3", "--imputer", name, "--change", "log2fc", "--change", "again",
           "--set", "draws=20", "--out", tmp_path / "found")  # fmt: skip
    adata = anndata.read_h5ad(files / "effects.h5ad")
    effects = Effects.from_anndata(adata, context="cell", action="drug")
    effects = Effects(
        effects.x, effects.context, effects.action, (*effects.context_names, "Calu3"), effects.action_names, GENES
    )
    disease = pd.read_csv(files / "disease.csv", index_col=0)
    expected = rank_drugs(disease, effects, context="Calu3", imputer=imputer().fit(effects), draws=20)
    found = pd.read_csv(tmp_path / "found" / "drugs.csv", index_col="drug")
    pd.testing.assert_frame_equal(found, expected, check_exact=False)
    assert "nothing was measured in Calu3" in text


def test_targets_come_with_a_network(files, tmp_path):
    out = tmp_path / "found"
    text = invoke("--disease", files / "disease.csv", "--effects", files / "effects.csv", "--network", files / "network.csv",
                  "--expression", files / "cells.csv", "--drug-targets", files / "acts.csv", "--set", "n_genes=5",
                  "--set", "graphs=50", "--set", "scope=tree", "--out", out)  # fmt: skip
    assert {p.name for p in out.iterdir()} == {
        "drugs.csv", "drugs.png", "genes.csv", "tree.graphml", "targets.csv", "targets.png", "edges.csv", "graph.graphml",
        "manifest.json",
    }  # fmt: skip
    targets = pd.read_csv(out / "targets.csv", index_col="gene")
    assert set(targets.index) == {"G0", "G1"} and targets.loc["G0", "drug_rank"] in (1, 2)
    assert (
        set(nx.read_graphml(out / "tree.graphml")) == set(pd.read_csv(out / "genes.csv")["gene"]) >= {"G0", "G1", "G2"}
    )
    edges = pd.read_csv(out / "edges.csv")
    pairs = {frozenset(pair) for pair in zip(edges["cause"], edges["effect"], strict=True)}
    assert pairs <= {frozenset(("G0", f"G{j}")) for j in range(1, 5)} and edges["probability"].between(0, 1).all()
    assert "genes in the tree" in text
    for name in ("drugs", "targets", "genes", "edges"):
        assert set(pd.read_csv(out / f"{name}.csv").columns[1:]) <= words_of_help(), "columns are described"
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["terminals_not_in_network"] == [] and manifest["files"]["expression"]["file"] == "cells.csv"


def test_drugs_left_out_are_said(files, tmp_path):
    table = pd.read_csv(files / "effects.csv", index_col=0)
    gone = [f"drug{k}" for k in (2, 4, 6, 8)]
    table[~(table["action"].isin(gone) & (table["context"] == "A549"))].to_csv(tmp_path / "some.csv")
    call = ("--disease", files / "disease.csv", "--effects", tmp_path / "some.csv", "--context", "A549")
    text = invoke(*call, "--out", tmp_path / "measured")
    assert "8 drugs by" in text
    assert "left out (--imputer predicts them): 'drug2', 'drug4', 'drug6', … (4 in all)" in text
    assert json.loads((tmp_path / "measured" / "manifest.json").read_text())["drugs_left_out"] == gone
    assert "left out" not in invoke(*call, "--imputer", "mean", "--out", tmp_path / "predicted")


def words_of_help():
    text = CliRunner().invoke(app, ["rank-drugs", "--help"]).output
    return set(text.replace(",", " ").replace("(", " ").split())


def test_genes_are_translated(files, tmp_path):
    table = pd.read_csv(files / "disease.csv")
    table.assign(symbol=["ENS" + gene for gene in GENES]).to_csv(tmp_path / "ensembl.csv", index=False)
    pd.DataFrame({"ensembl": ["ENS" + gene for gene in GENES], "symbol": GENES}).to_csv(
        tmp_path / "names.csv", index=False
    )
    arguments = ("--disease", tmp_path / "ensembl.csv", "--effects", files / "effects.csv")
    with pytest.raises(DataError, match="0 of the 30 genes .*give --aliases$"):
        invoke(*arguments, "--out", tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert "12 drugs by 30 genes" in invoke(
        *arguments, "--aliases", tmp_path / "names.csv", "--out", tmp_path / "found"
    )


def test_wrong_calls_say_what_is_wrong(files, tmp_path):
    out = tmp_path / "found"
    base = ["--disease", files / "disease.csv", "--effects", files / "effects.csv"]
    table = pd.read_csv(files / "network.csv").rename(columns={"confidence": "score"})
    table.to_csv(tmp_path / "network.csv", index=False)
    (tmp_path / "bad.h5ad").write_text("not HDF5")
    rest = ["--expression", files / "cells.csv", "--drug-targets", files / "acts.csv"]
    cases = [
        (
            [*base, "--change", "fold"],
            DataError,
            "no column 'fold' of log2 fold changes; there are 'symbol', 'log2fc', 'again': name one with --change$",
        ),
        (
            [*base, "--context-key", "cell"],
            DataError,
            "no column 'cell'; there are .*: name those of contexts and of actions with --context-key and --action-key",
        ),
        ([*base, "--context", "HeLa"], DataError, "unknown context 'HeLa'"),
        ([*base, "--imputer", "magic"], ConfigError, "imputer"),
        ([*base, "--imputer", "mean"], ConfigError, "say which with --context$"),
        ([*base, "--set", "drawz=3"], ConfigError, "did you mean 'draws'"),
        (
            [*base, "--network", files / "network.csv"],
            ConfigError,
            "targets need --network, --expression and --drug-targets; missing: --expression, --drug-targets$",
        ),
        ([*base, "--network", tmp_path / "network.csv", *rest], DataError, "no column 'cost' or 'confidence'"),
        (["--disease", tmp_path / "none.csv", *base[2:]], DataError, "no such file"),
        ([*base[:2], "--effects", tmp_path / "none.h5ad"], DataError, "no such file"),
        (["--disease", files / "disease.csv", "--effects", tmp_path / "bad.h5ad"], DataError, "not a readable .h5ad"),
    ]
    for arguments, kind, message in cases:
        with pytest.raises(kind, match=message):
            invoke(*arguments, "--out", out)
        assert not out.exists(), "nothing half-written"
    out.mkdir()
    (out / "something").write_text("kept")
    with pytest.raises(PyroCgeError, match="not an empty folder"):
        invoke(*base, "--out", out)
    assert (out / "something").read_text() == "kept"

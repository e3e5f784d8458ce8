"""``pyro-cge discover`` as a user types it."""

from __future__ import annotations

import json

import anndata
import networkx as nx
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from pyro_cge import plots
from pyro_cge.cli import app
from pyro_cge.discovery import OrderSearch
from pyro_cge.errors import ConfigError, DataError, PyroCgeError

GENES = ["Raf", "Mek", "Erk", "Akt"]
EDGES = {("Raf", "Mek"), ("Mek", "Erk"), ("Mek", "Akt")}


def invoke(*arguments):
    result = CliRunner().invoke(app, ["discover", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0
    return result.output


@pytest.fixture(scope="module")
def profiles():
    """A chain with a fork: a control and knock-downs of Mek and Erk, 400 cells each."""
    rng = np.random.default_rng(0)
    parts = []
    for name, target in (("DMSO", None), ("shMek", 1), ("shErk", 2)):
        e = rng.standard_normal((400, 4))
        x = e.copy()
        x[:, 1] = 0.9 * x[:, 0] + e[:, 1] if target != 1 else -3 + 0.3 * e[:, 1]
        x[:, 2] = 0.8 * x[:, 1] + e[:, 2] if target != 2 else -3 + 0.3 * e[:, 2]
        x[:, 3] = -0.8 * x[:, 1] + e[:, 3]
        parts.append(pd.DataFrame(x, columns=GENES).assign(perturbation=name))
    # Treated cells first: the control is the one that is named, not the first.
    return pd.concat([parts[1], parts[0], parts[2]], ignore_index=True)


@pytest.fixture(scope="module")
def table(profiles, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "cells.csv"
    profiles.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def h5ad(profiles, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "cells.h5ad"
    obs = profiles[["perturbation"]].set_index(profiles.index.astype(str))
    anndata.AnnData(profiles[GENES].to_numpy(), obs=obs, var=pd.DataFrame(index=GENES)).write_h5ad(path)
    return path


@pytest.mark.parametrize("kind", ["table", "h5ad"])
def test_folder_holds_the_graph_the_targets_and_how_they_came_about(kind, request, tmp_path):
    path, out = request.getfixturevalue(kind), tmp_path / "found"
    text = invoke("--data", path, "--env-key", "perturbation", "--control", "DMSO", "--out", out, "--seed", 3)
    assert {p.name for p in out.iterdir()} == {
        "graph.graphml", "essential.graphml", "edges.csv", "targets.csv", "graph.png", "targets.png", "manifest.json",
    }  # fmt: skip
    assert set(nx.read_graphml(out / "graph.graphml").edges) == EDGES
    edges = pd.read_csv(out / "edges.csv")
    assert set(zip(edges["cause"], edges["effect"], strict=True)) == EDGES and edges["directed"].all()
    named = pd.read_csv(out / "targets.csv", index_col=0)
    assert named.index[0] == "DMSO" and named.loc["shMek"].idxmax() == "Mek" and named.loc["shErk"].idxmax() == "Erk"
    assert named.to_numpy().sum() == 2
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["settings"]["seed"] == 3 and manifest["control"] == "DMSO" and manifest["env_key"] == "perturbation"
    assert len(manifest["data"]["sha256"]) == 64 and manifest["versions"]["numba"]
    assert "3 edges" in text and "Raf → Mek" in text and "2 of 2 other environments act on 2 genes" in text


def test_the_answer_is_that_of_the_estimator(profiles, table, tmp_path):
    invoke("--data", table, "--env-key", "perturbation", "--control", "DMSO", "--out", tmp_path / "a",
           "--penalty", 1, "--restarts", 2, "--set", "target_penalty=3")  # fmt: skip
    found = OrderSearch(penalty=1, restarts=2, target_penalty=3).fit(
        profiles[GENES].astype(np.float32), profiles["perturbation"], control="DMSO"
    )
    edges = pd.read_csv(tmp_path / "a" / "edges.csv")
    weights = {(e.cause, e.effect): e.weight for e in edges.itertuples()}
    assert weights == pytest.approx({(a, b): w for a, b, w in found.graph_.edges(data="weight")})


def test_without_environments_data_are_observational(profiles, tmp_path):
    cells = tmp_path / "control.csv"
    profiles.loc[profiles["perturbation"] == "DMSO", GENES].to_csv(cells)  # with row names
    text = invoke("--data", cells, "--out", tmp_path / "found")
    assert not (tmp_path / "found" / "targets.csv").exists()
    assert "3 edges, direction open for 3" in text
    assert not pd.read_csv(tmp_path / "found" / "edges.csv")["directed"].any()
    assert json.loads((tmp_path / "found" / "manifest.json").read_text())["control"] is None


def test_known_edges_are_enforced(profiles, table, tmp_path):
    known = tmp_path / "known.csv"
    known.write_text("cause,effect,kind\nMek,Raf,required\nMek,Akt,forbidden\n")
    invoke("--data", table, "--env-key", "perturbation", "--control", "DMSO", "--known-edges", known,
           "--out", tmp_path / "found")  # fmt: skip
    edges = set(nx.read_graphml(tmp_path / "found" / "graph.graphml").edges)
    assert ("Mek", "Raf") in edges and ("Mek", "Akt") not in edges


def test_edges_directed_by_what_is_known_are_said_to_be(profiles, tmp_path):
    """Observational data leave the chain open; a root directs it, and what follows from it."""
    cells = tmp_path / "control.csv"
    profiles.loc[profiles["perturbation"] == "DMSO", GENES].to_csv(cells, index=False)
    tiers = tmp_path / "tiers.csv"
    tiers.write_text("gene,tier\nErk,10\nMek,2\nRaf,1\n")
    text = invoke("--data", cells, "--tiers", tiers, "--out", tmp_path / "found")
    edges = pd.read_csv(tmp_path / "found" / "edges.csv")
    assert set(zip(edges["cause"], edges["effect"], strict=True)) == EDGES and edges["directed"].all()
    assert "direction open for 0" in text
    assert json.loads((tmp_path / "found" / "manifest.json").read_text())["tiers"]["file"] == "tiers.csv"
    tiers.write_text("gene,tier\nErk,late\n")
    with pytest.raises(ConfigError, match="row 2: tier is 'late', expected a number"):
        invoke("--data", cells, "--tiers", tiers, "--out", tmp_path / "other")


def test_a_layer_is_read_instead_of_x(profiles, table, tmp_path):
    obs = profiles[["perturbation"]].set_index(profiles.index.astype(str))
    noise = np.random.default_rng(1).standard_normal((len(profiles), 4))
    adata = anndata.AnnData(noise, obs=obs, var=pd.DataFrame(index=GENES), layers={"log": profiles[GENES].to_numpy()})
    adata.write_h5ad(tmp_path / "cells.h5ad")
    options = ["--data", tmp_path / "cells.h5ad", "--env-key", "perturbation", "--control", "DMSO"]
    invoke(*options, "--layer", "log", "--out", tmp_path / "found")
    assert set(nx.read_graphml(tmp_path / "found" / "graph.graphml").edges) == EDGES
    assert json.loads((tmp_path / "found" / "manifest.json").read_text())["layer"] == "log"
    with pytest.raises(DataError, match="no layer 'counts'; the file has \\['log'\\]"):
        invoke(*options, "--layer", "counts", "--out", tmp_path / "other")
    with pytest.raises(ConfigError, match="a table has no layer"):
        invoke("--data", table, "--layer", "log", "--out", tmp_path / "other")


def test_many_observational_genes_get_the_search_for_them_and_a_drawing_that_can_be_read(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 30))
    for j in range(1, 30):
        x[:, j] += 0.6 * x[:, j - 1]
    pd.DataFrame(x, columns=[f"g{j}" for j in range(30)]).to_csv(tmp_path / "cells.csv", index=False)
    drawn = []
    graph = plots.graph
    monkeypatch.setattr(plots, "graph", lambda estimate: drawn.append(estimate) or graph(estimate))
    monkeypatch.setattr("pyro_cge.discover.MANY", 20)
    monkeypatch.setattr("pyro_cge.discover.DRAWN", 12)
    for name, options in (("auto", ()), ("exact", ("--no-large", "--restarts", 0)), ("one", ("--restarts", 0))):
        invoke("--data", tmp_path / "cells.csv", "--out", tmp_path / name, *options)
        edges = pd.read_csv(tmp_path / name / "edges.csv")
        assert len(edges) >= 29
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        assert manifest["search"] == ("OrderSearch" if name == "exact" else "LargeOrderSearch")
        strongest = edges.iloc[edges["weight"].abs().argmax()]
        assert len(drawn[-1]) <= 12 and drawn[-1].has_edge(strongest["cause"], strongest["effect"])
        assert len(nx.read_graphml(tmp_path / name / "graph.graphml")) == 30, "the files hold all"


def test_the_large_search_takes_one_environment(table, tmp_path):
    with pytest.raises(ConfigError, match="3 environments"):
        invoke("--data", table, "--env-key", "perturbation", "--large", "--out", tmp_path / "found")


def test_known_targets_are_kept(table, tmp_path):
    known = tmp_path / "targets.csv"
    known.write_text("environment,gene\nshMek,Mek\nshMek,Akt\n")
    invoke("--data", table, "--env-key", "perturbation", "--control", "DMSO", "--known-targets", known,
           "--out", tmp_path / "found")  # fmt: skip
    named = pd.read_csv(tmp_path / "found" / "targets.csv", index_col=0)
    assert named.columns[named.loc["shMek"] == 1].tolist() == ["Mek", "Akt"], "as told"
    assert named.columns[named.loc["shErk"] == 1].tolist() == ["Erk"], "inferred"
    manifest = json.loads((tmp_path / "found" / "manifest.json").read_text())
    assert manifest["known_targets"]["file"] == "targets.csv"


@pytest.mark.parametrize(
    "content, message",
    [
        ("cause,effect\na,b\n", "no column 'kind'"),
        ("cause,effect,kind\nRaf,Mek,maybe\n", "row 2: kind is 'maybe', expected forbidden or required"),
        ("cause,effect,kind\nRaf,Mex,required\n", "'Mex', which is not among the 4 genes"),
        ("cause,effect,kind\nRaf,Mek,required\nMek,Raf,required\n", "cycle"),
    ],
)
def test_wrong_knowledge_is_refused(table, tmp_path, content, message):
    known = tmp_path / "known.csv"
    known.write_text(content)
    with pytest.raises(ConfigError, match=message):
        invoke("--data", table, "--env-key", "perturbation", "--known-edges", known, "--out", tmp_path / "found")
    assert not (tmp_path / "found" / "manifest.json").exists()


def test_wrong_calls_say_what_is_wrong(table, h5ad, tmp_path):
    out = tmp_path / "found"
    cases = [
        (["--data", table], DataError, "not numbers: \\['perturbation'\\]; name the environment's with --env-key"),
        (["--data", tmp_path / "none.csv"], DataError, "no such file"),
        (["--data", tmp_path / "none.h5ad"], DataError, "no such file"),
        (["--data", h5ad, "--env-key", "drug"], DataError, "'drug' is not a column of obs"),
        (["--data", table, "--env-key", "perturbation", "--control", "water"], DataError, "'water' is not among"),
        (["--data", table, "--set", "penality=3"], ConfigError, "did you mean 'penalty'"),
        (["--data", table, "--penalty", "-1"], ConfigError, "penalty"),
    ]
    for arguments, kind, message in cases:
        with pytest.raises(kind, match=message):
            invoke(*arguments, "--out", out)
    out.mkdir(exist_ok=True)
    (out / "something").write_text("kept")
    with pytest.raises(PyroCgeError, match="not an empty folder"):
        invoke("--data", h5ad, "--out", out)
    assert (out / "something").read_text() == "kept"

"""``pyro-cge impute`` as a user types it."""

from __future__ import annotations

import json

import anndata
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from pyro_cge.cli import app
from pyro_cge.errors import ConfigError, DataError
from pyro_cge.imputation import NTKGP, Effects


def invoke(*arguments):
    result = CliRunner().invoke(app, ["impute", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve drugs in four cells, additive, a third of the pairs missing, as a table and as .h5ad."""
    path = tmp_path_factory.mktemp("effects")
    rng = np.random.default_rng(0)
    cell, drug = np.nonzero(rng.random((4, 12)) < 0.67)
    x = rng.normal(size=(4, 10))[cell] + rng.normal(size=(12, 10))[drug] + 0.1 * rng.normal(size=(len(cell), 10))
    table = pd.DataFrame(x, columns=[f"g{i}" for i in range(10)])
    names = pd.DataFrame({"context": [f"c{k}" for k in cell], "action": [f"d{a}" for a in drug]})
    pd.concat([names, table], axis=1).to_csv(path / "effects.csv", index=False)
    obs = names.rename(columns={"context": "cell", "action": "drug"}).set_axis(table.index.astype(str))
    anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=table.columns)).write_h5ad(path / "effects.h5ad")
    bits = pd.DataFrame(rng.integers(0, 2, (12, 16)), index=[f"d{a}" for a in range(12)])
    bits.to_csv(path / "bits.csv")
    return path


def test_every_missing_pair_with_its_uncertainty(folder, tmp_path):
    out = tmp_path / "run"
    output = invoke("--effects", folder / "effects.csv", "--out", out, "--action-features", folder / "bits.csv")
    imputed = anndata.read_h5ad(out / "imputed.h5ad")
    table = pd.read_csv(folder / "effects.csv")
    assert len(imputed) == 48 - len(table)
    measured = set(zip(table["context"], table["action"], strict=True))
    assert not measured & set(zip(imputed.obs["context"], imputed.obs["action"], strict=True))
    assert f"{len(imputed)} pairs imputed" in output
    own = anndata.AnnData(table.iloc[:, 2:].to_numpy(), obs=table.iloc[:, :2].set_axis(table.index.astype(str)))
    effects = Effects.from_anndata(own, context="context", action="action")
    bits = pd.read_csv(folder / "bits.csv", index_col=0)
    by_hand = NTKGP().fit(Effects(**{**vars(effects), "action_features": bits}))
    mean, std = by_hand.predict(imputed.obs, return_std=True)
    assert np.allclose(imputed.X, mean, atol=1e-5)
    assert np.allclose(imputed.layers["std"], std, atol=1e-5)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["imputed_pairs"] == len(imputed)
    assert manifest["files"]["effects"]["file"] == "effects.csv"
    assert {path.name for path in out.iterdir()} == {"imputed.h5ad", "pairs.png", "manifest.json"}


def test_methods_are_compared(folder, tmp_path):
    out = tmp_path / "run"
    invoke(
        *("--effects", folder / "effects.h5ad", "--context-key", "cell", "--action-key", "drug", "--out", out),
        *("--method", "fixed", "--compare", "context-mean, fixed", "--folds", 4),
    )
    scores = pd.read_csv(out / "scores.csv", index_col=0)
    assert list(scores.index) == ["fixed", "context-mean"]
    assert scores.loc["fixed", "r"] > scores.loc["context-mean", "r"]
    assert (out / "scores.png").is_file()
    text = CliRunner().invoke(app, ["impute", "--help"]).output
    assert set(scores.columns) <= set(text.replace(",", " ").split()), "columns are described"
    assert "std" not in anndata.read_h5ad(out / "imputed.h5ad").layers


def test_pairs_asked_for(folder, tmp_path):
    asked = pd.DataFrame({"context": ["c1", "c0"], "action": ["d0", "d3"]})
    asked.to_csv(tmp_path / "pairs.csv", index=False)
    out = tmp_path / "run"
    invoke("--effects", folder / "effects.csv", "--pairs", tmp_path / "pairs.csv", "--method", "shrunk", "--out", out)
    imputed = anndata.read_h5ad(out / "imputed.h5ad")
    assert imputed.obs.astype(str).to_numpy().tolist() == asked.to_numpy().tolist()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--method", "magic"], ConfigError, "unknown method 'magic'"),
        (["--folds", "1"], ConfigError, "one fold"),
        (["--context-key", "plate"], DataError, "no column 'plate'; there are .*--context-key and --action-key$"),
        (["--training-only", "c9"], DataError, "--training-only 'c9' is not a context"),
        (["--action-features", "absent.csv"], DataError, "no such file"),
        (["--context-features", "some.csv"], DataError, "--context-features has no row for"),
        (["--pairs", "wrong.csv"], DataError, "unknown action 'd99'"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(folder, tmp_path, monkeypatch, options, error, message):
    monkeypatch.chdir(tmp_path)
    pd.DataFrame({"context": ["c0"], "action": ["d99"]}).to_csv("wrong.csv", index=False)
    pd.DataFrame({"mean": [1.0]}, index=["c0"]).to_csv("some.csv")
    with pytest.raises(error, match=message):
        invoke("--effects", folder / "effects.csv", "--out", "run", *options)
    assert not (tmp_path / "run").exists()


def test_nothing_is_missing(folder, tmp_path):
    table = pd.read_csv(folder / "effects.csv")
    table[table["action"] == "d0"].to_csv(tmp_path / "one.csv", index=False)
    with pytest.raises(DataError, match="every pair"):
        invoke("--effects", tmp_path / "one.csv", "--out", tmp_path / "run")

"""Run folders and the command line, as a user types it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import pyro_cge as cge
from pyro_cge.cli import app, main
from pyro_cge.config import RunConfig, read_settings
from pyro_cge.errors import CheckpointError, ConfigError
from pyro_cge.presets import PRESETS
from pyro_cge.runs import build, load_fit, make_split, run

QUICK = RunConfig(latents=3, hidden=(8,), epochs=3, batch_size=64)


@pytest.fixture(scope="session")
def stored(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "d.h5ad"
    cge.write_h5ad(data, path)
    return path


def invoke(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize("model", sorted(PRESETS))
def test_run_folder_holds_everything_and_loads(data, tmp_path, model):
    config = QUICK.model_copy(update={"model": model})
    fitted, scores = run(config, data, tmp_path / "run")
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert names == {
        "config.json", "versions.json", "split.json", "history.csv", "metrics.json", "weights.safetensors",
        "checkpoint.safetensors", "figures",
    }  # fmt: skip
    assert {p.name for p in (tmp_path / "run" / "figures").iterdir()} == {
        "interventions.png", "latent_pairs.png", "learning_curves.png",
    }  # fmt: skip
    assert json.loads((tmp_path / "run" / "versions.json").read_text())["data"] == data.digest
    assert set(scores) == {"train", "valid", "test"} and "mcc" in scores["test"]
    again = load_fit(tmp_path / "run").posterior(data)
    torch.testing.assert_close(again.reconstruct(), fitted.posterior(data).reconstruct(), rtol=0, atol=0)
    assert torch.equal(again.predict(), fitted.posterior(data).predict())


def test_a_seed_gives_the_same_run(featured, tmp_path):
    results = [run(QUICK, featured, tmp_path / name)[1] for name in ("a", "b")]
    assert results[0] == results[1]
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("a", "b")]
    assert weights[0] == weights[1]


def test_resumed_run_equals_a_straight_one(data, tmp_path):
    longer = QUICK.model_copy(update={"epochs": 6})
    straight, _ = run(longer, data, tmp_path / "straight")
    run(QUICK, data, tmp_path / "resumed")
    with pytest.raises(ConfigError, match="holds a run already"):
        run(longer, data, tmp_path / "resumed")
    with pytest.raises(ConfigError, match=r"lr was .*, is .* now.*config.json"):
        run(longer.model_copy(update={"lr": 0.5}), data, tmp_path / "resumed", resume=True)
    resumed, _ = run(longer, data, tmp_path / "resumed", resume=True)
    pd.testing.assert_frame_equal(straight.history.drop(columns="seconds"), resumed.history.drop(columns="seconds"))
    for a, b in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_annealed_temperature_ends_where_it_should(data, tmp_path):
    config = QUICK.model_copy(update={"temperature": 2.0, "final_temperature": 0.1, "patience": None})
    fitted, _ = run(config, data, tmp_path / "run")
    if fitted.best_epoch == config.epochs - 1:
        assert fitted.model.prior.temperature.item() == pytest.approx(0.1)
    assert fitted.model.prior.temperature.item() <= 2.0


def test_unwritable_run_folder_fails_before_training(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(cge.errors.PyroCgeError, match="cannot write"):
        run(QUICK, data, tmp_path / "file" / "run")


def test_loading_something_else_is_refused(data, tmp_path):
    with pytest.raises(CheckpointError, match="no finished run"):
        load_fit(tmp_path)
    run(QUICK, data, tmp_path / "run")
    weights = tmp_path / "run" / "weights.safetensors"
    weights.write_bytes((tmp_path / "run" / "checkpoint.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="holds 'checkpoint', not a run"):
        load_fit(tmp_path / "run")
    weights.write_bytes(b"\x80\x04garbage")
    with pytest.raises(CheckpointError, match="pickled"):
        load_fit(tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["latnets=4"], "unknown setting 'latnets': did you mean 'latents'"),
        (["latents=0"], "latents = 0"),
        (["lr=fast"], "lr = 'fast'"),
        (["model=magic"], "model = 'magic'"),
        (["latents"], "--set needs key=value"),
        (["rotate=true"], "rotate turns fits of model = 'dense' only, and model is 'environment'"),
        (["split=moon"], "split = 'moon': expected auto, "),
        (["split=column"], "split = 'column': expected auto, "),
        (["fractions=[0.5, 0.1, 0.1]"], "three shares that add up to 1"),
        (["fractions=[0, 0.5, 0.5]"], "the first above 0"),
        (["fractions=[1.2, -0.1, -0.1]"], "three shares that add up to 1"),
    ],
)
def test_config_errors_name_key_and_fix(overrides, message):
    with pytest.raises(ConfigError, match=message):
        read_settings(RunConfig, None, overrides)


def test_config_file_and_overrides(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("latents: 7\nhidden: [10, 11]\n")
    config = read_settings(RunConfig, path, ["latents=8"], seed=3)
    assert (config.latents, config.hidden, config.seed) == (8, (10, 11), 3)
    path.write_text("- a\n")
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        read_settings(RunConfig, path)
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        read_settings(RunConfig, tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": (), "conditioning": "film"}, "needs at least one hidden layer"),
        ({"model": "dense", "rotate": True, "decoder": "sparse"}, "a linear or MLP decoder, got SparseDecoder"),
        ({"model": "dense", "rotate": True, "moves": "scale"}, "a DensePrior that moves means"),
        ({"model": "dense", "rotate": True, "guide": "full"}, "an AmortizedGuide .* got FullCovarianceGuide"),
    ],
)
def test_a_bad_configuration_builds_nothing(data, change, message):
    with pytest.raises(ConfigError, match=message):
        build(QUICK.model_copy(update=change), data)


def test_groups_of_a_column_are_split_whole(data):
    donors = replace(data, obs=data.obs.assign(donor=np.arange(data.n) % 7))
    parts = make_split(RunConfig(split="group:donor"), donors)
    held = [set(donors.obs["donor"].iloc[rows]) for rows in (parts.valid, parts.test)]
    trained = set(donors.obs["donor"].iloc[[row for row in parts.train if int(data.env[row]) not in data.control]])
    assert all(held) and not held[0] & held[1] and not trained & (held[0] | held[1])


@pytest.mark.parametrize("dose", [None, "dose"])
def test_perturbations_keep_their_names(data, tmp_path, dose):
    names = ["control", *(f"{chr(97 + e)}+b" for e in range(1, data.n_envs))]
    table = pd.DataFrame({"perturbagen": names, "dose": np.linspace(0.1, 10, data.n_envs)})
    doses = cge.dosed(replace(data, env_names=names, env_table=table, truth=None), dose=dose)
    config = QUICK.model_copy(
        update={"model": "sams", "additive": True, "hill": dose is not None, "split": "random", "epochs": 1}
    )
    fitted, _ = run(config, doses, tmp_path / "run")
    again = load_fit(tmp_path / "run")
    expected = [chr(98 + k) for k in range(data.n_envs - 1)]
    for found in (fitted, again):
        assert list(found.model.prior.unit_schema.env_names) == expected
    assert again.schema.env_table.attrs["feature_names"] == expected


def test_simulate_fit_compare_predict(tmp_path):
    data, small = tmp_path / "d.h5ad", ["--set", "epochs=2", "--set", "hidden=[8]", "--set", "latents=3"]
    invoke("simulate", "--out", data, "--latents", 3, "--genes", 12, "--environments", 6, "--per-env", 15)
    result = invoke("fit", "environment", "--data", data, "--out", tmp_path / "run", *small)
    assert "prediction pearson" in result.output and "mcc" in result.output
    result = invoke("compare", "--data", data, "--out", tmp_path / "all", "--seeds", 2, *small)
    assert all(name in result.output for name in ("basic", "conditional", "environment"))
    assert len(json.loads((tmp_path / "all" / "compare.json").read_text())["basic"]) == 2
    out = tmp_path / "p.csv"
    invoke("predict", tmp_path / "run", "--environment", "env 1", "--environment", "control", "--out", out)
    table = pd.read_csv(out, index_col=0)
    assert list(table.index) == ["env 1", "control"] and table.shape == (2, 12)


def test_a_csv_table_is_data_too(tmp_path):
    frame = pd.DataFrame(torch.randn(40, 4).numpy(), columns=[f"g{k}" for k in range(4)])
    frame.insert(0, "environment", ["DMSO", "drug"] * 20)
    frame.to_csv(tmp_path / "e.csv", index=False)
    invoke(
        "fit", "basic", "--data", tmp_path / "e.csv", "--out", tmp_path / "r", "--set", "epochs=1", "--set", "latents=2",
        "--control", "DMSO",
    )  # fmt: skip
    schema = load_fit(tmp_path / "r").schema
    assert [schema.env_names[e] for e in schema.control] == ["DMSO"]


def test_errors_are_one_line_and_exit_code_one(stored, tmp_path, monkeypatch, capsys):
    arguments = [
        "pyro-cge",
        "fit",
        "environment",
        "--data",
        str(stored),
        "--out",
        str(tmp_path / "r"),
        "--set",
        "epoch=3",
    ]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    assert stop.value.code == 1
    assert captured.err.strip() == "error: settings: unknown setting 'epoch': did you mean 'epochs'?"
    assert not (tmp_path / "r").exists()


def test_predicting_an_unseen_environment_by_name_is_refused(data, stored, tmp_path):
    run(QUICK, data, tmp_path / "run")
    with pytest.raises(cge.errors.DataError, match="unknown environments .'new'"):
        invoke("predict", tmp_path / "run", "--environment", "new", "--out", tmp_path / "p.csv")
    assert not (tmp_path / "p.csv").exists()


def test_demo_prints_a_table_and_writes_figures(tmp_path):
    result = invoke("demo", "--out", tmp_path / "demo", "--epochs", 2)
    assert all(word in result.output for word in ("basic", "conditional", "environment", "target f1", "mcc"))
    made = {str(p.relative_to(tmp_path / "demo")) for p in (tmp_path / "demo").rglob("*.png")}
    assert {"learning_curves.png", "out_of_distribution.png", "environment/figures/interventions.png"} <= made
    with pytest.raises(ConfigError, match="not an empty folder"):
        invoke("demo", "--out", tmp_path / "demo")

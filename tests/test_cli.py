"""The command line as a first-time user meets it: mistakes told at once and in its own words, what a fit says meanwhile."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from typer.testing import CliRunner

import pyro_cge as cge
from pyro_cge import config, runs
from pyro_cge.cli import app
from pyro_cge.cli.models import only
from pyro_cge.cli.options import in_options
from pyro_cge.config import RunConfig, as_yaml, read_settings
from pyro_cge.data.filters import Filters
from pyro_cge.data.l1000 import Expression, write_gctx
from pyro_cge.errors import ConfigError, DataError
from pyro_cge.impute import METHODS
from pyro_cge.train.progress import EpochProgress

SMALL = ["--set", "latents=2", "--set", "hidden=[4]", "--set", "epochs=2", "--set", "batch_size=128"]


def invoke(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def stored(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "d.h5ad"
    cge.write_h5ad(data, path)
    return path


@pytest.fixture
def bare(monkeypatch):
    """Runs without their judgement and figures, which take longer than such a fit."""
    monkeypatch.setattr(runs, "score", lambda *_: {"loss": 0.0})
    monkeypatch.setattr(runs, "draw", lambda *_: None)


# Mistakes are told before anything heavy is loaded

MISTAKES = [
    ("no such file", "fit", "basic", "--data", "none.h5ad"),
    ("no such file", "fit", "basic", "--data", "d.h5ad", "--config", "none.yaml"),
    ("did you mean 'epochs'", "fit", "basic", "--data", "d.h5ad", "--set", "epoch=3"),
    ("model = 'magic'", "fit", "magic", "--data", "d.h5ad"),
    ("read with --stream", "fit", "basic", "--data", "d.gctx"),
    ("pyro-cge prepare", "fit", "basic", "--data", "d.gct.gz"),
    ("read into memory", "fit", "basic", "--data", "d.csv", "--stream"),
    ("rotate turns fits of model = 'dense' only", "fit", "basic", "--data", "d.h5ad", "--set", "rotate=true"),
    ("split = 'foo': expected auto, ", "fit", "basic", "--data", "d.h5ad", "--set", "split=foo"),
    ("three shares that add up to 1", "fit", "basic", "--data", "d.h5ad", "--set", "fractions=[0.8, 0.1, 0.2]"),
    ("model is 'basic' in --set and given as 'dense'", "fit", "dense", "--data", "d.h5ad", "--set", "model=basic"),
    ("model is 'basic' in basic.yaml", "fit", "dense", "--data", "d.h5ad", "--config", "basic.yaml"),
    ("model is 'basic' in basic.yaml", "tune", "dense", "--data", "d.h5ad", "--config", "basic.yaml"),
    ("seed is 7 in --set and given as 3", "fit", "basic", "--data", "d.h5ad", "--set", "seed=7", "--seed", "3"),
    ("a table has none", "fit", "basic", "--data", "d.csv", "--layer", "counts"),
    ("mine exists and is not an empty folder", "fit", "basic", "--data", "d.h5ad", "--out", "mine"),
    ("mine exists and is not an empty folder", "fit", "basic", "--data", "d.h5ad", "--out", "mine", "--resume"),
    ("d.csv exists and is not an empty folder", "fit", "basic", "--data", "d.h5ad", "--out", "d.csv"),
    ("names of its models from --models", "compare", "--data", "d.h5ad", "--set", "model=basic"),
    ("holds a run already", "fit", "basic", "--data", "d.h5ad", "--out", "run"),
    ("latents was 10, is 3 now", "fit", "basic", "--data", "d.h5ad", "--out", "run", "--resume", "--set", "latents=3"),
    ("not an empty folder", "compare", "--data", "d.h5ad", "--out", "run"),
    ("model = 'magic'", "compare", "--data", "d.h5ad", "--models", "basic,magic"),
    ("latents was 10, is 3 now", "compare", "--data", "d.h5ad", "--out", "all", "--resume", "--set", "latents=3"),
    ("nothing to vary", "tune", "basic", "--data", "d.h5ad"),
    ("lr: expected a range", "tune", "basic", "--data", "d.h5ad", "--vary", "lr=3"),
    ("hidden as YAML", "tune", "basic", "--data", "d.h5ad", "--vary", "hidden=[4|8]"),
    ("split, seed cannot be varied", "tune", "--data", "d.h5ad", "--vary", "seed=0..3", "--vary", "split=auto|random"),
    ("not an empty folder", "tune", "basic", "--data", "d.h5ad", "--vary", "lr=1|2", "--out", "run"),
    ("holds no finished run", "predict", "run"),
    ("no such file", "predict", "none"),
    ("no such file", "prepare", "none.gctx"),
    ("no such file", "prepare", "d.gct.gz", "--side-table", "none.txt"),
    ("did you mean 'landmarks'", "prepare", "d.gct.gz", "--set", "landmark=true"),
    ("no such file", "discover", "--data", "none.csv"),
    ("penalty = -1", "discover", "--data", "d.csv", "--penalty", "-1"),
    ("not an empty folder", "discover", "--data", "d.csv", "--out", "run"),
    ("no such file", "impute", "--effects", "none.csv"),
    ("unknown method 'magic'", "impute", "--effects", "d.csv", "--method", "magic"),
    ("not an empty folder", "impute", "--effects", "d.csv", "--out", "run"),
    ("no such file", "rank-drugs", "--disease", "d.csv", "--effects", "none.csv"),
    ("did you mean 'draws'", "rank-drugs", "--disease", "d.csv", "--effects", "d.csv", "--set", "drawz=3"),
    ("not an empty folder", "rank-drugs", "--disease", "d.csv", "--effects", "d.csv", "--out", "run"),
    ("not an empty folder", "demo", "--out", "run"),
    ("no such file", "report", "none"),
]


def test_mistakes_are_told_before_anything_heavy_is_loaded(tmp_path):
    for name in ("d.h5ad", "d.csv", "d.gctx", "d.gct.gz"):
        (tmp_path / name).write_text("")
    for folder in ("run", "all/basic/seed0"):
        (tmp_path / folder).mkdir(parents=True)
        settings = RunConfig(model="basic").model_dump(mode="json")
        (tmp_path / folder / "config.json").write_text(json.dumps(settings))
    (tmp_path / "basic.yaml").write_text("model: basic\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "history.csv").write_text("of mine")
    before = sorted(tmp_path.rglob("*"))
    code = f"""
import sys
from typer.testing import CliRunner
from pyro_cge.cli import app
from pyro_cge.errors import PyroCgeError
for message, *arguments in {MISTAKES!r}:
    error = CliRunner().invoke(app, arguments).exception
    assert isinstance(error, PyroCgeError) and message in str(error), (arguments, error)
    heavy = {{"torch", "pyro", "anndata", "matplotlib", "sklearn", "numba"}} & set(sys.modules)
    assert not heavy, (arguments, heavy)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written"


@pytest.mark.parametrize("call", [("fit", "basic"), ("compare",), ("tune", "basic", "--vary", "lr=1e-3|1e-2")])
def test_a_device_that_is_not_here_is_told_before_data_are_read(stored, tmp_path, monkeypatch, call):
    if call[0] == "tune":
        pytest.importorskip("optuna")
    monkeypatch.setattr("pyro_cge.data.anndata.read_h5ad", lambda *_, **__: pytest.fail("data are read"))
    with pytest.raises(ConfigError, match="no device 'abacus' here"):
        invoke(*call, "--data", stored, "--out", tmp_path / "out", "--device", "abacus")
    assert not (tmp_path / "out").exists()


# Errors in the words of a terminal


def test_arguments_become_options():
    options = {"env_key": "--env-key", "context": "--context", "keys": "--context-key and --action-key"}
    for message, expected in [
        ("say which with context=", "say which with --context"),
        ("give context='A549', or keys=", "give --context 'A549', or --context-key and --action-key"),
        ("env_key 'x' is no column: a finer env_key.", "--env-key 'x' is no column: a finer --env-key."),
        ("column 'env_key' of data/env_key.csv, my_context=1", "column 'env_key' of data/env_key.csv, my_context=1"),
        ("no context, no keys", "no context, no keys"),
    ]:
        assert in_options(message, options) == expected


def test_errors_name_the_options(data, stored, tmp_path):
    adata = cge.to_anndata(data)
    adata.obs = adata.obs.rename(columns={"environment": "drug"})
    del adata.uns["pyro_cge"]
    adata.write_h5ad(tmp_path / "own.h5ad")
    pd.DataFrame({"drug": ["a", "b"], "g1": [0.0, 1.0], "g2": [1.0, 0.0]}).to_csv(tmp_path / "own.csv", index=False)
    for file, arguments, message in [
        ("own.h5ad", [], "name their column with --env-key, one of obs: .*drug"),
        ("own.h5ad", ["--env-key", "dose"], "--env-key 'dose' is not a column of obs"),
        ("own.h5ad", ["--stream"], "name their column with --env-key, one of obs: .*drug"),
        ("own.csv", [], "no column 'environment'; there are 'drug', 'g1', 'g2': name the environments' column with --env-key"),
    ]:  # fmt: skip
        with pytest.raises(DataError, match=message):
            invoke("fit", "basic", "--data", tmp_path / file, "--out", tmp_path / "r", *arguments)
    assert not (tmp_path / "r").exists()


def test_prepare_names_genes_as_asked(tmp_path):
    obs = pd.DataFrame({"pert_iname": ["DMSO", "drug"]}, index=["a", "b"])
    for name, ids in (("one", ["1_at", "2_at"]), ("two", ["3_at", "4_at"])):
        var = pd.DataFrame({"pr_gene_symbol": ["TP53", "MYC"]}, index=ids)
        x = np.arange(4, dtype=np.float32).reshape(2, 2)
        write_gctx(tmp_path / f"{name}.gctx", Expression(x, obs.set_axis([f"{name} a", f"{name} b"]), var, name))
    call = ("prepare", tmp_path / "one.gctx", tmp_path / "two.gctx", "--out", tmp_path / "d.h5ad")
    with pytest.raises(DataError, match=r"use --genes 'intersection', or --gene-id if"):
        invoke(*call)
    result = invoke(*call, "--gene-id", "pr_gene_symbol", "--control", "DMSO")
    assert "4 profiles × 2 genes, 2 environments (1 control" in result.stdout
    assert list(cge.read_h5ad(tmp_path / "d.h5ad").gene_names) == ["TP53", "MYC"]


# Settings


@pytest.mark.parametrize(
    "command, kind",
    [
        ("fit", RunConfig),
        ("discover", config.DiscoverConfig),
        ("impute", config.ImputeConfig),
        ("rank-drugs", config.RankDrugsConfig),
        ("prepare", Filters),
    ],
)
def test_settings_are_all_printed_with_what_they_are(command, kind, tmp_path):
    output = invoke("settings", command).output
    assert output == as_yaml(kind)
    (tmp_path / "s.yaml").write_text(output)
    assert read_settings(kind, tmp_path / "s.yaml") == kind()
    described = dict(line.split("  # ") for line in output.splitlines())
    assert [line.split(":")[0].removeprefix("# ") for line in described] == list(kind.model_fields)
    assert all(len(text) > 3 and text != "None" for text in described.values())


def test_choices_are_part_of_what_a_setting_is():
    text = as_yaml(RunConfig)
    for choice in (*runs.PRESETS, "one_cycle", "negative_binomial", "flow"):
        assert choice in text


def test_methods_are_those_there_are():
    assert tuple(METHODS) == config.METHODS


# What a fit says


@pytest.mark.parametrize("epochs, done, expected", [(5, 0, [1, 2, 3, 4, 5]), (100, 0, [1, *range(10, 101, 10)]), (100, 95, [96, 100])])  # fmt: skip
def test_lines_go_to_a_log(epochs, done, expected, capsys):
    with EpochProgress(epochs, done, True) as progress:
        for _ in range(done, epochs):
            progress.update({"train_loss": 12.5, "valid_loss": 13.25})
    lines = capsys.readouterr().err.splitlines()
    assert [int(line.split()[1]) for line in lines] == expected
    assert all(f"of {epochs}  train 12.5  held out 13.25  at most 0:0" in line for line in lines)


def test_a_line_after_a_long_silence_and_at_an_early_end(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("pyro_cge.train.progress.time.monotonic", lambda: now[0])
    with EpochProgress(1000, 0, True) as progress:
        for _ in range(7):
            now[0] += 12
            progress.update({"train_loss": 1.0})
    lines = capsys.readouterr().err.splitlines()
    assert [int(line.split()[1]) for line in lines] == [1, 4, 7]
    assert lines[-1].endswith("at most 3:18:36 left")  # 993 × 12 s
    with EpochProgress(1000, 0, True) as progress:
        for _ in range(2):
            progress.update({"train_loss": 1.0})
    assert [int(line.split()[1]) for line in capsys.readouterr().err.splitlines()] == [1, 2]


@pytest.mark.parametrize("shown", [None, False])
def test_nothing_is_said_unasked(shown, capsys):
    with EpochProgress(10, 0, shown) as progress:
        progress.update({"train_loss": 1.0})
    assert capsys.readouterr().err == ""


def test_resuming_nothing_starts_anew_and_says_so(stored, tmp_path, bare):
    call = ("fit", "basic", "--data", stored, "--out", tmp_path / "run", "--resume", *SMALL)
    result = invoke(*call)
    assert "holds no run yet: starting anew" in result.stderr and "epoch 2 of 2  train " in result.stderr
    assert "epoch" not in result.stdout
    assert "anew" not in invoke(*call).stderr


# compare and tune


def test_compare_goes_on_where_it_was_stopped(stored, tmp_path, bare, monkeypatch):
    call = ("compare", "--data", stored, "--out", tmp_path / "all", "--models", "basic,conditional", *SMALL)
    train = runs.train
    trained = []

    def stopping(model, guide, plan, *rest, **options):
        if plan.model == "conditional":
            raise KeyboardInterrupt
        return train(model, guide, plan, *rest, **options)

    def counting(*arguments, **options):
        return train(*arguments, **{**options, "on_record": lambda row: trained.append(arguments[2].model)})

    with monkeypatch.context() as patch:
        patch.setattr(runs, "train", stopping)
        CliRunner().invoke(app, [str(a) for a in call])
    weights = (tmp_path / "all" / "basic" / "seed0" / "weights.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="not an empty folder"):
        invoke(*call)
    monkeypatch.setattr(runs, "train", counting)
    result = invoke(*call, "--resume")
    assert trained == ["conditional"] * 2, "what was finished is not fitted again"
    assert (tmp_path / "all" / "basic" / "seed0" / "weights.safetensors").read_bytes() == weights
    assert set(json.loads((tmp_path / "all" / "compare.json").read_text())) == {"basic", "conditional"}
    assert "anew" not in result.stderr
    invoke(*call, "--resume", "--seeds", 2)
    assert trained == ["conditional"] * 2 + ["basic"] * 2 + ["conditional"] * 2, "seeds may join"
    with pytest.raises(ConfigError, match="latents was 2, is 3 now"):
        invoke(*call, "--resume", "--set", "latents=3")


def test_compare_keeps_what_is_finished(stored, tmp_path, bare):
    call = ("compare", "--data", stored, "--out", tmp_path / "all", *SMALL)

    def compared():
        results = json.loads((tmp_path / "all" / "compare.json").read_text())
        return {name: len(runs) for name, runs in results.items()}

    invoke(*call, "--models", "basic", "--seeds", 2)
    assert "environment" in invoke(*call, "--models", "environment", "--resume").stdout
    assert compared() == {"basic": 2, "environment": 1}
    (tmp_path / "all" / "basic" / "seed1" / "weights.safetensors").unlink()  # as if killed in its last epoch
    invoke(*call, "--models", "environment", "--resume")
    assert compared() == {"basic": 1, "environment": 1}
    with pytest.raises(ConfigError, match="latents was 2, is 3 now"):
        invoke(*call, "--models", "dense", "--resume", "--set", "latents=3")


def test_compare_counts_seeds_from_that_of_the_settings(stored, tmp_path, bare):
    invoke(
        "compare",
        "--data",
        stored,
        "--out",
        tmp_path / "all",
        "--models",
        "basic",
        "--seeds",
        2,
        *SMALL,
        "--set",
        "seed=7",
    )
    folders = sorted((tmp_path / "all" / "basic").iterdir())
    assert [folder.name for folder in folders] == ["seed7", "seed8"]
    assert [json.loads((folder / "config.json").read_text())["seed"] for folder in folders] == [7, 8]


def test_compare_prints_intervals_over_seeds(stored, tmp_path, bare, monkeypatch):
    losses = iter([1.0] * 3 + [3.0] * 3 + [5.0] * 3)  # of train, valid and test, a run after the other
    monkeypatch.setattr(runs, "score", lambda *_: {"loss": next(losses)})
    call = ("compare", "--data", stored, "--out", tmp_path / "all", *SMALL)
    first = invoke(*call, "--models", "basic", "--seeds", 2).stdout
    assert "2 ± 13" in first and "95 % t interval" in first  # t of 1 degree of freedom at 0.975: 12.7
    losses = iter([5.0] * 3)
    alone = invoke("compare", "--data", stored, "--out", tmp_path / "one", "--models", "basic", *SMALL).stdout
    assert " 5" in alone and "±" not in alone


def test_the_model_may_be_that_of_the_settings(stored, tmp_path, bare):
    (tmp_path / "c.yaml").write_text("model: conditional\n")
    for name, arguments in (("a", []), ("b", ["conditional"])):
        invoke("fit", *arguments, "--data", stored, "--config", tmp_path / "c.yaml", "--out", tmp_path / name, *SMALL)
        assert json.loads((tmp_path / name / "config.json").read_text())["model"] == "conditional"


def test_features_and_layer_of_a_file_of_ones_own(data, tmp_path, bare):
    adata = cge.to_anndata(data)
    del adata.uns["pyro_cge"]
    adata.obs = adata.obs.rename(columns={"environment": "drug"})
    adata.layers["doubled"] = 2 * adata.X
    adata.uns["structure"] = np.arange(3.0 * data.n_envs).reshape(-1, 3)
    adata.write_h5ad(tmp_path / "own.h5ad")
    keys = ("--env-key", "drug", "--control", "control", "--features-key", "structure", "--layer", "doubled")
    call = ("--data", tmp_path / "own.h5ad", *keys)
    for name, more in (("memory", ()), ("disk", ("--stream",))):
        invoke("fit", "environment", *call, "--out", tmp_path / name, *SMALL, "--set", "split=random", *more)
        found = runs.load_fit(tmp_path / name)
        assert found.schema.n_features == 3
        assert found.scaler.scale.mean().item() == pytest.approx(2 * data.x.std(0).mean().item(), rel=0.1)
    for name in ("fit", "compare"):
        with pytest.raises(DataError, match=r"no layer 'raw'; there are \['doubled'\]"):
            invoke(
                name, "--data", tmp_path / "own.h5ad", "--env-key", "drug", "--layer", "raw", "--out", tmp_path / "r"
            )
    table = tmp_path / "some.csv"
    invoke("predict", tmp_path / "memory", *call, "--environment", "env 3", "--environment", "control", "--out", table)
    some = pd.read_csv(table, index_col=0)
    schema = cge.read_h5ad(tmp_path / "own.h5ad", "drug", "structure", "control", layer="doubled").schema()
    chosen = only(schema, ["env 3", "control"])
    assert list(chosen.env_names) == list(chosen.env_table.index) == list(some.index) == ["env 3", "control"]
    assert chosen.control == (1,) and len(schema.control) == 1
    assert torch.equal(chosen.env_features, schema.env_features[schema.environments(["env 3", "control"])])
    expected = runs.load_fit(tmp_path / "memory").posterior(schema).predict(chosen)
    np.testing.assert_allclose(some.to_numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)
    with pytest.raises(DataError, match="unknown environments .'nonsense'"):
        invoke("predict", tmp_path / "memory", *call, "--environment", "nonsense", "--out", tmp_path / "none.csv")
    assert not (tmp_path / "none.csv").exists()


def test_compare_reads_from_disk(stored, tmp_path, bare, monkeypatch):
    seen, run = [], runs.run
    monkeypatch.setattr(
        runs, "run", lambda plan, data, *rest, **more: seen.append(data) or run(plan, data, *rest, **more)
    )
    for name, more in (("memory", ()), ("disk", ("--stream",))):
        invoke("compare", "--data", stored, "--out", tmp_path / name, "--models", "basic", *SMALL, *more)
    assert [isinstance(data, cge.StreamedData) for data in seen] == [False, True]
    # It fits one window, so it is shuffled as a whole in both.
    memory, disk = (pd.read_csv(tmp_path / name / "basic/seed0/history.csv").drop(columns="seconds") for name in ("memory", "disk"))  # fmt: skip
    pd.testing.assert_frame_equal(memory, disk, rtol=1e-4)


def test_tune_reads_from_disk_and_says_how_to_go_on(stored, tmp_path, bare):
    pytest.importorskip("optuna")
    out = tmp_path / "t u"
    result = invoke("tune", "basic", "--data", stored, "--stream", "--control", "control", "--env-key", "environment",
                    "--vary", "lr=1e-3|1e-2", "--trials", 2, "--out", out, *SMALL)  # fmt: skip
    line = next(line for line in result.stdout.splitlines() if line.startswith("fit it: pyro-cge "))
    first, rest = (out / "best.yaml").read_text().split("\n", 1)
    assert first.startswith("# trial ") and first.endswith(" of 2; --set epochs=N trains longer")
    assert yaml.safe_load(rest)["epochs"] == 2
    assert ("still fell" in result.stdout) == (" after epoch 2 of 2" in first)
    words = shlex.split(line.removeprefix("fit it: pyro-cge "))
    assert words[words.index("--out") + 1] == str(out / "best")
    invoke(*words)
    assert (out / "best" / "weights.safetensors").exists()

"""The search for settings: what is searched, what is proposed, what is stopped, and that processes share it."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import pyro_cge as cge
from pyro_cge.cli import app
from pyro_cge.config import RunConfig
from pyro_cge.errors import ConfigError
from pyro_cge.runs import build, make_split, train
from pyro_cge.train.distributed import World
from pyro_cge.tune import best, distribution, laws, read_space, tune

QUICK = RunConfig(latents=2, hidden=(4,), epochs=2, batch_size=128, kl_warmup=0)
ROOT = Path(__file__).parents[1]


def test_without_optuna_the_error_says_what_to_install(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'pyro-cge\[tune\]'"):
        tune(QUICK, data, {"lr": "1e-4..1e-2"})


def test_a_space_is_a_file_and_entries_that_win(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text("lr: 1e-4..1e-2:log\nlatents: 2..20\nhidden: [[64], [128, 128]]\nconditioning: [film, null]\n")
    assert read_space(path, ["latents=3|4", " clip = 1..10"]) == {
        "lr": "1e-4..1e-2:log",
        "latents": "3|4",
        "hidden": "[64]|[128, 128]",
        "conditioning": "film|null",
        "clip": "1..10",
    }
    for content in ("- lr\n", "lr: [\n"):
        path.write_text(content)
        with pytest.raises(ConfigError, match=r"space\.yaml"):
            read_space(path)
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        read_space(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="nothing to vary"):
        read_space()
    with pytest.raises(ConfigError, match="--vary needs setting=values, got 'lr'"):
        read_space(None, ["lr"])


optuna = pytest.importorskip("optuna")


def test_ranges_are_of_the_settings_kind_and_choices_are_texts():
    law = optuna.distributions
    assert distribution("lr", "1e-4..1e-2:log") == law.FloatDistribution(1e-4, 1e-2, log=True)
    assert distribution("weight", "0..10") == law.FloatDistribution(0, 10)
    assert distribution("latents", "2..20") == law.IntDistribution(2, 20)
    assert distribution("latents", "2..20:log") == law.IntDistribution(2, 20, log=True)
    assert distribution("hidden", "[64] | [128, 128]") == law.CategoricalDistribution(["[64]", "[128, 128]"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("lr", "0.1", "lr: expected a range"),
        ("lr", "1e-2..1e-4", "lr: expected a range"),
        ("lr", "0..1:log", "lr: expected a range"),
        ("lr", "1e-4..1e-2:cubic", "lr: expected a range"),
        ("latents", "1.5..3", "latents: expected a range"),
        ("lr", "-1..1", r"lr = -1\.0"),
        ("latnets", "2..3", "did you mean 'latents'"),
        ("decoder", "mlp|cnn", "decoder = 'cnn'"),
        ("hidden", "[4|8]", "cannot read hidden as YAML"),
        *(
            (name, "0|1", f"^{name} cannot be varied")
            for name in ("split", "fractions", "seed", "standardize", "rotate")
        ),
        ("likelihood", "gaussian|poisson", "a probability of counts and a density of reals"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused_before_any_trial(data, name, text, message):
    with pytest.raises(ConfigError, match=message):
        tune(QUICK, data, {name: text})


def test_the_best_trial_is_the_smallest_loss_and_its_settings_give_it_again(data, tmp_path):
    space = {"lr": "1e-3..3e-2:log", "hidden": "[4]|[8, 8]", "latents": "2..4"}
    study = tune(QUICK, data, space, trials=3, out=tmp_path)
    losses = [trial.value for trial in study.trials]
    assert len(losses) == 3 and study.best_value == min(losses)
    settings = RunConfig(**yaml.safe_load((tmp_path / "best.yaml").read_text()))
    assert settings == best(QUICK, study)
    assert settings.model_copy(update={k: getattr(QUICK, k) for k in space}) == QUICK
    fit = train(*build(settings, data), settings, data, make_split(settings, data), progress=False)
    row = fit.history.loc[fit.best_epoch]
    assert row["valid_kl"] - row["valid_log_likelihood"] == pytest.approx(study.best_value, rel=1e-6)
    assert (tmp_path / "trials.csv").read_text().count("\n") == 4
    assert read_space(tmp_path / "space.yaml") == space


def test_in_memory_the_search_is_a_function_of_the_seed(data):
    config = QUICK.model_copy(update={"epochs": 1})
    first, again = (tune(config, data, {"lr": "1e-4..1e-2:log"}, trials=2) for _ in range(2))
    other = tune(config.model_copy(update={"seed": 1}), data, {"lr": "1e-4..1e-2:log"}, trials=2)
    assert [t.params for t in first.trials] == [t.params for t in again.trials] != [t.params for t in other.trials]
    assert [t.value for t in first.trials] == [t.value for t in again.trials]


def test_trials_worse_than_the_median_at_an_epoch_are_stopped(data):
    config = QUICK.model_copy(update={"epochs": 4})
    study = tune(config, data, {"lr": "1e-7|1e-6|1e-2|2e-2"}, trials=14)
    state = optuna.trial.TrialState
    stopped = study.get_trials(states=[state.PRUNED])
    assert stopped and study.best_params["lr"] in ("1e-2", "2e-2")
    for trial in stopped:
        epoch = trial.last_step
        others = [
            t.intermediate_values[epoch]
            for t in study.get_trials(states=[state.COMPLETE])
            if t.number < trial.number and epoch in t.intermediate_values
        ]
        assert min(trial.intermediate_values.values()) > statistics.median(others)


def test_a_trial_that_explodes_has_failed_and_the_search_goes_on(data):
    study = tune(QUICK, data, {"lr": "1e-3|1e25"}, trials=4)
    states = {trial.params["lr"]: trial.state.name for trial in study.trials}
    assert states == {"1e-3": "COMPLETE", "1e25": "FAIL"}


def test_a_stored_study_goes_on_and_is_of_one_thing(data, tmp_path):
    config, space = QUICK.model_copy(update={"epochs": 1}), {"lr": "1e-4..1e-2:log"}
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    first = tune(config, data, space, trials=1, storage=storage)
    both = tune(config, data, space, trials=2, storage=storage)
    assert len(both.trials) == 2 and both.trials[0].params == first.trials[0].params
    assert len(tune(config, data, space, trials=2, storage=storage).trials) == 2  # done already
    with pytest.raises(ConfigError, match="begun with another config"):
        tune(QUICK, data, space, trials=3, storage=storage)
    with pytest.raises(ConfigError, match="begun with another data"):
        tune(config, data.rows(range(200)), space, trials=3, storage=storage)
    with pytest.raises(ConfigError, match="begun with another space"):
        tune(config, data, {"lr": "1e-4..1e-3:log"}, trials=3, storage=storage)
    with pytest.raises(ConfigError, match="cannot open the study in nothing://here"):
        tune(config, data, space, storage="nothing://here")


def test_a_database_that_another_process_is_setting_up_is_tried_again(data, tmp_path, monkeypatch):
    create, tries = optuna.create_study, []

    class IntegrityError(Exception):
        """As SQLAlchemy raises when two processes make the same table."""

    def busy(**options):
        tries.append(options)
        if len(tries) < 3:
            raise IntegrityError("UNIQUE constraint failed")
        return create(**options)

    monkeypatch.setattr(optuna, "create_study", busy)
    config = QUICK.model_copy(update={"epochs": 1})
    study = tune(config, data, {"lr": "1e-4..1e-2:log"}, trials=1, storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert len(tries) == 3 and len(study.trials) == 1


def test_something_must_be_held_out(data):
    with pytest.raises(ConfigError, match="nothing is held out"):
        tune(QUICK.model_copy(update={"fractions": (0.9, 0.0, 0.1)}), data, {"lr": "1e-4..1e-2"})


def test_processes_of_torchrun_are_sent_to_the_storage(data, monkeypatch):
    monkeypatch.setattr("pyro_cge.train.distributed.joined", lambda: nullcontext(World(1, 2)))
    with pytest.raises(ConfigError, match="not by torchrun .2 processes here"):
        tune(QUICK, data, {"lr": "1e-4..1e-2"})


def test_the_command_writes_settings_for_fit(data, tmp_path):
    cge.write_h5ad(data, tmp_path / "d.h5ad")
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(QUICK.model_dump(mode="json") | {"model": "basic", "epochs": 1}))
    options = ["--config", config, "--vary", "lr=1e-3|1e-2", "--trials", 2, "--out", tmp_path / "t"]
    result = CliRunner().invoke(app, list(map(str, ["tune", "basic", "--data", tmp_path / "d.h5ad", *options])))
    assert result.exit_code == 0, result.exception
    assert "2 trials (2 complete)" in result.output and "pyro-cge fit --data" in result.output
    settings = RunConfig(**yaml.safe_load((tmp_path / "t" / "best.yaml").read_text()))
    assert settings.model == "basic" and settings.lr in (1e-3, 1e-2)


def test_likelihoods_of_one_kind_may_be_varied():
    for text in ("gaussian|student_t", "poisson|negative_binomial"):
        assert laws(QUICK, {"likelihood": text})["likelihood"].choices == tuple(text.split("|"))


def test_a_trial_of_a_killed_process_uses_up_nothing(data, tmp_path):
    config, space = QUICK.model_copy(update={"epochs": 1}), {"lr": "1e-4..1e-2:log"}
    storage, out = f"sqlite:///{tmp_path / 'study.db'}", tmp_path / "t"
    tune(config, data, space, trials=1, storage=storage)
    lost = optuna.load_study(study_name="pyro-cge", storage=storage)
    lost.ask({"lr": distribution("lr", space["lr"])})  # and never told: what a kill leaves
    study = tune(config, data, space, trials=2, storage=storage, out=out)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "RUNNING", "COMPLETE"]
    kept = (out / "best.yaml").read_text()
    (out / "best.yaml").write_text("of a slower process")
    tune(config, data, space, trials=2, storage=storage, out=out)
    assert (out / "best.yaml").read_text() == kept


def test_trials_that_are_running_are_said_to_be(data, tmp_path):
    storage, space = f"sqlite:///{tmp_path / 'study.db'}", {"lr": "1e25|1e26"}
    lost = optuna.create_study(study_name="pyro-cge", storage=storage)
    lost.ask({"lr": distribution("lr", space["lr"])})
    with pytest.raises(ConfigError, match=r"none of 2 trials came to an end \(1 are still running, or were killed\)"):
        tune(QUICK, data, space, trials=1, storage=storage)


def test_the_rotation_follows_the_search(data, monkeypatch):
    config = QUICK.model_copy(update={"model": "dense", "rotate": True, "epochs": 1})
    monkeypatch.setattr("pyro_cge.runs.rotate", lambda *_: pytest.fail("a trial is turned"))
    study = tune(config, data, {"lr": "1e-4..1e-2:log"}, trials=1)
    assert best(config, study).rotate


@pytest.mark.slow
def test_two_processes_share_a_study(data, tmp_path):
    cge.write_h5ad(data, tmp_path / "d.h5ad")
    settings = ["latents=2", "hidden=[4]", "epochs=2", "batch_size=64"]
    command = [
        sys.executable, "-m", "pyro_cge.cli", "tune", "environment", "--data", tmp_path / "d.h5ad", "--trials", 8,
        "--vary", "lr=1e-4..1e-2:log", "--storage", f"sqlite:///{tmp_path / 'study.db'}", "--out", tmp_path / "t",
        *(word for text in settings for word in ("--set", text)),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    workers = [subprocess.Popen(list(map(str, command)), env=environment) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    study = optuna.load_study(study_name="pyro-cge", storage=f"sqlite:///{tmp_path / 'study.db'}")
    rates = [trial.params["lr"] for trial in study.trials]
    # Each looks at the number of trials, then begins one: the last two may begin at once.
    assert len(rates) in (8, 9) and len(set(rates)) == len(rates)
    assert all(trial.state.is_finished() for trial in study.trials)

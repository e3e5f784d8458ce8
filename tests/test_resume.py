"""``--resume``: after a kill at any moment of a run, the same command ends with the weights of a run left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace

import pytest

import pyro_cge as cge
from pyro_cge import runs
from pyro_cge.config import RunConfig
from pyro_cge.errors import CheckpointError, ConfigError, DataError
from pyro_cge.train.checkpoint import load_tensors

TINY = RunConfig(latents=2, hidden=(4,), epochs=2, batch_size=64)

# Imports once, then forks a run into the folder named on each line, and says how it ended.
SERVER = """
import os, sys, torch
torch.set_num_threads(1)
import pyro_cge as cge
from pyro_cge import runs
from pyro_cge.config import RunConfig
if sys.argv[1] == "bare":
    runs.draw, runs.score = lambda *_: None, lambda *_: {"loss": 0.0}
environments = cge.simulate.random_shifts(2, 3, sd=2)
data = cge.simulate.growing_network(n_latents=2, n_genes=4, environments=environments).sample(10)
config = RunConfig(latents=2, hidden=(4,), epochs=30, batch_size=16, patience=None)
for line in sys.stdin:
    child = os.fork()
    if not child:
        runs.run(config, data, line.strip(), resume=True, progress=False)
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def launch(server, folder):
    server.stdin.write(f"{folder}\n")
    server.stdin.flush()
    return int(server.stdout.readline())


def kill_until_done(server, folder, rng, n_kills):
    """Start the run again and again, killed at a random moment after some file is there, then let it end."""
    for _ in range(n_kills):
        child = launch(server, folder)
        awaited = folder / rng.choice(["config.json", "checkpoint.safetensors", "checkpoint.safetensors"])
        while not awaited.exists():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.2))
        with suppress(ProcessLookupError):  # it was done already
            os.kill(child, signal.SIGKILL)
        assert int(server.stdout.readline()) in (0, signal.SIGKILL), "an error of its own"
        for path in folder.glob("[!.]*.*"):
            if path.suffix == ".safetensors":
                load_tensors(path)
            elif path.suffix == ".json":
                json.loads(path.read_text())
    launch(server, folder)
    assert int(server.stdout.readline()) == 0


def killed_runs_end_as_if_never_killed(tmp_path, n_folders, n_kills, seed, how):
    rng = random.Random(seed)
    command = [sys.executable, "-c", SERVER, how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        kill_until_done(server, tmp_path / "straight", rng, 0)
        for number in range(n_folders):
            folder = tmp_path / str(number)
            kill_until_done(server, folder, rng, n_kills)
            for name in ("weights.safetensors", "metrics.json", "split.json", "config.json"):
                assert (folder / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
            assert not list(folder.rglob("*.tmp"))
        server.stdin.close()


def test_a_killed_run_ends_as_if_never_killed(tmp_path):
    killed_runs_end_as_if_never_killed(tmp_path, 1, 3, seed=0, how="bare")


@pytest.mark.slow
def test_forty_kills(tmp_path):
    killed_runs_end_as_if_never_killed(tmp_path, 8, 5, seed=1, how="whole")


@pytest.fixture
def bare(monkeypatch):
    """Runs without their judgement and figures, which take longer than such a fit."""
    monkeypatch.setattr(runs, "score", lambda *_: {"loss": 0.0})
    monkeypatch.setattr(runs, "draw", lambda *_: None)


WRITES = ("config.json", "versions.json", "split.json", "checkpoint.safetensors", "history.csv", "metrics.json")


@pytest.mark.parametrize("last", [*WRITES, "weights.safetensors"])
def test_a_run_stopped_after_any_file_resumes_to_the_bit(data, tmp_path, bare, monkeypatch, last):
    runs.run(TINY, data, tmp_path / "straight")
    rename = os.replace

    def stop(source, target):
        rename(source, target)
        if str(target).endswith(last):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", stop)
        runs.run(TINY, data, tmp_path / "stopped")
    if last != "weights.safetensors":
        with pytest.raises(CheckpointError, match="no finished run.*--resume"):
            runs.load_fit(tmp_path / "stopped")
    runs.run(TINY, data, tmp_path / "stopped", resume=True)
    for name in ("weights.safetensors", "metrics.json", "split.json"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_a_finished_run_resumes_to_itself(data, tmp_path, bare):
    runs.run(TINY, data, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    (tmp_path / "run" / ".weights.safetensors.abcd1234.tmp").write_bytes(b"half a file")
    runs.run(TINY, data, tmp_path / "run", resume=True)
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_what_the_very_first_write_left_is_cleared(data, tmp_path, bare):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.json.abcd1234.tmp").write_bytes(b"{")
    runs.run(TINY, data, tmp_path / "run", resume=True)
    assert not list((tmp_path / "run").glob(".*"))


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_something_else_is_left_alone(data, tmp_path, resume):
    (tmp_path / "history.csv").write_text("of mine")
    with pytest.raises(ConfigError, match="not an empty folder"):
        runs.run(TINY, data, tmp_path, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["history.csv"]
    assert (tmp_path / "history.csv").read_text() == "of mine"


def test_changed_data_are_refused(data, tmp_path, bare):
    runs.run(TINY, data, tmp_path / "run")
    x = data.x.clone()
    x[3, 4] = x[3, 4].nextafter(x[3, 4] + 1)  # the last bit of one number
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(CheckpointError, match=r"the data changed since the run in .*run was started"):
        runs.run(TINY, replace(data, x=x), tmp_path / "run", resume=True)
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_changed_split_is_refused(data, tmp_path, bare):
    config = TINY.model_copy(update={"split": "column:part"})
    parts = ["train"] * 200 + ["val"] * 30 + ["test"] * (data.n - 230)
    runs.run(config, replace(data, obs=data.obs.assign(part=parts)), tmp_path / "run")
    with pytest.raises(CheckpointError, match="the split changed"):
        runs.run(config, replace(data, obs=data.obs.assign(part=parts[::-1])), tmp_path / "run", resume=True)


@pytest.mark.parametrize("name", ["config.json", "versions.json", "split.json", "checkpoint.safetensors"])
def test_a_damaged_file_of_the_run_is_named(data, tmp_path, bare, name):
    runs.run(TINY, data, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(b'{"latents": [')
    with pytest.raises((CheckpointError, DataError), match=name):
        runs.run(TINY, data, tmp_path / "run", resume=True)


@pytest.mark.parametrize("content", [b"", b"no,such,columns", b"\x80\x04K\x01."])
def test_a_damaged_history_is_named(data, tmp_path, bare, content):
    runs.run(TINY, data, tmp_path / "run")
    (tmp_path / "run" / "history.csv").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"history\.csv.*restore or remove"):
        runs.load_fit(tmp_path / "run")


@pytest.mark.parametrize("change", [{"schedule": "cosine"}, {"final_temperature": 0.1}])
def test_another_number_of_epochs_is_refused_where_rates_follow_it(data, tmp_path, bare, change):
    config = TINY.model_copy(update=change)
    runs.run(config, data, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"epochs was \d+, is \d+ now"):
        runs.run(config.model_copy(update={"epochs": 3}), data, tmp_path / "run", resume=True)


def test_settings_that_cannot_be_built_leave_no_folder(data, tmp_path):
    with pytest.raises(ConfigError):
        runs.run(TINY.model_copy(update={"hidden": (), "conditioning": "film"}), data, tmp_path / "run")
    with pytest.raises(DataError):
        runs.run(TINY.model_copy(update={"split": "column:nothing"}), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_says_what_it_was_made_with(data, tmp_path, bare):
    runs.run(TINY, data, tmp_path / "run")
    said = json.loads((tmp_path / "run" / "versions.json").read_text())
    assert said["data"] == data.digest and said["sites"] == cge.sites.VERSION and said["torch"]
    _, manifest = load_tensors(tmp_path / "run" / "weights.safetensors")
    assert manifest["genes"] == list(data.gene_names) and manifest["environments"] == list(data.env_names)
    assert manifest["versions"]["torch"] == said["torch"]

"""Checkpoints: training resumes to the bit, bad files are refused in one sentence, a kill loses nothing."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import pyro_cge as cge
from pyro_cge import sites
from pyro_cge.data.files import clear_leftovers
from pyro_cge.errors import CheckpointError
from pyro_cge.runs import load_fit
from pyro_cge.train.checkpoint import (
    FORMAT,
    load_into,
    load_tensors,
    name_differences,
    save_tensors,
    versions,
    write_atomically,
    write_json,
)
from pyro_cge.train.state import TrainingState

FORMAT_1 = Path(__file__).with_name("format_1")  # a run folder written when the format was 1

SETTINGS = {"batch_size": 64, "lr": 1e-2, "seed": 3, "kl_warmup": 2, "progress": False}


def parts(data, hidden=8, d=3):
    with cge.isolated(0):
        return cge.environment_vae(data, d, hidden=(hidden,))


def run(data, epochs, path=None, resume=False, hidden=8, **options):
    model, guide = parts(data, hidden)
    return cge.fit(model, guide, data, epochs=epochs, checkpoint=path, resume=resume, **(SETTINGS | options))


def weights_of(*modules):
    return {f"{i}.{n}": v.clone() for i, m in enumerate(modules) for n, v in m.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "last.safetensors"


# Resuming


@pytest.mark.parametrize("which", ["data", "featured"])
@pytest.mark.parametrize("validation", [0.2, None])
def test_three_epochs_and_three_more_are_six(which, validation, request, path):
    data = request.getfixturevalue(which)
    straight = run(data, 6, validation=validation)
    run(data, 3, path, validation=validation)
    torch.manual_seed(99)
    resumed = run(data, 6, path, resume=True, validation=validation)
    assert straight.history.drop(columns="seconds").equals(resumed.history.drop(columns="seconds"))
    assert same(weights_of(straight.model, straight.guide), weights_of(resumed.model, resumed.guide))
    assert straight.best_epoch == resumed.best_epoch


def test_a_finished_run_resumes_to_itself(data, path):
    first = run(data, 3, path)
    again = run(data, 3, path, resume=True)
    assert first.history.equals(again.history)
    assert same(weights_of(first.model, first.guide), weights_of(again.model, again.guide))


def test_checkpointing_does_not_change_the_run(data, path):
    plain, kept = run(data, 2), run(data, 2, path)
    assert same(weights_of(plain.model, plain.guide), weights_of(kept.model, kept.guide))


def test_resume_without_a_file_starts_from_nothing(data, path):
    fit = run(data, 2, path, resume=True)
    assert len(fit.history) == 2 and path.exists()


def test_an_interrupted_epoch_is_run_again(data, path):
    straight = run(data, 4)
    model, guide = parts(data)

    def interrupt(epoch):
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cge.fit(model, guide, data, epochs=4, checkpoint=path, on_epoch=interrupt, **SETTINGS)
    resumed = run(data, 4, path, resume=True)
    assert same(weights_of(straight.model, straight.guide), weights_of(resumed.model, resumed.guide))


def test_an_optimizer_with_other_state_resumes_to_the_bit(data, path):
    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)

    straight = run(data, 4, optimizer=sgd)
    run(data, 2, path, optimizer=sgd)
    resumed = run(data, 4, path, resume=True, optimizer=sgd)
    assert same(weights_of(straight.model, straight.guide), weights_of(resumed.model, resumed.guide))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"lr": 1e-3}, "lr"),
        ({"seed": 4}, "seed"),
        ({"batch_size": 32}, "batch_size"),
        ({"validation": 0.3}, "validation"),
    ],
)
def test_changed_settings_are_refused_by_name(data, path, change, name):
    run(data, 1, path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=f"other settings.*{name}: .* then, .* now"):
        run(data, 2, path, resume=True, **change)
    assert path.read_bytes() == before


def test_changed_data_are_refused(data, path):
    run(data, 1, path)
    with pytest.raises(CheckpointError, match="data: "):
        run(data.rows(range(200)), 2, path, resume=True)


def test_a_changed_validation_set_is_refused(data, path):
    train = data.rows(range(0, data.n, 2))
    run(train, 1, path, validation=data.rows(range(1, data.n, 2)))
    with pytest.raises(CheckpointError, match="validation"):
        run(train, 2, path, resume=True, validation=data.rows(range(1, data.n, 4)))


def test_another_model_is_refused_and_left_as_it_was(data, path):
    run(data, 1, path)
    model, guide = parts(data, hidden=9)
    before = weights_of(model, guide)
    with pytest.raises(CheckpointError, match=r"another model, \d+ differences: .*shape.*expected"):
        cge.fit(model, guide, data, epochs=2, checkpoint=path, resume=True, **SETTINGS)
    assert same(before, weights_of(model, guide))


def test_what_changed_in_the_data_is_listed(data, path):
    run(data, 1, path)
    names = ["new", *data.gene_names[1:]]
    with pytest.raises(CheckpointError, match=f"genes no longer there: '{data.gene_names[0]}'; new genes: 'new'"):
        run(replace(data, gene_names=names), 2, path, resume=True)
    with pytest.raises(CheckpointError, match="genes in another order"):
        run(data.genes(list(data.gene_names)[::-1]), 2, path, resume=True)


def test_fewer_epochs_than_were_run_are_refused(data, path):
    run(data, 3, path)
    with pytest.raises(CheckpointError, match="3 epochs already"):
        run(data, 2, path, resume=True)


def test_resuming_clears_what_a_kill_left_behind(data, path):
    run(data, 1, path)
    (path.parent / f".{path.name}.abcd1234.tmp").write_bytes(b"half a")
    (path.parent / ".another.abcd1234.tmp").write_bytes(b"not ours to remove")
    run(data, 2, path, resume=True)
    assert sorted(os.listdir(path.parent)) == [".another.abcd1234.tmp", path.name]
    clear_leftovers(path.parent)
    assert os.listdir(path.parent) == [path.name]


def test_differences_of_names():
    assert name_differences("genes", ["a", "b"], ["a", "b"]) == []
    assert name_differences("genes", ["a", "b"], ["b", "a"]) == ["genes in another order"]
    assert name_differences("genes", ["a", "b"], ["b", "c"]) == ["genes no longer there: 'a'", "new genes: 'c'"]


# Formats


def test_the_manifest_says_what_it_takes_to_read_a_file(tmp_path):
    save_tensors(tmp_path / "a", {"x": torch.zeros(2)}, {"kind": "thing"})
    _, manifest = load_tensors(tmp_path / "a")
    assert manifest == {"format": FORMAT, "sites": sites.VERSION, "versions": versions(), "kind": "thing"}
    assert {"torch", "pyro-ppl", "pyro-cge"} <= set(versions())


def test_files_of_format_1_still_load(data):
    fit = load_fit(FORMAT_1)
    stored = load_file(FORMAT_1 / "weights.safetensors")
    for part in ("model", "guide"):
        for name, value in getattr(fit, part).state_dict().items():
            assert torch.equal(value, stored[f"{part}.{name}"])
    assert len(fit.history) == 3 and list(fit.schema.gene_names) == [f"gene {k}" for k in range(4)]
    _, manifest = load_tensors(FORMAT_1 / "checkpoint.safetensors")
    adam = torch.optim.Adam([*fit.model.parameters(), *fit.guide.parameters()])
    state = TrainingState({"model": fit.model, "guide": fit.guide}, adam)
    state.load(FORMAT_1 / "checkpoint.safetensors", manifest["settings"])
    assert state.epoch == 3 and manifest["format"] == FORMAT and manifest["sites"] == 1


@pytest.mark.parametrize("number", [0, -1])
def test_a_format_nobody_reads_any_more_is_refused(tmp_path, number):
    save_file({"a": torch.zeros(1)}, tmp_path / "a", metadata={"pyro_cge": f'{{"format": {number}}}'})
    with pytest.raises(CheckpointError, match="no longer reads"):
        load_tensors(tmp_path / "a")


def test_another_table_of_sites_is_refused(tmp_path, monkeypatch):
    save_tensors(tmp_path / "a", {"x": torch.zeros(2)}, {})
    monkeypatch.setattr(sites, "VERSION", 2)
    with pytest.raises(CheckpointError, match="version 1 of the table of sample sites, this is version 2"):
        load_tensors(tmp_path / "a")


def test_the_table_of_sites_has_the_version_it_says():
    """A change of the table needs a new version: raise it, then put the new hash here."""
    digest = hashlib.sha256(repr(sorted(sites.SITES.items())).encode()).hexdigest()
    assert (sites.VERSION, digest[:16]) == (1, "9be55148373a97bb")


def test_every_flipped_bit_is_noticed_or_changes_nothing(tmp_path):
    path = tmp_path / "a"
    tensors = {"w": torch.randn(3, 5), "n": torch.arange(4), "half": torch.randn(2).bfloat16()}
    save_tensors(path, tensors, {"kind": "run", "genes": ["a", "b"], "lr": 0.01})
    content, (_, manifest) = path.read_bytes(), load_tensors(path)
    noticed = 0
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            loaded, said = load_tensors(path)
        except CheckpointError:
            noticed += 1
            continue
        assert said == manifest and loaded.keys() == tensors.keys()
        assert all(torch.equal(loaded[k], v) for k, v in tensors.items())
    assert noticed > 0.9 * len(content)


def test_a_flipped_bit_in_the_weights_names_file_and_fix(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"w": torch.ones(8)}, {})
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.safetensors is not what was written.*SHA-256.*copy it again"):
        load_tensors(path)


# Files


def test_tensors_and_manifest_come_back(tmp_path):
    path = tmp_path / "a.safetensors"
    shared = torch.randn(3, 4)
    tensors = {
        "half": torch.randn(2).half(), "long": torch.arange(3), "empty": torch.empty(0, 2), "scalar": torch.tensor(2.5),
        "bool": torch.tensor([True, False]), "double": torch.randn(2).double(), "one": shared, "tied": shared,
        "view": shared.t(), "byte": torch.get_rng_state(), "leaf": torch.nn.Parameter(torch.randn(2)),
    }  # fmt: skip
    save_tensors(path, tensors, {"note": "µM", "numbers": [0.1, float("inf")]})
    loaded, manifest = load_tensors(path)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[k], v.detach()) and loaded[k].dtype == v.dtype for k, v in tensors.items())
    assert manifest["note"] == "µM" and manifest["numbers"] == [0.1, float("inf")]


def test_load_into_is_all_or_nothing():
    good, bad = torch.nn.Linear(2, 3), torch.nn.Linear(2, 4)
    before = weights_of(good, bad)
    tensors = {f"good.{k}": torch.randn_like(v) for k, v in good.state_dict().items()}
    tensors |= {"bad.weight": torch.zeros(1, 2), "bad.extra": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        load_into({"good": good, "bad": bad}, tensors, "file")
    message = str(caught.value)
    assert "3 differences" in message
    for part in ("missing bad.bias", "unexpected bad.extra", "bad.weight has shape [1, 2], expected [4, 2]"):
        assert part in message
    assert same(before, weights_of(good, bad))


class Trap:
    """Unpickling this writes a file."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return (open, (self.target, "w"))


@pytest.fixture(
    params=["truncated", "header only", "empty", "garbage", "text", "zip pickle", "legacy pickle", "pickle"]
)
def bad_file(request, data, tmp_path):
    path, trap = tmp_path / "bad.safetensors", tmp_path / "executed"
    if request.param in ("truncated", "header only"):
        run(data, 1, path)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if request.param == "truncated" else content[:40])
    elif request.param == "empty":
        path.write_bytes(b"")
    elif request.param == "garbage":
        path.write_bytes(random.Random(0).randbytes(5000))
    elif request.param == "text":
        path.write_text("these are not weights\n" * 10)
    elif request.param == "pickle":
        path.write_bytes(pickle.dumps(Trap(trap)))
    else:
        torch.save({"trap": Trap(trap)}, path, _use_new_zipfile_serialization=request.param == "zip pickle")
    return path, trap, request.param


def test_a_bad_file_is_refused_and_never_executed(bad_file, data):
    path, trap, kind = bad_file
    content = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"cannot read .*bad\.safetensors") as caught:
        run(data, 2, path, resume=True)
    assert not trap.exists()
    assert ("refused because unpickling runs code" in str(caught.value)) == ("pickle" in kind)
    assert path.read_bytes() == content


def test_the_trap_would_have_worked(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "executed"))).close()
    assert (tmp_path / "executed").exists()


def test_a_foreign_safetensors_file_is_refused(tmp_path, data):
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not one of pyro_cge"):
        run(data, 1, path, resume=True)


@pytest.mark.parametrize("header", ["not json", "{}", "[]", '{"format": "new"}', "null"])
def test_a_manifest_that_makes_no_sense_is_refused(tmp_path, header):
    path = tmp_path / "odd.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata={"pyro_cge": header})
    with pytest.raises(CheckpointError, match="odd"):
        load_tensors(path)


def test_a_newer_format_is_refused(tmp_path):
    path = tmp_path / "new.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata={"pyro_cge": '{"format": 99}'})
    with pytest.raises(CheckpointError, match="format 99.*upgrade"):
        load_tensors(path)


def test_weights_that_are_no_checkpoint_are_refused(tmp_path, data):
    path = tmp_path / "weights.safetensors"
    save_tensors(path, {"a": torch.zeros(1)}, {"kind": "model"})
    with pytest.raises(CheckpointError, match="holds model, not a training checkpoint"):
        run(data, 1, path, resume=True)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_tensors(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="cannot read"):
        load_tensors(tmp_path)


# Writing


def test_a_path_under_a_file_cannot_be_written(tmp_path, data):
    (tmp_path / "file").write_text("here")
    with pytest.raises(CheckpointError, match="cannot write.*Choose a folder"):
        run(data, 1, tmp_path / "file" / "last.safetensors")
    assert (tmp_path / "file").read_text() == "here"


@pytest.mark.parametrize("call", ["replace", "fsync", "chmod"])
def test_a_failing_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, monkeypatch, call):
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(CheckpointError, match="No space left"):
        write_atomically(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_an_interrupt_while_writing_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_writing_makes_folders_and_a_readable_file(tmp_path):
    path = tmp_path / "a" / "b" / "c.json"
    write_json(path, {"µ": 1})
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.read_text().endswith("}\n")


def test_training_leaves_one_file(data, path):
    run(data, 3, path)
    assert os.listdir(path.parent) == [path.name]


# Killed

# Imports once, then forks a training run for every line it is sent, and reports how the run ended.
TRAINING = """
import os, sys, torch
torch.set_num_threads(1)
import pyro_cge as cge
environments = cge.simulate.random_shifts(2, 3, sd=2)
data = cge.simulate.growing_network(n_latents=2, n_genes=4, environments=environments).sample(10)
def train():
    with cge.isolated(0):
        model, guide = cge.environment_vae(data, 2, hidden=(4,))
    path = sys.argv[1]
    cge.fit(model, guide, data, epochs=10**6, patience=None, checkpoint=path, resume=True, progress=False)
for line in sys.stdin:
    child = os.fork()
    if not child:
        train()
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def kill_and_load(path, n_kills, seed):
    """Train, kill at a random moment after the checkpoint changed, load; again and again, resuming each time."""
    rng, epochs = random.Random(seed), 0
    command = [sys.executable, "-c", TRAINING, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        for _ in range(n_kills):
            before = path.stat().st_mtime_ns if path.exists() else None
            server.stdin.write("go\n")
            server.stdin.flush()
            child, started = int(server.stdout.readline()), time.monotonic()
            try:
                while not path.exists() or path.stat().st_mtime_ns == before:
                    assert time.monotonic() - started < 60
                    time.sleep(0.005)
                time.sleep(rng.uniform(0.02, 0.2))
            finally:
                os.kill(child, signal.SIGKILL)
            assert int(server.stdout.readline()) == signal.SIGKILL, "it was training until it was killed"
            tensors, manifest = load_tensors(path)
            assert len(manifest["history"]) > epochs, "training went on from where it was"
            epochs = len(manifest["history"])
            assert all(v.isfinite().all() for v in tensors.values() if v.is_floating_point())
        server.stdin.close()


def test_a_killed_run_always_leaves_a_whole_checkpoint(tmp_path):
    kill_and_load(tmp_path / "last.safetensors", 3, seed=0)


@pytest.mark.slow
def test_twenty_kills_leave_a_whole_checkpoint_each_time(tmp_path):
    kill_and_load(tmp_path / "last.safetensors", 20, seed=1)

"""Several processes train one model: what one process would do with the same batches and noise."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

import pyro_cge as cge
from pyro_cge.objectives.elbo import traces
from pyro_cge.presets import PRESETS
from pyro_cge.runs import load_fit
from pyro_cge.train.checkpoint import load_tensors
from pyro_cge.train.distributed import ALONE, World, joined

SCRIPT = Path(__file__).with_name("two_processes.py")
_spec = importlib.util.spec_from_file_location("two_processes", SCRIPT)
assert _spec and _spec.loader
two = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(two)

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def presets():
    """Every preset, and environments made of perturbations."""
    cases = {name: lambda data, preset=preset: preset(data, 3, hidden=(8,)) for name, preset in PRESETS.items()}
    return cases | {
        "flow": lambda data: cge.environment_vae(data, 3, hidden=(8,), guide="flow"),
        "sparse": lambda data: cge.sams_vae(data, 3, hidden=(8,), decoder="sparse"),
        "doses": lambda data: cge.sams_vae(data, 3, hidden=(8,), additive=True),
    }


def gradients(build, objective, data, batches):
    """Loss and gradient of a mean over batches, by the number of their profiles."""
    with cge.isolated(0):
        model, guide = build(data)
    n = sum(len(batch) for batch in batches)
    losses = [objective(model, guide, batch)["loss"] * len(batch) / n for batch in batches if len(batch)]
    torch.stack(losses).sum().backward()
    parameters = [*model.named_parameters(), *guide.named_parameters()]
    return float(sum(losses).detach()), {name: p.grad for name, p in parameters}


# Parts of a batch


@pytest.mark.parametrize("rows", [5, 40], ids=["some environments", "all environments"])
@pytest.mark.parametrize("name", presets())
def test_the_parts_of_a_batch_add_up_to_it(name, rows):
    """Loss and every gradient, whatever the model, in 1, 2, 3 and 7 parts of sizes that differ (some empty)."""
    data = two.make_data(43)
    if name == "doses":  # which are not negative
        data = replace(data, env_features=data.env_features.relu())
    batch = data.batch(torch.randperm(43)[:rows])
    with cge.isolated(1):
        whole = gradients(presets()[name], two.FixedNoise(), data, [batch])
    for size in (2, 3, 7):
        parts = [next(World(rank, size).parts(iter([batch]))) for rank in range(size)]
        assert torch.equal(torch.cat([part.index for part in parts]), batch.index)
        loss, found = gradients(presets()[name], two.FixedNoise(), data, parts)
        assert loss == pytest.approx(whole[0], rel=1e-5)
        for key, grad in whole[1].items():
            torch.testing.assert_close(found[key], grad, rtol=1e-4, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


def test_a_part_is_a_batch_of_its_rows(featured):
    batch = featured.batch(torch.arange(3, 200, 11))
    part, same = batch.part(slice(2, 9)), featured.batch(batch.index[2:9])
    assert len(part) == 7 and part.n_total == batch.n_total
    for name in ("x", "index"):
        assert torch.equal(getattr(part, name), getattr(same, name))
    assert torch.equal(part.envs[part.env], same.envs[same.env])
    weight = dict(zip(part.envs.tolist(), part.env_weight.tolist(), strict=True))
    assert {e: w for e, w in weight.items() if w} == pytest.approx(
        dict(zip(same.envs.tolist(), same.env_weight.tolist(), strict=True))
    )
    with cge.isolated(0):
        model, guide = cge.sams_vae(featured, 3)
    assert len(traces(model, guide, part)[0].nodes["z"]["value"]) == 7
    assert part.part(slice(0, 0)).index.numel() == 0


def test_alone_there_is_nothing_to_do(data):
    with joined() as world:
        assert world is ALONE
    batches = list(data.batches(50))
    assert all(a is b for a, b in zip(ALONE.parts(iter(batches)), batches, strict=True))
    assert ALONE.add({"a": 1.0}) == {"a": 1.0} and ALONE.gather(3) == [3] and ALONE.once(lambda: 4) == 4
    assert ALONE.stream("order") == "order" != World(1, 2).stream("order")
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    loss = ALONE.average([parameter], torch.tensor(2.0, requires_grad=True), 5)
    assert float(loss) == 2.0 and not loss.requires_grad and torch.equal(parameter.grad, torch.ones(2))


# Two processes


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What each of two processes returned from each scenario of two_processes.py."""
    folder = tmp_path_factory.mktemp("two")
    subprocess.run([sys.executable, "-W", "error", str(SCRIPT), str(folder)], check=True, env=ENVIRONMENT)
    names = {path.name.split(".")[0] for path in folder.glob("*.pt")}
    found = {n: [torch.load(folder / f"{n}.{rank}.pt", weights_only=False) for rank in range(2)] for n in names}
    return found | {"folder": folder}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_two_processes_do_what_one_does_given_the_same_noise(outcomes):
    weights, history = two.same()
    for found, rows in outcomes["same"]:
        pd.testing.assert_frame_equal(pd.DataFrame(rows), pd.DataFrame(history), rtol=1e-4)
        assert found.keys() == weights.keys()
        for name, value in weights.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_all_hold_the_same_weights_and_go_on_from_those_of_the_first(outcomes):
    (first, history, *_), (second, theirs, *_) = outcomes["spied"]
    assert equal(first, second) and history == theirs


def test_each_takes_its_part_of_the_batches_of_one_process_with_noise_of_its_own(outcomes):
    _, _, rows, noise = two.spied()
    (*_, ours, our_noise), (*_, theirs, their_noise) = outcomes["spied"]
    assert len(rows) == len(theirs) == len(ours) + 3  # the last batch of each of 3 epochs has one profile
    assert not {round(v, 6) for v in our_noise} & {round(v, 6) for v in their_noise}
    assert len(set(our_noise)) == len(ours) and len(set(noise)) == len(rows)
    for epoch in range(3):
        mine, yours, whole = (steps[epoch * k : (epoch + 1) * k] for steps, k in ((ours, 6), (theirs, 7), (rows, 7)))
        assert sorted(torch.cat(mine + yours).tolist()) == list(range(61))
        for k, batch in enumerate(whole):
            assert torch.equal(torch.cat([*mine[k : k + 1], yours[k]]), batch)


def test_gradients_are_means_over_profiles_and_unused_ones_stay_none(outcomes):
    for (both, second, none), loss, idle in outcomes["averaged"]:
        torch.testing.assert_close(both, torch.full((2, 3), (4.0 + 3 * 8.0) / 4))
        torch.testing.assert_close(second, 0.75 * torch.arange(6.0).view(2, 3))
        assert none is None and float(loss) == pytest.approx(6.0) and float(idle) == pytest.approx(3.0)


def test_a_loss_that_overflows_in_one_is_an_error_in_all(outcomes):
    with pytest.raises(cge.errors.NonFiniteLossError) as alone:
        two.overflowing()
    for outcome in outcomes["overflowing"]:
        assert outcome["error"] == "NonFiniteLossError" and outcome["site"] == alone.value.site


def test_nobody_waits_for_a_process_that_failed(outcomes):
    first, second = outcomes["failing"]
    assert second["error"] == "KeyError"
    assert first["error"] == "PyroCgeError" and "another process of this run ended" in first["message"]


def test_processes_that_were_started_differently_are_refused(outcomes):
    for outcome in outcomes["unlike"]:
        assert outcome["error"] == "ConfigError" and "process 1 has lr = 1.01" in outcome["message"]


def test_a_resumed_run_equals_a_straight_one_and_only_the_first_needs_the_file(outcomes):
    for rank, (resumed, straight, exists) in enumerate(outcomes["resumed"]):
        assert equal(resumed[0], straight[0]) and resumed[1] == straight[1]
        assert exists == (rank == 0)


def test_the_first_writes_the_run_folder(outcomes):
    folder = outcomes["folder"] / "run"
    (weights, scores, seen), (theirs, their_scores, unseen) = outcomes["folders"]
    assert equal(weights, theirs) and scores == their_scores and (seen, unseen) == (2, 0)
    assert equal(load_fit(folder).model.state_dict(), weights)
    assert {"config.json", "history.csv", "metrics.json", "weights.safetensors"} <= {p.name for p in folder.iterdir()}
    for outcome in outcomes["again"]:
        assert outcome["error"] == "ConfigError" and "holds a run already" in outcome["message"]


@pytest.mark.slow
def test_the_command_line_under_torchrun(data, tmp_path):
    cge.write_h5ad(data, tmp_path / "d.h5ad")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]

    def fit(*options, epochs=2):
        command = ["-m", "pyro_cge.cli", "fit", "environment", "--data", tmp_path / "d.h5ad", *options]
        settings = ["--set", "latents=3", "--set", "hidden=[8]", "--set", f"epochs={epochs}", "--seed", 1]
        return subprocess.run(
            list(map(str, [*launch, *command, *settings])), env=ENVIRONMENT, capture_output=True, text=True, check=False
        )

    done = fit("--out", tmp_path / "run")
    assert done.returncode == 0 and done.stdout.count("run folder:") == done.stdout.count("prediction pearson") == 1
    assert fit("--out", tmp_path / "run", "--resume", epochs=4).returncode == 0
    assert fit("--out", tmp_path / "straight", epochs=4).returncode == 0
    resumed, straight = (load_tensors(tmp_path / n / "weights.safetensors")[0] for n in ("run", "straight"))
    assert equal(resumed, straight)

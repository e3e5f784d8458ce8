"""Learning-rate schedules: the shapes they promise, and the same run after an interruption."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import pyro_cge as cge
from pyro_cge.errors import CheckpointError, ConfigError
from pyro_cge.train.schedule import rate_factor


def test_shapes():
    cycle = [rate_factor("one_cycle", i, 1000) for i in range(1000)]
    assert cycle[0] == pytest.approx(1 / 25) and max(cycle) == pytest.approx(1) and cycle.index(max(cycle)) == 300
    assert cycle[-1] < 2e-4 and all(b <= a for a, b in pairwise(cycle[300:]))
    assert [rate_factor("cosine", i, 4) for i in (0, 2, 4)] == pytest.approx([1, 0.5, 0])
    assert rate_factor(None, 7, 10) == 1


def test_one_cycle_is_torchs():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=1001, cycle_momentum=False, pct_start=0.3)
    for step in range(1000):
        # Theirs is a step ahead or behind by rounding, and ends at 1/25 of 1/10,000.
        assert rate_factor("one_cycle", step, 1000) == pytest.approx(theirs.get_last_lr()[0], abs=5e-3)
        optimizer.step()
        theirs.step()


def parts(data):
    with cge.isolated(0):
        return cge.environment_vae(data, 3, hidden=(8,))


def train(data, **options):
    model, guide = parts(data)
    options = {"epochs": 4, "batch_size": 32, "lr": 1e-2, "validation": None, "progress": False} | options
    return cge.fit(model, guide, data, **options)


def weights(fit):
    return torch.cat([p.flatten() for m in (fit.model, fit.guide) for p in m.parameters()])


class Stop(Exception):
    pass


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
def test_an_interrupted_run_goes_on_bit_for_bit(data, tmp_path, schedule):
    def stop(epoch):
        if epoch == 2:
            raise Stop

    path = tmp_path / "run.safetensors"
    whole = train(data, schedule=schedule, kl_start=5.0)
    with pytest.raises(Stop):
        train(data, schedule=schedule, kl_start=5.0, checkpoint=path, on_epoch=stop)
    resumed = train(data, schedule=schedule, kl_start=5.0, checkpoint=path, resume=True)
    assert torch.equal(weights(whole), weights(resumed))
    assert whole.settings["schedule"] == f"{schedule} over 4 epochs"
    with pytest.raises(CheckpointError, match="schedule"):  # more epochs would be another schedule
        train(data, schedule=schedule, kl_start=5.0, checkpoint=path, resume=True, epochs=6)


def test_the_schedule_scales_whatever_rate_an_optimizer_has(data):
    seen = []

    class Recorder(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(self.param_groups[0]["lr"])
            return super().step(closure)

    train(data, schedule="cosine", optimizer=lambda parameters: Recorder(parameters, lr=1e-4), epochs=2)
    expected = [1e-4 * rate_factor("cosine", i, len(seen)) for i in range(len(seen))]
    assert seen == pytest.approx(expected)
    seen.clear()
    train(data, optimizer=lambda parameters: Recorder(parameters, lr=1e-4), epochs=1)
    assert set(seen) == {1e-4}


def test_the_kl_weight_goes_from_its_start_to_one(data):
    weights_seen = []

    class Recording:
        def __call__(self, model, guide, batch, *, warmup=1.0):
            weights_seen.append(warmup)
            return cge.Elbo()(model, guide, batch, warmup=warmup)

    train(data, objective=Recording(), kl_start=9.0, kl_warmup=4, epochs=6, batch_size=10_000)
    assert weights_seen == pytest.approx([7, 5, 3, 1, 1, 1])


def test_an_unknown_schedule_is_refused(data):
    with pytest.raises(ConfigError, match="one_cycle"):
        train(data, schedule="exponential")

"""The objective's own handlers and plates stand in for Pyro's, and leave nothing out that handlers could act on."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from torch.distributions import kl_divergence

import pyro_cge as cge
from pyro_cge.errors import ConfigError
from pyro_cge.models.networks import soft_clamp
from pyro_cge.objectives.elbo import traces
from pyro_cge.objectives.handlers import Sites
from pyro_cge.sites import Exactly, RowsPlate, cells_plate, deterministic, envs_plate


def loss_of(model, guide, batch, **kwargs):
    torch.manual_seed(3)
    return cge.Elbo(**kwargs)(model, guide, batch)["loss"].detach()


def pyros(model, guide, batch):
    torch.manual_seed(3)
    return TraceMeanField_ELBO().loss(model, guide, batch) / batch.n_total


class TestSites:
    """Recorded as by ``poutine.trace``, replayed as by ``poutine.replay``."""

    def pair(self, small):
        data, model, guide = small
        batch = data.batch(torch.arange(10))
        torch.manual_seed(0)
        ours = traces(model, guide, batch)
        torch.manual_seed(0)
        first = poutine.trace(guide).get_trace(batch)
        second = poutine.trace(poutine.replay(model, trace=first)).get_trace(batch)
        return ours, (first, second)

    def test_same_sites_values_laws_scales_and_plates_as_pyros_two_traces(self, small):
        for ours, theirs in zip(*self.pair(small), strict=True):
            expected = {name: site for name, site in theirs.nodes.items() if site["type"] == "sample"}
            assert list(ours.nodes) == list(expected)
            for name, site in expected.items():
                mine = ours.nodes[name]
                torch.testing.assert_close(mine["value"], site["value"], rtol=0, atol=0)
                torch.testing.assert_close(torch.as_tensor(mine["scale"]), torch.as_tensor(site["scale"]))
                assert mine["cond_indep_stack"] == site["cond_indep_stack"]
                assert type(mine["fn"]) is type(site["fn"])

    def test_two_sites_of_one_name_are_refused(self):
        def program():
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("z", dist.Normal(0.0, 1.0))

        with pytest.raises(RuntimeError, match="two sample sites are named 'z'"), Sites():
            program()

    def test_a_site_latent_in_the_model_and_observed_in_the_guide_is_refused(self):
        with Sites() as given:
            pyro.sample("z", dist.Normal(0.0, 1.0), obs=torch.tensor(0.5))
        with pytest.raises(RuntimeError, match="'z' is latent in the model but observed"), Sites(given):
            pyro.sample("z", dist.Normal(0.0, 1.0))


class TestHandlersAct:
    """What is in force around the objective, or around the model, changes it as it changes Pyro's own."""

    @pytest.mark.parametrize("factor", [0.5, 3.0])
    def test_scale(self, small, factor):
        data, model, guide = small
        batch = data.batch(torch.arange(10))
        with poutine.scale(scale=factor):
            scaled, theirs = loss_of(model, guide, batch), pyros(model, guide, batch)
        torch.testing.assert_close(scaled, factor * loss_of(model, guide, batch))
        assert float(scaled) == pytest.approx(theirs, rel=1e-5)

    def test_scale_by_a_tensor(self, small):
        data, model, guide = small
        batch = data.batch(torch.arange(10))
        with poutine.scale(scale=torch.tensor(2.5)):
            scaled = loss_of(model, guide, batch)
        torch.testing.assert_close(scaled, 2.5 * loss_of(model, guide, batch))

    def test_masks_of_profiles_part_the_loss(self, small):
        data, model, guide = small
        batch = data.batch(torch.arange(10))
        keep = torch.arange(10) < 6
        losses = []
        for mask in (keep, ~keep, torch.tensor(False)):
            with poutine.mask(mask=mask):
                losses.append(loss_of(model, guide, batch))
        torch.testing.assert_close(losses[0] + losses[1], loss_of(model, guide, batch))
        assert min(losses[:2]) > 0 == losses[2]

    def test_condition(self, small):
        data, model, guide = small
        batch = data.batch(torch.arange(10))
        other = poutine.condition(model, data={"x": batch.x + 1.0})
        ours = loss_of(other, guide, batch)
        assert float(ours) == pytest.approx(pyros(other, guide, batch), rel=1e-5)

    @pytest.mark.parametrize(
        "handler",
        [lambda: cge.HardIntervention(1, value=2.0), lambda: cge.NoiseIntervention(1, loc=2.0, scale=0.5)],
        ids=["hard", "noise"],
    )
    def test_interventions_around_the_model(self, small, handler):
        data, model, guide = small
        batch = data.batch(torch.arange(10))

        def intervened(batch):
            with handler():
                return model(batch)

        ours = float(loss_of(intervened, guide, batch))
        assert ours == pytest.approx(pyros(intervened, guide, batch), rel=1e-5)
        assert ours != pytest.approx(float(loss_of(model, guide, batch)), rel=1e-3)

    def test_interventions_around_the_objective(self, small):
        data, model, guide = small
        batch = data.batch(torch.arange(10))
        with cge.HardIntervention(1, value=2.0):
            ours, theirs = float(loss_of(model, guide, batch)), pyros(model, guide, batch)
        assert ours == pytest.approx(theirs, rel=1e-5)
        assert ours != pytest.approx(float(loss_of(model, guide, batch)), rel=1e-3)


class TestPlates:
    def test_a_law_of_one_row_is_expanded_as_by_pyros_plate(self):
        rows = torch.arange(5)
        for law in (dist.Normal(0.0, 1.0), dist.Normal(torch.zeros(1), 1.0), dist.Normal(torch.zeros(3, 1), 1.0)):
            shapes = []
            for plate in (RowsPlate("a", 20, rows), pyro.plate("a", 20, subsample=rows, dim=-1)):
                with poutine.trace() as tape, plate:
                    pyro.sample("z", law)
                shapes.append((tape.trace.nodes["z"]["value"].shape, tape.trace.nodes["z"]["scale"]))
            assert shapes[0] == shapes[1]

    def test_a_law_of_the_wrong_number_of_rows_is_refused(self):
        with (
            pytest.raises(ValueError, match="Shape mismatch inside plate"),
            poutine.trace(),
            RowsPlate("a", 20, torch.arange(5)),
        ):
            pyro.sample("z", dist.Normal(torch.zeros(4), 1.0))

    def test_rows_are_recorded_and_replayed(self, small):
        data, _, _ = small
        batch, other = data.batch(torch.arange(10)), data.batch(torch.arange(10, 20))
        with poutine.trace() as tape, cells_plate(batch) as rows:
            assert torch.equal(rows, batch.index)
        with poutine.replay(trace=tape.trace), cells_plate(other) as rows:
            assert torch.equal(rows, batch.index)

    def test_environments_weigh_as_their_profiles(self, small):
        data, _, _ = small
        batch = data.batch(torch.arange(10))
        with poutine.trace() as tape, envs_plate(batch):
            pyro.sample("env_shift", dist.Normal(torch.zeros(len(batch.envs), 3), 1.0).to_event(1))
        here = torch.bincount(batch.env, minlength=4)
        torch.testing.assert_close(
            tape.trace.nodes["env_shift"]["scale"], (here / data.env_counts * 3.0).clamp_min(1e-30)
        )


class TestExactly:
    """As ``Delta(value, event_dim=1).mask(False)``."""

    def test_it_is_pyros_law_of_a_deterministic_site(self):
        value = torch.randn(4, 3)
        ours, theirs = Exactly(value), dist.Delta(value, event_dim=1).mask(False)
        assert (ours.batch_shape, ours.event_shape, ours.has_rsample) == (
            theirs.batch_shape,
            theirs.event_shape,
            theirs.has_rsample,
        )
        for shape in ((4,), (5, 4)):
            a, b = ours.expand(shape), theirs.expand(shape)
            assert a.batch_shape == b.batch_shape
            for draws in ((), (2,)):
                assert torch.equal(a.rsample(torch.Size(draws)), b.rsample(torch.Size(draws)))
            assert torch.equal(a.log_prob(a.rsample()), torch.zeros(shape))
        assert torch.equal(ours.mean, theirs.base_dist.mean)
        assert torch.equal(ours.variance, theirs.base_dist.variance)

    def test_the_site_is_marked_and_observed(self):
        with poutine.trace() as tape:
            deterministic("c_1", torch.ones(2, 3), layer="notes")
        site = tape.trace.nodes["c_1"]
        assert site["is_observed"]
        assert site["infer"] == {"_deterministic": True, "layer": "notes"}
        assert float(tape.trace.log_prob_sum()) == 0


def test_kl_of_independent_normals_is_torchs(small):
    data, model, guide = small
    batch = data.batch()
    guide_sites, model_sites = traces(model, guide, batch)
    expected = kl_divergence(guide_sites.nodes["z"]["fn"], model_sites.nodes["z"]["fn"]).mean()
    torch.testing.assert_close(cge.Elbo()(model, guide, batch)["kl"], expected)


@pytest.mark.parametrize("bounds", [(-3.0, 3.0), (-7.0, 3.0), (-6.0, 4.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_soft_clamp_is_its_formula(bounds, dtype):
    raw = torch.linspace(-30, 30, 101, dtype=dtype)
    middle, half = sum(bounds) / 2, (bounds[1] - bounds[0]) / 2
    for values in (raw, raw[7]):  # a single number keeps its precision too
        clamped = soft_clamp(values, *bounds)
        torch.testing.assert_close(clamped, middle + half * torch.tanh((values - middle) / half))
        assert clamped.dtype == dtype


@pytest.mark.parametrize("warmup", [1.0, 0.3])
def test_weights_may_be_tensors(small, warmup):
    data, model, guide = small
    batch = data.batch()
    torch.manual_seed(3)
    tensor = cge.Elbo(beta=torch.tensor(2.0))(model, guide, batch, warmup=torch.tensor(warmup))["loss"]
    torch.manual_seed(3)
    torch.testing.assert_close(tensor, cge.Elbo(beta=2.0)(model, guide, batch, warmup=warmup)["loss"])


@pytest.mark.parametrize("options", [{"beta": -1.0}, {"beta": float("nan")}, {"free_bits": -3.0}])
def test_weights_that_make_no_sense_are_refused(options):
    with pytest.raises(ConfigError, match=rf"{next(iter(options))} must be at least 0"):
        cge.Elbo(**options)

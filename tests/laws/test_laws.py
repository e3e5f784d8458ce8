"""Laws that hold for every part: one suite, parametrised over ``parts.CASES`` with and without features."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO

import pyro_cge as cge
from pyro_cge.sites import describe, layer_site
from pyro_cge.train.checkpoint import load_into, load_tensors, save_tensors

_spec = importlib.util.spec_from_file_location("law_parts", Path(__file__).with_name("parts.py"))
assert _spec and _spec.loader
parts = importlib.util.module_from_spec(_spec)
sys.modules["law_parts"] = parts
_spec.loader.exec_module(parts)

PLATES = ("cells", "envs", "genes", "latents", "perturbations")
WIDTH = {"d": parts.D, "g": parts.G}


@pytest.fixture(params=[True, False], ids=["features", "names only"])
def data(request):
    return parts.make_data(features=request.param)


@pytest.fixture(params=list(parts.CASES))
def case(request, data):
    torch.manual_seed(1)
    return parts.CASES[request.param](data)


@pytest.fixture
def data_for(case, data):
    return parts.fed_to(case[0], data)


def latents(trace):
    return {name: site["value"].detach() for name, site in sample_sites(trace).items() if kind_of(site) == "latent"}


def rows(values, batch):
    """Latent values of the full data, cut to a batch."""
    index = {"cells": batch.index, "envs": batch.envs}
    return {
        name: value[index[plate]] if (plate := describe(name).plate) in index else value
        for name, value in values.items()
    }


def sample_sites(trace):
    return {name: site for name, site in trace.nodes.items() if site["type"] == "sample" and name not in PLATES}


def kind_of(site):
    if site["infer"].get("_deterministic"):
        return "deterministic"
    return "observed" if site["is_observed"] else "latent"


def test_trace_agrees_with_the_site_table(case, data_for):
    data = data_for
    model, guide = case
    batch = data.batch(torch.arange(10))
    for trace in (poutine.trace(model).get_trace(batch), poutine.trace(guide).get_trace(batch)):
        for name, site in sample_sites(trace).items():
            row = describe(name)
            assert kind_of(site) == row.kind or name.startswith("c_"), name  # latent with noise of its own
            assert [frame.name for frame in site["cond_indep_stack"]] == [row.plate], name
            assert site["fn"].event_dim == 1, name
            if row.event in WIDTH:
                assert site["fn"].event_shape == (WIDTH[row.event],), name


def test_every_layer_of_the_scm_is_a_site(case, data_for):
    data = data_for
    model, _ = case
    sites = sample_sites(poutine.trace(model).get_trace(data.batch()))
    layers = [name for name in sites if name.startswith("c_")]
    assert layers == [layer_site(i + 1) for i in range(len(model.scm.layers))]


def test_gradients_reach_every_parameter(case, data_for):
    data = data_for
    model, guide = case
    for _ in range(4):  # a draw may close every edge or gate
        cge.Elbo()(model, guide, data.batch())["loss"].backward()
    for module in (model, guide):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name


def test_elbo_equals_pyros_mean_field_elbo(case, data_for):
    data = data_for
    model, guide = case
    if isinstance(guide, cge.FullCovarianceGuide | cge.StructuredGuide):
        pytest.skip("Pyro has no analytic KL for these; ours is tested against draws in test_guides.py")
    batch = data.batch(torch.arange(12))
    torch.manual_seed(5)
    ours = cge.Elbo(sum_targets=False)(model, guide, batch)["loss"].item()
    torch.manual_seed(5)
    theirs = TraceMeanField_ELBO().loss(model, guide, batch) / data.n
    assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("size", [6, 3])
def test_minibatch_log_density_is_unbiased_for_the_full_data(case, data_for, size):
    data = data_for
    model, guide = case
    values = latents(poutine.trace(guide).get_trace(data.batch()))

    def density(module, batch):
        conditioned = poutine.condition(module, data=rows(values, batch))
        return poutine.trace(conditioned).get_trace(batch).log_prob_sum()

    for module in (model, guide):
        full = density(module, data.batch())
        mean = torch.stack([density(module, batch) for batch in data.batches(size)]).mean()
        torch.testing.assert_close(mean, full, rtol=2e-5, atol=1e-3)


@pytest.mark.parametrize("size", [8, 3])
def test_minibatch_kl_is_unbiased_for_the_full_data(case, data_for, size):
    data = data_for
    model, guide = case
    if guide.environment is not None or isinstance(guide, cge.FlowGuide) or guide.residuals is not None:
        pytest.skip("this KL is an estimate from a draw; the law of log densities covers it")
    kl = [cge.Elbo()(model, guide, batch)["kl"].item() for batch in data.batches(size)]
    assert sum(kl) / len(kl) == pytest.approx(cge.Elbo()(model, guide, data.batch())["kl"].item(), rel=1e-4)


def test_predictive_in_parallel_equals_sequential(case, data_for):
    data = data_for
    model, guide = case
    batch = data.batch(torch.arange(10)).unobserved()
    each = [rows(latents(poutine.trace(guide).get_trace(data.batch())), batch) for _ in range(6)]
    draws = {name: torch.stack([one[name] for one in each]) for name in each[0]}
    both = [Predictive(model, posterior_samples=draws, parallel=parallel)(batch) for parallel in (True, False)]
    assert both[0].keys() == both[1].keys() >= {"x", "c_1", "env_loc", "env_log_scale"}
    for name, value in both[0].items():
        assert value.shape == both[1][name].shape, name
        if name != "x":
            torch.testing.assert_close(value, both[1][name], msg=name)


def test_predictive_through_the_guide(case, data_for):
    data = data_for
    model, guide = case
    drawn = Predictive(model, guide=guide, num_samples=4, parallel=True)(data.batch())
    assert drawn["z"].shape == (4, data.n, parts.D)


def outputs(model, guide, data):
    torch.manual_seed(8)
    return [cge.Elbo()(model, guide, data.batch())["kl"], model.mean(torch.ones(data.n, parts.D), data.batch())]


def test_save_and_load_are_bitwise(case, data_for, tmp_path):
    data = data_for
    model, guide = case
    modules = {"model": model, "guide": guide}
    state = {f"{p}.{k}": v for p, module in modules.items() for k, v in module.state_dict().items()}
    save_tensors(tmp_path / "w.safetensors", state, {"kind": "test"})
    before = outputs(model, guide, data)
    with torch.no_grad():
        for module in modules.values():
            for parameter in module.parameters():
                parameter.add_(1.0)
    tensors, _ = load_tensors(tmp_path / "w.safetensors")
    load_into(modules, tensors, tmp_path / "w.safetensors")
    after = outputs(model, guide, data)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_plain_svi_trains(case, data_for):
    data = data_for
    model, guide = case
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 2e-2}), Trace_ELBO())
    before = [p.detach().clone() for m in case for p in m.parameters()]
    losses = [svi.step(data.batch()) for _ in range(20)]
    assert sum(losses[-5:]) < sum(losses[:5])
    after = [p for m in case for p in m.parameters()]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_render_model_draws(case, data_for):
    data = data_for
    model, _ = case
    source = pyro.render_model(model, model_args=(data.batch(),), render_distributions=True).source
    assert all(site in source for site in ("env_loc", "z", "c_1", "x", "cluster_cells", "cluster_envs"))


def test_leading_sample_dimensions_pass_through(case, data_for):
    data = data_for
    model, _ = case
    z = torch.randn(2, 5, data.n, parts.D)
    batch = data.batch()
    many = model.mean(z, batch)
    assert many.shape == (2, 5, data.n, parts.G)
    torch.testing.assert_close(many[1, 3], model.mean(z[1, 3], batch))


def test_control_environments_keep_the_reference_law(case, data_for):
    data = data_for
    model, guide = case
    if isinstance(model.prior, cge.TablePrior):
        pytest.skip("a table says what it says")
    shift = guide.shift(data.batch())
    assert shift.loc[0].abs().max() == 0
    assert shift.log_scale[0].abs().max() == 0


def test_expression_is_independent_of_the_environment_given_causes(case, data_for):
    data = data_for
    model, _ = case
    if isinstance(model, cge.ConditionalCellModel):
        pytest.skip("the Conditional VAE's decoder sees the environment: that is its definition")
    z = torch.randn(data.n, parts.D)
    swapped = data.cells((data.env + 1) % data.n_envs)
    torch.testing.assert_close(model.mean(z, data.batch()), model.mean(z, swapped))


def test_fit_trains_it(case, data_for):
    data = data_for
    model, guide = case
    fitted = cge.fit(model, guide, data, epochs=6, batch_size=8, lr=2e-2, kl_warmup=2, validation=None, seed=0)
    assert fitted.history["train_loss"].iloc[-1] < fitted.history["train_loss"].iloc[0]
    assert fitted.posterior(data).predict().shape == (data.n_envs, data.g)


@pytest.mark.parametrize("seed", range(60))
def test_any_prior_scm_decoder_and_guide_go_together(seed, data):
    name, make = parts.combination(seed)
    torch.manual_seed(seed)
    model, guide = make(data)
    data = parts.fed_to(model, data)
    for batch in (data.batch(), data.batch(torch.arange(3))):
        terms = cge.Elbo()(model, guide, batch)
        assert all(value.isfinite() for value in terms.values()), name
    terms["loss"].backward()
    gradients = [p.grad for module in (model, guide) for p in module.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in gradients), name
    posterior = cge.fit(model, guide, data, epochs=1, batch_size=8, validation=None).posterior(data)
    assert posterior.reconstruct().shape == data.x.shape
    assert posterior.shift().loc.shape == (data.n_envs, parts.D)

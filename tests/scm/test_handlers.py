"""Interventions: what each changes, what each leaves alone, and how they compose."""

from __future__ import annotations

from functools import partial

import networkx as nx
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive

import pyro_cge as cge
from pyro_cge import HardIntervention, LatentSCM, MechanismIntervention, NoiseIntervention, NoiseShift
from pyro_cge.errors import ConfigError
from pyro_cge.scm.mechanisms import BinaryMechanism, LinearMechanism, NeuralMechanism, PolynomialMechanism

D, G, N, E = 5, 8, 12, 3
# Layers [[2], [0, 3], [1], [4]]: not in node order, one layer of two.
GRAPH = nx.DiGraph([(2, 0), (2, 3), (0, 1), (3, 1), (1, 4), (2, 4)])
MECHANISMS = {
    "linear": partial(LinearMechanism, weights="uniform"),
    "neural": partial(NeuralMechanism, weights="normal"),
    "polynomial": partial(PolynomialMechanism, weights="uniform"),
    "binary": BinaryMechanism,
}


@pytest.fixture(params=MECHANISMS)
def scm(request):
    return LatentSCM(GRAPH, partial(MECHANISMS[request.param], generator=torch.Generator().manual_seed(1)))


@pytest.fixture
def cell_model():
    data = cge.EnvironmentData(
        x=torch.randn(N, G),
        env=torch.arange(N) % E,
        gene_names=[f"gene {k}" for k in range(G)],
        env_names=[f"env {e}" for e in range(E)],
    )
    law = NoiseShift(torch.randn(E, D), 0.3 * torch.randn(E, D))
    scm = LatentSCM(GRAPH, MECHANISMS["linear"])
    return cge.CellModel(cge.TablePrior(data, law), scm, cge.LinearDecoder(D, G)), data, law


def assign(scm: LatentSCM, z: torch.Tensor, hard=None, gain=None, function=None) -> torch.Tensor:
    """Node by node along the graph, each node from the mechanism's own column, interventions written out."""
    hard, gain, function = hard or {}, gain or {}, function or {}
    c = torch.zeros_like(z)
    done: list[int] = []
    for layer, nodes in enumerate(scm.layers):
        for k, node in enumerate(nodes):
            if node in hard:
                c[..., node] = hard[node]
            elif node in function:
                c[..., node] = function[node](c[..., done], z[..., node])
            elif layer == 0:
                c[..., node] = z[..., node]
            else:
                mechanism = scm.mechanisms[layer - 1]
                effect = mechanism.effect(c[..., done])[..., k] * gain.get(node, 1.0)
                c[..., node] = mechanism.combine(effect, z[..., node])
        done += nodes
    return c


def descendants(nodes):
    return set().union(*(nx.descendants(GRAPH, j) | {j} for j in nodes))


def sample_z(model, data, **nodes):
    trace = poutine.trace(model).get_trace(data.batch().unobserved())
    return trace, trace.nodes["z"]["value"]


# Noise interventions


@pytest.mark.parametrize("latents", [0, 2, [1, 3]])
@pytest.mark.parametrize("change", [{"loc": 4.0}, {"scale": 0.2}, {"loc": -3.0, "scale": 2.0}])
def test_noise_intervention_changes_only_the_law_of_its_latents(cell_model, latents, change):
    model, data, law = cell_model
    touched = [latents] if isinstance(latents, int) else latents
    with NoiseIntervention(latents, **change):
        trace, _ = sample_z(model, data)
    new, old = trace.nodes["z"]["fn"].base_dist, law.select(data.env)
    others = [j for j in range(D) if j not in touched]
    assert (new.loc[:, touched] == change.get("loc", old.loc[:, touched])).all()
    torch.testing.assert_close(
        new.scale[:, touched],
        torch.full((N, len(touched)), change["scale"]) if "scale" in change else old.scale[:, touched],
    )
    assert torch.equal(new.loc[:, others], old.loc[:, others])
    assert torch.equal(new.scale[:, others], old.scale[:, others])


@pytest.mark.parametrize("latent", range(D))
def test_noise_intervention_moves_only_descendants(cell_model, latent):
    model, data, _ = cell_model
    torch.manual_seed(3)
    before, z = sample_z(model, data)
    torch.manual_seed(3)
    with NoiseIntervention(latent, loc=50.0, scale=0.5):
        after, z_new = sample_z(model, data)
    moved = (z_new != z).any(0)
    assert moved.nonzero().flatten().tolist() == [latent]
    c, c_new = model.scm.causes(before), model.scm.causes(after)
    assert set((c != c_new).any(0).nonzero().flatten().tolist()) <= descendants([latent])
    torch.testing.assert_close(c_new, assign(model.scm, z_new))


def test_noise_intervention_sets_mean_and_sd_of_the_draws(cell_model):
    model, data, _ = cell_model
    batch = data.cells(torch.zeros(4000, dtype=torch.long))
    with NoiseIntervention(3, loc=7.0, scale=0.5):
        z = poutine.trace(model).get_trace(batch).nodes["z"]["value"][:, 3]
    # Five standard errors: failure rate below 1e-6 each.
    assert abs(z.mean() - 7) < 5 * 0.5 / 4000**0.5
    assert abs(z.std() - 0.5) < 5 * 0.5 / 8000**0.5


def test_noise_intervention_leaves_the_guide_alone(cell_model):
    model, data, _ = cell_model
    guide = cge.AmortizedGuide(model)
    torch.manual_seed(1)
    plain = poutine.trace(guide).get_trace(data.batch())
    torch.manual_seed(1)
    with NoiseIntervention(0, loc=9.0, scale=3.0), HardIntervention(1, value=2.0), MechanismIntervention(1, gain=0.0):
        under = poutine.trace(guide).get_trace(data.batch())
    a, b = plain.nodes["z"], under.nodes["z"]
    assert torch.equal(a["value"], b["value"])
    assert torch.equal(a["fn"].base_dist.loc, b["fn"].base_dist.loc)
    assert torch.equal(a["fn"].base_dist.scale, b["fn"].base_dist.scale)


@pytest.mark.parametrize("how", ["replay", "condition"])
def test_noise_held_by_an_inner_handler_keeps_its_quantile(cell_model, how):
    model, data, law = cell_model
    batch = data.batch().unobserved()
    z = torch.randn(N, D)
    if how == "condition":
        held = poutine.condition(model, {"z": z})
    else:
        trace = poutine.Trace()
        trace.add_node("z", name="z", type="sample", value=z, is_observed=False, infer={})
        held = poutine.replay(model, trace=trace)
    with NoiseIntervention([0, 4], loc=torch.tensor([2.0, -3.0]), scale=0.7):
        after = poutine.trace(held).get_trace(batch)
    old, new = law.select(data.env), after.nodes["z"]["fn"].base_dist
    z_new = after.nodes["z"]["value"]
    quantile_before = dist.Normal(old.loc, old.scale).cdf(z)
    torch.testing.assert_close(dist.Normal(new.loc, new.scale).cdf(z_new), quantile_before)
    torch.testing.assert_close(z_new[:, [1, 2, 3]], z[:, [1, 2, 3]])
    torch.testing.assert_close(model.scm.causes(after), assign(model.scm, z_new))


def test_noise_held_by_an_outer_handler_stays(cell_model):
    model, data, _ = cell_model
    z = torch.randn(N, D)

    def intervened(batch):
        with NoiseIntervention(0, loc=5.0):
            return model(batch)

    trace = poutine.trace(poutine.condition(intervened, {"z": z})).get_trace(data.batch().unobserved())
    assert torch.equal(trace.nodes["z"]["value"], z)


def test_noise_intervention_takes_one_value_a_profile(cell_model):
    model, data, _law = cell_model
    loc = torch.linspace(-3, 3, N)
    with NoiseIntervention(1, loc=loc):
        trace, _ = sample_z(model, data)
    assert torch.equal(trace.nodes["z"]["fn"].base_dist.loc[:, 1], loc)
    both = torch.randn(N, 2)
    with NoiseIntervention([4, 1], loc=both):
        trace, _ = sample_z(model, data)
    assert torch.equal(trace.nodes["z"]["fn"].base_dist.loc[:, [4, 1]], both)


def test_noise_intervention_without_latent_reads_nan_as_untouched(cell_model):
    model, data, law = cell_model
    loc = torch.full((N, D), torch.nan)
    loc[:6, 2] = 1.5
    scale = torch.tensor([torch.nan, 0.3, torch.nan, torch.nan, torch.nan])
    with NoiseIntervention(loc=loc, scale=scale):
        trace, _ = sample_z(model, data)
    new, old = trace.nodes["z"]["fn"].base_dist, law.select(data.env)
    expected_loc, expected_scale = old.loc.clone(), old.scale.clone()
    expected_loc[:6, 2], expected_scale[:, 1] = 1.5, 0.3
    assert torch.equal(new.loc, expected_loc) and torch.equal(new.scale, expected_scale)


# Hard interventions


@pytest.mark.parametrize("latents", [[0], [2], [1], [4], [0, 3], [3, 0], [2, 1, 4]])
def test_hard_intervention_sets_the_value_and_recomputes_descendants(scm, latents):
    z = torch.randn(9, D)
    before = scm(z)
    with HardIntervention(latents, value=1.7):
        c = scm(z)
    assert (c[:, latents] == 1.7).all()
    others = [j for j in range(D) if j not in descendants(latents)]
    assert torch.equal(c[:, others], before[:, others])
    torch.testing.assert_close(c, assign(scm, z, hard=dict.fromkeys(latents, 1.7)))


def test_hard_intervention_cuts_the_noise_and_the_parents(scm):
    with HardIntervention(1, value=-2.0):
        first, second = scm(torch.randn(4, D)), scm(torch.randn(4, D))
    assert (first[:, 1] == -2).all() and (second[:, 1] == -2).all()


def test_hard_intervention_takes_one_value_a_profile(scm):
    z, value = torch.randn(N, D), torch.randn(N)
    with HardIntervention(3, value=value):
        torch.testing.assert_close(scm(z), assign(scm, z, hard={3: value}))
    both = torch.randn(N, 2)
    with HardIntervention([3, 0], value=both):
        torch.testing.assert_close(scm(z), assign(scm, z, hard={3: both[:, 0], 0: both[:, 1]}))
    with HardIntervention([1, 2], value=torch.tensor([5.0, 6.0])):
        torch.testing.assert_close(scm(z), assign(scm, z, hard={1: 5.0, 2: 6.0}))


def test_hard_intervention_without_latent_reads_nan_as_untouched(scm):
    z = torch.randn(2, D)
    value = torch.full((2, D), torch.nan)
    value[0, 2], value[1, 3] = 4.0, -1.0
    with HardIntervention(value=value):
        c = scm(z)
    torch.testing.assert_close(c[:1], assign(scm, z[:1], hard={2: 4.0}))
    torch.testing.assert_close(c[1:], assign(scm, z[1:], hard={3: -1.0}))


def test_all_nan_changes_nothing(scm):
    z = torch.randn(6, D)
    nothing = torch.full((6, D), torch.nan)
    with HardIntervention(value=nothing), MechanismIntervention(gain=nothing):
        assert torch.equal(scm(z), scm(z))
    before = scm(z)
    with HardIntervention(value=nothing), MechanismIntervention(gain=nothing):
        assert torch.equal(scm(z), before)


# Mechanism interventions


@pytest.mark.parametrize("latents", [[0], [1], [4], [0, 3], [4, 0, 3]])
@pytest.mark.parametrize("gain", [0.0, -1.0, 2.5])
def test_gain_multiplies_what_the_parents_contribute(scm, latents, gain):
    z = torch.randn(9, D)
    with MechanismIntervention(latents, gain=gain):
        torch.testing.assert_close(scm(z), assign(scm, z, gain=dict.fromkeys(latents, gain)))


def test_gain_zero_cuts_the_parents_and_keeps_the_noise(cell_model):
    scm = cell_model[0].scm
    z = torch.randn(9, D)
    with MechanismIntervention(1, gain=0.0):
        c = scm(z)
    torch.testing.assert_close(c[:, 1], z[:, 1])


def test_gain_one_is_the_identity(scm):
    z = torch.randn(9, D)
    with MechanismIntervention(list(range(D)), gain=1.0):
        c = scm(z)
    torch.testing.assert_close(c, scm(z))


def test_gain_on_a_root_does_nothing(scm):
    z = torch.randn(9, D)
    before = scm(z)
    with MechanismIntervention(2, gain=0.0):
        assert torch.equal(scm(z), before)


def test_gain_takes_one_value_a_profile_and_nan(scm):
    z, gain = torch.randn(N, D), torch.randn(N)
    with MechanismIntervention(1, gain=gain):
        torch.testing.assert_close(scm(z), assign(scm, z, gain={1: gain}))
    table = torch.full((2, D), torch.nan)
    table[0, 3] = 0.0
    with MechanismIntervention(gain=table):
        c = scm(z[:2])
    torch.testing.assert_close(c[:1], assign(scm, z[:1], gain={3: 0.0}))
    torch.testing.assert_close(c[1:], scm(z[1:2]))


@pytest.mark.parametrize("latent", range(D))
def test_function_replaces_the_structural_equation(scm, latent):
    def equation(parents, noise):
        return 0.5 * parents.sum(-1) - noise

    z = torch.randn(9, D)
    with MechanismIntervention(latent, function=equation):
        torch.testing.assert_close(scm(z), assign(scm, z, function={latent: equation}))


def test_function_sees_earlier_latents_in_topological_order(scm):
    z, seen = torch.randn(9, D), {}
    c = scm(z)

    def equation(parents, noise):
        seen["parents"], seen["noise"] = parents, noise
        return noise

    with MechanismIntervention(1, function=equation):
        scm(z)
    assert torch.equal(seen["parents"], c[:, [2, 0, 3]])
    assert torch.equal(seen["noise"], z[:, 1])


def test_gradients_stay_finite_under_interventions():
    scm = LatentSCM(GRAPH, MECHANISMS["neural"])
    z = torch.randn(9, D, requires_grad=True)
    value = torch.full((9, D), torch.nan)
    value[:, 3] = 1.0
    with HardIntervention(value=value), MechanismIntervention(0, gain=0.5), MechanismIntervention(gain=value):
        scm(z).square().sum().backward()
    assert z.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in scm.parameters())


# Composition


def test_handlers_on_different_latents_of_one_layer_compose_in_either_order(scm):
    z = torch.randn(9, D)
    expected = assign(scm, z, hard={0: 3.0}, gain={3: 0.0})
    with HardIntervention(0, value=3.0), MechanismIntervention(3, gain=0.0):
        torch.testing.assert_close(scm(z), expected)
    with MechanismIntervention(3, gain=0.0), HardIntervention(0, value=3.0):
        torch.testing.assert_close(scm(z), expected)


def test_two_gains_in_one_layer_both_hold(scm):
    z = torch.randn(9, D)
    with MechanismIntervention(0, gain=0.0), MechanismIntervention(3, gain=2.0):
        torch.testing.assert_close(scm(z), assign(scm, z, gain={0: 0.0, 3: 2.0}))


def test_handlers_in_different_layers_compose(scm):
    z = torch.randn(9, D)
    expected = assign(scm, z, hard={2: 1.0, 4: -1.0}, gain={1: 0.5})
    with HardIntervention(2, value=1.0), HardIntervention(4, value=-1.0), MechanismIntervention(1, gain=0.5):
        torch.testing.assert_close(scm(z), expected)


def test_the_outer_hard_intervention_has_the_last_word(scm):
    with HardIntervention(1, value=1.0), HardIntervention(1, value=2.0):
        assert (scm(torch.randn(4, D))[:, 1] == 1).all()


def test_noise_and_hard_interventions_compose(cell_model):
    model, data, _ = cell_model
    with NoiseIntervention(2, loc=8.0, scale=0.1), HardIntervention(1, value=0.5):
        trace, z = sample_z(model, data)
    assert (z[:, 2] - 8).abs().max() < 1
    torch.testing.assert_close(model.scm.causes(trace), assign(model.scm, z, hard={1: 0.5}))


def test_a_handler_ends_with_its_block(scm):
    z = torch.randn(9, D)
    before = scm(z)
    with pytest.raises(RuntimeError, match="inside"), HardIntervention(1, value=9.0):
        raise RuntimeError("inside")
    assert torch.equal(scm(z), before)


def test_a_handler_wraps_a_function_too(scm):
    z = torch.randn(9, D)
    torch.testing.assert_close(HardIntervention(1, value=2.0)(scm)(z), assign(scm, z, hard={1: 2.0}))


# Leading dimensions


@pytest.mark.parametrize("value", [1.5, torch.linspace(-1, 1, N)], ids=["number", "per profile"])
def test_leading_sample_dimensions(scm, value):
    z = torch.randn(2, 3, N, D)
    with HardIntervention(3, value=value), MechanismIntervention(1, gain=0.3):
        c = scm(z)
    torch.testing.assert_close(c, assign(scm, z, hard={3: value}, gain={1: 0.3}))


def test_samples_of_the_value_give_samples_of_the_causes(scm):
    z, value = torch.randn(N, D), torch.randn(4, N)
    with HardIntervention(0, value=value):
        c = scm(z)
    assert c.shape == (4, N, D)
    for s in range(4):
        torch.testing.assert_close(c[s], assign(scm, z, hard={0: value[s]}))


def test_handlers_work_under_predictive(cell_model):
    model, data, _ = cell_model
    batch = data.batch().unobserved()
    for parallel in (False, True):
        with NoiseIntervention(2, loc=6.0, scale=0.01), HardIntervention(1, value=0.5):
            draws = Predictive(model, num_samples=7, parallel=parallel, return_sites=["z", "c_3", "x"])(batch)
        assert (draws["z"][..., 2] - 6).abs().max() < 0.2
        assert (draws["c_3"] == 0.5).all()
        assert draws["x"].reshape(7, N, G).isfinite().all()


# On the truth and on a fitted model alike


def models():
    environments = cge.simulate.one_per_latent(4)
    truth = cge.simulate.simulator("chain", n_latents=4, n_genes=10, environments=environments)
    data = truth.sample(5)
    model, guide = cge.environment_vae(data, 4, hidden=(8,))
    cge.fit(model, guide, data, epochs=1, validation=None, progress=False)
    return data, {"truth": truth, "fitted": model}


@pytest.mark.parametrize("name", ["truth", "fitted"])
def test_the_same_handler_works_on_truth_and_fitted_model(name):
    data, both = models()
    model = both[name]
    batch = data.cells(torch.arange(data.n_envs))
    with torch.no_grad():
        last = model.scm.layers[-1][-1]
        torch.manual_seed(0)
        plain = model.predict(batch, 20)
        with HardIntervention(list(range(4)), value=torch.tensor([1.0, 2.0, 3.0, 4.0])):
            hard = model.predict(batch, 3)
        c = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).expand(data.n_envs, 4)
        torch.testing.assert_close(hard, model.likelihood(c, batch).mean)
        torch.manual_seed(0)
        with NoiseIntervention(last, loc=0.0, scale=1e-6):
            quiet = model.predict(batch, 20)
        assert plain.shape == quiet.shape == (data.n_envs, 10)
        assert not torch.allclose(plain, quiet)
        torch.manual_seed(0)
        with MechanismIntervention(3, gain=1.0):
            torch.testing.assert_close(model.predict(batch, 20), plain)


def test_an_intervention_reaches_a_latent_the_environment_also_acts_on():
    environments = cge.simulate.one_per_latent(4, kind="hard", value=2.0)
    truth = cge.simulate.simulator("chain", n_latents=4, n_genes=10, environments=environments)
    trace = HardIntervention(3, value=-7.0)(poutine.trace(truth).get_trace)
    c = truth.scm.causes(trace(data_cells(truth)))
    assert (c[:, 3] == -7).all()
    assert c[2, 1] == 2, "environment 2 sets latent 1"
    with MechanismIntervention([1, 2], gain=torch.tensor([0.0, 0.0])):
        traced = poutine.trace(truth).get_trace(data_cells(truth))
    c, z = truth.scm.causes(traced), traced.nodes["z"]["value"]
    assert c[4, 3] == 2, "a gain elsewhere does not undo the environment"
    torch.testing.assert_close(c[:, [1, 2]], z[:, [1, 2]])


def data_cells(truth):
    return truth.prior.environments.cells(torch.arange(len(truth.environments)))


# Errors


@pytest.mark.parametrize("latent", [-1, D, [0, D]])
@pytest.mark.parametrize(
    "make",
    [
        lambda j: NoiseIntervention(j, loc=1.0),
        lambda j: HardIntervention(j, value=1.0),
        lambda j: MechanismIntervention(j, gain=1.0),
    ],
)
def test_a_latent_out_of_range_is_refused(cell_model, latent, make):
    model, data, _ = cell_model
    with pytest.raises(ConfigError, match=rf"has latents 0 … {D - 1}"), make(latent):
        model(data.batch())


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="loc, scale or both"):
        NoiseIntervention(0)
    for scale in (-1.0, 0.0, torch.tensor([1.0, -1.0])):
        with pytest.raises(ConfigError, match="positive scale"):
            NoiseIntervention(0, scale=scale)
    with pytest.raises(ConfigError, match="exactly one"):
        MechanismIntervention(0)
    with pytest.raises(ConfigError, match="exactly one"):
        MechanismIntervention(0, gain=1.0, function=lambda p, n: n)
    for latent in (None, [0, 1]):
        with pytest.raises(ConfigError, match="single latent"):
            MechanismIntervention(latent, function=lambda p, n: n)


@pytest.mark.parametrize("value", [2.0, torch.zeros(N, D + 1), torch.zeros(N, D - 1)])
def test_without_latent_a_value_a_latent_is_needed(cell_model, value):
    model, data, _ = cell_model
    for handler in (NoiseIntervention(loc=value), HardIntervention(value=value), MechanismIntervention(gain=value)):
        with pytest.raises(ConfigError, match="one value a latent"), handler:
            model(data.batch())


def test_values_that_do_not_fit_the_latents_are_refused(scm):
    with pytest.raises(ConfigError, match="one value a latent in the last dimension"):
        with HardIntervention([0, 3], value=torch.zeros(N, 3)):
            scm(torch.randn(N, D))


def test_numpy_integers_name_latents(scm):
    z = torch.randn(N, D)
    with HardIntervention(np.int64(1), value=2.0):
        torch.testing.assert_close(scm(z), assign(scm, z, hard={1: 2.0}))


def test_nothing_enters_the_param_store(cell_model):
    model, data, _ = cell_model
    with NoiseIntervention(0, loc=1.0):
        model.predict(data.batch(), 2)
    assert not list(pyro.get_param_store().keys())

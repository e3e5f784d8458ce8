"""The simulator: samples agree with their own truth, counterfactuals with the mechanisms."""

from __future__ import annotations

from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch

import pyro_cge as cge
from pyro_cge.errors import ConfigError
from pyro_cge.simulate import independent, observation_mask, one_per_latent, random_shifts, simulator
from pyro_cge.simulate import truth as truth_module
from pyro_cge.simulate.truth import GRAPHS, MECHANISMS

D, G = 4, 12


def make(mechanism="noisy linear", graph="growing network", environments=None, **options):
    environments = random_shifts(D, 4, variance=5, cover=True) if environments is None else environments
    return simulator(graph, n_latents=D, n_genes=G, mechanism=mechanism, environments=environments, **options)


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("decoder", ["linear", "neural"])
def test_sample_has_the_shapes_asked_for(mechanism, decoder):
    truth = make(mechanism, decoder=decoder)
    data = truth.sample([3, 0, 2, 1, 4])
    assert data.x.shape == (10, G) and data.truth.z.shape == data.truth.c.shape == (10, D)
    assert data.env.tolist() == [0, 0, 0, 2, 2, 3, 4, 4, 4, 4]
    assert data.x.isfinite().all() and not data.x.requires_grad
    assert list(data.env_names) == truth.environments.names and data.control == (0,)
    assert list(data.gene_names) == [f"gene {k}" for k in range(G)]
    assert torch.equal(data.truth.targets, truth.environments.targets)
    assert data.truth.graph is truth.scm.graph
    assert len(data.obs) == 10


@pytest.mark.parametrize("graph", GRAPHS)
def test_every_named_graph_simulates(graph):
    truth = make(graph=graph)
    assert nx.is_directed_acyclic_graph(truth.scm.graph)
    assert truth.sample(2).n == 10


def test_a_graph_object_is_taken_as_it_is():
    graph = nx.DiGraph([(3, 0), (3, 1), (1, 2)])
    assert make(graph=graph).scm.graph is graph


@pytest.mark.parametrize("mechanism", [m for m in MECHANISMS if m != "linear"])
@pytest.mark.parametrize("decoder", ["linear", "neural"])
def test_what_is_left_of_x_is_noise_of_gene_noise(mechanism, decoder):
    truth = make(mechanism, decoder=decoder, gene_noise=0.2)
    data = truth.sample(800)
    residual = data.x - truth.decoder.mean(data.truth.c)
    # 4,000 profiles a gene: five standard errors of the sd, failure rate below 1e-6 a gene.
    ratio = residual.std(0) / truth.decoder.scale
    assert (ratio - 1).abs().max() < 5 / np.sqrt(2 * data.n)
    reference = truth.under(cge.simulate.reference(D)).sample(4000, seed=1)
    signal = truth.decoder.mean(reference.truth.c).std(0)
    # gene_noise is relative to the signal in the reference environment (estimated there from 2,000 draws).
    varying = signal > 0.05
    torch.testing.assert_close(
        (truth.decoder.scale / signal)[varying], torch.tensor(0.2).expand(varying.sum()), rtol=0.2, atol=0
    )


@pytest.mark.parametrize("mechanism", list(MECHANISMS))
@pytest.mark.parametrize("kind", ["shift", "scale", "hard", "mechanism"])
def test_causes_follow_from_the_noise_under_the_design(mechanism, kind):
    value = {"shift": 3.0, "scale": 2.0, "hard": 1.5, "mechanism": 0.0}[kind]
    truth = make(mechanism, environments=one_per_latent(D, kind=kind, value=value))
    data = truth.sample(20)
    z, c = data.truth.z, data.truth.c
    for e in range(data.n_envs):
        rows = data.env == e
        j = e - 1
        if e == 0 or kind in ("shift", "scale"):
            expected = truth.scm(z[rows])
        elif kind == "hard":
            with cge.HardIntervention(j, value=value):
                expected = truth.scm(z[rows])
            assert (c[rows, j] == value).all()
        else:
            with cge.MechanismIntervention(j, gain=value):
                expected = truth.scm(z[rows])
            if mechanism != "binary":
                torch.testing.assert_close(c[rows, j], z[rows, j])
        torch.testing.assert_close(c[rows], expected)


def test_noise_follows_the_stated_law_in_each_environment():
    shift = cge.NoiseShift(torch.tensor([[0.0, 0, 0, 0], [3, 0, -2, 0]]), torch.tensor([[0.0, 0, 0, 0], [0, 1, 0, -1]]))
    truth = make(environments=cge.simulate.Environments(["control", "drug"], shift, control=(0,)))
    n = 3000
    data = truth.sample(n)
    for e in range(2):
        z, sd = data.truth.z[data.env == e], data.truth.shift.scale[e]
        # Five standard errors: failure rate below 1e-6 each.
        assert ((z.mean(0) - shift.loc[e]).abs() < 5 * sd / n**0.5).all()
        assert ((z.std(0) / sd - 1).abs() < 5 / (2 * n) ** 0.5).all()
    torch.testing.assert_close(data.truth.shift.loc, shift.loc)
    torch.testing.assert_close(data.truth.shift.log_scale, shift.log_scale)


def test_children_of_a_linear_mechanism_are_the_signed_sum_of_their_parents():
    truth = make("linear", graph="union of growing networks", environments=cge.simulate.reference(D))
    c = truth.sample(200).truth.c
    assert any(truth.scm.graph.in_degree(j) == 2 for j in range(D))
    for j in range(D):
        if parents := list(truth.scm.graph.predecessors(j)):
            best = torch.linalg.lstsq(c[:, parents], c[:, [j]]).solution
            assert (c[:, j] - c[:, parents] @ best.squeeze(-1).round()).abs().max() < 1e-2
            assert set(best.round().abs().flatten().tolist()) == {1.0}


def test_samples_across_a_chunk_boundary_have_the_same_shapes_and_laws(monkeypatch):
    monkeypatch.setattr(truth_module, "CHUNK", 7)
    truth = make(gene_noise=0.1)
    data = truth.sample(10)
    assert data.x.shape == (50, G) and data.env.tolist() == [e for e in range(5) for _ in range(10)]
    torch.testing.assert_close(truth.scm(data.truth.z), data.truth.c)
    z_score = (data.x - truth.decoder.mean(data.truth.c)) / truth.decoder.scale
    assert z_score.abs().max() < 6
    assert (data.truth.z[1:] != data.truth.z[:-1]).any(1).all()
    assert len(data.truth.z.unique(dim=0)) == 50, "chunks are not copies of each other"


def test_a_chunk_boundary_keeps_hard_interventions_in_their_environment(monkeypatch):
    monkeypatch.setattr(truth_module, "CHUNK", 7)
    data = make(environments=one_per_latent(D, kind="hard", value=9.0)).sample(10)
    for e in range(1, D + 1):
        assert ((data.truth.c[:, e - 1] == 9) == (data.env == e)).all()


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_seeds_are_bit_identical(mechanism):
    first, again = make(mechanism, seed=3), make(mechanism, seed=3)
    a, b = first.sample(5, seed=4), again.sample(5, seed=4)
    assert torch.equal(a.x, b.x) and torch.equal(a.truth.z, b.truth.z) and torch.equal(a.truth.c, b.truth.c)
    assert not torch.equal(first.sample(5, seed=5).truth.z, a.truth.z)
    assert not torch.equal(make(mechanism, seed=8).sample(5, seed=4).x, a.x)


def test_the_callers_random_state_is_untouched():
    before, state = torch.get_rng_state(), np.random.get_state()[1].copy()
    truth = make("neural", decoder="neural")
    data = truth.sample(5)
    truth.counterfactual(data, "env 1")
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == state).all()


def test_the_truth_has_nothing_to_learn():
    assert not any(p.requires_grad for p in make("neural", decoder="neural").parameters())


# Counterfactuals


@pytest.mark.parametrize("kind", ["shift", "scale", "hard", "mechanism"])
def test_the_counterfactual_to_the_own_environment_is_the_identity(kind):
    truth = make(environments=one_per_latent(D, kind=kind, value=2.0))
    data = truth.sample(10)
    for e, name in enumerate(data.env_names):
        own = data.rows(np.flatnonzero(data.env == e))
        same = truth.counterfactual(own, name)
        torch.testing.assert_close(same.x, own.x, rtol=0, atol=1e-4)
        torch.testing.assert_close(same.truth.z, own.truth.z, rtol=0, atol=1e-4)
        torch.testing.assert_close(same.truth.c, own.truth.c, rtol=0, atol=1e-4)


@pytest.mark.parametrize("mechanism", list(MECHANISMS))
def test_a_counterfactual_moves_only_the_targets_of_the_noise(mechanism):
    truth = make(mechanism, environments=one_per_latent(D, value=3.0))
    control = truth.sample(10).rows(range(10))
    for j in range(D):
        moved = truth.counterfactual(control, f"shift {j}")
        change = moved.truth.z - control.truth.z
        expected = torch.zeros(D)
        expected[j] = 3.0
        torch.testing.assert_close(change, expected.expand(10, D), rtol=0, atol=1e-5)
        torch.testing.assert_close(moved.truth.c, truth.scm(moved.truth.z))
        residual = control.x - truth.decoder.mean(control.truth.c)
        torch.testing.assert_close(moved.x, truth.decoder.mean(moved.truth.c) + residual, rtol=1e-4, atol=1e-4)
        assert (moved.env == j + 1).all()


def test_there_and_back_is_the_identity():
    truth = make("neural", environments=one_per_latent(D, kind="scale", value=3.0))
    data = truth.sample(10).rows(range(10))
    back = truth.counterfactual(truth.counterfactual(data, "scale 2"), "control")
    torch.testing.assert_close(back.x, data.x, rtol=1e-4, atol=1e-4)


def test_counterfactuals_into_and_out_of_a_hard_intervention():
    truth = make("neural", environments=one_per_latent(D, kind="hard", value=5.0))
    data = truth.sample(10)
    into = truth.counterfactual(data.rows(range(10)), "hard 1")
    assert (into.truth.c[:, 1] == 5).all()
    assert torch.equal(into.truth.z, data.truth.z[:10])
    with cge.HardIntervention(1, value=5.0):
        torch.testing.assert_close(into.truth.c, truth.scm(into.truth.z))
    residual = data.x[:10] - truth.decoder.mean(data.truth.c[:10])
    torch.testing.assert_close(into.x, truth.decoder.mean(into.truth.c) + residual, rtol=1e-4, atol=1e-4)
    out = truth.counterfactual(into, "control")
    torch.testing.assert_close(out.x, data.x[:10], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.truth.c, data.truth.c[:10])


def test_counterfactuals_refuse_what_they_cannot_answer(data, truth):
    with pytest.raises(ConfigError, match="simulated data"):
        truth.counterfactual(replace(data, truth=None), "env 1")
    with pytest.raises(ValueError, match="unknown environments.*nowhere"):
        truth.counterfactual(data, "nowhere")


def test_counterfactuals_refuse_data_of_another_design(truth):
    other = random_shifts(5, 3, sd=1, seed=9)
    with pytest.raises(ConfigError, match="environments"):
        truth.counterfactual(truth.sample(2, environments=other), "env 1")


# Other environments


def test_other_environments_share_mechanisms_and_decoder():
    truth = make("neural")
    ood = cge.simulate.reference(D, offset=[9, 0, 0, 0])
    other = truth.under(ood)
    assert other.scm is truth.scm and other.decoder is truth.decoder
    a, b = other.sample(5, seed=2), truth.sample(5, environments=ood, seed=2)
    assert torch.equal(a.x, b.x) and list(a.env_names) == list(b.env_names) == ood.names
    assert (a.truth.z[:, 0] > 4).all()
    with pytest.raises(ConfigError, match="act on 3 latents, the truth has 4"):
        truth.under(cge.simulate.reference(3))


def test_features_of_the_design_reach_the_data():
    described = cge.simulate.descriptors(D, 6)(random_shifts(D, 4, sd=2))
    assert torch.equal(make(environments=described).sample(2).env_features, described.features)


def test_predict_of_the_truth_is_the_mean_of_its_samples():
    truth = make("neural", environments=one_per_latent(D, kind="hard", value=2.0))
    data = truth.sample(2000)
    torch.manual_seed(1)
    mean = truth.predict(data.cells(torch.arange(data.n_envs)), 2000)
    for e in range(data.n_envs):
        x = data.x[data.env == e]
        # Two independent means of 2,000 draws: six standard errors, failure rate below 1e-6 over 60 numbers.
        assert ((mean[e] - x.mean(0)).abs() < 6 * (2**0.5) * x.std(0) / 2000**0.5).all()


# Pieces and errors


@pytest.mark.parametrize("attach", [0.0, 0.3, 1.0])
def test_every_gene_has_a_parent(attach):
    mask = observation_mask(D, 400, attach, np.random.default_rng(0))
    assert mask.shape == (D, 400) and set(mask.unique().tolist()) <= {0.0, 1.0}
    assert (mask.sum(0) >= 1).all()
    if attach == 0:
        assert (mask.sum(0) == 1).all()
    if attach == 1:
        assert (mask == 1).all()


def test_genes_hang_on_latents_at_the_stated_rate():
    d, g, p = 6, 500, 0.5
    mask = observation_mask(d, g, p, np.random.default_rng(0))
    # A column without parents (2^-6) gets one: mean p + (1 − p)^d / d; five standard errors.
    assert abs(mask.mean() - (p + (1 - p) ** d / d)) < 5 * (p * (1 - p) / (d * g)) ** 0.5


def test_independent_latents_have_no_edges():
    assert independent(n_latents=3, n_genes=4).scm.A.sum() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"graph": "tree"}, "unknown graph 'tree'"),
        ({"graph": nx.path_graph(3, create_using=nx.DiGraph)}, "3 nodes but n_latents=4"),
        ({"mechanism": "cubic"}, "unknown mechanism 'cubic'"),
        ({"decoder": "deep"}, "decoder must be"),
        ({"attach": 1.5}, "probability"),
        ({"attach": -0.1}, "probability"),
        ({"environments": cge.simulate.reference(3)}, "act on 3 latents, the truth has 4"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)


@pytest.mark.parametrize("counts", [-1, [1, 2], [1, 1, 1, 1, -1]])
def test_bad_counts_are_refused(counts):
    with pytest.raises(ConfigError, match="non-negative count"):
        make().sample(counts)

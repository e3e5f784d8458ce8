"""A learned graph: acyclic in every draw, interventions cut where they should, the order search finds what is identified."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from pyro import poutine

import pyro_cge as cge
from pyro_cge.metrics import structural_hamming_distance
from pyro_cge.scm.graphs import erdos_renyi
from pyro_cge.scm.learned import best_order
from pyro_cge.scm.mechanisms import LinearMechanism, NeuralMechanism

D = 4


def scm_with(order, edges, mechanism=LinearMechanism):
    scm = cge.LearnedSCM(D, mechanism)
    with torch.no_grad():
        scm.potential[torch.tensor(order)] = torch.linspace(-1, 1, D)
        scm.edges.logits.fill_(-9.0)
        for i, j in edges:
            scm.edges.logits[i, j] = 9.0
    return scm


def test_every_draw_is_acyclic_whatever_the_parameters():
    for seed in range(20):
        torch.manual_seed(seed)
        scm = cge.LearnedSCM(D)
        with torch.no_grad():
            scm.potential.normal_()
            scm.edges.logits.normal_(std=4)
        A = (scm.edges.draw_posterior() * scm.along).detach()
        assert set(A.unique().tolist()) <= {0.0, 1.0}
        assert nx.is_directed_acyclic_graph(nx.from_numpy_array(A.numpy(), create_using=nx.DiGraph))


@pytest.mark.parametrize("mechanism", [LinearMechanism, NeuralMechanism])
def test_it_equals_the_scm_of_the_graph_it_has_learned(mechanism):
    edges = [(2, 0), (0, 3), (2, 3), (3, 1)]
    learned = scm_with([2, 0, 3, 1], edges, mechanism)
    assert sorted(learned.graph.edges) == sorted(edges)
    z = torch.randn(7, D)
    expected = {}
    for j in (2, 0, 3, 1):
        parents = torch.stack([expected[i] if (i, j) in edges else torch.zeros(7) for i in range(D)], -1)
        effect = learned.mechanism.effect(parents)[:, j] if expected else 0.0
        expected[j] = z[:, j] + effect
    torch.testing.assert_close(learned(z), torch.stack([expected[j] for j in range(D)], -1))


def test_hard_interventions_reach_descendants_only_and_batch():
    scm = scm_with([2, 0, 3, 1], [(2, 0), (0, 3)])
    z = torch.randn(6, D)
    plain = scm(z)
    values = torch.linspace(-2, 2, 5).unsqueeze(-1).expand(5, 6)
    with cge.HardIntervention(latent=0, value=values):
        many = scm(z)
    assert many.shape == (5, 6, D)
    torch.testing.assert_close(many[..., 0], values)
    torch.testing.assert_close(many[..., 1:3], plain[:, 1:3].expand(5, 6, 2))
    effect = scm.mechanism.W[0, 3].detach()
    torch.testing.assert_close(many[..., 3], z[:, 3] + effect * values)


def test_causes_are_read_back_from_a_trace():
    scm = scm_with([3, 1, 0, 2], [(3, 1), (1, 2)])
    z = torch.randn(6, D)
    trace = poutine.trace(scm.forward).get_trace(z)
    torch.testing.assert_close(scm.causes(trace), scm(z))


def test_a_known_order_is_kept():
    scm = cge.LearnedSCM(D, order=[2, 0, 3, 1])
    assert "potential" not in dict(scm.named_parameters())
    assert scm.along[2, 1] == 1 and scm.along[1, 2] == 0


@pytest.mark.parametrize("seed", range(6))
def test_the_order_search_finds_graph_and_weights_under_hard_interventions(seed):
    """Consistent under one hard intervention a latent; 400 profiles each, true weights at least 0.5.

    The BIC lets a spurious weight of up to 0.06 through in one pair of 200, hence the threshold.
    """
    d = 6
    rng = np.random.default_rng(seed)
    W = torch.from_numpy(nx.to_numpy_array(erdos_renyi(d, rng), nodelist=range(d)) * rng.choice([-1, 1], (d, d)))
    W = W * torch.from_numpy(rng.uniform(0.5, 1.5, (d, d)))
    order = list(nx.topological_sort(nx.from_numpy_array(W.numpy(), create_using=nx.DiGraph)))
    n = 400 * (d + 1)
    target = torch.arange(n) % (d + 1) - 1
    touched = target.unsqueeze(-1) == torch.arange(d)
    z, c = torch.from_numpy(rng.standard_normal((n, d))), torch.zeros(n, d, dtype=torch.float64)
    for j in order:
        c[:, j] = torch.where(touched[:, j], 3.0, c @ W[:, j] + z[:, j])
    _, found = best_order(c, touched)
    assert structural_hamming_distance(found.abs() > 0.2, W) == 0
    assert (found - W).abs().max() < 0.15


def test_starting_from_causes_sets_graph_and_weights():
    truth = cge.simulate.simulator(
        "chain", n_latents=D, n_genes=8, environments=cge.simulate.one_per_latent(D, kind="hard")
    )
    data = truth.sample(300)
    scm = cge.LearnedSCM(D)
    scm.start_at(data.truth.c, truth.environments.targets[data.env])
    assert structural_hamming_distance(scm.A, truth.scm.A) == 0
    assert (
        scm.mechanism.W * scm.A - torch.diag(torch.stack([m.W[-1, 0] for m in truth.scm.mechanisms]), 1)
    ).abs().max() < 0.1


def test_a_model_of_known_interventions_is_the_truths_own():
    """Under the truth's parts and tables, ``IntervenedCellModel`` draws what the simulator draws."""
    for kind in ("hard", "mechanism"):
        design = cge.simulate.one_per_latent(D, kind=kind, value=2.0)
        truth = cge.simulate.growing_network(n_latents=D, n_genes=8, environments=design, seed=1)
        data = truth.sample(20, seed=3)
        tables = {"hard": design.hard} if kind == "hard" else {"gain": design.gain}
        model = cge.IntervenedCellModel(cge.StandardPrior(data, D), truth.scm, truth.decoder, **tables)
        torch.testing.assert_close(model.mean(data.truth.z, data.batch()), truth.mean(data.truth.z, data.batch()))
        replayed = poutine.condition(model, data={"z": data.truth.z})
        trace = poutine.trace(replayed).get_trace(data.batch())
        torch.testing.assert_close(truth.scm.causes(trace), data.truth.c)


def test_tables_that_do_not_fit_are_refused(data):
    prior = cge.StandardPrior(data, 3)
    with pytest.raises(cge.errors.ConfigError, match="needs hard, gain or both"):
        cge.IntervenedCellModel(prior, None, cge.LinearDecoder(3, data.g))
    with pytest.raises(cge.errors.ConfigError, match=r"hard must be .* got \[2, 2\]"):
        cge.IntervenedCellModel(prior, None, cge.LinearDecoder(3, data.g), hard=torch.zeros(2, 2))

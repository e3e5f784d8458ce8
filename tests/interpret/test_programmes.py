"""Gene programmes against weights, finite differences and the SCM's total effects."""

from __future__ import annotations

from types import SimpleNamespace

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch

import pyro_cge as cge
from pyro_cge.errors import ConfigError
from pyro_cge.interpret import gene_interactions, gene_programmes, profile_programmes, programmes, top_genes
from pyro_cge.scm.mechanisms import LinearMechanism, NeuralMechanism

D, G, N = 3, 8, 12
GRAPH = nx.DiGraph([(0, 1), (0, 2), (2, 1)])


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(3)
    return cge.EnvironmentData(
        x=3 * torch.randn(N, G, generator=generator) + 1,
        env=torch.arange(N) % 4,
        gene_names=[f"gene {k}" for k in range(G)],
        env_names=[f"env {e}" for e in range(4)],
        control=[0],
    )


def posterior(data, decoder, scm=None, kind=cge.CellModel):
    model = kind(cge.DensePrior(data, D), scm, decoder)
    return cge.Posterior(model, cge.AmortizedGuide(model), data, cge.Standardizer.fit(data))


def test_linear_decoder_gives_its_weights_in_the_units_of_the_data(data):
    decoder = cge.LinearDecoder(D, G)
    post = posterior(data, decoder)
    weights = decoder.linear.weight.detach()
    for at in ("profiles", "reference", torch.randn(5, D)):
        table = gene_programmes(post, at=at)
        torch.testing.assert_close(torch.tensor(table.to_numpy()).float(), weights * post.scaler.scale.unsqueeze(-1))
    assert list(table.index) == list(data.gene_names) and table.shape == (G, D)
    # The scaler's sd has no correction for n, the data's has.
    sd = gene_programmes(post, units="sd").to_numpy()
    np.testing.assert_allclose(sd, weights.numpy() * np.sqrt((N - 1) / N), rtol=1e-5)


@pytest.mark.parametrize("wrt", ["c", "z"])
@pytest.mark.parametrize("decoder", ["mlp", "conditional", "mechanism"])
def test_jacobian_equals_finite_differences(data, decoder, wrt):
    made = {
        "mlp": lambda: cge.MLPDecoder(D, G, hidden=(6, 5)),
        "conditional": lambda: cge.ConditionalDecoder(data, D, G, hidden=(6,)),
        "mechanism": lambda: cge.MechanismDecoder(NeuralMechanism(torch.ones(D, G))),
    }[decoder]()
    kind = cge.ConditionalCellModel if decoder == "conditional" else cge.CellModel
    post = posterior(data, made, cge.LatentSCM(GRAPH, NeuralMechanism), kind)
    got = profile_programmes(post, wrt=wrt)
    assert got.shape == (N, G, D)
    model, batch, h = post.model.double(), post.data.batch(), 1e-6
    z = torch.from_numpy(post.latents().to_numpy()).double()
    with torch.no_grad():
        point = z if wrt == "z" else model.scm(z)
        f = (lambda v: model.mean(v, batch)) if wrt == "z" else (lambda v: model.likelihood(v, batch).mean)
        steps = h * torch.eye(D, dtype=torch.float64)
        expected = torch.stack([(f(point + s) - f(point - s)) / (2 * h) for s in steps], -1)
    expected = expected * post.scaler.scale.double()[:, None]
    torch.testing.assert_close(got.double(), expected, atol=1e-4, rtol=1e-3)


def test_mean_over_profiles_in_blocks_is_the_mean(data, monkeypatch):
    post = posterior(data, cge.MLPDecoder(D, G))
    monkeypatch.setattr(programmes, "ENTRIES", 5 * D * G)  # blocks of five profiles, the last one shorter
    expected = profile_programmes(post).mean(0)
    torch.testing.assert_close(torch.tensor(gene_programmes(post).to_numpy()).float(), expected)


def test_noise_programmes_carry_the_total_effect_of_the_scm(data):
    scm, decoder = cge.LatentSCM(GRAPH, LinearMechanism), cge.LinearDecoder(D, G)
    post = posterior(data, decoder, scm)
    total = torch.stack([scm(row[None])[0] for row in torch.eye(D)]) - scm(torch.zeros(1, D))  # row i: dc / dz_i
    expected = post.scaler.scale[:, None] * (decoder.linear.weight @ total.T)
    torch.testing.assert_close(torch.tensor(gene_programmes(post, wrt="z").to_numpy()).float(), expected.detach())


def test_a_hard_intervention_in_force_silences_the_latent(data):
    post = posterior(data, cge.LinearDecoder(D, G), cge.LatentSCM(GRAPH, LinearMechanism))
    with cge.HardIntervention(latent=1, value=0.5):
        table = gene_programmes(post, wrt="z")
    assert (table["latent 1"] == 0).all() and (table["latent 0"] != 0).any()


def test_top_genes_and_wrong_names(data):
    table = pd.DataFrame({"a": [0.1, -3.0, 2.0], "b": [5.0, 0.0, -6.0]}, index=["x", "y", "w"])
    top = top_genes(table, 2)
    assert top.values.tolist() == [["a", 1, "y", -3.0], ["a", 2, "w", 2.0], ["b", 1, "w", -6.0], ["b", 2, "x", 5.0]]
    assert len(top_genes(table, 10)) == 6
    post = posterior(data, cge.LinearDecoder(D, G))
    for wrong in ({"wrt": "x"}, {"at": "here"}, {"units": "log"}):
        with pytest.raises(ConfigError, match="|".join(wrong.values())):
            gene_programmes(post, **wrong)


def test_interactions_are_the_covariance_and_do_not_depend_on_the_basis(monkeypatch):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(20, 4))
    genes = [f"g{k}" for k in range(20)]

    def pairs(values, n=190):
        table = gene_interactions(pd.DataFrame(values, index=genes, columns=list("abcd")), n)
        return table, table.set_index(["gene_a", "gene_b"])["weight"].sort_index()

    table, found = pairs(weights)
    covariance = weights @ weights.T
    assert len(found) == 190 and (np.diff(table["weight"].abs()) <= 0).all()
    for (a, b), value in found.items():
        assert value == pytest.approx(covariance[genes.index(a), genes.index(b)])
    length = np.sqrt(np.diag(covariance))
    strongest = table.iloc[0]
    i, j = genes.index(strongest.gene_a), genes.index(strongest.gene_b)
    assert strongest.correlation == pytest.approx(covariance[i, j] / (length[i] * length[j]))
    assert strongest.latent == "abcd"[np.abs(weights[i] * weights[j]).argmax()]
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    for same in (weights * [1, -1, -1, 1], weights @ rotation):
        pd.testing.assert_series_equal(pairs(same)[1], found)
    monkeypatch.setattr(programmes, "ENTRIES", 60)  # three rows at a time
    pd.testing.assert_frame_equal(pairs(weights, 15)[0], table.head(15))
    graph = nx.from_pandas_edgelist(table.head(15), "gene_a", "gene_b", ["weight", "latent"])
    assert graph.number_of_edges() == 15


def test_a_fitted_linear_model_recovers_the_span_of_the_true_programmes():
    """Dense fit on a linear truth: the programmes span the truth's (the basis itself is not identified)."""
    environments = cge.simulate.random_shifts(3, 8, variance=8, cover=True)
    truth = cge.simulate.growing_network(n_latents=3, n_genes=20, decoder="linear", environments=environments, seed=2)
    data = truth.sample(60)
    with cge.isolated(0):
        model = cge.CellModel(cge.DensePrior(data, 3, moves="loc"), None, cge.LinearDecoder(3, data.g))
        guide = cge.AmortizedGuide(model, hidden=())
    found = gene_programmes(cge.fit(model, guide, data, epochs=60, lr=1e-2, seed=0).posterior(data), wrt="z")
    oracle = SimpleNamespace(
        model=truth, data=data, raw=data, device=torch.device("cpu"), scaler=cge.Standardizer.identity(data.gene_names)
    )
    blocks = list(programmes._blocks(oracle, "z", torch.zeros(1, 3)))
    true = blocks[0][:, 0].T.double().numpy()
    cosines = np.linalg.svd(np.linalg.qr(true)[0].T @ np.linalg.qr(found.to_numpy())[0], compute_uv=False)
    assert cosines.min() > 0.97

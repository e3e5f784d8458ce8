"""The peers' simulators against their descriptions, written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pyro import poutine

import pyro_cge as cge
from pyro_cge.errors import ConfigError
from pyro_cge.scm import graphs
from pyro_cge.scm.shifts import NoiseShift
from pyro_cge.simulate import additive_sparse, latent_chain, sparse_shift
from pyro_cge.simulate.environments import Environments
from pyro_cge.simulate.peers import OrthogonalNetwork, RectifiedMechanism

CASES = {
    "sparse_shift": lambda **options: sparse_shift(n_environments=8, **options),
    "sparse_shift over genes": lambda **options: sparse_shift(n_environments=8, over="genes", **options),
    "additive_sparse": lambda **options: additive_sparse(n_environments=8, **options),
    "latent_chain": lambda seed=0: latent_chain(),
}


def network_of(truth, z):
    """The decoder's network with explicit loops over layers, in float64."""
    h = z.double().numpy()
    weights = [w.detach().double().numpy() for w in truth.decoder.network.weights]
    for layer, W in enumerate(weights):
        h = h @ W
        if layer < len(weights) - 1:
            h = np.where(h > 0, h, 0.2 * h)
    return h


@pytest.mark.parametrize("name", CASES)
def test_a_truth_is_a_cell_model_with_nothing_to_learn(name):
    truth = CASES[name]()
    data = truth.sample(5, seed=1)
    assert isinstance(truth, cge.CellModel) and not any(p.requires_grad for p in truth.parameters())
    assert data.x.isfinite().all() and data.truth.targets.equal(truth.environments.targets)
    torch.testing.assert_close(CASES[name]().sample(5, seed=1).x, data.x)
    assert set(poutine.trace(truth).get_trace(data.batch()).nodes) >= {"env_loc", "z", "c_1", "x"}
    leading = truth.decoder.mean(torch.randn(2, 3, 4, truth.d))
    assert leading.shape == (2, 3, 4, truth.g)


@pytest.mark.parametrize("name", [n for n in CASES if n != "latent_chain"])
def test_seeds_draw_other_truths_and_given_environments_are_kept(name):
    one, other = CASES[name](seed=0), CASES[name](seed=1)
    assert not one.environments.shift.loc.equal(other.environments.shift.loc)
    assert not one.decoder.network.weights[0].equal(other.decoder.network.weights[0])
    given = cge.simulate.one_per_latent(4)
    truth = CASES[name](environments=given)
    assert truth.environments is given and truth.d == 4


def test_sparse_shifts_have_one_to_three_targets_of_the_size_described():
    environments = sparse_shift(n_environments=2000).environments
    per = environments.targets.sum(1)
    assert set(per.tolist()) == {1, 2, 3} and environments.control == ()
    # With replacement: P(3 distinct of 3 draws among 15) = 14 · 13 / 225, P(k draws) = 1/3.
    expected = 2000 / 3 * 14 * 13 / 225
    assert abs((per == 3).sum() - expected) < 5 * expected**0.5  # five standard deviations: fails once in 10⁶
    size = environments.shift.loc[environments.targets]
    assert abs(size.abs().mean() - 5) < 5 * 0.5 / len(size) ** 0.5
    assert abs(size.abs().std() - 0.5) < 0.05
    assert abs((size > 0).float().mean() - 0.5) < 2.5 / len(size) ** 0.5


def test_counts_over_cells_are_a_softmax_over_cells():
    truth = sparse_shift(seed=3)
    data = truth.sample(250, seed=4)
    logits = network_of(truth, data.truth.z)
    logits = logits / logits.std()
    theirs = 1e6 * np.exp(logits) / np.exp(logits).sum(0)  # their demo, whose normaliser is the sample's own
    ours = truth.decoder.mean(data.truth.z).numpy()
    # Only normaliser and scale differ, both by the sampling error of 25,000 cells.
    np.testing.assert_allclose(np.log(ours), np.log(theirs), atol=0.08)
    np.testing.assert_allclose(data.x.mean(0).numpy(), 40.0, rtol=0.05)
    # Poisson around that mean: Pearson's statistic has mean 1 and sd below √(3 / 2.5 million).
    assert abs(((data.x.numpy() - ours) ** 2 / ours).mean() - 1) < 0.01


def test_counts_over_genes_have_the_same_expected_depth_in_every_cell():
    truth = sparse_shift(over="genes", n_environments=10, mean_count=7.0)
    z = torch.randn(50, truth.d) * 4
    mean = truth.decoder.mean(z)
    torch.testing.assert_close(mean.sum(-1), torch.full((50,), 700.0))
    logits = network_of(truth, z) / truth.decoder.spread.item()
    share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(mean.numpy(), 700 * share, rtol=1e-3, atol=1e-6)  # log means stop at −15


def test_networks_are_orthogonal_and_one_to_one():
    network = OrthogonalNetwork([6, 10, 10, 30], seed=0, kaiming=1.5)
    sizes = [(6, 10), (10, 10), (10, 30)]
    for W, (a, b) in zip(network.weights, sizes, strict=True):
        torch.testing.assert_close(W @ W.mT, torch.eye(a) * 1.5**2 * 2 / (a + b), atol=1e-5, rtol=1e-5)
    z = torch.randn(200, 6)
    h = network(z)
    for layer, W in enumerate(reversed(network.weights)):  # undo it layer by layer
        h = h @ torch.linalg.pinv(W)
        if layer < 2:
            h = torch.where(h > 0, h, h / 0.2)
    torch.testing.assert_close(h, z, atol=1e-3, rtol=1e-3)


def test_additive_sparse_has_a_control_and_a_fifth_of_noise():
    truth = additive_sparse(n_environments=1000, seed=1)
    targets = truth.environments.targets
    assert truth.environments.control == (0,) and not targets[0].any()
    rate, n = targets[1:].float().mean(), 999 * 15
    assert abs(rate - 2 / 15) < 5 * (2 / 15 * 13 / 15 / n) ** 0.5  # five standard deviations: fails once in 10⁶
    data = truth.sample(50, seed=2)
    signal = network_of(truth, data.truth.z) / truth.decoder.spread.numpy()
    np.testing.assert_allclose(signal.std(0), 1.0, atol=0.03)
    noise = data.x.numpy() - signal
    np.testing.assert_allclose(noise.var(0) / (noise.var(0) + signal.var(0)), 0.2, atol=0.01)


def test_pairs_of_additive_environments_add_up():
    truth = additive_sparse(n_environments=5, probability=0.5)
    both = cge.simulate.combinations(truth.environments, [("env 1", "env 2")])
    loc = truth.environments.shift.loc
    torch.testing.assert_close(truth.under(both).environments.shift.loc[-1], loc[1] + loc[2])


def test_the_chain_follows_its_equations_exactly():
    data = latent_chain().sample(40, seed=0)
    z, c = data.truth.z, torch.zeros(data.n, 5)
    for j in range(5):
        c[:, j] = z[:, j] + (c[:, j - 1].clamp_min(0) if j else 0)
    torch.testing.assert_close(data.truth.c, c)
    torch.testing.assert_close(data.x, torch.cat([c, torch.zeros(data.n, 5)], 1))
    assert len(data.env_names) == 16 and data.control == (0,)
    assert data.truth.targets.sum(1).tolist() == [0] + [1] * 5 + [2] * 10
    assert (data.truth.shift.loc[data.truth.targets] == 5).all()


def test_the_chain_is_asked_what_a_fitted_model_is_asked():
    truth = latent_chain()
    data = truth.sample(3)
    with cge.HardIntervention(latent=1, value=-1.0):  # below zero nothing gets through: c_3 is its own noise
        mean = truth.predict(data.cells(torch.zeros(400, dtype=torch.long)), n_samples=25).mean(0)
    assert mean[1] == -1 and abs(mean[2]) < 5 / 10_000**0.5


def test_the_published_chain_has_this_law(real_data):
    path = real_data / "causal" / "dvae_sim_5latent10obs.npz"
    if not path.exists():
        pytest.skip(f"{path.name} is not among the real data")
    with np.load(path, allow_pickle=False) as file:
        single, double = ((file[f"{part}_Xc"], file[f"{part}_ptbs"]) for part in ("single", "double"))
    environments = latent_chain().environments
    loc = dict(zip(environments.names, environments.shift.loc.numpy(), strict=True))
    for x, targets in (single, double):
        for target in np.unique(targets):
            c = x[targets == target]
            assert (c[:, 5:] == 0).all()
            z = c[:, :5].astype(float)
            z[:, 1:] -= np.maximum(c[:, :4], 0)
            shift = loc["+".join(f"shift {j}" for j in target.split(","))]
            assert np.abs(z.mean(0) - shift).max() < 5 / len(z) ** 0.5  # 75 comparisons: fails once in 10⁴
            assert np.abs(np.cov(z.T) - np.eye(5)).max() < 8 / len(z) ** 0.5


def test_rectified_mechanisms_pass_what_is_above_zero():
    mechanism = RectifiedMechanism(torch.tensor([[1.0], [0.0], [1.0]]))
    parents = torch.tensor([[2.0, 9.0, -4.0], [1.0, 9.0, 0.5]])
    torch.testing.assert_close(mechanism.effect(parents), torch.tensor([[2.0], [1.5]]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sparse_shift(over="both"), "over must be 'cells' or 'genes'"),
        (lambda: sparse_shift(n_targets=(0, 2)), "n_targets must satisfy"),
        (lambda: sparse_shift(n_genes=30), "must not narrow"),
        (lambda: additive_sparse(noise=1.0), "share of a gene's variance"),
        (lambda: latent_chain(n_latents=5, n_genes=4), "as many genes as latents"),
    ],
)
def test_errors_say_what_is_expected(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_the_benchmark_finds_order_and_graph_beyond_the_chain(monkeypatch):
    """A fork and a collider, latents relabelled: ``structure.py`` is given targets, not order or graph."""
    from pathlib import Path

    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks" / "simulators"))
    from structure import maximum_likelihood

    A = torch.zeros(4, 4)
    A[0, 1] = A[0, 2] = A[1, 3] = A[2, 3] = 1
    import networkx as nx

    scm = cge.LatentSCM(nx.from_numpy_array(A.numpy(), create_using=nx.DiGraph), RectifiedMechanism)
    design = cge.simulate.one_per_latent(4, value=4.0)
    decoder = cge.LinearDecoder(4, 7)
    decoder.set_scale(torch.full((7,), 3e-3))
    genes = [f"gene {k}" for k in range(7)]
    truth = cge.simulate.GroundTruth(design, scm, decoder, genes, torch.ones(4))
    data = truth.sample([4000, 1500, 1500, 1500, 1500], seed=0)
    label = [2, 0, 3, 1]
    structure = maximum_likelihood(data, {1 + j: label[j] for j in range(4)})
    where = [structure.order.index(label[j]) for j in range(4)]
    assert structure.adjacency[where][:, where].equal(graphs.adjacency(scm.graph).double())
    np.testing.assert_allclose(structure.shift[1:][:, where].diagonal(), 4.0, atol=0.15)
    found = structure.noise(data.x)[:, where]
    assert (found - data.truth.z).abs().mean() < 0.05
    # And as a model of the suite it says what the truth says, for environments that nobody saw.
    pair = torch.zeros(5, 4, dtype=torch.float64)
    pair[1] = structure.shift[1] + structure.shift[4]
    model = structure.model(data)
    unseen = Environments(
        design.names, NoiseShift(torch.stack([design.shift.loc[1] + design.shift.loc[4]] * 5), torch.zeros(5, 4))
    )
    with torch.no_grad():
        z = NoiseShift(pair.float(), torch.zeros(5, 4)).law(torch.ones(8000, dtype=torch.long)).sample()
        predicted = model.decoder.mean(model.scm(z)).mean(0)
    expected = truth.under(unseen).sample([0, 8000, 0, 0, 0], seed=1).x.mean(0)
    torch.testing.assert_close(predicted, expected, atol=0.15, rtol=0.03)

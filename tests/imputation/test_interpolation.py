"""Over-parameterised autoencoders: interpolation, Jacobians at the examples, recall, alignment of effects."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from torch.func import jacrev, vmap

from pyro_cge.errors import ConfigError, DataError
from pyro_cge.imputation import Effects, InterpolatingAutoencoder, alignment


def examples(n=6, g=20, scale=1.0, seed=0):
    return scale * np.random.default_rng(seed).normal(size=(n, g))


def fitted(x, **settings):
    return InterpolatingAutoencoder(**{"hidden": (40,), "steps": 300} | settings).fit(x)


@pytest.mark.parametrize("activation", ["leaky_relu", "selu", "tanh"])
@pytest.mark.parametrize("bias", [False, True])
def test_interpolates(activation, bias):
    x = examples()
    network = fitted(x, activation=activation, bias=bias)
    assert network.interpolates_ and network.loss_ < 1e-10
    np.testing.assert_allclose(network.predict(x), x, atol=1e-5)


def test_interpolates_with_fewer_features_than_examples():
    """The last layer alone cannot: 12 leaky units hold the identity on 6 genes, which L-BFGS has to find."""
    x = examples(20, 6)
    network = fitted(x, hidden=(24,), bias=True, steps=400, learning_rate=1e-2, tolerance=1e-10)
    assert network.interpolates_


def test_tells_when_it_does_not_interpolate():
    network = fitted(examples(30, 8), hidden=(2,), steps=20)
    assert not network.interpolates_ and network.loss_ > 0.1


@pytest.mark.parametrize("depth, seed", [(1, 0), (2, 1), (3, 2)])
def test_without_bias_every_example_has_the_eigenvalue_one(depth, seed):
    """Positive homogeneity: f(ax) = a f(x), so J(x) x = f(x) = x (Euler)."""
    x = examples(seed=seed)
    network = fitted(x, hidden=(40,) * depth, random_state=seed)
    np.testing.assert_allclose(network.predict(3.7 * x), 3.7 * network.predict(x), atol=1e-9)
    jacobians = vmap(jacrev(network.network_))(torch.as_tensor(x)).numpy()
    np.testing.assert_allclose(np.einsum("nij,nj->ni", jacobians, x), x, atol=1e-5)
    nearest = np.abs(np.linalg.eigvals(jacobians) - 1).min(1)
    assert nearest.max() < 1e-5
    assert network.spectral_radius().min() > 1 - 1e-5


def test_with_bias_the_eigenvalue_is_not_one():
    network = fitted(examples(), bias=True, hidden=(40, 40))
    jacobians = vmap(jacrev(network.network_))(torch.as_tensor(network.examples_)).numpy()
    assert np.abs(np.linalg.eigvals(jacobians) - 1).min() > 1e-4


def test_deep_selu_networks_hold_their_examples_as_strict_attractors():
    x = examples(4, 20, scale=0.1)
    network = fitted(x, hidden=(128,) * 10, activation="selu", learning_rate=3e-4, steps=2000)
    assert network.interpolates_ and network.spectral_radius().max() < 1
    rng = np.random.default_rng(1)
    noisy = x + 0.1 * np.linalg.norm(x, axis=1, keepdims=True) * rng.normal(size=x.shape) / np.sqrt(20)
    assert network.recovered(noisy) == 1.0
    np.testing.assert_allclose(network.recall(noisy), x, atol=1e-4 * np.abs(x).max())


def test_homogeneous_networks_do_not_recover_the_length_of_an_example():
    x = examples()
    network = fitted(x)
    assert network.recovered(x, iterations=10) == 1.0
    assert network.recovered(1.5 * x, iterations=10) == 0.0


def test_arnoldi_is_the_largest_eigenvalue():
    network = fitted(examples(), activation="selu", hidden=(40, 40))
    exact = network.spectral_radius()
    found = [network._arnoldi(torch.as_tensor(row)) for row in network.examples_]
    np.testing.assert_allclose(found, exact, rtol=1e-5)


def test_same_seed_same_network_and_no_global_state():
    x, state = examples(), torch.get_rng_state()
    first, second, other = fitted(x), fitted(x), fitted(x, random_state=1)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(first.transform(x), second.transform(x))
    assert not np.allclose(first.transform(x), other.transform(x))
    assert first.transform(x).shape == (6, 40) and torch.get_default_dtype() == torch.float32


def test_bad_input():
    for settings in ({"hidden": ()}, {"hidden": (0,)}, {"activation": "sine"}, {"tolerance": 0.0}, {"steps": -1}):
        with pytest.raises(ConfigError):
            InterpolatingAutoencoder(**settings)
    x = examples()
    x[2, 3] = np.nan
    with pytest.raises(DataError, match="row 2, column 3"):
        fitted(x)
    with pytest.raises(DataError, match="shape"):
        fitted(x[0])


def brute_force(effects, embed):
    """Cosines of the effects of one action in two contexts."""
    found = []
    for i, j in itertools.combinations(range(effects.m), 2):
        if effects.action[i] == effects.action[j]:
            a, b = embed(effects.x[i]), embed(effects.x[j])
            found.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    return np.array(found)


def test_alignment_against_a_loop(effects):
    W = np.random.default_rng(2).normal(size=(effects.g, 30))

    def embed(x):
        return np.maximum(x @ W, 0)

    row = alignment(effects, embed)
    latent, original = brute_force(effects, embed), brute_force(effects, lambda x: x)
    assert row["pairs"] == len(latent)
    assert row["cosine"] == pytest.approx(latent.mean()) and row["cosine_original"] == pytest.approx(original.mean())
    assert row["sign_agreement"] == pytest.approx((np.sign(latent) == np.sign(original)).mean())


def test_rotations_change_no_alignment(effects):
    Q = np.linalg.qr(np.random.default_rng(3).normal(size=(effects.g, effects.g)))[0]
    row, plain = alignment(effects, lambda x: x @ Q), alignment(effects)
    assert row == pytest.approx(plain) and plain["sign_agreement"] == 1
    assert row["separation"] == row["separation_original"] > 0.5


def test_baselines_cancel_in_a_linear_space_and_only_there(effects):
    W = np.random.default_rng(4).normal(size=(effects.g, 5))
    base = 3 * np.random.default_rng(5).normal(size=(effects.K, effects.g))
    assert alignment(effects, lambda x: x @ W, baseline=base) == pytest.approx(alignment(effects, lambda x: x @ W))
    bent, flat = alignment(effects, np.exp, baseline=base), alignment(effects, np.exp)
    assert abs(bent["cosine"] - flat["cosine"]) > 1e-3


def test_an_action_in_one_context_cannot_be_aligned(effects):
    once = effects.take(effects.context == 0)
    with pytest.raises(DataError, match="two contexts"):
        alignment(once)
    with pytest.raises(DataError, match="baseline"):
        alignment(effects, baseline=np.zeros((1, effects.g)))


def test_real_signatures_are_interpolated(real_data):
    with np.load(real_data / "l1000_level5_gps24.npz", allow_pickle=False) as arrays:
        x = arrays["X"]
    obs = pd.read_csv(real_data / "l1000_level5_gps24_obs.csv.gz")
    rows = np.flatnonzero(obs["cell_id"].isin(["XC.L10", "THP1"]) & ~obs.duplicated(["cell_id", "compound_key"]))[:40]
    context, action = (pd.factorize(obs[name].iloc[rows]) for name in ("cell_id", "compound_key"))
    genes = [str(i) for i in range(x.shape[1])]
    effects = Effects(x[rows], context[0], action[0], list(context[1]), list(action[1]), genes)
    network = InterpolatingAutoencoder(hidden=(128,), steps=20).fit(effects)
    assert network.loss_ < 1e-10
    assert network.spectral_radius(effects.x[:2]).min() > 1 - 1e-5

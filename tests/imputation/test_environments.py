from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_cge as cge
from pyro_cge.errors import ConfigError, DataError
from pyro_cge.imputation import ContextMean, Effects, EnvironmentImputer, k_fold
from pyro_cge.imputation.environments import environments


def additive(data):
    return cge.presets.sams_vae(data, d=4, additive=True, decoder="linear", hidden=(16,))


@pytest.fixture(scope="module")
def fitted(effects):
    imputer = EnvironmentImputer(
        additive, epochs=300, lr=0.02, validation=None, patience=None, progress=False, samples=200
    )
    return imputer.fit(effects)


def test_a_pair_is_an_environment_made_of_context_and_action(effects):
    data = environments(effects, effects.context, effects.action, effects.x)
    assert data.n == data.n_envs == effects.m
    assert torch.equal(data.env_features.sum(1), torch.full((effects.m,), 2.0))
    assert torch.equal(data.env_features[:, : effects.K].argmax(1), torch.from_numpy(effects.context))
    assert data.env_table["perturbagen"].tolist() == effects.pairs["action"].tolist()


def test_an_additive_model_beats_the_mean_on_pairs_never_seen():
    """Effects that add up in three latents."""
    rng = np.random.default_rng(0)
    context, action = np.divmod(np.arange(6 * 25), 25)
    latent = rng.normal(size=(6, 3))[context] + rng.normal(size=(25, 3))[action]
    x = latent @ rng.normal(size=(3, 20)) + 0.1 * rng.normal(size=(150, 20))
    names = [str(i) for i in range(6)], [str(i) for i in range(25)], [str(i) for i in range(20)]
    effects = Effects(x, context, action, *names)
    train, test = next(k_fold(effects, 5))

    def build(data):
        prior = cge.PerturbationPrior(data, lambda units: cge.DensePrior(units, 4))
        model = cge.CellModel(prior, None, cge.LinearDecoder(4, data.g))
        return model, cge.AmortizedGuide(model)

    imputer = EnvironmentImputer(build, epochs=150, lr=0.02, validation=None, patience=None, progress=False)
    pairs = effects.pairs.iloc[test]
    error = np.square(imputer.fit(effects.take(train)).predict(pairs) - effects.x[test]).mean()
    naive = np.square(ContextMean().fit(effects.take(train)).predict(pairs) - effects.x[test]).mean()
    assert error < 0.3 * naive


def test_mean_and_spread(fitted, effects):
    pairs = effects.missing
    mean, std = fitted.predict(pairs, return_std=True)
    assert mean.shape == std.shape == (len(pairs), effects.g)
    assert (std > 0).all()
    assert np.array_equal(mean, fitted.predict(pairs))


def test_predictions_do_not_depend_on_what_else_is_asked(fitted, effects):
    pairs = effects.missing
    whole, part = fitted.predict(pairs), fitted.predict(pairs.iloc[:3])
    assert np.abs(whole[:3] - part).mean() < 0.2 * np.abs(whole).mean()  # other draws, the same law


def test_known_features_reach_actions_never_measured(effects):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(effects.A, 3)), index=effects.action_names)
    known = Effects(**{**vars(effects), "action_features": table})
    train = known.take(np.flatnonzero(known.action != 5))
    imputer = EnvironmentImputer(
        lambda data: cge.presets.dense_vae(data, d=2, hidden=(8,)), features="known", epochs=2, progress=False
    )
    assert np.isfinite(imputer.fit(train).predict([[1, 5]])).all()
    with pytest.raises(DataError, match="action_features"):
        imputer.fit(effects)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"features": "all"}, "features"), ({"samples": 1}, "samples"), ({"seed": 3}, "random_state")],
)
def test_settings(options, message):
    with pytest.raises(ConfigError, match=message):
        EnvironmentImputer(additive, **options)


def test_build_must_be_callable():
    with pytest.raises(ConfigError, match="build makes"):
        EnvironmentImputer(None)

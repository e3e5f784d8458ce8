"""Laws that every imputer obeys."""

from __future__ import annotations

import inspect

import numpy as np
import pyro
import pytest
import torch

import pyro_cge as cge
from pyro_cge.errors import DataError
from pyro_cge.imputation import (
    DNPP,
    NTKGP,
    ActionMean,
    BayesianSyntheticInterventions,
    ContextMean,
    Effects,
    EnvironmentImputer,
    FaLRTC,
    FixedEffects,
    MaskedCP,
    NTKCompletion,
    ShrunkMean,
    SyntheticInterventions,
    TwoWayMean,
)

IMPUTERS = {
    "context mean": ContextMean,
    "action mean": ActionMean,
    "two-way mean": TwoWayMean,
    "fixed effects": FixedEffects,
    "shrunk mean": ShrunkMean,
    "DNPP": lambda: DNPP(n_neighbours=3),
    "FaLRTC": lambda: FaLRTC(max_iter=5, progress=False),
    "masked CP": lambda: MaskedCP(rank=2, max_iter=5),
    "synthetic, actions": SyntheticInterventions,
    "synthetic, contexts": lambda: SyntheticInterventions(donors="contexts", method="least_squares"),
    "Bayesian synthetic": lambda: BayesianSyntheticInterventions(
        steps=5, samples=5, max_donors=5, prior="horseshoe", progress=False
    ),
    "NTK": NTKCompletion,
    "NTK with a feature": lambda: NTKCompletion(feature=DNPP(), at_least=5),
    "NTKGP": lambda: NTKGP(steps=5),
    "NTKGP, SVI": lambda: NTKGP(steps=5, inference="svi", draws=2),
    "environment model": lambda: EnvironmentImputer(
        lambda data: cge.presets.sams_vae(data, d=3, additive=True, hidden=(8,)),
        epochs=2,
        validation=None,
        patience=None,
        samples=20,
        progress=False,
    ),
}


@pytest.fixture(params=IMPUTERS)
def make(request):
    if request.param == "masked CP":
        pytest.importorskip("tensorly")
    return IMPUTERS[request.param]


def everything(effects):
    return np.stack(np.meshgrid(np.arange(effects.K), np.arange(effects.A), indexing="ij"), -1).reshape(-1, 2)


def changed(effects, **fields):
    return Effects(**{**vars(effects), **fields})


def test_every_pair_has_a_finite_prediction_whatever_was_trained_on(make, effects):
    """One context and one action without any training pair."""
    known = effects.take(np.flatnonzero((effects.context != 4) & (effects.action != 13)))
    predicted = make().fit(known).predict(everything(effects))
    assert predicted.shape == (effects.K * effects.A, effects.g)
    assert predicted.dtype == np.float64
    assert np.isfinite(predicted).all()


def test_names_and_codes_ask_for_the_same(make, effects):
    fitted = make().fit(effects)
    codes = np.stack(effects.codes(effects.missing), 1)
    assert np.array_equal(fitted.predict(effects.missing), fitted.predict(codes))


def test_a_seed_gives_the_same_and_nothing_else_is_touched(make, effects):
    torch.manual_seed(5)
    np.random.seed(5)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    before = effects.x.copy()
    a, b = (make().fit(effects).predict(effects.missing) for _ in range(2))
    assert np.array_equal(a, b)
    assert np.array_equal(effects.x, before)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert not pyro.get_param_store().keys()


def test_fitting_again_forgets(make, effects):
    half = effects.take(np.arange(0, effects.m, 2))
    imputer = make().fit(half)
    again = imputer.fit(effects)
    fitted = imputer if again is None else again
    assert np.array_equal(fitted.predict(effects.missing), make().fit(effects).predict(effects.missing))


def test_no_pairs_asked_for(make, effects):
    assert make().fit(effects).predict(np.zeros((0, 2), dtype=int)).shape == (0, effects.g)


def test_constant_signatures_are_no_trouble(make, effects):
    """All pairs of one action zero, of another one constant: correlations and cosines are undefined there."""
    x = effects.x.copy()
    x[effects.action == 2] = 0.0
    x[effects.action == 3] = 1.0
    assert np.isfinite(make().fit(changed(effects, x=x)).predict(everything(effects))).all()


def test_equal_signatures_are_no_trouble(make, effects):
    """Two actions with the same signature everywhere: kernels without noise are singular. One clear error, or numbers."""
    x = effects.x.copy()
    for k in range(effects.K):
        rows = [np.flatnonzero((effects.context == k) & (effects.action == a)) for a in (0, 1)]
        if all(len(r) for r in rows):
            x[rows[1]] = x[rows[0]]
    assert np.isfinite(make().fit(changed(effects, x=x)).predict(everything(effects))).all()


def test_one_training_pair_is_enough_for_a_number(make, effects):
    one = effects.take([3])
    try:
        predicted = make().fit(one).predict(everything(effects)[:7])
    except DataError as error:
        assert "pair" in str(error)
    else:
        assert np.isfinite(predicted).all()


def test_wrong_input_is_refused(make, effects):
    with pytest.raises(DataError, match="fit takes Effects"):
        make().fit(effects.x)
    with pytest.raises(DataError, match="no training pair"):
        make().fit(effects.take([]))
    fitted = make().fit(effects)
    with pytest.raises(DataError, match="unknown action 'water'"):
        fitted.predict(effects.pairs.head(1).assign(action="water"))
    with pytest.raises(DataError, match="outside"):
        fitted.predict([[0, effects.A]])


def test_spread_is_positive_and_the_mean_does_not_depend_on_it(make, effects):
    fitted = make().fit(effects)
    if "return_std" not in inspect.signature(fitted.predict).parameters:
        pytest.skip("states no uncertainty")
    mean, std = fitted.predict(effects.missing, return_std=True)
    assert (std > 0).all()
    assert np.isfinite(std).all()
    assert np.array_equal(mean, fitted.predict(effects.missing))

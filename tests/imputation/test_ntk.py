"""Matrix completion with the neural tangent kernel against the equations written out."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_cge.errors import ConfigError, DataError
from pyro_cge.imputation.neighbours import DNPP
from pyro_cge.imputation.ntk.completion import NTKCompletion, PriorRows
from pyro_cge.imputation.ntk.kernels import ntk


def brute_force(effects, pairs, depth=1):
    """With the identity block built."""
    reference = effects.context == effects.context_names.index(effects.training_only[0])
    known = {a: effects.x[reference][i] for i, a in enumerate(effects.action[reference])}
    average = effects.x[reference].mean(0)
    every = [*zip(effects.context, effects.action, strict=True), *map(tuple, pairs)]
    rows = []
    for i, (k, a) in enumerate(every):
        e = known.get(a, average)
        mean = effects.x[effects.context == k].mean(0)
        own = np.zeros(len(every))
        own[i] = 1.5
        row = np.concatenate([0.75 * np.linalg.norm(e) * mean / np.linalg.norm(mean), e, own])
        rows.append(row / np.linalg.norm(row))
    kernel = ntk(np.array(rows) @ np.array(rows).T, depth)
    return kernel[effects.m :, : effects.m] @ np.linalg.solve(kernel[: effects.m, : effects.m], effects.x)


@pytest.mark.parametrize("depth", [1, 3])
def test_equations(effects, depth):
    train = effects.take(np.flatnonzero((effects.context != 0) | (effects.action > 2)))
    pairs = np.array([[1, 0], [2, 1], [4, 9], [3, 3]])
    predicted = NTKCompletion(depth=depth).fit(train).predict(pairs)
    np.testing.assert_allclose(predicted, brute_force(train, pairs, depth), atol=1e-8)


def test_beats_the_mean_of_everything(effects):
    test = np.flatnonzero(effects.context == 2)[::2]
    train = effects.take(np.setdiff1d(np.arange(effects.m), test))
    pairs = np.stack([effects.context[test], effects.action[test]], 1)
    error = ((NTKCompletion().fit(train).predict(pairs) - effects.x[test]) ** 2).mean()
    assert error < 0.5 * ((train.x.mean(0) - effects.x[test]) ** 2).mean()


def test_rows_are_shorter_than_one_by_the_indicator(effects):
    rows = PriorRows(effects)(effects.context, effects.action)
    e = np.array([PriorRows(effects).signatures[a] for a in effects.action])
    square = 1.5625 * (e**2).sum(1)
    np.testing.assert_allclose((rows**2).sum(1), square / (square + 2.25), atol=1e-12)


def test_mixed_prior_takes_the_imputed_signature_where_there_are_enough(effects):
    prior, plain = PriorRows(effects, DNPP(), at_least=10), PriorRows(effects)
    many = np.bincount(effects.context) >= 10
    assert many.any() and not many.all()
    k, a = np.divmod(np.arange(5 * 14), 14)
    mixed, usual = prior(k, a), plain(k, a)
    np.testing.assert_array_equal(mixed[~many[k]], usual[~many[k]])
    imputed = DNPP().fit(effects).predict(np.stack([k, a], 1)[many[k]])
    np.testing.assert_allclose(
        mixed[many[k], effects.g :] / np.linalg.norm(mixed[many[k], effects.g :], axis=1, keepdims=True),
        imputed / np.linalg.norm(imputed, axis=1, keepdims=True),
    )
    assert np.isfinite(NTKCompletion(feature=DNPP(), at_least=10).fit(effects).predict([[2, 3]])).all()


def test_unseen_context_and_action_are_finite(effects):
    train = effects.take(np.flatnonzero((effects.context != 3) & (effects.action != 5)))
    assert np.isfinite(NTKCompletion().fit(train).predict([[3, 5], [3, 1], [1, 5]])).all()


def test_errors(effects):
    with pytest.raises(ConfigError, match="depth"):
        NTKCompletion(depth=0)
    with pytest.raises(ConfigError, match="at_least"):
        NTKCompletion(at_least=0)
    with pytest.raises(DataError, match=r"reference context 'cell0'"):
        NTKCompletion().fit(effects.take(np.flatnonzero(effects.context != 0)))
    with pytest.raises(DataError, match="fit takes Effects"):
        NTKCompletion().fit(effects.x)

from __future__ import annotations

import numpy as np
import pytest

from pyro_cge.errors import ConfigError
from pyro_cge.imputation import DNPP, ContextMean, Effects


def by_hand(effects, context, action, n_neighbours):
    """The definition, one pair at a time."""
    tensor = effects.tensor()
    likeness = {}
    for other in range(effects.A):
        shared = [k for k in range(effects.K) if not np.isnan(tensor[k, [action, other], 0]).any()]
        if other != action and shared and not np.isnan(tensor[context, other, 0]):
            likeness[other] = np.mean([np.corrcoef(tensor[k, action], tensor[k, other])[0, 1] for k in shared])
    nearest = sorted(likeness, key=likeness.get, reverse=True)[:n_neighbours]
    weight = np.clip([likeness[other] for other in nearest], 0, 1)
    if not weight.sum():
        return ContextMean().fit(effects).predict([[context, action]])[0]
    return weight @ tensor[context, nearest] / weight.sum()


@pytest.mark.parametrize("n_neighbours", [1, 3, 50])
def test_predictions_follow_the_definition(effects, n_neighbours):
    pairs = effects.codes(effects.missing)
    predicted = DNPP(n_neighbours=n_neighbours).fit(effects).predict(np.stack(pairs, 1))
    expected = [by_hand(effects, k, a, n_neighbours) for k, a in zip(*pairs, strict=True)]
    assert np.allclose(predicted, expected)


def test_similarity_does_not_see_scale_or_offset(effects):
    changed = Effects(**{**vars(effects), "x": effects.x * np.linspace(0.5, 2, effects.m)[:, None] + 3})
    a, b = DNPP().fit(effects).similarity_, DNPP().fit(changed).similarity_
    assert np.allclose(a, b, equal_nan=True)


def test_an_action_alone_falls_back_to_its_context():
    x = np.random.default_rng(0).normal(size=(3, 5))
    effects = Effects(x, [0, 0, 1], [0, 1, 2], ["a", "b"], ["u", "v", "w"], list("pqrst"))
    assert np.allclose(DNPP().fit(effects).predict([[0, 2]])[0], x[:2].mean(0))
    assert np.allclose(DNPP().fit(effects.take([0, 1])).predict([[1, 2]])[0], x[:2].mean(0))


def test_constant_signatures_are_like_nothing(effects):
    x = effects.x.copy()
    x[effects.action == 2] = 1.0
    fitted = DNPP().fit(Effects(**{**vars(effects), "x": x}))
    assert not np.nan_to_num(fitted.similarity_[2]).any()
    assert np.isfinite(fitted.predict(effects.missing)).all()


def test_settings():
    with pytest.raises(ConfigError, match="n_neighbours"):
        DNPP(n_neighbours=0)

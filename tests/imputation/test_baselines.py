from __future__ import annotations

import numpy as np
import pytest

from pyro_cge.errors import ConfigError, DataError
from pyro_cge.imputation import ActionMean, ContextMean, Effects, FixedEffects, ShrunkMean, TwoWayMean

ALL = [ContextMean, ActionMean, TwoWayMean, FixedEffects, ShrunkMean]


def everything(effects):
    return np.stack(np.meshgrid(np.arange(effects.K), np.arange(effects.A), indexing="ij"), -1).reshape(-1, 2)


def test_means_are_means(effects):
    x, k, a = effects.x, effects.context, effects.action
    context = np.stack([x[k == i].mean(0) for i in range(effects.K)])
    action = np.stack([x[a == i].mean(0) for i in range(effects.A)])
    pairs = everything(effects)
    i, j = pairs.T
    assert np.allclose(ContextMean().fit(effects).predict(pairs), context[i])
    assert np.allclose(ActionMean().fit(effects).predict(pairs), action[j])
    assert np.allclose(TwoWayMean().fit(effects).predict(pairs), context[i] + action[j] - x.mean(0))


def test_fixed_effects_are_least_squares(effects):
    design = np.zeros((effects.m, effects.K + effects.A))
    design[np.arange(effects.m), effects.context] = 1
    design[np.arange(effects.m), effects.K + effects.action] = 1
    beta = np.linalg.lstsq(design, effects.x, rcond=None)[0]
    assert np.allclose(FixedEffects().fit(effects).predict(effects.pairs), design @ beta)


def test_fixed_effects_recover_an_additive_table_where_two_way_means_do_not():
    rng = np.random.default_rng(1)
    alpha, beta = rng.normal(size=(4, 6)), rng.normal(size=(9, 6))
    context, action = np.nonzero(rng.random((4, 9)) < 0.7)
    names = list("abcd"), [str(i) for i in range(9)], [f"g{i}" for i in range(6)]
    effects = Effects(alpha[context] + beta[action], context, action, *names)
    true = (alpha[:, None] + beta[None]).reshape(-1, 6)
    assert np.allclose(FixedEffects().fit(effects).predict(everything(effects)), true)
    assert np.abs(TwoWayMean().fit(effects).predict(everything(effects)) - true).max() > 0.1


def test_shrinkage_runs_from_the_context_mean_to_the_whole_residual(effects):
    pairs = everything(effects)
    fixed = ShrunkMean(shrinkage=1e12).fit(effects)
    assert np.allclose(fixed.predict(pairs), ContextMean().fit(effects).predict(pairs))
    free = ShrunkMean(shrinkage=0).fit(effects)
    residual = effects.x - ContextMean().fit(effects).predict(effects.pairs)
    assert np.allclose(free.actions_[3], residual[effects.action == 3].mean(0))


def test_shrinkage_is_the_ratio_of_variances():
    """Balanced table, within variance 4, between 1: λ = 4. Over 20 seeds it lay within 3.6–4.5."""
    rng = np.random.default_rng(0)
    context, action = np.divmod(np.arange(20 * 60), 60)
    x = rng.normal(size=(60, 80))[action] + 2 * rng.normal(size=(1200, 80))
    names = [str(i) for i in range(20)], [str(i) for i in range(60)], [str(i) for i in range(80)]
    fitted = ShrunkMean().fit(Effects(x, context, action, *names))
    assert fitted.shrinkage_ == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize("imputer", ALL)
def test_a_context_or_action_never_trained_on_falls_back(effects, imputer):
    known = effects.take(np.flatnonzero((effects.context != 4) & (effects.action != 13)))
    predicted = imputer().fit(known).predict(everything(effects))
    assert np.isfinite(predicted).all()


@pytest.mark.parametrize("imputer", ALL)
def test_order_of_the_rows_does_not_matter(effects, imputer):
    shuffled = effects.take(np.random.default_rng(0).permutation(effects.m))
    pairs = everything(effects)
    assert np.allclose(imputer().fit(effects).predict(pairs), imputer().fit(shuffled).predict(pairs))


@pytest.mark.parametrize("imputer", ALL)
def test_bad_input(effects, imputer):
    with pytest.raises(DataError, match="fit takes Effects"):
        imputer().fit(effects.x)
    with pytest.raises(DataError, match="no training pair"):
        imputer().fit(effects.take([]))


def test_bad_shrinkage():
    with pytest.raises(ConfigError, match="shrinkage"):
        ShrunkMean(shrinkage=-1)

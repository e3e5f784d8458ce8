from __future__ import annotations

import numpy as np
import pytest

from pyro_cge.errors import ConfigError, DataError
from pyro_cge.imputation import ContextMean, FixedEffects, cross_validate, few_shot, hold_out, k_fold, leave_one_out
from pyro_cge.metrics import imputation_scores


def test_k_fold_holds_out_each_pair_of_each_tested_context_once(effects):
    folds = list(k_fold(effects, 4, random_state=3))
    tested = np.concatenate([test for _, test in folds])
    assert sorted(tested) == np.flatnonzero(effects.context != 0).tolist()
    for train, test in folds:
        assert sorted([*train, *test]) == list(range(effects.m))
        for code in range(1, effects.K):  # parts of a context differ by one at most
            share = (effects.context[test] == code).sum()
            assert abs(share - (effects.context == code).sum() / 4) < 1


def test_k_fold_can_be_restricted_to_contexts_with_few_actions(effects):
    counts = np.bincount(effects.context)
    limit = int(np.sort(counts[1:])[1])
    tested = np.concatenate([test for _, test in k_fold(effects, 2, fewer_than=limit)])
    trained = {code: counts[code] / 2 for code in range(1, 5)}
    assert set(effects.context[tested]) == {code for code, n in trained.items() if n < limit}
    with pytest.raises(DataError, match="no context can be held out"):
        list(k_fold(effects, 2, fewer_than=1))


def test_few_shot_is_nested_and_leaves_other_contexts_whole(effects):
    small, large = (list(few_shot(effects, b, random_state=1)) for b in (2, 4))
    for (train, test), (train_more, _) in zip(small, large, strict=True):
        code = effects.context[test[0]]
        assert (effects.context[test] == code).all()
        assert (effects.context[train] == code).sum() == 2
        assert set(train) <= set(train_more)
        assert (effects.context[train] != code).sum() == (effects.context != code).sum()


def test_leave_one_out_visits_every_tested_pair(effects):
    folds = list(leave_one_out(effects))
    assert [int(test[0]) for _, test in folds] == np.flatnonzero(effects.context != 0).tolist()


def test_a_seed_gives_the_same_folds(effects):
    same = [np.array_equal(a[1], b[1]) for a, b in zip(k_fold(effects, 3), k_fold(effects, 3), strict=True)]
    assert all(same)
    other = k_fold(effects, 3, random_state=1)
    assert not all(np.array_equal(a[1], b[1]) for a, b in zip(k_fold(effects, 3), other, strict=True))


def test_wrong_settings(effects):
    with pytest.raises(ConfigError, match="n_folds"):
        next(k_fold(effects, 1))
    with pytest.raises(ConfigError, match="b is a number"):
        next(few_shot(effects, -1))
    with pytest.raises(DataError, match="no context has more than"):
        list(few_shot(effects, 99))


def test_hold_out_predicts_what_a_hand_made_fit_predicts(effects):
    folds = list(k_fold(effects, 3))
    held = hold_out(ContextMean(), effects, folds, progress=False)
    train, test = folds[1]
    by_hand = ContextMean().fit(effects.take(train)).predict(effects.pairs.iloc[test])
    assert np.array_equal(held.mean[held.fold == 1], by_hand)
    assert np.array_equal(held.rows[held.fold == 1], test)


def test_cross_validate_ranks_the_right_model_first(effects):
    table = cross_validate({"mean": ContextMean(), "additive": FixedEffects()}, effects, k_fold(effects, 5))
    assert list(table.columns) == ["r", "r2", "cosine", "profile_r", "cpu_s"]
    assert table.loc["additive", "r"] > 0.97 > table.loc["mean", "r"]


class Known:
    """Predicts the noise-free table with the right spread."""

    def fit(self, effects):
        self.effects_ = effects
        return self

    def predict(self, pairs, return_std=False):
        mean = np.zeros((len(pairs), self.effects_.g))
        return (mean, np.ones_like(mean)) if return_std else mean


def test_intervals_are_scored_where_there_are_any(effects):
    noise = np.random.default_rng(0).normal(size=effects.x.shape)
    standard = type(effects)(**{**vars(effects), "x": noise})
    held = hold_out(Known(), standard, k_fold(standard, 3))
    inside = np.abs(standard.x[held.rows]) < 1.6448536
    assert held.scores(standard)["coverage_90"] == pytest.approx(inside.mean())
    some = np.arange(len(held.rows)) < 5
    assert held.scores(standard, rows=some)["coverage_90"] == pytest.approx(inside[:5].mean())


class Broken(Known):
    def predict(self, pairs):
        return np.full((len(pairs), self.effects_.g), np.nan)


def test_a_silent_nan_is_an_error(effects):
    with pytest.raises(DataError, match="Broken predicts"):
        hold_out(Broken(), effects, k_fold(effects, 3))


def test_scores_agree_with_their_definitions():
    from sklearn.metrics import r2_score

    rng = np.random.default_rng(0)
    y, f = rng.normal(size=(7, 30)), rng.normal(size=(7, 30))
    scores = imputation_scores(y, f)
    assert scores["r"] == pytest.approx(np.corrcoef(y.ravel(), f.ravel())[0, 1])
    assert scores["r2"] == pytest.approx(np.mean([r2_score(a, b) for a, b in zip(y, f, strict=True)]))
    cosine = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(y, f, strict=True)]
    assert scores["cosine"] == pytest.approx(np.mean(cosine))
    assert imputation_scores(y, f, "median")["cosine"] == pytest.approx(np.median(cosine))
    assert scores["profile_r"] == pytest.approx(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(y, f, strict=True)]))
    assert imputation_scores(y, y) == pytest.approx({"r": 1, "r2": 1, "cosine": 1, "profile_r": 1})


def test_signatures_without_signal_do_not_count():
    y = np.array([[0.0, 0, 0], [2, 2, 2], [1, 2, 4]])
    f = np.array([[9.0, 1, 2], [1, 1, 1], [1, 2, 4]])
    scores = imputation_scores(y, f)
    assert scores["cosine"] == pytest.approx(1)
    assert scores["r2"] == pytest.approx(1)
    assert imputation_scores(y[2:], np.zeros((1, 3)))["cosine"] == 0
    assert np.isnan(imputation_scores(y[:1], f[:1])["r"])


def test_scores_refuse_what_cannot_be_scored():
    with pytest.raises(ValueError, match="shape"):
        imputation_scores(np.ones((2, 3)), np.ones((3, 2)))
    with pytest.raises(ValueError, match="not finite"):
        imputation_scores(np.ones((1, 2)), np.array([[1, np.nan]]))
    with pytest.raises(ValueError, match="average"):
        imputation_scores(np.ones((1, 2)), np.ones((1, 2)), "mode")

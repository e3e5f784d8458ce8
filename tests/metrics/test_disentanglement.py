"""Matching of latents and recovery of targets against oracles, brute force and hand counts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from pyro_cge import NoiseShift
from pyro_cge.metrics import linear_r2, match_latents, mcc, moved_latents, target_recovery
from pyro_cge.metrics.disentanglement import Matching

N = 60


def draws(d, seed=0, n=N):
    return np.random.default_rng(seed).standard_normal((n, d))


@pytest.mark.parametrize("method", ["pearson", "spearman"])
@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_permutation_sign_scale_and_offset_do_not_matter(method, d, seed):
    rng, truth = np.random.default_rng(seed), draws(d, seed)
    order, sign, scale = rng.permutation(d), rng.choice([-1.0, 1.0], d), rng.uniform(0.1, 9, d)
    estimate = truth[:, order] * sign * scale + rng.standard_normal(d)
    found = match_latents(estimate, truth, method)
    assert found.mcc == pytest.approx(1, abs=1e-12)
    assert found.mcc <= 1
    assert (found.order == np.argsort(order)).all()
    assert (found.sign == sign[np.argsort(order)]).all()
    unscaled = found.apply((estimate - estimate.mean(0)) / estimate.std(0))
    np.testing.assert_allclose(unscaled, (truth - truth.mean(0)) / truth.std(0), atol=1e-9)


def test_a_permutation_gives_exactly_one():
    truth = torch.randn(N, 4)
    assert mcc(-truth[:, [2, 0, 3, 1]], truth) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("method", ["pearson", "spearman"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 3), (4, 4), (2, 4), (4, 2), (3, 4)])
@pytest.mark.parametrize("seed", range(3))
def test_the_assignment_is_the_best_of_all(method, shape, seed):
    k, d = shape
    estimate, truth = draws(k, seed), draws(d, seed + 50)
    if method == "pearson":
        table = np.abs(np.corrcoef(estimate.T, truth.T)[:k, k:])
    else:
        table = np.abs(np.atleast_2d(spearmanr(np.column_stack([estimate, truth])).statistic))
        table = np.full((1, 1), abs(spearmanr(estimate[:, 0], truth[:, 0]).statistic)) if k == d == 1 else table[:k, k:]
    best = max(
        sum(table[i, j] for i, j in zip(rows, columns))
        for rows in itertools.permutations(range(k), min(k, d))
        for columns in itertools.combinations(range(d), min(k, d))
    )
    found = match_latents(estimate, truth, method)
    assert found.correlation.sum() == pytest.approx(best, rel=1e-9)
    assert found.mcc == pytest.approx(best / d, rel=1e-9)


def test_more_latents_than_causes_leave_some_out():
    truth = draws(3)
    estimate = np.column_stack([draws(2, 7), -truth[:, [1, 0, 2]], draws(1, 8)])
    found = match_latents(estimate, truth)
    assert found.order.tolist() == [3, 2, 4] and found.sign.tolist() == [-1, -1, -1]
    assert found.mcc == pytest.approx(1)


def test_fewer_latents_than_causes_leave_causes_unmatched():
    truth = draws(4)
    found = match_latents(truth[:, [2, 0]], truth)
    assert found.order.tolist() == [1, -1, 0, -1]
    assert found.correlation.tolist() == pytest.approx([1, 0, 1, 0])
    assert found.mcc == pytest.approx(0.5)
    applied = found.apply(np.array([[10.0, 20.0]]))
    assert applied.tolist() == [[20.0, 0.0, 10.0, 0.0]]


def test_a_constant_latent_correlates_with_nothing():
    truth = draws(2)
    found = match_latents(np.column_stack([np.full(N, 0.1), truth[:, 0]]), truth)
    assert found.correlation.tolist() == pytest.approx([1, 0])
    assert np.isfinite(found.mcc)


def test_spearman_sees_monotone_maps():
    truth = draws(3)
    assert mcc(np.exp(truth), truth, "spearman") == pytest.approx(1)
    assert mcc(np.exp(3 * truth), truth) < 0.9


def test_tensors_on_a_graph_are_taken():
    z = torch.randn(N, 2, requires_grad=True)
    assert mcc(z * 2, z) == pytest.approx(1)


def test_bad_input_to_matching_is_refused():
    with pytest.raises(ValueError, match="60 profiles, truth 59"):
        match_latents(draws(2), draws(2)[:-1])
    with pytest.raises(ValueError, match="'pearson' or 'spearman'"):
        match_latents(draws(2), draws(2), "kendall")


def test_a_shift_is_brought_into_the_order_and_sign_of_the_truth():
    matching = Matching(np.array([2, -1, 0]), np.array([-1.0, 1, 1]), np.array([1.0, 0, 1]))
    shift = NoiseShift(torch.tensor([[1.0, 2, 3]]), torch.tensor([[0.1, 0.2, 0.3]]))
    applied = matching.apply_shift(shift)
    torch.testing.assert_close(applied.loc, torch.tensor([[-3.0, 0, 1]]))
    torch.testing.assert_close(applied.log_scale, torch.tensor([[0.3, 0, 0.1]]))
    assert applied.loc.dtype == torch.float32


def test_linear_r2_is_blind_to_rotations():
    truth = draws(3)
    rotation = np.linalg.qr(draws(3, 5, n=3))[0]
    assert linear_r2(truth @ rotation + 4, truth) == pytest.approx(1)
    assert mcc(truth @ rotation, truth) < 0.95


def test_linear_r2_equals_scikit_learns():
    from sklearn.linear_model import LinearRegression
    from sklearn.metrics import r2_score

    estimate, truth = draws(3), draws(2, 9) + draws(3)[:, :2]
    fitted = LinearRegression().fit(estimate, truth).predict(estimate)
    assert linear_r2(estimate, truth) == pytest.approx(r2_score(truth, fitted))


def identity(d):
    return Matching(np.arange(d), np.ones(d), np.ones(d))


def test_target_recovery_by_hand():
    targets = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 1], [0, 0, 1]])
    score = np.array([[0.9, 0.9, 0.9], [0.8, 0.6, 0.1], [0.2, 0.9, 0.3], [0.6, 0.1, 0.5]])
    found = target_recovery(score, targets, identity(3))
    # Named in treated environments: (1,0) right, (1,1) wrong, (2,1) right, (3,0) wrong, (3,2) right (at the threshold).
    assert found.precision == pytest.approx(3 / 5)
    assert found.recall == pytest.approx(3 / 4)
    assert found.f1 == pytest.approx(2 * 0.6 * 0.75 / 1.35)
    assert found.top1 == pytest.approx(2 / 3)


def test_target_recovery_follows_the_matching():
    targets = np.eye(3)
    score = np.eye(3)[:, [2, 0, 1]]
    order = np.argsort([2, 0, 1])
    right = target_recovery(score, targets, Matching(order, -np.ones(3), np.ones(3)))
    assert (right.precision, right.recall, right.f1, right.top1) == (1, 1, 1, 1)
    wrong = target_recovery(score, targets, identity(3))
    assert (wrong.precision, wrong.recall, wrong.f1, wrong.top1) == (0, 0, 0, 0)


def test_an_environment_whose_strongest_latent_matches_nothing_is_wrong():
    matching = Matching(np.array([0, 2]), np.ones(2), np.ones(2))
    score = np.array([[0.6, 0.9, 0.1, 0.0], [0.1, 0.2, 0.8, 0.0], [0.1, 0.1, 0.3, 0.9]])
    found = target_recovery(score, np.array([[1, 0], [0, 1], [0, 1]]), matching)
    assert found.top1 == pytest.approx(1 / 3)
    assert found.precision == 1 and found.recall == pytest.approx(2 / 3)


def test_causes_without_a_latent_are_missed():
    matching = Matching(np.array([0, -1]), np.ones(2), np.array([1.0, 0]))
    found = target_recovery(np.array([[0.9], [0.9]]), np.eye(2), matching)
    assert (found.precision, found.recall, found.top1) == (0.5, 0.5, 0.5)


def test_nothing_named_scores_zero_without_a_division():
    found = target_recovery(np.zeros((2, 2)), np.eye(2), identity(2))
    assert (found.precision, found.recall, found.f1) == (0, 0, 0)


def test_small_shifts_can_be_left_out():
    targets, size = np.eye(2), np.array([[0.1, 0], [0, -2.0]])
    found = target_recovery(np.array([[0, 1], [0, 1]]), targets, identity(2), size=size, min_size=0.5)
    assert (found.f1, found.top1) == (1, 1)
    with pytest.raises(ValueError, match="nothing to score"):
        target_recovery(np.eye(2), targets, identity(2), size=size, min_size=5)
    with pytest.raises(ValueError, match="nothing to score"):
        target_recovery(np.eye(2), np.zeros((2, 2)), identity(2))


def test_moved_latents_counts_means_and_scales():
    shift = NoiseShift(
        torch.tensor([[0.0, 0, 0], [3, 0, 0], [1, 0.01, 0]]), torch.tensor([[0.0, 0, 0], [0, 0, 0], [0, 0, 1]])
    )
    assert moved_latents(shift).tolist() == [0, 1, 2]

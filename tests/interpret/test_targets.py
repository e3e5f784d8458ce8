"""Effects against the truth's own, target ranks and class AUC against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import pyro_cge as cge
from pyro_cge.errors import ConfigError, DataError
from pyro_cge.interpret import (
    environment_effects,
    gene_programmes,
    latent_similarity,
    relative_effects,
    same_class_auc,
    strongest_latent_effects,
    summarise_ranks,
    target_ranks,
)


def posterior(data, decoder, moves="loc"):
    model = cge.CellModel(cge.DensePrior(data, 5, moves=moves), None, decoder)
    return cge.Posterior(model, cge.AmortizedGuide(model), data, cge.Standardizer.fit(data))


def test_effects_of_a_linear_model_are_its_shift_times_its_weights(data):
    decoder = cge.LinearDecoder(5, data.g)
    post = posterior(data, decoder, "both")  # a change of scale has no effect on the mean of a linear model
    effects = environment_effects(post)
    programmes = gene_programmes(post)
    np.testing.assert_allclose(effects, post.shift().loc.numpy() @ programmes.to_numpy().T, atol=1e-5)
    assert (effects.loc["control"].abs() < 1e-6).all()
    shift = cge.NoiseShift.standard(data.n_envs, 5)
    assert environment_effects(post, shift).abs().to_numpy().max() < 1e-6


def test_effects_of_a_nonlinear_model_are_differences_of_predictions(data):
    post = posterior(data, cge.MLPDecoder(5, data.g))
    with torch.no_grad():
        post.model.decoder.network[-1].weight.mul_(5)
    loc, log_scale = torch.randn(2, data.n_envs, 5) * torch.tensor([[[2.0]], [[0.3]]])
    effects = environment_effects(post, cge.NoiseShift(loc, log_scale), n_pairs=20_000)
    decode, eps = post.model.decoder.mean, torch.randn(2, 100_000, 5)
    with torch.no_grad():
        for e in (0, 7):
            expected = decode(loc[e] + log_scale[e].exp() * eps[0]).mean(0) - decode(eps[1]).mean(0)
            np.testing.assert_allclose(effects.iloc[e], expected * post.scaler.scale, atol=0.05)
            assert expected.abs().max() > 1


def test_strongest_latent_is_blind_to_the_sign_of_latents():
    shifts = pd.DataFrame([[1.0, -3, 2], [0.5, 0, 0.1], [0, 0, 0]], index=["e0", "e1", "e2"], columns=list("abc"))
    programmes = pd.DataFrame(np.arange(12.0).reshape(4, 3) - 5, index=list("wxyz"), columns=list("abc"))
    got = strongest_latent_effects(shifts, programmes)
    np.testing.assert_allclose(got.loc["e0"], -3 * programmes["b"])
    np.testing.assert_allclose(got.loc["e1"], 0.5 * programmes["a"])
    assert not got.loc["e2"].any() and list(got.columns) == list("wxyz")
    sign = np.array([1.0, -1, -1])
    pd.testing.assert_frame_equal(strongest_latent_effects(shifts * sign, programmes * sign), got)
    with pytest.raises(DataError, match="take both from one posterior"):
        strongest_latent_effects(shifts[["a", "b"]], programmes)


def test_relative_effects_leave_the_own_environment_out():
    rng = np.random.default_rng(0)
    effects = pd.DataFrame(rng.normal(5, 2, size=(7, 4)))
    effects.iloc[2, 1] = 50
    got = relative_effects(effects)
    for e, g in itertools.product(range(7), range(4)):
        rest = np.delete(effects[g].to_numpy(), e)
        assert got.iloc[e, g] == pytest.approx((effects.iloc[e, g] - rest.mean()) / rest.std())
    with pytest.raises(DataError, match="got 2 in all"):
        relative_effects(effects.head(2))


EFFECTS = pd.DataFrame(
    [[-5.0, 1, 2, 0], [1.0, 4, 2, 2], [0.0, 0, 0, 0]], index=["e0", "e1", "e2"], columns=["A", "B", "C", "D"]
)


def test_target_ranks_by_hand():
    targets = {"e0": "A", "e1": ["C", "X"], "e2": "B|B|D", "elsewhere": "A"}
    down = target_ranks(EFFECTS, targets, direction="down")
    assert down[["environment", "target", "rank"]].values.tolist() == [
        ["e0", "A", 1.0],
        ["e1", "C", 2.5],
        ["e2", "B", 2.5],
        ["e2", "D", 2.5],
    ]
    assert down["auc"].tolist() == [1.0, 0.5, 0.5, 0.5]
    assert target_ranks(EFFECTS, {"e0": "A"}, direction="up")["rank"].tolist() == [4.0]
    assert target_ranks(EFFECTS, {"e0": "A"})["rank"].tolist() == [1.0]
    column = pd.Series({"e0": "A", "e1": None})
    assert target_ranks(EFFECTS, column)["environment"].tolist() == ["e0"]
    with pytest.raises(DataError, match="no environment has a measured target"):
        target_ranks(EFFECTS, {"e0": "7157"})
    with pytest.raises(ConfigError, match="'lower'"):
        target_ranks(EFFECTS, {"e0": "A"}, direction="lower")


def test_summary_resamples_targets_and_covers():
    """95 % intervals of top-1 over 200 repetitions cover in 88–99 % (binomial failure rate below 1e-4)."""
    rng = np.random.default_rng(0)
    hits = 0
    for repetition in range(200):
        right = np.repeat(rng.random(60) < 0.6, 4)  # four wells of a gene agree
        ranks = pd.DataFrame({"target": np.repeat(np.arange(60), 4), "rank": np.where(right, 1.0, 20.0), "auc": 0.9})
        table = summarise_ranks(ranks, n_boot=200, seed=repetition)
        assert table.loc["top1", "value"] == right.mean()
        hits += table.loc["top1", "low"] <= 0.6 <= table.loc["top1", "high"]
    assert 0.88 <= hits / 200 <= 0.99
    assert table.loc["auc", ["value", "low", "high"]].tolist() == pytest.approx([0.9] * 3)


def test_class_auc_equals_mann_whitney_over_the_allowed_pairs():
    rng = np.random.default_rng(0)
    m = 14
    similarity = rng.normal(size=(m, m)).round(1)
    similarity = similarity + similarity.T
    similarity[2, 5] = similarity[5, 2] = np.nan
    classes = ["a", "a|b", "b", "c", "a", "b", "c", "c", "a", "d", ["a", "d"], "b", "c", "d"]
    items = ["i", "i", "j", "k", "l", "m", "m", "n", "o", "p", "q", "r", "s", "t"]
    got = same_class_auc(similarity, classes, items, n_boot=20)
    sets = [set(c.split("|")) if isinstance(c, str) else set(c) for c in classes]
    same, other = [], []
    for a, b in itertools.combinations(range(m), 2):
        if items[a] != items[b] and not np.isnan(similarity[a, b]):
            (same if sets[a] & sets[b] else other).append(similarity[a, b])
    statistic = stats.mannwhitneyu(same, other).statistic
    assert got.auc == pytest.approx(statistic / (len(same) * len(other)))
    assert (got.n_same, got.n_pairs) == (len(same), len(same) + len(other))
    # Duplicating a whole compound adds pairs with others only, never one with itself: weights 2 and 1.
    assert got.low <= got.high and len(got.draws) == 20
    with pytest.raises(DataError, match="0 of"):
        same_class_auc(similarity, list("abcdefghijklmn"))
    with pytest.raises(DataError, match=r"\[13, 13\]"):
        same_class_auc(similarity, classes[:-1])


def test_class_auc_interval_is_wider_than_one_over_pairs():
    """Pairs share items: with 40 items a binomial interval over 780 pairs would be far too narrow."""
    rng = np.random.default_rng(1)
    labels = rng.integers(4, size=40).astype(str)
    values = rng.normal(size=(40, 3)) + 0.8 * np.eye(4)[labels.astype(int)][:, :3]
    shift = cge.NoiseShift(torch.from_numpy(values), torch.zeros(40, 3).double())
    got = same_class_auc(latent_similarity(shift), list(labels))
    assert 0.5 < got.low < got.auc < got.high
    naive = np.sqrt(1 / (12 * got.n_same))  # sd of an AUC of independent pairs, no effect
    assert got.draws.std() > naive


def test_latent_similarity():
    loc = torch.tensor([[3.0, 0, 0], [1, 0, 0], [-2, 0, 0], [0, 1, 0], [0, 0, 0]])
    shift = cge.NoiseShift(loc, torch.zeros(5, 3))
    got = latent_similarity(shift)
    assert got[0].tolist() == [1, 1, -1, 0, 0] and not got[4].any()
    mixed = cge.NoiseShift(torch.tensor([[1.0, 1], [1, -1]]), torch.zeros(2, 2))
    assert latent_similarity(mixed)[0, 1] == pytest.approx(0)
    assert latent_similarity(mixed, torch.tensor([[1.0, 0], [1, 0]]))[0, 1] == pytest.approx(1)

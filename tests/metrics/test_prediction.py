"""Prediction metrics against numpy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import r2_score

from pyro_cge.metrics import (
    mean_interval,
    pearson_per_profile,
    r2_per_gene,
    r2_per_profile,
    rank_among,
    reconstruction_loss,
    summarise,
    t_interval,
    top_gene_overlap,
)

N, G = 6, 9


@pytest.fixture
def pair():
    x = torch.randn(N, G)
    return x, x + 0.5 * torch.randn(N, G)


def test_reconstruction_loss_is_the_sum_of_squares(pair):
    x, y = pair
    expected = [sum((float(x[i, k]) - float(y[i, k])) ** 2 for k in range(G)) for i in range(N)]
    assert reconstruction_loss(x, y).tolist() == pytest.approx(expected)


def test_pearson_equals_numpys(pair):
    x, y = pair
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(x.numpy(), y.numpy())]
    assert pearson_per_profile(x, y).tolist() == pytest.approx(expected)


def test_r2_equals_scikit_learns(pair):
    x, y = pair
    a, b = x.double().numpy(), y.double().numpy()
    assert r2_per_profile(x, y).tolist() == pytest.approx([r2_score(a[i], b[i]) for i in range(N)])
    assert r2_per_gene(x, y).tolist() == pytest.approx(r2_score(a, b, multioutput="raw_values").tolist())


def test_a_perfect_prediction(pair):
    x, _ = pair
    assert reconstruction_loss(x, x).tolist() == [0] * N
    torch.testing.assert_close(pearson_per_profile(x, x), torch.ones(N, dtype=torch.float64))
    assert (r2_per_profile(x, x) == 1).all() and (r2_per_gene(x, x) == 1).all()


def test_pearson_ignores_scale_and_offset_of_a_profile(pair):
    x, y = pair
    a, b = torch.rand(N, 1) + 0.1, torch.randn(N, 1)
    torch.testing.assert_close(pearson_per_profile(a * x + b, y), pearson_per_profile(x, y), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(pearson_per_profile(-x, y), -pearson_per_profile(x, y))


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -7.7, 1e6, 1e-6])
@pytest.mark.parametrize("g", [3, 7, 10, 49, 978])
def test_constant_profiles_have_no_correlation_and_no_r2(value, g):
    x, y = torch.full((2, g), value), torch.randn(2, g)
    assert pearson_per_profile(x, y).tolist() == [0, 0]
    assert pearson_per_profile(y, x).tolist() == [0, 0]
    assert r2_per_profile(x, y).isnan().all()
    assert r2_per_gene(x.T, y.T).isnan().all()


def test_summary_is_the_mean_of_the_parts(pair):
    x, y = pair
    summary = summarise(x, y)
    assert summary == pytest.approx(
        {
            "sse": float(reconstruction_loss(x, y).mean()),
            "mse": float((x.double() - y.double()).square().mean()),
            "pearson": float(pearson_per_profile(x, y).mean()),
            "r2": float(r2_per_profile(x, y).mean()),
        }
    )


def test_a_constant_profile_does_not_spoil_the_summary(pair):
    x, y = pair
    x = x.clone()
    x[0] = 0.1
    assert np.isfinite(list(summarise(x, y).values())).all()


def test_shapes_that_differ_are_refused(pair):
    x, y = pair
    for metric in (reconstruction_loss, pearson_per_profile, r2_per_profile, r2_per_gene, summarise):
        with pytest.raises(ValueError, match=r"\[6, 9\], predictions \[6, 8\]"):
            metric(x, y[:, 1:])


def test_top_genes_against_sets(pair):
    x, y = pair
    for k in (1, 4, G):
        expected = [
            len(set(np.argsort(-np.abs(a))[:k]) & set(np.argsort(-np.abs(b))[:k])) / k
            for a, b in zip(x.numpy(), y.numpy())
        ]
        assert top_gene_overlap(x, y, k).tolist() == pytest.approx(expected)
    assert (top_gene_overlap(x, -3 * x, 4) == 1).all()  # size counts, not sign
    with pytest.raises(ValueError, match="between 1 and the 9 genes, got 10"):
        top_gene_overlap(x, y, 10)


def test_rank_against_brute_force(pair):
    x, y = pair
    groups = np.array(["a", "b", "a", "b", "a", "c"])
    expected = []
    for i in range(N):
        others = [j for j in range(N) if groups[j] == groups[i] and j != i]
        own = np.corrcoef(x[i], y[i])[0, 1]
        expected.append(np.mean([np.corrcoef(x[i], y[j])[0, 1] < own for j in others]) if others else np.nan)
    np.testing.assert_allclose(rank_among(x, y, groups).numpy(), expected)
    assert rank_among(x, x, groups)[:5].tolist() == [1.0] * 5


def test_rank_of_predictions_that_are_all_the_same_is_chance():
    x = torch.randn(N, G)
    assert rank_among(x, torch.randn(1, G).expand(N, G), np.zeros(N)).tolist() == pytest.approx([0.5] * N)


def test_interval_of_a_mean_covers_it_and_counts_groups_not_profiles():
    """Coverage of 95 % intervals over 200 data sets of 40 groups: outside 0.89 … 0.99 about once in 1,000 runs."""
    rng = np.random.default_rng(0)
    groups, hits, widths = np.repeat(np.arange(40), 5), [], []
    for seed in range(200):
        values = torch.from_numpy(np.repeat(rng.normal(size=40), 5))
        low, high = mean_interval(values, groups, seed=seed, n_draws=400)
        hits.append(low < 0 < high)
        widths.append(high - low)
    assert 0.89 <= np.mean(hits) <= 0.99
    assert np.mean(widths) == pytest.approx(2 * 1.96 / 40**0.5, rel=0.1)
    assert mean_interval(torch.ones(4), ["a", "a", "b", "c"]) == pytest.approx((1, 1))
    with pytest.raises(ValueError, match="groups"):
        mean_interval(torch.ones(4), ["a"])


def test_interval_of_a_mean_of_few_runs_is_students():
    values = np.random.default_rng(0).normal(size=5)
    for level in (0.95, 0.9):
        expected = stats.ttest_1samp(values, 0).confidence_interval(level)
        assert t_interval(values, level=level) == pytest.approx((expected.low, expected.high))
    assert np.isnan(t_interval([1.0])).all()

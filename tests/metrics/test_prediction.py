"""Prediction metrics against numpy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from pyro_cge.metrics import pearson_per_profile, r2_per_gene, r2_per_profile, reconstruction_loss, summarise

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

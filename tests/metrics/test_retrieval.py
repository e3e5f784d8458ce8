"""Retrieval of a cell's other view."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_cge.errors import DataError
from pyro_cge.metrics import retrieval_scores


def brute_force(a, b, k):
    n, hits, fractions = len(a), [], []
    for x, y in ((a, b), (b, a)):
        for i in range(n):
            distance = np.linalg.norm(x[i] - y, axis=1)
            closer = int((distance < distance[i]).sum())
            hits.append(closer < k)
            fractions.append(closer / (n - 1))
    return np.mean(hits), np.mean(fractions)


def test_against_a_loop():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(40, 3))
    b = a + rng.normal(size=a.shape)
    scores = retrieval_scores(a, b, k=(1, 7), metric="euclidean")
    for k in (1, 7):
        knn, foscttm = brute_force(a, b, k)
        assert scores[f"knn_{k}"] == pytest.approx(knn) and scores["foscttm"] == pytest.approx(foscttm)


def test_equal_views_are_perfect_and_cosine_ignores_length():
    a = np.random.default_rng(1).normal(size=(30, 5))
    assert retrieval_scores(a, a, k=(1,)) == {"knn_1": 1.0, "foscttm": 0.0}
    b = a * np.random.default_rng(2).uniform(0.5, 2, size=(30, 1))
    assert retrieval_scores(a, b, k=(1,)) == {"knn_1": 1.0, "foscttm": 0.0}


def test_a_view_that_says_nothing_is_at_chance():
    a = np.random.default_rng(3).normal(size=(31, 4))
    scores = retrieval_scores(a, np.zeros_like(a), k=(5,))
    assert scores["foscttm"] == pytest.approx(0.5)


def test_bad_input():
    a = np.zeros((4, 2))
    for b in (np.zeros((5, 2)), np.zeros((4, 3))):
        with pytest.raises(DataError, match="same cells"):
            retrieval_scores(a, b)
    with pytest.raises(DataError, match="finite"):
        retrieval_scores(a, np.full((4, 2), np.nan))

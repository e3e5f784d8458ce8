"""Plots of imputed effects show what they are given."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from pyro_cge import plots
from pyro_cge.errors import DataError
from pyro_cge.imputation import Effects


@pytest.fixture(autouse=True)
def never_show(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *_, **__: pytest.fail("a plot called show"))


@pytest.fixture
def effects():
    x = np.array([[3.0, 4.0], [1.0, 1.0], [0.0, 2.0]])
    return Effects(x, [0, 1, 1], [1, 0, 1], ["a", "b"], ["u", "v", "w"], ["p", "q"])


def test_pair_map_puts_the_fullest_first(effects):
    ax = plots.pair_map(effects)
    drawn = np.ma.filled(ax.images[0].get_array(), np.nan)
    root = np.sqrt
    assert np.allclose(drawn, [[root(2), 1, np.nan], [root(12.5), np.nan, np.nan]], equal_nan=True)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["b", "a"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["v", "u", "w"]


def test_pair_map_fills_the_blanks(effects):
    ax = plots.pair_map(effects, [1.0, 2.0, 3.0])  # a/u, a/w, b/w
    over = np.ma.filled(ax.images[1].get_array(), np.nan)
    assert np.allclose(over, [[np.nan, np.nan, 3], [np.nan, 1, 2]], equal_nan=True)
    with pytest.raises(DataError, match="each of 3 pairs"):
        plots.pair_map(effects, [1.0])


def test_scores_are_sorted_and_show_their_range():
    table = pd.DataFrame({"r": [0.1, 0.3, 0.6]}, index=["mean", "mean", "gp"])
    ax = plots.imputation_scores(table)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["mean", "gp"]
    assert np.allclose(ax.collections[1].get_offsets(), [[0.2, 0], [0.6, 1]])
    assert np.allclose(ax.collections[0].get_segments()[0][:, 0], [0.1, 0.3])
    with pytest.raises(DataError, match="no column 'r2'"):
        plots.imputation_scores(table, "r2")


def test_signature_shows_the_surest_genes_with_their_intervals():
    mean = pd.Series([2.0, -3.0, 0.1], index=["p", "q", "s"])
    ax = plots.imputed_signature(mean, [1.0, 1.0, 1.0], true=[1.5, -2.0, 0.0], most=2)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["p", "q"]
    assert np.allclose(ax.collections[1].get_offsets(), [[0, 2], [1, -3]])
    assert np.allclose(ax.collections[2].get_offsets(), [[0, 1.5], [1, -2]])
    low, high = ax.collections[0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((2 - 1.6449, 2 + 1.6449), abs=1e-3)
    with pytest.raises(DataError, match="one number a gene"):
        plots.imputed_signature([1.0], [1.0, 2.0])

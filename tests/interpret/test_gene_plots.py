"""Plots of programmes and enrichment: what is drawn is what the tables say."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from pyro_cge import plots
from pyro_cge.errors import DataError
from pyro_cge.interpret import over_representation, rank_enrichment

GENES = [f"g{k}" for k in range(40)]
SETS = {"high in 1": GENES[:8], "low in 2": GENES[30:], "nothing": GENES[::5]}


@pytest.fixture(autouse=True)
def never_show(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *_, **__: pytest.fail("a plot called show"))


@pytest.fixture
def table():
    values = 0.1 * np.random.default_rng(0).normal(size=(40, 12))
    values[:8, 1] += 2
    values[30:, 10] -= 1
    return pd.DataFrame(values, index=GENES, columns=[f"latent {j}" for j in range(12)])


def test_programmes_are_signed_bars_of_the_top_genes(table):
    axes = plots.programmes(table, ["latent 1", "latent 10"], n=5)
    plt.gcf().canvas.draw()
    assert [ax.get_title() for ax in axes] == ["latent 1", "latent 10"]
    for ax, latent, sign in zip(axes, ["latent 1", "latent 10"], [1, -1], strict=True):
        widths = [bar.get_width() for bar in ax.patches]
        names = [label.get_text() for label in ax.get_yticklabels()]
        assert names == list((sign * table[latent]).nlargest(5).index[::sign])
        np.testing.assert_allclose(widths, table.loc[names, latent])
    default = plots.programmes(table)
    assert {"latent 1", "latent 10"} <= {ax.get_title() for ax in default} and len(default) == 6
    given = plt.subplots()[1]
    assert plots.programmes(table, ["latent 0"], axes=[given])[0] is given


@pytest.mark.parametrize("test", [rank_enrichment, lambda *a: over_representation(*a, n=8)])
def test_enrichment_draws_the_significant_pairs(table, test):
    result = test(table, SETS)
    ax = plots.enrichment(result, max_q=0.01)
    ax.get_figure().canvas.draw()
    [dots] = ax.collections
    x, y = ([label.get_text() for label in labels] for labels in (ax.get_xticklabels(), ax.get_yticklabels()))
    drawn = {(x[int(i)], y[int(j)]): value for (i, j), value in zip(dots.get_offsets(), dots.get_array(), strict=True)}
    expected = result[result["q"] <= 0.01]
    assert set(drawn) == set(zip(expected["latent"].str.removeprefix("latent "), expected["set"], strict=True))
    assert drawn["1", "high in 1"] > 0 > drawn["10", "low in 2"]
    assert x == sorted(x, key=int)
    few = plots.enrichment(result, max_q=0.01, n_latents=1, n_sets=1)
    assert [t.get_text() for t in few.get_xticklabels()] == [result["latent"].iloc[0].removeprefix("latent ")]
    assert [t.get_text() for t in few.get_yticklabels()] == [result["set"].iloc[0]]
    with pytest.raises(DataError, match="no set reaches"):
        plots.enrichment(result, max_q=1e-30)

"""Edges ranked from knock-outs, one profile each."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pyro_cge.discovery import KnockoutRanking
from pyro_cge.errors import ConfigError, DataError
from pyro_cge.metrics import edge_aupr

NOISE = 0.03


def knocked(W, seed, levels=(0.0, 0.5)):
    """Steady states around 1 of a linear system; each gene set to a share of its level, in turn, and four wild types."""
    rng = np.random.default_rng(seed)
    d = len(W)
    rows, targets = [], []
    for level in levels:
        for i in range(d):
            cut = W.copy()
            cut[:, i] = 0
            start = np.zeros(d)
            start[i] = level - 1
            rows.append(1 + start @ np.linalg.inv(np.eye(d) - cut))
            targets.append(f"g{i}")
    rows += [np.ones(d)] * 4
    x = np.array(rows) + NOISE * rng.standard_normal((len(rows), d))
    return pd.DataFrame(x, columns=[f"g{j}" for j in range(d)]), [*targets, *[None] * 4]


def random_graph(d, seed):
    rng = np.random.default_rng(seed)
    order = rng.permutation(d)
    W = np.triu(rng.random((d, d)) < 2 / d, 1) * rng.uniform(0.5, 0.9, (d, d)) * rng.choice([-1, 1], (d, d))
    return W[np.ix_(order, order)]


def test_direct_effects_come_before_those_they_explain():
    W = np.diag([0.8] * 11, 1)
    W[[2, 5, 8], [3, 6, 9]] = 0  # four chains of three
    model = KnockoutRanking().fit(*knocked(W, 0))
    for j in np.flatnonzero(W.any(0)):
        assert model.scores_[:, j].argmax() == j - 1
        assert 0.6 < model.weights_[j - 1, j] < 0.9, "0.8, shrunk"
    for i in (0, 3, 6, 9):
        assert model.scores_[i + 1, i + 2] > 2 * model.scores_[i, i + 2], (
            "the effect on the last goes through the second"
        )
        assert model.total_[i, i + 2] > 0.6 * model.total_[i + 1, i + 2], "though in all it is nearly as large"
    np.testing.assert_allclose(model.baseline_, 1, atol=2 * NOISE)
    assert (model.total_[W != 0] > 0).all(), "less of the cause, less of the effect"


@pytest.mark.parametrize("seed", range(3))
def test_ranking_beats_total_effects(seed):
    rng = np.random.default_rng(seed)
    W = np.triu(rng.random((30, 30)) < 0.12, 1) * rng.uniform(0.4, 0.9, (30, 30)) * rng.choice([-1, 1], (30, 30))
    model = KnockoutRanking().fit(*knocked(W, seed))
    total, ranked = edge_aupr(model.total_, W), edge_aupr(model.scores_, W)
    assert ranked > total + 0.03 and ranked > 0.6, (ranked, total)


def test_feedback_is_found_both_ways():
    W = np.zeros((6, 6))
    W[0, 1], W[1, 0], W[1, 2], W[2, 3] = 0.8, -0.6, 0.7, 0.7
    model = KnockoutRanking().fit(*knocked(W, 0))
    assert edge_aupr(model.scores_, W) == 1
    assert model.total_[1, 0] < 0 < model.total_[0, 1]


def test_units_and_order_of_genes_do_not_matter():
    W = random_graph(10, 1)
    x, targets = knocked(W, 1)
    model = KnockoutRanking().fit(x, targets)
    scale = np.geomspace(0.1, 100, 10)
    # The floor of the noise is shared by all genes: equal up to that.
    other = KnockoutRanking().fit(x.iloc[:, ::-1], targets)
    np.testing.assert_allclose(other.scores_[::-1, ::-1], model.scores_, atol=1e-6)
    same = KnockoutRanking().fit(x * 7.0, targets)
    np.testing.assert_allclose(same.scores_, model.scores_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(same.baseline_, 7 * model.baseline_)
    np.testing.assert_allclose(same.weights_, model.weights_, atol=1e-9)
    assert edge_aupr(KnockoutRanking().fit(x * scale, targets).scores_, W) > 0.5


def test_positions_will_do_and_genes_never_perturbed_cause_nothing():
    W = random_graph(8, 2)
    x, targets = knocked(W, 2)
    kept = [k for k, target in enumerate(targets) if target != "g3"]
    positions = [None if targets[k] is None else int(targets[k][1:]) for k in kept]
    by_place = KnockoutRanking().fit(x.to_numpy()[kept], positions)
    by_name = KnockoutRanking().fit(x.iloc[kept], [targets[k] for k in kept])
    np.testing.assert_array_equal(by_place.scores_, by_name.scores_)
    assert (by_name.scores_[3] == 0).all() and (np.diag(by_name.scores_) == 0).all()


def test_wrong_input_is_refused():
    x, targets = knocked(random_graph(5, 0), 0)
    with pytest.raises(DataError, match=r"one gene \(or None\) a profile, \[14\], got 3"):
        KnockoutRanking().fit(x, targets[:3])
    with pytest.raises(DataError, match="no genes: \\['nothing'\\]"):
        KnockoutRanking().fit(x, ["nothing", *targets[1:]])
    with pytest.raises(DataError, match="at least two different genes"):
        KnockoutRanking().fit(x, ["g0", *[None] * 13])
    with pytest.raises(DataError, match="not finite"):
        KnockoutRanking().fit(x.where(x < x.iloc[0, 1]), targets)
    with pytest.raises(ConfigError, match="keep"):
        KnockoutRanking(keep=-1)


def test_dream4_is_above_the_z_score(real_data):
    """An in-silico network of the challenge: average precision above the z-scores'."""
    with np.load(real_data / "causal" / "dream4_insilico_size100_1.npz") as z:
        truth, x = z["adjacency"], np.vstack([z["knockouts"], z["knockdowns"], z["wildtype"]])
    model = KnockoutRanking().fit(x, [*range(100), *range(100), None])
    assert edge_aupr(model.scores_, truth) > edge_aupr(model.total_, truth) + 0.02

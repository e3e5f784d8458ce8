"""Compiled scores against least squares, and profiled targets against all subsets."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from pyro_cge.discovery.compiled.moves import best_addition, best_removal
from pyro_cge.discovery.compiled.scores import fresh_memo, local_score, remembered_score, score_tables
from pyro_cge.discovery.inputs import samples

EDGE, TARGET, ONCE = 3.0, 2.5, 1.5


def prices(environments, edge=EDGE, d=5):
    return np.full((d, d), edge), np.full(environments, TARGET), ONCE, np.zeros((environments, d), dtype=np.int8)


def problem(seed, environments, n=60, d=5):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n * environments, d))
    for j in range(1, d):
        x[:, j] += x[:, :j] @ rng.normal(size=j)
    env = np.repeat(np.arange(environments), n)
    for e in range(1, environments):
        rows, j = env == e, rng.integers(d)
        x[rows, j] = 2.0 * x[rows, j] + rng.normal(1.5)
    return samples(x, env if environments > 1 else None, control=0 if environments > 1 else None)


def log_likelihood(data, rows, node, parents):
    x = data.scaled
    design = np.c_[x[np.ix_(rows, parents)], np.ones(rows.sum())]
    residual = x[rows, node] - design @ np.linalg.lstsq(design, x[rows, node], rcond=None)[0]
    return -0.5 * rows.sum() * (math.log(residual @ residual / rows.sum()) + 1)


def score(data, node, parents, targets=None):
    chosen = np.zeros(len(data.sizes), dtype=bool)
    padded = np.append(np.array(parents, dtype=np.int64), [0, 0])
    value = local_score(data.grams(), data.sizes, node, padded, len(parents), prices(len(data.sizes)), chosen)
    return value, chosen


@pytest.mark.parametrize("parents", [[], [0], [0, 1, 3]])
def test_one_environment_is_least_squares(parents):
    data = problem(0, 1)
    expected = log_likelihood(data, data.env == 0, 4, parents) - EDGE * len(parents)
    assert score(data, 4, parents)[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_targets_are_the_best_subset(seed):
    """Against all 2⁴ subsets of the environments that could be targets."""
    data = problem(seed, 5)
    for node, parents in ((4, [0, 1]), (2, []), (3, [0, 1, 2])):
        found, chosen = score(data, node, parents)
        values = {}
        for targets in itertools.product((False, True), repeat=4):
            alone = np.array((False, *targets))
            value = log_likelihood(data, ~alone[data.env], node, parents) - EDGE * len(parents)
            value += sum(
                log_likelihood(data, data.env == e, node, parents) - TARGET * (len(parents) + 2) - ONCE
                for e in np.flatnonzero(alone)
            )
            values[tuple(alone)] = value
        assert found == pytest.approx(values[tuple(chosen)], abs=1e-2), "the score is that of the targets it names"
        assert found == pytest.approx(max(values.values()), abs=1e-2), "and no other targets are better"


@pytest.mark.parametrize("environments", [1, 4])
def test_additions_and_removals_are_the_best_ones(environments):
    data = problem(3, environments)
    grams, sizes, scratch = data.grams(), data.sizes, np.zeros(environments, dtype=bool)
    parents = np.array([0, 1, 0, 0], dtype=np.int64)
    now, _ = score(data, 4, [0, 1])
    value, chosen = best_addition(
        grams, sizes, 4, parents, 2, np.array([2, 3]), prices(environments), now, scratch, fresh_memo(5)
    )
    options = {i: score(data, 4, [0, 1, i])[0] for i in (2, 3)}
    best = max(options, key=options.get)
    assert (value, chosen) == (pytest.approx(options[best], abs=1e-5), best) if options[best] > now else chosen == -1
    full, _ = score(data, 4, [0, 1, 2, 3])
    parents = np.array([0, 1, 2, 3, 0], dtype=np.int64)
    kept, dear = np.zeros(5, dtype=bool), prices(environments, 50.0)
    value, place = best_removal(
        grams, sizes, 4, parents, 4, kept, dear, full - 4 * (50.0 - EDGE), scratch, fresh_memo(5)
    )
    scratch_score = [
        local_score(grams, sizes, 4, np.append(np.delete([0, 1, 2, 3], a), 0), 3, dear, scratch) for a in range(4)
    ]
    assert place == int(np.argmax(scratch_score)) and value == pytest.approx(max(scratch_score), abs=1e-4)
    kept[:] = True
    assert best_removal(grams, sizes, 4, parents, 4, kept, dear, full, scratch, fresh_memo(5))[1] == -1


def test_each_edge_has_its_own_price():
    data, scratch = problem(1, 1), np.zeros(1, dtype=bool)
    edge, target, once, known = prices(1)
    edge[0, 4], edge[1, 4] = 1.0, 200.0
    parents = np.array([0, 1, 0], dtype=np.int64)
    with_prices = local_score(data.grams(), data.sizes, 4, parents, 2, (edge, target, once, known), scratch)
    assert with_prices == pytest.approx(score(data, 4, [0, 1])[0] + 2 * EDGE - 201.0)
    now = local_score(data.grams(), data.sizes, 4, parents, 0, (edge, target, once, known), scratch)
    value, chosen = best_addition(
        data.grams(), data.sizes, 4, parents, 0, np.arange(4), (edge, target, once, known), now, scratch, fresh_memo(5)
    )
    options = {i: score(data, 4, [i])[0] + EDGE - edge[i, 4] for i in range(4)}
    assert chosen == max(options, key=options.get) and value == pytest.approx(options[chosen], abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_known_targets_are_kept(seed):
    data, chosen = problem(seed, 4), np.zeros(4, dtype=bool)
    edge, target, once, known = prices(4)
    known[1, 3], known[2, 3] = 2, 1
    parents = np.array([0, 1, 0], dtype=np.int64)
    value = local_score(data.grams(), data.sizes, 3, parents, 2, (edge, target, once, known), chosen)
    assert chosen[1] and not chosen[2]
    free, _ = score(data, 3, [0, 1])
    assert value <= free + 1e-9
    options = []
    for last in (False, True):
        alone = np.array([False, True, False, last])
        options.append(
            log_likelihood(data, ~alone[data.env], 3, [0, 1])
            - 2 * EDGE
            + sum(log_likelihood(data, data.env == e, 3, [0, 1]) - 4 * TARGET - ONCE for e in np.flatnonzero(alone))
        )
    assert value == pytest.approx(max(options), abs=1e-2)


def test_tables_hold_every_subset():
    data = problem(2, 3)
    near, counts = np.array([[1, 2], [0, 2], [4, 0], [0, 1], [2, 3]]), np.array([2, 1, 2, 0, 2])
    table = score_tables(data.grams(), data.sizes, near, counts, prices(3))
    assert table[4, 3] == score(data, 4, [2, 3])[0] and table[4, 2] == score(data, 4, [3])[0]
    assert table[1, 0] == score(data, 1, [])[0] and np.isneginf(table[1, 2]) and np.isneginf(table[3, 1])


def test_what_is_remembered_is_the_score():
    """With a memo of four slots, entries take each other's place, and nothing is ever another set's score."""
    data, memo, scratch = problem(0, 3), fresh_memo(5, slots=4), np.zeros(3, dtype=bool)
    for _ in range(3):
        for parents in ([0], [0, 1], [1, 0], [2, 3, 0], []):
            padded = np.array([*parents, 0, 0])
            found = remembered_score(data.grams(), data.sizes, 4, padded, len(parents), prices(3), scratch, memo)
            assert found == pytest.approx(score(data, 4, parents)[0], abs=1e-9)


@pytest.mark.parametrize(("cells", "parents"), [(2, 1), (3, 2), (5, 4), (9, 8), (12, 8), (30, 4)])
def test_few_cells_are_no_targets_by_overfitting(cells, parents):
    """Nothing is intervened on; 100 small environments, at most 3 % of them targets (chance at this price: about 1 %)."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500 + 100 * cells, 9))
    x[:, 8] += x[:, :8].sum(1)
    env = np.r_[np.zeros(500, dtype=int), np.repeat(np.arange(1, 101), cells)]
    data, chosen = samples(x, env, control=0), np.zeros(101, dtype=bool)
    fair = np.full((9, 9), 3.0), 0.5 * np.log(data.sizes), math.log(8), np.zeros((101, 9), dtype=np.int8)
    padded = np.append(np.arange(parents), 0)
    local_score(data.grams(), data.sizes, 8, padded, parents, fair, chosen)
    assert chosen.sum() <= 3
    fair[3][1, 8] = 2  # known: kept, however few its samples
    assert np.isfinite(local_score(data.grams(), data.sizes, 8, padded, parents, fair, chosen)) and chosen[1]

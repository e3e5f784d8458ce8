"""The compiled parts of the large search against dense linear algebra."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pyro_cge.discovery.compiled.candidates import blocks_of, forward, related
from pyro_cge.discovery.compiled.sparse_order import _sweep, least_variance_first, search


def columns(seed, n=200, d=12):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    for j in range(1, d):
        x[:, j] += x[:, :j] @ (rng.normal(size=j) * (rng.random(j) < 0.3))
    return (x - x.mean(0)) / x.std(0)


def left(x, j, regressors):
    """Residual sum of squares."""
    block = x[:, list(regressors)]
    return float(((x[:, j] - block @ np.linalg.lstsq(block, x[:, j], rcond=None)[0]) ** 2).sum())


def complete(d):
    """Candidates: all others."""
    near = np.concatenate([np.delete(np.arange(d), v) for v in range(d)])
    start = np.arange(d + 1) * (d - 1)
    node = np.repeat(np.arange(d), d - 1)
    back = np.searchsorted(node * d + near, near * d + node) - start[near]
    return start, near, back


@pytest.mark.parametrize("seed", range(3))
def test_forward_regression_is_greedy(seed):
    x, price = columns(seed), 4.0
    n, d = x.shape
    place, limit = np.random.default_rng(seed).permutation(d).astype(float), np.full(d, d / 2)
    found, nodes = forward(x.T @ x, float(n), price, 4, place, limit)
    for j in range(d):
        chosen: list[int] = []
        allowed = [i for i in range(d) if i != j and place[i] < limit[j]]
        while len(chosen) < 4:
            options = [(left(x, j, [*chosen, i]), i) for i in allowed if i not in chosen]
            if not options or n / 2 * np.log(left(x, j, chosen) / min(options)[0]) < price:
                break
            chosen.append(min(options)[1])
        assert found[nodes == j].tolist() == chosen


def test_related_are_those_with_partial_correlation():
    x, price = columns(1), 2.0
    n, d = x.shape
    parents = [[i for i in (j - 1, j - 3) if i >= 0] for j in range(d)]
    start = np.cumsum([0, *map(len, parents)])
    found, nodes = related(x.T @ x, float(n), price, 3, start, np.concatenate(parents).astype(np.int64))
    for j in range(d):
        gains = {
            i: n / 2 * np.log(left(x, j, parents[j]) / left(x, j, [*parents[j], i]))
            for i in range(d)
            if i != j and i not in parents[j]
        }
        best = sorted((i for i in gains if gains[i] > price), key=lambda i: -gains[i])[:3]
        assert found[nodes == j].tolist() == best


def test_blocks_and_sweeps():
    x = columns(0, d=5)
    gram, scale = x.T @ x, np.arange(1.0, 6.0)
    start, near, _ = complete(5)
    offset, flat = blocks_of(gram, scale, start, near)
    block = flat[offset[2] : offset[3]].reshape(5, 5)
    rows = [0, 1, 3, 4, 2]
    expected = gram[np.ix_(rows, rows)] * np.outer(scale[rows], scale[rows])
    np.testing.assert_allclose(block, expected)
    a = block.copy()
    _sweep(a, 0, False)
    _sweep(a, 3, False)
    coefficients = np.linalg.solve(expected[np.ix_([0, 3], [0, 3])], expected[[0, 3], 4])
    np.testing.assert_allclose(a[[0, 3], 4], coefficients)
    assert a[4, 4] == pytest.approx(expected[4, 4] - coefficients @ expected[[0, 3], 4])
    _sweep(a, 0, True)
    _sweep(a, 3, True)
    np.testing.assert_allclose(a, expected, rtol=1e-10)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_best_of_all_graphs_is_found(noise):
    """Orders and parent sets of four nodes by enumeration, ten problems; one local optimum is allowed."""
    edge, right, d = 5.0, 0, 4
    start, near, back = complete(d)
    none = np.zeros(len(near), dtype=bool)
    for seed in range(10):
        x = columns(seed, d=d)
        n = len(x)
        offset, flat = blocks_of(x.T @ x, np.ones(d), start, near)
        net = (start, near, back, offset, flat, none, none.copy())
        label, chosen = np.random.default_rng(seed).permutation(d).astype(float), none.copy()
        score = search(net, (float(n), edge, noise, d), label, chosen, 3, 0)

        def local(j, parents, x=x, n=n):
            rss = left(x, j, parents)
            return (-rss / 2 / noise if noise else -n / 2 * np.log(rss / n)) - edge * len(parents)

        graph = [near[start[j] : start[j + 1]][chosen[start[j] : start[j + 1]]] for j in range(d)]
        assert all(label[i] < label[j] for j in range(d) for i in graph[j])
        np.testing.assert_allclose(score, [local(j, graph[j]) for j in range(d)], rtol=1e-8, atol=1e-8)
        best = {
            (j, before): max(local(j, s) for k in range(len(before) + 1) for s in itertools.combinations(before, k))
            for j in range(d)
            for r in range(d)
            for before in itertools.combinations([i for i in range(d) if i != j], r)
        }
        highest = max(
            sum(best[j, tuple(sorted(order[:q]))] for q, j in enumerate(order))
            for order in itertools.permutations(range(d))
        )
        assert score.sum() <= highest + 1e-6
        right += score.sum() > highest - 1e-5
    assert right >= 9


def test_least_variance_goes_up_a_chain():
    rng = np.random.default_rng(0)
    x = np.cumsum(rng.normal(size=(2000, 6)), 1)[:, [3, 0, 5, 1, 4, 2]]
    x -= x.mean(0)
    start, near, back = complete(6)
    offset, flat = blocks_of(x.T @ x, np.ones(6), start, near)
    none = np.zeros(len(near), dtype=bool)
    order = least_variance_first((start, near, back, offset, flat, none, none), float(len(x)))
    assert order.tolist() == [1, 3, 5, 0, 4, 2]

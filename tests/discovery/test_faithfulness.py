"""Margins against all conditioning sets one by one; shares against closed forms and quadrature."""

from __future__ import annotations

import itertools
import math

import networkx as nx
import numpy as np
import pytest

from pyro_cge.discovery import d_separated, faithfulness_margin, unfaithful_share
from pyro_cge.errors import ConfigError


def random_weights(seed, d, density=0.5):
    rng = np.random.default_rng(seed)
    order = rng.permutation(d)
    W = np.triu(rng.uniform(-1, 1, (d, d)) * (rng.random((d, d)) < density), 1)
    return W[np.ix_(order, order)]


def one_by_one(W, adjacent):
    """Partial correlations by inverting the covariance of each set of genes, separation by networkx."""
    d = len(W)
    graph = nx.from_numpy_array((W != 0).astype(int), create_using=nx.DiGraph)
    total = np.linalg.inv(np.eye(d) - W)
    covariance, most = total.T @ total, max(dict(graph.degree).values())
    found = [math.inf]
    for i, j in itertools.combinations(range(d), 2):
        rest = [k for k in range(d) if k not in (i, j)]
        for size in range(len(rest) + 1):
            for given in itertools.combinations(rest, size):
                if adjacent and (size > most or not (W[i, j] or W[j, i])):
                    continue
                if not d_separated(graph, i, j, given):
                    rows = [i, j, *given]
                    inverse = np.linalg.inv(covariance[np.ix_(rows, rows)])
                    found.append(abs(inverse[0, 1]) / math.sqrt(inverse[0, 0] * inverse[1, 1]))
    return min(found)


@pytest.mark.parametrize("condition", ["strong", "adjacency"])
@pytest.mark.parametrize("d", [2, 3, 4, 5])
def test_margins_are_the_smallest_of_all(d, condition):
    models = np.stack([random_weights(seed, d) for seed in range(25)])
    expected = [one_by_one(W, condition == "adjacency") for W in models]
    np.testing.assert_allclose(faithfulness_margin(models, condition=condition), expected, rtol=1e-6)
    assert faithfulness_margin(models[3], condition=condition) == pytest.approx(expected[3], rel=1e-6)


def test_exact_zeros_of_separation_do_not_count_and_exact_cancellation_does():
    chain = np.array([[0, 0.5, 0], [0, 0, 0.5], [0, 0, 0]])
    assert faithfulness_margin(chain) > 0.1, "x0 and x2 given x1 are separated"
    cancels = np.array([[0, 0.5, -0.25], [0, 0, 0.5], [0, 0, 0]])
    assert faithfulness_margin(cancels) < 1e-15
    assert faithfulness_margin(cancels, condition="adjacency") < 1e-15
    assert faithfulness_margin(np.zeros((3, 3))) == math.inf


def test_two_genes_have_a_closed_form():
    """``|w| / √(1 + w²) ≤ λ``: a share of ``q λ / √(1 − λ²)``, within the interval of a level that fails 1 time in 10⁴."""
    for q in (0.4, 1.0):
        table = unfaithful_share(2, q, levels=[0.3, 0.1], draws=20_000)
        for _, row in table.iterrows():
            exact = q * row.level / math.sqrt(1 - row.level**2)
            assert abs(row.share - exact) < 4 * math.sqrt(exact * (1 - exact) / 20_000)


def test_a_chain_of_three_against_quadrature():
    """Both edges certain, no third: ``P(min of five partial correlations ≤ λ)`` over the square of weights."""

    def smallest(a, b):
        v1, v2 = 1 + a * a, 1 + b * b * (1 + a * a)
        pairs = a / np.sqrt(v1), b * np.sqrt(v1 / v2), a * b / np.sqrt(v2)
        given = a / np.sqrt(1 + a * a + b * b), b / np.sqrt(1 + b * b)  # (x0, x1 | x2), (x1, x2 | x0)
        return np.minimum.reduce(np.broadcast_arrays(*pairs, *given))

    grid = np.linspace(0, 1, 801)[1:] - 1 / 1600
    exact = (smallest(grid[:, None], grid) <= 0.2).mean()
    rng = np.random.default_rng(0)
    W = np.zeros((20_000, 3, 3))
    W[:, 0, 1], W[:, 1, 2] = rng.uniform(-1, 1, (2, 20_000))
    share = (faithfulness_margin(W) <= 0.2).mean()
    assert abs(share - exact) < 4 * math.sqrt(exact * (1 - exact) / 20_000) + 1e-3


def test_more_edges_and_larger_levels_are_worse_and_the_weaker_condition_better():
    table = unfaithful_share(5, [1.0, 2.0, 4.0], draws=2000)
    shares = table.pivot(index="neighbours", columns="level", values="share")
    assert (np.diff(shares, axis=0) > 0).all() and (np.diff(shares, axis=1) > 0).all()
    weaker = unfaithful_share(5, [1.0, 2.0, 4.0], draws=2000, condition="adjacency")
    assert (weaker.share <= table.share).all() and weaker.share.sum() < table.share.sum()
    assert ((table.low <= table.share) & (table.share <= table.high)).all()


def test_the_same_seed_gives_the_same_shares():
    one, two, other = (unfaithful_share(4, 2.0, draws=500, random_state=s) for s in (1, 1, 2))
    assert one.equals(two) and not one.equals(other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d": 20, "neighbours": 2}, "2 to 16 genes, got 20"),
        ({"d": 4, "neighbours": 5}, "at most d − 1 = 3"),
        ({"d": 4, "neighbours": [1, 0]}, "above 0"),
        ({"d": 4, "neighbours": 1, "levels": [1.5]}, "levels"),
        ({"d": 4, "neighbours": 1, "condition": "weak"}, "'strong', 'adjacency'"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        unfaithful_share(**arguments, draws=10)


def test_cycles_are_refused():
    with pytest.raises(ConfigError, match="cycle"):
        faithfulness_margin(np.array([[0, 1.0], [1.0, 0]]))

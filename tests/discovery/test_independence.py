"""Tests of independence and invariance: closed forms, uniform under the null, and power."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from scipy import stats

from pyro_cge.discovery import KernelTests, LinearTests, OracleTests
from pyro_cge.discovery.independence import fisher_z, kernel_independence
from pyro_cge.discovery.inputs import samples
from pyro_cge.errors import ConfigError

FAILURE = 1e-4  # probability that a statistical test here fails by chance, seeds aside


def confounded(rng, n=200, link=np.tanh):
    """``x`` and ``y`` depend on ``z`` only."""
    z = rng.normal(size=n)
    return np.c_[link(z) + rng.normal(size=n), link(z) + rng.normal(size=n), z]


def test_partial_correlation_is_that_of_residuals():
    x = samples(np.random.default_rng(0).normal(size=(60, 5)) @ np.random.default_rng(1).normal(size=(5, 5)))
    p = LinearTests(x).independence(0, [1, 2, 3])
    for place, (other, given) in enumerate(((1, [2, 3]), (2, [1, 3]), (3, [1, 2]))):
        design = np.c_[x.x[:, given], np.ones(60)]
        left = [v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (x.x[:, 0], x.x[:, other])]
        z = np.sqrt(60 - 2 - 3) * np.arctanh(np.corrcoef(left)[0, 1])
        assert p[place] == pytest.approx(2 * stats.norm.sf(abs(z)), rel=1e-5)


def test_invariance_is_chow_and_variance_ratio():
    rng = np.random.default_rng(3)
    x, env = rng.normal(size=(70, 3)), np.repeat([0, 1], [40, 30])
    x[env == 1, 2] *= 1.4
    design = np.c_[x[:, :2], np.ones(70)]

    def left(rows):
        return np.linalg.lstsq(design[rows], x[rows, 2], rcond=None)[1][0]

    one, two, both = left(env == 0), left(env == 1), left(env >= 0)
    equal = stats.f.sf((both - one - two) / 3 / ((one + two) / 64), 3, 64)
    ratio = stats.f.cdf(two / 27 / (one / 37), 27, 37)
    expected = 1 - (1 - min(equal, 2 * min(ratio, 1 - ratio))) ** 2
    assert LinearTests(samples(x, env)).invariance(2, [0, 1])[0] == pytest.approx(expected, rel=1e-4)


def test_linear_p_values_are_uniform_under_the_null():
    rng = np.random.default_rng(0)
    p = np.empty((600, 3))
    for row in p:
        n = 60
        data = samples(confounded(rng, 2 * n, link=lambda z: z), np.repeat([0, 1], n))
        tests = LinearTests(data)
        row[:] = tests.independence(0, [1, 2])[0], tests.invariance(0, [2])[0], tests.invariance(0, [])[0]
    for column in p.T:
        assert stats.kstest(column, "uniform").pvalue > FAILURE


@pytest.mark.parametrize("link", [np.tanh, np.square])
def test_kernel_p_values_hold_their_level_under_the_null(link):
    """``x ⟂ y | z``: at most as many rejections as the level allows, and not a test that never rejects."""
    rng = np.random.default_rng(0)
    p = [kernel_independence(x[:, :1], x[:, 1:2], x[:, 2:]) for x in (confounded(rng, 150, link) for _ in range(200))]
    for level in (0.05, 0.2):
        assert sum(value < level for value in p) <= stats.binom.isf(FAILURE, 200, level)
    assert min(p) < 0.1, "of 200 values; if none is below, the test is not a test"


def test_kernel_p_values_are_uniform_without_a_condition():
    rng = np.random.default_rng(1)
    p = [kernel_independence(*rng.normal(size=(2, 100, 1))) for _ in range(300)]
    two = [kernel_independence(rng.normal(size=(100, 1)), np.repeat([0.0, 1.0], 50)[:, None]) for _ in range(300)]
    for values in (p, two):
        assert stats.kstest(values, "uniform").pvalue > FAILURE


def test_kernel_tests_see_what_linear_tests_cannot():
    """Each effect in 20 data sets: found at level 0.01 in at least 18 by kernels, in at most 6 by partial correlation."""
    rng = np.random.default_rng(0)
    found = np.zeros((2, 2), dtype=int)
    for _ in range(20):
        x = rng.normal(size=(200, 3))
        x[:, 1] = np.cos(2 * x[:, 0]) + x[:, 2] + 0.3 * x[:, 1]  # dependent given x2
        one = samples(x)
        env = np.repeat([0, 1], 200)
        y = rng.normal(size=(400, 2))
        y[:, 1] = np.where(env == 0, np.abs(y[:, 0]), 0.8 - 0.5 * y[:, 0] ** 2) + 0.5 * y[:, 1]
        y[env == 1, 1] += y[env == 0, 1].mean() - y[env == 1, 1].mean()
        y[env == 1, 1] *= y[env == 0, 1].std() / y[env == 1, 1].std()  # the law given x0 differs, not mean or variance
        two = samples(y, env)
        for row, tests in enumerate((KernelTests, LinearTests)):
            found[row] += [tests(one).independence(0, [1, 2])[0] < 0.01, tests(two).invariance(1, [0])[0] < 0.01]
    assert (found[0] >= 18).all() and (found[1] <= 6).all(), found


def test_linear_tests_have_power():
    """A partial correlation of 0.2, a shift of 0.4 sd, a variance 1.5 times as large and a slope off by 0.3, n = 500."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=1000)
    env, noise = np.repeat([0, 1], 500), rng.normal(size=(1000, 5))
    x = np.c_[z, noise[:, 0] + z, noise[:, 1] + z + 0.2 * noise[:, 0]]
    assert LinearTests(samples(x)).independence(2, [1, 0])[0] < 1e-4
    shift, scale = z + noise[:, 2] + 0.4 * env, z + noise[:, 3] * np.where(env, 1.22, 1.0)
    slope = z * np.where(env, 0.7, 1.0) + noise[:, 4]
    tests = LinearTests(samples(np.c_[z, shift, scale, slope], env))
    assert all(tests.invariance(j, [0])[0] < 1e-3 for j in (1, 2, 3))


def test_many_at_once_are_the_same_as_one_by_one():
    rng = np.random.default_rng(0)
    x, env = rng.normal(size=(120, 4)) @ rng.normal(size=(4, 4)), np.repeat([0, 1, 2], 40)
    together = LinearTests(samples(x, env)).invariance(3, [0, 1])
    for e in (1, 2):
        rows = (env == 0) | (env == e)
        assert together[e - 1] == pytest.approx(LinearTests(samples(x[rows], env[rows])).invariance(3, [0, 1])[0])


def test_too_few_samples_say_nothing():
    x, env = np.random.default_rng(0).normal(size=(10, 6)), np.repeat([0, 1], [6, 4])
    tests = LinearTests(samples(x, env))
    assert (tests.independence(0, [1, 2, 3, 4, 5]) == 1).all()
    assert (tests.invariance(0, [1, 2, 3, 4]) == 1).all() and tests.independence(0, []).shape == (0,)
    assert (fisher_z(np.eye(3), 3, 0, [1, 2]) == 1).all()


def test_scale_and_names_of_units_do_not_matter():
    rng = np.random.default_rng(0)
    x, env = rng.normal(size=(100, 3)), np.repeat([0, 1], 50)
    for kind in (LinearTests, KernelTests):
        one, two = (kind(samples(y, env)) for y in (x, x * [1e-3, 1.0, 1e3] + 7))
        np.testing.assert_allclose(one.independence(0, [1, 2]), two.independence(0, [1, 2]), rtol=1e-5)
        np.testing.assert_allclose(one.invariance(0, [1]), two.invariance(0, [1]), rtol=1e-5)


def test_the_oracle_reads_the_graph():
    chain = nx.DiGraph([(0, 1), (1, 2)])
    oracle = OracleTests(chain, [[1], [0], []])
    assert oracle.independence(0, [1, 2]).tolist() == [0.0, 1.0]
    assert oracle.invariance(2, []).tolist() == [0.0, 0.0, 1.0]
    assert oracle.invariance(2, [1]).tolist() == [1.0, 1.0, 1.0]
    assert oracle.invariance(0, [1]).tolist() == [0.0, 0.0, 1.0], (
        "a condition on an effect of the target opens the path"
    )


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="most"):
        KernelTests(samples(np.random.default_rng(0).normal(size=(20, 2))), most=3)

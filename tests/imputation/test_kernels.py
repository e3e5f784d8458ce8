"""Kernels of wide networks against sampled networks, quadrature and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, stats

from pyro_cge.errors import ConfigError
from pyro_cge.imputation.ntk.kernels import arc_cosine, dual_activation, ntk, unit

U = np.linspace(-1, 1, 41)


def relu(z):
    return np.sqrt(2) * np.maximum(z, 0)


def expectation(f, u):
    """``E[f(x) f(y)]`` at correlation ``u`` by two-dimensional quadrature, kinks split."""
    angle = np.arccos(u)
    # In polar coordinates x = r cos t, y = r cos(t − angle); f is homogeneous of degree one.
    ring = integrate.quad(lambda t: f(np.cos(t)) * f(np.cos(t - angle)), -np.pi, np.pi, limit=400, points=[0])[0]
    return ring * 2 / (2 * np.pi)


@pytest.mark.parametrize("u", [-0.9, -0.3, 0.0, 0.4, 0.95])
def test_arc_cosine_is_the_dual_of_the_relu(u):
    assert arc_cosine(u) == pytest.approx(expectation(relu, u), abs=1e-6)


def test_order_zero_is_twice_the_chance_that_both_are_positive():
    for u in (-0.8, 0.1, 0.6):
        orthant = stats.multivariate_normal([0, 0], [[1, u], [u, 1]]).cdf([0, 0])
        assert arc_cosine(u, 0) == pytest.approx(2 * orthant, abs=1e-5)


def test_order_zero_is_the_derivative_of_order_one():
    u, h = U[1:-1], 1e-6
    np.testing.assert_allclose((arc_cosine(u + h) - arc_cosine(u - h)) / (2 * h), arc_cosine(u, 0), atol=1e-6)


def test_tangent_kernel_of_one_layer_and_at_one():
    np.testing.assert_allclose(ntk(U), arc_cosine(U) + U * arc_cosine(U, 0), atol=1e-14)
    for depth in range(5):
        assert ntk(1.0, depth) == pytest.approx(depth + 1)
    np.testing.assert_array_equal(ntk(U, 0), U)


def test_tangent_kernel_is_the_gradient_product_of_a_wide_network():
    """Standard error of the product over 200,000 hidden units is 0.006; fails by chance once in 1e8."""
    import torch

    generator = torch.Generator().manual_seed(0)
    width, cosine = 200_000, 0.3
    x = torch.tensor([[1.0, 0.0], [cosine, np.sqrt(1 - cosine**2)]], dtype=torch.double)
    gradients = []
    first = torch.randn(width, 2, generator=generator, dtype=torch.double, requires_grad=True)
    second = torch.randn(width, generator=generator, dtype=torch.double, requires_grad=True)
    for row in x:
        out = (second * torch.relu(first @ row)).sum() * np.sqrt(2 / width)
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(out, (first, second))]))
    assert float(gradients[0] @ gradients[1]) == pytest.approx(float(ntk(cosine)), abs=0.036)


def test_kernels_are_positive_semidefinite_and_keep_float32():
    x = unit(np.random.default_rng(0).normal(size=(40, 3)))
    for depth in (1, 3):
        assert np.linalg.eigvalsh(ntk(x @ x.T, depth)).min() > -1e-10
    single = (x @ x.T).astype(np.float32)
    before = single.copy()
    assert ntk(single).dtype == np.float32
    np.testing.assert_array_equal(single, before)
    np.testing.assert_allclose(ntk(single), ntk(x @ x.T), atol=2e-3)


def test_dual_activation():
    np.testing.assert_allclose(dual_activation(lambda z: z**3, U, 5), (6 * U**3 + 9 * U) / 15, atol=1e-8)
    np.testing.assert_allclose(dual_activation(np.sin, U), np.sinh(U) / np.sinh(1), atol=1e-8)
    np.testing.assert_allclose(dual_activation(relu, U), arc_cosine(U), atol=0.01)


def test_unit_rows():
    rows = unit([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0.0, 0.0]])


def test_bad_settings():
    with pytest.raises(ConfigError, match="order"):
        arc_cosine(0.5, 2)
    with pytest.raises(ConfigError, match="depth"):
        ntk(0.5, -1)

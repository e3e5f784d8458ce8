"""Neural tangent kernel classifiers: duals, the kernel at finite depth, and the three limits of infinite depth."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_cge.errors import ConfigError, DataError
from pyro_cge.imputation import DeepNTKClassifier, HermiteActivation
from pyro_cge.imputation.ntk.classifier import deep_ntk, singular_weights

XI = np.linspace(-0.95, 0.95, 9)


def circle_sector(n: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of the non-negative part of the ``d``-sphere with noisy labels."""
    rng = np.random.default_rng(seed)
    x = np.abs(rng.normal(size=(n, d + 1)))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x, (rng.random(n) < 1 / (1 + np.exp(-8 * np.sin(5 * x[:, 0])))).astype(int)


def relu(u: np.ndarray) -> np.ndarray:
    return np.maximum(u, 0)


def test_dual_is_the_expectation_over_correlated_normals():
    activation = HermiteActivation(np.array([0.3, 0.5, -0.2, 0.7]))
    u, weights = np.polynomial.hermite_e.hermegauss(60)
    pair = weights[:, None] * weights / weights.sum() ** 2
    for xi in XI:
        v = xi * u[:, None] + np.sqrt(1 - xi**2) * u
        np.testing.assert_allclose(activation.dual(xi), (pair * activation(u)[:, None] * activation(v)).sum())


def test_dual_derivative_is_the_derivative():
    activation = HermiteActivation.of(np.tanh)
    step = 1e-6
    np.testing.assert_allclose(
        activation.dual_derivative(XI),
        (activation.dual(XI + step) - activation.dual(XI - step)) / (2 * step),
        rtol=1e-7,
    )
    assert activation.dual(1.0) == pytest.approx(1)


def test_relu_has_the_arc_cosine_duals():
    """Cho & Saul's kernels; the coefficients beyond ``degree`` are what the tolerance allows."""
    activation = HermiteActivation.of(relu, degree=60)
    u = np.linspace(-0.8, 0.8, 9)
    kappa_1 = (u * (np.pi - np.arccos(u)) + np.sqrt(1 - u**2)) / np.pi
    np.testing.assert_allclose(activation.dual(u), kappa_1, atol=2e-3)
    np.testing.assert_allclose(activation.dual_derivative(u), (np.pi - np.arccos(u)) / np.pi, atol=5e-3)
    assert activation.limit == "majority vote"
    np.testing.assert_allclose(
        deep_ntk(u, activation, 1), (kappa_1 + u * (np.pi - np.arccos(u)) / np.pi) / 2, atol=0.02
    )


def test_polynomials_are_recovered_exactly():
    coefficients = np.array([0.0, 0.6, 0.0, -0.8])
    found = HermiteActivation.of(HermiteActivation(coefficients), degree=6)
    np.testing.assert_allclose(found.coefficients, [0, 0.6, 0, -0.8, 0, 0, 0], atol=1e-10)


@pytest.mark.parametrize("d", [1, 2, 3, 5, 10, 50, 300])
def test_optimal_activation_has_the_order_of_the_dimension(d):
    activation = HermiteActivation.optimal(d)
    assert activation.alpha == pytest.approx(d, rel=1e-9) and activation.limit == "singular kernel"
    assert activation.dual(1.0) == pytest.approx(1) and activation.dual(0.0) == 0
    if d >= 3:
        assert HermiteActivation.optimal(d, degree=2).alpha == pytest.approx(d, rel=1e-9)


def test_depth_one_kernel_is_the_gradient_kernel_of_a_wide_network():
    """Inner products of gradients of random networks: an oracle that knows no dual."""
    activation = HermiteActivation(np.array([0.2, 0.7, 0.3]))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 3))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    width = 400_000
    weights, readout = rng.normal(size=(3, width)), rng.normal(size=width)
    hidden = x @ weights
    slope = (activation(hidden + 1e-5) - activation(hidden - 1e-5)) / 2e-5
    kernel = activation(hidden) @ activation(hidden).T / width
    kernel += (slope * readout) @ (slope * readout).T / width * (x @ x.T)
    expected = deep_ntk(x @ x.T, activation, 1) * (1 + activation.dual_derivative(1.0))
    # Monte Carlo error of a mean of 400,000 terms of sd about 2: 0.003.
    np.testing.assert_allclose(kernel, expected, atol=0.03)


@pytest.mark.parametrize("d", [1, 2, 4, 9])
def test_singular_weights_are_the_limit_of_the_kernel(d):
    """``Θ_L / b^L`` grows by ``ψ`` a layer: its differences converge geometrically to what the limit's formula says."""
    activation = HermiteActivation.optimal(d)
    b, xi = activation.squares[1], np.array([0.97, 0.6, 0.2, -0.4, -0.9])
    covariance, scaled, theta, steps = xi, xi, xi, []
    while np.abs(covariance).max() > 1e-9:
        scaled = scaled * (activation.dual(covariance) / (b * covariance))  # Σ_L / b^L
        before, theta = theta, scaled + theta * activation.dual_derivative(covariance) / b
        covariance = activation.dual(covariance)
        steps.append(theta - before)
    psi = singular_weights(xi[None], activation)[0]
    np.testing.assert_allclose(psi, steps[-1] / steps[-1][0], rtol=1e-6)


def test_singular_weights_satisfy_their_functional_equation():
    """``ψ(φ̌(ξ)) = φ̌'(0) ψ(ξ)``, up to the common factor of a row."""
    activation = HermiteActivation.optimal(3)
    xi = np.array([0.9999, 0.9, 0.5, 0.1, 1e-3, 1e-6, -0.3])
    before, after = (singular_weights(row[None], activation)[0] for row in (xi, activation.dual(xi)))
    np.testing.assert_allclose(before, after, rtol=1e-8)


def test_singularity_has_order_alpha():
    activation = HermiteActivation.optimal(4)
    distance = np.array([1e-3, 1e-4, 1e-5])
    weights = singular_weights(1 - distance[None] ** 2 / 2, activation)[0]
    slopes = np.diff(np.log(weights)) / np.diff(np.log(distance))
    # The power law is modulated by a periodic function of log distance, of period log φ̌'(1) and a few per cent.
    np.testing.assert_allclose(slopes, -4, atol=0.1)


def test_optimal_activation_classifies_as_the_hilbert_kernel():
    x, y = circle_sector(600, 2, 0)
    new, truth = circle_sector(600, 2, 1)
    distance = np.linalg.norm(new[:, None] - x, axis=-1)
    hilbert = (distance**-2.0) @ (2 * y - 1) > 0
    found = DeepNTKClassifier().fit(x, y).predict(new)
    assert (found == hilbert).mean() > 0.98
    assert abs((found == truth).mean() - (hilbert == truth).mean()) <= 0.01


def test_nearest_neighbour_and_majority_are_the_other_limits():
    x, y = circle_sector(300, 3, 2)
    new, _ = circle_sector(200, 3, 3)
    nearest = y[np.linalg.norm(new[:, None] - x, axis=-1).argmin(1)]
    cubic = HermiteActivation(np.array([0, 0, 0.5, 0.5]))
    np.testing.assert_array_equal(DeepNTKClassifier(cubic).fit(x, y).predict(new), nearest)
    deep = DeepNTKClassifier(cubic, depth=12).fit(x, y).predict(new)
    assert (deep == nearest).mean() > 0.98
    constant = HermiteActivation(np.array([0.5, 0.5, 0.7]))
    majority = np.bincount(y).argmax()
    assert (DeepNTKClassifier(constant).fit(x, y).predict(new) == majority).all()
    assert (DeepNTKClassifier(constant, depth=100).fit(x, y).predict(new) == majority).mean() > 0.95


def test_training_points_keep_their_labels():
    x, y = circle_sector(80, 3, 4)
    labels = np.array(["healthy", "treated"])[y]
    for depth in (None, 3):
        model = DeepNTKClassifier(depth=depth).fit(3 * x, labels)
        np.testing.assert_array_equal(model.predict(x), labels)
    assert list(model.classes_) == ["healthy", "treated"]


def test_several_classes_are_each_against_the_rest():
    x, _ = circle_sector(150, 2, 5)
    y = np.digitize(x[:, 0], [0.4, 0.7])
    new, _ = circle_sector(100, 2, 6)
    for depth in (None, 2):
        model = DeepNTKClassifier(depth=depth).fit(x, y)
        assert model.scores(new).shape == (100, 3)
        assert (model.predict(new) == np.digitize(new[:, 0], [0.4, 0.7])).mean() > 0.8


def test_depth_does_not_overflow_and_orthogonal_rows_are_no_nan():
    x, y = circle_sector(40, 2, 7)
    assert np.isfinite(DeepNTKClassifier(depth=3000).fit(x, y).scores(x)).all()
    model = DeepNTKClassifier().fit(np.eye(3)[:2], [0, 1])
    assert np.isfinite(model.scores(np.eye(3)[2:])).all()


def test_every_error_says_what_to_do():
    with pytest.raises(ConfigError, match="Hermite coefficients"):
        HermiteActivation(np.zeros(3))
    with pytest.raises(ConfigError, match="exceed"):
        HermiteActivation.optimal(2, degree=2)
    with pytest.raises(ConfigError, match="dimension"):
        HermiteActivation.optimal(0)
    with pytest.raises(ConfigError, match="linear"):
        DeepNTKClassifier(HermiteActivation(np.array([0.0, 1.0]))).fit(np.eye(2), [0, 1])
    with pytest.raises(ConfigError, match="depth"):
        DeepNTKClassifier(depth=0)
    with pytest.raises(ConfigError, match="ridge"):
        DeepNTKClassifier(ridge=0)
    with pytest.raises(ConfigError, match="fit"):
        DeepNTKClassifier().predict(np.eye(2))
    with pytest.raises(DataError, match="row 1"):
        DeepNTKClassifier().fit([[1.0, 0.0], [0.0, 0.0]], [0, 1])
    with pytest.raises(DataError, match="label"):
        DeepNTKClassifier().fit(np.eye(2), [0, 1, 1])
    with pytest.raises(DataError, match="rows, 2"):
        DeepNTKClassifier().fit(np.eye(2), [0, 1]).predict(np.eye(3))

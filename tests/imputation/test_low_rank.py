from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch

from pyro_cge.errors import ConfigError
from pyro_cge.imputation import ContextMean, Effects, FaLRTC, MaskedCP
from pyro_cge.imputation.low_rank import SmoothNorms


@pytest.fixture(scope="module")
def low_rank():
    """A tensor of rank 2 in every mode without noise, half of the pairs measured, and the whole tensor ``[K, A, g]``."""
    rng = np.random.default_rng(0)
    whole = np.einsum("kr,ar,gr->kag", rng.normal(size=(8, 2)), rng.normal(size=(16, 2)), rng.normal(size=(10, 2)))
    seen = rng.random((8, 16)) < 0.6
    context, action = np.nonzero(seen)
    names = [str(i) for i in range(8)], [str(i) for i in range(16)], [str(i) for i in range(10)]
    return Effects(whole[context, action], context, action, *names), whole, seen


def test_gradient_is_that_of_the_smoothed_norms():
    x = torch.randn(4, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    smooth = SmoothNorms([0.5, 0.2, 0.3], [0.4, 0.1, 0.3])
    value, gradient = smooth(x)
    assert value == pytest.approx(smooth.value(x))
    step = 1e-6
    for index in [(0, 0, 0), (3, 4, 2), (1, 2, 1)]:
        moved = x.clone()
        moved[index] += step
        assert (smooth.value(moved) - value) / step == pytest.approx(float(gradient[index]), abs=1e-5)


def test_smoothed_norm_tends_to_the_nuclear_norm():
    x = torch.randn(4, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha = [0.5, 0.2, 0.3]
    exact = sum(a * torch.linalg.matrix_norm(x.movedim(i, 0).flatten(1), "nuc") for i, a in enumerate(alpha))
    smooth = SmoothNorms(alpha, [1e-9] * 3).value(x)
    assert smooth == pytest.approx(float(exact), rel=1e-6)


def test_measured_entries_stay_and_the_objective_falls(low_rank):
    effects, _, _ = low_rank
    fitted = FaLRTC(max_iter=40, tol=0).fit(effects)
    assert np.allclose(fitted.predict(effects.pairs), effects.x)
    assert fitted.objective_[-1] < fitted.objective_[0]


def test_the_minimum_is_that_of_another_optimiser(low_rank):
    """L-BFGS on the missing entries of the same smoothed objective."""
    effects, _, _ = low_rank
    fitted = FaLRTC(weights=(1, 0.5, 1), smoothing=0.5, max_iter=1000, tol=1e-10).fit(effects)
    size = np.sqrt(np.square(effects.x).mean())
    alpha = np.array([1, 0.5, 1]) / 2.5
    smooth = SmoothNorms(list(alpha), [0.5 * a * size / n**0.5 for a, n in zip(alpha, (16, 10, 8), strict=True)])
    measured = torch.zeros(16, 1, 8, dtype=torch.bool)
    measured[effects.action, 0, effects.context] = True
    start = torch.zeros(16, 10, 8, dtype=torch.float64)
    start[effects.action, :, effects.context] = torch.from_numpy(effects.x)
    open_ = ~measured.expand_as(start)

    def objective(values):
        x = start.masked_scatter(open_, torch.from_numpy(values))
        value, gradient = smooth(x)
        return value, gradient[open_].numpy()

    best = scipy.optimize.minimize(objective, np.zeros(int(open_.sum())), jac=True, method="L-BFGS-B", tol=1e-12)
    assert fitted.objective_[-1] == pytest.approx(best.fun, rel=1e-5)


def test_a_low_rank_tensor_is_completed_better_than_by_the_mean(low_rank):
    effects, whole, seen = low_rank
    predicted = FaLRTC(smoothing=0.5, max_iter=200).fit(effects).predict(effects.missing)
    true = whole[~seen]
    naive = ContextMean().fit(effects).predict(effects.missing)
    assert np.square(predicted - true).mean() < 0.4 * np.square(naive - true).mean()


def test_components_that_lose_nothing_change_nothing(low_rank):
    effects, _, _ = low_rank
    full = FaLRTC(max_iter=20, tol=0).fit(effects).predict(effects.missing)
    assert np.allclose(
        FaLRTC(max_iter=20, tol=0, n_components=9).fit(effects).predict(effects.missing), full, atol=1e-6
    )


def test_float32_gives_nearly_the_same(low_rank):
    effects, _, _ = low_rank
    a, b = (
        FaLRTC(max_iter=20, tol=0, dtype=dtype).fit(effects).predict(effects.missing)
        for dtype in (torch.float32, torch.float64)
    )
    assert np.allclose(a, b, atol=1e-3)


def test_without_ties_the_context_mean_is_taken(low_rank):
    effects, _, _ = low_rank
    known = effects.take(effects.action != 3)
    pairs = [[0, 3], [5, 3]]
    for imputer in (FaLRTC(max_iter=5),):
        assert np.allclose(imputer.fit(known).predict(pairs), ContextMean().fit(known).predict(pairs))


def test_masked_cp_completes_a_tensor_of_its_rank(low_rank):
    pytest.importorskip("tensorly")
    effects, whole, seen = low_rank
    fitted = MaskedCP(rank=2, max_iter=500, tol=1e-9).fit(effects)
    true = whole[~seen]
    error = np.square(fitted.predict(effects.missing) - true).mean()
    assert error < 0.05 * np.square(true).mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": (1, 1)}, "three numbers"),
        ({"weights": (0, 0, 0)}, "not all zero"),
        ({"smoothing": 0}, "smoothing"),
        ({"max_iter": 0}, "max_iter"),
    ],
)
def test_settings(options, message):
    with pytest.raises(ConfigError, match=message):
        FaLRTC(**options)


def test_cp_settings():
    with pytest.raises(ConfigError, match="rank"):
        MaskedCP(rank=0)

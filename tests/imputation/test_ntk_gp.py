"""``NTKGP`` against dense formulas, brute-force leave-one-out, its special case, and simulated Gaussian processes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDelta

from pyro_cge.errors import ConfigError, DataError
from pyro_cge.imputation import Effects, hold_out, k_fold
from pyro_cge.imputation.baselines import ShrunkMean
from pyro_cge.imputation.neighbours import DNPP
from pyro_cge.imputation.ntk.completion import NTKCompletion
from pyro_cge.imputation.ntk.gp import NTKGP
from pyro_cge.imputation.ntk.kernels import unit
from pyro_cge.imputation.ntk.pair_kernel import EVIDENCE, CrossFitted, PairKernel, context_similarity, strengths
from pyro_cge.imputation.ntk.variance_model import VarianceModel, infer

VARIANCES = {
    "constant": 0.3,
    "context": 0.2,
    "own_context": 0.1,
    "structure": 0.4,
    "structure_context": 0.2,
    "action": 0.1,
    "action_context": 0.3,
    "signature": 0.5,
    "signature_context": 0.2,
    "noise": 0.25,
}


def simulated(seed=0, K=6, A=60, g=40, share=0.4):
    """Low-rank effects of clustered actions with per-action strength, noise of standard deviation 0.7."""
    rng = np.random.default_rng(seed)
    bits = rng.random((A // 4, 64)) < 0.2
    bits = np.repeat(bits, 4, 0) ^ (rng.random((A, 64)) < 0.02)
    classes = np.repeat(rng.normal(size=(A // 4, 5)), 4, 0) + 0.4 * rng.normal(size=(A, 5))
    contexts = 1 + 0.4 * rng.normal(size=(K, 5))
    seen = rng.random((K, A)) < share
    context, action = np.nonzero(seen)
    signal = (contexts[context] * classes[action] * rng.lognormal(0, 0.4, A)[action, None]) @ rng.normal(size=(5, g))
    x = signal + rng.normal(size=(K, g))[context] + 0.7 * rng.normal(size=(len(context), g))
    names = [f"cell{i}" for i in range(K)], [f"drug{i}" for i in range(A)], [f"g{i}" for i in range(g)]
    features = pd.DataFrame(bits.astype(float), index=names[1])
    basal = pd.DataFrame(contexts @ rng.normal(size=(5, 30)), index=names[0])
    return Effects(x, context, action, *names, context_features=basal, action_features=features)


@pytest.fixture(scope="module")
def drugs():
    return simulated()


@pytest.fixture(scope="module")
def fitted(drugs):
    return NTKGP(n_rows=100, steps=40).fit(drugs)


@pytest.fixture(scope="module")
def pairs(drugs):
    return drugs.missing.iloc[::9]


# Kernel


def test_sum_of_parts_is_the_kernel(drugs):
    kernel = PairKernel(drugs, CrossFitted(drugs))
    rows = kernel.train[: drugs.m // 2]
    parts = dict(kernel.parts(rows, kernel.train))
    assert tuple(parts) == kernel.terms
    expected = sum(VARIANCES[name] * part for name, part in parts.items())
    np.testing.assert_allclose(kernel.cross(rows, kernel.train, VARIANCES), expected, atol=1e-12)
    np.testing.assert_allclose(kernel.cross(rows, rows, VARIANCES).diagonal(), kernel.diagonal(rows, VARIANCES))
    whole = kernel.matrix(VARIANCES, 0.25)
    full = sum(VARIANCES[name] * part for name, part in kernel.parts(kernel.train, kernel.train))
    full[np.diag_indices(drugs.m)] += 0.25 * kernel.noise(kernel.train)
    np.testing.assert_allclose(np.triu(whole), np.triu(full), atol=1e-12)


def test_every_term_is_positive_semidefinite(drugs):
    kernel = PairKernel(drugs, CrossFitted(drugs))
    for name, part in kernel.parts(kernel.train, kernel.train):
        assert np.linalg.eigvalsh(part).min() > -1e-8, name


def test_features_of_a_row_do_not_know_its_own_signature(drugs):
    """Nor do they differ from those of its fold, from which it could be told: up to what the context's mean says."""
    fitted = CrossFitted(drugs)
    assert np.bincount(fitted.fold, minlength=4).min() > drugs.m / 5
    for row in np.flatnonzero(np.bincount(drugs.action)[drugs.action] > 5)[:3]:
        action = drugs.action == drugs.action[row]
        fold = action & (fitted.fold == fitted.fold[row])
        others = fitted.residual[action & ~fold]
        expected = unit(np.append(others.sum(0) / (len(others) + 1), EVIDENCE))
        np.testing.assert_allclose(fitted(drugs.context[fold], drugs.action[fold]), [expected] * fold.sum(), atol=1e-12)


def test_strengths_find_the_strong_actions():
    rng = np.random.default_rng(3)
    true = rng.lognormal(0, 0.5, 80)
    context, action = np.nonzero(np.ones((6, 80)))
    x = true[action, None] * rng.normal(size=(480, 50))
    effects = Effects(x, context, action, list("abcdef"), [f"d{i}" for i in range(80)], [f"g{i}" for i in range(50)])
    assert np.corrcoef(np.log(strengths(x, effects)), np.log(true))[0, 1] > 0.97


def test_similarity_of_contexts_is_learned_from_shared_actions():
    """Two groups of contexts that respond in their own way; nothing else is known of them."""
    rng = np.random.default_rng(4)
    context, action = np.nonzero(np.ones((6, 50)))
    response = rng.normal(size=(2, 50, 30))
    x = response[context // 3, action] + 0.3 * rng.normal(size=(300, 30))
    effects = Effects(x, context, action, list("abcdef"), [f"d{i}" for i in range(50)], [f"g{i}" for i in range(30)])
    similarity = context_similarity(x, effects)
    same = np.kron(np.eye(2), np.ones((3, 3))).astype(bool)
    assert similarity[same].min() > 0.8 and similarity[~same].max() < 0.3
    assert np.linalg.eigvalsh(similarity).min() > 0


# The regression


def test_prediction_and_variance_are_the_dense_formulas(drugs, pairs):
    """Fixed variances leave the plain Gaussian process: no slopes, no scales."""
    gp = NTKGP(variances=VARIANCES).fit(drugs)
    mean, std = gp.predict(pairs, return_std=True)
    kernel, rows = gp.kernel_, gp.kernel_.rows(*drugs.codes(pairs))
    covariance = sum(VARIANCES[n] * p for n, p in kernel.parts(kernel.train, kernel.train))
    covariance[np.diag_indices(drugs.m)] += 0.25 * kernel.noise(kernel.train)
    cross = sum(VARIANCES[n] * p for n, p in kernel.parts(rows, kernel.train))
    np.testing.assert_allclose(mean, cross @ np.linalg.solve(covariance, drugs.x), atol=1e-8)
    left = kernel.diagonal(rows, VARIANCES) + 0.25 * kernel.noise(rows)
    left -= np.einsum("ij,ji->i", cross, np.linalg.solve(covariance, cross.T))
    output = drugs.x.T @ drugs.x / drugs.m  # covariance of genes
    np.testing.assert_allclose(std**2, left[:, None] * np.diag(output), rtol=1e-6)


def test_ntk_completion_is_the_special_case(effects):
    pairs = effects.missing
    special = NTKGP(prior="reference", variances={"signature": 1.0}, strength=False).fit(effects).predict(pairs)
    np.testing.assert_allclose(special, NTKCompletion().fit(effects).predict(pairs), atol=1e-8)
    mixed = NTKGP(prior="reference", variances={"signature": 1.0}, strength=False, feature=DNPP(), depth=2).fit(effects)
    np.testing.assert_allclose(
        mixed.predict(pairs), NTKCompletion(feature=DNPP(), depth=2).fit(effects).predict(pairs), atol=1e-8
    )


def test_without_noise_it_interpolates(drugs):
    gp = NTKGP(variances={**VARIANCES, "noise": 1e-9}).fit(drugs)
    np.testing.assert_allclose(gp.predict(drugs.pairs), drugs.x, atol=1e-4)


def test_slopes_and_scales_are_those_of_leaving_rows_out():
    """Against a refit without each row (kernel and features as they are)."""
    small = simulated(1, A=16, g=12)
    gp = NTKGP(steps=5, blocks=()).fit(small)
    (variance,) = gp._draws[0]
    kernel = gp.kernel_
    covariance = kernel.cross(kernel.train, kernel.train, variance)
    covariance[np.diag_indices(small.m)] += variance["noise"] * kernel.noise(kernel.train)
    y = (small.x - gp.mean_) @ gp.basis_ / gp.rms_
    left_out, spread = np.empty_like(y), np.empty(small.m)
    for i in range(small.m):
        rest = np.delete(np.arange(small.m), i)
        weights = np.linalg.solve(covariance[np.ix_(rest, rest)], covariance[rest, i])
        left_out[i], spread[i] = weights @ y[rest], covariance[i, i] - weights @ covariance[rest, i]
    slope = ((left_out * y).sum(0) / (left_out**2).sum(0)).clip(0, 1)
    r = (left_out * y).sum(0) / np.sqrt((left_out**2).sum(0) * (y**2).sum(0))
    slope[r < 1 / np.sqrt(small.m)] = 0
    np.testing.assert_allclose(gp.slopes_, slope, atol=1e-3)
    np.testing.assert_allclose(gp.scales_, ((y - slope * left_out) ** 2 / spread[:, None]).mean(0), rtol=1e-3)


def test_ahead_of_means_and_calibrated():
    """Held-out pairs of the simulation; the 90 % interval covers 86–94 % of 4,000 entries."""
    many = simulated(6, A=160)
    folds = list(k_fold(many, 4))[:1]
    held = hold_out(NTKGP(n_rows=200), many, folds, progress=False).scores(many)
    means = hold_out(ShrunkMean(), many, folds, progress=False).scores(many)
    for name in ("r", "r2", "cosine"):
        assert held[name] > means[name] + 0.02
    assert 0.86 < held["coverage_90"] < 0.94


def test_intervals_hold_on_levels_with_batches():
    """Levels far from zero with what a batch of actions has in common, little noise and few pairs an action.

    With features that leave out a row's own signature alone, 90 % intervals held 84 % here.
    """
    rng = np.random.default_rng(3)
    context, action = np.nonzero(rng.random((16, 20)) < 0.55)
    batches = rng.integers(4, size=20)
    x = 8 + rng.normal(size=60) + rng.normal(size=(16, 60))[context] + 0.8 * rng.normal(size=(len(context), 60))
    x += rng.normal(size=(4, 16, 60))[batches[action], context] + 0.5 * rng.normal(size=(20, 60))[action]
    names = [f"cell{i}" for i in range(16)], [f"drug{i}" for i in range(20)], [f"g{i}" for i in range(60)]
    levels = Effects(x, context, action, *names)
    held = hold_out(NTKGP(), levels, list(k_fold(levels, 8)), progress=False).scores(levels)
    assert 0.86 < held["coverage_90"] < 0.94
    assert held["r"] > 0.73


def test_single_precision_agrees(drugs, pairs):
    double = NTKGP(variances=VARIANCES).fit(drugs).predict(pairs, return_std=True)
    single = NTKGP(variances=VARIANCES, dtype="float32").fit(drugs).predict(pairs, return_std=True)
    for a, b in zip(double, single, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3 * np.abs(a).max())


def test_order_of_rows_and_genes_does_not_matter(drugs, pairs):
    rng = np.random.default_rng(5)
    rows, genes = rng.permutation(drugs.m), rng.permutation(drugs.g)
    names = [drugs.gene_names[j] for j in genes]
    plain = NTKGP(variances=VARIANCES).fit(drugs).predict(pairs)
    taken = replace(drugs.take(rows), x=drugs.x[rows][:, genes], gene_names=names)
    shuffled = NTKGP(variances=VARIANCES).fit(taken).predict(pairs)
    np.testing.assert_allclose(shuffled, plain[:, genes], atol=1e-6)


def test_scale_of_the_data_is_only_a_unit(drugs, pairs, fitted):
    mean, std = fitted.predict(pairs, return_std=True)
    scaled = NTKGP(n_rows=100, steps=40).fit(replace(drugs, x=1000 * drugs.x)).predict(pairs, return_std=True)
    np.testing.assert_allclose(scaled[0], 1000 * mean, rtol=1e-3, atol=1)
    np.testing.assert_allclose(scaled[1], 1000 * std, rtol=1e-3)


def test_same_seed_same_result_and_no_trace_left(drugs, pairs, fitted):
    state = torch.get_rng_state()
    again = NTKGP(n_rows=100, steps=40).fit(drugs)
    np.testing.assert_array_equal(again.predict(pairs), fitted.predict(pairs))
    assert torch.equal(torch.get_rng_state(), state)
    assert not pyro.get_param_store().keys()


# Variances


def gaussian_processes(seed=0, n=120, q=60):
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(n, generator=generator, dtype=torch.double)
    smooth = torch.exp(-((points[:, None] - points) ** 2) / 0.02)
    groups = (torch.arange(n)[:, None] // 6 == torch.arange(n) // 6).double()
    truth = torch.tensor([0.6, 0.25, 0.15], dtype=torch.double)
    kernels, noise = torch.stack([smooth, groups]), torch.ones(n, dtype=torch.double)
    model = VarianceModel(kernels, noise, [noise.new_zeros(1, n)])
    y = torch.randn(q, n, generator=generator, dtype=torch.double) @ model.factor(truth).T
    return VarianceModel(kernels, noise, [y]), truth.numpy()


@pytest.mark.parametrize("inference", ["map", "svi"])
def test_variances_are_recovered(inference):
    """Posterior sds are 5–10 %; fails by chance below once in 1,000."""
    model, truth = gaussian_processes()
    draws, losses = infer(model, inference, steps=80, draws=20)
    np.testing.assert_allclose(draws.mean(0)[0], truth, rtol=0.35)
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_nuts_agrees_with_the_mode_and_svi_with_nuts():
    model, _ = gaussian_processes(1, n=60, q=40)
    mode, _ = infer(model, "map", steps=80, draws=1)
    nuts, _ = infer(model, "nuts", steps=60, draws=50)
    svi, _ = infer(model, "svi", steps=200, draws=400)
    spread = np.log(nuts[:, 0]).std(0)
    assert (np.abs(np.log(nuts[:, 0]).mean(0) - np.log(mode[0, 0])) < spread).all()
    assert (np.abs(np.log(nuts[:, 0]).mean(0) - np.log(svi[:, 0]).mean(0)) < spread).all()


def test_likelihood_is_the_matrix_normal_one():
    model, truth = gaussian_processes(2, n=20, q=3)
    data = {"variance": torch.from_numpy(truth)[None]}
    trace = pyro.poutine.trace(pyro.poutine.condition(model, data=data)).get_trace()
    trace.compute_log_prob()
    factor = model.factor(torch.from_numpy(truth))
    y = model.y[0]
    covariance = torch.kron(torch.eye(3, dtype=torch.double), factor @ factor.T)
    law = torch.distributions.MultivariateNormal(y.new_zeros(60), covariance)
    assert float(trace.nodes["y_0"]["log_prob_sum"]) == pytest.approx(float(law.log_prob(y.flatten())))


def test_the_model_is_a_plain_pyro_program():
    model, _ = gaussian_processes(3, n=20, q=4)
    guide = AutoDelta(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    losses = [svi.step() for _ in range(20)]
    assert losses[-1] < losses[0]
    assert Predictive(model, num_samples=3)()["variance"].shape[-2:] == (1, 3)


@pytest.mark.parametrize("inference", ["svi", pytest.param("nuts", marks=pytest.mark.slow)])
def test_predictions_average_over_draws(inference):
    small = simulated(2, K=4, A=24, g=10)
    gp = NTKGP(inference=inference, n_rows=40, steps=8, draws=3, blocks=(4,)).fit(small)
    mean, std = gp.predict(small.missing, return_std=True)
    assert len(gp._draws) == 3
    assert np.isfinite(mean).all() and (std > 0).all()


# Bad input


def test_nothing_known_of_contexts_and_actions(drugs, pairs):
    bare = replace(drugs, context_features=None, action_features=None)
    gp = NTKGP(n_rows=80, steps=10).fit(bare)
    assert "structure" not in gp.variances_
    assert np.isfinite(gp.predict(pairs)).all()


def test_unseen_context_and_action(drugs):
    train = drugs.take(np.flatnonzero((drugs.context != 3) & (drugs.action != 5)))
    mean, std = NTKGP(n_rows=80, steps=10).fit(train).predict([[3, 5], [3, 1], [1, 5], [1, 1]], return_std=True)
    assert np.isfinite(mean).all() and np.isfinite(std).all()


def test_constant_and_zero_signatures(drugs):
    x = drugs.x.copy()
    x[::7], x[3] = 0, 1
    x[:, 3] = 0
    mean, std = NTKGP(n_rows=80, steps=10).fit(replace(drugs, x=x)).predict(drugs.missing[:5], return_std=True)
    assert np.isfinite(mean).all() and np.isfinite(std).all()
    np.testing.assert_allclose(mean[:, 3], 0, atol=1e-6)
    mean, std = NTKGP(n_rows=80, steps=3).fit(replace(drugs, x=0 * drugs.x)).predict([[0, 0]], return_std=True)
    assert not mean.any() and not std.any()


def test_one_context_one_action_one_pair(drugs):
    one = drugs.take([0])
    assert np.isfinite(NTKGP(steps=3).fit(one).predict([[0, 0], [1, 1]])).all()


def test_errors(drugs):
    for settings, message in (
        ({"inference": "em"}, "inference must be one of 'map'"),
        ({"dtype": "float16"}, "dtype must be one of"),
        ({"prior": "none"}, "prior must be one of"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"variances": {"cell": 1.0}}, "'cell'"),
        ({"variances": {"noise": -1.0}}, "≥ 0"),
        ({"feature": DNPP()}, "prior='reference'"),
    ):
        with pytest.raises(ConfigError, match=message):
            NTKGP(**settings)
    with pytest.raises(DataError, match="singular"):
        NTKGP(variances={"constant": 1.0}).fit(drugs)
    with pytest.raises(DataError, match="fit takes Effects"):
        NTKGP().fit(drugs.x)


# Real data


@pytest.mark.slow
def test_level_five_signatures(real_data):
    """One fold of 3,371 signatures of 1,074 compounds in 24 cell lines.

    Where the compound was seen in two other lines or more, means over compounds reach r = 0.44 of a profile and additive
    models 0.48.
    """
    stored = np.load(real_data / "l1000_level5_gps24.npz")
    obs = pd.read_csv(real_data / "l1000_level5_gps24_obs.csv.gz")
    context, cells = pd.factorize(obs["cell_id"])
    action, drugs = pd.factorize(obs["struct_id"])
    prints = np.load(real_data / "morgan2048_r2.npz")
    keys = obs.drop_duplicates("struct_id")["compound_key"]
    bits = np.unpackbits(prints["packed"], axis=1)[pd.Index(prints["compound_key"]).get_indexer(keys)]
    basal = np.load(real_data / "l1000_cell_baselines165.npz")
    effects = Effects(
        stored["X"],
        context,
        action,
        list(cells),
        list(drugs),
        list(map(str, stored["gene"])),
        context_features=pd.DataFrame(basal["X"], index=basal["cell_id"]),
        action_features=pd.DataFrame(bits, index=drugs),
    )
    fold = next(iter(k_fold(effects)))
    held = hold_out(NTKGP(), effects, [fold], progress=False)
    seen = np.bincount(effects.action[fold[0]], minlength=effects.A)[effects.action[fold[1]]]
    scores = held.scores(effects, rows=seen >= 2)
    assert scores["profile_r"] > 0.54
    assert 0.87 < held.scores(effects)["coverage_90"] < 0.93

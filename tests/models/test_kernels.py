"""The Gaussian-process prior against the textbook's process, and its kernels against definitions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

import pyro_cge as cge
from pyro_cge.errors import ConfigError, DataError
from pyro_cge.models.kernels import fit_kernel, leave_groups_out, minmax, nystroem

E, D, G, NEW = 12, 3, 5, 4


def rbf(points, width=1.0):
    return torch.exp(-torch.cdist(points, points).square() / (2 * width**2))


def environments(features, control=()):
    n = len(features)
    return cge.EnvironmentData(
        x=torch.randn(n, G),
        env=torch.arange(n),
        gene_names=[f"g{k}" for k in range(G)],
        env_names=[f"e{e}" for e in range(n)],
        env_features=features,
        control=control,
    )


@pytest.fixture
def kernel():
    return rbf(torch.randn(E + NEW, 2).double())


@pytest.fixture
def setting(kernel):
    """A prior on all environments, and the batch of those in training."""
    data = environments(nystroem(kernel, range(E), own=True))
    prior = cge.KernelPrior(data, D, own=True)
    prior.set_spread(torch.tensor([0.5, 1.0, 2.0]))
    return data, prior, replace(data, x=data.x[:E], env=data.env[:E]).batch(torch.arange(E))


class TestNystroem:
    def test_features_are_exact_among_landmarks_and_project_the_rest(self, kernel):
        features = nystroem(kernel, range(E)).double()
        inner, cross = kernel[:E, :E], kernel[E:, :E]
        torch.testing.assert_close(features[:E] @ features[:E].T, inner, rtol=0, atol=1e-4)
        torch.testing.assert_close(features[E:] @ features[:E].T, cross, rtol=0, atol=1e-4)

    def test_what_the_landmarks_do_not_see(self, kernel):
        inner, cross = kernel[:E, :E], kernel[E:, :E]
        own = nystroem(kernel, range(E), own=True)[:, -1].double()
        schur = kernel[E:, E:].diagonal() - (cross @ torch.linalg.solve(inner, cross.T)).diagonal()
        torch.testing.assert_close(own[E:].square(), schur, rtol=1e-3, atol=1e-4)
        assert own[:E].max() < 0.02

    def test_a_lower_rank_keeps_the_largest_directions(self, kernel):
        features = nystroem(kernel, range(E), rank=3).double()
        values = torch.linalg.eigvalsh(kernel[:E, :E]).flip(0)
        assert features.shape == (E + NEW, 3)
        torch.testing.assert_close(features[:E].T @ features[:E], torch.diag(values[:3]), rtol=0, atol=1e-5)

    def test_new_environments_leave_the_features_of_others_alone(self, kernel):
        torch.testing.assert_close(nystroem(kernel, range(E))[:E], nystroem(kernel[:E, :E], range(E)))


class TestMinmax:
    def test_against_the_definition(self):
        a, b = torch.randint(0, 5, (4, 9)).float(), torch.randint(0, 5, (3, 9)).float()
        expected = torch.minimum(a[:, None], b).sum(-1) / torch.maximum(a[:, None], b).sum(-1)
        torch.testing.assert_close(minmax(a, b), expected)

    def test_of_bits_it_is_tanimotos(self):
        from pyro_cge.data.fingerprints import tanimoto

        bits = (torch.rand(6, 20) < 0.3).float()
        bits[0] = 0
        torch.testing.assert_close(minmax(bits, bits).numpy(), tanimoto(bits.numpy(), bits.numpy()))

    def test_it_is_positive_semidefinite(self):
        counts = torch.randint(0, 9, (40, 15)).double()
        assert torch.linalg.eigvalsh(minmax(counts, counts)).min() > -1e-9

    def test_what_it_refuses(self):
        with pytest.raises(DataError, match="3 and 4 columns"):
            minmax(torch.ones(2, 3), torch.ones(2, 4))
        with pytest.raises(DataError, match="not negative"):
            minmax(-torch.ones(2, 3), torch.ones(2, 3))


class TestPrior:
    def test_draws_have_the_kernels_covariance(self, kernel):
        """20,000 draws of 3 latents: every entry of the covariance within 6 standard errors."""
        data = environments(nystroem(kernel, range(E + NEW)))
        prior, batch = cge.KernelPrior(data, D), data.batch()
        prior.set_spread(torch.tensor([0.5, 1.0, 2.0]))
        weights = torch.randn(20_000, prior.basis.n_envs, D) * prior.spread.detach()
        loc = prior.shift(batch, {"shift": weights}).loc.detach()
        for j, spread in enumerate((0.5, 1.0, 2.0)):
            empirical = torch.cov(loc[..., j].T)
            assert (empirical - spread**2 * kernel.float()).abs().max() < 6 * spread**2 * (2 / 20_000) ** 0.5

    def test_conditioning_is_gaussian_process_regression(self, setting, kernel):
        data, prior, batch = setting
        seen, noise = torch.randn(E, D).double(), torch.tensor([1.0, 0.3, 2.0])
        mean, sd = prior.condition(seen, batch, noise)
        everywhere = prior.shift(data.batch(), {"shift": mean.float()})
        features = data.env_features[:, :-1].double()
        own = data.env_features[:, -1:].double()
        variance = features.square() @ sd.square() + own.square() * prior.spread.detach().double().square()
        for j, spread in enumerate((0.5, 1.0, 2.0)):
            inner = spread**2 * kernel[:E, :E] + noise[j].double() ** 2 * torch.eye(E)
            cross = spread**2 * kernel[:, :E]
            expected = cross @ torch.linalg.solve(inner, seen[:, j])
            torch.testing.assert_close(everywhere.loc[:, j].detach().double(), expected, rtol=0, atol=2e-3)
            left = spread**2 * kernel.diagonal() - (cross @ torch.linalg.solve(inner, cross.T)).diagonal()
            torch.testing.assert_close(variance[:, j], left, rtol=0, atol=2e-3)

    def test_the_unit_noise_of_the_latents_is_what_a_guide_starts_from(self, setting):
        _, prior, batch = setting
        shift = cge.NoiseShift(torch.randn(E, D), torch.zeros(E, D))
        torch.testing.assert_close(prior.unit_shift(shift, batch).loc, prior.condition(shift.loc, batch)[0])

    def test_spread_of_greatest_marginal_likelihood(self, setting, kernel):
        _, prior, batch = setting
        loc = torch.linalg.cholesky(4 * kernel[:E, :E] + torch.eye(E)) @ torch.randn(E, D).double()
        prior.start_at(cge.NoiseShift(loc, torch.zeros(E, D)), batch)
        inner, found = kernel[:E, :E].numpy(), prior.spread.tolist()
        for j in range(D):
            evidence = [
                multivariate_normal.logpdf(loc[:, j].numpy(), np.zeros(E), t**2 * inner + np.eye(E))
                for t in (0.85 * found[j], found[j], found[j] / 0.85)
            ]
            assert evidence[1] == max(evidence)

    def test_an_environment_unlike_all_others_is_predicted_with_more_noise(self):
        points = torch.tensor([[0.0], [0.1], [0.2], [50.0]]).double()
        data = environments(nystroem(rbf(points), [0, 1, 2], own=True))
        prior = cge.KernelPrior(data, D, own=True, spread=2.0)
        shift = prior.shift(data.batch(), {"shift": torch.randn(prior.basis.n_envs, D)})
        torch.testing.assert_close(shift.scale[3], torch.full((D,), 5.0).sqrt(), rtol=1e-4, atol=0)
        assert (shift.scale[:3] < 1.01).all() and shift.loc[3].abs().max() < 1e-6

    def test_controls_keep_the_reference_law(self, kernel):
        data = environments(nystroem(kernel, range(E), own=True), control=[0, E + 1])
        prior = cge.KernelPrior(data, D, own=True)
        shift = prior.shift(data.batch(), {"shift": torch.randn(prior.basis.n_envs, D)})
        assert not shift.loc[[0, E + 1]].any() and not shift.log_scale[[0, E + 1]].any()

    def test_fit_finds_the_process_and_predicts_new_environments(self):
        """Smooth means over a line, 40 environments of 20 profiles; 10 new ones between them."""
        points = torch.linspace(0, 10, 50)[torch.randperm(50)][:, None].double()
        truth = torch.cat([torch.sin(points), torch.cos(0.7 * points)], 1).float() * 2
        mixing = torch.randn(2, 8)
        env = torch.arange(40).repeat_interleave(20)
        x = (truth[env] + torch.randn(800, 2)) @ mixing + 0.3 * torch.randn(800, 8)
        data = cge.EnvironmentData(
            x=x,
            env=env,
            gene_names=[f"g{k}" for k in range(8)],
            env_names=[f"e{e}" for e in range(50)],
            env_features=nystroem(rbf(points), range(40), own=True),
        )
        prior = cge.KernelPrior(data, 2, own=True)
        model = cge.CellModel(prior, None, cge.LinearDecoder(2, 8))
        fit = cge.fit(model, cge.AmortizedGuide(model), data, epochs=60, lr=1e-2, validation=None, seed=0)
        predicted = fit.posterior(data).predict(n_samples=500)[40:]
        expected = truth[40:] @ mixing
        assert 1 - (predicted - expected).square().mean() / expected.var(0).mean() > 0.9

    def test_predictions_read_no_profile_of_what_they_predict(self, kernel):
        data = environments(nystroem(kernel, range(E), own=True))
        model = cge.CellModel(cge.KernelPrior(data, D, own=True), None, cge.LinearDecoder(D, G))
        fit = cge.fit(model, cge.AmortizedGuide(model), data.rows(range(E)), epochs=3, validation=None)
        held_out = data.rows(range(E, E + NEW))
        garbage = replace(held_out, x=1e3 * torch.randn(NEW, G))
        assert torch.equal(fit.posterior(held_out).predict(), fit.posterior(garbage).predict())

    def test_what_it_refuses(self, kernel):
        with pytest.raises(DataError, match="env_features"):
            cge.KernelPrior(replace(environments(torch.ones(3, 2)), env_features=None), D)
        with pytest.raises(DataError, match="env_features"):
            cge.KernelPrior(environments(torch.ones(3, 1)), D, own=True)
        with pytest.raises(ConfigError, match="spread"):
            cge.KernelPrior(environments(torch.ones(3, 2)), D, spread=0.0)
        data = environments(nystroem(kernel, range(E)))
        prior = cge.KernelPrior(data, D)
        with pytest.raises(ValueError, match="latent effects"):
            prior.shift(data.batch())
        with pytest.raises(DataError, match="the batch has none"):
            prior.shift(replace(data, env_features=None).batch(), {"shift": torch.ones(E, D)})


class TestFitKernel:
    def test_evidence_is_the_normal_density_at_the_outputs_best_scales(self, kernel):
        n = len(kernel)
        y = torch.randn(n, 4).double()
        found = fit_kernel(torch.stack([kernel, torch.ones_like(kernel)]), y, steps=5)
        weights, noise = found.weights.double(), float(found.noise)
        covariance = weights[0] * kernel + weights[1] + (noise + 1e-6) * torch.eye(n)
        assert float(weights.sum()) + noise == pytest.approx(1, abs=1e-6)
        expected = 0.0
        for column in y.T:
            scale = float(column @ torch.linalg.solve(covariance, column)) / n
            expected += multivariate_normal.logpdf(column.numpy(), np.zeros(n), scale * covariance.numpy())
        assert found.log_evidence == pytest.approx(expected, rel=1e-5)

    def test_it_finds_the_weights_of_a_sum(self):
        """100 outputs of 80 environments: weights within 0.1 (about 5 standard errors)."""
        a, b = rbf(torch.randn(80, 2).double()), rbf(torch.randn(80, 2).double())
        covariance = 0.5 * a + 0.2 * b + 0.3 * torch.eye(80)
        y = 7 * torch.linalg.cholesky(covariance) @ torch.randn(80, 100).double()
        found = fit_kernel(torch.stack([a, b, torch.ones_like(a)]), y, steps=100)
        assert [*found.weights.tolist(), float(found.noise)] == pytest.approx([0.5, 0.2, 0.0, 0.3], abs=0.1)

    def test_what_it_refuses(self, kernel):
        with pytest.raises(ConfigError, match=r"\[K, 3, 3\]"):
            fit_kernel(kernel[None], torch.randn(3, 2))


def test_leaving_groups_out_equals_fitting_without_them(kernel):
    y, noise = torch.randn(len(kernel), 3).double(), 0.3
    groups = np.array(list("aabcccddefggghij"))
    predicted, variance = leave_groups_out(kernel, y, groups, noise)
    for group in np.unique(groups):
        out, rest = (torch.from_numpy(np.flatnonzero(match)) for match in (groups == group, groups != group))
        inner, cross = kernel[rest][:, rest] + noise * torch.eye(len(rest)), kernel[out][:, rest]
        torch.testing.assert_close(predicted[out], cross @ torch.linalg.solve(inner, y[rest]))
        left = kernel[out][:, out] - cross @ torch.linalg.solve(inner, cross.T)
        torch.testing.assert_close(variance[out], left.diagonal() + noise)

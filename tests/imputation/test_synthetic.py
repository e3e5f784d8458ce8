from __future__ import annotations

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO

from pyro_cge.errors import ConfigError
from pyro_cge.imputation import BayesianSyntheticInterventions, ContextMean, Effects, SyntheticInterventions
from pyro_cge.imputation.synthetic import DonorTable

METHODS = [(donors, method) for donors in ("actions", "contexts") for method in ("least_squares", "hsvt")]


@pytest.fixture(scope="module")
def factors():
    """Rank 3 without noise: actions are sums of actions, contexts of contexts. And the whole tensor."""
    rng = np.random.default_rng(2)
    whole = np.einsum("kr,ar,rg->kag", rng.normal(size=(9, 3)), rng.normal(size=(12, 3)), rng.normal(size=(3, 40)))
    seen = rng.random((9, 12)) < 0.8
    context, action = np.nonzero(seen)
    names = [str(i) for i in range(9)], [str(i) for i in range(12)], [str(i) for i in range(40)]
    return Effects(whole[context, action], context, action, *names), whole, seen


def test_donors_are_measured_where_they_are_needed(effects):
    table = DonorTable(effects, "actions", 5, 1)
    for context, action in zip(*effects.codes(effects.missing), strict=True):
        donors, shared = table.choose(context, action)
        assert len(donors) <= 5
        assert context not in shared
        assert action not in donors
        assert table.seen[context, donors].all()
        assert table.seen[np.ix_(shared, donors)].all()
        assert table.seen[shared, action].all()


def test_first_donor_shares_most_contexts(effects):
    table = DonorTable(effects, "actions", 1, 1)
    for context, action in zip(*effects.codes(effects.missing), strict=True):
        donors, shared = table.choose(context, action)
        others = [b for b in np.flatnonzero(table.seen[context]) if b != action]
        assert len(shared) == max((table.seen[:, b] & table.seen[:, action]).sum() for b in others)
        assert len(donors) == 1


def test_moments_are_those_of_the_stacked_rows(effects):
    table = DonorTable(effects, "actions", 4, 1)
    context, action = (codes[0] for codes in effects.codes(effects.missing))
    regression = table.regressions(np.array([context]), np.array([action]))[0]
    donors, shared = table.choose(context, action)
    tensor = effects.tensor()
    stacked = tensor[np.ix_(shared, donors)].transpose(0, 2, 1).reshape(-1, len(donors))
    target = tensor[shared, action].ravel()
    centred = stacked - stacked.mean(0)
    assert np.allclose(regression.gram, centred.T @ centred)
    assert np.allclose(regression.cross, centred.T @ (target - target.mean()))
    assert regression.square == pytest.approx(np.square(target - target.mean()).sum())


def test_least_squares_weights_are_those_of_the_pseudo_inverse(effects):
    imputer = SyntheticInterventions(method="least_squares", max_donors=4).fit(effects)
    table = imputer.donors_
    context, action = (codes[:1] for codes in effects.codes(effects.missing))
    regression = table.regressions(context, action)[0]
    donors, shared = table.choose(context[0], action[0])
    tensor = effects.tensor()
    stacked = tensor[np.ix_(shared, donors)].transpose(0, 2, 1).reshape(-1, len(donors))
    target = tensor[shared, action[0]].ravel()
    weights = np.linalg.pinv(stacked - stacked.mean(0)) @ (target - target.mean())
    predicted = target.mean() + (tensor[context[0], donors] - regression.donor_mean[:, None]).T @ weights
    assert np.allclose(imputer.predict(np.stack([context, action], 1))[0], predicted)


@pytest.mark.parametrize(("donors", "method"), METHODS)
def test_a_low_rank_table_is_recovered(factors, donors, method):
    effects, whole, seen = factors
    imputer = SyntheticInterventions(donors=donors, method=method, energy=1 - 1e-9, min_shared=2).fit(effects)
    predicted = imputer.predict(effects.missing)
    # Centring costs the exact fit where the stacked means differ; it stays close.
    assert np.square(predicted - whole[~seen]).mean() < 0.05 * np.square(whole[~seen]).mean()


def test_energy_limits_the_directions(effects):
    pairs = effects.missing
    full = SyntheticInterventions(method="least_squares").fit(effects).predict(pairs)
    assert np.allclose(SyntheticInterventions(energy=1.0).fit(effects).predict(pairs), full)
    assert not np.allclose(SyntheticInterventions(energy=0.5).fit(effects).predict(pairs), full)


@pytest.mark.parametrize("make", [SyntheticInterventions, lambda: BayesianSyntheticInterventions(steps=2, samples=3)])
def test_without_donors_the_context_mean_is_taken(make):
    x = np.random.default_rng(0).normal(size=(3, 5))
    effects = Effects(x, [0, 0, 1], [0, 1, 2], ["a", "b"], ["u", "v", "w"], list("pqrst"))
    assert np.allclose(make().fit(effects).predict([[0, 2]]), ContextMean().fit(effects).predict([[0, 2]]))


# Bayesian


@pytest.fixture(scope="module")
def bayes(factors):
    effects, _, _ = factors
    noisy = Effects(**{**vars(effects), "x": effects.x + 0.3 * np.random.default_rng(3).normal(size=effects.x.shape)})
    return BayesianSyntheticInterventions(max_donors=5, progress=False).fit(noisy)


def test_weights_given_the_scales_are_the_exact_conditional(bayes):
    """log p(y, rss, w) − log q(w | scales) does not depend on w."""
    _, _, batch = bayes.regressions(bayes.effects_.missing)
    bayes.start(batch)
    values = []
    for seed in range(3):
        torch.manual_seed(seed)
        given = {"noise_scale": torch.full_like(batch.rss, 0.4), "donor_scale": torch.full_like(batch.rss, 0.3)}
        guide = pyro.poutine.trace(pyro.poutine.condition(bayes.guide, data=given)).get_trace(batch)
        given["weights"] = guide.nodes["weights"]["value"]
        model = pyro.poutine.trace(pyro.poutine.condition(bayes.model, data=given)).get_trace(batch)
        guide.compute_log_prob()
        model.compute_log_prob()
        log_p = sum(model.nodes[name]["log_prob"] for name in ("weights", "y", "rss"))
        values.append(log_p - guide.nodes["weights"]["log_prob"])
    assert torch.allclose(values[0], values[1])
    assert torch.allclose(values[0], values[2])


def test_sufficient_statistics_stand_for_the_rows(bayes):
    """Likelihood ratios of two weight vectors are those of the stacked rows, counted for the independent share."""
    _, kept, batch = bayes.regressions(bayes.effects_.missing)
    share = bayes.independent_ / bayes.effects_.g
    one, d = kept[0], len(kept[0].rows)
    noise = 0.7
    ratios = []
    for scale in (0.0, 0.3):
        w = np.full(d, scale)
        rss = one.square - 2 * w @ one.cross + w @ one.gram @ w
        ratios.append(-share * rss / (2 * noise**2))
    rows = []
    for scale in (0.0, 0.3):
        w = torch.zeros(batch.y.shape[1], dtype=torch.float64)
        w[:d] = scale
        residual = batch.y[0] - batch.root[0] @ w
        rows.append(float(-(residual.square().sum() + batch.rss[0]) / (2 * noise**2)))
    assert ratios[1] - ratios[0] == pytest.approx(rows[1] - rows[0], rel=1e-5)


@pytest.mark.parametrize("prior", ["ridge", "horseshoe"])
@pytest.mark.parametrize("donors", ["actions", "contexts"])
def test_intervals_cover(factors, donors, prior):
    """90 % intervals of new noisy entries: 0.86–0.94 over five seeds of the noise."""
    effects, whole, seen = factors
    rng = np.random.default_rng(5)
    noisy = Effects(**{**vars(effects), "x": effects.x + 0.5 * rng.normal(size=effects.x.shape)})
    imputer = BayesianSyntheticInterventions(
        donors=donors, prior=prior, max_donors=8, min_shared=2, steps=100, progress=False
    ).fit(noisy)
    mean, std = imputer.predict(effects.missing, return_std=True)
    true = whole[~seen] + 0.5 * rng.normal(size=mean.shape)
    covered = (np.abs(true - mean) < 1.645 * std).mean()
    assert 0.8 < covered < 0.97
    assert np.square(mean - whole[~seen]).mean() < 0.5 * np.square(whole[~seen]).mean()


def test_a_seed_gives_the_same_answer_and_touches_nothing(bayes):
    pairs = bayes.effects_.missing.iloc[:3]
    torch.manual_seed(9)
    before = torch.get_rng_state()
    a = bayes.predict(pairs)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(a, bayes.predict(pairs))
    assert not pyro.get_param_store().keys()


def test_plain_pyro(bayes):
    _, _, batch = bayes.regressions(bayes.effects_.missing)
    bayes.start(batch)
    svi = SVI(bayes.model, bayes.guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step(batch) for _ in range(60)]
    assert np.mean(losses[-5:]) < losses[0]
    drawn = Predictive(bayes.model, guide=bayes.guide, num_samples=4)(batch)
    assert drawn["weights"].shape == (4, *batch.y.shape) or drawn["weights"].shape[-2:] == batch.y.shape


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (SyntheticInterventions, {"donors": "drugs"}, "donors"),
        (SyntheticInterventions, {"method": "lasso"}, "method"),
        (SyntheticInterventions, {"energy": 0}, "energy"),
        (SyntheticInterventions, {"max_donors": 0}, "max_donors"),
        (BayesianSyntheticInterventions, {"prior": "flat"}, "prior"),
        (BayesianSyntheticInterventions, {"donors": "drugs"}, "donors"),
        (BayesianSyntheticInterventions, {"steps": 0}, "steps"),
    ],
)
def test_settings(make, options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)

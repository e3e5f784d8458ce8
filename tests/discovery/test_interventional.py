"""The posterior over graph and targets: recovery, an integral done by hand, and what the fitted model answers."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, TraceEnum_ELBO

from pyro_cge import HardIntervention, NoiseIntervention
from pyro_cge.discovery import EdgePrior, InterventionalSCM, Knowledge
from pyro_cge.errors import ConfigError

from .test_order_search import with_targets


@pytest.fixture(scope="module")
def fitted():
    x, env, adjacency, targets = with_targets(0)
    return InterventionalSCM(steps=300).fit(x, env, control=0), x, env, adjacency, targets


def test_graph_and_targets_are_found(fitted):
    model, _, _, adjacency, targets = fitted
    np.testing.assert_array_equal(model.adjacency_, adjacency)
    np.testing.assert_array_equal(model.targets_.to_numpy(), targets)
    assert model.history_[-1] < model.history_[0]
    assert set(model.interventions_["environment"] + model.interventions_["gene"]) == {
        f"{e}x{j}" for e, j in np.argwhere(targets)
    }
    with_parents = model.interventions_[[adjacency[:, int(g[1:])].any() for g in model.interventions_["gene"]]]
    assert (abs(with_parents["gamma"] - 0.3) < 4 * with_parents["gamma_sd"] + 0.05).all()
    assert (abs(np.exp(model.interventions_["log_scale"]) - 1.5) < 0.35).all()


def test_probability_of_a_target_is_the_integral():
    """A gene without causes: odds are prior odds times ∬ likelihood ratio d shift d log_scale, up to the noise's own error."""
    rng, n = np.random.default_rng(0), 60
    x = rng.normal(size=(3000 + 4 * n, 2))
    env = np.repeat(np.arange(5), [3000, n, n, n, n])
    for e, shift in ((1, 0.2), (2, 0.35), (3, 0.5), (4, 0.65)):
        x[env == e, 0] += shift
    model = InterventionalSCM(rate=0.5, steps=400).fit(x, env, control=0)
    scaled = (x[:, 0] - x[env == 0, 0].mean()) / x[env == 0, 0].std()
    a, b = np.meshgrid(np.linspace(-3, 3, 601), np.linspace(-1.5, 1.5, 301), indexing="ij")
    prior = np.exp(-0.5 * (a / 3) ** 2 - 0.5 * b**2) / (2 * math.pi * 3) * (a[1, 0] - a[0, 0]) * (b[0, 1] - b[0, 0])
    for e in range(1, 5):
        y = scaled[env == e]
        squares = (y**2).sum() - 2 * a * y.sum() + n * a**2
        ratio = np.exp(-0.5 * squares / np.exp(2 * b) - n * b + 0.5 * (y**2).sum())
        odds = 0.5 / 1.5 * (ratio * prior).sum()
        assert model.target_probabilities_.iloc[e, 0] == pytest.approx(odds / (1 + odds), abs=0.06)


def test_new_profiles_are_like_those_of_the_environment(fitted):
    """Means and standard deviations of every gene; 6,000 draws against 200, five standard errors."""
    model, x, env, *_ = fitted
    for e in (0, 1, 5):
        new, seen = model.predict(str(e), 6000), x[env == e]
        error = seen.std(0) / math.sqrt(200)
        assert (abs(new.mean().to_numpy() - seen.mean(0)) < 5 * error + 0.1 * seen.std(0)).all()
        assert (abs(np.log(new.std().to_numpy() / seen.std(0))) < 0.3).all()


def test_the_same_profiles_twice_and_no_other_randomness_changes(fitted):
    model, *_ = fitted
    before = torch.get_rng_state()
    one, two = model.predict("1", 20), model.predict("1", 20)
    assert (one.to_numpy() == two.to_numpy()).all() and torch.equal(before, torch.get_rng_state())
    assert one.nunique().min() == 20, "the cells differ"


def test_handlers_intervene_on_the_fitted_model(fitted):
    model, _, _, adjacency, _ = fitted
    cause = int(np.argmax(adjacency.sum(1)))
    effect = int(np.flatnonzero(adjacency[cause])[0])
    with HardIntervention(cause, value=5.0):
        high = model.predict(n=500)
    with HardIntervention(cause, value=0.0):
        low = model.predict(n=500)
    with NoiseIntervention(cause, loc=2.0):
        moved = model.predict(n=500)
    plain = model.predict(n=500)
    assert high.iloc[:, cause].std() == pytest.approx(0, abs=1e-9)
    earlier = [
        j for j in range(len(adjacency)) if np.linalg.matrix_power(adjacency + np.eye(8, dtype=int), 8)[j, cause]
    ]
    spared = [j for j in earlier if j != cause]
    np.testing.assert_allclose(high.iloc[:, spared], low.iloc[:, spared])
    change = (high.iloc[:, effect] - low.iloc[:, effect]) / (high.iloc[:, cause] - low.iloc[:, cause])
    assert change.std() == pytest.approx(0, abs=1e-6), "a linear effect is the same in every profile"
    assert abs((moved - plain).iloc[:, cause]).min() > 0.1


def test_known_targets_and_knowledge(fitted):
    _, x, env, adjacency, targets = fitted
    i, j = map(int, np.argwhere(adjacency)[0])
    known = {e: [f"x{g}" for g in np.flatnonzero(targets[e])] for e in range(1, 4)}
    model = InterventionalSCM(steps=50, knowledge=Knowledge(forbidden=[(f"x{i}", f"x{j}")]))
    model.fit(x, env, control=0, targets={**known, 4: ["x7"]})
    assert model.edge_probabilities_[i, j] == 0 and model.adjacency_[i, j] == 0
    np.testing.assert_array_equal(model.targets_.to_numpy()[1:4], targets[1:4])
    assert model.targets_.iloc[4].to_numpy().nonzero()[0].tolist() == [7]


def test_beliefs_about_edges_decide_where_data_are_silent():
    """``x0 – x1`` has no target, so that no environment directs it: its directions are to each other as they are a priori."""
    rng = np.random.default_rng(0)
    x, env = rng.normal(size=(400, 3)), np.repeat(["control", "hit"], 200)
    x[:, 1] += x[:, 0]
    x[env == "hit", 2] += 3
    names = ["x0", "x1"]
    for cause, effect in ((0, 1), (1, 0)):
        prior = EdgePrior({(f"x{cause}", f"x{effect}"): 0.5}, otherwise=0.5 / 9)
        model = InterventionalSCM(density=prior, steps=10, draws=1000).fit(x, env)
        p = model.edge_probabilities_
        assert p[cause, effect] + p[effect, cause] == pytest.approx(1, abs=0.01)
        assert p[cause, effect] / p[effect, cause] == pytest.approx(9, rel=0.4)  # 1,000 orders: 4 standard errors
        assert model.adjacency_[cause, effect] == 1 and model.adjacency_.sum() == 1
        drawn = model.to_arviz(150).posterior["edge"]
        share = float(drawn.sel(cause=names[cause], effect=names[effect]).mean())
        assert share == pytest.approx(p[cause, effect], abs=0.12)  # 5 standard errors
        np.testing.assert_allclose(model.rho.numpy(), prior.matrix(model.genes_))
    flat = InterventionalSCM(density=0.2, steps=20).start(x, env)
    assert set(np.unique(flat.rho)) == {0.0, 0.2}


def test_plain_pyro(fitted):
    _, x, env, *_ = fitted
    model = InterventionalSCM(draws=20).start(x, env, control=0)
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.01}), TraceEnum_ELBO(max_plate_nesting=2))
    assert all(math.isfinite(svi.step(model.grams)) for _ in range(3))
    for parallel in (False, True):
        prior = Predictive(model.model, num_samples=3, parallel=parallel)(None, 4)
        assert prior["x"].shape == (3, 4, 9, 1, 8) and torch.isfinite(prior["x"]).all()
    new = Predictive(model.model, guide=model.guide, num_samples=2)(None, 4)
    assert new["x"].shape == (2, 4, 9, 1, 8)
    drawn = model.posterior(7)
    assert drawn["target"].shape == (7, 9, 8) and drawn["W"].shape == (7, 8, 8) and drawn["target"][:, 0].max() == 0
    pyro.render_model(model.model, model_args=(model.grams,))


def test_posterior_in_arviz(fitted):
    model, _, _, adjacency, targets = fitted
    posterior = model.to_arviz(40).posterior
    assert posterior["edge"].dims == ("chain", "draw", "cause", "effect")
    np.testing.assert_allclose(posterior["target"].mean(("chain", "draw")), targets, atol=0.4)
    i, j = map(int, np.argwhere(adjacency)[0])
    assert float(posterior["edge"].sel(cause=f"x{i}", effect=f"x{j}").mean()) > 0.9


def test_same_seed_same_answer(fitted):
    model, x, env, *_ = fitted
    again = InterventionalSCM(steps=300).fit(x, env, control=0)
    assert again.history_ == model.history_


def test_bad_input(fitted):
    model, x, *_ = fitted
    with pytest.raises(ConfigError, match="need environments"):
        InterventionalSCM().fit(x)
    with pytest.raises(ConfigError, match=r"candidates must be 1 … 16"):
        InterventionalSCM(candidates=40)
    with pytest.raises(ConfigError, match="density is a probability"):
        InterventionalSCM(density=0.0)
    with pytest.raises(ConfigError, match="must be positive, got rate"):
        InterventionalSCM(rate=0)
    with pytest.raises(ConfigError, match=r"no environment 'e9'; there are \['0'"):
        model.predict("e9")
    with pytest.raises(ConfigError, match="has seen no data yet"):
        InterventionalSCM().model()

"""Plots: Axes come back, labels are set, given Axes are used, nothing is shown."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from pyro_cge import NoiseShift, plots
from pyro_cge.metrics import match_latents
from pyro_cge.metrics.disentanglement import Matching

E, D = 8, 3


@pytest.fixture(autouse=True)
def never_show(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *_, **__: pytest.fail("a plot called show"))


@pytest.fixture
def shift():
    loc = torch.zeros(E, D)
    loc[torch.arange(1, E), torch.arange(1, E) % D] = torch.linspace(-3, 3, E - 1)
    log_scale = torch.zeros(E, D)
    log_scale[2, 1] = 1.0
    return NoiseShift(loc, log_scale)


@pytest.fixture
def matching():
    return Matching(np.array([2, 0, 1]), np.array([-1.0, 1, 1]), np.ones(D))


def history(epochs=5, valid=True):
    table = {"epoch": range(epochs)}
    for part in ("train", "valid") if valid else ("train",):
        for term in ("loss", "log_likelihood", "kl"):
            table[f"{part}_{term}"] = np.cos(np.arange(epochs)) + 2
    return pd.DataFrame(table)


def draw():
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()


def test_interventions_draw_the_estimate_alone(shift):
    axes = plots.interventions(shift, env_names=[f"drug {e}" for e in range(E)])
    draw()
    [ax] = axes
    assert isinstance(ax, Axes)
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("latent", "environment", "estimate")
    labels = [t.get_text() for t in ax.get_yticklabels()]
    assert sorted(labels) == sorted(f"drug {e}" for e in range(E))
    assert labels[0] == "drug 0", "environments that do nothing come first"
    image = ax.images[0].get_array()
    for row, label in enumerate(labels):
        np.testing.assert_array_equal(image[row], shift.loc[int(label.split()[1])].numpy())


def test_interventions_draw_the_truth_beside_the_matched_estimate(shift, matching):
    inverse = [1, 2, 0]
    estimate = NoiseShift((shift.loc * torch.tensor([-1.0, 1, 1]))[:, inverse], shift.log_scale[:, inverse])
    left, right = plots.interventions(estimate, shift, matching)
    draw()
    assert left.get_title() == "truth" and right.get_title() == "estimate (matched)"
    np.testing.assert_array_equal(left.images[0].get_array(), right.images[0].get_array())
    assert left.images[0].get_clim() == right.images[0].get_clim()


def test_a_circle_marks_a_change_of_scale(shift):
    [ax] = plots.interventions(shift)
    [[x, y]] = ax.collections[0].get_offsets()
    assert x == 1 and ax.get_yticklabels()[int(y)].get_text() == "env 2"


def test_interventions_show_those_that_move_most(shift):
    [ax] = plots.interventions(shift, max_envs=3)
    assert {t.get_text() for t in ax.get_yticklabels()} == {"env 1", "env 7", "env 2"}


def test_interventions_use_the_axes_given(shift, matching):
    figure, given = plt.subplots(1, 2)
    drawn = plots.interventions(shift, shift, matching, axes=given)
    assert list(drawn) == list(given) and plt.get_fignums() == [figure.number]


def test_interventions_of_nothing_and_of_many_latents_draw():
    plots.interventions(NoiseShift.standard(3, 2))
    plots.interventions(NoiseShift(torch.randn(70, 45), torch.zeros(70, 45)))
    draw()


def test_the_truth_needs_a_matching(shift):
    with pytest.raises(ValueError, match="matching="):
        plots.interventions(shift, shift)


@pytest.mark.parametrize("kind", ["tensor", "array", "frame"])
def test_latent_pairs_are_a_square_of_axes(kind):
    values, env = torch.randn(200, D), torch.arange(200) % 6
    latents = {"tensor": values, "array": values.numpy(), "frame": pd.DataFrame(values.numpy())}[kind]
    axes = plots.latent_pairs(latents, env, highlight=[1, 5], env_names=[f"drug {e}" for e in range(6)])
    draw()
    assert axes.shape == (D, D) and all(isinstance(ax, Axes) for ax in axes.flat)
    assert [ax.get_xlabel() for ax in axes[-1]] == [ax.get_ylabel() for ax in axes[:, 0]]
    assert [ax.get_xlabel() for ax in axes[-1]] == ["latent 0", "latent 1", "latent 2"]
    [legend] = axes[0, 0].get_figure().legends
    assert [t.get_text() for t in legend.get_texts()] == ["others", "drug 1", "drug 5"]
    points = axes[1, 0].collections[1].get_offsets()
    np.testing.assert_allclose(np.sort(points[:, 0]), np.sort(values[env == 1, 0].numpy()))


def test_latent_pairs_take_some_dimensions_and_points():
    values, env = torch.randn(500, 9), torch.zeros(500, dtype=torch.long)
    assert plots.latent_pairs(values, env).shape == (5, 5)
    axes = plots.latent_pairs(values, env, dims=[8, 2], max_points=50)
    draw()
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["latent 8", "latent 2"]
    assert sum(len(c.get_offsets()) for c in axes[0, 1].collections) == 50


def test_latent_pairs_draw_one_latent_and_a_constant_one():
    env = torch.arange(20) % 3
    assert plots.latent_pairs(torch.randn(20, 1), env).shape == (1, 1)
    plots.latent_pairs(torch.cat([torch.full((20, 1), 5.0), torch.randn(20, 1)], 1), env)
    draw()


def test_predictions_state_the_correlation():
    x = torch.randn(20, 10)
    y = x + torch.randn(20, 10)
    _, given = plt.subplots()
    ax = plots.predictions(x, y, ax=given)
    draw()
    assert ax is given and (ax.get_xlabel(), ax.get_ylabel()) == ("predicted", "measured")
    assert ax.get_title() == f"r = {np.corrcoef(x.flatten(), y.flatten())[0, 1]:.3f} over all entries"
    assert isinstance(plots.predictions(x, y), Axes)


@pytest.mark.parametrize("term", ["loss", "log_likelihood", "kl"])
def test_learning_curves_of_one_model(term):
    _, given = plt.subplots()
    ax = plots.learning_curves(history(), ax=given, term=term)
    draw()
    assert ax is given and ax.get_xlabel() == "epoch" and "nats" in ax.get_ylabel()
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["train", "held out"]
    if term == "loss":
        [best] = [line for line in ax.lines if line.get_marker() == "o"]
        assert best.get_xdata()[0] == np.cos(np.arange(5)).argmin()


def test_learning_curves_of_several_models_and_without_held_out_data():
    ax = plots.learning_curves({"a": history(), "b": history(valid=False)})
    draw()
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a train", "a held out", "b train"]
    many = plots.learning_curves({f"model {i}": history() for i in range(9)})
    assert len(many.get_legend().get_texts()) == 18


def test_ood_curve_draws_medians_and_the_training_range():
    offsets, losses = [0, 1, 2], {"one": [1, 2, 3], "seeds": [[1, 2, 9], [3, 4, 5], [2, 9, 1]]}
    _, given = plt.subplots()
    ax = plots.ood_curve(offsets, losses, ax=given, direction="T_1", training_range=(0, 1))
    draw()
    assert ax is given and ax.get_xlabel() == "offset of T_1" and "loss" in ax.get_ylabel()
    assert ax.get_yscale() == "log" and plots.ood_curve(offsets, losses, log=False).get_yscale() == "linear"
    assert ax.lines[1].get_ydata().tolist() == [2, 4, 5]
    assert {"one", "seeds", "seen in training"} == {t.get_text() for t in ax.get_legend().get_texts()}


def test_the_callers_settings_stay(shift):
    before = dict(plt.rcParams)
    plots.interventions(shift)
    plots.learning_curves(history())
    assert dict(plt.rcParams) == before


def test_a_matching_from_metrics_fits(shift):
    z = torch.randn(40, D)
    plots.interventions(shift, shift, match_latents(z[:, :2], z))
    draw()


# Latent interventions: outliers, sizes, keys


def test_one_outlier_does_not_wash_out_the_rest(shift):
    loc = shift.loc.clone()
    loc[3, 0] = 500.0
    [ax] = plots.interventions(NoiseShift(loc, shift.log_scale))
    assert ax.images[0].get_clim()[1] < 10
    crosses = ax.collections[1].get_offsets()
    assert len(crosses) == 1 and ax.get_yticklabels()[int(crosses[0][1])].get_text() == "env 3"
    keys = [t.get_text() for t in ax.get_legend().get_texts()]
    assert keys[0] == "noise wider or narrower by > 25 %" and keys[1].startswith("beyond ±")


def test_a_page_of_many_latents_stays_a_page(matching):
    axes = plots.interventions(NoiseShift(torch.randn(90, 200), torch.zeros(90, 200)), max_envs=90)
    width, height = axes[0].get_figure().get_size_inches()
    assert width < 20 and height < 20


def test_given_axes_all_have_names_and_their_number_is_checked(shift, matching):
    given = plt.subplots(1, 2)[1]
    drawn = plots.interventions(shift, shift, matching, axes=given, env_names=[f"drug {e}" for e in range(E)])
    assert all(ax.get_yticklabels()[0].get_text() == "drug 0" for ax in drawn)
    with pytest.raises(ValueError, match="axes must be 2 Axes .*got 1"):
        plots.interventions(shift, shift, matching, axes=[given[0]])


def test_latent_pairs_of_one_latent_have_a_key():
    axes = plots.latent_pairs(torch.randn(60, 1), torch.arange(60) % 3, highlight=[1])
    assert [t.get_text() for t in axes[0, 0].get_figure().legends[0].get_texts()] == ["others", "env 1"]


def test_predictions_have_a_colour_bar_and_hold_every_entry():
    x = torch.randn(50, 4)
    x[0, 0] = 30.0
    ax = plots.predictions(x, x)
    assert len(ax.get_figure().axes) == 2 and ax.get_xlim()[1] > 30
    assert int(ax.collections[0].get_array().sum()) == 200


def test_the_range_seen_in_training_can_be_seen():
    ax = plots.ood_curve([0, 1, 2], {"one": [1, 2, 3]}, training_range=(0, 1))
    assert max(ax.patches[0].get_facecolor()[:3]) < 0.9


def effects_table():
    pairs = [(f"env {e}", f"latent {j}") for e in range(4) for j in range(3)]
    shift = np.linspace(-2, 3, 12)
    columns = {
        "shift": shift,
        "low": shift - 1,
        "high": shift + 1,
        "sd_ratio": 1.0,
        "probability": np.linspace(0, 1, 12),
    }
    return pd.DataFrame(pairs, columns=["environment", "latent"]).assign(**columns)


def test_effects_draw_the_strongest_with_their_intervals():
    table = effects_table()
    table.loc[11, ["low", "high"]] = [-np.inf, np.nan]
    _, given = plt.subplots()
    ax = plots.effects(table, ax=given, top=5)
    draw()
    assert ax is given
    labels = [t.get_text() for t in ax.get_yticklabels()]
    assert len(labels) == 5 and labels[-1] == "env 3, latent 2"
    ends = [segment[:, 0] for segment in ax.collections[0].get_segments()]
    np.testing.assert_allclose(ends[0], table["shift"].iloc[7] + np.array([-1, 1]))
    assert np.isfinite(ends).all()
    with pytest.raises(ValueError, match="no rows"):
        plots.effects(table.iloc[:0])


@pytest.mark.parametrize("n", [1, 2, 6, 150])
def test_similarity_puts_like_beside_like(n):
    group = np.arange(n) % 2
    values = (group[:, None] == group).astype(float)
    names = [f"env {e}" for e in range(n)]
    ax = plots.similarity(pd.DataFrame(values, index=names, columns=names))
    draw()
    image = ax.images[0].get_array()
    assert image.shape == (n, n) and len(ax.get_yticklabels()) <= 60
    if n > 2:  # two blocks: one change along the first row
        assert np.abs(np.diff(image[0])).sum() == 1


def test_similarity_of_directions_has_two_colours():
    values = pd.DataFrame([[1, -1], [-1, 1.0]], index=["a", "b"], columns=["a", "b"])
    assert plots.similarity(values).images[0].get_clim() == (-1, 1)


# Calibration


def test_rank_histograms_show_the_expected_range():
    ranks = np.random.default_rng(0).integers(0, 100, 2000)
    _, given = plt.subplots()
    ax = plots.rank_histogram(ranks, 99, ax=given)
    draw()
    assert ax is given and ax.patches[1].get_data().values.sum() == 2000
    low, high = ax.patches[0].get_y(), ax.patches[0].get_y() + ax.patches[0].get_height()
    assert low < 100 < high


@pytest.mark.parametrize("n", [100, 1000])
def test_the_envelope_holds_the_whole_curve_as_often_as_it_says(n):
    """1,000 uniform samples at level 0.9: within four standard errors, and 0.02 for the simulated envelope."""
    from pyro_cge.plots.calibration import _envelope

    grid = np.arange(1, 100) / 100
    low, high = _envelope(n, grid, 0.9)
    ranks = np.random.default_rng(1).integers(0, 100, (1000, n))
    share = np.stack([(ranks < k).mean(1) for k in range(1, 100)], 1)
    inside = ((low - 1e-9 <= share) & (share <= high + 1e-9)).all(1).mean()
    assert abs(inside - 0.9) < 4 * 0.0095 + 0.02


def test_rank_ecdf_names_its_curves():
    ranks = np.random.default_rng(0).integers(0, 100, 500)
    ax = plots.rank_ecdf({"one": ranks, "other": np.sort(ranks)}, 99)
    draw()
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["99% envelope, 500 ranks", "one", "other"]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), ax.lines[1].get_ydata())
    assert plots.rank_ecdf(ranks, 99).lines[0].get_ydata()[49] == pytest.approx((ranks < 50).mean() - 0.5)


def test_coverage_draws_one_or_several_tables():
    table = pd.DataFrame({"level": [0.5, 0.9], "coverage": [0.4, 0.8], "low": [0.3, 0.7], "high": [0.5, 0.9], "n": 100})
    ax = plots.coverage(table)
    draw()
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [0.4, 0.8])
    several = plots.coverage({"a": table, "b": table})
    assert [t.get_text() for t in several.get_legend().get_texts()] == ["calibrated", "a", "b"]


def test_predictive_checks_count_what_is_missed():
    columns = {
        "observed": [0.0, 1, 2],
        "replicated": [0.1, 1, 5],
        "low": [-1, 0, 4],
        "high": [1, 2, 6],
        "p": [0.5, 0.4, 1],
    }
    table = pd.DataFrame({"statistic": "mean", "gene": list("abc"), **columns})
    ax = plots.predictive_check(table)
    draw()
    labels = [t.get_text() for t in ax.get_legend().get_texts()]
    assert labels == ["replicated (2 of 3 genes)", "missed (1 of 3 genes)"]
    with pytest.raises(ValueError, match="no statistic 'sd'"):
        plots.predictive_check(table, "sd")

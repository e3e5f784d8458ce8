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

"""What the paper benchmark measures with: angles between weight matrices, paired fits, unseen environments."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_cge as cge

FOLDER = Path(__file__).parents[1] / "benchmarks" / "paper"


@pytest.fixture(scope="module", autouse=True)
def importable():
    """The benchmark's modules, for as long as this module's tests run."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))
    for name in {"angles", "linear", "linear_plots", "network", "network_plots", "rows", "two_environments"} - before:
        sys.modules.pop(name, None)


@pytest.fixture
def weights():
    return np.random.default_rng(0).choice([-1.0, 0.0, 1.0], (10, 2)) + np.array([[0.0, 0.3]])


def turned(weights, degrees):
    a = np.radians(degrees)
    return weights @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])


@pytest.mark.parametrize("degrees", [-170.0, -90.0, 0.0, 12.0, 72.0, 135.0])
@pytest.mark.parametrize("mirrored", [False, True])
def test_the_angle_of_a_turned_matrix_is_found_with_its_mirror(weights, degrees, mirrored):
    import angles

    true = angles.mirror(weights) if mirrored else weights
    found = angles.angles(weights, turned(true, degrees))
    assert found.mirrored == mirrored
    assert found.mean == pytest.approx(degrees, abs=1e-9)
    assert found.sd == pytest.approx(0, abs=1e-5)
    assert found.off_axis == pytest.approx(min(degrees % 90, -degrees % 90), abs=1e-9)


def test_angles_do_not_depend_on_the_genes_units_and_are_spread_by_noise(weights):
    import angles

    rng = np.random.default_rng(1)
    found = turned(weights, 40)
    assert angles.angles(weights, found * rng.uniform(0.1, 9, (10, 1))).sd == pytest.approx(0, abs=1e-5)
    # The circular sd of angles all within a few degrees is their sd.
    each = rng.normal(0, 3, 10)
    spread = np.concatenate([turned(row[None], d) for row, d in zip(found, each, strict=True)])
    assert angles.angles(weights, spread).sd == pytest.approx(each.std(), rel=1e-2)
    assert angles.angles(weights, rng.standard_normal((10, 2))).sd > 20


def test_free_scales_find_a_match_that_fixed_ones_do_not(weights):
    import angles

    found = turned(weights, 25) * np.array([1.0, np.exp(1.5)])
    assert angles.angles(weights, found).sd > 5
    free = angles.angles_with_scales(weights, found)
    assert free.sd < 0.5 and free.mean == pytest.approx(25, abs=0.5)


def test_at_the_principal_angle_the_noise_is_uncorrelated_given_the_genes():
    import angles
    import linear

    truth = linear.truth_of(False, cge.simulate.reference(2), 1)
    true = linear.true_weights(truth)
    for mirrored in (False, True):
        found = turned(angles.mirror(true) if mirrored else true, linear.principal_angle(truth, mirrored))
        found = found / truth.decoder.scale.double().numpy()[:, None]
        precision = found.T @ found
        assert precision[0, 1] == pytest.approx(0, abs=1e-6 * precision.trace())


def test_true_weights_generate_the_data():
    import linear

    truth = linear.truth_of(True, cge.simulate.offsets([(0, 0), (0, 0.5)]), 0)
    data = linear.sample(truth, 400, 0)
    left = data.x - data.truth.c @ torch.from_numpy(linear.true_weights(truth)).float().T
    assert (left.std(0) / truth.decoder.scale - 1).abs().max() < 0.2
    # The second latent is a function of the first, but for the offset.
    z, c = data.truth.z, data.truth.c
    assert (c[:, 0] - z[:, 0]).abs().max() == 0
    first = c[data.env == 0]
    assert min((first[:, 1] - s * first[:, 0]).abs().max() for s in (-1, 1)) < 1e-2


def test_every_variant_starts_from_the_weights_of_the_basic_vae():
    import linear
    import two_environments as two

    truth = linear.truth_of(True, two.described(cge.simulate.offsets([(0, 0), (0, 0.5)])), 0)
    data = linear.sample(truth, 40, 0)
    start, start_guide = two.pair_of(two.VARIANTS["basic"], data, 3)
    x = data.x.clone()
    for variant in two.VARIANTS.values():
        model, guide = two.pair_of(variant, data, 3)
        for mine, first in ((guide.layers, start_guide.layers), (guide.head, start_guide.head)):
            assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), first.parameters(), strict=True))
        c = torch.eye(2)
        mean = start.decoder.mean(c)
        decoder = model.decoder
        mine = decoder.latent(c) if isinstance(decoder, cge.ConditionalDecoder) else decoder.mean(c)
        assert torch.equal(mine, mean)
    assert torch.equal(x, data.x)


def test_undescribed_profiles_are_those_of_the_reference_environment():
    import linear
    import two_environments as two

    truth = linear.truth_of(True, two.described(cge.simulate.offsets([(0, 0), (0, 0.5)])), 0)
    data = linear.sample(truth, 40, 0)
    test = truth.sample(2, environments=two.described(linear.directions()), seed=1)
    with cge.isolated(0):
        model, guide = cge.environment_vae(data, 2, hidden=(5,), decoder="linear")
    scaler = cge.Standardizer.fit(data)
    nothing = two.undescribed(test)
    told = cge.Posterior(model, guide, nothing, scaler, schema=data.schema()).reconstruct()
    one = cge.EnvironmentData(
        test.x, torch.zeros_like(test.env), data.gene_names, ["anything"], env_features=torch.zeros(1, 2), control=(0,)
    )
    torch.testing.assert_close(told, cge.Posterior(model, guide, one, scaler, schema=data.schema()).reconstruct())
    described = cge.Posterior(model, guide, test, scaler, schema=data.schema()).reconstruct()
    assert not torch.allclose(told, described)


def test_curves_keep_direction_and_offset():
    import linear

    names = linear.directions().names
    records = linear.curve(np.arange(len(names), dtype=float))
    assert [f"direction {r['direction']}, offset {r['offset']}" for r in records] == names
    ends = [i for i, n in enumerate(names) if n.startswith("direction 1") and n.endswith("20")]
    assert linear.at_twenty(records, 1) == np.mean(ends)


def test_networks_share_the_truth_but_not_the_environments():
    import network

    a, b = network.Experiment.draw(3, 0, profiles=60), network.Experiment.draw(3, 1, profiles=60)
    assert torch.equal(a.test.truth.shift.loc, b.test.truth.shift.loc) and not torch.equal(a.train.x, b.train.x)
    assert not set(a.train.env_names) & set(a.test.env_names) and a.train.n == 60
    # One projection describes both: features are the same linear function of the shifts.
    shifts = torch.cat([a.train.truth.shift.loc, a.test.truth.shift.loc])
    features = torch.cat([a.train.env_features, a.test.env_features])
    solution = torch.linalg.lstsq(shifts, features, driver="gelsd").solution
    torch.testing.assert_close(shifts @ solution, features, atol=1e-4, rtol=1e-4)
    assert (a.test.truth.targets.sum(1) == 1).all()


def test_differences_are_paired_by_graph():
    import network

    scale = np.repeat([1.0, 10.0, 100.0], 2)  # graphs differ far more than models do
    rows = pd.concat(
        pd.DataFrame(
            {
                "model": model,
                "unseen": "described",
                "graph": [0, 0, 1, 1, 2, 2],
                "training": 0.0,
                "best": scale * factor,
                "last": scale * factor,
                "predicted": 0.0,
            }
        )
        for model, factor in (("basic", 1.0), ("other", 1.1))
    )
    table = network.against_basic(rows)
    found = table.loc[("other", "described")]
    assert found["ratio"] == pytest.approx(1.1) and found["ratio low"] == pytest.approx(1.1)
    assert found["difference"] == pytest.approx(3.7)


def test_interval_covers_the_mean():
    """95 % intervals of 400 samples of 10: the share that covers is within 4 sd (0.044), failing once in 16,000."""
    import network

    rng = np.random.default_rng(0)
    bounds = [network.interval(pd.Series(rng.standard_normal(10) + 2)) for _ in range(400)]
    assert abs(np.mean([low <= 2 <= high for _, low, high in bounds]) - 0.95) < 0.044


def test_exact_inference_is_where_the_log_density_is_highest():
    import linear
    import two_environments as two

    truth = linear.truth_of(True, two.described(cge.simulate.offsets([(0, 0), (0, 0.5)])), 0)
    data = linear.sample(truth, 40, 0)
    for name in ("environment", "conditional"):
        fit = cge.fit(*two.pair_of(two.VARIANTS[name], data, 0), data, epochs=2, validation=None, progress=False)
        refined = cge.guides.refined.RefinedGuide(fit.guide, steps=500, lr=0.05)
        posterior = cge.Posterior(fit.model, refined, data, fit.scaler, schema=fit.schema)
        errors = cge.metrics.reconstruction_loss(data.x, posterior.reconstruct()) / data.g
        by_env = [float(errors[data.env == e].mean()) for e in (0, 1)]
        assert linear.exact_losses(fit, data) == pytest.approx(by_env, rel=0.02)


def test_planes_are_compared_whatever_the_map_between_them(weights):
    import angles

    rng = np.random.default_rng(3)
    assert angles.span_angle(weights, weights @ rng.standard_normal((2, 2))) == pytest.approx(0, abs=1e-4)
    one_latent = np.column_stack([weights[:, 0], rng.standard_normal(10)])
    assert angles.span_angle(weights, one_latent) > 45

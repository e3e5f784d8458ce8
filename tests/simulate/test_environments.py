"""Designs of environments: what each does to which latent."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from pyro_cge import NoiseShift
from pyro_cge.errors import ConfigError, DataError
from pyro_cge.simulate import (
    Environments,
    combinations,
    descriptors,
    graded_doses,
    multi_target,
    offsets,
    one_per_latent,
    random_shifts,
    reference,
)

D = 5
DESIGNS = {
    "reference": lambda seed: reference(D),
    "offset": lambda seed: reference(D, offset=[1, 0, 0, 2, 0]),
    "offsets": lambda seed: offsets([[0] * D, [1, 0, 0, 0, 0], [0, 2, 0, 0, -3]]),
    "random": lambda seed: random_shifts(D, 9, variance=5, seed=seed),
    "random without control": lambda seed: random_shifts(D, 9, sd=2, control=False, seed=seed),
    "shift": lambda seed: one_per_latent(D),
    "scale": lambda seed: one_per_latent(D, kind="scale", value=0.5),
    "hard": lambda seed: one_per_latent(D, kind="hard", value=2.0),
    "mechanism": lambda seed: one_per_latent(D, kind="mechanism", value=0.0, control=False),
    "several": lambda seed: multi_target(D, 9, seed=seed),
    "combinations": lambda seed: combinations(random_shifts(D, 3, sd=2, seed=seed)),
    "doses": lambda seed: graded_doses(D, 3, seed=seed),
    "described": lambda seed: descriptors(D, 7, seed=seed)(random_shifts(D, 9, sd=2, seed=seed)),
}


@pytest.mark.parametrize("name", DESIGNS)
def test_every_design_is_consistent(name):
    design = DESIGNS[name](0)
    n = len(design)
    assert design.d == D
    assert len(set(design.names)) == n
    assert design.shift.loc.shape == design.shift.log_scale.shape == (n, D)
    assert design.shift.loc.dtype == torch.float32 and design.shift.loc.isfinite().all()
    assert design.targets.shape == (n, D) and design.targets.dtype == torch.bool
    assert not design.targets[list(design.control)].any(), "a control has no target"
    treated = [e for e in range(n) if e not in design.control]
    assert design.targets[treated].any(1).all(), "every other environment has one"
    schema = design.schema(["a", "b"])
    assert schema.n == 0 and list(schema.env_names) == design.names and schema.control == design.control


@pytest.mark.parametrize("name", DESIGNS)
def test_a_seed_decides_the_design(name):
    first, again = DESIGNS[name](3), DESIGNS[name](3)
    assert torch.equal(first.shift.loc, again.shift.loc) and first.names == again.names
    if name in ("random", "random without control", "several", "combinations", "doses", "described"):
        assert not torch.equal(first.shift.loc, DESIGNS[name](4).shift.loc)


@pytest.mark.parametrize("name", DESIGNS)
def test_designs_leave_the_callers_random_state_alone(name):
    before, state = torch.get_rng_state(), np.random.get_state()[1].copy()
    DESIGNS[name](0)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == state).all()


def test_reference():
    plain = reference(3)
    assert plain.names == ["control"] and plain.control == (0,) and not plain.shift.loc.any()
    moved = reference(3, offset=[1, 0, -2.5])
    assert moved.names == ["(1, 0, -2.5)"] and moved.control == ()
    assert moved.shift.loc.tolist() == [[1, 0, -2.5]]
    with pytest.raises(ConfigError, match="one number a latent"):
        reference(3, offset=[1, 2])


def test_offsets_are_the_papers_notation():
    design = offsets([[1, 0], [0, 0], [0, -2]])
    assert design.names == ["(1, 0)", "(0, 0)", "(0, -2)"]
    assert design.control == (1,)
    assert design.targets.tolist() == [[True, False], [False, False], [False, True]]


def test_random_shifts_move_one_latent_each():
    design = random_shifts(D, 12, variance=5)
    assert design.names == ["control"] + [f"env {i}" for i in range(1, 13)]
    assert (design.targets[1:].sum(1) == 1).all()
    assert not design.shift.log_scale.any()
    assert len(random_shifts(D, 12, variance=5, control=False)) == 12
    assert random_shifts(D, 12, variance=5, control=False).control == ()


@pytest.mark.parametrize(("given", "sd"), [({"variance": 5.0}, math.sqrt(5)), ({"sd": 5.0}, 5.0)])
def test_variance_is_a_variance_and_sd_an_sd(given, sd):
    n = 4000
    design = random_shifts(D, n, control=False, seed=1, **given)
    sizes = design.shift.loc.sum(1)
    # Five standard errors of mean and sd: failure rate below 1e-6 each.
    assert abs(sizes.std() / sd - 1) < 5 / math.sqrt(2 * n)
    assert abs(sizes.mean()) < 5 * sd / math.sqrt(n)
    counts = design.targets.sum(0).double()
    assert ((counts - n / D) ** 2 / (n / D)).sum() < 33  # chi-square, 4 degrees of freedom: 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_cover_visits_every_latent_before_repeating(seed):
    design = random_shifts(D, D + 3, sd=2, cover=True, control=False, seed=seed)
    assert design.targets[:D].any(0).all()
    few = random_shifts(D, 3, sd=2, cover=True, control=False, seed=seed)
    assert few.targets.sum() == 3 and few.targets.any(0).sum() == 3


@pytest.mark.parametrize("given", [{}, {"variance": 1.0, "sd": 1.0}])
def test_random_shifts_needs_variance_or_sd(given):
    with pytest.raises(ConfigError, match="exactly one of variance and sd"):
        random_shifts(D, 3, **given)


@pytest.mark.parametrize("kind", ["shift", "scale", "hard", "mechanism"])
@pytest.mark.parametrize("control", [True, False])
def test_one_environment_a_latent(kind, control):
    design = one_per_latent(D, kind=kind, value=2.0, control=control)
    first = int(control)
    assert len(design) == D + first and design.control == ((0,) if control else ())
    assert torch.equal(design.targets[first:], torch.eye(D, dtype=torch.bool))
    eye = torch.eye(D)
    nan = torch.where(eye.bool(), 2.0, torch.nan)
    setting = {
        "shift": (design.shift.loc, eye * 2),
        "scale": (design.shift.scale, 1 + eye),
        "hard": (design.hard, nan),
        "mechanism": (design.gain, nan),
    }
    mine, expected = setting[kind]
    torch.testing.assert_close(mine[first:], expected, equal_nan=True)
    for other in setting.keys() - {kind}:
        values = setting[other][0]
        assert values is None or torch.equal(values, torch.full_like(values, float(other == "scale")))


def test_one_per_latent_refuses_bad_settings():
    with pytest.raises(ConfigError, match="'shift', 'scale', 'hard' or 'mechanism'"):
        one_per_latent(D, kind="soft")
    for value in (0.0, -1.0):
        with pytest.raises(ConfigError, match="positive factor"):
            one_per_latent(D, kind="scale", value=value)


def test_multi_target_has_between_low_and_high_targets():
    design = multi_target(10, 300, n_targets=(1, 3), loc=5.0, sd=0.5)
    counts = design.targets[1:].sum(1)
    assert set(counts.tolist()) == {1, 2, 3}
    # Uniform on 1, 2, 3: chi-square with 2 degrees of freedom, failure rate 1e-6.
    assert ((torch.bincount(counts)[1:] - 100.0) ** 2 / 100).sum() < 27.7
    sizes = design.shift.loc[design.targets]
    assert abs(sizes.abs().mean() - 5) < 5 * 0.5 / math.sqrt(len(sizes))
    assert abs((sizes > 0).float().mean() - 0.5) < 5 * 0.5 / math.sqrt(len(sizes))


@pytest.mark.parametrize("n_targets", [(0, 2), (3, 2), (1, D + 1)])
def test_multi_target_refuses_impossible_numbers(n_targets):
    with pytest.raises(ConfigError, match="n_targets"):
        multi_target(D, 3, n_targets=n_targets)


def test_combinations_add_up():
    singles = Environments(
        ["control", "a", "b", "c"],
        NoiseShift(
            torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 3, 4]]),
            torch.tensor([[0.0, 0, 0], [0, 0, 0.5], [0.25, 0, 0], [0, 0, 1]]),
        ),
        control=(0,),
    )
    both = combinations(singles)
    assert both.names == ["control", "a", "b", "c", "a+b", "a+c", "b+c"]
    assert both.control == (0,)
    pairs = list(itertools.combinations([1, 2, 3], 2))
    for row, (i, j) in enumerate(pairs, start=4):
        assert torch.equal(both.shift.loc[row], singles.shift.loc[i] + singles.shift.loc[j])
        assert torch.equal(both.shift.log_scale[row], singles.shift.log_scale[i] + singles.shift.log_scale[j])
    assert torch.equal(both.shift.loc[:4], singles.shift.loc)
    assert list(both.table["parts"]) == both.names
    one = combinations(singles, [("c", "a")])
    assert one.names[4:] == ["c+a"] and torch.equal(one.shift.loc[4], torch.tensor([1.0, 3, 4]))


def test_combinations_refuse_what_does_not_add():
    for kind in ("hard", "mechanism"):
        with pytest.raises(ConfigError, match="do not add"):
            combinations(one_per_latent(3, kind=kind))
    with pytest.raises(ConfigError, match="unknown environments.*'nothing'"):
        combinations(one_per_latent(3), [("shift 0", "nothing")])


@pytest.mark.parametrize("seed", range(4))
def test_graded_doses_grow_with_the_dose(seed):
    doses = (0.04, 0.12, 0.37, 1.11, 3.33, 10.0)
    design = graded_doses(D, 6, doses=doses, seed=seed)
    assert len(design) == 1 + 6 * len(doses)
    assert list(design.table.columns) == ["perturbagen", "dose"]
    assert design.table["dose"].iloc[0] == 0
    for _, rows in design.table.iloc[1:].groupby("perturbagen"):
        at = [design.names.index(name) for name in rows.index]
        assert rows["dose"].tolist() == list(doses)
        loc = design.shift.loc[at]
        assert design.targets[at].any(0).sum() == 1, "one target a drug"
        size = loc.sum(1)
        assert (size.abs().diff() > 0).all()
        assert (size > 0).all() or (size < 0).all()


@pytest.mark.parametrize("doses", [[0.0, 1.0], [-1.0], [math.nan]])
def test_graded_doses_refuse_doses_that_are_not_positive(doses):
    with pytest.raises(ConfigError, match="positive concentrations"):
        graded_doses(D, 2, doses=doses)


def test_descriptors_are_linear_in_the_shift():
    describe = descriptors(D, 7, seed=2)
    one, two = one_per_latent(D, value=1.0), one_per_latent(D, value=2.0)
    a, b = describe(one), describe(two)
    assert a.features.shape == (D + 1, 7)
    torch.testing.assert_close(2 * a.features, b.features)
    assert not a.features[0].any()
    assert torch.equal(a.shift.loc, one.shift.loc) and one.features is None
    assert a.schema(["g"]).n_features == 7


def test_targets_count_every_kind_of_intervention():
    nan = math.nan
    design = Environments(
        list("abcd"),
        NoiseShift(
            torch.tensor([[1.0, 0], [0, 0], [0, 0], [0, 0]]), torch.tensor([[0.0, 0], [0, -0.5], [0, 0], [0, 0]])
        ),
        hard=torch.tensor([[nan, nan], [nan, nan], [0.0, nan], [nan, nan]]),
        gain=torch.tensor([[nan, nan], [nan, nan], [nan, nan], [nan, 1.0]]),
    )
    assert design.targets.tolist() == [[True, False], [False, True], [True, False], [False, True]]


def test_duplicate_names_are_refused():
    design = Environments(["a", "a"], NoiseShift.standard(2, 3))
    with pytest.raises(DataError, match="duplicates"):
        design.schema(["gene"])

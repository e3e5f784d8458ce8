"""Ranks of drugs and their posterior: against direct formulas, and under laws they must keep."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr, spearmanr

from pyro_cge.errors import ConfigError, DataError
from pyro_cge.imputation import ActionMean, Effects, rank_drugs

GENES = [f"g{j}" for j in range(60)]


class Believer:
    """Predicts what it was given, with an sd."""

    def __init__(self, mean, std):
        self.mean, self.std = mean, std

    def predict(self, pairs, return_std=False):
        assert list(pairs.columns) == ["context", "action"]
        return (self.mean, self.std) if return_std else self.mean


@pytest.fixture(scope="module")
def world():
    """Eight drugs in two cells; drug k is the disease times (k − 3.5) with noise."""
    rng = np.random.default_rng(0)
    disease = pd.Series(rng.standard_normal(60), index=GENES)
    context, action = np.divmod(np.arange(16), 8)
    x = np.outer(action - 3.5, disease) + 2.0 * rng.standard_normal((16, 60))
    effects = Effects(x, context, action, ["A549", "MCF7"], [f"drug{k}" for k in range(8)], GENES)
    return disease, effects


def test_scores_are_correlations_and_the_most_negative_comes_first(world):
    disease, effects = world
    table = rank_drugs(disease, effects, context="A549", draws=50)
    x = effects.tensor()[0]
    expected = {f"drug{k}": pearsonr(x[k], disease)[0] for k in range(8)}
    assert table["score"].to_dict() == pytest.approx(expected)
    assert table["score"].is_monotonic_increasing and list(table["rank"]) == list(range(1, 9))
    assert table.index[0] in ("drug0", "drug1") and table.attrs["genes"] == 60
    monotone = rank_drugs(disease, effects, context="A549", score="spearman", draws=5)
    assert monotone["score"].to_dict() == pytest.approx({f"drug{k}": spearmanr(x[k], disease)[0] for k in range(8)})
    cosine = rank_drugs(disease, effects, context="A549", score="cosine", draws=5)["score"]
    assert cosine["drug2"] == pytest.approx(x[2] @ disease / np.linalg.norm(x[2]) / np.linalg.norm(disease))


def test_without_a_context_drugs_are_averaged_over_contexts(world):
    disease, effects = world
    table = rank_drugs(disease, effects, draws=5)
    mean = effects.tensor().mean(0)
    assert table["score"].to_dict() == pytest.approx({f"drug{k}": pearsonr(mean[k], disease)[0] for k in range(8)})
    assert len(rank_drugs(disease, effects.take(np.arange(3)), draws=5)) == 3, "drugs never measured are not ranked"


def test_intervals_hold_the_rank_and_shrink_with_the_sd(world):
    disease, effects = world
    mean = effects.tensor()[0]
    widths = []
    for sd in (1e-6, 5.0, 40.0):
        table = rank_drugs(disease, effects, context="A549", imputer=Believer(mean, np.full_like(mean, sd)), draws=300)
        assert (table["rank_low"] <= table["rank_median"]).all() and (table["rank_median"] <= table["rank_high"]).all()
        assert table["p_top"].eq(1).all(), "eight drugs are all among the best ten"
        widths.append((table["rank_high"] - table["rank_low"]).mean())
    assert widths[0] == 0 and widths[0] < widths[1] < widths[2]
    sure = rank_drugs(disease, effects, context="A549", imputer=Believer(mean, np.zeros_like(mean)), top=3)
    assert list(sure["p_top"]) == [1, 1, 1, 0, 0, 0, 0, 0]
    assert (sure["rank_median"] == sure["rank"]).all()


def test_probability_of_the_top_is_that_of_the_normal_law():
    """Two drugs, one gene direction that matters: P(first) = Φ(difference / (sd √2)) for the cosine of long signatures.

    Monte Carlo error with 4,000 draws is 0.008; a bound of 0.04 is five of them.
    """
    from scipy.stats import norm

    g = 4000
    rng = np.random.default_rng(1)
    disease = pd.Series(rng.standard_normal(g), index=[f"g{j}" for j in range(g)])
    y = disease.to_numpy() / np.linalg.norm(disease)
    rest = rng.standard_normal((2, g))
    rest -= np.outer(rest @ y, y)
    rest *= 50 / np.linalg.norm(rest, axis=1, keepdims=True)
    mean = rest + np.outer([-1.0, -0.3], y)
    effects = Effects(mean, np.zeros(2, int), np.arange(2), ["A549"], ["a", "b"], list(disease.index))
    sd = 0.5
    table = rank_drugs(
        disease,
        effects,
        context="A549",
        imputer=Believer(mean, np.full_like(mean, sd)),
        score="cosine",
        top=1,
        draws=2000,
    )
    assert table.loc["a", "p_top"] == pytest.approx(norm.cdf(0.7 / (sd * np.sqrt(2))), abs=0.04)


def test_posterior_is_calibrated():
    """Truth drawn from Normal(mean, sd²): the true rank falls into the 90 % interval in 90 % of drugs (± 0.05: 4.6 sd)."""
    rng = np.random.default_rng(2)
    disease = pd.Series(rng.standard_normal(40), index=GENES[:40])
    inside = []
    for _ in range(20):
        mean, std = rng.standard_normal((40, 40)), rng.uniform(0.2, 1.5, (40, 40))
        truth = mean + std * rng.standard_normal(mean.shape)
        effects = Effects(truth, np.zeros(40, int), np.arange(40), ["A549"], [f"d{k}" for k in range(40)], GENES[:40])
        ranks = rank_drugs(disease, effects, context="A549", draws=1)["rank"]
        table = rank_drugs(disease, effects, context="A549", imputer=Believer(mean, std), draws=400)
        # Ranks are whole numbers, quantiles are not: round outwards.
        inside += list(
            (np.floor(table["rank_low"]) <= ranks[table.index]) & (ranks[table.index] <= np.ceil(table["rank_high"]))
        )
    assert 0.85 < np.mean(inside) < 0.97


def test_ranks_do_not_hang_on_units_order_or_the_caller_s_random_state(world):
    disease, effects = world
    table = rank_drugs(disease, effects, draws=40)
    scaled = rank_drugs(3 * disease[::-1] + 1, effects, draws=40)
    pd.testing.assert_series_equal(scaled["score"], table["score"])
    np.random.seed(5)
    pd.testing.assert_frame_equal(rank_drugs(disease, effects, draws=40), table)
    other = rank_drugs(disease, effects, draws=40, random_state=1)
    assert not other["rank_median"].equals(table["rank_median"]) or not other["rank_low"].equals(table["rank_low"])


def test_replicates_of_the_disease_widen_intervals(world):
    disease, effects = world
    rng = np.random.default_rng(3)
    mean, none = effects.tensor()[0], np.zeros((8, 60))
    noisy = pd.DataFrame({k: disease + 4 * rng.standard_normal(60) for k in range(3)})
    same = pd.DataFrame({k: noisy.mean(axis=1) for k in range(3)})
    width = {}
    for name, given in (("noisy", noisy), ("same", same)):
        table = rank_drugs(given, effects, context="A549", imputer=Believer(mean, none), draws=200)
        width[name] = float((table["rank_high"] - table["rank_low"]).sum())
    assert width["same"] == 0 < width["noisy"]


def test_effects_are_transported_to_a_context_in_which_nothing_was_measured(world):
    disease, effects = world
    new = Effects(effects.x, effects.context, effects.action, ["A549", "MCF7", "Calu3"], effects.action_names, GENES)
    table = rank_drugs(disease, new, context="Calu3", imputer=ActionMean().fit(new), draws=20)
    expected = rank_drugs(disease, effects, draws=20)["score"]
    assert table["score"].to_dict() == pytest.approx(expected.to_dict())


def test_constant_signatures_count_as_no_correlation(world):
    disease, effects = world
    x = effects.x.copy()
    x[0] = 0.1  # drug0 in A549
    flat = Effects(x, effects.context, effects.action, effects.context_names, effects.action_names, GENES)
    table = rank_drugs(disease, flat, context="A549", draws=20)
    assert table.loc["drug0", "score"] == 0 and np.isfinite(table.to_numpy()).all()


def test_unusable_input_is_refused(world):
    disease, effects = world
    empty = Effects(effects.x, effects.context, effects.action, ["A549", "MCF7", "Calu3"], effects.action_names, GENES)
    wrong = effects.tensor()[0].copy()
    wrong[0, 0] = np.nan
    cases = [
        ((disease.where(disease > -1), effects), {}, DataError, "signature of gene g"),
        ((disease * 0 + 1, effects), {}, DataError, "disease signature is constant over the 60 genes"),
        ((disease.set_axis([f"ENSG{j}" for j in range(60)]), effects), {}, DataError, "0 of the 60 genes"),
        ((disease, effects), {"context": "HeLa"}, DataError, "unknown context 'HeLa'"),
        ((disease, empty), {"context": "Calu3"}, DataError, "no drug was measured in context 'Calu3': give a fitted"),
        ((disease, effects), {"imputer": Believer(wrong, wrong)}, ConfigError, "say which with context="),
        (
            (disease, effects),
            {"imputer": Believer(wrong, wrong), "context": "A549"},
            DataError,
            "not finite in context 'A549'",
        ),
        ((disease, effects), {"score": "kendall"}, ConfigError, "score must be"),
        ((disease, effects), {"top": 0}, ConfigError, "top and draws"),
        ((disease, effects.take([])), {}, DataError, "no measured pair"),
        ((disease.to_frame()[[]], effects), {}, DataError, "no column"),
    ]
    for arguments, options, kind, message in cases:
        with pytest.raises(kind, match=message):
            rank_drugs(*arguments, **options)

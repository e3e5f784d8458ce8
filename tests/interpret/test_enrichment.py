"""Enrichment against SciPy's own tests, permutations, and planted sets."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pyro_cge.errors import ConfigError, DataError
from pyro_cge.interpret import over_representation, rank_enrichment, read_gmt, read_weighted_sets

GENES = [f"g{k}" for k in range(60)]


@pytest.fixture
def table():
    values = np.random.default_rng(0).normal(size=(60, 3)).round(1)  # rounded: ties
    return pd.DataFrame(values, index=GENES, columns=["a", "b", "c"])


def test_sets_without_weights_give_the_mann_whitney_test(table):
    sets = {"first": GENES[:15], "last": GENES[-7:], "unknown": ["nobody"] * 9}
    got = rank_enrichment(table, sets).set_index(["latent", "set"])
    assert len(got) == 6
    for (latent, name), row in got.iterrows():
        inside = table.index.isin(sets[name])
        x, y = table.loc[inside, latent], table.loc[~inside, latent]
        expected = stats.mannwhitneyu(x, y, method="asymptotic", use_continuity=False)
        assert row["p"] == pytest.approx(expected.pvalue, rel=1e-9)
        assert np.sign(row["z"]) == np.sign(expected.statistic - len(x) * len(y) / 2)
    np.testing.assert_allclose(got["q"].sort_index(), stats.false_discovery_control(got["p"].sort_index()))


@pytest.mark.parametrize("ranks", [True, False])
def test_signed_sets_have_the_moments_of_permutations(table, ranks):
    weights = {"g1": 1.0, "g4": -1.0, "g9": 2.5, "g20": -0.3, "g33": 1.0, "g50": 1.0}
    got = rank_enrichment(table[["a"]], {"set": weights}, ranks=ranks)["z"].iloc[0]
    w = np.array([weights.get(gene, 0.0) for gene in GENES])
    r = stats.rankdata(table["a"]) if ranks else table["a"].to_numpy()
    rng = np.random.default_rng(1)
    null = np.array([w @ rng.permutation(r) for _ in range(40_000)])
    # sd of 40,000 draws is known to 0.35 %, their mean to 0.005 sd
    assert got == pytest.approx((w @ r - null.mean()) / null.std(), abs=0.04)
    flipped = rank_enrichment(-table[["a"]], {"set": weights}, ranks=ranks)["z"].iloc[0]
    assert flipped == pytest.approx(-got)


def test_p_values_are_uniform_without_enrichment():
    """400 independent programmes; a Kolmogorov–Smirnov test at 0.001 (seed fixed)."""
    programmes = pd.DataFrame(np.random.default_rng(2).normal(size=(60, 400)), index=GENES).add_prefix("latent ")
    p = rank_enrichment(programmes, {"set": GENES[::4]})["p"]
    assert stats.kstest(p, "uniform").pvalue > 0.001


def test_over_representation_is_fishers_one_sided_test(table):
    sets = {"top": list(table["a"].nlargest(8).index), "other": GENES[:12]}
    got = over_representation(table, sets, n=10)
    assert len(got) == 3 * 2 * 2
    assert tuple(got.iloc[0][["latent", "direction", "set", "overlap"]]) == ("a", "up", "top", 8)
    for row in got.itertuples():
        order = np.argsort(-table[row.latent].to_numpy(), kind="stable")
        top = {GENES[k] for k in (order[:10] if row.direction == "up" else order[-10:])}
        overlap = len(top & set(sets[row.set]))
        assert row.overlap == overlap and set(row.genes.split("|")) - {""} == top & set(sets[row.set])
        square = [[overlap, 10 - overlap], [row.size - overlap, 50 - row.size + overlap]]
        assert row.p == pytest.approx(stats.fisher_exact(square, alternative="greater").pvalue)
        assert row.expected == pytest.approx(10 * row.size / 60)


def test_unusable_input_is_named(table):
    with pytest.raises(DataError, match=r"'TP53'.*'g0'"):
        rank_enrichment(table, {"set": ["TP53", "MYC", "EGFR", "JUN", "FOS"]})
    with pytest.raises(DataError, match="'g0' occurs twice"):
        rank_enrichment(pd.concat([table, table]), {"set": GENES[:10]})
    with pytest.raises(ConfigError, match="60 genes, got 60"):
        over_representation(table, {"set": GENES[:10]}, n=60)


def test_readers(tmp_path):
    (tmp_path / "sets.gmt").write_text("A\turl\tTP53\tMYC\tTP53\n\nB\t\tJUN\t\n")
    assert read_gmt(tmp_path / "sets.gmt") == {"A": ["TP53", "MYC"], "B": ["JUN"]}
    (tmp_path / "empty.gmt").write_text("A\turl\tTP53\nB\turl\n")
    with pytest.raises(DataError, match="line 2 has no genes"):
        read_gmt(tmp_path / "empty.gmt")
    (tmp_path / "twice.gmt").write_text("A\t\tX\nA\t\tY\n")
    with pytest.raises(DataError, match="line 2 repeats the set 'A'"):
        read_gmt(tmp_path / "twice.gmt")
    with pytest.raises(DataError, match="none.gmt"):
        read_gmt(tmp_path / "none.gmt")
    (tmp_path / "long.csv").write_text(
        "tf,confidence,target,mor\nAHR,C,FOS,1.0\nAHR,C,MYC,-1\nJUN,A,FOS,0\nJUN,A,MYC,1\n"
    )
    assert read_weighted_sets(tmp_path / "long.csv", ("tf", "target", "mor")) == {
        "AHR": {"FOS": 1.0, "MYC": -1.0},
        "JUN": {"MYC": 1.0},
    }
    (tmp_path / "wide.csv").write_text("symbol,EGFR,p53\nFOS,2.5,0\nMYC,0,-1\n")
    assert read_weighted_sets(tmp_path / "wide.csv") == {"EGFR": {"FOS": 2.5}, "p53": {"MYC": -1.0}}
    with pytest.raises(DataError, match="no column 'weight'"):
        read_weighted_sets(tmp_path / "long.csv", ("tf", "target", "weight"))
    with pytest.raises(DataError, match="'confidence' holds weights"):
        read_weighted_sets(tmp_path / "long.csv", ("tf", "target", "confidence"))
    with pytest.raises(DataError, match=r"none\.csv"):
        read_weighted_sets(tmp_path / "none.csv")


def test_real_gene_sets(real_data):
    """The files named in the documentation are read as they come."""
    hallmark = read_gmt(real_data / "bio" / "hallmark_v7.0.gmt")
    assert len(hallmark) == 50 and "MYC" in hallmark["HALLMARK_MYC_TARGETS_V1"]
    regulons = read_weighted_sets(real_data / "bio" / "dorothea_ABC_landmark_targets.csv", ("tf", "target", "mor"))
    assert {w for targets in regulons.values() for w in targets.values()} <= {-1.0, 1.0}
    footprints = read_weighted_sets(real_data / "bio" / "progeny_human_1301x14.csv")
    assert len(footprints) == 14 and footprints["p53"]["ABCA12"] == pytest.approx(9.597182119)
    # A programme that is a pathway's own footprint is found first.
    genes = sorted({gene for held in footprints.values() for gene in held})
    programme = pd.DataFrame({"latent": [footprints["p53"].get(gene, 0.0) for gene in genes]}, index=genes)
    best = rank_enrichment(programme, footprints, ranks=False).iloc[0]
    assert best["set"] == "p53" and best["correlation"] == pytest.approx(1.0)

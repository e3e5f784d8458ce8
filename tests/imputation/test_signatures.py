"""Disease signatures: fold changes, confounders, names of genes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pyro_cge.errors import ConfigError, DataError
from pyro_cge.imputation import disease_genes, log_fold_changes
from pyro_cge.imputation.targets.signatures import matched


def test_fold_changes_are_of_means_before_the_logarithm():
    levels = pd.DataFrame({"A": [3.0, 5.0, 1.0, 1.0], "B": [0.0, 0.5, 0.1, 0.2], "C": [0.0, 0.0, 7.0, 7.0]})
    changes = log_fold_changes(np.log2(1 + levels), ["infected", "infected", "mock", "mock"], "infected", "mock")
    assert changes.to_dict() == pytest.approx({"A": np.log2(5 / 2), "C": -3.0}), "B is hardly there in both"
    everything = log_fold_changes(np.log2(1 + levels), ["i", "i", "m", "m"], "i", "m", least=0.0)
    assert list(everything.index) == ["A", "B", "C"]
    with pytest.raises(DataError, match="no sample has condition 'mok'; there are 'i', 'm'"):
        log_fold_changes(levels, ["i", "i", "m", "m"], "i", "mok")
    with pytest.raises(DataError, match="each of the 4 samples"):
        log_fold_changes(levels, ["i"], "i", "m")
    levels.loc[0, "A"] = np.nan
    with pytest.raises(DataError, match="1 values not finite"):
        log_fold_changes(levels, ["i", "i", "m", "m"], "i", "m")


def test_confounded_and_disagreeing_genes_are_left_out():
    signature = pd.Series({"A": 3.0, "B": -2.0, "C": 1.5, "D": 0.2, "E": -1.8})
    assert disease_genes(signature, threshold=1.0).to_dict() == {"A": 3.0, "B": -2.0, "E": -1.8, "C": 1.5}
    receptor, mock = pd.Series({"A": -2.5, "C": 0.5, "Z": 9.0}), pd.Series({"E": 1.1})
    assert list(disease_genes(signature, threshold=1.0, exclude=[receptor, mock]).index) == ["B", "C"]
    ageing = pd.Series({"A": 0.4, "B": 0.5, "E": -0.3})
    assert list(disease_genes(signature, threshold=1.0, agree=ageing).index) == ["A", "E"], (
        "same sign, and there at all"
    )


@pytest.mark.parametrize("seed", range(30))
def test_number_of_genes_asked_for_against_a_fine_grid(seed):
    """The threshold is the largest one that leaves so many, found by trying many."""
    rng = np.random.default_rng(seed)
    names = [f"g{j}" for j in range(40)]
    signature = pd.Series(rng.standard_normal(40).round(1), index=names)
    other = pd.Series(rng.standard_normal(40).round(1) * 0.7, index=names)
    n = int(rng.integers(1, 12))

    def left(t):
        return signature.index[(signature.abs() > t) & (other.abs() <= t)]

    grid = np.unique(np.concatenate([signature.abs(), other.abs(), [0.0]]))
    enough = [t for t in grid if len(left(t)) >= n]
    if not enough:
        with pytest.raises(DataError, match="at no threshold"):
            disease_genes(signature, n=n, exclude=[other])
        return
    found = disease_genes(signature, n=n, exclude=[other])
    assert set(found.index) == set(left(max(enough))) and len(found) >= n


def test_names_match_as_they_are_in_capitals_or_through_aliases():
    disease = pd.Index(["Tp53", "Myc", "Egfr", "Actb"])
    assert [list(v) for v in matched(disease, ["Egfr", "Myc", "Gata1", "Tp53"])] == [[2, 1, 0], [0, 1, 3]]
    assert [list(v) for v in matched(disease, ["EGFR", "MYC", "GATA1", "TP53"])] == [[2, 1, 0], [0, 1, 3]]
    entrez = {"Tp53": "7157", "Myc": 4609.0, "Egfr": 1956}
    assert [list(v) for v in matched(disease, ["1956", "4609", "7157"], entrez)] == [[2, 1, 0], [0, 1, 2]]
    assert [list(v) for v in matched(pd.Index([7157.0, 4609.0, 1956.0]), ["1956", "4609", "7157"])] == [
        [2, 1, 0],
        [0, 1, 2],
    ]
    # Two names for one gene: neither is taken.
    assert [list(v) for v in matched(pd.Index(["a", "A", "b", "c", "d"]), ["A", "B", "C", "D"])] == [
        [2, 3, 4],
        [1, 2, 3],
    ]
    with pytest.raises(DataError, match=r"0 of the 3 genes of the drugs' signatures \(1956, .*\(Tp53, Myc"):
        matched(disease, ["1956", "4609", "7157"])


BAD = [
    (pd.Series({"A": np.nan}), {"threshold": 1.0}, DataError, "signature of gene A is nan"),
    (pd.Series({"A": "up"}), {"threshold": 1.0}, DataError, "signature of gene A is up"),
    (pd.Series([1.0, 2.0], index=["A", "A"]), {"threshold": 1.0}, DataError, "gene A is in the signature twice"),
    ({"A": 1.0}, {"threshold": 1.0}, DataError, "got dict"),
    (pd.Series({"A": 1.0}), {}, ConfigError, "either threshold= or n="),
    (pd.Series({"A": 1.0}), {"threshold": 2.0}, DataError, "no gene is left: 0 of 1"),
    (pd.Series({"A": 1.0}), {"n": 2}, DataError, "at no threshold are 2 genes left; the most is 1"),
    (pd.Series({"A": 1.0}), {"n": 0}, ConfigError, "n is a number of genes"),
]


@pytest.mark.parametrize("signature, options, kind, message", BAD)
def test_unusable_signatures_are_refused(signature, options, kind, message):
    with pytest.raises(kind, match=message):
        disease_genes(signature, **options)

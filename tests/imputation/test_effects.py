from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import pyro_cge as cge
from pyro_cge.errors import DataError
from pyro_cge.imputation import Effects


def test_table_and_tensor_hold_every_pair_once(effects):
    table, tensor = effects.table(), effects.tensor()
    assert sorted(table[table >= 0]) == list(range(effects.m))
    assert np.array_equal(tensor[effects.context, effects.action], effects.x)
    assert np.isnan(tensor[table < 0]).all()
    assert len(effects.missing) == effects.K * effects.A - effects.m
    assert not set(map(tuple, effects.missing.to_numpy())) & set(map(tuple, effects.pairs.to_numpy()))


def test_pairs_by_name_and_by_code_are_the_same(effects):
    context, action = effects.codes(effects.pairs)
    assert np.array_equal(context, effects.context)
    assert np.array_equal(action, effects.action)
    again = effects.codes(np.stack([context, action], 1))
    assert np.array_equal(again[0], context)


def test_features_are_brought_into_the_order_of_the_names(effects):
    table = pd.DataFrame({"f": range(14)}, index=[f"drug{i}" for i in range(14)][::-1])
    made = Effects(**{**vars(effects), "action_features": table})
    assert made.action_features["f"].tolist() == list(range(14))[::-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.full((2, 2), np.nan)}, "4 NaN or infinite"),
        ({"context": [0, 5]}, "outside 0"),
        ({"context": [0, 0], "action": [1, 1]}, r"\('a', 'v'\) is there twice"),
        ({"context": [0.0, 1.0]}, "integer array"),
        ({"gene_names": ["p"]}, "gene_names has 1"),
        ({"gene_names": ["p", "p"]}, "'p' twice"),
        ({"training_only": ["c"]}, "'c' is not a context"),
        ({"action_features": pd.DataFrame({"f": [1.0]}, index=["u"])}, "no row for 1 of 2 actions: 'v'"),
        ({"context_features": pd.DataFrame({"f": [1.0, np.nan]}, index=["a", "b"])}, "finite"),
        ({"context_features": np.eye(2)}, "must be a DataFrame"),
    ],
)
def test_bad_input_is_refused(change, message):
    good = {
        "x": np.eye(2),
        "context": [0, 1],
        "action": [0, 1],
        "context_names": ["a", "b"],
        "action_names": ["u", "v"],
        "gene_names": ["p", "q"],
    }
    Effects(**good)
    with pytest.raises(DataError, match=message):
        Effects(**{**good, **change})


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (pd.DataFrame({"context": ["cell9"], "action": ["drug0"]}), "unknown context 'cell9'"),
        (pd.DataFrame({"cell": ["cell0"]}), "no column 'context'"),
        ([[0, 99]], "outside"),
        ([0, 1], "pairs must be"),
    ],
)
def test_bad_pairs_are_refused(effects, pairs, message):
    with pytest.raises(DataError, match=message):
        effects.codes(pairs)


@pytest.fixture
def profiles():
    obs = pd.DataFrame(
        {
            "cell": ["a", "a", "a", "a", "b", "b", "b"],
            "drug": ["dmso", "dmso", "v", "v", "dmso", "u", "v"],
        },
        index=[f"p{i}" for i in range(7)],
    )
    return anndata.AnnData(np.arange(14.0).reshape(7, 2).astype(np.float32), obs=obs)


def test_from_anndata_subtracts_the_control_and_averages_replicates(profiles):
    made = Effects.from_anndata(profiles, context="cell", action="drug", control="dmso", replicates="mean")
    assert list(made.action_names) == ["u", "v"]
    assert made.pairs.to_numpy().tolist() == [["a", "v"], ["b", "u"], ["b", "v"]]
    assert np.allclose(made.x, [[5 - 1, 6 - 2], [10 - 8, 11 - 9], [12 - 8, 13 - 9]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "is there twice"),
        ({"control": "water"}, "'water' is not an action"),
        ({"control": "u"}, "'a' has no profile of the control"),
        ({"action": "dose"}, "'dose' is not a column"),
        ({"layer": "raw"}, "layer 'raw'"),
        ({"replicates": "median"}, "'error' or 'mean'"),
    ],
)
def test_from_anndata_says_what_is_wrong(profiles, options, message):
    with pytest.raises(DataError, match=message):
        Effects.from_anndata(profiles, **{"context": "cell", "action": "drug", **options})


def test_from_environments_agrees_with_from_anndata(profiles):
    names = profiles.obs["cell"] + "|" + profiles.obs["drug"]
    env, labels = pd.factorize(names, sort=True)
    table = pd.DataFrame(
        {"cell_line": [n.split("|")[0] for n in labels], "perturbagen": [n.split("|")[1] for n in labels]}, index=labels
    )
    data = cge.EnvironmentData(
        torch.from_numpy(profiles.X),
        torch.from_numpy(env.astype(np.int64)),
        list(profiles.var_names),
        list(labels),
        env_table=table,
        control=[0, 2],
    )
    made = Effects.from_environments(data)
    same = Effects.from_anndata(profiles, context="cell", action="drug", control="dmso", replicates="mean")
    assert np.allclose(made.x, same.x)
    assert made.pairs.equals(same.pairs)
    with pytest.raises(DataError, match="'plate' is neither in env_table"):
        Effects.from_environments(data, context="plate")

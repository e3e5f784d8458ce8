"""EnvironmentData: checks, batches, parts, AnnData and tables."""

from __future__ import annotations

from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse
import torch
from pyro import poutine

import pyro_cge as cge
from pyro_cge.data.tables import read_table
from pyro_cge.errors import DataError
from pyro_cge.sites import envs_plate


def make(**changes):
    fields = {
        "x": torch.randn(6, 3),
        "env": torch.tensor([0, 0, 1, 1, 2, 2]),
        "gene_names": ["a", "b", "c"],
        "env_names": ["control", "drug", "other"],
        "control": [0],
    }
    return cge.EnvironmentData(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.randn(6, 3).double()}, r"x must be a float32 tensor.*float64.*x\.float\(\)"),
        ({"x": np.zeros((6, 3))}, "x must be a float32 tensor.*ndarray"),
        (
            {"x": torch.tensor([[0.0, 1, float("nan")]] * 6)},
            "x has 6 NaN or infinite entries, the first in profile 0, column 2",
        ),
        ({"x": torch.full((6, 3), torch.inf)}, "inf"),
        ({"gene_names": ["a", "b"]}, "gene_names has 2 names but x has 3 columns"),
        ({"gene_names": ["a", "b", "a"]}, "gene_names has duplicates: 'a'"),
        ({"gene_names": [1, 2, 3]}, "gene_names must be strings, got 1"),
        ({"env_names": ["e", "e", "f"]}, "env_names has duplicates: 'e'"),
        ({"env": torch.tensor([0, 0, 1, 1, 2, 3])}, r"env\[5\] = 3, but there are 3 environments"),
        ({"env": torch.tensor([0, 0, 1, 1, 2, -1])}, r"env\[5\] = -1"),
        ({"env": torch.zeros(6)}, "env must be a long tensor.*float32"),
        ({"env_features": torch.randn(2, 4)}, "env_features has 2 rows but there are 3 environments"),
        ({"env_features": torch.full((3, 1), torch.nan)}, "env_features has 3 NaN.*environment 0"),
        ({"obs": pd.DataFrame({"a": [1]})}, "obs has 1 rows, expected 6"),
        ({"control": [7]}, "control environments .7,. out of range"),
    ],
)
def test_bad_input_is_named(changes, message):
    with pytest.raises(DataError, match=message):
        make(**changes)


def test_lookups_by_name_raise_and_never_take_the_last_row():
    data = make()
    assert data.environments(["other", "control"]) == [2, 0]
    with pytest.raises(DataError, match="unknown environments .'nothing'."):
        data.environments(["nothing"])
    torch.testing.assert_close(data.genes(["c", "a"]).x, data.x[:, [2, 0]])
    with pytest.raises(DataError, match="1 of 2 genes are missing.*'z'"):
        data.genes(["a", "z"])


def test_batches_partition_the_profiles_and_keep_environments():
    data = make(env_features=torch.randn(3, 2))
    for size in (1, 2, 4, 10):
        seen = torch.cat([batch.index for batch in data.batches(size, shuffle=True)])
        assert sorted(seen.tolist()) == list(range(6))
        for batch in data.batches(size):
            assert torch.equal(batch.envs[batch.env], data.env[batch.index])
            torch.testing.assert_close(batch.env_features, data.env_features[batch.envs])
            assert torch.equal(batch.is_control, batch.envs == 0)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_terms_of_environments_are_unbiased_in_minibatches(size):
    """A latent a environment, in ``envs_plate``: the mean over minibatches is the full-data log density."""
    data, loc = make(env=torch.tensor([0, 0, 0, 1, 2, 2])), torch.randn(3)

    def model(batch):
        with envs_plate(batch):
            return pyro.sample("env_shift", dist.Normal(0, 1), obs=loc[batch.envs])

    def density(batch):
        return poutine.trace(model).get_trace(batch).log_prob_sum()

    mean = torch.stack([density(batch) for batch in data.batches(size)]).mean()
    torch.testing.assert_close(mean, density(data.batch()))


def test_environments_without_profiles_and_with_one():
    data = make(env=torch.tensor([0, 0, 0, 0, 0, 1]))
    assert data.env_counts.tolist() == [5, 1, 0]
    model, guide = cge.environment_vae(data, 2, hidden=(4,))
    fitted = cge.fit(model, guide, data, epochs=2, validation=None)
    assert fitted.posterior(data).targets().notna().all().all()


def test_a_mask_means_its_rows(data):
    """In every form a mask comes in, truth included: a mask once was taken for the row numbers 0 and 1."""
    mask = data.env == 2
    chosen = np.flatnonzero(mask.numpy())
    assert len(chosen) > 2
    expected = data.rows(chosen)
    for given in (mask, mask.numpy(), mask.tolist(), pd.Series(mask.numpy())):
        found = data.rows(given)
        assert torch.equal(found.x, expected.x) and set(found.env.tolist()) == {2}
        assert found.obs.index.equals(expected.obs.index) and torch.equal(found.truth.z, expected.truth.z)
    assert torch.equal(data.truth.rows(mask).c, data.truth.c[mask])
    assert make().rows(torch.zeros(6, dtype=torch.bool)).n == make().rows([]).n == 0


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (torch.ones(5, dtype=torch.bool), "mask of 5 entries, but there are 6 profiles"),
        ([0, -1], r"index\[1\] = -1, but there are 6 profiles"),
        (np.array([6, 2]), r"index\[0\] = 6, but there are 6"),
        ([0.0, 1.0], "row numbers or a boolean mask.*float64"),
        (["p1"], "row numbers or a boolean mask"),
        (3, r"in one dimension; got int64 of shape \[\]"),
        (np.ones((6, 1), bool), r"in one dimension; got bool of shape \[6, 1\]"),
    ],
)
def test_rows_that_are_none_are_named(index, message):
    with pytest.raises(DataError, match=message):
        make().rows(index)


def test_digest_tells_data_apart():
    data = make()
    assert data.digest == replace(data).digest != make().digest


def test_anndata_round_trip_with_truth(data, tmp_path):
    cge.write_h5ad(data, tmp_path / "d.h5ad")
    back = cge.read_h5ad(tmp_path / "d.h5ad")
    assert torch.equal(back.x, data.x) and torch.equal(back.env, data.env) and back.digest == data.digest
    assert torch.equal(back.truth.z, data.truth.z) and torch.equal(back.truth.targets, data.truth.targets)
    assert torch.equal(back.truth.shift.loc, data.truth.shift.loc)
    assert set(back.truth.graph.edges) == set(data.truth.graph.edges)


def test_anndata_shares_memory():
    data = make()
    adata = cge.to_anndata(data)
    assert np.shares_memory(adata.X, data.x.numpy())
    assert np.shares_memory(cge.from_anndata(adata).x.numpy(), adata.X)


@pytest.mark.parametrize("convert", [np.asarray, np.float64, scipy.sparse.csr_matrix])
def test_anndata_of_others(convert):
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    adata = anndata.AnnData(convert(x), obs=pd.DataFrame({"drug": list("abba")}, index=list("wxyz")))
    data = cge.from_anndata(adata, env_key="drug", control="b")
    np.testing.assert_array_equal(data.x.numpy(), x)
    assert list(data.env_names) == ["a", "b"] and data.control == (1,)
    with pytest.raises(DataError, match="nothing.*drug"):
        cge.from_anndata(adata, env_key="nothing")


def test_unreadable_h5ad(tmp_path):
    (tmp_path / "bad.h5ad").write_bytes(b"garbage")
    with pytest.raises(DataError, match=r"bad\.h5ad"):
        cge.read_h5ad(tmp_path / "bad.h5ad")
    with pytest.raises(DataError, match="no such file"):
        cge.read_h5ad(tmp_path / "none.h5ad")


def test_table(tmp_path):
    path = tmp_path / "e.csv"
    path.write_text("id,environment,obs:plate,g1,g2\np,DMSO,1,0.5,1\nq,drug,2,-1,2\n")
    data = read_table(path, control="DMSO", annotations=["id"])
    assert list(data.gene_names) == ["g1", "g2"] and data.control == (0,) and data.x.tolist() == [[0.5, 1], [-1, 2]]
    path.write_text("environment,g1\nDMSO,0.5\ndrug,high\n")
    with pytest.raises(DataError, match=r"e\.csv: column 'g1', row '1': 'high' is not a number"):
        read_table(path)

"""From files to one .h5ad: joins, filters, environments, features, manifests, and nothing half-written."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import pyro_cge as cge
from pyro_cge.data.anndata import read_h5ad
from pyro_cge.data.features import environment_features
from pyro_cge.data.filters import Filters
from pyro_cge.data.fingerprints import inchi_key_block, morgan, tanimoto
from pyro_cge.data.l1000 import Expression, write_gctx
from pyro_cge.data.prepare import prepare
from pyro_cge.data.splits import Split, split
from pyro_cge.data.standardize import Standardizer
from pyro_cge.data.tables import read_table
from pyro_cge.errors import ConfigError, DataError, PyroCgeError

SMILES = {"D0": "CCO", "D1": "c1ccccc1O", "D2": "CC(=O)Oc1ccccc1C(=O)O"}


def expression(prefix="P", genes=5, seed=0):
    n = 12
    obs = pd.DataFrame(
        {
            "pert_id": ["DMSO"] * 3 + ["D0", "D1", "D2"] * 3,
            "pert_type": ["ctl_vehicle"] * 3 + ["trt_cp"] * 9,
            "cell_id": ["A375", "MCF7"] * 6,
            "pert_idose": ["-666"] * 3 + ["10 µM", "3.33 um", "500 nM"] * 3,
            "pert_itime": ["24 h"] * 10 + ["6 h"] * 2,
            "tas": np.linspace(0, 1, n).round(2),
        },
        index=[f"{prefix}{i}" for i in range(n)],
    )
    var = pd.DataFrame({"pr_is_lm": [1, 1, 1, 0, 0][:genes]}, index=[str(k) for k in range(genes)])
    x = np.random.default_rng(seed).normal(size=(n, genes)).astype(np.float32)
    return Expression(x, obs, var)


@pytest.fixture
def files(tmp_path):
    e = expression()
    write_gctx(tmp_path / "a.gctx", e)
    smiles = tmp_path / "smiles.csv"
    pd.Series(SMILES, name="smiles").rename_axis("pert_id").to_csv(smiles)
    return tmp_path / "a.gctx", e, smiles


def test_prepare_end_to_end(files, tmp_path):
    path, e, smiles = files
    out = tmp_path / "out.h5ad"
    manifest = prepare(
        [path], out, smiles=smiles, filters=Filters(landmarks=True, times=(24.0,)), features=["fingerprint", "log_dose"]
    )
    data = read_h5ad(out)
    assert (data.n, data.g, data.n_envs) == (10, 3, 4)
    assert [data.env_names[i] for i in data.control] == ["DMSO"]
    assert data.env_table["smiles"].dropna().to_dict() == SMILES
    np.testing.assert_array_equal(data.x.numpy(), e.x[:10, :3])
    assert json.loads(out.with_suffix(".manifest.json").read_text()) == manifest
    assert len(manifest["sources"][0]["sha256"]) == 64 and manifest["counts"]["profiles_read"] == 12
    assert any(row["filter"] == "times" and row["removed"] == 2 for row in manifest["removed"])


def test_files_in_another_gene_order_are_reordered_by_name(files, tmp_path):
    path, e, _ = files
    other = expression("Q", seed=1)
    order = ["3", "0", "4", "1", "2"]
    write_gctx(tmp_path / "b.gctx", other.take(genes=order))
    prepare([path, tmp_path / "b.gctx"], tmp_path / "out.h5ad")
    data = read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_array_equal(data.x.numpy(), np.concatenate([e.x, other.x]))


def test_missing_genes_are_listed_or_intersected(files, tmp_path):
    path, _, _ = files
    write_gctx(tmp_path / "b.gctx", expression("Q", genes=4))
    out = tmp_path / "out.h5ad"
    with pytest.raises(DataError, match=r"b\.gctx.*'4'"):
        prepare([path, tmp_path / "b.gctx"], out)
    assert not out.exists()
    prepare([path, tmp_path / "b.gctx"], out, genes="intersection")
    assert read_h5ad(out).g == 4


def test_filters_report_and_bad_columns(files, tmp_path):
    path, _, _ = files
    manifest = prepare([path], tmp_path / "o.h5ad", filters=Filters(cell_lines=("A375",), doses=(1, 20), min_tas=0.7))
    assert [row["filter"] for row in manifest["removed"] if row["removed"]] == ["cell_lines", "doses", "min_tas"]
    with pytest.raises(DataError, match="distil_ss"):
        prepare([path], tmp_path / "p.h5ad", filters=Filters(min_distil_ss=4))
    assert not (tmp_path / "p.h5ad").exists()


def test_filters_that_leave_nothing_say_so(files, tmp_path):
    with pytest.raises(DataError):
        prepare([files[0]], tmp_path / "o.h5ad", filters=Filters(cell_lines=("nowhere",)))


def test_small_environments_are_filtered_or_counted(files, tmp_path):
    path, _, _ = files
    by = ["perturbagen", "cell_line"]
    manifest = prepare([path], tmp_path / "o.h5ad", by=by)
    assert manifest["counts"]["one_profile_environments"] > 0
    kept = prepare([path], tmp_path / "p.h5ad", by=by, filters=Filters(min_profiles_per_environment=2))
    assert kept["counts"]["one_profile_environments"] == 0


def test_unwritable_output_is_refused_before_reading(files, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PyroCgeError, match="out.h5ad|file"):
        prepare([tmp_path / "does not exist.gctx"], tmp_path / "file" / "out.h5ad")


@pytest.mark.parametrize(("bad", "message"), [("", "D1"), ("C1CC", "C1CC"), ("not a molecule", "not a molecule")])
def test_bad_smiles_are_named(files, tmp_path, bad, message):
    path, _, smiles = files
    pd.Series({**SMILES, "D1": bad}, name="smiles").rename_axis("pert_id").to_csv(smiles)
    with pytest.raises(DataError, match=message):
        prepare([path], tmp_path / "out.h5ad", smiles=smiles, features=["fingerprint"])
    assert not (tmp_path / "out.h5ad").exists() and not (tmp_path / "out.manifest.json").exists()


def test_unreadable_dose_names_its_row(tmp_path):
    e = expression()
    e.obs.loc["P5", "pert_idose"] = "a lot"
    write_gctx(tmp_path / "a.gctx", e)
    with pytest.raises(DataError, match=r"P5.*a lot|a lot.*P5"):
        prepare([tmp_path / "a.gctx"], tmp_path / "o.h5ad", by=["perturbagen", "dose"])


def test_fingerprints_and_similarity():
    bits = morgan(list(SMILES.values()), n_bits=512)
    assert bits.shape == (3, 512) and bits.dtype == np.float32 and set(np.unique(bits)) == {0, 1}
    similarity = tanimoto(bits, bits)
    np.testing.assert_allclose(similarity.diagonal(), 1)
    by_hand = (bits[0] * bits[1]).sum() / np.maximum(bits[0], bits[1]).sum()
    assert similarity[0, 1] == pytest.approx(by_hand)
    assert morgan(["CCO"], counts=True).max() > 1 or morgan(["CCCCCCCO"], counts=True).max() > 1
    assert inchi_key_block(["CCO"]) == ["LFQSCWFLJHTTHZ"]
    # salts and stereo are kept as given
    assert not np.array_equal(*morgan(["CC(=O)O", "CC(=O)[O-].[Na+]"]))


def test_feature_blocks():
    table = pd.DataFrame(
        {"smiles": list(SMILES.values()), "dose": [10, 1, 0.1], "time": [24, 24, 6], "cell_line": list("aba")}
    )
    values, names = environment_features(table, ["fingerprint", "log_dose", "time", "cell_line"], n_bits=64)
    assert values.shape == (3, len(names)) and values.dtype == np.float32
    np.testing.assert_allclose(values[:, 64], [1, 0, -1])
    assert values[:, -2:].tolist() == [[1, 0], [0, 1], [1, 0]]


def test_split_is_by_group_seeded_and_saved(data, tmp_path):
    parts = split(data, by="environment", fractions=(0.6, 0.2, 0.2), seed=3)
    groups = [set(data.env[rows].tolist()) for rows in (parts.train, parts.valid, parts.test)]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    assert 0 in groups[0]  # control
    assert sorted(np.concatenate([parts.train, parts.valid, parts.test])) == list(range(data.n))
    parts.save(tmp_path / "split.json")
    again = Split.load(tmp_path / "split.json", data)
    np.testing.assert_array_equal(again.valid, split(data, by="environment", fractions=(0.6, 0.2, 0.2), seed=3).valid)
    with pytest.raises(DataError, match="other data"):
        Split.load(tmp_path / "split.json", data.rows(range(10)))
    with pytest.raises(DataError):
        split(data, by="no such column")


def test_stereo_isomers_stay_in_one_part(tmp_path):
    frame = pd.DataFrame({"environment": ["R", "S", "x", "y", "z"] * 4, "g1": np.random.default_rng(0).normal(size=20)})
    frame.to_csv(tmp_path / "e.csv", index=False)
    smiles = {"R": "C[C@H](O)CC", "S": "C[C@@H](O)CC", "x": "CCO", "y": "CCC", "z": "CCN"}
    pd.Series(smiles, name="smiles").rename_axis("environment").to_csv(tmp_path / "s.csv")
    data = read_table(tmp_path / "e.csv", tmp_path / "s.csv")
    for seed in range(8):
        parts = split(data, by="perturbagen", fractions=(0.5, 0.25, 0.25), seed=seed)
        where = [
            {data.env_names[e] for e in data.env[rows].tolist()} for rows in (parts.train, parts.valid, parts.test)
        ]
        assert all(("R" in names) == ("S" in names) for names in where)


def test_standardizer_round_trip_and_constant_gene(data):
    scaler = Standardizer.fit(data)
    scaled = scaler.transform(data)
    assert scaled.x.mean(0).abs().max() < 1e-5 and (scaled.x.std(0, correction=0) - 1).abs().max() < 1e-4
    assert (scaler.inverse(scaled.x) - data.x).abs().max() < 1e-4
    from dataclasses import replace

    flat = replace(data, x=data.x.clone().index_fill_(1, data.env[:1], 2.0))
    with pytest.raises(DataError, match="gene 0.*without_constant_genes"):
        Standardizer.fit(flat)
    assert flat.without_constant_genes().g == data.g - 1


def test_unknown_filter_is_a_config_error():
    from pyro_cge.config import read_settings

    with pytest.raises(ConfigError, match="landmark.*did you mean 'landmarks'"):
        read_settings(Filters, None, ["landmark=true"])


REAL = [
    "CPC006_A375_6H_X1_zs.gctx",
    "modzs_n272x978.gctx",
    "level_n25x12328.gctx",
    "LJP005_A375_24H_X1_B19_zs.gct",
    "level3_n376x490.gct",
]


@pytest.mark.parametrize("name", REAL)
def test_untouched_broad_files_through_prepare_and_fit(real_data, tmp_path, name):
    by = ["profile"] if name in ("level_n25x12328.gctx", "level3_n376x490.gct") else ["perturbagen"]
    manifest = prepare([real_data / "raw_gct" / name], tmp_path / "o.h5ad", by=by)
    data = read_h5ad(tmp_path / "o.h5ad")
    assert data.n == manifest["counts"]["profiles"] > 20 and data.g >= 490
    data = data.without_constant_genes()
    model, guide = cge.environment_vae(data, 10, hidden=(32,))
    fitted = cge.fit(model, guide, data, epochs=2, batch_size=32)
    assert np.isfinite(fitted.history.to_numpy()).all()

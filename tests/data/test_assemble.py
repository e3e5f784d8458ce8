"""Filters, features, environments, splits and AnnData of others, on a small made-up plate."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from pyro_cge.data.anndata import from_anndata, read_h5ad, to_anndata, write_h5ad
from pyro_cge.data.assemble import to_environment_data
from pyro_cge.data.environment import EnvironmentData
from pyro_cge.data.features import environment_features
from pyro_cge.data.filters import Filters, apply
from pyro_cge.data.fingerprints import inchi_key_block, morgan, tanimoto
from pyro_cge.data.l1000 import Expression, write_gctx
from pyro_cge.data.prepare import prepare
from pyro_cge.data.splits import Split, split
from pyro_cge.data.standardize import Standardizer
from pyro_cge.data.tables import read_table
from pyro_cge.errors import DataError

SMILES = {"A": "CCO", "B": "c1ccccc1", "C": "CC(=O)O.[Na]", "D": "C[C@H](N)C(=O)O"}


def plate(cells=("MCF7", "PC3"), start=0):
    """Four compounds at two doses and DMSO, in each cell line; TAS grows with the row."""
    rows = [(drug, dose, cell) for cell in cells for drug in SMILES for dose in ("1 uM", "10 uM")]
    rows += [("DMSO", "-666", cell) for cell in cells]
    obs = pd.DataFrame(rows, columns=["pert_id", "pert_idose", "cell_id"])
    obs.index = pd.Index([f"P{start + i}" for i in range(len(rows))], dtype=object)
    obs["pert_type"] = np.where(obs["pert_id"] == "DMSO", "ctl_vehicle", "trt_cp")
    obs["pert_itime"] = "24 h"
    obs["tas"] = np.linspace(0, 1, len(obs))
    var = pd.DataFrame({"pr_is_lm": [1, 1, 0]}, index=["10", "20", "30"])
    x = np.random.default_rng(start).normal(size=(len(obs), 3)).astype(np.float32)
    return Expression(x, obs, var, "plate")


def test_filters_count_what_they_remove_and_spare_controls():
    kept, report = apply(
        plate(), Filters(landmarks=True, cell_lines=("mcf7",), times=(24,), doses=(5, 10), min_tas=0.2)
    )
    assert report.to_dict("list") == {
        "filter": ["landmarks", "cell_lines", "times", "doses", "min_tas"],
        "of": ["genes", *["profiles"] * 4],
        "removed": [1, 9, 0, 4, 2],
        "kept": [2, 9, 9, 5, 3],
    }
    assert kept.obs["pert_id"].tolist() == ["C", "D", "DMSO"] and kept.g == 2


def test_environments_take_what_is_constant():
    data = to_environment_data(plate(), smiles=SMILES)
    assert list(data.env_names) == ["A", "B", "C", "D", "DMSO"] and data.control == (4,)
    assert data.env_table["dose"].isna().all() and (data.env_table["time"] == 24).all()
    assert data.env_table["cell_line"].isna().all()
    assert data.env_table["inchi_key_block"].tolist()[:2] == inchi_key_block(["CCO", "c1ccccc1"])
    fine = to_environment_data(plate(), by=("perturbagen", "cell_line", "dose"), smiles=SMILES)
    assert "A|MCF7|1" in list(fine.env_names) and "DMSO|PC3|-" in list(fine.env_names) and len(fine.control) == 2
    assert fine.env_table.loc["A|MCF7|10", "dose"] == 10


@pytest.mark.parametrize("control", ["DMSO", ["DMSO"], "flag"])
def test_controls_by_name_or_column(control):
    e = plate()
    e.obs["flag"] = e.obs["pert_id"] == "DMSO"
    assert to_environment_data(e, control=control).control == (4,)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"control": "water"}, r"plate: control 'water' is neither a column of obs nor a perturbagen; there are A"),
        ({}, {"by": ("batch",)}, r"plate: no column 'batch'; there are 'pert_id'"),
        ({"pert_id": "-666"}, {}, r"plate: column 'perturbagen' is missing for profile 'P3'"),
        ({"pert_type": "ctl_untrt"}, {}, r"plate: environment 'B' holds control and treated profiles; add the column"),
        ({}, {"features": ("fingerprint",)}, r"environment table has no column 'smiles'.*SMILES table"),
        ({}, {"features": ("cell_line",)}, r"environment 'A' has no one cell_line .*by="),
        ({}, {"features": ("magic",)}, r"unknown feature blocks \['magic'\]; there are fingerprint"),
        ({}, {"smiles": {"x": "C"}}, r"no perturbagen is in smiles=, which has 'x'"),
        ({}, {"smiles": SMILES | {"B": "C1CC"}}, r"environment 'B': SMILES in row 0 cannot be parsed: 'C1CC'; correct"),
        ({"pert_idose": "lots"}, {}, r"plate: column 'pert_idose', row 'P3': dose 'lots' cannot be read"),
    ],
)
def test_bad_plates_are_named(change, options, message):
    e = plate()
    for name, value in change.items():
        e.obs.loc["P3", name] = value
    with pytest.raises(DataError, match=message):
        to_environment_data(e, **options)


def test_feature_blocks_are_reproduced_for_new_environments():
    e = plate()
    by = ("perturbagen", "cell_line", "dose")
    basal = pd.DataFrame([[1.0, 2], [3, 4]], index=["PC3", "MCF7"], columns=["g1", "g2"])
    blocks = ("similarity", "log_dose", "time", "cell_line", "basal")
    data = to_environment_data(e, by, blocks, smiles=SMILES, basal=basal)
    names = data.env_table.attrs["feature_names"]
    assert names[-5:] == ["time", "cell_line:MCF7", "cell_line:PC3", "basal:g1", "basal:g2"]
    table = data.env_features.numpy()
    first = dict(zip(names, table[list(data.env_names).index("A|MCF7|10")], strict=True))
    assert first["similarity:CCO"] == 1 and first["log10_dose"] == 1 and first["no_dose"] == 0
    assert first["basal:g1"] == 3 and first["cell_line:MCF7"] == 1
    vehicle = dict(zip(names, table[list(data.env_names).index("DMSO|PC3|-")], strict=True))
    assert vehicle["no_dose"] == 1 and vehicle["log10_dose"] == 0 and vehicle["similarity:CCO"] == 0
    new = pd.DataFrame({"smiles": ["CCN"], "dose": [100.0], "time": [6.0], "cell_line": ["PC3"]}, index=["new"])
    values, again = environment_features(new, blocks, basal=basal, like=names)
    assert again == names and values.shape == (1, len(names))
    with pytest.raises(DataError, match=r"cell_line 'A375' of environment 'new' was not in training, which had MCF7"):
        environment_features(new.assign(cell_line="A375"), blocks, basal=basal, like=names)
    with pytest.raises(DataError, match=r"basal profiles are missing for cell lines 'A375'; add their rows"):
        environment_features(new.assign(cell_line="A375"), ("basal",), basal=basal)


def test_several_targets_in_a_field():
    table = pd.DataFrame({"target": ["EGFR", "BRD2; BRD4", np.nan]}, index=["a", "b", "c"])
    values, names = environment_features(table, ["target"])
    assert names == ["target:BRD2", "target:BRD4", "target:EGFR"]
    assert values.tolist() == [[0, 0, 1], [1, 1, 0], [0, 0, 0]]


def test_fingerprints_keep_salts_and_count():
    smiles = ["CC(=O)O", "CC(=O)O.[Na]", "CCCCCCCC"]
    bits, counts = morgan(smiles), morgan(smiles, counts=True)
    assert (bits[0] != bits[1]).any() and counts[2].max() > 1 and bits.max() == 1
    assert tanimoto(bits, bits).diagonal().tolist() == [1, 1, 1]
    stereo = ["C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O"]
    assert len(set(inchi_key_block(stereo))) == 1
    assert (morgan(stereo[:1], chirality=True) != morgan(stereo[1:], chirality=True)).any()


@pytest.mark.parametrize("by", ["perturbagen", "combination", "cell_line", "environment", "random", "tas"])
def test_no_group_is_in_two_parts(by):
    e = plate(cells=("MCF7", "PC3", "A375", "HT29"))
    data = to_environment_data(e, smiles=SMILES)
    parts = split(data, by, (0.5, 0.25, 0.25), seed=3)
    rows = np.concatenate([parts.train, parts.valid, parts.test])
    assert sorted(rows) == list(range(data.n)) and len(parts.valid) and len(parts.test)
    control = data.is_control.numpy()[data.env.numpy()]
    assert set(np.flatnonzero(control)) <= set(parts.train)
    group = {
        "perturbagen": e.obs["pert_id"],
        "combination": e.obs["pert_id"] + e.obs["cell_id"],
        "cell_line": e.obs["cell_id"],
        "environment": e.obs["pert_id"],
    }.get(by, pd.Series(range(data.n))).to_numpy()
    seen = [set(group[[i for i in part if not control[i]]]) for part in (parts.train, parts.valid, parts.test)]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    again = split(data, by, (0.5, 0.25, 0.25), seed=3)
    assert all(np.array_equal(getattr(parts, k), getattr(again, k)) for k in ("train", "valid", "test"))


def test_split_of_a_column_and_its_errors(tmp_path):
    e = plate()
    e.obs["part"] = ["train"] * 10 + ["val"] * (e.n - 10)
    data = to_environment_data(e)
    parts = Split.from_column(data, "part")
    assert len(parts.train) == 10 and len(parts.valid) == e.n - 10 and len(parts.test) == 0
    parts.save(tmp_path / "split.json")
    assert Split.load(tmp_path / "split.json", data).valid.tolist() == parts.valid.tolist()
    with pytest.raises(DataError, match=r"split\.json: field 'data_digest' is of other data"):
        Split.load(tmp_path / "split.json", data.rows(range(5)))
    (tmp_path / "split.json").write_text("{")
    with pytest.raises(DataError, match=r"split\.json: not a saved split"):
        Split.load(tmp_path / "split.json")
    e.obs.loc["P2", "part"] = "maybe"
    with pytest.raises(DataError, match=r"obs column 'part', row 'P2': 'maybe' is none of train, val, test"):
        Split.from_column(to_environment_data(e), "part")
    with pytest.raises(DataError, match=r"split by 'cell_line': 2 groups .* too few for 3 parts"):
        split(data, "cell_line")
    with pytest.raises(DataError, match=r"no column 'batch' to split by; there are .*cell_id"):
        split(data, "batch")
    with pytest.raises(DataError, match=r"three shares that add up to 1"):
        split(data, fractions=(0.5, 0.1, 0.1))


def test_standardizer_in_float64_and_back():
    x = torch.randn(400, 3) + torch.tensor([0.0, 1e4, -5])
    data = EnvironmentData(x, torch.zeros(400, dtype=torch.long), ["a", "b", "c"], ["e"])
    scaler = Standardizer.fit(data)
    np.testing.assert_allclose(scaler.mean.double(), x.double().mean(0), rtol=1e-6)
    z = scaler.transform(data).x
    assert z.mean(0).abs().max() < 1e-3 and (z.std(0, correction=0) - 1).abs().max() < 1e-3
    torch.testing.assert_close(scaler.inverse(z.expand(2, 400, 3))[1], x, rtol=1e-5, atol=2e-3)
    torch.testing.assert_close(scaler.inverse_scale(torch.ones(3)), scaler.scale)
    with pytest.raises(DataError, match=r"data\.genes\(standardizer\.gene_names\)"):
        scaler.transform(data.genes(["c", "a", "b"]))
    with pytest.raises(DataError, match=r"two profiles or more, the training part has 1"):
        Standardizer.fit(data.rows([0]))


def test_prepare_of_several_files_with_other_columns(tmp_path):
    first, second = plate(), plate(("A375",), start=100)
    second = second.take(genes=["30", "10", "20"])
    second.obs["extra"] = np.nan
    second.obs["note"] = "x"
    for name, e in (("a", first), ("b", second)):
        write_gctx(tmp_path / f"{name}.gctx", e)
    out = tmp_path / "both.h5ad"
    manifest = prepare([tmp_path / "a.gctx", tmp_path / "b.gctx"], out, by=("perturbagen", "cell_line"))
    data = read_h5ad(out)
    assert manifest["counts"]["profiles"] == data.n == first.n + second.n and data.n_envs == 15
    at = data.obs.index.get_loc("P100")
    np.testing.assert_array_equal(data.x[at], second.take(genes=list(data.gene_names)).x[0])
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(DataError, match=r"profile 'P0' is in two of the files; give each file once"):
        prepare([tmp_path / "a.gctx"] * 2, tmp_path / "twice.h5ad")
    with pytest.raises(DataError, match=r"gene column 'pr_is_lm', row '20': missing or repeated"):
        prepare([tmp_path / "a.gctx"], tmp_path / "ids.h5ad", gene_id="pr_is_lm")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def foreign():
    obs = pd.DataFrame({"perturbation": ["b", "ctrl", "b", "a"]}, index=list("wxyz"))
    obs["perturbation"] = obs["perturbation"].astype("category")
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    features = pd.DataFrame({"f": [1.0, 2, 3]}, index=["ctrl", "a", "b"])
    return anndata.AnnData(
        x, obs=obs, obsm={"own": x[:, :1], "fits": np.array([[3.0], [1], [3], [2]])}, uns={"f": features}
    )


@pytest.mark.parametrize("key", ["f", "fits"])
def test_features_of_others(key):
    data = from_anndata(foreign(), "perturbation", key, "ctrl")
    assert list(data.env_names) == ["a", "b", "ctrl"] and data.control == (2,)
    assert data.env_features.flatten().tolist() == [2, 3, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), r"not one that pyro_cge wrote; name their column with env_key=, one of obs: perturbation"),
        (("drug",), r"env_key 'drug' is not a column of obs; there are perturbation"),
        (("perturbation", "nothing"), r"features_key 'nothing' is neither in obsm nor in uns; there are own, fits, f"),
        (("perturbation", "own"), r"obsm\['own'\] differs between profiles of environment 'b'"),
        (("perturbation", None, "vehicle"), r"control 'vehicle' is not an environment; there are a, b, ctrl"),
    ],
)
def test_anndata_that_does_not_fit(tmp_path, arguments, message):
    foreign().write_h5ad(tmp_path / "theirs.h5ad")
    with pytest.raises(DataError, match=message):
        from_anndata(foreign(), *arguments)
    with pytest.raises(DataError, match=r"theirs\.h5ad: "):
        read_h5ad(tmp_path / "theirs.h5ad", *arguments)


@pytest.mark.parametrize(("value", "message"), [(np.nan, "NaN or infinite"), ("text", "dtype"), (True, "dtype")])
def test_matrices_that_are_not_numbers(value, message):
    adata = foreign()
    adata.X = np.full((4, 3), value)
    with pytest.raises(DataError, match=message):
        from_anndata(adata, "perturbation")


def test_own_file_keeps_table_features_and_subset(tmp_path):
    data = to_environment_data(plate(), features=("similarity",), smiles=SMILES)
    write_h5ad(data, tmp_path / "own.h5ad")
    back = read_h5ad(tmp_path / "own.h5ad")
    assert back.digest == data.digest
    pd.testing.assert_frame_equal(back.env_table, data.env_table, check_dtype=False, check_index_type=False)
    assert back.env_table.attrs == data.env_table.attrs
    some = from_anndata(to_anndata(data)[5:7].copy())  # AnnData drops unused categories, environments stay
    assert some.n == 2 and list(some.env_names) == list(data.env_names)
    assert some.env.tolist() == data.env[5:7].tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("environment,g1,g2\na,1,x\n", r"t\.csv: column 'g2', row '0': 'x' is not a number; correct it"),
        ("drug,g1\na,1\n", r"t\.csv: no column 'environment'; there are 'drug', 'g1'"),
        ("environment,g1\na,1\nb,\n", r"t\.csv: gene 'g1' of profile '1' is missing"),
        ("environment,g1\na,1\n,2\n", r"t\.csv: column 'environment' is missing for profile '1'"),
        ("environment\na\n", r"t\.csv: no gene column is left"),
        ("", r"t\.csv: not a readable table"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / "t.csv")


def test_smiles_table_errors(tmp_path):
    (tmp_path / "t.csv").write_text("environment,g1\na,1\nb,2\n")
    (tmp_path / "s.csv").write_text("environment,smiles\na,CCO\n")
    with pytest.raises(DataError, match=r"smiles: empty for environment 'b'"):
        read_table(tmp_path / "t.csv", tmp_path / "s.csv")
    (tmp_path / "s.csv").write_text("environment,structure\na,CCO\n")
    with pytest.raises(DataError, match=r"s\.csv: no column 'smiles'; there are 'structure'"):
        read_table(tmp_path / "t.csv", tmp_path / "s.csv")

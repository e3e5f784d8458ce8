"""Doses, times, side tables and their joins, and GCTX layouts as other writers make them."""

from __future__ import annotations

import gzip

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyro_cge.data.files import check_writable, replacing
from pyro_cge.data.geo import column, join, parse_dose, parse_time, read_side_table, tidy
from pyro_cge.data.l1000 import read_gct
from pyro_cge.errors import DataError

amounts = st.floats(1e-4, 1e4)


@given(amounts, st.sampled_from([("M", 1e6), ("mM", 1e3), ("µM", 1), ("μM", 1), ("uM", 1), ("nM", 1e-3), ("pM", 1e-6)]))
def test_any_molar_unit_is_read(amount, unit):
    name, factor = unit
    for text in (f"{amount!r} {name}", f"{amount!r}{name}", f" {amount!r}  {name.upper()} "):
        # "MM" and "PM" in capitals are millimolar and picomolar: there is no megamolar.
        assert parse_dose(text) == pytest.approx(amount * factor)


@given(amounts, st.sampled_from([("h", 1), ("H", 1), (" hours", 1), (" min", 1 / 60), (" d", 24)]))
def test_any_unit_of_time_is_read(amount, unit):
    assert parse_time(f"{amount!r}{unit[0]}") == pytest.approx(amount * unit[1])


@pytest.mark.parametrize(
    ("text", "value"),
    [("24|24", 24), ("24 h|24.0 h", 24), ("6 h & 4 h", np.nan), ("6|24", np.nan), ("24|-666", np.nan)],
)
def test_joined_values_must_agree(text, value):
    assert parse_time(text) == pytest.approx(value, nan_ok=True)
    assert np.isnan(parse_dose("0.37|0.1")) and parse_dose("0.37|0.37 uM") == 0.37


@pytest.mark.parametrize("text", ["100 ng/mL", "1.5 µL", "3 ug/ml", "-666", "-666.0", "", "nan"])
def test_doses_that_are_not_molar_are_missing(text):
    assert np.isnan(parse_dose(text))


@pytest.mark.parametrize("text", ["ten uM", "10 parsecs", "-3 uM", "10 uM uM", "1e", "10 24 h"])
def test_unreadable_doses_show_how_to_write_them(text):
    with pytest.raises(DataError, match=r"dose .* cannot be read; write it like '10 uM'"):
        parse_dose(text)


def test_columns_under_any_spelling_with_units_beside_them():
    obs = pd.DataFrame(
        {"pert_dose": [500.0, 1.0, -666.0], "pert_dose_unit": ["nM", "uM", "-666"], "pert_time": ["6", "24", "-666"]},
        index=["a", "b", "c"],
    ).assign(pert_time_unit="h")
    np.testing.assert_allclose(column(obs, "dose"), [0.5, 1, np.nan])
    np.testing.assert_allclose(column(obs, "time"), [6, 24, np.nan])
    obs["pert_time"] = ["6", "soon", "24"]
    with pytest.raises(DataError, match=r"plate7: column 'pert_time', row 'b': time 'soon.*write it like '24 h'"):
        column(obs, "time", "plate7")
    with pytest.raises(DataError, match=r"no column 'tas'.*there are 'pert_dose'.*side table"):
        column(obs, "tas")


@pytest.mark.parametrize(
    "values",
    [
        np.array([b"10 \xb5M", b"-666"]),  # latin-1, as Broad's level-5 files
        np.array(["10 µM".encode(), b"-666.0"]),
        pd.Series(["10 µM", "-666"], dtype="category"),
        pd.Series(["10 µM", np.nan], dtype=object),
    ],
)
def test_text_is_decoded_and_missing(values):
    out = tidy(values)
    assert out[0] == "10 µM" and pd.isna(out[1])


def test_gene_ids_stay_whole_numbers():
    assert tidy(np.array([b"5720", b"466"])).dtype.kind == "i"
    assert tidy(np.array([b"NA12", b"007"])).tolist() == ["NA12", "007"]


def metadata():
    obs = pd.DataFrame({"pert_id": ["A", "B", "A"], "cell_id": "MCF7"}, index=["s1", "s2", "s3"])
    return obs, pd.DataFrame({"pr_gene_id": [5720.0, 466.0]}, index=["200814_at", "222103_at"])


def write(path, text):
    with gzip.open(path, "wt", encoding="utf-8") if path.suffix == ".gz" else open(path, "w") as file:
        file.write(text)
    return path


def test_side_tables_join_profiles_perturbagens_cells_and_genes(tmp_path):
    obs, var = metadata()
    for name, text in {
        "sig_info.txt.gz": "sig_id\tpert_id\tpert_itime\ns3\tA\t6 h\ns1\tA\t24 h\ns2\tB\t-666\ns9\tC\t6 h\n",
        "pert_info.txt": "pert_id\tpert_iname\tcanonical_smiles\nB\taspirin\t-666\nA\tethanol\tCCO\n",
        "cell_info.txt": "cell_id\tprimary_site\nMCF7\tbreast\n",
        "gene_info.csv": "pr_gene_id,pr_gene_symbol,pr_is_lm\n466,ATF1,0\n5720,PSME1,1\n",
    }.items():
        obs, var = join(obs, var, read_side_table(write(tmp_path / name, text)), name)
    assert obs["pert_itime"].tolist()[::2] == ["24 h", "6 h"] and pd.isna(obs["pert_itime"].iloc[1])
    assert obs["pert_iname"].tolist() == ["ethanol", "aspirin", "ethanol"] and pd.isna(obs["canonical_smiles"].iloc[1])
    assert obs["primary_site"].eq("breast").all() and list(obs.index) == ["s1", "s2", "s3"]
    assert var["pr_gene_symbol"].tolist() == ["PSME1", "ATF1"] and var["pr_is_lm"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sig_id\ttas\ns1\t0.5\n", r"sig\.txt: no row for profiles 's2', 's3'"),
        ("sig_id\ttas\nx1\t0.5\n", r"sig\.txt: no sig_id agrees with the data"),
        ("sig_id\ttas\ns1\t0.5\ns1\t0.6\n", r"sig\.txt: duplicate sig_id ids 's1'; rename or remove"),
        ("name\ttas\ns1\t0.5\n", r"sig\.txt: no key column .*'name', 'tas'"),
        ("", r"sig\.txt: not a readable side table"),
    ],
)
def test_side_tables_that_do_not_fit(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        join(*metadata(), read_side_table(write(tmp_path / "sig.txt", text)), "sig.txt")


def test_truncated_gzip_is_named(tmp_path):
    path = write(tmp_path / "sig_info.txt.gz", "sig_id\ttas\n" + "".join(f"s{i}\t{i}\n" for i in range(5000)))
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(DataError, match=r"sig_info\.txt\.gz: not a readable side table"):
        read_side_table(path)


@pytest.mark.parametrize("chunks", [None, (1, 11), (7, 3), (50, 1)])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_any_chunking_reads_the_same(tmp_path, chunks, dtype, monkeypatch):
    monkeypatch.setattr("pyro_cge.data.l1000._TILE_BYTES", 400)  # many tiles
    x = np.random.default_rng(0).normal(size=(50, 11)).astype(dtype)
    with h5py.File(tmp_path / "e.gctx", "w") as file:
        file.create_dataset("0/DATA/0/matrix", data=x, chunks=chunks)
        file["0/META/ROW/id"] = np.array([f"g{k}" for k in range(11)], dtype="S")
        file["0/META/COL/id"] = np.array([f"p{i}" for i in range(50)], dtype=h5py.string_dtype())
    rows, columns = [49, 0, 17, 3], [10, 2, 5]
    part = read_gct(tmp_path / "e.gctx", [f"g{k}" for k in columns], [f"p{i}" for i in rows])
    np.testing.assert_array_equal(part.x, x.astype(np.float32)[np.ix_(rows, columns)])
    np.testing.assert_array_equal(read_gct(tmp_path / "e.gctx").x, x.astype(np.float32))


def test_replacing_leaves_the_old_file_when_interrupted(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert (tmp_path / "a").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("folder", ["absent", "a_file"])
def test_unwritable_folders_are_named(tmp_path, folder):
    (tmp_path / "a_file").write_text("")
    with pytest.raises(DataError, match=rf"out\.h5ad: cannot write in folder .*{folder}.*choose an existing"):
        check_writable(tmp_path / folder / "out.h5ad")

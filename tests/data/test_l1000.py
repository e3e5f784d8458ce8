"""GCT and GCTX in: order, ids, missing values, damage, memory."""

from __future__ import annotations

import subprocess
import sys

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyro_cge.data.geo import parse_dose, parse_time, read_side_table
from pyro_cge.data.l1000 import Expression, read_gct, write_gctx
from pyro_cge.errors import DataError


def expression(n=6, g=5, seed=0):
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {"pert_id": [f"BRD-{i % 3}" for i in range(n)], "pert_idose": ["10 µM"] * n, "age": [54, -666] * (n // 2)},
        index=[f"P{i}" for i in range(n)],
    )
    var = pd.DataFrame({"pr_gene_symbol": [f"S{k}" for k in range(g)]}, index=[str(100 + k) for k in range(g)])
    return Expression(rng.normal(size=(n, g)).astype(np.float32), obs, var)


def write_gct(path, e, version="1.3", values=None, shape=None):
    """GCT text; ``values`` replaces entries by text, ``shape`` the counts of the header."""
    matrix = [[repr(float(v)) for v in row] for row in e.x.T]
    for (gene, profile), text in (values or {}).items():
        matrix[gene][profile] = text
    if version == "1.2":
        lines = ["#1.2", f"{e.g}\t{e.n}", "\t".join(["Name", "Description", *e.obs.index])]
        lines += ["\t".join([gene, "na", *row]) for gene, row in zip(e.var.index, matrix)]
    else:
        g, n = shape or (e.g, e.n)
        lines = ["#1.3", f"{g}\t{n}\t1\t{e.obs.shape[1]}", "\t".join(["id", "pr_gene_symbol", *e.obs.index])]
        lines += ["\t".join([name, "na", *map(str, e.obs[name])]) for name in e.obs]
        lines += ["\t".join([gene, e.var.iloc[k, 0], *row]) for k, (gene, row) in enumerate(zip(e.var.index, matrix))]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(params=["gctx", "1.3", "1.2"])
def stored(request, tmp_path):
    e = expression()
    if request.param == "gctx":
        write_gctx(tmp_path / "e.gctx", e)
        return tmp_path / "e.gctx", e
    return write_gct(tmp_path / "e.gct", e, request.param), e


def test_reads_what_was_written(stored):
    path, e = stored
    back = read_gct(path)
    np.testing.assert_allclose(back.x, e.x, rtol=1e-6)
    assert list(back.obs.index) == list(e.obs.index) and list(back.var.index) == list(e.var.index)


def test_subsets_come_in_the_order_asked_for(stored):
    path, e = stored
    back = read_gct(path, genes=["103", "100"], profiles=["P4", "P0", "P2"])
    np.testing.assert_allclose(back.x, e.x[[4, 0, 2]][:, [3, 0]], rtol=1e-6)
    assert list(back.var.index) == ["103", "100"] and list(back.obs.index) == ["P4", "P0", "P2"]


def test_blocks_do_not_change_the_result(tmp_path):
    e = expression(40, 7)
    write_gctx(tmp_path / "e.gctx", e)
    for rows in (1, 7, 64):
        np.testing.assert_array_equal(read_gct(tmp_path / "e.gctx", block_rows=rows).x, e.x)


@pytest.mark.filterwarnings("ignore:errors=:FutureWarning")  # cmapPy's own call
def test_our_gctx_is_read_by_cmappy(tmp_path):
    from cmapPy.pandasGEXpress.parse_gctx import parse

    e = expression()
    e.obs["pert_idose"] = "10 um"  # cmapPy reads ASCII
    write_gctx(tmp_path / "e.gctx", e)
    theirs = parse(str(tmp_path / "e.gctx"), convert_neg_666=False)
    np.testing.assert_array_equal(theirs.data_df.to_numpy().T, e.x)


def test_unknown_ids_are_named(stored):
    path, _ = stored
    with pytest.raises(DataError, match=r"e\.gct.*'999'"):
        read_gct(path, genes=["999"])


@pytest.mark.parametrize("text", ["-666", "-666.0", "nan", "inf"])
def test_missing_or_infinite_entries_name_gene_and_profile(tmp_path, text):
    path = write_gct(tmp_path / "e.gct", expression(), values={(2, 3): text})
    with pytest.raises(DataError, match=r"e\.gct: gene '102' of profile 'P3' is (missing|inf)"):
        read_gct(path)


@pytest.mark.parametrize("missing", [[54, -666], ["54", "-666"], [54.0, -666.0], ["54", "-666.0"]])
def test_minus_666_is_missing_in_any_type(tmp_path, missing):
    e = expression()
    e.obs["age"] = missing * 3
    write_gctx(tmp_path / "e.gctx", e)
    assert read_gct(tmp_path / "e.gctx").obs["age"].isna().tolist() == [False, True] * 3


@pytest.mark.parametrize("kind", ["truncated", "empty", "garbage"])
@pytest.mark.parametrize("suffix", [".gctx", ".gct"])
def test_damaged_files(tmp_path, kind, suffix):
    path = tmp_path / f"bad{suffix}"
    if suffix == ".gctx":
        write_gctx(path, expression(50, 40))
    else:
        write_gct(path, expression())
    content = path.read_bytes()
    path.write_bytes(
        {"truncated": content[: len(content) // 2], "empty": b"", "garbage": b"\x00\xffnonsense" * 40}[kind]
    )
    with pytest.raises(DataError, match=f"bad{suffix}"):
        read_gct(path)


def test_no_such_file_and_no_such_kind(tmp_path):
    with pytest.raises(DataError, match="nothing.gctx"):
        read_gct(tmp_path / "nothing.gctx")
    (tmp_path / "a.csv").write_text("a,b\n")
    with pytest.raises(DataError, match=r"a\.csv"):
        read_gct(tmp_path / "a.csv")


@pytest.mark.parametrize("which", ["ROW", "COL"])
def test_gctx_ids_that_disagree_with_the_matrix(tmp_path, which):
    path = tmp_path / "e.gctx"
    write_gctx(path, expression())
    with h5py.File(path, "r+") as file:
        ids = file[f"0/META/{which}/id"][:-1]
        del file[f"0/META/{which}/id"]
        file[f"0/META/{which}/id"] = ids
    with pytest.raises(DataError, match=r"e\.gctx"):
        read_gct(path)


def test_gct_header_that_disagrees_with_the_matrix(tmp_path):
    path = write_gct(tmp_path / "e.gct", expression(), shape=(9, 6))
    with pytest.raises(DataError, match=r"e\.gct"):
        read_gct(path)


@pytest.mark.parametrize(("which", "named"), [("ROW", "100"), ("COL", "P0")])
def test_duplicate_ids_are_named(tmp_path, which, named):
    path = tmp_path / "e.gctx"
    write_gctx(path, expression())
    with h5py.File(path, "r+") as file:
        ids = file[f"0/META/{which}/id"]
        ids[1] = ids[0]
    with pytest.raises(DataError, match=rf"e\.gctx.*{named}"):
        read_gct(path)


def test_side_table(tmp_path):
    path = tmp_path / "pert_info.txt"
    path.write_text("pert_id\tpert_iname\tcanonical_smiles\nA\taspirin\tCCO\nB\t-666\t-666\n")
    table = read_side_table(path)
    assert table.loc["A", "pert_iname"] == "aspirin" and pd.isna(table.loc["B", "canonical_smiles"])
    path.write_text("pert_id\tpert_iname\nA\tx\nA\ty\n")
    with pytest.raises(DataError, match=r"pert_info\.txt.*'A'"):
        read_side_table(path)


@pytest.mark.parametrize(
    ("text", "dose"),
    [("10 µM", 10), ("10.0 um", 10), ("500 nM", 0.5), (3.33, 3.33), ("0.04", 0.04), ("1 mM", 1000), ("-666", np.nan)],
)
def test_doses_are_in_micromolar(text, dose):
    assert parse_dose(text) == pytest.approx(dose, nan_ok=True)


@pytest.mark.parametrize(("text", "hours"), [("24 h", 24), ("6H", 6), (96, 96), ("-666", np.nan)])
def test_times_are_in_hours(text, hours):
    assert parse_time(text) == pytest.approx(hours, nan_ok=True)


@given(st.text(max_size=12))
def test_doses_and_times_are_numbers_or_errors(text):
    for parse in (parse_dose, parse_time):
        try:
            value = parse(text)
        except DataError as error:
            assert repr(text)[1:-1] in str(error) or repr(text) in str(error)
        else:
            assert np.isnan(value) or value >= 0


MEASURE = """
import resource, sys
import numpy as np
from pyro_cge.data.l1000 import read_gct
import h5py, pandas, cmapPy.pandasGEXpress.parse_gctx
genes = [str(i) for i in range(0, {g}, {g} // {k})][:{k}]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
e = read_gct(sys.argv[1], genes=genes)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert e.x.shape == ({n}, {k})
assert e.x[17, 3] == (17 + int(genes[3])) % 97
print((after - before) / 1024 - e.x.nbytes / 2**20)
"""


def big_gctx(path, n, g):
    """A file of ``n × g`` with ``x[i, k] = (i + k) mod 97``, compressed so that it stays small on disk."""
    with h5py.File(path, "w") as file:
        matrix = file.create_dataset(
            "0/DATA/0/matrix", (n, g), "f4", chunks=(min(n, 1000), 512), compression="gzip", compression_opts=1
        )
        for start in range(0, n, 4000):
            rows = np.arange(start, min(start + 4000, n))[:, None]
            matrix[start : start + 4000] = (rows + np.arange(g)) % 97
        for kind, count, letter in (("ROW", g, ""), ("COL", n, "P")):
            file[f"0/META/{kind}/id"] = np.array([f"{letter}{i}" for i in range(count)], dtype="S")
        file.attrs["version"] = "GCTX1.0"


def excess_megabytes(path, n, g, k):
    code = MEASURE.format(n=n, g=g, k=k)
    return float(subprocess.run([sys.executable, "-c", code, path], check=True, capture_output=True, text=True).stdout)


def test_reading_landmarks_streams(tmp_path):
    n, g, k = 12_000, 6_000, 300
    big_gctx(tmp_path / "big.gctx", n, g)
    assert excess_megabytes(tmp_path / "big.gctx", n, g, k) < 100  # the file holds 275 MiB


@pytest.mark.slow
def test_reading_landmarks_of_118050_profiles_stays_below_output_plus_200_mb(tmp_path):
    n, g, k = 118_050, 12_328, 978
    big_gctx(tmp_path / "big.gctx", n, g)
    assert excess_megabytes(tmp_path / "big.gctx", n, g, k) < 200

"""Files: what their names say, and folders that are whole or not there."""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import pytest

import pyro_cge as cge
from pyro_cge.cli.options import read
from pyro_cge.data.files import clear_leftovers, kind_of, separator, whole_folder
from pyro_cge.data.tables import read_table
from pyro_cge.discover import read_knowledge, read_profiles
from pyro_cge.imputation.reading import read_effects


def test_the_last_suffix_says_what_a_file_is():
    assert [kind_of(n) for n in ("a.csv.h5ad", "a.CSV.gz", "a.b.txt", "a", "a.gz")] == [".h5ad", ".csv", ".txt", "", ""]
    assert [separator(n) for n in ("a.csv", "a.csv.gz", "a.tsv", "a.TXT", "a.csv.h5ad", "a.csv.tsv", "a")] == [
        ",", ",", "\t", "\t", None, "\t", None
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.tsv", "t.txt.bz2", "csv.t.TSV", "t.csv.txt"])
def test_every_reader_of_tables_goes_by_the_name(tmp_path, name):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(6, 3)), columns=["g1", "g2", "g3"])
    path = tmp_path / name
    separator = "," if ".csv" in name and not name.endswith(".txt") else "\t"
    table.to_csv(path, sep=separator, index=False)
    assert np.allclose(read_profiles(path, None), table)
    table.assign(environment=list("aabbcc")).to_csv(path, sep=separator, index=False)
    assert np.allclose(read_table(path).x, table) and np.allclose(read(path, None).x, table)
    table.assign(context=list("aabbcc"), action=list("pqpqpq")).to_csv(path, sep=separator, index=False)
    assert np.allclose(read_effects(path, "context", "action").x, table)
    pd.DataFrame({"cause": ["a"], "effect": ["b"], "kind": ["forbidden"]}).to_csv(path, sep=separator, index=False)
    assert list(read_knowledge(path).forbidden) == [("a", "b")]


def test_an_h5ad_with_csv_in_its_name_is_no_table(tmp_path, data):
    path = tmp_path / "screen.csv.h5ad"
    cge.write_h5ad(data.rows(range(60)), path)
    assert read(path, None).digest == read_profiles(path, None).digest == data.rows(range(60)).digest
    adata = cge.to_anndata(data.rows(range(60)))
    adata.obs["cell"] = "A"
    adata.write_h5ad(path)
    assert list(read_effects(path, "cell", "environment").context_names) == ["A"]


def test_a_folder_is_whole_or_not_there_even_after_a_kill(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ZeroDivisionError), whole_folder(out) as part:
        (part / "a").write_text("half")
        _ = 1 / 0
    assert os.listdir(tmp_path) == []
    child = os.fork()
    if not child:
        with whole_folder(out) as part:
            (part / "a").write_text("half")
            os._exit(0)
    os.waitpid(child, 0)
    [left] = os.listdir(tmp_path)
    assert left.startswith(".out.")
    others = [".out2.abcd1234.tmp", "mine.tmp", ".out.abcd.tmp"]
    for name in others:
        (tmp_path / name).mkdir()
    with whole_folder(out) as part:
        (part / "a").write_text("all")
    assert sorted(os.listdir(tmp_path)) == sorted(["out", *others]) and os.listdir(out) == ["a"]
    clear_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(["out", *others[1:]])

"""Every kind of bad input that ``benchmarks/faults`` knows ends in an error of ours, or in the repair that is promised."""

from __future__ import annotations

import os
import resource
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import pyro_cge as cge
from pyro_cge.data.files import whole_folder
from pyro_cge.data.l1000 import Expression, write_gctx
from pyro_cge.errors import PyroCgeError
from pyro_cge.train.checkpoint import write_json

FOLDER = Path(__file__).parents[1] / "benchmarks" / "faults"
sys.path.insert(0, str(FOLDER))
import damage  # noqa: E402
import inputs  # noqa: E402

sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    inputs.good_files(folder)
    return folder


@pytest.mark.parametrize("name", [name for name in inputs.CASES if not name.startswith("cli:")])
def test_bad_input_is_one_error_of_ours(files, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries about the very thing that is wrong
        kind, message = inputs.outcome(inputs.CASES[name], files, repair=False)
    assert kind == "typed", message
    assert 20 < len(message) < 5000


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in inputs.CASES if name.startswith("cli:")])
def test_bad_commands_are_one_error_of_ours(files, name):
    kind, message = inputs.outcome(inputs.CASES[name], files, repair=False)
    assert kind == "typed", message


@pytest.mark.parametrize("name", inputs.REPAIRS)
def test_repairs_that_are_promised(files, name):
    kind, message = inputs.outcome(inputs.REPAIRS[name], files, repair=True)
    assert kind == "repaired", message


def test_flipped_bits_are_noticed(files):
    assert damage.flip_weights(files, 100)["undetected"] == 0
    counts = damage.flip_data(files, 10)
    assert counts["undetected"] == counts["crashed or foreign"] == 0


@pytest.mark.slow
def test_no_loader_unpickles(files):
    counts = damage.pickles(files)
    assert counts["attempts"] > 300 and counts["executed"] == counts["foreign"] == 0


def test_the_trap_works(tmp_path):
    import pickle

    pickle.loads(pickle.dumps(damage.Trap(tmp_path / "canary"))).close()
    assert (tmp_path / "canary").exists()


def to_folder(folder):
    with whole_folder(folder / "out") as part:
        (part / "table.csv").write_text("x" * 10**5)


WRITERS = {
    "h5ad": lambda folder, data: cge.write_h5ad(data, folder / "f"),
    "gctx": lambda folder, _: write_gctx(
        folder / "f",
        Expression(np.ones((2, 9000), np.float32), pd.DataFrame(index=["a", "b"]), pd.DataFrame(index=list(map(str, range(9000))))),
    ),
    "split": lambda folder, data: cge.split(data.rows(np.arange(data.n).repeat(20)), by="random").save(folder / "f"),
    "json": lambda folder, _: write_json(folder / "f", "x" * 10**5),
    "folder": lambda folder, _: to_folder(folder),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_error_of_ours_and_leaves_nothing(data, tmp_path, name):
    """The kernel refuses to let any file of a child process grow beyond 4 KiB."""
    child = os.fork()
    if not child:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
            WRITERS[name](tmp_path, data)
        except PyroCgeError as error:
            code = 0 if "cannot" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert os.listdir(tmp_path) == []

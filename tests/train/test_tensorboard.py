"""Learning curves in TensorBoard, where it is installed; one clear error where it is not."""

from __future__ import annotations

import sys

import pytest
from typer.testing import CliRunner

import pyro_cge as cge
from pyro_cge.cli import app
from pyro_cge.errors import ConfigError
from pyro_cge.presets import basic_vae
from pyro_cge.train.tensorboard import TensorBoardLog


def scalars(folder):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_every_number_of_the_history_is_logged(data, tmp_path):
    pytest.importorskip("tensorboard")
    with TensorBoardLog(tmp_path / "log") as log:
        fit = cge.fit(*basic_vae(data, 2, hidden=(8,)), data, epochs=3, on_record=log)
    found = scalars(tmp_path / "log")
    assert {"loss/train", "loss/valid", "kl/train", "log_likelihood/valid", "grad_norm", "seconds"} <= set(found)
    for tag, column in (("loss/train", "train_loss"), ("kl/valid", "valid_kl"), ("grad_norm", "grad_norm")):
        assert [step for step, _ in found[tag]] == [0, 1, 2]
        assert [value for _, value in found[tag]] == pytest.approx(list(fit.history[column]), rel=1e-6)


def test_epochs_trained_again_replace_what_was_said_of_them(tmp_path):
    pytest.importorskip("tensorboard")
    for start, loss in ((0, 5.0), (2, 1.0)):
        with TensorBoardLog(tmp_path) as log:
            for epoch in range(start, start + 3):
                log({"epoch": epoch, "train_loss": loss})
    assert scalars(tmp_path)["loss/train"] == [(0, 5.0), (1, 5.0), (2, 1.0), (3, 1.0), (4, 1.0)]


def test_without_the_package_the_error_says_what_to_install(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'pyro-cge\[tensorboard\]'"):
        TensorBoardLog(tmp_path)
    cge.write_h5ad(data, tmp_path / "d.h5ad")
    arguments = [
        "fit",
        "basic",
        "--data",
        tmp_path / "d.h5ad",
        "--out",
        tmp_path / "run",
        "--tensorboard",
        tmp_path / "tb",
    ]
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert isinstance(result.exception, ConfigError) and not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write TensorBoard logs"):
        TensorBoardLog(tmp_path / "file")({"epoch": 0, "train_loss": 1.0})

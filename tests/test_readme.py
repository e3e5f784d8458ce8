"""The README's Python blocks run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

README = (Path(__file__).parents[1] / "README.md").read_text()


CELLS, GRAPH = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_block_on_cells_runs():
    names: dict[str, object] = {}
    block = CELLS
    exec(compile(block.replace("epochs=50", "epochs=2"), "README.md", "exec"), names)
    assert names["posterior"].targets().shape == (26, 8)


def test_block_on_graphs_runs():
    """On 300 cells of a screen: *Spi1* acts on *Tnf*, and one guide lowers it."""
    import pyro_cge as cge

    rng = np.random.default_rng(0)
    guide = np.repeat(["NTC", "sgSpi1"], 150)
    spi1 = rng.normal(size=300) - 3 * (guide == "sgSpi1")
    x = np.c_[spi1, spi1 + rng.normal(size=300), rng.normal(size=300)]
    obs = pd.DataFrame({"guide": guide}, index=[f"cell{i}" for i in range(300)])
    screen = anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=["Spi1", "Tnf", "Il6"]))
    names: dict[str, object] = {"adata": screen, "cge": cge}
    exec(compile(GRAPH, "README.md", "exec"), names)
    assert names["found"].targets_.loc["sgSpi1", "Spi1"] and list(names["posterior"].graph_.edges) == [("Spi1", "Tnf")]


def test_commands_it_names_exist():
    from typer.testing import CliRunner

    from pyro_cge.cli import app

    for command in set(re.findall(r"^pyro-cge (\w+)", README, flags=re.MULTILINE)):
        text = CliRunner().invoke(app, [command, "--help"], terminal_width=200).output
        used = re.findall(rf"^pyro-cge {command}((?:.|\\\n)*?)$(?<!\\)", README, flags=re.MULTILINE)
        for option in {o for line in used for o in re.findall(r"--[a-z-]+", line)}:
            assert option in text, (command, option)

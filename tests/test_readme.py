"""The README's Python blocks run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

README = (Path(__file__).parents[1] / "README.md").read_text()


CELLS, GRAPH, PAIRS, MANY = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


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


def test_block_on_many_members_and_big_files_runs(tmp_path, monkeypatch):
    import pyro_cge as cge

    design = cge.simulate.random_shifts(5, 6, variance=5.0, cover=True, seed=0)
    truth = cge.simulate.simulator("chain", n_latents=5, n_genes=12, environments=design, seed=0)
    data = truth.sample(20, seed=0)
    monkeypatch.chdir(tmp_path)
    adata = cge.to_anndata(data)
    treatments = ["DMSO" if e in data.control else name for e, name in enumerate(data.env_names)]
    names = pd.Categorical(np.asarray(treatments)[data.env.numpy()])
    anndata.AnnData(adata.X, obs=pd.DataFrame({"drug": names}, index=adata.obs_names)).write_h5ad("big.h5ad")
    made: dict[str, object] = {"data": data, "cge": cge}
    exec(compile(MANY.replace("seeds=16", "seeds=2, epochs=2"), "README.md", "exec"), made)
    assert (
        len(made["ensemble"]) == 2 and len(made["big"].control) == 1 and (made["big"].n, made["big"].g) == (data.n, 12)
    )


def test_block_on_pairs_runs():
    """Ten drugs in three cell lines and a control: the one that reverses the disease comes first."""
    import pyro_cge as cge

    rng = np.random.default_rng(0)
    disease = pd.Series(rng.normal(size=20), index=[f"g{i}" for i in range(20)])
    effect = np.concatenate([np.zeros((1, 20)), rng.normal(size=(10, 20))])
    effect[3] = -2 * disease
    line, drug = np.divmod(np.arange(33), 11)
    kept = (drug == 0) | (rng.random(33) < 0.8) | (drug == 3) & (line > 0)
    x = (rng.normal(size=(3, 20))[line] + effect[drug] + 0.1 * rng.normal(size=(33, 20)))[kept]
    obs = pd.DataFrame(
        {
            "cell_line": np.array(["A549", "MCF7", "PC3"])[line],
            "drug": ["DMSO" if k == 0 else f"drug{k}" for k in drug],
        },
        index=[str(i) for i in range(33)],
    )[kept]
    names: dict[str, object] = {
        "adata": anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=disease.index)),
        "disease": disease,
        "cge": cge,
    }
    exec(compile(PAIRS.replace("rank_drugs(disease", "ranks = rank_drugs(disease"), "README.md", "exec"), names)
    assert names["ranks"].index[0] == "drug3"
    assert names["mean"].shape == names["std"].shape == (len(names["effects"].missing), 20)


def test_commands_it_names_exist():
    from typer.testing import CliRunner

    from pyro_cge.cli import app

    for command in set(re.findall(r"^pyro-cge ([\w-]+)", README, flags=re.MULTILINE)):
        text = CliRunner().invoke(app, [command, "--help"], terminal_width=200).output
        used = re.findall(rf"^pyro-cge {command}((?:.|\\\n)*?)$(?<!\\)", README, flags=re.MULTILINE)
        for option in {o for line in used for o in re.findall(r"--[a-z-]+", line)}:
            assert option in text, (command, option)

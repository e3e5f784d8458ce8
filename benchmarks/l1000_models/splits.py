"""The four questions: which profiles are held out, and what of them is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from kernels import bits, dose_responses, responses, structures
from torch import Tensor

import pyro_cge as cge

HELD_CELL_LINES = 4
DOSES = (3.33, 10.0, 1.11)  # held out, one a seed


@dataclass(frozen=True, eq=False)
class Task:
    """One question, with its data.

    Attributes
    ----------
    data : EnvironmentData
        Everything; environments to predict included.
    train, valid : ndarray
        Row numbers.
    groups : ndarray ``[n]``
        What is never seen of a held-out profile: compound, environment, cell line or dose.
    tanimoto : Tensor ``[E, E]``
        Likeness of compounds, for the baselines.
    kernels : callable, annotated → {name: ``[E, E]``}
    """

    name: str
    data: cge.EnvironmentData
    train: np.ndarray
    valid: np.ndarray
    groups: np.ndarray
    tanimoto: Tensor
    kernels: Callable[[bool], dict[str, Tensor]]
    annotated: bool

    @property
    def fitted(self) -> cge.EnvironmentData:
        return self.data.rows(self.train)

    @property
    def held_out(self) -> cge.EnvironmentData:
        return self.data.rows(self.valid)


def unit_length(data: cge.EnvironmentData) -> cge.EnvironmentData:
    """Every profile scaled to mean square 1: strengths differ tenfold and say little about which genes respond.

    A correlation does not change by it, and no profile enters but the one that is scaled.
    """
    return replace(data, x=data.x / data.x.square().mean(1, keepdim=True).sqrt().clamp_min(1e-6))


def screen(data: cge.EnvironmentData, basal: pd.DataFrame | None) -> Callable[[str, int], Task]:
    """The three questions to a drug × cell-line screen, as a function of the name and the seed."""
    from pyro_cge.data.fingerprints import tanimoto

    data = unit_length(data)
    assert data.env_features is not None
    table = data.env_table
    fingerprint = data.env_features[:, : -table["cell_line"].nunique()]
    chemistry = structures(table["smiles"].tolist()) if "smiles" in table else bits(fingerprint)
    likeness = torch.from_numpy(tanimoto(fingerprint.numpy(), fingerprint.numpy()))
    env = data.env.numpy()
    compound, line = (table[c].to_numpy()[env] for c in ("perturbagen", "cell_line"))
    fit_part = np.flatnonzero(data.obs["part"].to_numpy() == "train")

    def task(name: str, seed: int) -> Task:
        rng = np.random.default_rng(seed)
        if name == "compounds":
            train, groups = fit_part, compound
            valid = np.flatnonzero(data.obs["part"].to_numpy() == "val")
        elif name == "pairs":
            lines = pd.Series(line[fit_part]).groupby(compound[fit_part]).nunique()
            several = fit_part[np.isin(compound[fit_part], lines.index[lines > 1])]
            some = np.unique(env[rng.permutation(several)[: len(fit_part) // 10]])
            valid, groups = fit_part[np.isin(env[fit_part], some)], env
            train = np.setdiff1d(fit_part, valid)
            valid = valid[np.isin(compound[valid], compound[train])]
        else:
            lines = np.unique(line)
            held = rng.permutation(lines)[: min(HELD_CELL_LINES, len(lines) // 2)]
            train, groups = fit_part[~np.isin(line[fit_part], held)], line
            valid = fit_part[np.isin(line[fit_part], held) & np.isin(compound[fit_part], compound[train])]
        return Task(
            name,
            data,
            train,
            valid,
            groups,
            likeness,
            lambda annotated: responses(table, basal, chemistry, annotated),
            bool({"moa", "target"} <= set(table)),
        )

    return task


def plate(path: Path) -> Callable[[str, int], Task]:
    """A dose-response plate (``NAME.npz`` with plates LJP…, and its obs table): one dose of every compound is held out."""
    with np.load(path, allow_pickle=False) as arrays:
        x, genes = arrays["X"].astype(np.float32), [str(gene) for gene in arrays["gene"]]
    obs = pd.read_csv(path.with_name(path.stem + "_obs.csv.gz"))
    keep = obs["plate"].str.startswith("LJP") & ~obs["is_control"] & obs["smiles"].notna() & obs["dose"].notna()
    keep &= obs["part"] == "train"
    obs, x = obs[keep].reset_index(drop=True), np.clip(x[keep.to_numpy()], -10, 10)
    label = obs["compound_key"] + " " + obs["dose"].astype(str) + " µM"
    codes, names = pd.factorize(label)
    first = obs.iloc[np.unique(codes, return_index=True)[1]]
    table = pd.DataFrame(
        {
            "perturbagen": first["compound_key"].to_numpy(),
            "cell_line": first["cell_id"].to_numpy(),
            "smiles": first["smiles"].to_numpy(),
            "dose": first["dose"].to_numpy(float),
        },
        index=pd.Index(names, dtype=str),
    )
    data = unit_length(
        cge.EnvironmentData(
            x=torch.from_numpy(x),
            env=torch.from_numpy(codes.astype(np.int64)),
            gene_names=genes,
            env_names=list(names),
            env_table=table,
        )
    )
    chemistry = structures(table["smiles"].tolist())
    dose, compound = (table[c].to_numpy()[codes] for c in ("dose", "perturbagen"))

    def task(name: str, seed: int) -> Task:
        held = np.isclose(dose, DOSES[seed % len(DOSES)], rtol=0.05)
        train = np.flatnonzero(~held)
        valid = np.flatnonzero(held & np.isin(compound, compound[train]))
        return Task(
            name, data, train, valid, dose, chemistry, lambda _: dose_responses(table, chemistry), annotated=False
        )

    return task


def synthetic() -> cge.EnvironmentData:
    """A stand-in of the same shape of problem, for ``--quick`` without data: 60 drugs in 4 cell lines."""
    rng = np.random.default_rng(0)
    drugs, cells, g = 60, 4, 100
    fingerprint = (rng.random((drugs, 64)) < 0.2).astype(np.float32)
    effect = fingerprint @ rng.normal(size=(64, g)) * 0.3
    names = [(f"drug {i}", f"cell {j}") for i in range(drugs) for j in range(cells)]
    basal = rng.normal(size=(cells, g))
    x = np.stack([effect[i] + basal[j] for i in range(drugs) for j in range(cells)]) + rng.normal(size=(len(names), g))
    part = ["val" if i >= 48 else "train" for i in range(drugs) for _ in range(cells)]
    table = pd.DataFrame(names, columns=["perturbagen", "cell_line"]).assign(part=part)
    table.index = pd.Index([f"{a} in {b}" for a, b in names])
    one_hot = np.tile(np.eye(cells, dtype=np.float32), (drugs, 1))
    return cge.EnvironmentData(
        x=torch.from_numpy(x.astype(np.float32)),
        env=torch.arange(len(names)),
        gene_names=[f"g{k}" for k in range(g)],
        env_names=list(table.index),
        env_features=torch.from_numpy(np.concatenate([np.repeat(fingerprint, cells, 0), one_hot], 1)),
        obs=table.set_index(pd.RangeIndex(len(table)).astype(str)),
        env_table=table,
    )

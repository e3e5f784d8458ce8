"""Data with heavy tails: simulated at the size of L1000, or single wells of real plates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

import pyro_cge as cge

HOURS_AND_DOSE = slice(-2, None)  # the last two features, raw: 6 or 24 h, 0.04 to 178 µM
HELD_OUT = 0.1

Parts = tuple[cge.EnvironmentData, cge.EnvironmentData]


def student(
    profiles: int = 600, genes: int = 978, environments: int = 300, bits: int = 1024, *, df: float = 2.0, seed: int = 0
) -> Parts:
    """Training and held-out part (environments never seen) of simulated single wells.

    ::

        b_e ~ Bernoulli(0.05)^bits, hours_e in {6, 24}, log10 dose_e ~ U(-1.4, 2.25)
        c   ~ N(0, I_10) + B b_e                        B sparse
        x   = W c + StudentT(df)                        W ~ N(0, 1/10)

    With 2 degrees of freedom the noise has no variance: the largest of 600,000 values is several hundred.
    """
    rng = np.random.default_rng(seed)
    fingerprints = (rng.random((environments, bits)) < 0.05).astype(np.float32)
    hours = rng.choice([6.0, 24.0], (environments, 1))
    dose = 10 ** rng.uniform(-1.4, 2.25, (environments, 1))
    env = np.arange(profiles) % environments
    effect = fingerprints @ (rng.normal(size=(bits, 10)) * (rng.random((bits, 10)) < 0.05))
    causes = rng.normal(size=(profiles, 10)) + effect[env]
    x = causes @ rng.normal(size=(10, genes)) / 10**0.5 + rng.standard_t(df, (profiles, genes))
    held = rng.permutation(environments)[: round(HELD_OUT * environments)]
    data = cge.EnvironmentData(
        x=torch.from_numpy(x.astype(np.float32)),
        env=torch.from_numpy(env),
        gene_names=[f"g{k}" for k in range(genes)],
        env_names=[f"e{e}" for e in range(environments)],
        env_features=torch.from_numpy(np.concatenate([fingerprints, hours, dose], 1).astype(np.float32)),
        obs=pd.DataFrame(
            {"part": np.where(np.isin(env, held), "val", "train")}, index=[str(i) for i in range(profiles)]
        ),
    )
    return parts(data)


def plates(path: Path) -> Parts:
    """Training and held-out part (compounds never seen) of an ``.h5ad`` written by ``convert.py``."""
    return parts(cge.read_h5ad(path))


def parts(data: cge.EnvironmentData) -> Parts:
    """The profiles whose ``part`` is "train", and those where it is "val"."""
    part = data.obs["part"].to_numpy()
    return data.rows(np.flatnonzero(part == "train")), data.rows(np.flatnonzero(part == "val"))

"""Turn ``NAME.npz`` (``X``, ``gene``) and ``NAME_obs.csv.gz`` into the ``.h5ad`` that ``run.py`` reads.

``python convert.py NAME.npz OUT.h5ad``. The obs table needs ``compound_key``, ``cell_id``, ``smiles`` and ``part``;
``moa`` and ``target`` (several in one field split at ``|``) are taken along where it has them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import npz

import pyro_cge as cge
from pyro_cge.data.fingerprints import morgan


def convert(source: Path) -> cge.EnvironmentData:
    """Environment = perturbagen × cell line; features = Morgan bits of the perturbagen, then cell line one-hot."""
    x, genes, obs = npz.read(source)
    obs = obs.rename(columns={"compound_key": "perturbagen", "cell_id": "cell_line"})
    obs.index = obs.index.astype(str)
    label = obs["perturbagen"] + " in " + obs["cell_line"]
    codes, names = pd.factorize(label)
    first = obs.iloc[np.unique(codes, return_index=True)[1]].copy()
    bits = dict(zip(first["smiles"].unique(), morgan(first["smiles"].unique())))
    fingerprints = np.stack([bits[smiles] for smiles in first["smiles"]])
    cells = pd.get_dummies(first["cell_line"]).to_numpy(np.float32)
    known = [column for column in ("moa", "target") if column in first]
    first[known] = first[known].fillna("")
    table = first[["perturbagen", "cell_line", "smiles", "part", *known]].set_axis(pd.Index(names, dtype=str))
    return cge.EnvironmentData(
        x=x,
        env=torch.from_numpy(codes.astype(np.int64)),
        gene_names=genes,
        env_names=list(names),
        env_features=torch.from_numpy(np.concatenate([fingerprints, cells], 1)),
        obs=obs[["perturbagen", "cell_line", "part"]],
        env_table=table,
    )


if __name__ == "__main__":
    npz.command(convert, __doc__)

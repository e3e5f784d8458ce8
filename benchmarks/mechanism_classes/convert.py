"""Turn level-5 signatures, ``NAME.npz`` (``X``, ``gene``) and ``NAME_obs.csv.gz``, into the ``.h5ad`` ``run.py`` reads.

``python convert.py NAME.npz OUT.h5ad``. The obs table needs ``compound_key``, ``cell_id``, ``smiles`` and ``moa``
(``"A|B"`` where there are several). Environments are compounds, by name alone; structure and mechanism go to the
environment table, where no model looks.
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


def convert(source: Path) -> cge.EnvironmentData:
    x, genes, obs = npz.read(source, dtype=str)
    codes, names = pd.factorize(obs["compound_key"])
    first = obs.iloc[np.unique(codes, return_index=True)[1]]
    return cge.EnvironmentData(
        x=x,
        env=torch.from_numpy(codes.astype(np.int64)),
        gene_names=genes,
        env_names=[str(name) for name in names],
        obs=obs[["cell_id"]].rename(columns={"cell_id": "cell_line"}).set_axis(obs.index.astype(str)),
        env_table=first[["smiles", "moa"]].set_axis(names.astype(str)),
    )


if __name__ == "__main__":
    npz.command(convert, __doc__)

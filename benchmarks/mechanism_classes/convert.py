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

import pyro_cge as cge


def convert(source: Path, out: Path) -> cge.EnvironmentData:
    with np.load(source, allow_pickle=False) as arrays:
        x, genes = torch.from_numpy(arrays["X"].astype(np.float32)), [str(name) for name in arrays["gene"]]
    obs = pd.read_csv(source.with_name(source.stem + "_obs.csv.gz"), dtype=str)
    codes, names = pd.factorize(obs["compound_key"])
    first = obs.iloc[np.unique(codes, return_index=True)[1]]
    data = cge.EnvironmentData(
        x=x,
        env=torch.from_numpy(codes.astype(np.int64)),
        gene_names=genes,
        env_names=[str(name) for name in names],
        obs=obs[["cell_id"]].rename(columns={"cell_id": "cell_line"}).set_axis(obs.index.astype(str)),
        env_table=first[["smiles", "moa"]].set_axis(names.astype(str)),
    )
    cge.write_h5ad(data, out)
    return data


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    print(convert(Path(sys.argv[1]), Path(sys.argv[2])))

"""Turn a knock-down plate, ``NAME.npz`` (``X``, ``gene``) and ``NAME_obs.csv.gz``, into the ``.h5ad`` ``run.py`` reads.

``python convert.py NAME.npz OUT.h5ad``. The obs table needs ``pert_id`` (hairpin), ``pert_type`` (``ctl_…`` for
controls), ``target_entrez`` and ``pert_well``. Environments are hairpins, by name alone; the target gene goes to the
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
    codes, names = pd.factorize(obs["pert_id"])
    first = obs.iloc[np.unique(codes, return_index=True)[1]]
    control = first["pert_type"].str.startswith("ctl_").to_numpy()
    return cge.EnvironmentData(
        x=x,
        env=torch.from_numpy(codes.astype(np.int64)),
        gene_names=genes,
        env_names=[str(name) for name in names],
        obs=obs[["pert_well"]].set_axis(obs.index.astype(str)),
        env_table=pd.DataFrame({"target": first["target_entrez"].where(~control).to_numpy()}, index=names.astype(str)),
        control=np.flatnonzero(control).tolist(),
    )


if __name__ == "__main__":
    npz.command(convert, __doc__)

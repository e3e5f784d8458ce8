"""Turn ``NAME.npz`` (``X``, ``gene``) and ``NAME_obs.csv.gz`` of single wells into the ``.h5ad`` that ``run.py`` reads.

``python convert.py NAME.npz OUT.h5ad``. The obs table needs ``compound_key``, ``smiles``, ``dose`` (µM), ``time_h``,
``is_control`` and ``part``.
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

BITS = 1024


def convert(source: Path) -> cge.EnvironmentData:
    """Environment = compound at a dose for a time; features = Morgan bits, then raw hours and raw dose (µM).

    Vehicle wells are the control: no bits, no dose.
    """
    x, genes, obs = npz.read(source)
    obs.index = obs["inst_id"].astype(str)
    obs["dose"] = obs["dose"].fillna(0.0)
    label = obs["compound_key"] + " at " + obs["dose"].map("{:g}".format) + " µM, " + obs["time_h"].map("{:g} h".format)
    codes, names = pd.factorize(label.mask(obs["is_control"], "vehicle"))
    first = obs.iloc[np.unique(codes, return_index=True)[1]]
    known = list(first["smiles"].dropna().unique())
    fingerprints = dict(zip(known, morgan(known, n_bits=BITS)))
    bits = np.stack([fingerprints.get(smiles, np.zeros(BITS)) for smiles in first["smiles"]]).astype(np.float32)
    raw = first[["time_h", "dose"]].to_numpy(np.float32) * ~first["is_control"].to_numpy()[:, None]
    return cge.EnvironmentData(
        x=x,
        env=torch.from_numpy(codes.astype(np.int64)),
        gene_names=genes,
        env_names=list(names),
        env_features=torch.from_numpy(np.concatenate([bits, raw], 1)),
        obs=obs[["plate", "part"]],
        env_table=first[["compound_key", "dose", "time_h"]].set_axis(pd.Index(names, dtype=str)),
        control=[int(e) for e in np.flatnonzero(names == "vehicle")],
    )


if __name__ == "__main__":
    npz.command(convert, __doc__)

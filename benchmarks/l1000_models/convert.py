"""A packed L1000 set, ``NAME.npz`` with ``NAME_obs.csv.gz``, as ``.h5ad`` for ``run.py``.

    python benchmarks/l1000_models/convert.py l1000_level5_gps24.npz gps24.h5ad

The ``.npz`` holds ``X [n, g]`` and ``gene [g]``; the CSV has a row per profile with ``compound_key`` (InChIKey
skeleton), ``part`` (train or val), cell line, dose and time where known. SMILES come from its column ``smiles`` or
from ``split_compounds.csv`` in the same folder. Environment = compound, features = Morgan fingerprint. Profiles
without compound or SMILES are left out, and counted on the screen.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from pyro_cge.data.anndata import write_h5ad
from pyro_cge.data.assemble import to_environment_data
from pyro_cge.data.environment import EnvironmentData
from pyro_cge.data.files import check_writable
from pyro_cge.data.geo import as_ids
from pyro_cge.data.l1000 import Expression
from pyro_cge.errors import DataError


def convert(npz: Path, radius: int = 2, n_bits: int = 2048) -> EnvironmentData:
    """The profiles of known structure as ``EnvironmentData``, environment = compound."""
    beside = npz.with_name(f"{npz.stem}_obs.csv.gz")
    if not npz.is_file() or not beside.is_file():
        raise DataError(f"{npz}: needs both this file and {beside.name} beside it")
    with np.load(npz, allow_pickle=False) as packed:
        x, genes = packed["X"].astype(np.float32), as_ids(packed["gene"])
    obs = pd.read_csv(beside).dropna(axis=1, how="all")
    obs.index = pd.Index([f"{npz.stem}:{row}" for row in range(len(obs))], dtype=object)
    if "compound_key" not in obs.columns:
        raise DataError(f"{beside}: no column 'compound_key'; there are {', '.join(obs.columns)}")
    # One SMILES a compound: stereo-isomers share a skeleton, and an environment has one fingerprint.
    compounds = npz.with_name("split_compounds.csv")
    if compounds.is_file():
        smiles = pd.read_csv(compounds).dropna(subset=["smiles"]).drop_duplicates("compound_key")
    elif "smiles" in obs.columns:
        smiles = obs.dropna(subset=["compound_key", "smiles"]).drop_duplicates("compound_key")
    else:
        raise DataError(f"{beside}: no column 'smiles', and no {compounds.name} beside it")
    known = dict(zip(smiles["compound_key"], smiles["smiles"], strict=True))
    obs["perturbagen"] = obs["compound_key"]
    keep = obs["compound_key"].isin(known).to_numpy()
    expression = Expression(x[keep], obs[keep], pd.DataFrame(index=genes), npz.name)
    return to_environment_data(expression, features=("fingerprint",), smiles=known, radius=radius, n_bits=n_bits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("npz", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    try:
        check_writable(arguments.out)
        data = convert(arguments.npz)
        write_h5ad(data, arguments.out)
    except DataError as error:
        raise SystemExit(f"error: {error}") from None
    print(data)
    if "part" in data.obs.columns:
        print(data.obs["part"].value_counts().to_dict())


if __name__ == "__main__":
    main()

"""The two files of the benchmark, written block by block so that writing them needs no more memory than reading."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata.io import write_elem

BLOCK = 10_000
N_ENVS, N_FEATURES = 1074, 2048  # compounds of an L1000 release, bits of a fingerprint


def annotations(file: h5py.File, n: int, g: int, rng: np.random.Generator) -> np.ndarray:
    """Profiles sorted by environment (the worst order to shuffle) and a fingerprint an environment; their numbers."""
    file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    env = np.sort(rng.integers(N_ENVS, size=n))
    names = [f"drug {e:04d}" for e in range(N_ENVS)]
    obs = pd.DataFrame({"drug": pd.Categorical.from_codes(env, names)}, index=[str(i) for i in range(n)])
    write_elem(file, "obs", obs)
    write_elem(file, "var", pd.DataFrame(index=[f"g{i}" for i in range(g)]))
    features = (rng.random((N_ENVS, N_FEATURES)) < 0.03).astype(np.float32)
    write_elem(file, "uns", {"fingerprint": features})
    return env


def write_dense(path: Path, n: int, g: int, seed: int = 0) -> None:
    """Expression of ``n`` profiles, float32, as a shift of each environment along ten directions, and noise."""
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        env = annotations(file, n, g, rng)
        shift = rng.standard_normal((N_ENVS, 10), np.float32) @ rng.standard_normal((10, g), np.float32)
        x = file.create_dataset("X", (n, g), np.float32)
        for start in range(0, n, BLOCK):
            here = env[start : start + BLOCK]
            x[start : start + len(here)] = shift[here] + rng.standard_normal((len(here), g), np.float32)


def write_sparse(path: Path, n: int, g: int, per_profile: int = 60, seed: int = 0) -> None:
    """Counts in CSR, as AnnData writes them (float32 values, int32 columns): about ``per_profile`` genes seen in each.

    Popular genes are seen more often: gene ``k`` with weight ``1 / (k + 10)``.
    """
    rng = np.random.default_rng(seed)
    weight = 1 / (np.arange(g) + 10.0)
    edges = np.cumsum(weight) / weight.sum()
    with h5py.File(path, "w") as file:
        annotations(file, n, g, rng)
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": np.array([n, g])})
        values = group.create_dataset("data", (0,), np.float32, maxshape=(None,), chunks=(2**16,))
        genes = group.create_dataset("indices", (0,), np.int32, maxshape=(None,), chunks=(2**16,))
        pointers = np.zeros(n + 1, np.int64)
        for start in range(0, n, BLOCK):
            rows = min(BLOCK, n - start)
            drawn = np.minimum(np.searchsorted(edges, rng.random(rows * per_profile * 3 // 2)), g - 1)
            seen, count = np.unique(np.arange(len(drawn)) % rows * np.int64(g) + drawn, return_counts=True)
            pointers[start + 1 : start + rows + 1] = pointers[start] + np.cumsum(np.bincount(seen // g, minlength=rows))
            for dataset, added in ((values, count), (genes, seen % g)):
                dataset.resize((pointers[start + rows],))
                dataset[pointers[start] :] = added
        group["indptr"] = pointers

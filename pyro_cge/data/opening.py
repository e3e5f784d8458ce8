"""``stream``: open a data set on disk for training, without reading its expression."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import DataError
from .anndata import ENV_KEY, UNS_KEY, from_anndata
from .assemble import to_environment_data
from .environment import EnvironmentData
from .geo import join, read_side_table
from .l1000 import MATRIX, Expression, read_metadata
from .on_disk import DiskMatrix, opened
from .streamed import StreamedData

WINDOW_BYTES = 64 * 2**20
BLOCK_BYTES = 128 * 2**10  # where profiles can be read one by one: smaller, and calls cost more than bytes
LEAST_BLOCKS = 32  # a window has at least so many: shuffling goes before reading each chunk of a file once


def stream(
    path: str | Path,
    env_key: str | Sequence[str] | None = None,
    features_key: str | None = None,
    control: str | Sequence[str] | None = None,
    *,
    layer: str | None = None,
    features: Sequence[str] = (),
    side_tables: Sequence[str | Path] = (),
    block: int | None = None,
    window: int | None = None,
) -> StreamedData:
    """Profiles of a file too big for memory, for :func:`~pyro_cge.train.fit.fit` and posteriors.

    Annotations are read now, expression when a batch asks for it. The file must stay as it is meanwhile.

    Parameters
    ----------
    path : path
        ``.h5ad`` (dense or CSR), a zarr folder written by AnnData, or ``.gctx``.
    env_key, features_key, control
        As :func:`~pyro_cge.data.anndata.from_anndata`. For GCTX, ``env_key`` is one column or several whose
        combinations are the environments.
    layer : str, optional
        Matrix of ``layers`` instead of ``X`` (counts, often).
    features : sequence of block names
        GCTX only: see :func:`~pyro_cge.data.features.environment_features`.
    side_tables : sequence of paths
        GCTX only: what is known of profiles, where the file has no more than their ids, as GEO publishes it; joined as
        :func:`~pyro_cge.data.prepare.prepare` does.
    block : int, optional
        Consecutive profiles that are read together. By default what the file stores together (a chunk), at least
        128 KiB, at most a 32nd of a window.
    window : int, optional
        Profiles held and shuffled at a time; by default 64 MiB of them (in the form they are read in).

    Raises
    ------
    DataError
        If the file is absent, damaged or of another kind, its matrix is not of numbers or is stored by columns, and
        as :func:`~pyro_cge.data.anndata.from_anndata` for environments, with the file's name.
    """
    path = Path(path)
    if path.suffix.lower() == ".gctx":
        if features_key is not None or layer is not None:
            raise DataError(f"{path}: GCTX has no {'layers' if layer else 'features'}; leave the key out")
        matrix, missing = MATRIX, -666.0
        table, genes = _gctx(path, env_key, control, features, side_tables)
    elif path.suffix.lower() == ".h5ad" or path.is_dir() or path.suffix.lower() == ".zarr":
        if features or side_tables or not isinstance(env_key, str | None):
            raise DataError(
                f"{path}: several columns in env_key, features= and side_tables= are for GCTX; give one obs column"
            )
        matrix, missing = "X" if layer is None else f"layers/{layer}", None
        table, genes = _anndata(path, env_key, features_key, control)
    else:
        raise DataError(f"{path}: neither .h5ad nor .gctx nor a zarr folder; read it into memory, or write it as .h5ad")
    found = DiskMatrix.at(path, matrix, missing)
    if found.shape != (table.n, len(genes)):
        raise DataError(
            f"{path}: {matrix} is {found.shape[0]} × {found.shape[1]}, but there are {table.n} profiles and "
            f"{len(genes)} genes; the file is damaged, write it again"
        )
    for name, value in (("block", block), ("window", window)):
        if value is not None and value < 1:
            raise DataError(f"{name} is a number of profiles, at least 1; got {value}")
    if window is None:
        window = max(1, int(WINDOW_BYTES / found.row_bytes), block or 1)
    if block is None:
        block = max(1, min(max(found.chunk_rows, int(BLOCK_BYTES / found.row_bytes)), window // LEAST_BLOCKS))
    data = StreamedData(found, table, genes, np.arange(table.n), None, block, window)
    try:
        data.schema()  # checks the names of genes
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return data


def _gctx(
    path: Path,
    env_key: str | Sequence[str] | None,
    control: str | Sequence[str] | None,
    features: Sequence[str],
    side_tables: Sequence[str | Path],
) -> tuple[EnvironmentData, pd.Index]:
    obs, var = read_metadata(path)
    for name in side_tables:
        obs, var = join(obs, var, read_side_table(name), name)
    by = ("perturbagen",) if env_key is None else (env_key,) if isinstance(env_key, str) else tuple(env_key)
    annotations = Expression(np.empty((len(obs), 0), np.float32), obs, var.iloc[:0], str(path))
    try:
        return to_environment_data(annotations, by, features, control=control), var.index
    except DataError as error:
        if obs.shape[1]:
            raise
        raise DataError(
            f"{error}. The file has the ids of its profiles and no more, as GEO publishes it: give GEO's tables (inst_info or "
            "sig_info, pert_info) with side_tables=, or make an .h5ad file of all with pyro-cge prepare --side-table"
        ) from error


def _anndata(
    path: Path, env_key: str | None, features_key: str | None, control: str | Sequence[str] | None
) -> tuple[EnvironmentData, pd.Index]:
    """Everything but expression, by the reader of files in memory: an AnnData with no genes."""
    from anndata import AnnData
    from anndata.io import read_elem

    with opened(path) as file:
        if absent := [name for name in ("obs", "var") if name not in file]:
            raise DataError(f"{path}: has no {absent[0]}, so it was not written by AnnData")
        obs, genes = _frame(file["obs"]), _index(file["var"]).astype(str)
        uns, obsm = file.get("uns", {}), file.get("obsm", {})
        kept = {name: read_elem(uns[name]) for name in {UNS_KEY, features_key or UNS_KEY} if name in uns}
        truth = {name: read_elem(obsm[name]) for name in ("z_true", "c_true") if name in obsm}
        if features_key is not None and features_key in obsm:
            key = ENV_KEY if env_key is None else env_key
            if key in obs.columns:
                names = list(kept[UNS_KEY]["env_names"]) if key == ENV_KEY and UNS_KEY in kept else None
                kept[features_key] = _looked_up(obsm[features_key], obs[key], names, features_key, path)
    try:
        light = AnnData(X=np.empty((len(obs), 0), np.float32), obs=obs, uns=kept, obsm=truth)
        return from_anndata(light, env_key, features_key, control), genes
    except (ValueError, IndexError) as error:  # AnnData's, of arrays that do not fit, and ours
        raise DataError(f"{path}: {error}") from error


def _frame(group: Any) -> pd.DataFrame:
    """``obs``, a column at a time, text as categories: 10⁶ profiles of few drugs share their names."""
    from anndata.io import read_elem

    if not hasattr(group, "keys"):  # a table in one piece, as AnnData wrote before 0.7
        return read_elem(group)
    columns = {}
    for name in group.attrs["column-order"]:
        values = pd.Series(read_elem(group[name]))
        columns[str(name)] = values.astype("category") if values.dtype == object else values
    table = pd.DataFrame(columns, index=range(group[group.attrs["_index"]].shape[0]))
    return table.set_axis(_index(group).astype(str))


def _index(group: Any) -> pd.Index:
    from anndata.io import read_elem

    name = group.attrs.get("_index") if hasattr(group, "attrs") else None
    return pd.Index(read_elem(group[name])) if name is not None else read_elem(group).index


def _looked_up(features: Any, env: pd.Series, names: Sequence[str] | None, key: str, path: Path) -> pd.DataFrame:
    """Features stored for every profile as one row an environment, read by blocks; ``DataError`` where they differ."""
    codes, found = pd.factorize(env.astype(str), sort=True)
    if not hasattr(features, "shape") or len(features.shape) != 2:
        raise DataError(f"{path}: obsm[{key!r}] is no array of profiles × features; store it as one")
    table = np.zeros((len(found), features.shape[1]), np.float32)
    seen = np.zeros(len(found), bool)
    step = max(1, BLOCK_BYTES * 64 // (4 * max(features.shape[1], 1)))
    for start in range(0, len(codes), step):
        part, here = np.asarray(features[start : start + step], np.float32), codes[start : start + step]
        fresh, first = np.unique(here, return_index=True)
        new = ~seen[fresh]
        table[fresh[new]], seen[fresh] = part[first[new]], True
        if (differs := (part != table[here]).any(1)).any():
            raise DataError(
                f"{path}: obsm[{key!r}] differs between profiles of environment {found[here[differs.argmax()]]!r}; "
                "features belong to environments, choose a finer env_key"
            )
    if names is not None and len(lost := pd.Index(names).difference(found)):
        raise DataError(f"{path}: obsm[{key!r}] has no profile of environment {lost[0]!r}; give its features in uns")
    return pd.DataFrame(table, index=found)

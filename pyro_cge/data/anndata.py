"""``EnvironmentData`` to and from AnnData, in one place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..errors import DataError
from ..scm.shifts import NoiseShift
from .environment import EnvironmentData, Truth
from .files import first_line, hdf5_file

if TYPE_CHECKING:
    from anndata import AnnData

UNS_KEY, ENV_KEY = "pyro_cge", "environment"


def to_anndata(data: EnvironmentData) -> AnnData:
    """The data as AnnData; ``X`` shares memory with ``data.x`` where that is on the CPU.

    ``obs["environment"]`` is categorical; ``uns["pyro_cge"]`` holds what belongs to environments (names, features,
    table, control); a simulator's truth goes there too, its noise and causes to ``obsm["z_true"]``, ``["c_true"]``.
    """
    from anndata import AnnData

    obs = _storable(data.obs)
    names = list(data.env_names)
    obs[ENV_KEY] = pd.Categorical.from_codes(data.env.cpu().numpy(), names)
    kept: dict[str, Any] = {
        "env_names": np.array(names, dtype=object),
        "env_table": _storable(data.env_table),
        "control": np.array(data.control, dtype=np.int64),
    }
    if data.env_features is not None:
        kept["env_features"] = data.env_features.cpu().numpy()
    if feature_names := data.env_table.attrs.get("feature_names"):
        kept["feature_names"] = np.array(feature_names, dtype=object)
    obsm = {}
    if (truth := data.truth) is not None:
        kept["truth"] = _truth_to_dict(truth)
        obsm = {"z_true": truth.z.cpu().numpy(), "c_true": truth.c.cpu().numpy()}
    var = pd.DataFrame(index=pd.Index(list(data.gene_names)))
    return AnnData(X=data.x.detach().cpu().numpy(), obs=obs, var=var, obsm=obsm, uns={UNS_KEY: kept})


def from_anndata(
    adata: AnnData,
    env_key: str | None = None,
    features_key: str | None = None,
    control: str | Sequence[str] | None = None,
) -> EnvironmentData:
    """``EnvironmentData`` from AnnData, written by :func:`to_anndata` or by anyone.

    ``x`` shares memory with ``adata.X`` where that is a C-contiguous float32 array; other numbers are converted,
    sparse matrices made dense.

    Parameters
    ----------
    adata : AnnData
        Profiles × genes.
    env_key : str, optional
        Column of ``obs`` that says the environment. Only files of :func:`to_anndata` need none.
    features_key : str, optional
        Environment features in ``uns`` (array with a row per environment in sorted order, or a DataFrame indexed
        by environment) or in ``obsm`` (equal within each environment).
    control : str or sequence of str, optional
        Names of the reference environments.

    Raises
    ------
    DataError
        For a column, key or environment that is not there (with those there are), a missing environment, a matrix
        that is not numbers or not finite, features that differ within an environment.
    """
    x = _matrix(adata.X)
    genes = list(adata.var_names.astype(str))
    kept = adata.uns.get(UNS_KEY)
    if env_key is None or (env_key == ENV_KEY and kept is not None):
        if kept is None:
            raise DataError(
                f"no environments: this AnnData is not one that pyro_cge wrote; name their column with env_key=, one of obs: "
                f"{_listed(adata.obs)}"
            )
        return _own(adata, kept, x, genes, features_key, control)
    if env_key not in adata.obs.columns:
        raise DataError(f"env_key {env_key!r} is not a column of obs; there are {_listed(adata.obs)}")
    values = adata.obs[env_key]
    if values.isna().any():
        row = adata.obs_names[values.isna().to_numpy()][0]
        raise DataError(f"obs column {env_key!r} is missing for profile {row!r} ({int(values.isna().sum())} such)")
    codes, names = pd.factorize(values.astype(str), sort=True)
    return EnvironmentData(
        x=x,
        env=torch.from_numpy(codes.astype(np.int64)),
        gene_names=genes,
        env_names=list(names),
        env_features=_features(adata, features_key, codes, names),
        obs=adata.obs,
        control=_control(control, list(names)),
    )


def write_h5ad(data: EnvironmentData, path: str | Path, manifest: str | None = None) -> None:
    """Write ``.h5ad``, whole or not at all; ``manifest`` (JSON text) goes to ``uns["pyro_cge"]["manifest"]``.

    Raises
    ------
    DataError
        If the folder cannot be written.
    """
    adata = to_anndata(data)
    if manifest is not None:
        adata.uns[UNS_KEY]["manifest"] = manifest
    write_anndata(adata, path)


def write_anndata(adata: AnnData, path: str | Path) -> None:
    """Write AnnData as ``.h5ad``, whole or not at all.

    Raises
    ------
    DataError
        If the folder cannot be written.
    """
    from anndata.io import write_elem

    adata.strings_to_categoricals()
    with hdf5_file(path) as file:
        write_elem(file, "/", adata)
        if adata.raw is None:
            file.pop("raw", None)  # AnnData's own writer leaves no mark of what is not there, either


def read_h5ad(
    path: str | Path,
    env_key: str | None = None,
    features_key: str | None = None,
    control: str | Sequence[str] | None = None,
    *,
    layer: str | None = None,
) -> EnvironmentData:
    """Read ``.h5ad``; see :func:`from_anndata` for files not written by this package.

    ``layer`` is the matrix of ``layers`` to read instead of ``X`` (counts, often).

    Raises
    ------
    DataError
        If the file is absent, damaged or no ``.h5ad``, and as :func:`from_anndata`, with the file's name.
    """
    import anndata

    if not Path(path).is_file():
        raise DataError(f"{path}: no such file; check the path")
    try:
        adata = anndata.read_h5ad(path)
    except Exception as error:  # h5py and anndata raise many kinds for a damaged file
        raise DataError(f"{path}: not a readable .h5ad file ({first_line(error)}); write it again") from error
    if layer is not None and layer not in adata.layers:
        raise DataError(f"{path}: no layer {layer!r}; there are {list(adata.layers)}")
    if layer is not None:
        adata.X = adata.layers[layer]
    try:
        return from_anndata(adata, env_key, features_key, control)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _own(
    adata: AnnData,
    kept: Any,
    x: Tensor,
    genes: list[str],
    features_key: str | None,
    control: str | Sequence[str] | None,
) -> EnvironmentData:
    try:
        names = list(kept["env_names"])
        table = pd.DataFrame(kept["env_table"])
        stored_control = [int(e) for e in kept["control"]]
        env = pd.Index(names, dtype=object).get_indexer(adata.obs[ENV_KEY].astype(object))
    except (KeyError, TypeError, ValueError, pd.errors.InvalidIndexError) as error:
        raise DataError(f"uns[{UNS_KEY!r}] or obs[{ENV_KEY!r}] is damaged ({error!r}); write the file again") from error
    if (env < 0).any():
        row = int(np.flatnonzero(env < 0)[0])
        raise DataError(
            f"obs[{ENV_KEY!r}] of profile {adata.obs_names[row]!r} is {adata.obs[ENV_KEY].iloc[row]!r}, which is not in "
            f"uns[{UNS_KEY!r}]['env_names']"
        )
    for name in table.columns[table.dtypes == "category"]:
        table[name] = table[name].astype(object)
    if "feature_names" in kept:
        table.attrs["feature_names"] = [str(name) for name in kept["feature_names"]]
    features = _numbers(kept["env_features"], f"uns[{UNS_KEY!r}]['env_features']") if "env_features" in kept else None
    truth = None
    if "truth" in kept and "z_true" in adata.obsm and "c_true" in adata.obsm:
        try:
            truth = _truth_from_dict(kept["truth"], adata.obsm["z_true"], adata.obsm["c_true"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"uns[{UNS_KEY!r}]['truth'] is damaged ({error!r}); remove it or write the file again"
            ) from error
    return EnvironmentData(
        x=x,
        env=torch.from_numpy(env.astype(np.int64)),
        gene_names=genes,
        env_names=names,
        env_features=features if features_key is None else _features(adata, features_key, env, pd.Index(names)),
        obs=adata.obs.drop(columns=ENV_KEY),
        env_table=table,
        control=stored_control if control is None else _control(control, names),
        truth=truth,
    )


def _matrix(values: Any) -> Tensor:
    from scipy import sparse

    if hasattr(values, "to_memory"):  # sparse, in a file that AnnData holds open (backed="r")
        values = values.to_memory()
    if sparse.issparse(values):
        values = values.toarray()
    if values is None:
        raise DataError("X is empty; put expression in adata.X (profiles × genes)")
    array = np.asarray(values)
    if array.dtype.kind not in "iuf":
        raise DataError(f"X has dtype {array.dtype}, expected numbers; convert it to float32")
    array = np.ascontiguousarray(array, dtype=np.float32)
    # A read-only array (a memory map) cannot be shared with torch.
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _features(adata: AnnData, key: str | None, codes: np.ndarray, names: pd.Index) -> Tensor | None:
    if key is None:
        return None
    if key in adata.obsm:
        per_profile = _numbers(adata.obsm[key], f"obsm[{key!r}]").numpy()
        seen, first = np.unique(codes, return_index=True)
        if len(seen) < len(names):
            lost = names[np.setdiff1d(np.arange(len(names)), seen)[0]]
            raise DataError(f"obsm[{key!r}] has no profile of environment {lost!r}; give its features in uns")
        features = per_profile[first]
        differs = ~(per_profile == features[codes]).all(1)
        if differs.any():
            raise DataError(
                f"obsm[{key!r}] differs between profiles of environment {names[codes[differs.argmax()]]!r}; features "
                "belong to environments, choose a finer env_key"
            )
    elif key in adata.uns:
        given = adata.uns[key]
        if isinstance(given, pd.DataFrame):
            if len(lost := names.difference(given.index)):
                raise DataError(f"uns[{key!r}] has no row for environment {lost[0]!r} ({len(lost)} such)")
            given = given.loc[names]
        features = _numbers(given, f"uns[{key!r}]").numpy()
    else:
        there = [*adata.obsm.keys(), *adata.uns.keys()]
        raise DataError(f"features_key {key!r} is neither in obsm nor in uns; there are {', '.join(there) or 'none'}")
    return torch.from_numpy(np.ascontiguousarray(features))


def _numbers(values: Any, name: str) -> Tensor:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name} has dtype {array.dtype}, expected numbers")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _control(control: str | Sequence[str] | None, names: list[str]) -> list[int]:
    wanted = [] if control is None else [control] if isinstance(control, str) else list(control)
    if unknown := [name for name in wanted if name not in names]:
        raise DataError(f"control {unknown[0]!r} is not an environment; there are {', '.join(names[:10])}")
    return [names.index(name) for name in wanted]


def _storable(table: pd.DataFrame) -> pd.DataFrame:
    """Text as categories: .h5ad has no text with gaps."""
    stored = table.copy()
    stored.index = stored.index.astype(str)
    stored.columns = stored.columns.astype(str)
    for name in stored.select_dtypes(object).columns:
        values = stored[name]
        stored[name] = values.where(values.isna(), values.astype(str)).astype("category")
    stored.attrs = {}
    return stored


def _truth_to_dict(truth: Truth) -> dict[str, Any]:
    graph = truth.graph
    if sorted(graph) != list(range(len(graph))):
        raise DataError("truth.graph: nodes must be 0 … d−1, as the simulator makes them")
    kept: dict[str, Any] = {
        "n_nodes": len(graph),
        "edges": np.array(sorted(graph.edges), dtype=np.int64).reshape(-1, 2),
        "loc": truth.shift.loc.cpu().numpy(),
        "log_scale": truth.shift.log_scale.cpu().numpy(),
        "targets": truth.targets.cpu().numpy(),
    }
    return kept


def _truth_from_dict(kept: Any, z: Any, c: Any) -> Truth:
    n_nodes, d = int(kept["n_nodes"]), np.asarray(z).shape[-1]
    if n_nodes != d:
        raise ValueError(f"{n_nodes} nodes for {d} latents")
    graph = nx.DiGraph()
    graph.add_nodes_from(range(n_nodes))
    graph.add_edges_from((int(i), int(j)) for i, j in np.asarray(kept["edges"]).reshape(-1, 2))
    loc, log_scale, targets, noise, causes = (
        torch.from_numpy(np.array(values)) for values in (kept["loc"], kept["log_scale"], kept["targets"], z, c)
    )
    return Truth(graph, NoiseShift(loc, log_scale), targets, noise, causes)


def _listed(table: pd.DataFrame) -> str:
    return ", ".join(map(str, table.columns)) or "none"

"""From source files to one ``.h5ad``: read, join, filter, group, with a manifest of what was done."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import __version__
from ..errors import DataError
from .anndata import write_h5ad
from .assemble import to_environment_data
from .files import check_writable, read_frame, replacing, sha256
from .filters import Filters, select
from .geo import as_ids, join, read_side_table
from .l1000 import Expression, positions, read_gct, read_metadata


def prepare(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    side_tables: Sequence[str | Path] = (),
    filters: Filters | None = None,
    by: Sequence[str] = ("perturbagen",),
    features: Sequence[str] = (),
    smiles: str | Path | None = None,
    control: str | Sequence[str] | None = None,
    genes: str | Sequence[str] | None = None,
    gene_id: str | None = None,
    level: int | None = None,
    **feature_options: Any,
) -> dict[str, Any]:
    """Make one ``.h5ad`` of one or several GCT or GCTX files, and its ``.manifest.json`` beside it.

    Metadata are read, joined and filtered first; of the matrices only what passes is read.

    Parameters
    ----------
    sources : sequence of paths
        Their genes may come in any order; they are brought into that of the first.
    out : path
        The ``.h5ad`` to write.
    side_tables : sequence of paths
        GEO tables (inst_info, sig_info, pert_info, gene_info, cell_info, sig_metrics), each joined by its key; give
        those of profiles before those of perturbagens.
    filters : Filters, optional
    by, features, control, feature_options
        See :func:`~pyro_cge.data.assemble.to_environment_data`.
    smiles : path, optional
        Table (CSV or TSV) with columns perturbagen (or ``pert_id``, ...) and ``smiles``.
    genes : ``"intersection"`` or sequence of ids, optional
        Default: all genes of the first file, which every other file must have.
    gene_id : str, optional
        Gene metadata column to name genes by (``pr_gene_id``, ``pr_gene_symbol``) instead of the file's own ids.
    level : int, optional
        Level of the data (3, 4 or 5); by default what the file names say, if anything.

    Returns
    -------
    dict
        The manifest: sources with SHA-256, level, filters and what each removed, counts, package version.

    Raises
    ------
    DataError
        If the output folder cannot be written (before anything is read), and for any input that cannot be used.
        Nothing is left behind.
    """
    out, paths = Path(out), [Path(source) for source in sources]
    manifest_path = out.with_suffix(".manifest.json")
    if not paths:
        raise DataError("sources: give one GCT or GCTX file at least")
    if out.suffix != ".h5ad":
        raise DataError(f"{out}: the output is AnnData; name it .h5ad")
    check_writable(out)
    check_writable(manifest_path)
    filters = filters or Filters()

    tables = [(Path(path), read_side_table(path)) for path in side_tables]
    observed, variables = [], []
    for path in paths:
        obs, var = read_metadata(path)
        var["file_gene_id"] = var.index
        for name, table in tables:
            obs, var = join(obs, var, table, name)
        observed.append(obs)
        variables.append(_renamed(var, gene_id, path))
    source = paths[0].name if len(paths) == 1 else f"{len(paths)} files"
    obs = pd.concat([own.dropna(axis=1, how="all") for own in observed])
    if obs.index.has_duplicates:
        repeated = obs.index[obs.index.duplicated()][0]
        raise DataError(f"{source}: profile {repeated!r} is in two of the files; give each file once")
    var = variables[0].loc[_common_genes(variables, genes, paths)]
    profiles, kept_genes, report = select(obs, var, filters, by, source)

    x = np.empty((len(profiles), len(kept_genes)), np.float32)
    for path, own_obs, own_var in zip(paths, observed, variables, strict=True):
        rows = np.flatnonzero(profiles.isin(own_obs.index))
        if len(rows):
            x[rows] = read_gct(path, own_var.loc[kept_genes, "file_gene_id"], profiles[rows]).x
    expression = Expression(x, obs.loc[profiles], var.loc[kept_genes].drop(columns="file_gene_id"), source)
    structures = None if smiles is None else read_smiles(smiles)
    data = to_environment_data(expression, by, features, control=control, smiles=structures, **feature_options)

    manifest: dict[str, Any] = {
        "package": {"name": "pyro_cge", "version": __version__},
        "sources": [_described(path) for path in paths],
        "side_tables": [_described(path) for path, _ in tables],
        "smiles": None if smiles is None else _described(Path(smiles)),
        "level": _level(paths) if level is None else level,
        "filters": filters.model_dump(mode="json"),
        "removed": report.to_dict("records"),
        "by": list(by),
        "features": list(features),
        "counts": {
            "profiles_read": len(obs),
            "profiles": data.n,
            "genes": data.g,
            "environments": data.n_envs,
            "control_environments": len(data.control),
            "one_profile_environments": int((data.env_counts == 1).sum()),
            "features": data.n_features or 0,
        },
        "data_digest": data.digest,
    }
    text = json.dumps(manifest, indent=2)
    with replacing(manifest_path) as temporary:
        temporary.write_text(text + "\n")
        write_h5ad(data, out, manifest=text)
    return manifest


def read_smiles(path: str | Path, key: str | None = None) -> dict[str, str]:
    """Perturbagen → SMILES from a CSV or TSV table; the key is the column ``key``, or the first one.

    Raises
    ------
    DataError
        If the table cannot be read, has no column ``smiles`` (or ``canonical_smiles``), or repeats a key.
    """
    path = Path(path)
    if key is None:
        header = read_frame(path, sep=None, engine="python", nrows=0).columns
        if not len(header):
            raise DataError(f"{path}: the SMILES table is empty; give columns perturbagen and smiles")
        key = next((name for name in ("perturbagen", "pert_id", "environment") if name in header), str(header[0]))
    table = read_side_table(path, key)
    name = next((name for name in ("smiles", "canonical_smiles") if name in table.columns), None)
    if name is None:
        raise DataError(f"{path}: no column 'smiles'; there are {', '.join(map(repr, table.columns)) or 'none'}")
    return dict(table[name].dropna().astype(str))


def _renamed(var: pd.DataFrame, gene_id: str | None, path: Path) -> pd.DataFrame:
    if gene_id is None:
        return var
    if gene_id not in var.columns:
        raise DataError(f"{path}: no gene column {gene_id!r}; there are {', '.join(var.columns.drop('file_gene_id'))}")
    ids = as_ids(var[gene_id])
    if var[gene_id].isna().any() or ids.has_duplicates:
        gene = var.index[var[gene_id].isna().to_numpy() | ids.duplicated()][0]
        raise DataError(
            f"{path}: gene column {gene_id!r}, row {gene!r}: missing or repeated; name genes by another one"
        )
    return var.set_axis(ids, axis=0)


def _common_genes(variables: list[pd.DataFrame], genes: str | Sequence[str] | None, paths: list[Path]) -> pd.Index:
    first = variables[0].index
    if isinstance(genes, str):
        if genes != "intersection":
            raise DataError(f"genes must be 'intersection' or a list of gene ids, got {genes!r}")
        common = first[np.logical_and.reduce([first.isin(var.index) for var in variables])]
        if not len(common):
            raise DataError("genes: the files have no gene in common; name them alike with gene_id=")
        return common
    wanted = first if genes is None else first[positions(first, genes, "genes", paths[0])]
    for path, var in zip(paths, variables, strict=True):
        if len(lost := wanted.difference(var.index, sort=False)):
            raise DataError(
                f"{path}: {len(lost)} of {len(wanted)} genes are missing: {', '.join(map(repr, lost[:10]))}; "
                "use genes='intersection', or gene_id= if the files name genes in different ways"
            )
    return wanted


def _described(path: Path) -> dict[str, Any]:
    return {"file": path.name, "sha256": sha256(path), "bytes": path.stat().st_size}


def _level(paths: list[Path]) -> int | None:
    found = {int(match[1]) for path in paths if (match := re.search(r"level_?([345])", path.name, re.IGNORECASE))}
    return found.pop() if len(found) == 1 else None

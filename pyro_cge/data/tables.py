"""The simple way in: expression as a CSV or TSV table, SMILES as another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import DataError
from .assemble import to_environment_data
from .environment import EnvironmentData, some
from .files import read_frame
from .geo import tidy
from .l1000 import Expression
from .prepare import read_smiles


def read_table(
    path: str | Path,
    smiles_table: str | Path | None = None,
    env_column: str = "environment",
    *,
    annotations: Sequence[str] = (),
    prefix: str = "obs:",
    control: str | Sequence[str] | None = None,
    features: Sequence[str] | None = None,
    **feature_options: Any,
) -> EnvironmentData:
    """Read expression from a table with a row per profile and a column per gene.

    ``.csv`` is comma separated, anything else tab separated; ``.gz`` is unpacked. A first column without a name
    holds profile ids; otherwise profiles are numbered.

    Parameters
    ----------
    path : path
        Besides genes: the column ``env_column``, and annotations, which are the columns listed and those whose name
        starts with ``prefix`` (dropped from the name). ``dose`` is µM, ``time`` h.
    smiles_table : path, optional
        Columns ``env_column`` and ``smiles``.
    env_column : str
        What makes an environment.
    control : str or sequence of str, optional
        Environments that are the reference.
    features : sequence of block names, optional
        By default the Morgan fingerprint where a SMILES table is given, and none otherwise.
    feature_options
        See :func:`~pyro_cge.data.features.environment_features`.

    Raises
    ------
    DataError
        If a file cannot be read or lacks a column; if an expression value is not a finite number (with row and
        gene); if a treated environment has no SMILES.
    """
    path = Path(path)
    table = read_frame(path, low_memory=False, na_values=["-666", "-666.0"])
    if str(table.columns[0]).startswith("Unnamed:"):
        ids = pd.Index(table.pop(str(table.columns[0])).astype(str), dtype=object)
    else:
        ids = pd.Index([str(i) for i in range(len(table))], dtype=object)
    if absent := [name for name in (env_column, *annotations) if name not in table.columns]:
        fix = ": name the environments' column with env_column=" if absent[0] == env_column else ""
        raise DataError(f"{path}: no column {absent[0]!r}; there are {some(list(table.columns), 10)}{fix}")
    noted = [env_column, *annotations]
    noted += [name for name in table.columns if name.startswith(prefix) and name not in noted]
    obs = pd.DataFrame({name.removeprefix(prefix): tidy(table[name]) for name in noted}, index=ids)
    expression = table.drop(columns=noted)
    if not expression.shape[1]:
        raise DataError(f"{path}: no gene column is left beside {', '.join(map(repr, noted))}")
    if not len(expression):
        raise DataError(f"{path}: there is no profile below the header")
    for gene in expression.columns[[dtype.kind not in "iuf" for dtype in expression.dtypes]]:
        numbers = pd.to_numeric(expression[gene].astype(str), errors="coerce")
        row = int((numbers.isna() & expression[gene].notna()).to_numpy().argmax())
        raise DataError(
            f"{path}: column {gene!r}, row {ids[row]!r}: {expression[gene].iloc[row]!r} is not a number; correct it, or, if "
            f"it is no gene, let the column's name begin with {prefix!r}"
        )
    x = expression.to_numpy(np.float32)
    var = pd.DataFrame(index=pd.Index(expression.columns.astype(str), dtype=object))
    if "perturbagen" not in obs.columns:
        obs["perturbagen"] = obs[env_column]
    structures = None if smiles_table is None else read_smiles(smiles_table, env_column)
    blocks = features if features is not None else (("fingerprint",) if structures is not None else ())
    return to_environment_data(
        Expression(x, obs, var, str(path)),
        (env_column,),
        blocks,
        control=control,
        smiles=structures,
        **feature_options,
    )

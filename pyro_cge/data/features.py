"""Environment features: what is known of a perturbation, in numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..errors import DataError
from .fingerprints import morgan, tanimoto
from .geo import as_ids

BLOCKS = ("fingerprint", "similarity", "log_dose", "time", "cell_line", "basal", "target")
"""The features there are, each one or more columns."""


def environment_features(
    env_table: pd.DataFrame,
    blocks: Sequence[str] = ("fingerprint",),
    *,
    control: Sequence[int] = (),
    basal: pd.DataFrame | None = None,
    reference: Sequence[str] | None = None,
    radius: int = 2,
    n_bits: int = 2048,
    counts: bool = False,
    like: Sequence[str] | None = None,
) -> tuple[np.ndarray, list[str]]:
    """Features of each environment, and their names: the blocks side by side, in the order given.

    =============== ===================================================================================
    ``fingerprint`` Morgan fingerprint of ``smiles``, ``n_bits`` columns; zeros for a control
    ``similarity``  Tanimoto similarity to each SMILES of ``reference``; zeros for a control. On few
                    compounds raw bits overfit and similarities do not
    ``log_dose``    log10 of ``dose`` in µM, and a column that is 1 where there is no dose (the first is
                    0 there): 1 µM and a control without dose are not the same
    ``time``        ``time`` in h
    ``cell_line``   one column for each cell line, one-hot
    ``basal``       the basal profile of the cell line
    ``target``      one column for each target gene (several in one field split at ``|``, ``;`` or ``,``);
                    all zero without target
    =============== ===================================================================================

    Parameters
    ----------
    env_table : DataFrame, ``E`` rows
        With the columns the blocks need: ``smiles``, ``dose`` (µM), ``time`` (h), ``cell_line``, ``target``.
    blocks : sequence of block names
    control : sequence of int
        Rows that are controls: they need no SMILES.
    basal : DataFrame, cell lines × genes, optional
    reference : sequence of SMILES, optional
        Default: all distinct SMILES of the table, or those of ``like``.
    radius, n_bits, counts
        Of the fingerprint; see :func:`~pyro_cge.data.fingerprints.morgan`.
    like : sequence of str, optional
        Names of the features in training: categories and references are taken from them, so that new environments
        get the same columns.

    Returns
    -------
    features : ndarray ``[E, f]``, float32
    names : list of ``f`` str

    Raises
    ------
    DataError
        For an unknown block, a column or value that is missing, a SMILES that is empty or unparsable, a cell line
        without basal profile or not seen in training.
    """
    if unknown := [block for block in blocks if block not in BLOCKS]:
        raise DataError(f"unknown feature blocks {unknown}; there are {', '.join(BLOCKS)}")
    if not blocks:
        raise DataError(f"no feature block given; there are {', '.join(BLOCKS)}")
    known = None if like is None else list(like)
    parts: list[np.ndarray] = []
    names: list[str] = []
    for block in blocks:
        if block == "fingerprint":
            values = _fingerprints(env_table, control, radius, n_bits, counts)
            labels = [f"bit:{i}" for i in range(n_bits)]
        elif block == "similarity":
            references = list(reference) if reference is not None else _category(known, "similarity")
            if references is None:
                references = sorted(_field(env_table, "smiles").dropna().unique())
            prints = _fingerprints(env_table, control, radius, n_bits, counts)
            values = tanimoto(prints, morgan(references, radius, n_bits, counts))
            labels = [f"similarity:{smiles}" for smiles in references]
        elif block == "log_dose":
            values, labels = _log_dose(env_table), ["log10_dose", "no_dose"]
        elif block == "time":
            values, labels = _complete(env_table, "time").to_numpy(np.float32)[:, None], ["time"]
        elif block == "cell_line":
            cells = _complete(env_table, "cell_line").astype(str)
            values, labels = _indicators([[cell] for cell in cells], "cell_line", known, env_table.index)
        elif block == "basal":
            values, labels = _basal(env_table, basal)
        else:
            fields = _field(env_table, "target")
            targets = [
                [] if pd.isna(v) else [t.strip() for t in re.split(r"[|;,]", str(v)) if t.strip()] for v in fields
            ]
            values, labels = _indicators(targets, "target", known, env_table.index)
        parts.append(values)
        names += labels
    features = np.ascontiguousarray(np.concatenate(parts, axis=1), dtype=np.float32)
    if known is not None and names != known:
        differing = next((pair for pair in zip(names, known, strict=False) if pair[0] != pair[1]), ("", ""))
        raise DataError(
            f"{len(names)} features were made but training had {len(known)} (first difference: {differing[0]!r} for "
            f"{differing[1]!r}); give the blocks and settings of training"
        )
    return features, names


def _field(env_table: pd.DataFrame, name: str) -> pd.Series:
    if name not in env_table.columns:
        raise DataError(
            f"environment table has no column {name!r}; there are {', '.join(map(str, env_table.columns)) or 'none'}. "
            "Add it (a side table, a SMILES table), or leave the feature out"
        )
    return env_table[name]


def _complete(env_table: pd.DataFrame, name: str) -> pd.Series:
    values = _field(env_table, name)
    if values.isna().any():
        raise DataError(
            f"environment {env_table.index[values.isna()][0]!r} has no one {name} ({int(values.isna().sum())} such); "
            f"if it differs between its profiles, make {name!r} part of the environment (by=), or leave the feature out"
        )
    return values


def _fingerprints(
    env_table: pd.DataFrame, control: Sequence[int], radius: int, n_bits: int, counts: bool
) -> np.ndarray:
    smiles = _field(env_table, "smiles")
    given = ~smiles.isna().to_numpy()
    needed = np.ones(len(smiles), dtype=bool)
    needed[list(control)] = False
    if lost := env_table.index[needed & ~given].tolist():
        raise DataError(
            f"smiles: empty for environment {lost[0]!r} ({len(lost)} such); add it to the SMILES table, leave the "
            "environment out, or use features that need no structure"
        )
    prints = np.zeros((len(smiles), n_bits), np.float32)
    rows = np.flatnonzero(given)
    for row in rows:  # for the name of the environment in the error, which a row number of a part would not give
        text = smiles.iloc[row]
        try:
            prints[row] = morgan([text], radius, n_bits, counts)[0]
        except DataError as error:
            raise DataError(f"environment {env_table.index[row]!r}: {error}") from None
    return prints


def _log_dose(env_table: pd.DataFrame) -> np.ndarray:
    dose = _field(env_table, "dose").to_numpy(np.float64)
    if (bad := np.flatnonzero(dose < 0)).size:
        raise DataError(f"dose of environment {env_table.index[bad[0]]!r} is {dose[bad[0]]} µM; a dose is positive")
    none = np.isnan(dose) | (dose == 0)
    return np.stack([np.log10(np.where(none, 1.0, dose)), none], axis=1).astype(np.float32)


def _indicators(
    values: Sequence[Sequence[str]], prefix: str, known: list[str] | None, index: pd.Index
) -> tuple[np.ndarray, list[str]]:
    categories = _category(known, prefix)
    if categories is None:
        categories = sorted({value for row in values for value in row})
    position = {value: i for i, value in enumerate(categories)}
    matrix = np.zeros((len(values), len(categories)), np.float32)
    for row, entries in enumerate(values):
        for value in entries:
            if value not in position:
                raise DataError(
                    f"{prefix} {value!r} of environment {index[row]!r} was not in training, which had "
                    f"{', '.join(categories[:10])}; use 'basal' or 'fingerprint' features to reach new ones"
                )
            matrix[row, position[value]] = 1
    return matrix, [f"{prefix}:{value}" for value in categories]


def _category(known: list[str] | None, prefix: str) -> list[str] | None:
    if known is None:
        return None
    return [name.removeprefix(f"{prefix}:") for name in known if name.startswith(f"{prefix}:")]


def _basal(env_table: pd.DataFrame, basal: pd.DataFrame | None) -> tuple[np.ndarray, list[str]]:
    if basal is None:
        raise DataError("feature 'basal' needs basal=, a table of cell lines × genes")
    cells = as_ids(_complete(env_table, "cell_line"))
    if len(lost := cells.difference(basal.index)):
        raise DataError(f"basal profiles are missing for cell lines {', '.join(map(repr, lost[:5]))}; add their rows")
    values = basal.loc[cells].to_numpy(np.float32)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(1))[0])
        raise DataError(f"basal profile of cell line {cells[row]!r} has NaN or infinite entries; impute or drop them")
    return values, [f"basal:{gene}" for gene in basal.columns]

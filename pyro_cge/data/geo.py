"""GEO side tables of L1000, the spellings of their columns, and the reading of doses and times."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import DataError
from .files import read_frame

# Field → the spellings met in GSE92742, GSE70138, LINCS2020 and Broad's own files; the first one present is used.
SPELLINGS: dict[str, tuple[str, ...]] = {
    "perturbagen": ("perturbagen", "pert_id", "pert_iname", "cmap_name"),
    "name": ("pert_iname", "cmap_name", "pert_desc"),
    "pert_type": ("pert_type",),
    "cell_line": ("cell_line", "cell_id", "cell_iname", "cell_mfc_name"),
    "dose": ("dose", "dose_um", "pert_idose", "pert_dose", "exp_pert_dose"),
    "dose_unit": ("pert_dose_unit", "exp_pert_dose_unit"),
    "time": ("time", "time_h", "pert_itime", "pert_time", "exp_pert_time"),
    "time_unit": ("pert_time_unit", "exp_pert_time_unit"),
    "tas": ("tas",),
    "distil_cc_q75": ("distil_cc_q75", "cc_q75"),
    "distil_ss": ("distil_ss", "ss_ngene"),
    "distil_nsample": ("distil_nsample", "nsample"),
    "smiles": ("smiles", "canonical_smiles"),
    "inchi_key": ("inchi_key", "inchikey", "compound_key"),
    "target": ("target", "gene_target", "pr_gene_symbol"),
    "landmark": ("pr_is_lm", "pr_is_lmark", "is_lm", "is_landmark", "feature_space"),
}

# Tried in this order: a sig_info has pert_id and cell_id columns too.
_TABLE_KEYS = (
    *("sig_id", "inst_id", "sample_id", "profile_id", "pr_gene_id", "gene_id", "entrez_id"),
    *("pert_id", "cell_id", "cell_iname"),
)
_PROFILE_KEYS = {"sig_id", "inst_id", "sample_id", "profile_id"}
_GENE_KEYS = {"pr_gene_id", "gene_id", "entrez_id"}

_MISSING = {"", "-666", "na", "nan", "none", "null", "n/a", "#n/a", "restricted"}
_TO_MICROMOLAR = {"": 1.0, "m": 1e6, "mm": 1e3, "um": 1.0, "nm": 1e-3, "pm": 1e-6}
_NOT_MOLAR = {"ng/ml", "ug/ml", "mg/ml", "ng/ul", "ug/ul", "ul", "ml", "ng", "ug", "mg", "x", "%", "moi"}
_TO_HOURS = {"": 1.0, "h": 1.0, "hr": 1.0, "hrs": 1.0, "hour": 1.0, "hours": 1.0, "min": 1 / 60, "d": 24.0}
_TO_HOURS |= {"day": 24.0, "days": 24.0}
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(.*)")


def is_missing(text: str) -> bool:
    """Broad's ``-666`` in any spelling, ``restricted`` (an undisclosed structure), an empty field or NA."""
    text = text.strip().lower()
    return text in _MISSING or re.fullmatch(r"-666\.0*", text) is not None


def tidy(values: np.ndarray | pd.Series) -> np.ndarray:
    """One metadata column: bytes decoded, ``-666`` of any dtype made NaN, numbers as numbers where all are numbers.

    Only distinct values are looked at, and rows share them: a column of 10⁵ repeated names costs little memory.
    """
    if isinstance(values.dtype, pd.CategoricalDtype):
        codes, uniques = values.cat.codes.to_numpy(), values.cat.categories  # type: ignore[union-attr]
    else:
        array = np.asarray(values)
        if array.dtype.kind in "iuf":
            return np.where(array == -666, np.nan, array) if (array == -666).any() else array
        if array.dtype.kind == "b":
            return array
        codes, uniques = pd.factorize(array.astype(object))
    text = [decoded(value) for value in uniques]
    known = np.array([not is_missing(value) for value in text], dtype=bool)
    numbers = pd.to_numeric(pd.Series(text, dtype=object)[known], errors="coerce")
    if not numbers.isna().any():
        if known.all() and (codes >= 0).all() and numbers.dtype.kind == "i":
            return numbers.to_numpy()[codes]
        column = np.full(len(text) + 1, np.nan)
        column[:-1][known] = numbers
    else:
        column = np.array([*(value if ok else np.nan for value, ok in zip(text, known, strict=True)), np.nan], object)
    return column[codes]  # code −1 (NaN) takes the last entry


def decoded(value: object) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.decode("latin-1")  # Broad's level-5 files write µ so
    return str(value)


def as_ids(values: Sequence[object] | np.ndarray | pd.Series | pd.Index) -> pd.Index:
    """Identifiers as strings; whole numbers without ``.0``, so that 5720.0, 5720 and "5720" are one gene."""
    return pd.Index(
        [str(int(v)) if isinstance(v, (float, np.floating)) and float(v).is_integer() else decoded(v) for v in values],
        dtype=object,
    )


def check_ids(ids: pd.Index, kind: str, source: str | Path) -> None:
    """Raise ``DataError`` naming ids that are missing or appear twice."""
    if lost := [i for i, value in enumerate(ids) if not isinstance(value, str) or not value]:
        raise DataError(
            f"{source}: {kind} id number {lost[0]} is missing ({len(lost)} in all); give every {kind} an id"
        )
    if ids.has_duplicates:
        raise DataError(
            f"{source}: duplicate {kind} ids {_some(ids[ids.duplicated()].unique())}; rename or remove the repeats"
        )


def parse_dose(text: object) -> float:
    """A dose as text (``"10 µM"``, ``"500 nM"``, ``"0.37"``) in µM.

    A bare number is µM. Values joined by ``|`` or ``&`` must agree, otherwise there is no one dose. NaN for ``-666``,
    for doses that differ, and for units that are not molar (ng/mL of a ligand, µL of a virus).

    Raises
    ------
    DataError
        If the text is not a dose, or negative.
    """
    return _quantity(text, "dose", _TO_MICROMOLAR, _NOT_MOLAR, "'10 uM', '500 nM' or '-666'")


def parse_time(text: object) -> float:
    """A duration as text (``"24 h"``, ``"6H"``, ``"24|24"``, ``"2 days"``) in hours; a bare number is hours.

    NaN for ``-666`` and for times that differ.

    Raises
    ------
    DataError
        If the text is not a duration, or negative.
    """
    return _quantity(text, "time", _TO_HOURS, set(), "'24 h' or '-666'")


def _quantity(text: object, field: str, factors: dict[str, float], unknown: set[str], example: str) -> float:
    found = set()
    for part in re.split(r"[|&]", str(text)):
        if is_missing(part):
            found.add(np.nan)
            continue
        # Both mu characters, and µ read as latin-1 from UTF-8.
        plain = part.strip().lower().replace("â", "").replace("µ", "u").replace("μ", "u")
        match = _QUANTITY.fullmatch(plain)
        unit = match[2].strip() if match else ""
        if not match or float(match[1]) < 0 or (unit not in factors and unit not in unknown):
            raise DataError(f"{field} {text!r} cannot be read; write it like {example}")
        found.add(float(match[1]) * factors[unit] if unit in factors else np.nan)
    return found.pop() if len(found) == 1 else float("nan")


def spelling(table: pd.DataFrame, field: str) -> str | None:
    """The column of ``table`` that holds ``field``, or None."""
    return next((name for name in SPELLINGS.get(field, (field,)) if name in table.columns), None)


def column(table: pd.DataFrame, field: str, source: str | Path = "table") -> pd.Series:
    """A field under any of its :data:`SPELLINGS`, or any other column by its own name; ``profile`` is the index.

    Doses come in µM and times in h, whatever their text; numbers where a number is meant.

    Raises
    ------
    DataError
        If there is no such column, with those there are; if a dose or time cannot be read, with its row.
    """
    if field == "profile" and "profile" not in table.columns:
        return pd.Series(table.index, index=table.index, name="profile")
    if (name := spelling(table, field)) is None:
        spelled = f" (spelled {', '.join(SPELLINGS[field])})" if field in SPELLINGS else ""
        present = (
            f"there are {_some(table.columns, 20)}" if len(table.columns) else "the file says nothing of its profiles"
        )
        raise DataError(
            f"{source}: no column {field!r}{spelled}; {present}. Join the side table that has it, name another column, "
            "or make every profile an environment of its own (by profile)"
        )
    values = pd.Series(tidy(table[name]), index=table.index, name=field)
    if field == "dose":
        return _parsed(values, table, "dose_unit", parse_dose, name, source)
    if field == "time":
        return _parsed(values, table, "time_unit", parse_time, name, source)
    return values


def _parsed(
    values: pd.Series,
    table: pd.DataFrame,
    unit_field: str,
    parse: Callable[[object], float],
    name: str,
    source: str | Path,
) -> pd.Series:
    unit = spelling(table, unit_field)
    if values.dtype.kind in "iuf" and unit is not None and not name.endswith(("_um", "_h")):
        units = pd.Series(tidy(table[unit]), index=table.index)
        values = values.astype(object).where(values.isna() | units.isna(), values.astype(str) + " " + units.astype(str))
    codes, uniques = pd.factorize(values)
    parsed = np.full(len(uniques) + 1, np.nan)
    for i, value in enumerate(uniques):
        try:
            parsed[i] = parse(value)
        except DataError as error:
            row = table.index[codes.tolist().index(i)]
            raise DataError(f"{source}: column {name!r}, row {row!r}: {error}") from None
    return pd.Series(parsed[codes], index=table.index, name=values.name)


def read_side_table(path: str | Path, key: str | None = None) -> pd.DataFrame:
    """A GEO side table (inst_info, sig_info, pert_info, gene_info, cell_info, sig_metrics), indexed by its key.

    Tab separated (by commas if a ``.csv``), plain or ``.gz``; ``-666`` becomes missing.

    Parameters
    ----------
    path : path
    key : str, optional
        Column of unique ids; by default the first of ``sig_id, inst_id, sample_id, pr_gene_id, gene_id, pert_id,
        cell_id, ...`` that the table has.

    Raises
    ------
    DataError
        If the file cannot be read, has no such column, or the key is missing or repeated in some row.
    """
    path = Path(path)
    table = read_frame(path, "side table", dtype="category", keep_default_na=False)
    key = key or next((name for name in _TABLE_KEYS if name in table.columns), None)
    if key is None or key not in table.columns:
        wanted = key or f"any of {', '.join(_TABLE_KEYS)}"
        raise DataError(f"{path}: no key column ({wanted}); there are {_some(table.columns, 20)}. Give key=")
    ids = pd.Index(table.pop(key).astype(object), name=key)
    check_ids(ids, key, path)
    return pd.DataFrame({name: tidy(table[name]) for name in table.columns}, index=ids)


def join(
    obs: pd.DataFrame, var: pd.DataFrame, table: pd.DataFrame, source: str | Path = "side table"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Columns of a side table added to profiles (``obs``) or genes (``var``), by the name of its key.

    ``sig_id`` and ``inst_id`` are profile ids, ``pr_gene_id`` is a gene id or a column of ``var``; any other key is a
    column of ``obs``. Columns already there win, and are filled where missing.

    Returns
    -------
    obs, var : DataFrames with the same rows as before.

    Raises
    ------
    DataError
        If a profile is not in its table, or if no id at all agrees.
    """
    key = str(table.index.name)
    if key in _GENE_KEYS:
        ids = as_ids(var[key]) if key in var.columns else var.index
        return obs, _filled(var, table, ids, key, source)
    if key in _PROFILE_KEYS:
        filled = _filled(obs, table, obs.index, key, source)
        if len(lost := obs.index.difference(table.index)):
            raise DataError(f"{source}: no row for profiles {_some(lost)}; give the side table of this very file")
        return filled, var
    name = spelling(obs, "cell_line" if key in SPELLINGS["cell_line"] else key)
    if name is None:
        raise DataError(f"{source}: profiles have no column {key!r} to join on; join inst_info or sig_info first")
    return _filled(obs, table, as_ids(obs[name]), key, source), var


def _filled(frame: pd.DataFrame, table: pd.DataFrame, ids: pd.Index, key: str, source: str | Path) -> pd.DataFrame:
    if not len(ids.intersection(table.index)):
        raise DataError(
            f"{source}: no {key} agrees with the data (table: {_some(table.index, 2)}; data: {_some(ids.unique(), 2)}); "
            "check that both are of one data set and one kind of id"
        )
    added = table.reindex(ids)
    added.index = frame.index
    filled = {n: frame[n].where(frame[n].notna(), added[n]) if n in added.columns else frame[n] for n in frame.columns}
    return pd.DataFrame(filled | {n: added[n] for n in added.columns if n not in filled}, index=frame.index)


def _some(names: Sequence[object] | pd.Index, limit: int = 5) -> str:
    shown = ", ".join(map(repr, list(names)[:limit]))
    return shown + (f", … ({len(names)} in all)" if len(names) > limit else "")

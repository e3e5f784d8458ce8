"""L1000 expression files: GCT 1.2 and 1.3 (text) and GCTX 1.0 (HDF5)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import DataError
from .files import first_line, hdf5_file
from .geo import as_ids, check_ids, tidy

MATRIX, _PROFILES, _GENES = "/0/DATA/0/matrix", "/0/META/COL", "/0/META/ROW"
_TILE_BYTES = 8 * 2**20


@dataclass(frozen=True, eq=False)
class Expression:
    """Expression as read: profiles × genes (a GCT file is genes × profiles), with what the file says of both.

    Parameters
    ----------
    x : ndarray ``[n, g]``, float32
        In the units of the source: log2 intensity (level 3), plate z-score (4), moderated z-score (5).
    obs, var : DataFrames with ``n`` and ``g`` rows
        Metadata of profiles and genes, indexed by unique string ids.
    source : str
        File name, for error messages.

    Raises
    ------
    DataError
        For a wrong dtype, numbers of ids that disagree with the matrix, duplicate ids, and missing or infinite
        values, with gene and profile.
    """

    x: np.ndarray
    obs: pd.DataFrame
    var: pd.DataFrame
    source: str = "expression"

    def __post_init__(self) -> None:
        if self.x.dtype != np.float32 or self.x.ndim != 2:
            raise DataError(f"{self.source}: x must be float32 [profiles, genes], got {self.x.dtype} {self.x.shape}")
        _check_shape(self.x.shape, self.obs, self.var, self.source)
        check_ids(self.obs.index, "profile", self.source)
        check_ids(self.var.index, "gene", self.source)
        # Row sums are finite unless an entry is not: no temporary of the size of the matrix.
        for row in np.flatnonzero(~np.isfinite(self.x.sum(axis=1, dtype=np.float64))):
            gene = int(np.flatnonzero(~np.isfinite(self.x[row]))[0])
            value = "missing (NaN or -666)" if np.isnan(self.x[row, gene]) else str(self.x[row, gene])
            raise DataError(
                f"{self.source}: gene {self.var.index[gene]!r} of profile {self.obs.index[row]!r} is {value}; "
                "leave the gene or the profile out, or impute it first"
            )

    @property
    def n(self) -> int:
        """Number of profiles."""
        return self.x.shape[0]

    @property
    def g(self) -> int:
        """Number of genes."""
        return self.x.shape[1]

    def __repr__(self) -> str:
        return f"Expression({self.n:,} profiles × {self.g:,} genes, {self.source})"

    def take(self, profiles: Sequence[str] | None = None, genes: Sequence[str] | None = None) -> Expression:
        """The profiles and genes asked for, in that order (default all).

        Raises
        ------
        DataError
            If one is not there.
        """
        rows = positions(self.obs.index, profiles, "profiles", self.source)
        columns = positions(self.var.index, genes, "genes", self.source)
        x = self.x if profiles is None else self.x[rows]
        x = x if genes is None else np.ascontiguousarray(x[:, columns])
        return Expression(x, self.obs.iloc[rows], self.var.iloc[columns], self.source)


def read_gct(
    path: str | Path,
    genes: Sequence[str] | None = None,
    profiles: Sequence[str] | None = None,
    block_rows: int | None = None,
) -> Expression:
    """Read a ``.gct`` or ``.gctx`` file, or some genes and profiles of it, in the order asked for.

    A GCTX matrix is read in tiles of whole HDF5 chunks, so that memory stays near the size of what is returned. A
    text file is read whole. ``-666`` is missing everywhere. Text columns of only numbers become numbers.

    Parameters
    ----------
    path : path
    genes, profiles : sequences of ids, optional
        Default all, in file order.
    block_rows : int, optional
        Profiles of a GCTX file read at a time; by default about 8 MiB of them.

    Raises
    ------
    DataError
        If the file is absent, empty, truncated or not GCT; if its ids are missing, repeated or not as many as the
        matrix has; if an id asked for is unknown; if an expression value asked for is missing or infinite.
    """
    path = Path(path)
    _check_file(path)
    if path.suffix.lower() == ".gctx":
        return _read_gctx(path, genes, profiles, block_rows)
    x, obs, var = _parse_text(path)
    rows, columns = positions(obs.index, profiles, "profiles", path), positions(var.index, genes, "genes", path)
    return Expression(x[np.ix_(rows, columns)], obs.iloc[rows], var.iloc[columns], str(path))


def read_metadata(path: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``(obs, var)`` of a file: what is known of its profiles and genes, without the matrix of a GCTX file.

    Raises
    ------
    DataError
        As :func:`read_gct`, expression values aside.
    """
    path = Path(path)
    _check_file(path)
    if path.suffix.lower() == ".gctx":
        with _opened(path) as file:
            return _gctx_metadata(file, path)
    _, obs, var = _parse_text(path)
    return obs, var


def positions(ids: pd.Index, wanted: Sequence[str] | None, kind: str, source: str | Path) -> np.ndarray:
    """Row numbers of ``wanted`` in ``ids``, in the order wanted; ``DataError`` for unknown or repeated ones."""
    if wanted is None:
        return np.arange(len(ids))
    asked = pd.Index([str(name) for name in wanted], dtype=object)
    check_ids(asked, kind.removesuffix("s"), f"{kind}= asked of {source}")
    found = ids.get_indexer(asked)
    if (found < 0).any():
        lost = asked[found < 0]
        raise DataError(
            f"{source}: {len(lost)} of {len(asked)} {kind} asked for are not in the file: {', '.join(map(repr, lost[:5]))}; "
            f"its ids look like {', '.join(map(repr, ids[:2]))}"
        )
    return found


def write_gctx(path: str | Path, expression: Expression) -> None:
    """Write a GCTX 1.0 file, whole or not at all: missing text as ``-666``, missing numbers as NaN.

    Own code because cmapPy's writer breaks on numpy ≥ 2; its parser reads the result.

    Raises
    ------
    DataError
        If the folder cannot be written.
    """
    with hdf5_file(path) as file:
        file.attrs["version"] = np.bytes_("GCTX1.0")
        file.create_dataset(MATRIX, data=expression.x)
        for group, table in ((_PROFILES, expression.obs), (_GENES, expression.var)):
            file[f"{group}/id"] = np.char.encode(table.index.to_numpy(str), "utf-8")
            for name in table.columns:
                values = table[name].to_numpy()
                if values.dtype.kind not in "iuf":
                    text = [
                        "-666" if missing else str(v) for v, missing in zip(values, table[name].isna(), strict=True)
                    ]
                    values = np.char.encode(np.array(text, dtype=str), "utf-8")
                file[f"{group}/{name}"] = values


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path}: no such file; check the path")
    if path.suffix.lower() not in (".gct", ".gctx"):
        raise DataError(f"{path}: not a .gct or .gctx file; unpack it first if it is compressed")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; download it again")


def _check_shape(shape: tuple[int, ...], obs: pd.DataFrame, var: pd.DataFrame, source: str | Path) -> None:
    if shape != (len(obs), len(var)):
        raise DataError(
            f"{source}: the matrix is {shape[0]} profiles × {shape[1]} genes but there are {len(obs)} profile ids and "
            f"{len(var)} gene ids; the file is damaged, download it again"
        )


# GCTX


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An HDF5 file whose every read error is a ``DataError`` that names the file."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, RuntimeError, AttributeError) as error:
        raise DataError(f"{path}: not GCTX 1.0 (HDF5), or truncated ({error}); download it again") from error


def _read_gctx(
    path: Path, genes: Sequence[str] | None, profiles: Sequence[str] | None, block_rows: int | None
) -> Expression:
    with _opened(path) as file:
        obs, var = _gctx_metadata(file, path)
        rows, columns = positions(obs.index, profiles, "profiles", path), positions(var.index, genes, "genes", path)
        x = np.empty((len(rows), len(columns)), np.float32)
        for r, c, tile in _tiles(file[MATRIX], rows, columns, block_rows):
            tile[tile == -666] = np.nan
            x[np.ix_(r, c)] = tile
    # Metadata are copied only where a part of them is wanted.
    obs = obs if profiles is None else obs.iloc[rows]
    return Expression(x, obs, var if genes is None else var.iloc[columns], str(path))


def _tiles(
    matrix: Any, rows: np.ndarray, columns: np.ndarray, block_rows: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """``(r, c, values)`` with ``values = matrix[rows[r], columns[c]]``; together they cover everything once.

    Tiles are whole chunks, each decompressed once, as wide as the budget allows.
    """
    n, g = matrix.shape
    high, wide = matrix.chunks or (1, g)
    fitting = max(_TILE_BYTES // 4, high * wide)
    height = -(-(block_rows or max(fitting // max(g, 1), 1)) // high) * high
    width = max(fitting // height // wide, 1) * wide
    for top in range(0, n, height):
        r = np.flatnonzero((rows >= top) & (rows < top + height))
        for left in range(0, g if len(r) else 0, width):
            c = np.flatnonzero((columns >= left) & (columns < left + width))
            if len(c):
                at, across = rows[r], columns[c]
                top_row, first = at.min(), across.min()
                block = matrix[top_row : at.max() + 1, first : across.max() + 1]
                yield r, c, block[np.ix_(at - top_row, across - first)].astype(np.float32, copy=False)


def _gctx_metadata(file: Any, path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    obs, var = (_gctx_table(file[group], kind, path) for group, kind in ((_PROFILES, "profile"), (_GENES, "gene")))
    if file[MATRIX].dtype.kind not in "iuf":
        raise DataError(f"{path}: the matrix has dtype {file[MATRIX].dtype}, not numbers; the file is damaged")
    if file[MATRIX].ndim != 2:
        raise DataError(f"{path}: the matrix has {file[MATRIX].ndim} dimensions, not 2; the file is damaged")
    _check_shape(file[MATRIX].shape, obs, var, path)
    return obs, var


def _gctx_table(group: Any, kind: str, path: Path) -> pd.DataFrame:
    """Own code because cmapPy's parser fails on latin-1 text (the µ of level-5 doses) and holds every column three
    times over."""
    if group["id"].ndim != 1:
        raise DataError(f"{path}: {kind} ids have {group['id'].ndim} dimensions, not 1; the file is damaged")
    ids = as_ids(group["id"][()])
    check_ids(ids, kind, path)
    columns = {}
    for name in group:
        if name == "id":
            continue
        if group[name].shape != ids.shape:
            raise DataError(
                f"{path}: {kind} field {name!r} has {group[name].shape} entries but there are {len(ids)} {kind} ids; "
                "the file is damaged, download it again"
            )
        columns[name] = tidy(group[name][()])
    return pd.DataFrame(columns, index=ids)


# Text


def _parse_text(path: Path) -> tuple[np.ndarray, pd.DataFrame, pd.DataFrame]:
    with open(path, encoding="utf-8", errors="replace") as file:
        version, size = file.readline().strip(), file.readline().split()
    expected = {"#1.2": 2, "#1.3": 4}.get(version)
    if expected is None or len(size) != expected or not all(field.isdecimal() for field in size):
        raise DataError(
            f"{path}: the first lines must be '#1.2' or '#1.3' and 2 or 4 sizes, got {version[:20]!r} and "
            f"{' '.join(size)[:40]!r}; not a GCT file"
        )
    sizes = [int(field) for field in size] if expected == 4 else [int(size[0]), int(size[1]), 1, 0]
    from cmapPy.pandasGEXpress import parse_gct

    missing = ["NA", "NaN", "nan", "na", "None", "NULL", "N/A", "#N/A", "-666"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # cmapPy still uses to_numeric(errors="ignore")
            var, obs, data = parse_gct.parse_into_3_df(str(path), *sizes, missing)
    except Exception as error:  # cmapPy raises Exception and AssertionError
        raise DataError(
            f"{path}: not the {sizes[0]} genes × {sizes[1]} profiles of numbers its second line promises "
            f"({first_line(error)}); the file is truncated or damaged, download it again"
        ) from error
    tables = []
    for table, kind in ((obs, "profile"), (var, "gene")):
        check_ids(pd.Index(table.index, dtype=object), kind, path)
        ids = pd.Index(table.index.astype(str), dtype=object)
        if not table.columns.is_unique:
            repeats = table.columns[table.columns.duplicated()].tolist()
            raise DataError(f"{path}: {kind} fields {repeats} appear twice; rename them")
        tables.append(pd.DataFrame({str(name): tidy(table[name]) for name in table.columns}, index=ids))
    x = np.ascontiguousarray(data.to_numpy(np.float32).T)
    x[x == -666] = np.nan
    return x, tables[0], tables[1]

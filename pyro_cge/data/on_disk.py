"""A matrix of profiles that stays on disk, dense or CSR, in HDF5 (``.h5ad``, GCTX) or zarr, read by runs of rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse

from ..errors import ConfigError, DataError, PyroCgeError
from .files import first_line

READ_BYTES = 8 * 2**20  # read at a time
SKIP_BYTES = 64 * 2**10  # fewer bytes than this between two wanted rows are read along: a call costs more

Rows: TypeAlias = np.ndarray | scipy.sparse.csr_matrix


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Root group of an HDF5 file or zarr folder, open for reading; every read error is a ``DataError`` naming it.

    ``ConfigError`` where zarr is not installed.
    """
    try:
        if not path.exists():
            raise DataError(f"{path}: no such file; check the path")
        if path.is_dir():
            try:
                import zarr
            except ImportError as error:
                raise ConfigError(f"{path}: reading a zarr folder needs zarr: pip install zarr") from error
            yield zarr.open_group(path, mode="r")
        else:
            import h5py

            with h5py.File(path, "r") as file:
                yield file
    except PyroCgeError:
        raise
    except MemoryError as error:
        raise DataError(
            f"{path}: not enough memory to read so much of it at once ({first_line(error)}); stream it with a smaller "
            "window= (profiles held at a time)"
        ) from error
    except PermissionError as error:
        raise DataError(f"{path}: no permission to read it ({first_line(error)}); ask its owner, or copy it") from error
    except Exception as error:  # h5py, zarr and the codecs raise many kinds for a damaged file
        raise DataError(
            f"{path}: not a readable HDF5 file or zarr folder ({first_line(error)}); write it again"
        ) from error


@dataclass(frozen=True, eq=False)
class DiskMatrix:
    """Profiles × genes on disk. The file is open only while it is read, so nothing has to be closed.

    Attributes
    ----------
    path, key
        File or folder, and the matrix within.
    shape : (n, g)
    sparse : bool
        CSR: read as it is, made dense by whoever needs it so.
    row_bytes : float
        Of an average profile in memory, once read.
    chunk_rows : int
        Profiles stored (compressed) together; 1 where each can be read by itself.
    missing : float, optional
        A number that stands for missing (−666 in GCTX).
    """

    path: Path
    key: str
    shape: tuple[int, int]
    sparse: bool
    row_bytes: float
    chunk_rows: int
    missing: float | None = None

    @staticmethod
    def at(path: Path, key: str = "X", missing: float | None = None) -> DiskMatrix:
        """The matrix ``key`` of a file, described but not read.

        Raises
        ------
        DataError
            If it is not there, has no numbers, or is stored by columns.
        """
        with opened(path) as file:
            if key not in file:
                there = ", ".join(file.keys())
                raise DataError(f"{path}: there is no matrix {key!r}; the file has {there or 'nothing'}")
            found = file[key]
            encoding = found.attrs.get("encoding-type", "csr_matrix" if hasattr(found, "keys") else "array")
            if encoding == "csr_matrix":
                values, n = found["data"], found["indptr"].shape[0] - 1
                shape = (n, int(found.attrs["shape"][1]))
                per_row = values.shape[0] / max(n, 1)
                row_bytes = per_row * (values.dtype.itemsize + found["indices"].dtype.itemsize) + 8
                chunk_rows = (values.chunks or (1,))[0] / max(per_row, 1)
            elif encoding == "array" and len(found.shape) == 2:
                values, shape = found, tuple(found.shape)
                row_bytes, chunk_rows = 4.0 * shape[1], (found.chunks or (1,))[0]
            else:
                raise DataError(
                    f"{path}: {key} is stored as {encoding}, which cannot be read by rows; write it as a dense array or "
                    "in CSR (adata.X = adata.X.tocsr())"
                )
            if values.dtype.kind not in "iuf":
                raise DataError(f"{path}: {key} has dtype {values.dtype}, expected numbers; convert it to float32")
        return DiskMatrix(
            path, key, shape, encoding == "csr_matrix", max(row_bytes, 1.0), max(int(chunk_rows), 1), missing
        )

    def read(self, rows: np.ndarray, columns: np.ndarray | None = None) -> Rows:
        """Rows (ascending, distinct) and columns (default all): dense float32 ``[m, g]``, or CSR in the file's dtype
        (native byte order, and at least float32: what SciPy computes with).

        Raises
        ------
        DataError
            If the file cannot be read, or its CSR is no CSR.
        """
        with opened(self.path) as file:
            read = self._read_sparse if self.sparse else self._read_dense
            return read(file[self.key], rows, columns)

    def _runs(self, rows: np.ndarray) -> list[np.ndarray]:
        """The rows in parts that are read in one go each."""
        gap, longest = max(1, SKIP_BYTES // int(self.row_bytes)), max(1, READ_BYTES // int(self.row_bytes))
        cut = (np.diff(rows) > gap) | (np.diff(rows // longest) > 0)
        return np.split(rows, np.flatnonzero(cut) + 1) if len(rows) else []

    def _read_dense(self, matrix: Any, rows: np.ndarray, columns: np.ndarray | None) -> np.ndarray:
        wanted = np.arange(self.shape[1]) if columns is None else columns
        first, last = (wanted.min(), wanted.max() + 1) if len(wanted) else (0, 0)
        whole = len(wanted) == last - first and bool((np.diff(wanted) == 1).all())
        values, done = np.empty((len(rows), len(wanted)), np.float32), 0
        for run in self._runs(rows):
            part = matrix[run[0] : run[-1] + 1, first:last]
            if len(part) > len(run):
                part = part[run - run[0]]
            values[done : done + len(run)] = part if whole else part[:, wanted - first]
            done += len(run)
        if self.missing is not None:
            values[values == self.missing] = np.nan
        return values

    def _read_sparse(self, matrix: Any, rows: np.ndarray, columns: np.ndarray | None) -> scipy.sparse.csr_matrix:
        parts = []
        for run in self._runs(rows):
            pointers = np.asarray(matrix["indptr"][run[0] : run[-1] + 2], dtype=np.int64)
            start, stop = int(pointers[0]), int(pointers[-1])
            values, genes = _native(matrix["data"][start:stop]), _native(matrix["indices"][start:stop])
            if (np.diff(pointers) < 0).any() or len(genes) != stop - start or len(values) != stop - start:
                raise DataError(f"{self.path}: {self.key}/indptr is damaged near row {run[0]}; write the file again")
            if len(genes) and (genes.min() < 0 or genes.max() >= self.shape[1]):  # SciPy would write out of bounds
                raise DataError(f"{self.path}: {self.key}/indices is damaged near row {run[0]}; write the file again")
            part = scipy.sparse.csr_matrix((values, genes, pointers - start), (len(pointers) - 1, self.shape[1]))
            parts.append(part if len(run) == part.shape[0] else part[run - run[0]])
        if not parts:
            parts = [scipy.sparse.csr_matrix((0, self.shape[1]), dtype=np.float32)]
        together = parts[0] if len(parts) == 1 else scipy.sparse.vstack(parts, format="csr")
        return together if columns is None else together[:, columns]


def _native(values: Any) -> np.ndarray:
    """In a dtype that SciPy's matrices have: of this machine's byte order, and float32 for float16."""
    values = np.asarray(values)
    kind = values.dtype.newbyteorder("=")
    return values.astype(np.float32 if kind == np.float16 else kind, copy=False)

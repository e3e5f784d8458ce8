"""Whole files or none: atomic writing, an early check of the output folder, checksums; and what a file's name says."""

from __future__ import annotations

import glob
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DataError

if TYPE_CHECKING:
    import pandas as pd

COMPRESSED = (".gz", ".bz2", ".xz", ".zip")
SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path in the folder of ``path``, renamed onto it on success and removed on any failure.

    Raises
    ------
    DataError
        If the folder does not exist or cannot be written, or the disk is full.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself must outlive a power cut
        finally:
            os.close(folder)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); free some space, or choose another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(out: str | Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its place on success and is removed on any failure; after a kill, by the next.

    Raises
    ------
    ConfigError
        If it cannot be written, or there is something at ``out``.
    """
    out = Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(out.parent, out.name)
        part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    except OSError as error:
        raise ConfigError(f"{out}: cannot write in {out.parent} ({error.strerror}); choose another folder") from error
    try:
        yield part
        part.chmod(0o777 & ~_umask())
        os.replace(part, out)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror or error}); choose another folder") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def hdf5_file(path: str | Path) -> Iterator[Any]:
    """A new HDF5 file, written whole or not at all: made in memory, because HDF5 itself crashes where a disk is full.

    Raises
    ------
    DataError
        As :func:`replacing`.
    """
    import h5py

    buffer = io.BytesIO()
    with replacing(path) as temporary:
        # In the layout of HDF5 1.10 structure has checksums: in older ones a flipped bit can crash the library that reads it.
        with h5py.File(buffer, "w", libver=("v110", "v110")) as file:
            yield file
        temporary.write_bytes(buffer.getbuffer())


def clear_leftovers(folder: str | Path, name: str = "") -> None:
    """Remove what :func:`replacing` and :func:`whole_folder` left in ``folder`` when they were killed (writing ``name``)."""
    for path in Path(folder).glob(f".{glob.escape(name) or '*'}.????????.tmp"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Raise ``DataError`` if ``path`` could not be written, before any work is done for it.

    A file is really created: permission bits say nothing to root or on a read-only mount.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give the name of the file to write")
    _temporary(path).unlink()


def kind_of(path: str | Path) -> str:
    """``.h5ad``, ``.csv``, ...: the last suffix, compression aside."""
    return next((s.lower() for s in reversed(Path(path).suffixes) if s.lower() not in COMPRESSED), "")


def separator(path: str | Path) -> str | None:
    """What separates the columns of a table, by its name: commas in ``.csv``, tabs in ``.tsv`` and ``.txt``.

    None for other kinds of file.
    """
    return SEPARATORS.get(kind_of(path))


def read_frame(path: str | Path, kind: str = "table", **options: Any) -> pd.DataFrame:
    """``pandas.read_csv``, whose every error is one that names the file, as a ``kind`` of table.

    Columns are separated as the name of the file says (:func:`separator`), by tabs where it says nothing.

    Raises
    ------
    DataError
        If the file is absent, or no table (or not compressed as its name says).
    """
    import pandas as pd

    try:
        return pd.read_csv(path, **({"sep": separator(path) or "\t"} | options))
    except FileNotFoundError:
        raise DataError(f"{path}: not a readable {kind} (no such file); check the path") from None
    except Exception as error:  # parsers and decompressors raise many kinds
        raise DataError(
            f"{path}: not a readable {kind} ({first_line(error)}); give comma- or tab-separated text"
        ) from error


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return (str(error).splitlines() or [repr(error)])[0]


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _temporary(path: Path) -> Path:
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise DataError(
            f"{path}: cannot write in folder {path.parent} ({error.strerror}); choose an existing, writable folder"
        ) from error
    os.close(handle)
    return Path(name)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current

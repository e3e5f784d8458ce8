"""Molecules in numbers: Morgan fingerprints, Tanimoto similarity, InChIKey blocks (RDKit)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from ..errors import DataError

T = TypeVar("T")


def morgan(
    smiles: Sequence[str], radius: int = 2, n_bits: int = 2048, counts: bool = False, chirality: bool = False
) -> np.ndarray:
    """Morgan fingerprints, float32 ``[E, n_bits]``: bits, or counts of each environment.

    Molecules are taken as written, salts included. ``chirality=True`` lets stereo centres enter the bits; without
    it stereo-isomers share a fingerprint, as is usual.

    Raises
    ------
    DataError
        For an empty or unparsable SMILES, with its row.
    """
    from rdkit.Chem import rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=n_bits, includeChirality=chirality)
    fingerprint = generator.GetCountFingerprintAsNumPy if counts else generator.GetFingerprintAsNumPy
    rows = _each(smiles, fingerprint)
    return np.stack(rows).astype(np.float32) if rows else np.zeros((0, n_bits), np.float32)


def tanimoto(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Tanimoto similarity of every row of ``a [m, b]`` with every row of ``b [n, b]``, float32 ``[m, n]``.

    ``ab / (|a|² + |b|² − ab)``: shared bits over bits in either; for counts its usual extension. An empty
    fingerprint is similar to nothing.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    shared = a @ b.T
    union = (a**2).sum(1)[:, None] + (b**2).sum(1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0).astype(np.float32)


def inchi_key_block(smiles: Sequence[str]) -> list[str]:
    """First block of each InChIKey: the skeleton, the same for stereo-isomers, isotopes and most tautomers.

    Raises
    ------
    DataError
        As :func:`morgan`.
    """
    from rdkit import Chem

    keys = _each(smiles, Chem.MolToInchiKey)
    if lost := [row for row, key in enumerate(keys) if not key]:
        raise DataError(f"SMILES in row {lost[0]} has no InChIKey: {smiles[lost[0]]!r}; leave this compound out")
    return [key.split("-")[0] for key in keys]


def _each(smiles: Sequence[str], compute: Callable[[object], T]) -> list[T]:
    """``compute(molecule)`` once for each distinct SMILES."""
    from rdkit import Chem, rdBase

    results: dict[str, T] = {}
    with rdBase.BlockLogs():
        for row, text in enumerate(smiles):
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"SMILES in row {row} is empty ({text!r}); give one or leave the row out")
            if text not in results:
                if (molecule := Chem.MolFromSmiles(text)) is None:
                    raise DataError(f"SMILES in row {row} cannot be parsed: {text!r}; correct it or leave the row out")
                results[text] = compute(molecule)
    return [results[text] for text in smiles]

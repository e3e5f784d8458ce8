"""Training, validation and test parts that share no perturbagen, combination, cell line or environment."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import DataError, check_seed
from .files import replacing
from .geo import spelling
from .profiles import Profiles

_PARTS = {"train": "train", "val": "valid", "valid": "valid", "validation": "valid", "test": "test"}


@dataclass(frozen=True, eq=False)
class Split:
    """Row numbers of the profiles of each part.

    Attributes
    ----------
    train, valid, test : ndarray of int
        Sorted; disjoint; together all profiles.
    by : str
        What is unseen outside the training part: ``perturbagen``, ``combination``, a column, ...
    seed : int
    data_digest : str
        ``EnvironmentData.digest`` of the data that were split.
    """

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    by: str
    seed: int
    data_digest: str

    def __repr__(self) -> str:
        sizes = f"train {len(self.train):,}, valid {len(self.valid):,}, test {len(self.test):,}"
        return f"Split({sizes}; by {self.by}, seed {self.seed})"

    @staticmethod
    def from_column(data: Profiles, column: str) -> Split:
        """The split a column of ``data.obs`` gives: ``train``, ``val`` (or ``valid``) and ``test`` (may be absent).

        Raises
        ------
        DataError
            If there is no such column, a row says something else, or no profile is for training.
        """
        values = _obs_column(data, column).astype(str).str.lower()
        parts = values.map(_PARTS)
        if parts.isna().any():
            row = parts.index[parts.isna()][0]
            raise DataError(f"obs column {column!r}, row {row!r}: {values[row]!r} is none of train, val, test")
        train, valid, test = (np.flatnonzero(parts == part) for part in ("train", "valid", "test"))
        if not len(train):
            raise DataError(f"obs column {column!r} marks no profile as train")
        return Split(train, valid, test, column, 0, data.digest)

    def same_rows(self, other: Split) -> bool:
        """Whether every part has the same rows."""
        return all(np.array_equal(getattr(self, part), getattr(other, part)) for part in ("train", "valid", "test"))

    def save(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all."""
        fields = {"by": self.by, "seed": self.seed, "data_digest": self.data_digest}
        rows = {name: getattr(self, name).tolist() for name in ("train", "valid", "test")}
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(fields | rows))

    @staticmethod
    def load(path: str | Path, data: Profiles | None = None) -> Split:
        """Read a saved split; with ``data``, only if it was made for these very data.

        Raises
        ------
        DataError
            If the file is no saved split, or belongs to other data.
        """
        try:
            saved = json.loads(Path(path).read_text())
            train, valid, test = (np.array(saved[name], dtype=np.int64) for name in ("train", "valid", "test"))
            result = Split(train, valid, test, str(saved["by"]), int(saved["seed"]), str(saved["data_digest"]))
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise DataError(f"{path}: not a saved split ({error!r}); make it again with split(...).save") from error
        if data is not None and data.digest != result.data_digest:
            raise DataError(
                f"{path}: field 'data_digest' is of other data ({result.data_digest[:12]}, these are {data.digest[:12]})"
                "; give the data it was made with, or split again"
            )
        return result


def split(
    data: Profiles,
    by: str = "perturbagen",
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> Split:
    """Split profiles at random by groups: no group is in two parts. Control profiles are always in ``train``.

    Parameters
    ----------
    data : EnvironmentData or StreamedData
    by : str
        ``perturbagen`` (compounds of one InChIKey skeleton together where structures are known), ``combination``
        (perturbagen × cell line), ``cell_line``, ``environment``, ``random`` (single profiles), or a column of
        ``obs`` or ``env_table``.
    fractions : (train, valid, test)
        Of the groups; each part with a positive fraction gets one group at least.
    seed : int

    Raises
    ------
    DataError
        If the column is not there or has missing values; if there are fewer groups than parts; if fractions do not
        add up to one.
    """
    shares = np.asarray(fractions, dtype=float)
    if shares.shape != (3,) or (shares < 0).any() or not np.isclose(shares.sum(), 1) or shares[0] == 0:
        raise DataError(f"fractions must be three shares that add up to 1, the first above 0; got {tuple(fractions)}")
    check_seed(seed)
    env = data.env.cpu().numpy()
    treated = ~data.is_control.cpu().numpy()[env]
    codes, groups = pd.factorize(_groups(data, by)[treated])
    if (codes < 0).any():
        row = data.obs.index[np.flatnonzero(treated)[codes < 0][0]]
        raise DataError(f"split by {by!r}: missing for profile {row!r}; fill it in or leave the profile out")
    wanted = shares > 0
    if len(groups) < wanted.sum():
        raise DataError(
            f"split by {by!r}: {len(groups)} groups among the treated profiles are too few for {int(wanted.sum())} "
            "parts; set a fraction to 0 or split by something finer"
        )
    # Groups shuffled, then cut; each wanted part keeps one.
    sizes = np.where(wanted, np.maximum(np.round(shares * len(groups)), 1), 0).astype(int)
    while sizes.sum() != len(groups):
        largest = int(sizes.argmax())
        sizes[largest] += 1 if sizes.sum() < len(groups) else -1
    order = np.random.default_rng(seed).permutation(len(groups))
    part_of_group = np.empty(len(groups), dtype=int)
    part_of_group[order] = np.repeat(np.arange(3), sizes)
    part = np.zeros(data.n, dtype=int)
    part[treated] = part_of_group[codes]
    train, valid, test = (np.flatnonzero(part == i) for i in range(3))
    return Split(train, valid, test, by, seed, data.digest)


def _groups(data: Profiles, by: str) -> np.ndarray:
    env = data.env.cpu().numpy()
    if by == "random":
        return np.arange(data.n)
    if by == "environment":
        return env
    if by == "perturbagen":
        return _perturbagen(data)[env]
    if by == "combination":
        cells = _column(data, "cell_line")
        pairs = [None if pd.isna(c) else f"{p}\t{c}" for p, c in zip(_perturbagen(data)[env], cells, strict=True)]
        return np.array(pairs, dtype=object)
    return _column(data, by)


def _perturbagen(data: Profiles) -> np.ndarray:
    """``[E]``: InChIKey skeleton, else the perturbagen's name, else the environment's."""
    key = pd.Series(None, index=range(data.n_envs), dtype=object)
    for name in ("inchi_key_block", "perturbagen"):
        if name in data.env_table.columns:
            given = data.env_table[name].astype(object).reset_index(drop=True)
            key = key.where(key.notna(), given)
    return key.where(key.notna(), pd.Series(list(data.env_names))).to_numpy(dtype=object)


def _column(data: Profiles, name: str) -> np.ndarray:
    # A perturbagen may have been measured in several cell lines: profiles know better than environments.
    if (spelled := spelling(data.obs, name)) is not None:
        return data.obs[spelled].to_numpy(dtype=object)
    if name in data.env_table.columns:
        return data.env_table[name].to_numpy(dtype=object)[data.env.cpu().numpy()]
    return _obs_column(data, name).to_numpy(dtype=object)


def _obs_column(data: Profiles, name: str) -> pd.Series:
    if name not in data.obs.columns:
        columns = [*data.obs.columns, *data.env_table.columns]
        raise DataError(f"no column {name!r} to split by; there are {', '.join(map(str, columns)) or 'none'}")
    return data.obs[name]

"""Which profiles are meant by an index."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError


def row_numbers(index: Tensor | np.ndarray | Sequence[int], n: int) -> Tensor:
    """Row numbers ``[m]``, in the order given, of ``m`` among ``n`` profiles.

    Parameters
    ----------
    index : Tensor, ndarray or sequence
        Row numbers from 0 to ``n − 1``, or a boolean mask with one entry a profile.
    n : int

    Raises
    ------
    DataError
        For a mask of another length, numbers out of range (negative ones too), and anything else: never other profiles in
        silence.
    """
    given = np.asarray(index.cpu() if isinstance(index, Tensor) else index)
    if given.dtype == bool and given.ndim == 1:
        if len(given) != n:
            raise DataError(
                f"index is a mask of {len(given)} entries, but there are {n} profiles: give one entry a profile"
            )
        return torch.from_numpy(np.flatnonzero(given))
    if given.ndim != 1 or not (given.dtype.kind in "iu" or given.size == 0):
        raise DataError(
            f"index must be row numbers or a boolean mask, in one dimension; got {given.dtype} of shape {list(given.shape)}"
        )
    if (outside := (given < 0) | (given >= n)).any():
        raise DataError(
            f"index[{outside.argmax()}] = {given[outside][0]}, but there are {n} profiles: rows count from 0 to n − 1"
        )
    return torch.from_numpy(given.astype(np.int64))

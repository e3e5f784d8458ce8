"""Do two views of the same cells land in the same place?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

Array = NDArray[np.float64]


def retrieval_scores(a: Array, b: Array, k: Sequence[int] = (5, 50), metric: str = "cosine") -> dict[str, float]:
    """How near a cell's other view is, among the other views of all cells; row i of both is one cell.

    With ``rank_i`` the number of rows of ``b`` that are nearer to ``a_i`` than ``b_i`` is, ties counting one half::

        knn_k   = share of cells with rank_i < k                   chance k/n
        foscttm = mean rank_i / (n − 1)                            fraction of samples closer than the true match; chance ½

    both averaged over looking from ``a`` to ``b`` and from ``b`` to ``a``.

    Parameters
    ----------
    a, b : arrays ``[n, d]``
    k : sequence of int
    metric : str
        Any of :func:`scipy.spatial.distance.cdist`. A row of zeros is at cosine distance 1 from everything.

    Returns
    -------
    dict
        ``knn_5``, ``knn_50`` (one for each ``k``), ``foscttm``.

    Raises
    ------
    DataError
        For different shapes, fewer than two cells, values that are not finite.
    """
    from scipy.spatial.distance import cdist

    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 2 or a.shape != b.shape or len(a) < 2:
        raise DataError(
            f"two views of the same cells [n, d] are needed, n ≥ 2; got {list(a.shape)} and {list(b.shape)}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise DataError("the views must be finite")
    distance = np.nan_to_num(cdist(a, b, metric), nan=1.0)
    own, n = np.diag(distance), len(a)
    ranks = np.stack([(d < own[:, None]).sum(1) + ((d == own[:, None]).sum(1) - 1) / 2 for d in (distance, distance.T)])
    return {f"knn_{size}": float((ranks < size).mean()) for size in k} | {"foscttm": float(ranks.mean() / (n - 1))}

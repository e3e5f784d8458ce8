"""How far is one graph from another?"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def structural_hamming_distance(estimate: Tensor | NDArray[Any], truth: Tensor | NDArray[Any]) -> int:
    """Pairs of nodes whose edge is missing, extra or reversed (a reversal counts once); adjacencies ``A [d, d]``.

    Raises
    ------
    ValueError
        If the two differ in size.
    """
    a, b = (np.asarray(A.detach().cpu() if isinstance(A, Tensor) else A) != 0 for A in (estimate, truth))
    if a.shape != b.shape or a.ndim != 2 or a.shape[0] != a.shape[1]:
        raise ValueError(f"both graphs need an adjacency [d, d] of one size, got {list(a.shape)} and {list(b.shape)}")
    wrong = a != b
    return int(np.triu(wrong | wrong.T, k=1).sum())

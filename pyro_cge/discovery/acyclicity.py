"""Acyclicity of a weighted graph as a smooth function that is zero exactly for a DAG, and graphs cut until they are one."""

from __future__ import annotations

import math
from collections.abc import Callable

import networkx as nx
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..errors import ConfigError


def trace_exponential(strength: Tensor) -> Tensor:
    """``tr exp(A) − d``: closed walks, those of length ``k`` weighed by ``1/k!``. Gradient ``exp(A)ᵀ``.

    Parameters
    ----------
    strength : Tensor ``[..., d, d]``
        ``A = W ∘ W``, or squared norms of the weights from ``i`` to ``j``; never negative.

    References
    ----------
    Zheng, Aragam, Ravikumar, Xing 2018, "DAGs with NO TEARS", theorem 1.
    """
    with torch.no_grad():
        walks = torch.linalg.matrix_exp(strength)
        value = walks.diagonal(dim1=-2, dim2=-1).sum(-1) - strength.shape[-1]
    return _with_gradient(value, walks.mT, strength)


def log_det(strength: Tensor, s: float = 1.0) -> Tensor:
    """``−log det(sI − A) + d log s``: closed walks, those of length ``k`` weighed by ``1/(k sᵏ)``. Gradient ``(sI − A)⁻ᵀ``.

    Finite where the spectral radius of ``A`` is below ``s`` (``sI − A`` is an M-matrix); infinite elsewhere, so that it
    keeps a search inside, as a barrier does.

    References
    ----------
    Bello, Aragam, Ravikumar 2022, "DAGMA", theorem 1.
    """
    d = strength.shape[-1]
    with torch.no_grad():
        matrix = s * torch.eye(d, dtype=strength.dtype, device=strength.device) - strength
        inverse, info = torch.linalg.inv_ex(matrix)
        inside = (info == 0) & (inverse > -1e-12).flatten(-2).all(-1)
        value = torch.where(inside, d * math.log(s) - torch.linalg.slogdet(matrix)[1], torch.inf)
    return _with_gradient(value, inverse.mT, strength)


def spectral_radius(strength: Tensor, iterations: int = 50) -> Tensor:
    """Largest absolute eigenvalue of ``A``, ``uᵀAv / uᵀv`` of its Perron vectors by power iteration. Gradient ``u vᵀ / uᵀv``.

    Whether there is a cycle at all is decided exactly: ``1ᵀ Aᵈ`` is zero for a DAG and for nothing else. The iteration
    itself is on ``A + cI``, which has the same vectors and, unlike ``A``, no second eigenvalue as large as the first; ``c`` is
    about the radius, as told by the growth of those walks.

    References
    ----------
    Lee, Danieletto, Miotto, Cherng, Dudley 2019, "Scaling structural learning with NO-BEARS".
    """
    d = strength.shape[-1]
    with torch.no_grad():
        u, v = strength.new_ones(*strength.shape[:-2], 1, d), strength.new_ones(*strength.shape[:-1], 1)
        tiny, log_growth, walks = torch.finfo(strength.dtype).tiny, torch.zeros_like(u[..., :1]), u
        for step in range(2 * d):
            walks = walks @ strength
            growth = walks.sum(-1, keepdim=True)
            walks = walks / growth.clamp_min(tiny)
            log_growth = log_growth + (growth.clamp_min(tiny).log() / d if step >= d else 0.0)
        cyclic = growth.flatten(-2).squeeze(-1) > 0
        c = torch.where(cyclic[..., None, None], log_growth.exp(), 1.0)
        lazy = strength + c * torch.eye(d, dtype=strength.dtype, device=strength.device)
        for _ in range(iterations):
            u, v = u @ lazy, lazy @ v
            u, v = u / u.sum(-1, keepdim=True), v / v.sum(-2, keepdim=True)
        some = cyclic[..., None, None] / (u @ v)
        value = (u @ strength @ v * some).squeeze(-1).squeeze(-1)
    return _with_gradient(value, u.mT @ v.mT * some, strength)


def _with_gradient(value: Tensor, gradient: Tensor, strength: Tensor) -> Tensor:
    """``value`` to autograd with a gradient known in closed form: cheaper than a pass back through the iterations."""
    if not strength.requires_grad:
        return value
    return torch.where(torch.isfinite(value), value + (gradient * (strength - strength.detach())).sum((-1, -2)), value)


PENALTIES: dict[str, Callable[[Tensor], Tensor]] = {
    "log-det": log_det,
    "trace-exponential": trace_exponential,
    "spectral": spectral_radius,
}


def penalty(name: str) -> Callable[[Tensor], Tensor]:
    """The function of that name.

    Raises
    ------
    ConfigError
        If there is none.
    """
    if name not in PENALTIES:
        raise ConfigError(f"acyclicity is one of {list(PENALTIES)}, got {name!r}")
    return PENALTIES[name]


def to_dag(weights: ArrayLike, threshold: float = 0.0, keep: ArrayLike | None = None) -> NDArray[np.float64]:
    """``W`` without weights below ``threshold``, and without the next larger ones until no cycle is left.

    The cut is the smallest that gives a DAG, since leaving out more edges never closes a cycle.

    Parameters
    ----------
    weights : array ``[d, d]``
    threshold : float
        Weights of a smaller absolute value go in any case.
    keep : array ``[d, d]``, bool, optional
        Edges without a cycle that stay, however small.
    """
    W, kept = np.asarray(weights, dtype=float), np.zeros(np.shape(weights), dtype=bool)
    if keep is not None:
        kept |= np.asarray(keep, dtype=bool)
    W = np.where((np.abs(W) < threshold) & ~kept, 0.0, W)
    sizes = np.unique(np.abs(W[(W != 0) & ~kept]))
    low, high = 0, len(sizes)  # number of the smallest sizes that go
    while low < high:
        middle = (low + high) // 2
        if _acyclic((np.abs(W) > (sizes[middle - 1] if middle else 0.0)) | kept):
            high = middle
        else:
            low = middle + 1
    return np.where((np.abs(W) > (sizes[low - 1] if low else 0.0)) | kept, W, 0.0)


def _acyclic(edges: NDArray[np.bool_]) -> bool:
    return bool(nx.is_directed_acyclic_graph(nx.from_numpy_array(edges, create_using=nx.DiGraph)))

"""Gene programmes: what moving a latent does to each gene (paper, section 6.6).

The sign of a latent is arbitrary: reflect it, and its programme and the shifts along it change sign together. Only
products are meaningful: shift × programme (an effect on genes), or programme × programme (a gene–gene interaction).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import pyro
import torch
from torch import Tensor

from ..errors import ConfigError
from ..posterior import Posterior

if TYPE_CHECKING:
    from ..data.environment import Batch
    from ..models.cell import CellModel

WithRespectTo = Literal["c", "z"]
Units = Literal["data", "sd"]
ENTRIES = 2**24  # of a block of numbers held at a time: 64 MB in float32


def gene_programmes(
    posterior: Posterior,
    *,
    wrt: WithRespectTo = "c",
    at: Tensor | Literal["profiles", "reference"] = "profiles",
    units: Units = "data",
) -> pd.DataFrame:
    """Signed gene programmes, gene × latent: the mean over profiles of ``∂ E[x_k] / ∂ latent_i``.

    For a linear decoder these are its weights, whatever ``at`` is.

    Parameters
    ----------
    posterior : Posterior
    wrt : {"c", "z"}
        Derivative with respect to the causes (the decoder's own programmes) or to the exogenous noise (with all that
        follows downstream in the latent SCM). Intervention handlers in force apply.
    at : {"profiles", "reference"} or Tensor ``[m, d]``
        Where: at the posterior mean noise of each profile, at ``z = 0``, or at the given noise (``m`` the number of
        profiles, or anything where the decoder does not see the environment).
    units : {"data", "sd"}
        Genes in the units of the data, or in standard deviations of each gene over the posterior's profiles. Latents
        are in standard deviations of the reference noise either way.

    Raises
    ------
    ConfigError
        For an unknown ``wrt``, ``at`` or ``units``.
    """
    total, count = torch.zeros(posterior.model.g, posterior.model.d, dtype=torch.float64), 0
    for block in _blocks(posterior, wrt, at):  # [d, m, g]
        total += block.double().sum(1).T.cpu()
        count += block.shape[1]
    values = total / count * unit_of(posterior, units).unsqueeze(-1)
    return pd.DataFrame(
        values.numpy(), index=pd.Index(posterior.raw.gene_names, name="gene"), columns=posterior.latent_names
    )


def profile_programmes(
    posterior: Posterior,
    *,
    wrt: WithRespectTo = "c",
    at: Tensor | Literal["profiles", "reference"] = "profiles",
    units: Units = "data",
) -> Tensor:
    """The programme of each profile ``[n, g, d]``; see :func:`gene_programmes`. Mind the memory: n · g · d numbers."""
    blocks = [block.permute(1, 2, 0).cpu() for block in _blocks(posterior, wrt, at)]
    return torch.cat(blocks) * unit_of(posterior, units).float().unsqueeze(-1)


def top_genes(programmes: pd.DataFrame, n: int = 10) -> pd.DataFrame:
    """The ``n`` genes of largest absolute weight in each programme: columns latent, rank, gene, weight."""
    n = min(n, len(programmes))
    weights = programmes.to_numpy()
    order = np.argsort(-np.abs(weights), axis=0, kind="stable")[:n]
    return pd.DataFrame(
        {
            "latent": np.repeat(programmes.columns.to_numpy(), n),
            "rank": np.tile(np.arange(1, n + 1), programmes.shape[1]),
            "gene": programmes.index.to_numpy()[order.T.ravel()],
            "weight": np.take_along_axis(weights, order, 0).T.ravel(),
        }
    )


def gene_interactions(programmes: pd.DataFrame, n: int = 1000) -> pd.DataFrame:
    """The ``n`` strongest gene–gene interactions implied by shared latents::

        covariance[k, l] = Σ_i B[k, i] B[l, i]          correlation = covariance / (|B_k| |B_l|)

    for programmes ``B [g, d]`` with respect to the noise, whose reference law is N(0, I): the covariance of the two
    genes that the latents explain. It changes neither under reflections nor under rotations of the latents. Pairs are
    ordered by absolute covariance, so give programmes in sd units unless strong genes should lead.

    Returns
    -------
    DataFrame
        Columns gene_a, gene_b, weight (the covariance), correlation, and latent: the one that contributes most.
        ``networkx.from_pandas_edgelist(table, "gene_a", "gene_b", ["weight", "latent"])`` makes a graph of it.
    """
    weights, genes = programmes.to_numpy(dtype=np.float64), programmes.index.to_numpy()
    first, second, value = (np.empty(0, kind) for kind in (np.int64, np.int64, np.float64))
    rows = max(1, ENTRIES // max(1, len(genes)))
    for start in range(0, len(genes), rows):
        a, b = np.triu_indices(min(rows, len(genes) - start), start + 1, len(genes))
        block = (weights[start : start + rows] @ weights.T)[a, b]
        first, second = np.concatenate([first, a + start]), np.concatenate([second, b])
        value = np.concatenate([value, block])
        keep = np.argsort(-np.abs(value), kind="stable")[:n]
        first, second, value = first[keep], second[keep], value[keep]
    length = np.linalg.norm(weights, axis=1)
    product = length[first] * length[second]
    shared = np.abs(weights[first] * weights[second]).argmax(1)
    return pd.DataFrame(
        {
            "gene_a": genes[first],
            "gene_b": genes[second],
            "weight": value,
            "correlation": np.divide(value, product, out=np.zeros_like(value), where=product > 0),
            "latent": programmes.columns.to_numpy()[shared],
        }
    )


def _blocks(posterior: Posterior, wrt: str, at: Tensor | str) -> Iterator[Tensor]:
    """Jacobians ``[d, m, g]`` of expected expression in the model's units, a block of profiles at a time."""
    if wrt not in ("c", "z"):
        raise ConfigError(f"wrt must be 'c' (causes) or 'z' (noise), got {wrt!r}")
    model, data = posterior.model, posterior.data
    if isinstance(at, Tensor):
        points = at
    elif at == "profiles":
        points = torch.from_numpy(posterior.latents().to_numpy())
    elif at == "reference":
        points = torch.zeros(1, model.d)
    else:
        raise ConfigError(f"at must be 'profiles', 'reference' or a tensor [m, d], got {at!r}")
    points = points.to(posterior.device)
    env = data.env if len(points) == data.n else data.env[:1].expand(len(points))
    size = max(1, ENTRIES // (model.d * model.g))
    for rows in torch.arange(len(points), device=posterior.device).split(size):
        yield _jacobian(model, points[rows], data.cells(env[rows]), wrt)


@torch.no_grad()
def _jacobian(model: CellModel, z: Tensor, batch: Batch, wrt: str) -> Tensor:
    """Exact forward-mode derivatives ``[d, n, g]``: profiles are independent, so one tangent serves all of them."""

    def of_noise(values: Tensor) -> Tensor:
        return model.mean(values, batch)

    def of_causes(values: Tensor) -> Tensor:
        return model.likelihood(values, batch).mean

    # Pyro's checks branch on values, which vmap cannot follow; torch's first forward-mode call scripts its own formulas.
    with pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.script.*", DeprecationWarning)
        function, point = (of_noise, z) if wrt == "z" else (of_causes, model.causes(z, batch))

        def along(direction: Tensor) -> Tensor:
            return torch.func.jvp(function, (point,), (direction.expand_as(point),))[1]

        basis = torch.eye(point.shape[-1], dtype=point.dtype, device=point.device)
        return torch.func.vmap(along)(basis)


def unit_of(posterior: Posterior, units: str) -> Tensor:
    """``[g]``, float64: what one unit of the model's expression is in the units asked for."""
    scale: Tensor = posterior.scaler.scale.double().cpu()
    if units == "data":
        return scale
    if units == "sd":
        return scale / posterior.raw.x.double().std(0).clamp_min(1e-12).cpu()
    raise ConfigError(f"units must be 'data' or 'sd' (of each gene), got {units!r}")

"""The table of sample sites, and the two plates every model and guide uses.

====================== ============= ======= ===== =========================================
site                   kind          plate   event meaning
====================== ============= ======= ===== =========================================
``env_target``         latent        envs    d     which latents an environment intervenes on
``env_shift``          latent        envs    d     size of the noise shift
``env_loc``            deterministic envs    d     mean of the noise law (``NoiseShift.loc``)
``env_log_scale``      deterministic envs    d     its log standard deviation
``z``                  latent        cells   d     exogenous noise
``c_1`` ... ``c_L``    deterministic cells   k     layers of the latent SCM
``gene_mask``          latent        genes   d     sparse gene-programme support
``x``                  observed      cells   g     gene expression
====================== ============= ======= ===== =========================================
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyro
from pyro import poutine

if TYPE_CHECKING:
    from .data.environment import Batch


@dataclass(frozen=True)
class Site:
    """One row of the table: what a sample site is, under which plate, with which event letter."""

    kind: str
    plate: str
    event: str


SITES: dict[str, Site] = {
    "env_target": Site("latent", "envs", "d"),
    "env_shift": Site("latent", "envs", "d"),
    "env_loc": Site("deterministic", "envs", "d"),
    "env_log_scale": Site("deterministic", "envs", "d"),
    "z": Site("latent", "cells", "d"),
    "c": Site("deterministic", "cells", "k"),
    "gene_mask": Site("latent", "genes", "d"),
    "x": Site("observed", "cells", "g"),
}


def layer_site(layer: int) -> str:
    """Name of SCM layer ``layer`` (counted from 1): ``c_1``, ``c_2``, ..."""
    return f"c_{layer}"


def describe(name: str) -> Site:
    """The row of the table a site name belongs to.

    Raises
    ------
    KeyError
        If the name is not in the table.
    """
    stem, _, layer = name.partition("_")
    return SITES["c" if stem == "c" and layer.isdigit() else name]


def cells_plate(batch: Batch) -> pyro.plate:
    """The plate over profiles: full-data size, this batch's rows, the same in model and guide."""
    return pyro.plate("cells", batch.n_total, subsample=batch.index, dim=-1)


@contextmanager
def envs_plate(batch: Batch) -> Iterator[None]:
    """The plate over the environments present in a batch.

    A minibatch draws profiles, not environments, so an environment turns up in proportion to its
    profiles. Each environment's terms are therefore weighted by ``Batch.env_weight``, which makes a
    minibatch unbiased for the full-data loss; on the full data every weight is 1.
    """
    plate = pyro.plate("envs", batch.n_envs, subsample=batch.envs, dim=-1)
    # Pyro wants scales above zero; 1e-30 of a term is nothing in float32 or float64.
    weight = (batch.env_weight * (len(batch.envs) / batch.n_envs)).clamp_min(1e-30)
    with plate, poutine.scale(scale=weight):
        yield

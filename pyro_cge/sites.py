"""The table of sample sites, and the two plates every model and guide uses.

====================== ============= ======= ===== ==============================================
site                   kind          plate   event meaning
====================== ============= ======= ===== ==============================================
``env_target``         latent        envs    d     which latents an environment intervenes on
``env_shift``          latent        envs    d     size of the change of the noise's mean
``env_stretch``        latent        envs    d     size of the change of its log standard deviation
``env_local``          latent        envs    d     local shrinkage scale (horseshoe)
``env_loc``            deterministic envs    d     mean of the noise law (``NoiseShift.loc``)
``env_log_scale``      deterministic envs    d     its log standard deviation
``edge``               latent        latents d     edges of a learned latent graph, row i: i → j
``z``                  latent        cells   d     exogenous noise
``c_1`` ... ``c_L``    deterministic cells   k     layers of the latent SCM; latent where mechanisms
                                                   have noise of their own
``gene_mask``          latent        genes   d     sparse gene-programme support
``x``                  observed      cells   g     gene expression
====================== ============= ======= ===== ==============================================

Where environments are made of perturbations (combinations, doses), ``perturbation_target`` and its like in the plate
``perturbations`` take the place of ``env_target`` and its like.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyro
import torch
from pyro import poutine

if TYPE_CHECKING:
    from .data.environment import Batch


NOTHING = 1e-30  # Pyro wants scales above zero


@dataclass(frozen=True)
class Site:
    """One row of the table: what a sample site is, under which plate, with which event letter."""

    kind: str
    plate: str
    event: str


EFFECTS = ("target", "shift", "stretch", "local")  # latent sites of a prior, after "env_" or "perturbation_"

SITES: dict[str, Site] = {
    **{f"env_{effect}": Site("latent", "envs", "d") for effect in EFFECTS},
    **{f"perturbation_{effect}": Site("latent", "perturbations", "d") for effect in EFFECTS},
    "env_loc": Site("deterministic", "envs", "d"),
    "env_log_scale": Site("deterministic", "envs", "d"),
    "edge": Site("latent", "latents", "d"),
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
    """The plate over the environments (or perturbations, see ``Batch.unit``) present in a batch.

    A minibatch draws profiles, not environments, so an environment turns up in proportion to its
    profiles. Each environment's terms are therefore weighted by ``Batch.env_weight``, which makes a
    minibatch unbiased for the full-data loss; on the full data every weight is 1.
    """
    plate = pyro.plate(f"{batch.unit}s", batch.n_envs, subsample=batch.envs, dim=-1)
    weight = batch.env_weight * (len(batch.envs) / batch.n_envs)
    with plate, poutine.scale(scale=weight.clamp_min(NOTHING)):
        yield


def treated_only(batch: Batch) -> poutine.scale_messenger.ScaleMessenger:
    """Inside :func:`envs_plate`: controls, whose latent effects change nothing, weigh nothing."""
    return poutine.scale(scale=(~batch.is_control).to(torch.get_default_dtype()).clamp_min(NOTHING))

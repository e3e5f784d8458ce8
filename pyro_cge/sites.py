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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.broadcast_messenger import BroadcastMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame, IndepMessenger
from pyro.poutine.runtime import am_i_wrapped
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import constraints

if TYPE_CHECKING:
    from .data.environment import Batch


# Of the table; files of another one are refused. Raise it when a site changes name, plate, event or meaning.
VERSION = 1
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


class RowsPlate(pyro.plate):
    """``pyro.plate`` over given rows in the last dimension.

    Laws that have one row each already, as all of ours do, are left as they are: Pyro's own plate expands them all the
    same, at every site of every step.
    """

    def __init__(self, name: str, size: int, rows: Tensor) -> None:
        IndepMessenger.__init__(self, name, size, -1)
        self._indices = rows
        if am_i_wrapped():  # as Pyro's own plate does, so that traces record the rows and handlers may replay them
            law = _Subsample(size, None, device=cast(Any, rows.device))
            self._indices = pyro.sample(name, cast(Any, law), obs=rows, infer=cast(Any, {"is_observed": False}))
        self.subsample_size = len(self._indices)
        self.frame = CondIndepStackFrame(name, -1, self.subsample_size, self.counter, size)
        self.factor = size / self.subsample_size

    def _process_message(self, msg: Any) -> None:
        msg["cond_indep_stack"] = (self.frame, *msg["cond_indep_stack"])
        msg["scale"] = msg["scale"] * self.factor
        shape = getattr(msg["fn"], "batch_shape", ())
        if not (shape and shape[-1] == self.subsample_size):
            BroadcastMessenger._pyro_sample(msg)


class EnvsPlate(RowsPlate):
    """The plate over the environments (or perturbations, see ``Batch.unit``) present in a batch.

    A minibatch draws profiles, not environments, so an environment turns up in proportion to its
    profiles. Each environment's terms are therefore weighted by ``Batch.env_weight``, which makes a
    minibatch unbiased for the full-data loss; on the full data every weight is 1.
    """

    def __init__(self, batch: Batch) -> None:
        super().__init__(f"{batch.unit}s", batch.n_envs, batch.envs)
        self.batch = batch

    def _process_message(self, msg: Any) -> None:
        super()._process_message(msg)
        if not isinstance(msg["fn"], Exactly):  # which has no density to weigh
            # The plate itself has multiplied by the number of environments over those present.
            present = len(self.batch.envs) / self.batch.n_envs
            msg["scale"] = msg["scale"] * (self.batch.env_weight * present).clamp_min(NOTHING)


class Exactly(dist.TorchDistribution):
    """Law of a deterministic site with one event dimension: always ``value``, and no density.

    ``Delta(value, event_dim=1).mask(False)``, as ``pyro.deterministic`` has it, without the tensors nobody reads.
    """

    arg_constraints = {}  # noqa: RUF012 (torch's own convention)
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, value: Tensor) -> None:
        self.value = value
        super().__init__(value.shape[:-1], value.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Exactly:
        return Exactly(self.value.expand(*batch_shape, *self.event_shape))

    @property
    def base_dist(self) -> dist.Delta:
        """What the mask of ``pyro.deterministic`` hides; read by ``pyro.render_model``."""
        return dist.Delta(self.value, event_dim=1)

    @property
    def mean(self) -> Tensor:
        return self.value

    @property
    def variance(self) -> Tensor:
        return torch.zeros_like(self.value)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        return self.value.expand(self._extended_shape(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return value.new_zeros(torch.broadcast_shapes(self.batch_shape, value.shape[:-1]))


def deterministic(name: str, value: Tensor, **infer: Any) -> Tensor:
    """``pyro.deterministic(name, value, event_dim=1)``, with notes for handlers in ``infer``."""
    return pyro.sample(name, Exactly(value), obs=value, infer=cast(Any, {"_deterministic": True, **infer}))


def cells_plate(batch: Batch) -> RowsPlate:
    """The plate over profiles: full-data size, this batch's rows, the same in model and guide."""
    return RowsPlate("cells", batch.n_total, batch.index)


def envs_plate(batch: Batch) -> EnvsPlate:
    """The plate over the environments (or perturbations) present in a batch, weighted as :class:`EnvsPlate` says."""
    return EnvsPlate(batch)


def treated_only(batch: Batch) -> poutine.scale_messenger.ScaleMessenger:
    """Inside :func:`envs_plate`: controls, whose latent effects change nothing, weigh nothing."""
    return poutine.scale(scale=(~batch.is_control).to(torch.get_default_dtype()).clamp_min(NOTHING))

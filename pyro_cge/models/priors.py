"""Latent priors: the law of the exogenous noise in each environment.

Every prior maps a batch's environments to a :class:`~pyro_cge.scm.shifts.NoiseShift` and records it at the sites
``env_loc`` and ``env_log_scale``. Reference (control) environments always keep N(0, I). The priors here are functions of
the environment; those whose effects are latent variables are in :mod:`pyro_cge.models.effects`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ..data.environment import Batch, EnvironmentData
from ..errors import ConfigError, check_positive, check_sizes
from ..scm.shifts import NoiseShift
from ..sites import deterministic, envs_plate
from .networks import EnvironmentNetwork, soft_clamp

Moves = Literal["loc", "scale", "both"]
Support = Literal["gate", "one-hot", "real", "positive"]
NONE: Mapping[str, Tensor] = {}
LOWEST_TEMPERATURE = 1e-3  # a learned temperature never reaches zero
LOG_SCALE_BOUND = 3.0  # an intervention widens or narrows the noise by at most e³ ≈ 20


class LatentPrior(nn.Module):
    """Environment → noise law. Subclasses give ``shift``, and ``effects`` if it depends on latent variables.

    Parameters
    ----------
    data : EnvironmentData
        Read for the number of environments and features.
    d : int
        Latents.
    """

    def __init__(self, data: EnvironmentData, d: int) -> None:
        super().__init__()
        check_sizes(d=d)
        self.d = d
        self.environments = data.schema()

    # What latent effects the prior has, in the order they are drawn: effect → support.
    supports: Mapping[str, Support] = {}

    @property
    def unit_schema(self) -> EnvironmentData:
        """What has effects: the environments, or the perturbations they are made of."""
        return self.environments

    def units(self, batch: Batch) -> Batch:
        """The batch's environments, or the perturbations they are made of."""
        return batch

    def effects(self, batch: Batch) -> dict[str, Tensor]:
        """Draw the latent effects ``[..., E_b, d]`` of the batch's units, inside their plate: none, unless a prior has some."""
        return {}

    def shift(self, batch: Batch, effects: Mapping[str, Tensor] = NONE) -> NoiseShift:
        """The noise law ``[..., E_b, d]`` of the batch's environments, given the latent effects."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> NoiseShift:
        units = self.units(batch)
        if units is not batch:
            with envs_plate(units):
                effects = self.effects(units)
            with envs_plate(batch):
                return _recorded(self.shift(batch, effects))
        with envs_plate(batch):
            return _recorded(self.shift(batch, self.effects(batch)))

    def start_at(self, shift: NoiseShift, batch: Batch) -> None:
        """Set what can be learned so that ``shift(batch)`` is, as nearly as the prior allows, the one given."""

    def starting_effects(self, shift: NoiseShift) -> dict[str, Tensor]:
        """Where a guide's effects start to give the noise law ``shift``: sizes as they are, targets as logits."""
        return {}

    def unit_shift(self, shift: NoiseShift, batch: Batch) -> NoiseShift:
        """The environments' ``shift`` as effects of the units they are made of."""
        return shift


def _recorded(shift: NoiseShift) -> NoiseShift:
    return NoiseShift(
        deterministic("env_loc", shift.loc),
        deterministic("env_log_scale", shift.log_scale),
    )


class StandardPrior(LatentPrior):
    """``Z | e ~ N(0, I)`` in every environment: the basic and the Conditional VAE."""

    def shift(self, batch: Batch, effects: Mapping[str, Tensor] = NONE) -> NoiseShift:
        zeros = batch.envs.new_zeros((len(batch.envs), self.d), dtype=torch.get_default_dtype())
        return NoiseShift(zeros, zeros)


class TablePrior(LatentPrior):
    """A known noise law for every environment: the simulator's truth.

    Environments are looked up by row number, so this prior has nothing to say about new ones.
    """

    loc: Tensor
    log_scale: Tensor

    def __init__(self, data: EnvironmentData, shift: NoiseShift) -> None:
        super().__init__(data, shift.d)
        if shift.n_envs != data.n_envs:
            raise ConfigError(f"TablePrior got laws for {shift.n_envs} environments, the data have {data.n_envs}")
        if not (shift.loc.isfinite().all() and shift.log_scale.isfinite().all()):
            raise ConfigError("TablePrior got laws that are not finite: loc and log_scale must be")
        self.register_buffer("loc", shift.loc)
        self.register_buffer("log_scale", shift.log_scale)

    def shift(self, batch: Batch, effects: Mapping[str, Tensor] = NONE) -> NoiseShift:
        return NoiseShift(self.loc, self.log_scale).select(batch.envs)


class DensePrior(LatentPrior):
    """``Z | e ~ N(μ_e, σ_e²)`` with no sparsity: free rows, or a network on environment features.

    Parameters
    ----------
    hidden : sequence of int
        Hidden layers of the environment network (``h_e = network(features_e)``).
    moves : {"loc", "scale", "both"}
        What an environment may change.
    targets : Tensor ``[E, d]``, bool, optional
        Latents each environment may move, where that is known (all, for environments that were not in training).
    """

    targets: Tensor | None

    def __init__(
        self,
        data: EnvironmentData,
        d: int,
        *,
        hidden: Sequence[int] = (64,),
        moves: Moves = "both",
        targets: Tensor | None = None,
    ) -> None:
        super().__init__(data, d)
        self.moves = checked_moves(moves)
        if targets is not None and targets.shape != (data.n_envs, d):
            raise ConfigError(f"targets must be [{data.n_envs} environments, {d} latents], got {list(targets.shape)}")
        # One row more, for environments that were not in training (number −1).
        anything = torch.ones(1, d, dtype=torch.bool)
        self.register_buffer(
            "targets", None if targets is None else torch.cat([targets.bool(), anything.to(targets.device)])
        )
        self.network = EnvironmentNetwork(data, d * (2 if moves == "both" else 1), hidden)

    def sparsify(self, values: Tensor) -> Tensor:
        """Hook for sparse subclasses: what is left of ``μ_e`` or ``log σ_e`` ``[E_b, d]``."""
        return values

    def shift(self, batch: Batch, effects: Mapping[str, Tensor] = NONE) -> NoiseShift:
        raw = self.network(batch).masked_fill(batch.is_control.unsqueeze(-1), 0.0)
        if self.targets is not None:
            allowed = self.targets.index_select(0, batch.envs % len(self.targets))
            raw = raw * allowed.repeat(1, raw.shape[-1] // self.d)
        loc, log_scale = raw[..., : self.d], raw[..., -self.d :]
        return NoiseShift(
            self.sparsify(loc) if self.moves != "scale" else torch.zeros_like(loc),
            self.sparsify(soft_clamp(log_scale, -LOG_SCALE_BOUND, LOG_SCALE_BOUND))
            if self.moves != "loc"
            else torch.zeros_like(log_scale),
        )

    def start_at(self, shift: NoiseShift, batch: Batch) -> None:
        parts = {"loc": [shift.loc], "scale": [shift.log_scale], "both": [shift.loc, shift.log_scale]}[self.moves]
        self.network.start_at(torch.cat(parts, -1), batch)


class SoftmaxPrior(DensePrior):
    """The paper's sparse prior (section 4.5): one latent moves, the others hardly.

    ``μ̄_e = μ_e ⊗ softmax(|μ_e| / T)`` and ``log σ̄_e = log σ_e ⊗ softmax(|log σ_e| / T)``.

    ``T → 0`` leaves the largest entry alone, ``T → ∞`` divides everything by ``d``. The temperature is a buffer, so
    it is saved with the weights; ``fit(..., on_epoch=annealed(prior, 2.0, 0.1, epochs))`` lowers it while training.

    Parameters
    ----------
    temperature : float
        ``T > 0``.
    learn_temperature : bool
        Train the temperature with everything else, from ``temperature`` on.
    """

    temperature: Tensor

    def __init__(
        self,
        data: EnvironmentData,
        d: int,
        *,
        temperature: float = 0.5,
        learn_temperature: bool = False,
        hidden: Sequence[int] = (64,),
        moves: Moves = "both",
    ) -> None:
        super().__init__(data, d, hidden=hidden, moves=moves)
        check_positive(temperature=temperature)
        start = torch.tensor(float(temperature))
        if learn_temperature:
            self.temperature = nn.Parameter(start)
        else:
            self.register_buffer("temperature", start)

    def sparsify(self, values: Tensor) -> Tensor:
        return values * torch.softmax(values.abs() / self.temperature.clamp_min(LOWEST_TEMPERATURE), -1)


def checked_moves(moves: Moves) -> Moves:
    if moves not in ("loc", "scale", "both"):
        raise ConfigError(f"moves must be 'loc', 'scale' or 'both', got {moves!r}")
    return moves


def annealed(prior: LatentPrior, start: float, stop: float, epochs: int) -> Callable[[int], None]:
    """For ``fit(on_epoch=...)``: the temperature falls geometrically from ``start`` to ``stop`` over the epochs.

    Raises
    ------
    ConfigError
        If the prior has no temperature, or one of the two is not positive.
    """
    if not isinstance(prior, SoftmaxPrior):
        raise ConfigError(f"only a SoftmaxPrior has a temperature to anneal, got {type(prior).__name__}")
    if not (start > 0 and stop > 0):
        raise ConfigError(f"temperatures must be positive, got {start} and {stop}")

    def set_temperature(epoch: int) -> None:
        done = min(1.0, epoch / max(1, epochs - 1))
        with torch.no_grad():
            prior.temperature.fill_(start * (stop / start) ** done)

    return set_temperature

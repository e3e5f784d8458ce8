"""Models of experiments whose hard or mechanism interventions are known."""

from __future__ import annotations

from contextlib import ExitStack

from torch import Tensor

from ..data.environment import Batch
from ..errors import ConfigError
from ..scm.handlers import in_force
from ..scm.latent import LatentSCM
from .cell import CellModel
from .decoders import Decoder
from .priors import LatentPrior


class IntervenedCellModel(CellModel):
    """A cell model under known interventions: each environment sets latents, or changes what their parents contribute.

    The generative story of :class:`CellModel` with :class:`~pyro_cge.scm.handlers.HardIntervention` and
    :class:`~pyro_cge.scm.handlers.MechanismIntervention` in force, profile by profile. With a decoder whose support is
    known, such environments identify the graph among the latents, which shifts of the noise do not.

    Parameters
    ----------
    hard : Tensor ``[E, d]``, optional
        ``do(C_j = value)``; NaN where there is none.
    gain : Tensor ``[E, d]``, optional
        Multiplier on what the parents of ``C_j`` contribute; NaN where the mechanism is untouched.

    Raises
    ------
    ConfigError
        If a table does not fit the environments and latents, or neither is given.
    """

    hard: Tensor | None
    gain: Tensor | None

    def __init__(
        self,
        prior: LatentPrior,
        scm: LatentSCM | None,
        decoder: Decoder,
        *,
        hard: Tensor | None = None,
        gain: Tensor | None = None,
    ) -> None:
        super().__init__(prior, scm, decoder)
        if hard is None and gain is None:
            raise ConfigError("IntervenedCellModel needs hard, gain or both; without either use CellModel")
        shape = (prior.environments.n_envs, prior.d)
        for name, table in (("hard", hard), ("gain", gain)):
            if table is not None and table.shape != shape:
                raise ConfigError(f"{name} must be {list(shape)} (environments, latents), got {list(table.shape)}")
            self.register_buffer(name, table)

    def interventions(self, batch: Batch) -> ExitStack:
        """Handlers that put the batch's interventions in force, one row a profile."""
        return in_force(self.hard, self.gain, batch.envs.index_select(0, batch.env))

    def forward(self, batch: Batch) -> Tensor:
        with self.interventions(batch):
            return super().forward(batch)

    def causes(self, z: Tensor, batch: Batch, own: Tensor | None = None) -> Tensor:
        with self.interventions(batch):
            return super().causes(z, batch, own)

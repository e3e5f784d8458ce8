"""``CellModel``: prior → noise → causes → genes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor

from ..data.environment import Batch
from ..errors import ConfigError
from ..scm.latent import LatentSCM
from ..scm.shifts import NoiseShift
from ..sites import cells_plate
from .decoders import ConditionalDecoder, Decoder
from .priors import LatentPrior

Decode = Callable[[Tensor], dist.TorchDistribution]


class ShiftGuide(Protocol):
    """A guide that knows the posterior of the environments' noise laws."""

    def draw_shift(self, batch: Batch, n_samples: int) -> NoiseShift: ...


class CellModel(PyroModule):
    """The generative model of a cell (paper, equation 1 and section 4.9)::

        env_loc, env_log_scale = prior(e)                       envs  × d   (through env_target, env_shift, … if latent)
        edge, gene_mask                                         if the graph or the decoder's support is learned
        z   ~ Normal(env_loc[e], exp(env_log_scale[e]))         cells × d
        c_1 … c_L = scm(z)                                      cells × k
        x   ~ decoder(c)                                        cells × g

    Environments act on the noise law only: ``X ⟂ e | C``. ``model(batch)`` draws where ``batch.x`` is None and
    observes it otherwise. A simulator's ground truth is a ``CellModel`` too.

    Parameters
    ----------
    prior : LatentPrior
    scm : LatentSCM or None
        None for independent causes, ``C = Z``.
    decoder : Decoder
    """

    def __init__(self, prior: LatentPrior, scm: LatentSCM | None, decoder: Decoder) -> None:
        super().__init__()
        scm = LatentSCM.identity(prior.d) if scm is None else scm
        if not prior.d == scm.d == decoder.d:
            raise ConfigError(
                f"the parts disagree on the number of latents: prior {prior.d}, scm {scm.d}, decoder {decoder.d}"
            )
        self.prior, self.scm, self.decoder = prior, scm, decoder

    @property
    def d(self) -> int:
        return self.prior.d

    @property
    def g(self) -> int:
        return self.decoder.g

    def likelihood(self, c: Tensor, batch: Batch, decode: Decode | None = None) -> dist.TorchDistribution:
        """Law of expression given causes; the batch goes unused, because X ⟂ e | C."""
        return (decode or self.decoder)(c)

    def forward(self, batch: Batch) -> Tensor:
        shift = self.prior(batch)
        scm, decode = self.scm.drawn(), self.decoder.drawn()
        with cells_plate(batch):
            c = scm(self._noise(shift, batch))
            return pyro.sample("x", self.likelihood(c, batch, decode), obs=batch.x)

    def _noise(self, shift: NoiseShift, batch: Batch) -> Tensor:
        # The mark tells intervention handlers the model's own noise from a guide's site of the same name.
        return pyro.sample("z", shift.law(batch.env), infer=cast(Any, {"exogenous": True}))

    def causes(self, z: Tensor, batch: Batch, own: Tensor | None = None) -> Tensor:
        """Causes ``c [..., n, d]`` given noise ``z [..., n, d]``; interventions in force apply.

        ``own [..., n, k]`` is the noise of their own that children have in some SCMs; zero if not given.
        """
        return self.scm(z, own)

    def mean(self, z: Tensor, batch: Batch, own: Tensor | None = None) -> Tensor:
        """Expected expression ``[..., n, g]`` given noise, as :meth:`causes`."""
        return self.likelihood(self.causes(z, batch, own), batch).mean

    @torch.no_grad()
    def predict(self, batch: Batch, n_samples: int = 100, guide: ShiftGuide | None = None) -> Tensor:
        """Expected expression ``[n, g]`` of the batch's environments, from the prior alone.

        ``E[X | e]`` by Monte Carlo over ``z``: no treated profile enters. Runs under the handlers in force, so the
        same call under ``NoiseIntervention`` or ``HardIntervention`` answers "what if". Latent effects of the
        environments are drawn from the prior too, or with a ``guide`` from its posterior.
        """
        blank = batch.unobserved()
        draws = None if guide is None or not self.prior.supports else guide.draw_shift(blank, n_samples)
        total: Tensor | float = 0.0
        for sample in range(n_samples):
            shift = self.prior(blank) if draws is None else NoiseShift(draws.loc[sample], draws.log_scale[sample])
            with cells_plate(blank):
                z = self._noise(shift, blank)
                total = total + self.mean(z, blank, self.scm.draw_own(z.shape[:-1]))
        return cast(Tensor, total) / n_samples


class ConditionalCellModel(CellModel):
    """The Conditional VAE (paper, section 4.6): the decoder sees the environment, the prior does not."""

    def __init__(self, prior: LatentPrior, scm: LatentSCM | None, decoder: ConditionalDecoder) -> None:
        super().__init__(prior, scm, decoder)

    def likelihood(self, c: Tensor, batch: Batch, decode: Decode | None = None) -> dist.TorchDistribution:
        return self.decoder(c, batch)

"""The guide's side of latent interventions: which latents an environment moves, and by how much."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor

from ..data.environment import Batch
from ..models.networks import EnvironmentNetwork, soft_clamp
from ..models.priors import LatentPrior
from ..scm.gates import StraightThroughBernoulli
from ..scm.shifts import NoiseShift
from ..sites import envs_plate, treated_only

LOG_SD_RANGE = (-7.0, 2.0)
START_LOG_SD = -2.0


class EnvironmentGuide(PyroModule):
    """Mean-field posterior of a prior's latent effects, a network on environment features or a free row a name::

        target ~ Bernoulli(σ(a_e))  or  OneHot(softmax(a_e))
        shift  ~ N(m_e, s_e²)        stretch likewise
        local  ~ LogNormal(m_e, s_e²)

    Parameters
    ----------
    prior : LatentPrior
        Whose ``supports`` say what there is to infer.
    """

    def __init__(self, prior: LatentPrior) -> None:
        super().__init__()
        self._prior = (prior,)  # in a tuple: its parameters are the model's, not the guide's
        widths = [prior.d * (1 if support in ("gate", "one-hot") else 2) for support in prior.supports.values()]
        self.widths = dict(zip(prior.supports, widths, strict=True))
        self.network = EnvironmentNetwork(prior.unit_schema, sum(widths), getattr(prior, "hidden", ()))

    @property
    def prior(self) -> LatentPrior:
        return self._prior[0]

    def laws(self, batch: Batch) -> dict[str, dist.TorchDistribution]:
        """``q`` of each effect over ``[E_b, d]`` (event dimension 1); perturbations in the place of environments if any."""
        raw = self.network(self.prior.units(batch)).split(list(self.widths.values()), -1)
        laws: dict[str, dist.TorchDistribution] = {}
        for (effect, support), values in zip(self.prior.supports.items(), raw, strict=True):
            if support == "gate":
                laws[effect] = StraightThroughBernoulli(logits=values).to_event(1)
            elif support == "one-hot":
                laws[effect] = dist.OneHotCategoricalStraightThrough(logits=values)
            else:
                loc, spread = values.chunk(2, -1)
                family = dist.Normal if support == "real" else dist.LogNormal
                laws[effect] = family(loc, soft_clamp(spread + START_LOG_SD, *LOG_SD_RANGE).exp()).to_event(1)
        return laws

    def forward(self, batch: Batch) -> NoiseShift:
        """Sample the sites, and return the noise law they give."""
        units = self.prior.units(batch)
        with envs_plate(units), treated_only(units):
            drawn = {effect: pyro.sample(f"{units.unit}_{effect}", law) for effect, law in self.laws(batch).items()}
        return self.prior.shift(batch, drawn)

    def means(self, batch: Batch) -> dict[str, Tensor]:
        """Posterior means of the effects; of a target, its probability."""
        return {effect: law.mean for effect, law in self.laws(batch).items()}

    def start_at(self, shift: NoiseShift, batch: Batch) -> None:
        """Start the effects where the posterior-mean noise law is about ``shift [E_b, d]``, sure to a tenth of an sd."""
        prior = self.prior
        starts = prior.starting_effects(prior.unit_shift(shift, batch))
        rows = []
        for effect, support in prior.supports.items():
            start = starts[effect].log() if support == "positive" else starts[effect]
            rows += [start] if support in ("gate", "one-hot") else [start, torch.zeros_like(start)]
        self.network.start_at(torch.cat(rows, -1), prior.units(batch))

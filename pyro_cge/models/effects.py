"""Sparse priors with latent effects: which latents an environment moves, and by how much, are sample sites.

====================== ============================================ =======================================
prior                  generative story of one environment          what makes it sparse
====================== ============================================ =======================================
:class:`LaplacePrior`   ``shift_j ~ Laplace(0, b)``                  heavy tails (the Bayesian L1)
:class:`HorseshoePrior` ``local_j ~ C⁺(1), shift_j ~ N(0, (τ local_j)²)`` heavier tails, a spike at zero
:class:`SpikeSlabPrior` ``target_j ~ Bernoulli(π), shift_j ~ N(0, τ²)``   exact zeros
:class:`CategoricalPrior` ``target ~ OneHot(1/d), shift_j ~ N(0, τ²)``    exactly one target
====================== ============================================ =======================================

``Z_j | e ~ N(target_j · shift_j, exp(target_j · stretch_j)²)``. ``b``, ``τ`` and ``π`` are learned (empirical Bayes). The
guide's side of the sites is :class:`~pyro_cge.guides.environment.EnvironmentGuide`, a network on environment features or
a free row an environment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..data.environment import Batch, EnvironmentData
from ..errors import ConfigError, check_positive
from ..scm.shifts import NoiseShift
from ..sites import treated_only
from .networks import soft_clamp
from .priors import LOG_SCALE_BOUND, NONE, LatentPrior, Moves, Support, checked_moves


class EffectPrior(LatentPrior):
    """A prior whose effects are latent; subclasses give the ``law`` of each.

    Parameters
    ----------
    moves : {"loc", "scale", "both"}
        What an intervention changes: the mean of the noise (``shift``), its log sd (``stretch``), or both.
    spread : float
        Initial scale of ``shift``, in reference standard deviations; ``stretch`` starts at a third of it. Learned.
    hidden : sequence of int
        Hidden layers of the guide's environment network, where environments have features.
    """

    own: Mapping[str, Support] = {}  # effects drawn before the sizes

    def __init__(
        self,
        data: EnvironmentData,
        d: int,
        *,
        moves: Moves = "loc",
        spread: float = 1.0,
        hidden: Sequence[int] = (64,),
    ) -> None:
        super().__init__(data, d)
        check_positive(spread=spread)
        self.moves, self.hidden = checked_moves(moves), tuple(hidden)
        sizes = {"loc": ["shift"], "scale": ["stretch"], "both": ["shift", "stretch"]}[moves]
        self.supports = {**self.own, **dict.fromkeys(sizes, "real")}
        start = {"shift": math.log(spread), "stretch": math.log(spread / 3)}
        self.log_spread = nn.ParameterDict({size: nn.Parameter(torch.tensor(start[size])) for size in sizes})

    def law(self, effect: str, drawn: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """Prior law of an effect over ``[d]`` (event dimension 1), given the effects drawn before it."""
        raise NotImplementedError

    def effects(self, batch: Batch) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        with treated_only(batch):
            for effect in self.supports:
                values[effect] = pyro.sample(f"{batch.unit}_{effect}", self.law(effect, values))
        return values

    def shift(self, batch: Batch, effects: Mapping[str, Tensor] = NONE) -> NoiseShift:
        if missing := self.supports.keys() - effects.keys():
            raise ValueError(
                f"{type(self).__name__} needs the latent effects {sorted(missing)}: take them from a guide "
                "(guide.shift(batch) is the posterior mean), or draw them with prior.effects(batch)"
            )
        on = effects.get("target", 1.0) * ~batch.is_control.unsqueeze(-1)
        some = effects[next(iter(self.log_spread))]
        zeros = some.new_zeros(()).expand(some.shape)
        loc = effects["shift"] * on if "shift" in effects else zeros
        log_scale = zeros
        if "stretch" in effects:
            log_scale = soft_clamp(effects["stretch"], -LOG_SCALE_BOUND, LOG_SCALE_BOUND) * on
        return NoiseShift(loc, log_scale)

    def starting_effects(self, shift: NoiseShift) -> dict[str, Tensor]:
        sizes = {"shift": shift.loc, "stretch": shift.log_scale}
        return {size: sizes[size] for size in self.log_spread}

    def _spread(self, size: str) -> Tensor:
        return soft_clamp(self.log_spread[size], -7.0, 5.0).exp().expand(self.d)


class LaplacePrior(EffectPrior):
    """``shift_j ~ Laplace(0, b)``: the Bayesian form of an L1 penalty on the shifts, with ``b`` learned."""

    def law(self, effect: str, drawn: Mapping[str, Tensor]) -> dist.TorchDistribution:
        scale = self._spread(effect)
        return dist.Laplace(torch.zeros_like(scale), scale).to_event(1)


class HorseshoePrior(EffectPrior):
    """``local_j ~ HalfCauchy(1)``, ``shift_j ~ N(0, (τ · local_j)²)`` (Carvalho et al. 2010), ``τ`` learned."""

    own: Mapping[str, Support] = {"local": "positive"}

    def law(self, effect: str, drawn: Mapping[str, Tensor]) -> dist.TorchDistribution:
        if effect == "local":
            return dist.HalfCauchy(torch.ones_like(self._spread(next(iter(self.log_spread))))).to_event(1)
        scale = self._spread(effect) * drawn["local"]
        return dist.Normal(torch.zeros_like(scale), scale).to_event(1)

    def starting_effects(self, shift: NoiseShift) -> dict[str, Tensor]:
        sizes = super().starting_effects(shift)
        return {"local": torch.stack(list(sizes.values())).abs().amax(0).clamp_min(0.05), **sizes}


class SpikeSlabPrior(EffectPrior):
    """``target_j ~ Bernoulli(π)``, ``shift_j ~ N(0, τ²)``, moved by ``target_j · shift_j``.

    The sparsity level ``π`` is learned. The guide draws exact zeros and ones with straight-through gradients;
    :class:`~pyro_cge.objectives.elbo.Elbo` sums over the targets instead wherever that is exact.

    Parameters
    ----------
    probability : float
        Initial ``π``; default ``1/d``.
    """

    own: Mapping[str, Support] = {"target": "gate"}

    def __init__(
        self,
        data: EnvironmentData,
        d: int,
        *,
        probability: float | None = None,
        moves: Moves = "loc",
        spread: float = 1.0,
        hidden: Sequence[int] = (64,),
    ) -> None:
        super().__init__(data, d, moves=moves, spread=spread, hidden=hidden)
        probability = 1 / max(d, 2) if probability is None else probability
        if not 0 < probability < 1:
            raise ConfigError(f"probability must lie strictly between 0 and 1, got {probability}")
        self.logit = nn.Parameter(torch.tensor(math.log(probability / (1 - probability))))

    @property
    def probability(self) -> Tensor:
        """``π``, the share of latents an environment intervenes on."""
        return self.logit.sigmoid()

    def law(self, effect: str, drawn: Mapping[str, Tensor]) -> dist.TorchDistribution:
        if effect == "target":
            return dist.Bernoulli(logits=self.logit.expand(self.d)).to_event(1)
        scale = self._spread(effect)
        return dist.Normal(torch.zeros_like(scale), scale).to_event(1)

    def starting_effects(self, shift: NoiseShift) -> dict[str, Tensor]:
        # Half a reference sd, or a noise e^0.25 times wider, is where a target starts more likely than not.
        strength = torch.maximum(shift.loc.abs(), 2 * shift.log_scale.abs())
        return {"target": (6 * (strength - 0.5)).clamp(-3, 3), **super().starting_effects(shift)}


class CategoricalPrior(EffectPrior):
    """Exactly one target an environment: ``target ~ OneHot(1/d)``, ``shift_j ~ N(0, τ²)``.

    An environment's likelihood is a sum over ``d`` cases, ``Σ_k (1/d) p(x_e | target = k)``; the ELBO takes the
    expectation over the cases exactly, with no relaxation.
    """

    own: Mapping[str, Support] = {"target": "one-hot"}

    def law(self, effect: str, drawn: Mapping[str, Tensor]) -> dist.TorchDistribution:
        scale = self._spread(next(iter(self.log_spread)) if effect == "target" else effect)
        if effect == "target":
            return dist.OneHotCategorical(logits=torch.zeros_like(scale))
        return dist.Normal(torch.zeros_like(scale), scale).to_event(1)

    def starting_effects(self, shift: NoiseShift) -> dict[str, Tensor]:
        return {"target": 4 * shift.strength().clamp_max(2.0), **super().starting_effects(shift)}

"""Amortised guides: an encoder network gives the posterior of each profile's noise."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ..data.environment import Batch
from ..errors import ConfigError, check_sizes
from ..models.cell import CellModel
from ..models.networks import soft_clamp
from ..models.priors import LatentPrior
from ..scm.normal import DiagonalNormal
from ..scm.shifts import NoiseShift
from ..sites import cells_plate
from .conditioning import Concat, Conditioning, FiLM, OnShift
from .environment import EnvironmentGuide

LOG_SCALE_RANGE = (-7.0, 3.0)


class AmortizedGuide(PyroModule):
    """Mean-field encoder: ``q(z | x, e) = Normal(μ(x, e), diag(σ(x, e)²))``.

    ``h = relu(W x + b)`` through the hidden layers, then one linear layer to ``(μ, log σ)`` with ``log σ`` smoothly
    bounded. What else the model has latent is inferred alongside: the environments' effects by an
    :class:`~pyro_cge.guides.environment.EnvironmentGuide`, edges and gene masks by the parts that own them.

    Parameters
    ----------
    model : CellModel
        Read for its shapes, and for which of its parts have latent sites.
    conditioning : {"concat", "film", "shift"} or None
        How the encoder sees the environment: joined to the first layer, scaling and shifting every hidden layer, through
        the noise law that was drawn for it (so that ``z`` and the environment's effects are correlated in the
        posterior), or not at all.
    hidden : sequence of int
        Hidden layers; none gives a linear encoder.
    """

    def __init__(
        self,
        model: CellModel,
        conditioning: Conditioning = None,
        *,
        hidden: Sequence[int] = (64,),
    ) -> None:
        super().__init__()
        if conditioning not in ("concat", "film", "shift", None):
            raise ConfigError(f"conditioning must be 'concat', 'film', 'shift' or None, got {conditioning!r}")
        if conditioning is not None and not hidden:
            raise ConfigError(f"conditioning={conditioning!r} needs at least one hidden layer, got hidden=()")
        data = model.prior.environments
        for size in hidden:
            check_sizes(hidden=size)
        sizes = [model.g, *hidden]
        self._model = (model,)  # in a tuple: its parameters are the model's, not the guide's
        self.d, self.conditioning = model.d, conditioning
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.head = nn.Linear(sizes[-1], self._head_width())
        self.residuals = nn.Linear(sizes[-1], 2 * model.d) if model.scm.own_noise else None
        self.environment = EnvironmentGuide(model.prior) if model.prior.supports else None
        self.conditions = nn.ModuleList()
        if conditioning == "concat":
            self.conditions.append(Concat(data, hidden[0]))
        elif conditioning == "shift":
            self.conditions.append(OnShift(model.d, hidden[0]))
        elif conditioning == "film":
            self.conditions.extend(FiLM(data, width) for width in hidden)

    @property
    def model(self) -> CellModel:
        return self._model[0]

    @property
    def blind_to_targets(self) -> bool:
        """Whether ``q(z | x, e)`` ignores which targets were drawn: the ELBO may then sum over them exactly."""
        return self.conditioning != "shift"

    # The profiles' noise

    def _head_width(self) -> int:
        return 2 * self.d

    def hidden_layer(self, batch: Batch, shift: NoiseShift | None = None) -> Tensor:
        """Last hidden layer ``[n, h]``, under the noise law ``shift`` (default: its posterior mean)."""
        if batch.x is None:
            raise ValueError("the guide encodes observed profiles, but batch.x is None; use the model's prior instead")
        if shift is None and self.conditioning == "shift":
            shift = self.shift(batch)
        h = self.model.decoder.likelihood.encoder_input(batch.x)
        for layer, condition in itertools.zip_longest(self.layers, self.conditions):
            h = layer(h)
            if condition is not None:
                h = condition(h, batch, shift)
            h = torch.relu(h)
        return h

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean and log marginal standard deviation ``[n, d]`` of ``q(z | x, e)``."""
        return self._normal(self.head(self.hidden_layer(batch)))

    def posterior(self, batch: Batch, shift: NoiseShift | None = None) -> dist.TorchDistribution:
        """``q(z | x, e)`` over ``[n, d]`` (event dimension 1)."""
        return self._law(self.hidden_layer(batch, shift))

    def _normal(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        loc, spread = raw[..., : self.d], raw[..., self.d : 2 * self.d]
        return loc, soft_clamp(spread, *LOG_SCALE_RANGE)

    def _law(self, h: Tensor) -> dist.TorchDistribution:
        loc, log_scale = self._normal(self.head(h))
        return DiagonalNormal(loc, log_scale.exp())

    def own_noise(self, batch: Batch, shift: NoiseShift | None = None) -> dist.TorchDistribution | None:
        """``q(own | x, e)`` of the noise that children have of their own, over ``[n, k]``; None where they have none."""
        if self.residuals is None:
            return None
        loc, log_scale = (v[..., self.model.scm.nonroots] for v in self._residual(self.hidden_layer(batch, shift)))
        return DiagonalNormal(loc, log_scale.exp())

    def _residual(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """``δ(x)`` and its log standard deviation ``[n, d]``; what roots have goes unused."""
        loc, spread = cast(nn.Linear, self.residuals)(h).chunk(2, -1)
        return loc, soft_clamp(spread, *LOG_SCALE_RANGE)

    def draw_shared(self, batch: Batch) -> NoiseShift | None:
        """Sample what profiles share (environments' effects, edges, gene masks); the noise law, if that is latent."""
        # By forward, as the objective calls this guide: a call would report the weights to Pyro's parameter store.
        shift = None if self.environment is None else self.environment.forward(batch)
        self.model.scm.draw_posterior()
        self.model.decoder.draw_posterior()
        return shift

    def forward(self, batch: Batch) -> Tensor:
        shift = self.draw_shared(batch)
        with cells_plate(batch):
            h = self.hidden_layer(batch, shift)
            z = pyro.sample("z", self._law(h))
            if self.residuals is not None:
                sample_children(self.model, z, *self._residual(h))
            return z

    # The environments' effects

    def shift(self, batch: Batch) -> NoiseShift:
        """Posterior-mean noise law ``NoiseShift [E_b, d]`` of the batch's environments."""
        prior = self.model.prior
        return prior.shift(batch, {} if self.environment is None else self.environment.means(batch))

    def draw_shift(self, batch: Batch, n_samples: int) -> NoiseShift:
        """Posterior draws ``NoiseShift [S, E_b, d]``; copies where the prior's effects are not latent."""
        shift = self.model.prior.shift(batch, self.draw_effects(batch, n_samples))
        shape = (n_samples, len(batch.envs), self.d)
        return NoiseShift(shift.loc.expand(shape), shift.log_scale.expand(shape))

    def draw_effects(self, batch: Batch, n_samples: int) -> dict[str, Tensor]:
        """Posterior draws ``[S, E_b, d]`` of the prior's latent effects, of perturbations if they have them; none if none."""
        if self.environment is None:
            return {}
        return {effect: law.sample(torch.Size([n_samples])) for effect, law in self.environment.laws(batch).items()}

    def target_probability(self, batch: Batch) -> Tensor | None:
        """``q(env_target = 1)`` ``[E_b, d]``, 0 in controls; None where the prior has no such site.

        Where environments are made of perturbations, the probability that at least one of them has the target.
        """
        if self.environment is None or "target" not in self.environment.widths:
            return None
        each = self.environment.means(batch)["target"]
        prior = self.model.prior
        if prior.units(batch) is not batch:
            present = (prior.response(batch) > 0).to(each.dtype)  # type: ignore[operator]
            return 1 - (present @ torch.log1p(-each.clamp_max(1 - 1e-6))).exp()
        return each * ~batch.is_control.unsqueeze(-1)

    def start_at(self, shift: NoiseShift, batch: Batch) -> None:
        """Start model prior and guide at the noise law ``shift [E_b, d]`` of the batch's environments."""
        self.model.prior.start_at(shift, batch)
        if self.environment is not None:
            self.environment.start_at(shift, batch)

    def swap_prior(self, prior: LatentPrior) -> None:
        """Give the model another prior, and this guide what it takes to infer its effects."""
        self.model.prior = prior
        self.environment = EnvironmentGuide(prior) if prior.supports else None


def sample_children(model: CellModel, z: Tensor, loc: Tensor, log_scale: Tensor) -> None:
    """The guide's sites ``c_l`` of children with noise of their own, each moved off its equation by ``N(loc, scale²)``."""
    with poutine.block(hide_fn=_is_deterministic), _Residuals(loc, log_scale):
        model.scm.drawn()(z)


class _Residuals(Messenger):
    """Turns the SCM's own program into the guide of its own noise: each cause is moved off its equation by ``δ(x)``."""

    def __init__(self, loc: Tensor, log_scale: Tensor) -> None:
        super().__init__()
        self.loc, self.log_scale = loc, log_scale

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        inputs = msg["infer"].get("layer")
        if inputs is None or msg["infer"].get("_deterministic"):
            return
        equation = msg["fn"].base_dist.loc
        law = dist.Normal(equation + self.loc[..., inputs.nodes], self.log_scale[..., inputs.nodes].exp())
        msg["fn"] = law.to_event(1)


def _is_deterministic(msg: Any) -> bool:
    return msg["type"] == "sample" and bool(msg["infer"].get("_deterministic"))

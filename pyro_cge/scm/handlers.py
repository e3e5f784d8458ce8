"""Interventions as Pyro effect handlers: the same on a simulator's truth and on a fitted model.

Each is a context manager around any call of a model (``model(batch)``, ``model.predict``, ``Predictive``,
``posterior.predict``), composes with the others and with Pyro's own handlers, and leaves guides alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from numbers import Integral
from typing import Any, cast

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..errors import ConfigError
from .latent import LayerInputs


class _Intervention(Messenger):
    """Which latents are touched, and how new values are written into a block of columns."""

    def __init__(self, latent: int | Sequence[int] | None) -> None:
        super().__init__()
        self.latents = None if latent is None else [int(latent)] if isinstance(latent, int | Integral) else list(latent)

    def _overwrite(self, values: Tensor, nodes: Sequence[int], new: Tensor | float, d: int) -> Tensor:
        """``values [..., k]`` of ``nodes``, with the touched columns replaced.

        For one latent ``new`` is a number or ``[..., n]``; for several a number or ``[..., n or 1, len(latents)]``;
        with ``latents=None`` it is ``[..., d]`` and NaN means untouched.
        """
        new = torch.as_tensor(new, dtype=values.dtype, device=values.device)
        if self.latents is None:
            if not new.dim() or new.shape[-1] != d:
                raise ConfigError(
                    f"{type(self).__name__} without latent= needs one value a latent [..., {d}], NaN for untouched, "
                    f"got shape {list(new.shape)}"
                )
            block = new[..., list(nodes)]
            return torch.where(block.isnan(), values, block)
        wanted = [k for k, node in enumerate(nodes) if node in self.latents]
        if not wanted:
            return values
        if new.dim() and len(self.latents) == 1:
            new = new.unsqueeze(-1)
        elif new.dim():
            if new.shape[-1] != len(self.latents):
                raise ConfigError(
                    f"{type(self).__name__} on latents {self.latents} needs a number or one value a latent in the "
                    f"last dimension, got shape {list(new.shape)}"
                )
            new = new[..., [self.latents.index(nodes[k]) for k in wanted]]
        shape = torch.broadcast_shapes(values[..., wanted].shape, new.shape)
        result = values.expand(shape[:-1] + values.shape[-1:]).clone()
        result[..., wanted] = new.expand(shape)
        return result

    def _layer(self, msg: dict[str, Any]) -> LayerInputs | None:
        """What the site's layer was computed from; None where no latent of it is touched."""
        inputs: LayerInputs | None = msg["infer"].get("layer")
        if inputs is None:
            return None
        self._check(inputs.d)
        if self.latents is not None and not set(self.latents) & set(inputs.nodes):
            return None
        if msg["value"] is None:
            raise ConfigError(
                f"{type(self).__name__} on latents {inputs.nodes}, which are drawn with noise of their own and have no "
                "value yet: ask model.predict, model.mean or model.causes(z, batch, own), which are given that noise"
            )
        return inputs

    def _check(self, d: int) -> None:
        if self.latents is not None and not all(0 <= j < d for j in self.latents):
            raise ConfigError(f"{type(self).__name__} on latents {self.latents}, but the model has latents 0 … {d - 1}")


class NoiseIntervention(_Intervention):
    """Replace the law of one or a few ``z_j``; mechanisms stay as they are (paper, Definition 2).

    Noise that is replayed or conditioned on (by a handler nearer to the model) is moved to the new law with its
    quantile kept, ``z' = loc' + scale' (z − loc) / scale``: the counterfactual of the same cell.

    Parameters
    ----------
    latent : int, sequence of int or None
        Intervened latents; None reads ``loc`` and ``scale`` as ``[..., d]`` with NaN for "untouched".
    loc, scale : float or Tensor, optional
        New mean and standard deviation; what is not given keeps its value.
    """

    def __init__(
        self,
        latent: int | Sequence[int] | None = None,
        *,
        loc: float | Tensor | None = None,
        scale: float | Tensor | None = None,
    ) -> None:
        super().__init__(latent)
        if loc is None and scale is None:
            raise ConfigError("NoiseIntervention needs loc, scale or both")
        if scale is not None and not bool((torch.as_tensor(scale).nan_to_num(1.0) > 0).all()):
            raise ConfigError(f"NoiseIntervention needs a positive scale, got {scale}")
        self.loc, self.scale = loc, scale

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if not msg["infer"].get("exogenous"):
            return
        law = msg["fn"].base_dist
        d = law.loc.shape[-1]
        self._check(d)
        loc = law.loc if self.loc is None else self._overwrite(law.loc, range(d), self.loc, d)
        scale = law.scale if self.scale is None else self._overwrite(law.scale, range(d), self.scale, d)
        msg["fn"] = dist.Normal(loc, scale).to_event(1)
        if msg["value"] is not None:
            msg["value"] = loc + scale * (msg["value"] - law.loc) / law.scale


class HardIntervention(_Intervention):
    """``do(C_j = v)``: the latent is set, its parents no longer matter (Pearl).

    Parameters
    ----------
    latent : int, sequence of int or None
        None reads ``value`` as ``[..., d]`` with NaN for "untouched".
    value : float or Tensor
        A number, or one value a profile ``[..., n]``.
    """

    def __init__(self, latent: int | Sequence[int] | None = None, *, value: float | Tensor) -> None:
        super().__init__(latent)
        self.value = value

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if (inputs := self._layer(msg)) is not None:
            _rewrite(msg, self._overwrite(msg["value"], inputs.nodes, self.value, inputs.d))


class MechanismIntervention(_Intervention):
    """Change the structural equation of one or a few latents, noise untouched (a soft intervention).

    Parameters
    ----------
    latent : int, sequence of int or None
        None reads ``gain`` as ``[..., d]`` with NaN for "untouched".
    gain : float or Tensor, optional
        Multiplies what the parents contribute, ``C_j = gain · f_j(PA_j) + Z_j``; 0 cuts the parents.
    function : callable, optional
        ``(parents [..., n, p], noise [..., n]) → values [..., n]``, the new equation, for a single latent.
        ``parents`` are all latents of earlier layers, in topological order.
    """

    def __init__(
        self,
        latent: int | Sequence[int] | None = None,
        *,
        gain: float | Tensor | None = None,
        function: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(latent)
        if (gain is None) == (function is None):
            raise ConfigError("MechanismIntervention needs exactly one of gain and function")
        if function is not None and not isinstance(latent, int | Integral):
            raise ConfigError("MechanismIntervention(function=...) changes a single latent: give its number")
        self.gain, self.function = gain, function

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if (inputs := self._layer(msg)) is None:
            return
        if self.function is not None:
            assert self.latents is not None
            new = self.function(inputs.parents, inputs.noise[..., inputs.nodes.index(self.latents[0])])
            _rewrite(msg, self._overwrite(msg["value"], inputs.nodes, new, inputs.d))
        elif inputs.mechanism is not None:
            none = torch.full_like(msg["value"], torch.nan)
            gain = self._overwrite(none, inputs.nodes, cast(Any, self.gain), inputs.d)
            untouched = gain.isnan()
            effect = torch.where(untouched, 1.0, gain) * inputs.mechanism.effect(inputs.parents)
            new = inputs.mechanism.combine(effect, inputs.noise)
            if inputs.own is not None:
                new = new + inputs.own
            # Only the touched columns: another handler may have set the others.
            _rewrite(msg, torch.where(untouched, msg["value"], new))


def in_force(hard: Tensor | None, gain: Tensor | None, env: Tensor) -> ExitStack:
    """Hard and mechanism interventions of tables ``[E, d]`` (NaN: untouched) on profiles in environments ``env [n]``."""
    stack = ExitStack()
    if hard is not None:
        stack.enter_context(HardIntervention(value=hard.index_select(0, env)))
    if gain is not None:
        stack.enter_context(MechanismIntervention(gain=gain.index_select(0, env)))
    return stack


def _rewrite(msg: dict[str, Any], value: Tensor) -> None:
    msg["value"] = value
    msg["fn"] = dist.Delta(value, event_dim=1).mask(False)

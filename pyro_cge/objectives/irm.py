"""Invariant risk minimisation: one decoder that is right in every environment at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..data.environment import Batch
from ..errors import ConfigError
from .elbo import Elbo
from .handlers import ScaledMean


class Irm(nn.Module):
    """An objective plus the IRMv1 penalty on the decoder (Arjovsky et al. 2019; paper, section 4.7).

    ::

        R_e(w)  = mean over the profiles of e of  −E_q log p(x | w · mean(c))      risk under a dummy scale w
        penalty = Σ_e (n_e / n) · (dR_e/dw at w = 1)²

    A decoder that is the best one in every environment at once has no such gradient anywhere. All environments share
    one call of autograd: each profile has a dummy scale of its own, and their gradients are averaged by environment.

    The square of a mean over ``n_e`` profiles exceeds the squared mean gradient by the gradients' variance over ``n_e``:
    in small minibatches that punishes every spread, and the model shrinks. Use batches with a hundred profiles or more an
    environment.

    An encoder that sees the very genes the decoder explains can bring the gradient to zero without being invariant: it
    projects each profile onto the decoder's range, and a projection is orthogonal to its residual. The penalty says
    most where the code comes from other genes than those explained (prediction, imputation).

    Parameters
    ----------
    base : objective
        What is penalised; default :class:`~pyro_cge.objectives.elbo.Elbo`. It must return ``"log_likelihood"``.
    weight : float
        Weight of the penalty; multiplied by ``warmup``, so that a predictor exists before it has to be invariant.
    """

    def __init__(self, base: Callable[..., dict[str, Tensor]] | None = None, weight: float = 1.0) -> None:
        super().__init__()
        if not weight >= 0:
            raise ConfigError(f"the weight of the IRM penalty must not be negative, got {weight}")
        self.base: Any = Elbo() if base is None else base
        self.weight = weight

    def __repr__(self) -> str:
        return f"Irm(base={self.base!r}, weight={self.weight})"

    def forward(self, model: Any, guide: Any, batch: Batch, *, warmup: float = 1.0) -> dict[str, Tensor]:
        """The terms of ``base``, and ``irm``: the penalty before its weight, in nats² per profile."""
        training = torch.is_grad_enabled()
        scale = next(model.parameters()).new_ones(len(batch), requires_grad=True)
        with torch.enable_grad(), ScaledMean(model.decoder, scale):
            terms = self.base(model, guide, batch, warmup=warmup)
            # "log_likelihood" is a mean over the batch; times n, this is d log p(x_i) / dw_i of each profile.
            [gradient] = torch.autograd.grad(terms["log_likelihood"], scale, create_graph=training)
        if not training:
            terms = {name: value.detach() for name, value in terms.items()}
        penalty = squared_means(gradient * len(batch), batch)
        return {**terms, "loss": terms["loss"] + self.weight * warmup * penalty, "irm": penalty}


def squared_means(values: Tensor, batch: Batch) -> Tensor:
    """``Σ_e (n_e / n) · (mean of values [n] over the profiles of e)²``."""
    empty = values.new_zeros(len(batch.envs))
    total = empty.index_add(0, batch.env, values)
    count = empty.index_add(0, batch.env, torch.ones_like(values))
    return (total**2 / count.clamp_min(1)).sum() / len(values)

"""The importance-weighted bound as something to train on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.environment import Batch
from ..errors import ConfigError
from .elbo import traces
from .handlers import Repeated, in_cells, is_latent, is_random


@dataclass(frozen=True)
class Iwae:
    """Negative importance-weighted bound per profile (Burda et al. 2016).

    ``log P(x | e) ≥ E log (1/S) Σ_s p(x | c_s) p(z_s | e) / q(z_s | x, e)``, tighter the larger ``S`` and equal to
    :class:`~pyro_cge.objectives.elbo.Elbo` in expectation at ``S = 1``.

    The encoder runs once; its ``S`` draws travel through model and decoder in a leading dimension, so memory grows with
    ``S · n · g``. Latent sites outside the cells plate (targets and shifts of environments) are not integrated: one
    draw is shared by all samples, and ``log q − log p`` of it is charged as in the ELBO.

    Parameters
    ----------
    n_samples : int
        ``S``.
    """

    n_samples: int = 10

    def __post_init__(self) -> None:
        if self.n_samples < 1:
            raise ConfigError(
                f"the importance-weighted bound needs at least one sample, got n_samples={self.n_samples}"
            )

    def __call__(self, model: Any, guide: Any, batch: Batch, *, warmup: float = 1.0) -> dict[str, Tensor]:
        """Terms per profile: ``loss``; ``log_likelihood``, the bound; ``kl``, that of sites shared by profiles.

        ``warmup`` in [0, 1] multiplies every ``log p − log q``.
        """
        with Repeated(self.n_samples):
            guide_trace, model_trace = traces(model, guide, batch)
        log_weight, kl = batch.index.new_zeros(2, dtype=torch.get_default_dtype())
        for trace, sign in ((model_trace, 1.0), (guide_trace, -1.0)):
            nodes: dict[str, Any] = trace.nodes
            for site in nodes.values():
                if is_random(site) and site["is_observed"]:
                    log_weight = log_weight + site["fn"].log_prob(site["value"])
                elif is_latent(site):
                    density = sign * warmup * site["fn"].log_prob(site["value"])
                    if in_cells(site):
                        log_weight = log_weight + density
                    else:
                        kl = kl - (density * site["scale"]).sum() / batch.n_total
        bound = (log_weight.logsumexp(0) - math.log(self.n_samples)).mean()
        return {"loss": kl - bound, "log_likelihood": bound, "kl": kl}

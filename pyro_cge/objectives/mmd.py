"""Maximum mean discrepancy: what the model predicts for an environment should look like its profiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from ..data.environment import Batch
from ..errors import ConfigError
from .elbo import Elbo, _entry
from .handlers import Drawn


class Mmd(nn.Module):
    """An objective plus the MMD² between profiles and prior-predictive draws (discrepancy-VAE, Zhang et al. 2023).

    The ELBO asks the model to explain profiles it has seen; this asks that draws *from the prior alone* look like the
    profiles of the same environment, which is what predictions for unseen environments rest on::

        y_i ~ model(environment of i)                                     one draw a profile
        MMD²_e = E k(x, x') + E k(y, y') − 2 E k(x, y)                    unbiased U-statistic within e
        k(a, b) = mean over h of exp(−|a − b|² / (2 g h²))                Gaussian kernels
        mmd    = Σ_e (n_e / n) MMD²_e

    Environments with fewer than two profiles in the batch contribute nothing. Latent sites shared by profiles (targets,
    shifts) keep the values that ``base`` drew from the guide. Gradients need a likelihood that can be
    reparametrised, as the Gaussian and Student-t can; one of counts raises :class:`ConfigError`.

    Parameters
    ----------
    base : objective
        Default :class:`~pyro_cge.objectives.elbo.Elbo`.
    weight : float
        Weight of the MMD² (between −1 and 2 whatever the data); multiplied by ``warmup``.
    bandwidths : sequence of float
        ``h``, as root-mean-square differences a gene, in the units the model sees (standard deviations of a gene, when
        ``fit`` standardises): two unrelated profiles are about 1.4 apart.
    """

    def __init__(
        self,
        base: Callable[..., dict[str, Tensor]] | None = None,
        weight: float = 1.0,
        *,
        bandwidths: Sequence[float] = (0.25, 0.5, 1.0, 2.0),
    ) -> None:
        super().__init__()
        if not weight >= 0:
            raise ConfigError(f"the weight of the MMD must not be negative, got {weight}")
        if not bandwidths or not all(h > 0 for h in bandwidths):
            raise ConfigError(f"bandwidths must be positive numbers, at least one, got {bandwidths}")
        self.base: Any = Elbo() if base is None else base
        self.weight, self.bandwidths = weight, tuple(bandwidths)

    def __repr__(self) -> str:
        return f"Mmd(base={self.base!r}, weight={self.weight}, bandwidths={self.bandwidths})"

    def forward(self, model: Any, guide: Any, batch: Batch, *, warmup: float = 1.0) -> dict[str, Tensor]:
        """The terms of ``base``, and ``mmd``: the unweighted MMD² within environments."""
        if model.decoder.likelihood.counts:
            raise ConfigError(
                f"the MMD needs draws that can be differentiated, which counts are not, got "
                f"{type(model.decoder.likelihood).__name__}; model log1p counts with a Gaussian likelihood instead"
            )
        with Drawn() as drawn:
            terms = self.base(model, guide, batch, warmup=warmup)
        assert batch.x is not None
        y = poutine.condition(_entry(model), data=drawn.shared)(batch.unobserved())
        discrepancy = mmd(batch.x, y, batch.env, self.bandwidths)
        return {**terms, "loss": terms["loss"] + self.weight * warmup * discrepancy, "mmd": discrepancy}


def mmd(x: Tensor, y: Tensor, env: Tensor, bandwidths: Sequence[float]) -> Tensor:
    """Unbiased MMD² between the rows of ``x`` and ``y`` ``[n, g]`` within environments ``env [n]``, profile-weighted.

    ``x[i]`` and ``y[i]`` are both of environment ``env[i]``. One ``[2n, 2n]`` kernel matrix, with a block mask.
    """
    n, same = len(x), env.unsqueeze(-1) == env
    both = torch.cat([x, y])
    square = both.square().sum(-1)
    distance = (square.unsqueeze(-1) + square - 2 * both @ both.mT).clamp_min(0) / x.shape[-1]
    kernel = torch.stack([torch.exp(distance / (-2 * h**2)) for h in bandwidths]).mean(0)
    count = same.sum(-1)  # profiles of each row's environment
    pairs = same & ~torch.eye(n, dtype=torch.bool, device=x.device) & (count > 1)
    within = pairs / (n * (count - 1).clamp_min(1)).unsqueeze(-1)
    across = (same & (count > 1)) / (n * count).unsqueeze(-1)
    return (within * (kernel[:n, :n] + kernel[n:, n:])).sum() - 2 * (across * kernel[:n, n:]).sum()

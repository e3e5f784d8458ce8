"""``NoiseShift``: the law of the exogenous noise in each environment, as a value."""

from __future__ import annotations

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from ..errors import DataError
from .normal import DiagonalNormal


@dataclass(frozen=True, eq=False)
class NoiseShift:
    """Law of the exogenous noise per environment: ``Z_j | e ~ Normal(loc[e, j], exp(log_scale[e, j])²)``.

    The noise intervention of the paper (Definition 2) as a value: the truth of the simulator and the
    posterior of a model are both ``NoiseShift`` objects, so every metric compares like with like.

    Parameters
    ----------
    loc, log_scale : Tensor ``[..., E, d]``
        Mean and log standard deviation. The reference law is ``loc = 0, log_scale = 0``.
    """

    loc: Tensor
    log_scale: Tensor

    def __post_init__(self) -> None:
        if self.loc.shape != self.log_scale.shape or self.loc.dim() < 2:
            raise DataError(
                "NoiseShift needs loc and log_scale of one shape [..., E, d], "
                f"got {tuple(self.loc.shape)} and {tuple(self.log_scale.shape)}"
            )

    @staticmethod
    def standard(n_envs: int, d: int) -> NoiseShift:
        """No intervention anywhere: ``E`` environments under N(0, I)."""
        return NoiseShift(torch.zeros(n_envs, d), torch.zeros(n_envs, d))

    @property
    def n_envs(self) -> int:
        return self.loc.shape[-2]

    @property
    def d(self) -> int:
        return self.loc.shape[-1]

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp()

    def select(self, env: Tensor) -> NoiseShift:
        """Rows of environments ``env [n]``: a ``NoiseShift`` of shape ``[..., n, d]``.

        ``index_select`` on dimension −2 and not ``loc[env]``: leading sample dimensions stay in place
        under ``Predictive(parallel=True)``.
        """
        return NoiseShift(self.loc.index_select(-2, env), self.log_scale.index_select(-2, env))

    def law(self, env: Tensor) -> dist.TorchDistribution:
        """Distribution of ``z [..., n, d]`` for profiles in environments ``env [n]`` (event dimension 1)."""
        # Exponentials before rows are repeated: there are fewer environments than profiles.
        loc, scale = (values.index_select(-2, env) for values in (self.loc, self.scale))
        return DiagonalNormal(loc, scale)

    def strength(self) -> Tensor:
        """``KL(N(loc, scale²) ‖ N(0, 1))`` per environment and latent ``[..., E, d]``, in nats.

        One number for how far a latent has moved, whether by mean, by scale or by both.
        """
        return 0.5 * (self.loc**2 + (2 * self.log_scale).exp() - 1) - self.log_scale

    def moved(self, threshold: float = 0.01) -> Tensor:
        """Boolean ``[..., E, d]``: latents whose law left the reference by more than ``threshold`` nats."""
        return self.strength() > threshold

    def aligned(self, order: Tensor, sign: Tensor) -> NoiseShift:
        """Latents reordered and reflected: column ``j`` becomes ``sign[j] ·`` column ``order[j]``."""
        return NoiseShift(self.loc[..., order] * sign, self.log_scale[..., order])

    def transport(self, z: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Move noise from environments ``source [n]`` to ``target [n]``, keeping each cell's quantile.

        ``z' = loc_target + scale_target · (z − loc_source) / scale_source``: the abducted standardised
        noise is held fixed and only the law around it changes (Pearl's third rung).
        """
        a, b = self.select(source), self.select(target)
        return b.loc + (b.log_scale - a.log_scale).exp() * (z - a.loc)

    def to(self, device: torch.device | str) -> NoiseShift:
        return NoiseShift(self.loc.to(device), self.log_scale.to(device))

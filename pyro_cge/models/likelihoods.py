"""Likelihoods: the law of measured expression around its mean. Every decoder has one, swapped in a word."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..data.moments import GeneMoments
from ..data.profiles import Profiles
from ..errors import ConfigError, DataError, check_positive, check_sizes
from ..scm.normal import DiagonalNormal
from .networks import soft_clamp

LOG_SCALE_RANGE = (-6.0, 4.0)  # per-gene noise sd between 0.0025 and 55 in the data's (standardised) units
DF_RANGE = (1.1, 100.0)  # the mean of a Student-t exists from one degree of freedom on
LOG_DISPERSION_RANGE = (-4.0, 8.0)
LARGEST_FOLD = 15.0  # natural log; past it the exponential would overflow before training notices


class Likelihood(nn.Module):
    """``mean [..., n, g] → Distribution`` over genes (event dimension 1). Subclasses give ``forward``."""

    counts = False  # counts are modelled as they are: never standardised

    def forward(self, mean: Tensor) -> dist.TorchDistribution:
        """The law of expression around its mean."""
        raise NotImplementedError

    def mean(self, output: Tensor) -> Tensor:
        """Expected expression, given what the decoder's network puts out: the link function."""
        return output

    def encoder_input(self, x: Tensor) -> Tensor:
        """What an encoder reads of expression ``[..., n, g]``."""
        return x

    @property
    def scale(self) -> Tensor:
        """Scale of each gene ``[g]``, where the likelihood has one."""
        raise ConfigError(f"{type(self).__name__} has no scale of its own; Gaussian and Student-t likelihoods have")

    def set_scale(self, scale: Tensor) -> None:
        """Set each gene's scale ``[g]`` (kept within the bounds of the parametrisation)."""
        raise ConfigError(f"{type(self).__name__} has no scale to set; Gaussian and Student-t likelihoods have")

    def check(self, x: Tensor) -> None:
        """Raise :class:`DataError` where ``x [n, g]`` cannot come from this likelihood."""


class GaussianLikelihood(Likelihood):
    """``X_k ~ Normal(mean_k, s_k²)`` with one learned scale a gene: log fold changes, z-scores, log intensities.

    Parameters
    ----------
    g : int
    scale : float
        Initial standard deviation, in the units of the data the model sees.
    """

    def __init__(self, g: int, *, scale: float = 1.0) -> None:
        super().__init__()
        check_sizes(g=g)
        check_positive(scale=scale)
        self.log_scale = nn.Parameter(torch.empty(g))
        self.set_scale(torch.full((g,), float(scale)))

    @property
    def scale(self) -> Tensor:
        return soft_clamp(self.log_scale, *LOG_SCALE_RANGE).exp()

    @torch.no_grad()
    def set_scale(self, scale: Tensor) -> None:
        self.log_scale.copy_(_unclamped(scale.log(), *LOG_SCALE_RANGE))

    def forward(self, mean: Tensor) -> dist.TorchDistribution:
        return DiagonalNormal(mean, self.scale)


class StudentTLikelihood(GaussianLikelihood):
    """``X_k ~ StudentT(ν_k, mean_k, s_k)``: robust, for heavy-tailed values such as plate z-scores.

    An outlier costs ``(ν + 1)/2 · log(1 + r²/ν)`` nats instead of ``r²/2``, so that a few wells neither rule the loss nor
    the gradient (Lange, Little and Taylor 1989).

    Parameters
    ----------
    g : int
    df : float
        Initial degrees of freedom ``ν``, above 1.1; learned for each gene.
    scale : float
        Initial scale.
    """

    def __init__(self, g: int, *, df: float = 4.0, scale: float = 1.0) -> None:
        super().__init__(g, scale=scale)
        low, high = DF_RANGE
        if not low < df < high:
            raise ConfigError(f"the degrees of freedom lie between {low} and {high}, got df={df}")
        start = _unclamped(torch.tensor(float(df)).log(), math.log(low), math.log(high))
        self.log_df = nn.Parameter(start.expand(g).clone())

    @property
    def df(self) -> Tensor:
        """Degrees of freedom of each gene ``[g]``."""
        return soft_clamp(self.log_df, *(math.log(value) for value in DF_RANGE)).exp()

    def forward(self, mean: Tensor) -> dist.TorchDistribution:
        return dist.StudentT(self.df, mean, self.scale).to_event(1)


class CountLikelihood(Likelihood):
    """Counts with mean ``m_k · exp(output_k)``: ``m_k`` is the mean of the gene in the data, so training starts there.

    Encoders read ``log(1 + x)``, standardised by gene. There is no size factor: cells of very unequal depth are better
    brought to a common one, or modelled after a log transform.

    Parameters
    ----------
    data : EnvironmentData or StreamedData
        The training counts, read once.

    Raises
    ------
    DataError
        For values that are no counts.
    """

    counts = True
    log_mean: Tensor
    centre: Tensor
    spread: Tensor

    def __init__(self, data: Profiles) -> None:
        super().__init__()
        raw, logs = GeneMoments(data.g), GeneMoments(data.g)
        for x in data.blocks():
            self.check(x)
            raw.add(x)
            logs.add(x.log1p())
        # A gene never seen keeps a small mean of its own; data without rows are a schema, filled by a checkpoint.
        n, zeros = raw.n, torch.zeros_like(raw.mean)
        self.register_buffer("log_mean", (raw.mean.clamp_min(0.5 / n).log() if n else zeros).float())
        self.register_buffer("centre", logs.mean.float())
        self.register_buffer("spread", (logs.sd.clamp_min(1e-3) if n else zeros + 1).float())

    def mean(self, output: Tensor) -> Tensor:
        return (self.log_mean + output.clamp(-LARGEST_FOLD, LARGEST_FOLD)).exp()

    def encoder_input(self, x: Tensor) -> Tensor:
        return (x.log1p() - self.centre) / self.spread

    def check(self, x: Tensor) -> None:
        wrong = (x < 0) | (x != x.round())
        if wrong.any():
            raise DataError(
                f"{type(self).__name__} needs counts (whole numbers from 0 on), got {x[wrong][0].item():g}; "
                "use GaussianLikelihood or StudentTLikelihood for continuous expression"
            )


class PoissonLikelihood(CountLikelihood):
    """``X_k ~ Poisson(m_k exp(output_k))``."""

    def forward(self, mean: Tensor) -> dist.TorchDistribution:
        return dist.Poisson(mean).to_event(1)


class NegativeBinomialLikelihood(CountLikelihood):
    """``X_k ~ NegativeBinomial`` of mean ``m_k exp(output_k)`` and variance ``mean + mean²/θ_k``, ``θ_k`` learned."""

    def __init__(self, data: Profiles) -> None:
        super().__init__(data)
        self.log_dispersion = nn.Parameter(torch.full((data.g,), 2.0))

    @property
    def dispersion(self) -> Tensor:
        """Inverse dispersion ``θ [g]``; the Poisson law is its limit at infinity."""
        return soft_clamp(self.log_dispersion, *LOG_DISPERSION_RANGE).exp()

    def forward(self, mean: Tensor) -> dist.TorchDistribution:
        theta = self.dispersion
        return dist.NegativeBinomial(theta, logits=mean.log() - theta.log()).to_event(1)


def _unclamped(value: Tensor, low: float, high: float) -> Tensor:
    """Inverse of :func:`~pyro_cge.models.networks.soft_clamp`, kept off its asymptotes."""
    margin, middle, half = 1e-3, (low + high) / 2, (high - low) / 2
    return middle + half * torch.atanh((value.clamp(low + margin, high - margin) - middle) / half)

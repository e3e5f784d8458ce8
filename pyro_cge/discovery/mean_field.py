"""What independent normal weights cost under sparse priors, in closed form: the parts of a bound that needs no draws.

Weights ``W ~ Normal(m, s²)`` and scales ``λ ~ LogNormal(a, c²)`` of the guide, in nats, element by element.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
BLOCKS = 2_000_000  # entries of matrices inverted at once


def laplace_kl(m: Tensor, log_s: Tensor, b: float) -> Tensor:
    """``KL[Normal(m, s²) ‖ Laplace(0, b)]``, with ``E|W| = s √(2/π) exp(−m²/2s²) + m erf(m/√2s)``."""
    s = log_s.exp()
    size = s * math.sqrt(2 / math.pi) * (-0.5 * (m / s) ** 2).exp() + m * torch.erf(m / s / math.sqrt(2))
    return size / b + math.log(2 * b) - log_s - HALF_LOG_2PI - 0.5


def laplace_curvature(m: Tensor, log_s: Tensor, b: float) -> Tensor:
    """Second derivative of ``E|W|/b`` in ``m``: the precision that the prior has for these weights."""
    s = log_s.exp()
    return 2 / (s * b) * (-0.5 * (m / s) ** 2 - HALF_LOG_2PI).exp()


def horseshoe_kl(m: Tensor, log_s: Tensor, a: Tensor, log_c: Tensor, tau: float) -> Tensor:
    """``KL`` from ``W ~ Normal(0, τ²λ²), λ ~ HalfCauchy(1)``, weight and local scale; one integral by quadrature."""
    precision = horseshoe_curvature(a, log_c, tau)
    weight = a + math.log(tau) + 0.5 * precision * (m * m + (2 * log_s).exp()) - log_s - 0.5
    nodes, shares = (torch.as_tensor(part, dtype=m.dtype, device=m.device) for part in _hermite())
    log_local = a.unsqueeze(-1) + log_c.exp().unsqueeze(-1) * nodes
    cauchy = (torch.nn.functional.softplus(2 * log_local) * shares).sum(-1) + math.log(math.pi / 2)
    return weight + cauchy - a - log_c - HALF_LOG_2PI - 0.5


def horseshoe_curvature(a: Tensor, log_c: Tensor, tau: float) -> Tensor:
    """``E[1/(τλ)²]``."""
    return (2 * (2 * log_c).exp() - 2 * a).exp() / tau**2


def log_normal_kl(a: Tensor, log_c: Tensor, width: float) -> Tensor:
    """``KL[LogNormal(a, c²) ‖ LogNormal(0, width²)]``."""
    return math.log(width) + (a * a + (2 * log_c).exp()) / (2 * width**2) - log_c - 0.5


def linear_response(prior: Tensor, gram: Tensor, precision: Tensor, free: Tensor) -> Tensor:
    """Standard deviations ``[d, d]`` of weights that share an effect, from the curvature of the bound in all of them.

    A gene's curvature is ``precision_j gram[P, P] + diag(prior[P, j])`` over its free parents ``P``: genes with equally many
    are inverted together, and nothing is larger than the largest of these blocks or ``BLOCKS`` entries.

    Parameters
    ----------
    prior : Tensor ``[d, d]``
        Precision of the prior, at ``[cause, effect]``.
    gram : Tensor ``[d, d]``
        Of the causes.
    precision : Tensor ``[d]``
        Of the likelihood, for each effect.
    free : Tensor ``[d, d]``, bool

    References
    ----------
    Giordano, Broderick, Jordan 2015: mean-field deviations are those given all others, too small where causes correlate.
    """
    sd, counts = torch.zeros_like(prior), free.sum(0)
    for k in counts[counts > 0].unique().tolist():
        for effects in (counts == k).nonzero()[:, 0].split(max(1, BLOCKS // k**2)):
            causes = free[:, effects].T.nonzero()[:, 1].reshape(-1, k)
            curvature = gram[causes.unsqueeze(-1), causes.unsqueeze(-2)] * precision[effects, None, None]
            curvature = curvature + torch.diag_embed(prior[causes, effects.unsqueeze(-1)])
            variance = torch.linalg.inv(curvature).diagonal(dim1=-2, dim2=-1)
            sd[causes, effects.unsqueeze(-1)] = variance.clamp_min(0).sqrt()
    return sd


def savage_dickey(m: Tensor, sd: Tensor, b: float, density: Tensor) -> Tensor:
    """Probability that a weight is not 0: posterior ``Normal(m, sd²)``, prior ``Laplace(0, b)`` with probability ``density``.

    The odds change by the ratio of both densities at 0 (Dickey 1971).
    """
    sd = sd.clamp_min(1e-12)
    at_zero = -0.5 * (m / sd) ** 2 - sd.log() - HALF_LOG_2PI
    return torch.sigmoid(torch.logit(density) - math.log(2 * b) - at_zero)


@functools.cache
def _hermite() -> tuple[np.ndarray, np.ndarray]:
    nodes, shares = np.polynomial.hermite_e.hermegauss(24)
    return nodes, shares / shares.sum()

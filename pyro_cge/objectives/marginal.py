"""Likelihood of whole profiles, their own noise integrated out."""

from __future__ import annotations

import math

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ..data.environment import Batch
from ..errors import ConfigError
from ..guides.amortized import AmortizedGuide
from ..models.cell import CellModel
from ..scm.shifts import NoiseShift

WIDTHS = (1.0, 2.0)
LEFT_OUT = 0.1


@torch.no_grad()
def marginal_log_likelihood(
    model: CellModel, guide: AmortizedGuide, batch: Batch, shifts: NoiseShift, n_importance: int = 1000
) -> Tensor:
    """``log P(x_i | e)`` of each profile under draws of the environments' laws ``shifts [S, E_b, d]``: ``[S, n]``, nats.

    The profile's own noise is integrated by importance sampling, half of the draws from the guide and half from the
    guide at twice its width, because a mean-field guide is too narrow wherever latents are correlated::

        log (1/K) Σ_k P(x | z_k) P(z_k | e, law_s) / r(z_k | x, e)        r = ½ q + ½ q at twice its width

    and what children of the SCM have of their own noise likewise, drawn along with ``z``. Given a profile the two are
    anti-correlated, which the guide does not see: the sharper a profile says its causes, the further the estimate then
    falls short.

    This, and not ``log P(x | z)`` at a draw of the profile's posterior, is what leave-one-out cross-validation needs:
    given ``z``, a profile's likelihood says nothing of how it would be predicted when left out, and the importance
    ratios of PSIS have no finite variance (Merkle, Furr and Rabe-Hesketh 2019; Vehtari, Gelman and Gabry 2017).

    All rows share the ``z_k``, and each leaves a random tenth of them out. So rows differ by what the posterior does not
    know of the laws and by little Monte Carlo error, which PSIS would take for uncertainty; and a profile whose integral
    hangs on a few ``z_k`` shows in its ``k``.
    """
    if batch.x is None:
        raise ValueError("a likelihood needs observed profiles, but batch.x is None")
    if n_importance < 2:
        raise ConfigError(f"n_importance is a number of draws, two or more, got {n_importance}")
    z, proposal = _widened(guide.posterior(batch), guide.encode(batch)[0], n_importance)
    own, q_own, own_law = None, guide.own_noise(batch), model.scm.own_law
    if q_own is not None and own_law is not None:
        own, density = _widened(q_own, q_own.mean, n_importance)
        proposal = proposal + density - own_law.log_prob(own)
    proposal = proposal.logsumexp(0) - math.log(len(WIDTHS))
    ratio = (model.likelihood(model.causes(z, batch, own), batch).log_prob(batch.x) - proposal).double()
    known = bool((shifts.loc == shifts.loc[:1]).all() and (shifts.log_scale == shifts.log_scale[:1]).all())
    rows, log_weight, left_out = [], ratio, max(1, int(n_importance * LEFT_OUT))
    for s, law in enumerate(map(NoiseShift, shifts.loc, shifts.log_scale)):
        if s == 0 or not known:
            log_weight = ratio + law.law(batch.env).log_prob(z)
        kept = torch.rand(n_importance, 1, device=z.device).argsort(0) >= left_out
        rows.append(log_weight.masked_fill(~kept, -math.inf).logsumexp(0))
    return torch.stack(rows) - math.log(n_importance - left_out)


def _widened(q: TorchDistribution, centre: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Draws ``[K, n, d]`` of ``q`` at each width in turn, and their log density at every width ``[widths, K, n]``."""
    widths = torch.tensor(WIDTHS, device=centre.device).repeat(n)[:n].view(-1, 1, 1)
    z = centre + widths * (q.sample((n,)) - centre)
    d = centre.shape[-1]
    return z, torch.stack([q.log_prob(centre + (z - centre) / w) - d * math.log(w) for w in WIDTHS])

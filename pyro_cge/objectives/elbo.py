"""Variational objectives: ``(model, guide, batch) → named terms``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from pyro.infer.util import is_validation_enabled
from pyro.nn import PyroModule
from pyro.util import check_model_guide_match
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal, Normal, kl_divergence

from ..data.environment import Batch
from ..errors import ConfigError
from ..guides.families import FactorNormal
from ..scm.shifts import NoiseShift
from .handlers import Sites, in_cells, is_random

GAUSSIANS = (LowRankMultivariateNormal, FactorNormal)  # with correlations: analytic KL against independent normals


@dataclass(frozen=True)
class Elbo:
    """Negative evidence lower bound per profile, with analytic KL wherever torch knows one.

    ``log P(X|e) ≥ E_Q[log P(X|C)] − β · KL[Q(Z|X,e) ‖ P(Z|e)]`` (paper, equation 2; Appendix A for the KL).

    Equal to ``pyro.infer.TraceMeanField_ELBO`` at ``beta = 1`` (up to the division by the number of profiles), without
    its host synchronisation at every step. Sites with no analytic KL contribute ``log q − log p`` at the draw. Where an
    environment's targets are latent and the encoder does not look at them, KL terms are summed over the targets exactly,
    ``Σ_j q_j KL_j(on) + (1 − q_j) KL_j(off)``: no relaxation, no sampling noise, and a size is paid for only where there
    is a target.

    Parameters
    ----------
    beta : float
        Weight of the KL term, on the guide's and the model's side alike.
    free_bits : float
        Nats of KL per profile that cost nothing: ``max(KL, free_bits)``.
    sum_targets : bool
        False takes targets as they were drawn, as Pyro's own ELBOs do.

    Raises
    ------
    ConfigError
        For a weight that is negative or not finite.
    """

    beta: float = 1.0
    free_bits: float = 0.0
    sum_targets: bool = True

    def __post_init__(self) -> None:
        for name in ("beta", "free_bits"):
            value = getattr(self, name)  # a tensor where an ensemble varies it
            if isinstance(value, int | float) and not 0 <= value < math.inf:
                raise ConfigError(f"{name} must be at least 0 and finite, got {value}")

    def __call__(self, model: PyroModule, guide: PyroModule, batch: Batch, *, warmup: float = 1.0) -> dict[str, Tensor]:
        """Terms per profile: ``loss``, ``log_likelihood``, ``kl``. ``warmup`` multiplies β."""
        guide_trace, model_trace = traces(model, guide, batch)
        fits: list[Tensor] = []
        costs: list[Tensor] = []
        nodes = model_trace.nodes
        summed = self.sum_targets and "env_target" in nodes and getattr(guide, "blind_to_targets", False)
        for name, site in nodes.items():
            if not is_random(site):
                continue
            if site["is_observed"]:
                fits.append(_scaled(site["fn"].log_prob(site["value"]), site, batch))
                continue
            if name == "z" and summed:
                cost = _kl_over_targets(model, guide_trace, nodes, batch)
            elif name in ("env_shift", "env_stretch") and summed:
                # The size of what is not a target keeps its prior law, which costs nothing.
                size, target = (cast(Any, guide_trace.nodes[n]["fn"]) for n in (name, "env_target"))
                cost = (target.mean * kl_divergence(size.base_dist, site["fn"].base_dist)).sum(-1)
            else:
                cost = _site_kl(guide_trace.nodes[name], site)
            costs.append(_scaled(cost, site, batch))
        log_likelihood, kl = _sum(fits, batch), _sum(costs, batch)
        charged = torch.clamp(kl, min=self.free_bits) if self.free_bits else kl
        weight = self.beta * warmup
        weighted = charged if isinstance(weight, float) and weight == 1 else weight * charged
        return {"loss": weighted - log_likelihood, "log_likelihood": log_likelihood, "kl": kl}


@torch.no_grad()
def iwae_bound(model: PyroModule, guide: PyroModule, batch: Batch, n_samples: int = 100) -> Tensor:
    """Importance-weighted bound ``log (1/S) Σ_s p(x, z_s) / q(z_s)`` of each profile ``[n]``, in nats.

    Tends to ``log P(x | e)`` as ``S`` grows (Burda et al. 2016). Sites outside the cells plate are not integrated:
    they are drawn once a sample and shared by all profiles.
    """
    log_weights = []
    for _ in range(n_samples):
        guide_trace, model_trace = traces(model, guide, batch)
        log_weights.append(_per_cell(model_trace) - _per_cell(guide_trace))
    return torch.stack(log_weights).logsumexp(0) - math.log(n_samples)


def traces(model: PyroModule, guide: PyroModule, batch: Batch) -> tuple[Sites, Sites]:
    """The guide's sites, and the model's replayed against them."""
    with Sites() as guide_sites:
        _entry(guide)(batch)
    with Sites(guide_sites) as model_sites:
        _entry(model)(batch)
    if is_validation_enabled():
        check_model_guide_match(cast(Any, model_sites), cast(Any, guide_sites))
    return guide_sites, model_sites


def _entry(module: PyroModule) -> Callable[..., Any]:
    """``module.forward`` where that is the same thing as ``module(...)``, minus Pyro's parameter bookkeeping.

    Calling a PyroModule reports every parameter to the param store at every step. Nothing here reads it, so only
    modules that hold Pyro attributes (``PyroSample``, ``PyroParam``) or are not PyroModules go the long way.
    """
    return module.forward if isinstance(module, PyroModule) and not _holds_sites(module) else module


def _holds_sites(module: PyroModule) -> bool:
    children = (child for child in module._modules.values() if isinstance(child, PyroModule))
    return bool(module._pyro_samples or module._pyro_params) or any(_holds_sites(child) for child in children)


def _scaled(values: Tensor, site: dict[str, Any], batch: Batch) -> Tensor:
    """Sum of a site's terms per profile of the full data, under the masks and scales in force."""
    if site["mask"] is not None:
        values = torch.where(site["mask"], values, values.new_zeros(()))
    scale = site["scale"]
    if isinstance(scale, Tensor):
        return (values * scale).sum() / batch.n_total
    weight = scale * values.numel() / batch.n_total  # one, where nothing but the plate of profiles scales
    return values.mean() if math.isclose(weight, 1.0, rel_tol=1e-12) else values.mean() * weight


def _sum(terms: list[Tensor], batch: Batch) -> Tensor:
    return sum(terms[1:], terms[0]) if terms else batch.index.new_zeros((), dtype=torch.get_default_dtype())


def _site_kl(guide_site: Any, model_site: dict[str, Any]) -> Tensor:
    q, p = guide_site["fn"], model_site["fn"]
    if isinstance(q, GAUSSIANS) and isinstance(getattr(p, "base_dist", None), Normal):
        law = NoiseShift(p.base_dist.loc, p.base_dist.scale.log())
        return _cross_entropy(q.mean, q.variance, law).sum(-1) - q.entropy()
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return q.log_prob(guide_site["value"]) - p.log_prob(model_site["value"])


def _kl_over_targets(model: Any, guide_trace: Sites, nodes: dict[str, Any], batch: Batch) -> Tensor:
    """``KL[q(z | x) ‖ p(z | e)]`` ``[n]`` in expectation over the environments' targets."""
    prior, q = model.prior, guide_trace.nodes["z"]["fn"]
    effects = {effect: nodes[f"env_{effect}"]["value"] for effect in prior.supports}
    target = effects["target"]
    on, off = (
        prior.shift(batch, effects | {"target": value}).select(batch.env)
        for value in (torch.ones_like(target), torch.zeros_like(target))
    )
    probability = guide_trace.nodes["env_target"]["fn"].mean.index_select(-2, batch.env)
    try:
        mean, variance, entropy = q.mean, q.variance, q.entropy()
    except NotImplementedError:  # a flow: all three are estimated from the draw
        mean = guide_trace.nodes["z"]["value"]
        variance, entropy = torch.zeros_like(mean), -q.log_prob(mean)
    each = torch.lerp(_cross_entropy(mean, variance, off), _cross_entropy(mean, variance, on), probability)
    return each.sum(-1) - entropy


def _cross_entropy(mean: Tensor, variance: Tensor, law: NoiseShift) -> Tensor:
    """``−E_q[log N(z_j; loc_j, scale_j²)]`` per latent ``[..., n, d]``: only q's marginal moments matter."""
    squared = (mean - law.loc).square() + variance
    return 0.5 * (math.log(2 * math.pi) + squared * (-2 * law.log_scale).exp()) + law.log_scale


def _per_cell(trace: Sites) -> Tensor:
    """Unscaled log density of the sites in the cells plate ``[n]``."""
    chosen = [site for site in trace.nodes.values() if is_random(site) and in_cells(site)]
    return cast(Tensor, sum(site["fn"].log_prob(site["value"]) for site in chosen))

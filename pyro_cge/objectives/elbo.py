"""Variational objectives: ``(model, guide, batch) → named terms``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.nn import PyroModule
from pyro.poutine.util import site_is_subsample
from pyro.util import check_model_guide_match
from torch import Tensor
from torch.distributions import kl_divergence

from ..data.environment import Batch


@dataclass(frozen=True)
class Elbo:
    """Negative evidence lower bound per profile, with analytic KL wherever torch knows one.

    ``log P(X|e) ≥ E_Q[log P(X|C)] − β · KL[Q(Z|X,e) ‖ P(Z|e)]`` (paper, equation 2; Appendix A for the KL).

    Equal to ``pyro.infer.TraceMeanField_ELBO`` at ``beta = 1`` (up to the division by the number of profiles), without
    its host synchronisation at every step. Sites with no analytic KL contribute ``log q − log p`` at the draw.

    Parameters
    ----------
    beta : float
        Weight of the KL term, on the guide's and the model's side alike.
    free_bits : float
        Nats of KL per profile that cost nothing: ``max(KL, free_bits)``.
    """

    beta: float = 1.0
    free_bits: float = 0.0

    def __call__(self, model: PyroModule, guide: PyroModule, batch: Batch, *, warmup: float = 1.0) -> dict[str, Tensor]:
        """Terms per profile: ``loss``, ``log_likelihood``, ``kl``. ``warmup`` in [0, 1] multiplies β."""
        guide_trace, model_trace = traces(model, guide, batch)
        log_likelihood, kl = batch.index.new_zeros(2, dtype=torch.get_default_dtype())
        nodes: dict[str, Any] = model_trace.nodes
        for name, site in nodes.items():
            if site["type"] != "sample" or site["infer"].get("_deterministic") or site_is_subsample(site):
                continue
            if site["is_observed"]:
                log_likelihood = log_likelihood + _scaled(site["fn"].log_prob(site["value"]), site)
            else:
                kl = kl + _site_kl(guide_trace.nodes[name], site)
        log_likelihood, kl = log_likelihood / batch.n_total, kl / batch.n_total
        charged = torch.clamp(kl, min=self.free_bits) if self.free_bits else kl
        return {"loss": self.beta * warmup * charged - log_likelihood, "log_likelihood": log_likelihood, "kl": kl}


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


def traces(model: PyroModule, guide: PyroModule, batch: Batch) -> tuple[poutine.Trace, poutine.Trace]:
    """Guide trace, and the model's trace replayed against it."""
    guide_trace = poutine.trace(_entry(guide)).get_trace(batch)
    model_trace = poutine.trace(poutine.replay(_entry(model), trace=guide_trace)).get_trace(batch)
    if is_validation_enabled():
        check_model_guide_match(model_trace, guide_trace)
    return guide_trace, model_trace


def _entry(module: PyroModule) -> Callable[..., Any]:
    """``module.forward`` where that is the same thing as ``module(...)``, minus Pyro's parameter bookkeeping.

    Calling a PyroModule reports every parameter to the param store at every step. Nothing here reads it, so only
    modules that hold Pyro attributes (``PyroSample``, ``PyroParam``) or are not PyroModules go the long way.
    """
    return module.forward if isinstance(module, PyroModule) and not _holds_sites(module) else module


def _holds_sites(module: PyroModule) -> bool:
    children = (child for child in module._modules.values() if isinstance(child, PyroModule))
    return bool(module._pyro_samples or module._pyro_params) or any(_holds_sites(child) for child in children)


def _scaled(values: Tensor, site: dict[str, Any]) -> Tensor:
    if site["mask"] is not None:
        values = torch.where(site["mask"], values, values.new_zeros(()))
    scale = site["scale"]
    return (values * scale).sum() if isinstance(scale, Tensor) else values.sum() * scale


def _site_kl(guide_site: Any, model_site: dict[str, Any]) -> Tensor:
    try:
        values = kl_divergence(guide_site["fn"], model_site["fn"])
    except NotImplementedError:
        value = guide_site["value"]
        values = guide_site["fn"].log_prob(value) - model_site["fn"].log_prob(value)
    return _scaled(values, model_site)


def _per_cell(trace: poutine.Trace) -> Tensor:
    """Unscaled log density of the sites in the cells plate ``[n]``."""
    nodes: dict[str, Any] = trace.nodes
    return sum(
        site["fn"].log_prob(site["value"])
        for site in nodes.values()
        if site["type"] == "sample"
        and not site["infer"].get("_deterministic")
        and not site_is_subsample(site)
        and any(frame.name == "cells" for frame in site["cond_indep_stack"])
    )

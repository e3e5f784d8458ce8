"""The one place that talks to ArviZ (0.x ``InferenceData``)."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import ConfigError
from .seeds import isolated
from .sites import EFFECTS

if TYPE_CHECKING:
    import arviz

    from .posterior import Posterior

LARGEST_DRAW = 200_000_000  # entries of a posterior predictive held in memory: 0.8 GB
DIMS = {
    "z": ["profile", "latent"],
    "c": ["profile", "latent"],
    "env_loc": ["environment", "latent"],
    "env_log_scale": ["environment", "latent"],
    **{f"env_{effect}": ["environment", "latent"] for effect in EFFECTS},
    **{f"perturbation_{effect}": ["perturbation", "latent"] for effect in EFFECTS},
}
# Of graphs among genes.
DIMS |= {
    "potential": ["gene"],
    "edge": ["cause", "effect"],
    "W": ["cause", "effect"],
    "noise_scale": ["gene"],
    "noise_variance": ["gene"],
    **{key: ["environment", "gene"] for key in ("target", "shift", "log_scale", "gamma")},
}
X_DIMS = {
    "log_likelihood": ["profile"],
    "posterior_predictive": ["profile", "gene"],
    "observed_data": ["profile", "gene"],
}


def inference_data(
    posterior: Posterior, n_samples: int, seed: int | None, log_likelihood: int, posterior_predictive: bool
) -> arviz.InferenceData:
    """See :meth:`~pyro_cge.posterior.Posterior.to_arviz`."""
    if posterior_predictive and (entries := n_samples * posterior.raw.n * posterior.raw.g) > LARGEST_DRAW:
        raise ConfigError(
            f"{n_samples} replicated data sets of {posterior.raw.n:,} × {posterior.raw.g:,} have {entries:,} entries, "
            f"more than {LARGEST_DRAW:,}: take fewer draws, profiles (data.rows) or genes, or the statistics alone "
            "(metrics.predictive_check)"
        )
    z = posterior.samples(n_samples, seed)
    with torch.no_grad():
        c = posterior.model.scm(z.to(posterior.device)).cpu()
    laws = posterior.shift_draws(n_samples, seed)
    groups = {"posterior": {"z": z, "c": c, "env_loc": laws.loc, "env_log_scale": laws.log_scale}}
    groups["posterior"] |= _effects(posterior, n_samples, seed)
    if log_likelihood:
        groups["log_likelihood"] = {"x": posterior.log_likelihood(n_samples, log_likelihood, seed)}
    if posterior_predictive:
        groups["posterior_predictive"] = {"x": posterior.replicate(n_samples, seed)}
    groups = {name: {k: v.unsqueeze(0) for k, v in variables.items()} for name, variables in groups.items()}
    groups["observed_data"] = {"x": posterior.raw.x}
    names = {
        "profile": list(posterior.raw.obs.index),
        "latent": list(posterior.latent_names),
        "environment": list(posterior.raw.env_names),
        "perturbation": list(posterior.model.prior.unit_schema.env_names),
        "gene": list(posterior.raw.gene_names),
    }
    return _converted(groups, names)


def _effects(posterior: Posterior, n_samples: int, seed: int | None) -> dict[str, Tensor]:
    """Draws of the latent sites behind the environments' laws, the very ones behind ``shift_draws`` of the same seed."""
    batch = posterior.every_environment()
    unit = posterior.model.prior.units(batch).unit
    with torch.no_grad(), isolated(seed, "posterior"):
        effects = posterior.guide.draw_effects(batch, n_samples)
    return {f"{unit}_{effect}": draws for effect, draws in effects.items()}


def graph_data(draws: dict[str, Tensor], genes: list[str], environments: list[str]) -> arviz.InferenceData:
    """Draws ``[S, ...]`` of a graph's posterior: ``edge`` and ``W`` by cause and effect, effects by environment and gene."""
    names = {"gene": genes, "cause": genes, "effect": genes, "environment": environments}
    return _converted({"posterior": {name: value.unsqueeze(0) for name, value in draws.items()}}, names)


def _converted(groups: dict[str, dict[str, Tensor]], names: dict[str, list[str]]) -> arviz.InferenceData:
    """Each group by itself, because ``x`` has other dimensions in each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.0 at import
        import arviz

    result = arviz.InferenceData()
    for group, variables in groups.items():
        dims = {name: X_DIMS[group] if name == "x" else DIMS[name] for name in variables}
        coords = {dim: names[dim] for used in dims.values() for dim in used}
        values = {name: value.cpu().numpy() for name, value in variables.items()}
        arguments: dict[str, Any] = {group: values}
        result.extend(arviz.from_dict(**arguments, coords=coords, dims=dims))
    return result

"""The one place that talks to ArviZ (0.x ``InferenceData``)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import ConfigError
from .seeds import isolated
from .sites import EFFECTS

if TYPE_CHECKING:
    import arviz

    from .metrics.disentanglement import Matching
    from .posterior import Posterior

LARGEST_DRAW = 200_000_000  # entries of an export held in memory: 0.8 GB
DIMS = {
    "z": ["profile", "latent"],
    "c": ["profile", "latent"],
    "env_loc": ["environment", "latent"],
    "env_log_scale": ["environment", "latent"],
    **{f"env_{effect}": ["environment", "latent"] for effect in EFFECTS},
    **{f"perturbation_{effect}": ["perturbation", "latent"] for effect in EFFECTS},
}
DIRECTED = {"z", "c", "env_loc", "env_shift", "perturbation_shift"}
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
    posteriors: Sequence[Posterior],
    reference: Posterior,
    matchings: Sequence[Matching] | None,
    n_samples: int,
    seed: int | None,
    log_likelihood: int,
    posterior_predictive: bool,
    profiles: bool,
) -> arviz.InferenceData:
    """Posteriors of the same data as chains, in the reference's latents; chain ``k`` has the draws of seed ``seed + k``.

    See :meth:`~pyro_cge.posterior.Posterior.to_arviz` and :meth:`~pyro_cge.train.ensembles.mixture.EnsemblePosterior.to_arviz`.
    """
    raw, replicates = reference.raw, len(posteriors) * n_samples
    row = profiles * (raw.g + 2 * replicates * reference.model.d)  # x, z and c
    row += replicates * (bool(log_likelihood) + posterior_predictive * raw.g)
    if (entries := raw.n * row) > LARGEST_DRAW:
        raise ConfigError(
            f"{replicates} draws for {raw.n:,} profiles × {raw.g:,} genes have {entries:,} entries, more than "
            f"{LARGEST_DRAW:,}: take fewer draws, profiles (data.rows) or genes; profiles=False leaves out z, c and the "
            "data, and metrics.predictive_check has the statistics of a posterior predictive alone"
        )
    if seed is None:  # one for all questions, or their draws would not belong together
        seed = int(torch.randint(2**31, ()))
    chains = []
    for k, posterior in enumerate(posteriors):
        own = seed + k
        draws = _draws(posterior, n_samples, own, profiles)
        if matchings is not None:
            draws = {name: _matched(name, values, matchings[k]) for name, values in draws.items()}
        groups = {"posterior": draws}
        if log_likelihood:
            groups["log_likelihood"] = {"x": posterior.log_likelihood(n_samples, log_likelihood, own)}
        if posterior_predictive:
            groups["posterior_predictive"] = {"x": posterior.replicate(n_samples, own)}
        chains.append(groups)
    together = {
        group: {name: torch.stack([chain[group][name] for chain in chains]) for name in variables}
        for group, variables in chains[0].items()
    }
    if profiles:
        together["observed_data"] = {"x": raw.x}
    names = {
        "profile": list(raw.obs.index),
        "latent": list(reference.latent_names),
        "environment": list(reference.treated_names),
        "perturbation": list(reference.model.prior.unit_schema.env_names),
        "gene": list(raw.gene_names),
    }
    return _converted(together, names)


def _draws(posterior: Posterior, n_samples: int, seed: int, profiles: bool) -> dict[str, Tensor]:
    """Draws of noise, causes, the treated environments' laws and the latent sites behind these, all of one another."""
    laws, batch = posterior.shift_draws(n_samples, seed), posterior.every_environment()
    unit = posterior.model.prior.units(batch).unit
    with torch.no_grad(), isolated(seed, "posterior"):
        effects = posterior.guide.draw_effects(batch, n_samples)
    draws = {"env_loc": laws.loc, "env_log_scale": laws.log_scale}
    draws |= {f"{unit}_{effect}": values.cpu() for effect, values in effects.items()}
    treated = posterior.treated
    chosen = {name: v[:, treated] if name.startswith("env_") else v for name, v in draws.items()}
    return {kind: posterior.samples(n_samples, seed, kind) for kind in ("z", "c") if profiles} | chosen


def _matched(name: str, values: Tensor, matching: Matching) -> Tensor:
    """Values ``[..., d]`` in the reference's latents; what has a direction is reflected with its latent."""
    return torch.from_numpy(matching.apply(values.numpy(), signed=name in DIRECTED)).to(values.dtype)


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

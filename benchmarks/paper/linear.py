"""Two latents, ten genes, everything linear (paper, sections 6.1 and 6.2): what is found, and does it extrapolate?

Rows of the true weights ``M [g, 2]`` are turned by an angle and compared with those of the fitted ``M̃ [g, 2]``: where one
angle fits all rows, the latents are found up to that rotation, and where it is a multiple of 90° they are the true ones.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from angles import Matrix, angles, angles_with_scales, mirror, span_angle
from linear_plots import plots
from rows import collect
from torch import Tensor

import pyro_cge as cge
from pyro_cge.metrics import reconstruction_loss

PROFILES, HIDDEN, WIDE, ATTACH = 10_000, (5,), (32,), 0.5
FIT: dict[str, Any] = {
    "epochs": 50,
    "batch_size": 20,
    "lr": 3e-4,
    "kl_warmup": 0,
    "validation": None,
    "patience": None,
    "progress": False,
}
OFFSETS = np.arange(-20, 21, 2)
TESTED = 200  # profiles an out-of-distribution environment
SHIFT = 3.0  # of the single-latent environments that the rotation is given


# The truth, and fits of it


def truth_of(dependent: bool, environments: cge.simulate.Environments, seed: int) -> cge.simulate.GroundTruth:
    """Two independent latents, or the second a function of the first (``C_2 = ±C_1``), and ten genes."""
    graph, mechanism = ("chain", "linear") if dependent else ("empty", "noisy linear")
    return cge.simulate.simulator(
        graph,
        n_latents=2,
        n_genes=10,
        mechanism=mechanism,
        attach=ATTACH,
        environments=environments,
        seed=_informative(seed),
    )


def _informative(seed: int) -> int:
    """The seed of a random map that no two latents share: where all genes read both alike, only one is visible."""
    for candidate in range(100 * seed, 100 * seed + 100):
        rng = np.random.default_rng(candidate)
        mask = cge.simulate.observation_mask(2, 10, ATTACH, rng)
        if np.linalg.matrix_rank(mask.numpy()) == 2:
            return candidate
    raise AssertionError("unreachable")


def sample(truth: cge.simulate.GroundTruth, profiles: int, seed: int) -> cge.EnvironmentData:
    """``profiles`` in all, as many in each environment."""
    return truth.sample(profiles // len(truth.environments), seed=seed)


def fitted(pair: tuple[Any, Any], data: cge.EnvironmentData, seed: int, **options: Any) -> cge.Fit:
    return cge.fit(*pair, data, seed=seed, **{**FIT, **options})


# Angles between weight matrices


def true_weights(truth: cge.simulate.GroundTruth) -> Matrix:
    """``M [g, d]``."""
    eye = torch.eye(truth.d)
    return (truth.decoder.mean(eye) - truth.decoder.mean(0 * eye)).T.double().numpy()


def fitted_weights(fit: cge.Fit, data: cge.EnvironmentData) -> tuple[Matrix, Matrix]:
    """``M̃ [g, d]`` in the data's units for latents of unit variance, and the variances ``[d]`` it took to get there.

    The prior N(0, I) fixes the scales λ of the paper, so the variances are near one in a converged fit.
    """
    with torch.no_grad():
        eye = torch.eye(fit.model.d)
        weights = (fit.model.decoder.mean(eye) - fit.model.decoder.mean(0 * eye)).T * fit.scaler.scale.unsqueeze(-1)
        loc, log_scale = fit.guide.encode(fit.scaler.transform(data).batch())
        variance = (loc - environment_means(loc, data)[data.env]).var(0) + (2 * log_scale).exp().mean(0)
    return (weights * variance.sqrt()).double().numpy(), variance.double().numpy()


def principal_angle(truth: cge.simulate.GroundTruth, mirrored: bool) -> float:
    """Angle (mod 90°) at which the posterior of the noise has no correlations: ``R Mᵀ Ψ⁻¹ M Rᵀ`` diagonal.

    A mean-field guide pays for correlations it cannot express, so among all rotations it prefers this one.
    """
    weights = true_weights(truth) / truth.decoder.scale.double().numpy()[:, None]
    weights = mirror(weights) if mirrored else weights
    vector = np.linalg.eigh(weights.T @ weights)[1][:, 0]
    return float(-np.degrees(np.arctan2(vector[1], vector[0])) % 90)


# Reconstruction loss out of distribution


def directions() -> cge.simulate.Environments:
    """Environments ``(T, 0)`` and then ``(0, T)``, T as in the paper's figures."""
    both = cge.simulate.offsets([(t, 0) for t in OFFSETS] + [(0, t) for t in OFFSETS])
    return replace(both, names=[f"direction {i}, offset {t}" for i in (0, 1) for t in OFFSETS])


def losses(fit: cge.Fit, data: cge.EnvironmentData) -> Matrix:
    """Reconstruction loss in each environment ``[E]``: squared error at the posterior mean, averaged over genes."""
    each = reconstruction_loss(data.x, fit.posterior(data).reconstruct()) / data.g
    return environment_means(each.unsqueeze(-1), data).squeeze(-1).numpy()


@torch.no_grad()
def exact_losses(fit: cge.Fit, data: cge.EnvironmentData) -> Matrix:
    """:func:`losses` at the exact posterior mean, which a linear decoder has, in the place of the encoder's::

        (Wᵀ Ψ⁻¹ W + Σ_e⁻¹) z = Wᵀ Ψ⁻¹ (x − b_e) + Σ_e⁻¹ μ_e

    What is left is due to the model; what it takes away was the encoder's.
    """
    batch, model = fit.scaler.transform(data).batch(), fit.model
    base = model.mean(torch.zeros(data.n, model.d), batch)
    columns = [model.mean(torch.eye(model.d)[j].expand(data.n, -1), batch)[0] - base[0] for j in range(model.d)]
    weights, noise = torch.stack(columns, -1).double(), model.decoder.scale.double()
    law = fit.guide.shift(batch).select(batch.env)
    precision = (-2 * law.log_scale.double()).exp()
    read = weights / noise.square().unsqueeze(-1)
    system = weights.T @ read + precision.diag_embed()
    wanted = (batch.x.double() - base) @ read + precision * law.loc
    z = torch.linalg.solve(system, wanted.unsqueeze(-1)).squeeze(-1)
    left = (batch.x.double() - base - z @ weights.T) * fit.scaler.scale
    return environment_means(left.square().mean(-1, keepdim=True), data).squeeze(-1).numpy()


def environment_means(values: Tensor, data: cge.EnvironmentData) -> Tensor:
    """Mean ``[E, k]`` of the profiles' values ``[n, k]`` in each environment."""
    total = values.new_zeros(data.n_envs, values.shape[-1]).index_add(0, data.env, values)
    return total / data.env_counts.unsqueeze(-1)


def out_of_distribution(fit: cge.Fit, truth: cge.simulate.GroundTruth, seed: int) -> list[dict[str, Any]]:
    """One record a direction and offset: of a fit whose encoder does not see the environment."""
    test = truth.sample(TESTED, environments=directions(), seed=seed)
    relabelled = replace(fit.schema, x=test.x, env=torch.zeros_like(test.env))
    each = reconstruction_loss(test.x, fit.posterior(relabelled).reconstruct()) / test.g
    return curve(environment_means(each.unsqueeze(-1), test).squeeze(-1).numpy())


def curve(loss: Matrix) -> list[dict[str, Any]]:
    """Losses of :func:`directions` as records."""
    both = loss.reshape(2, len(OFFSETS))
    return [
        {"direction": i, "offset": int(t), "loss": float(v)}
        for i in (0, 1)
        for t, v in zip(OFFSETS, both[i], strict=True)
    ]


# One seed


def basic_job(
    dependent: bool, seed: int, hidden: tuple[int, ...] = HIDDEN, profiles: int = PROFILES, **options: Any
) -> list[dict[str, Any]]:
    truth = truth_of(dependent, cge.simulate.reference(2), seed)
    data = sample(truth, profiles, seed)
    with cge.isolated(seed):
        pair = cge.basic_vae(data, 2, hidden=hidden, decoder="linear")
    fit = fitted(pair, data, seed, **options)
    model = "basic" if hidden == HIDDEN else "basic, 32 units"
    return [{"model": model, **compared(fit, truth, data), "curve": out_of_distribution(fit, truth, seed)}]


def rotated_job(seed: int, profiles: int = PROFILES, **options: Any) -> list[dict[str, Any]]:
    """Two environments that shift one latent each, a dense prior, the rotation step."""
    truth = truth_of(False, cge.simulate.one_per_latent(2, value=SHIFT), seed)
    data = sample(truth, profiles, seed)
    with cge.isolated(seed):
        pair = cge.dense_vae(data, 2, hidden=HIDDEN, decoder="linear")
    dense = fitted(pair, data, seed, **options)
    fits = {"dense": dense, "rotated": cge.rotate(dense, data)}
    return [
        {"model": name, **compared(fit, truth, data), "curve": out_of_distribution(fit, truth, seed)}
        for name, fit in fits.items()
    ]


def compared(fit: cge.Fit, truth: cge.simulate.GroundTruth, data: cge.EnvironmentData) -> dict[str, Any]:
    """Angles between true and fitted weights."""
    true = true_weights(truth)
    found, variance = fitted_weights(fit, data)
    one, scaled = angles(true, found), angles_with_scales(true, found)
    preferred = (one.mean - principal_angle(truth, one.mirrored)) % 90
    return {
        "M": true.tolist(),
        "found": found.tolist(),
        "mirrored": one.mirrored,
        "angle": one.mean,
        "sd": one.sd,
        "off_axis": one.off_axis,
        "sd_scaled": scaled.sd,
        "span": span_angle(true, found),
        "off_principal": float(min(preferred, 90 - preferred)),
        "variance": variance.tolist(),
        "loss": float((reconstruction_loss(data.x, fit.posterior(data).reconstruct()) / data.g).mean()),
    }


# Figures


def independent(arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Section 6.1, figures 5 and 6; with single-latent shifts and the rotation step beside them."""
    seeds, options = size(arguments)
    jobs = [({"model": "basic", "seed": s}, lambda s=s: basic_job(False, s, **options)) for s in range(seeds)]
    jobs += [({"model": "rotated", "seed": s}, lambda s=s: rotated_job(s, **options)) for s in range(seeds)]
    jobs += [({"model": "wide", "seed": s}, lambda s=s: basic_job(False, s, WIDE, **options)) for s in range(seeds)]
    rows = collect(jobs, out / "independent", arguments.resume)
    show(rows)
    plots(rows, ["basic", "rotated"], out / "independent.png")
    basic, wide, rotated = (rows[rows["model"] == m] for m in ("basic", "basic, 32 units", "rotated"))
    return {
        **mean_and_worst("angle_sd_deg", basic["sd"]),
        **mean_and_worst("angle_sd_deg_32_units", wide["sd"]),
        "basic_angle_mod_90_deg": [round(a % 90, 1) for a in basic["angle"]],
        **mean_and_worst("basic_angle_off_principal_deg", basic["off_principal"]),
        **mean_and_worst("rotated_angle_error_deg", rotated["off_axis"]),
        **mean_and_worst("rotated_angle_sd_deg", rotated["sd"]),
        **mean_and_worst("dense_angle_error_deg", rows[rows["model"] == "dense"]["off_axis"]),
    }


def dependent(arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Section 6.2, figures 11 and 12."""
    seeds, options = size(arguments)
    jobs = [({"model": "basic", "seed": s}, lambda s=s: basic_job(True, s, **options)) for s in range(seeds)]
    rows = collect(jobs, out / "dependent", arguments.resume)
    show(rows)
    plots(rows, ["basic"], out / "dependent.png")
    far = [[at_twenty(c, i) for i in (0, 1)] for c in rows["curve"]]
    return {
        "dependent_angle_sd_deg": round(float(rows["sd"].mean()), 2),
        "dependent_angle_sd_deg_smallest": round(float(rows["sd"].min()), 2),
        "dependent_span_deg": round(float(rows["span"].mean()), 2),
        "dependent_loss_at_20": [round(float(v), 3) for v in np.mean(far, 0)],
    }


def size(arguments: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    """Number of seeds, and what a quick run changes."""
    return (1, {"profiles": 600, "lr": 3e-3}) if arguments.quick else (arguments.seeds, {})


def at_twenty(records: list[dict[str, Any]], direction: int) -> float:
    """Loss at |T| = 20 in one direction."""
    return float(np.mean([r["loss"] for r in records if r["direction"] == direction and abs(r["offset"]) == 20]))


def mean_and_worst(key: str, values: pd.Series) -> dict[str, float]:
    return {key: round(float(values.mean()), 2), f"{key}_worst": round(float(values.max()), 2)}


def show(rows: pd.DataFrame) -> None:
    rows["span"] = [span_angle(*map(np.array, pair)) for pair in zip(rows["M"], rows["found"], strict=True)]
    table = rows[
        ["model", "seed", "angle", "mirrored", "sd", "sd_scaled", "span", "off_axis", "off_principal", "loss"]
    ].copy()
    table["variances"] = [[round(v, 3) for v in vs] for vs in rows["variance"]]
    table[["loss at 20, direction 0", "direction 1"]] = [[at_twenty(c, i) for i in (0, 1)] for c in rows["curve"]]
    print(table.sort_values(["model", "seed"]).round(3).to_string(index=False))

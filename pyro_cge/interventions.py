"""Reading latent interventions: evidence for them, intervals, false-discovery control, shared targets.

Pure functions of numbers; :class:`~pyro_cge.posterior.Posterior` calls them with what model and guide say.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from .errors import ConfigError
from .scm.shifts import NoiseShift


def log_bayes_factor(loc: Tensor, scale: Tensor, env: Tensor, shift: NoiseShift) -> Tensor:
    """Evidence that the noise of an environment's profiles follows its own law and not the reference ``[E, d]``.

    The ratio of marginal likelihoods under the two laws of one latent, the others left alone, is an expectation over
    the posterior ``q(z_ij) = N(loc_ij, scale_ij²)`` found under the environment's own law::

        log BF[e, j] = − Σ_{i in e} log E_q[ N(z; 0, 1) / N(z; μ_ej, σ_ej²) ]

    Exact where ``q`` is the exact posterior; the expectation is Gaussian and in closed form. (Its Jensen bound
    ``Σ E_q[log N(z; μ, σ²) − log N(z; 0, 1)]`` overstates the evidence wherever a profile says little about ``z``.)

    Parameters
    ----------
    loc, scale : ``[n, d]``
        Posterior mean and sd of the noise of each profile.
    env : ``[n]``
        Environment of each profile.
    shift : NoiseShift ``[E, d]``
        The environments' own laws.
    """
    m, law = loc.double(), shift.select(env)
    mu, precision = law.loc.double(), (-2 * law.log_scale.double()).exp()
    # A posterior is no wider than its prior; an encoder that says otherwise would make the integral diverge.
    v = torch.minimum(scale.double() ** 2, 1 / precision)
    a, b = 0.5 * (precision - 1), -mu * precision
    shrink = 1 - 2 * a * v
    log_expectation = (
        law.log_scale.double()
        - 0.5 * shrink.log()
        + (a * m**2 + b * m + 0.5 * b**2 * v) / shrink
        + 0.5 * mu**2 * precision
    )
    return torch.zeros(shift.loc.shape, dtype=torch.float64).index_add_(0, env, -log_expectation)


def schwarz_penalty(shift: NoiseShift, counts: Tensor) -> Tensor:
    """``½ k log n_e`` nats ``[E, d]``: what ``k`` fitted numbers (mean, scale) of a law gain by fitting noise.

    Schwarz (1978); the Bayes factor under a unit-information prior on what was fitted.
    """
    fitted = (shift.loc != 0).double() + (shift.log_scale != 0).double()
    return 0.5 * fitted * counts.clamp_min(1).double().log().unsqueeze(-1)


def target_probability(
    loc: Tensor, scale: Tensor, env: Tensor, shift: NoiseShift, odds: float, counts: Tensor | None = None
) -> Tensor:
    """Probability that an environment intervenes on a latent's noise ``[E, d]``; 0 where its law is the reference's.

    Two laws of the noise of an environment's profiles are compared, its own ``N(μ, σ²)`` and the reference N(0, 1)::

        log BF[e, j] = − Σ_{i in e} log E_q[N(z_ij; 0, 1) / N(z_ij; μ_ej, σ_ej²)] − ½ k_ej log n_e
        P(target)    = 1 / (1 + 1 / (odds · BF))

    The first term is the ratio of marginal likelihoods (:func:`log_bayes_factor`, whose arguments these are), the second
    pays for the ``k`` numbers (mean, scale) fitted to the environment (:func:`schwarz_penalty`); without ``counts [E]``,
    the number of profiles, the laws are known and pay nothing.

    Raises
    ------
    ConfigError
        If the prior odds are not a positive number.
    """
    if not 0 < odds < math.inf:
        raise ConfigError(f"prior_odds are those of a target before seeing data, a positive number, got {odds}")
    evidence = log_bayes_factor(loc, scale, env, shift)
    if counts is not None:
        evidence = evidence - schwarz_penalty(shift, counts)
    return torch.sigmoid(evidence + math.log(odds)) * ((shift.loc != 0) | (shift.log_scale != 0))


def moments(loc: Tensor, scale: Tensor, env: Tensor, n_envs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the noise of each environment's profiles: mean, variance between posterior means, total variance ``[E, d]``.

    The total adds the mean posterior variance. NaN for environments without profiles.
    """
    loc, scale = loc.double(), scale.double()
    counts = torch.bincount(env, minlength=n_envs).double().unsqueeze(-1)
    empty = torch.zeros(n_envs, loc.shape[1], dtype=torch.float64)
    mean = empty.index_add(0, env, loc) / counts
    between = empty.index_add(0, env, (loc - mean.index_select(0, env)) ** 2) / counts
    return mean, between, between + empty.index_add(0, env, scale**2) / counts


def sampling_interval(loc: Tensor, scale: Tensor, env: Tensor, prior: NoiseShift, level: float) -> dict[str, Tensor]:
    """Mean shift of an environment's noise with its sampling interval, and its sd: ``shift, low, high, sd_ratio``.

    The estimate is the mean over the environment's profiles of the posterior mean noise. With ``b`` the variance
    between those means and ``v`` the mean posterior variance, the noise has variance ``σ² = b + v`` and the observed
    information on its mean is the complete one less the missing one (Louis 1982)::

        I = (n_e / σ²) (1 − v / σ²)      interval = mean ± t_{n_e − 1} / √I

    Where profiles determine the noise (v → 0) that is the textbook interval ``± t √(b / n_e)``; the wider the
    posteriors, the wider the interval. Decoder and encoder are taken as known. Environments with fewer than two
    profiles have the prior's law and no interval (NaN).
    """
    counts = torch.bincount(env, minlength=prior.n_envs).double().unsqueeze(-1)
    mean, between, total = moments(loc, scale, env, prior.n_envs)
    correction = counts / (counts - 1)  # unbiased variance between means
    between, total = between * correction, total + between * (correction - 1)
    half = torch.from_numpy(stats.t.ppf(0.5 + level / 2, (counts - 1).clamp_min(1).numpy()))
    half = half * total / (between * counts).clamp_min(1e-300).sqrt()
    known = counts > 1
    return {
        "shift": torch.where(known, mean, prior.loc.double()),
        "low": torch.where(known, mean - half, torch.nan),
        "high": torch.where(known, mean + half, torch.nan),
        "sd_ratio": torch.where(known, total.sqrt(), prior.scale.double()),
    }


def credible_interval(draws: NoiseShift, level: float) -> dict[str, Tensor]:
    """The same four from posterior draws ``[S, E, d]`` of the environments' laws: mean, equal-tailed interval."""
    loc = draws.loc.double()
    tails = torch.tensor([0.5 - level / 2, 0.5 + level / 2], dtype=torch.float64, device=loc.device)
    low, high = torch.quantile(loc, tails, 0)
    return {"shift": loc.mean(0), "low": low, "high": high, "sd_ratio": draws.log_scale.double().mean(0).exp()}


def discoveries(table: pd.DataFrame, fdr: float = 0.05) -> pd.DataFrame:
    """The largest set of rows whose expected share of false ones is at most ``fdr`` (Newton et al. 2004).

    With ``p`` the probability that a row is true, the most certain rows are kept as long as the mean of ``1 − p``
    over them stays at or below ``fdr``. Controls the false-discovery rate where the probabilities are calibrated.

    Parameters
    ----------
    table : DataFrame
        With a column ``probability``.

    Returns
    -------
    DataFrame
        The rows kept, most certain first, with a column ``fdr``: the rate if the list ended at that row.
    """
    if not 0 <= fdr <= 1:
        raise ConfigError(f"fdr is a share of false discoveries between 0 and 1, got {fdr}")
    ranked = table.sort_values("probability", ascending=False, kind="stable").reset_index(drop=True)
    rate = (1 - ranked["probability"]).expanding().mean()
    return ranked.assign(fdr=rate)[rate <= fdr]


def similarity(probability: Tensor, shift: Tensor, kind: Literal["targets", "direction"] = "targets") -> Tensor:
    """Do two environments act on the same latents? ``[E, E]`` from probabilities and mean shifts ``[E, d]``.

    ``"targets"``: Jaccard index of the target sets, as expected size of the intersection over expected size of the
    union, targets taken as independent; with certain targets the Jaccard index itself. 0 between environments of which
    neither has a target. ``"direction"``: cosine of the probability-weighted shifts, −1 where they act oppositely.
    """
    p = probability.double()
    if kind == "targets":
        both, size = p @ p.T, p.sum(-1)
        values = both / (size.unsqueeze(0) + size.unsqueeze(1) - both).clamp_min(1e-12)
    elif kind == "direction":
        weighted = p * shift.double()
        unit = weighted / weighted.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        values = (unit @ unit.T).clamp(-1, 1)
    else:
        raise ConfigError(f"kind must be 'targets' or 'direction', got {kind!r}")
    return values.fill_diagonal_(1.0)


def tidy(columns: dict[str, Tensor], environments: pd.Index, latents: list[str]) -> pd.DataFrame:
    """One row an environment and latent from tensors ``[E, d]``."""
    grid = pd.MultiIndex.from_product([environments, latents], names=["environment", "latent"])
    values = {name: np.asarray(value.cpu().double()).ravel() for name, value in columns.items()}
    return pd.DataFrame(values, index=grid).reset_index()

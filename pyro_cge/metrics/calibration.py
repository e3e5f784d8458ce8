"""Do the posterior's probabilities mean what they say?

Simulation-based calibration (Talts et al. 2018): draw parameters from the prior, data given them, and the rank of the
truth among posterior draws is uniform if, and in practice only if, the posterior is right. Where the truth is simulated
but the posterior approximate, coverage says by how much it is off. On real data there is no truth, only replication.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyro
import torch
from numpy.typing import NDArray
from pyro import poutine
from scipy import stats
from torch import Tensor, nn

from ..data.environment import Batch
from ..errors import ConfigError
from ..seeds import isolated

if TYPE_CHECKING:
    from ..posterior import Posterior

Ranks = NDArray[np.int64]
Sampler = Callable[[Batch, int], Mapping[str, Tensor]]


@torch.no_grad()
def sbc_ranks(
    model: Callable[[Batch], Any],
    posterior: nn.Module | Sampler,
    batch: Batch,
    *,
    sites: Sequence[str] = ("z",),
    n_replicates: int = 500,
    n_draws: int = 99,
    seed: int | None = 0,
) -> dict[str, Ranks]:
    """Ranks of simulated truths among posterior draws, by site ``[R, ...]``, integers from 0 to ``n_draws``.

    For each replicate: one trace of the model gives the truth ``θ`` and data ``x``; draws ``θ_1 … θ_S`` from the
    posterior given ``x``; ``rank = #{s: θ_s < θ}``, ties broken at random.

    Parameters
    ----------
    model : Pyro model ``(batch)``
        With a site ``x``.
    posterior : guide, or function ``(batch, n_draws) → {site: [S, ...]}``
        A guide (a module) is traced once under a plate of ``n_draws``; a function may fit something first.
    batch : Batch
        The design: how many profiles, in which environments. Its expression is not read.
    sites : sequence of str
        Latent sites to rank.
    n_draws : int
        ``S``; ``S + 1`` should be a multiple of the number of bins :func:`uniformity` uses.
    """
    ranks: dict[str, list[Tensor]] = {site: [] for site in sites}
    with isolated(seed):
        for _ in range(n_replicates):
            nodes: dict[str, Any] = poutine.trace(model).get_trace(batch.unobserved()).nodes
            observed = replace(batch, x=nodes["x"]["value"])
            if isinstance(posterior, nn.Module):
                draws: Mapping[str, Tensor] = _guide_draws(posterior, observed, n_draws)
            else:
                with torch.enable_grad():  # it may fit a guide
                    draws = posterior(observed, n_draws)
            for site in sites:
                truth = nodes[site]["value"]
                if draws[site].shape != (n_draws, *truth.shape):
                    raise ConfigError(
                        f"posterior draws of {site!r} have shape {list(draws[site].shape)}, expected "
                        f"{[n_draws, *truth.shape]}: draws first, then the shape of the model's own site"
                    )
                ties = (draws[site] == truth).sum(0)
                above = (torch.rand(ties.shape, device=ties.device) * (ties + 1)).long() if ties.any() else ties
                ranks[site].append((draws[site] < truth).sum(0) + above)
    return {site: torch.stack(values).cpu().numpy() for site, values in ranks.items()}


def uniformity(ranks: Ranks, n_draws: int, *, bins: int = 20, seed: int = 0) -> pd.DataFrame:
    """Are ranks uniform? χ² and Kolmogorov–Smirnov tests of each parameter, one row each.

    Parameters
    ----------
    ranks : integer ``[..., p]``
        Everything before the last axis are replicates, and must be independent of one another.
    n_draws : int
        Largest possible rank.
    bins : int
        Of the χ² test; must divide ``n_draws + 1``, so that all bins are as likely.
    seed : int
        Ranks are discrete: Kolmogorov–Smirnov tests ``(rank + U) / (n_draws + 1)`` with ``U`` uniform, which is
        uniform exactly when the rank is.

    Returns
    -------
    DataFrame
        ``chi2``, ``chi2_p``, ``ks``, ``ks_p``, and ``chi2_p_holm``, ``ks_p_holm``: corrected for all tests of the table
        (Holm 1979), so that ``min < α`` happens by chance at most a share ``α`` of the time.
    """
    if (n_draws + 1) % bins:
        raise ConfigError(f"bins={bins} must divide n_draws + 1 = {n_draws + 1}; take n_draws={bins * 5 - 1}, say")
    flat = np.asarray(ranks).reshape(-1, np.shape(ranks)[-1])
    if flat.min() < 0 or flat.max() > n_draws:
        raise ConfigError(f"ranks lie between 0 and n_draws={n_draws}, got {flat.min()} to {flat.max()}")
    smooth = (flat + np.random.default_rng(seed).random(flat.shape)) / (n_draws + 1)
    rows = []
    for rank, u in zip(flat.T, smooth.T, strict=True):
        chi2 = stats.chisquare(np.bincount(rank * bins // (n_draws + 1), minlength=bins))
        ks = stats.kstest(u, "uniform")
        rows.append({"chi2": chi2.statistic, "chi2_p": chi2.pvalue, "ks": ks.statistic, "ks_p": ks.pvalue})
    table = pd.DataFrame(rows).rename_axis("parameter")
    corrected = holm(table[["chi2_p", "ks_p"]].to_numpy().ravel()).reshape(-1, 2)
    return table.assign(chi2_p_holm=corrected[:, 0], ks_p_holm=corrected[:, 1])


def holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Holm's step-down correction of p-values ``[m]``: uniformly more powerful than Bonferroni's."""
    order = np.argsort(p)
    stepped = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    corrected = np.empty_like(stepped)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected


def coverage(
    posterior: Tensor | NDArray[Any] | Callable[[float], tuple[Any, Any]],
    truth: Tensor | NDArray[Any],
    levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95),
) -> pd.DataFrame:
    """How often central intervals hold the truth, by level.

    Parameters
    ----------
    posterior : draws ``[S, ...]``, or a function ``level → (low, high)``
        With draws, the truth is inside when the share of draws below it is within ``level / 2`` of a half; where draws
        equal the truth (a spike at zero), when some order of the tied ones puts it inside.
    truth : ``[...]``
        NaN where there is none; those, and intervals that are NaN, are left out.

    Returns
    -------
    DataFrame
        ``level``, ``coverage``, ``low`` and ``high`` (95 % interval of the coverage by Clopper and Pearson, truths taken
        as independent), ``n``.
    """
    true = _array(truth)
    if callable(posterior):
        bounds = [tuple(map(_array, posterior(level))) for level in levels]
        inside = [np.where(np.isnan(low + high + true), np.nan, (low <= true) & (true <= high)) for low, high in bounds]
    else:
        draws = _array(posterior)
        below, upto = ((count.sum(0) + 0.5) / (len(draws) + 1) for count in (draws < true, draws <= true))
        inside = [
            np.where(np.isnan(true), np.nan, (below <= 0.5 + level / 2) & (upto >= 0.5 - level / 2)) for level in levels
        ]
    rows = []
    for level, hit in zip(levels, inside, strict=True):
        n, k = int(np.isfinite(hit).sum()), int(np.nansum(hit))
        interval = stats.binomtest(k, max(n, 1)).proportion_ci(0.95)
        rows.append({"level": level, "coverage": k / max(n, 1), "low": interval.low, "high": interval.high, "n": n})
    return pd.DataFrame(rows)


Statistic = Callable[[Tensor], Tensor]


def _skewness(x: Tensor) -> Tensor:
    centred = x - x.mean(0)
    return (centred**3).mean(0) / (centred**2).mean(0).clamp_min(1e-24) ** 1.5


STATISTICS: dict[str, Statistic] = {
    "mean": lambda x: x.mean(0),
    "sd": lambda x: x.std(0),
    "skewness": _skewness,
}


def predictive_check(
    posterior: Posterior,
    statistics: Mapping[str, Statistic] | Sequence[str] = ("mean", "sd", "skewness"),
    n_samples: int = 100,
    *,
    new_profiles: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """Posterior predictive check: does the model replicate each gene's statistics?

    ``p = P(T(x_rep) ≥ T(x) | x)`` (Gelman, Meng and Stern 1996), ties split. Values near 0 or 1 mean that the model
    misses the statistic. Without ``new_profiles`` the replicates share the noise inferred for each profile and the
    decoder alone is on trial; with it the environments' laws are too.

    Parameters
    ----------
    statistics : names among ``mean``, ``sd``, ``skewness``, or functions ``x [n, g] → [g]``
    n_samples : int
        Replicated data sets; drawn one at a time, so that memory is that of one.
    new_profiles : bool
        See :meth:`~pyro_cge.posterior.Posterior.replicate`.

    Returns
    -------
    DataFrame
        One row a statistic and gene: ``statistic``, ``gene``, ``observed``, ``replicated`` (mean), ``low``, ``high``
        (90 % of the replicates), ``p``.
    """
    if not isinstance(statistics, Mapping):
        if unknown := [name for name in statistics if name not in STATISTICS]:
            raise ConfigError(f"unknown statistics {unknown}; known are {list(STATISTICS)}, or pass functions by name")
        statistics = {name: STATISTICS[name] for name in statistics}
    x, genes = posterior.raw.x.cpu(), list(posterior.raw.gene_names)
    draws: dict[str, list[Tensor]] = {name: [] for name in statistics}
    for sample in range(n_samples):
        replicate = posterior.replicate(1, seed + sample, new_profiles=new_profiles)[0]
        for name, statistic in statistics.items():
            draws[name].append(statistic(replicate))
    tables = []
    for name, statistic in statistics.items():
        observed, replicated = _array(statistic(x)), np.stack([_array(d) for d in draws[name]])
        p = (replicated > observed).mean(0) + 0.5 * (replicated == observed).mean(0)
        low, high = np.quantile(replicated, [0.05, 0.95], axis=0)
        columns = {"observed": observed, "replicated": replicated.mean(0), "low": low, "high": high, "p": p}
        tables.append(pd.DataFrame({"statistic": name, "gene": genes, **columns}))
    return pd.concat(tables, ignore_index=True)


def _guide_draws(guide: nn.Module, batch: Batch, n_draws: int) -> dict[str, Tensor]:
    with pyro.plate("draws", n_draws, dim=-2):
        nodes: dict[str, Any] = poutine.trace(guide).get_trace(batch).nodes
    return {name: node["value"] for name, node in nodes.items() if node["type"] == "sample"}


def _array(values: Tensor | NDArray[Any]) -> NDArray[Any]:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=float)

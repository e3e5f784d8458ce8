"""What a fitted run says, as tables and charts of a report: interventions, effects, programmes, checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from .. import interpret, metrics
from ..data.profiles import Profiles
from ..interventions import tidy
from ..plots.latents import colour_limit
from ..runs import by_profile
from ..scm.shifts import NoiseShift
from .charts import Chart, Mark

if TYPE_CHECKING:
    from ..posterior import Posterior
    from ..train.fit import Fit

CELLS = 36_000  # of heat maps on a page, which keep it small enough to send and to open
EFFECTS = 6_000  # rows of effects on a page
EACH = 3  # effects of an environment that are listed
PROGRAMMES, GENES = 12, 10  # latents and genes a latent
PROFILES = 1_000  # profiles that programmes and checks look at
DRAWS = 100  # replicates of a check
REPLICATED = 20_000_000  # numbers of replicates held at a time, for coverage
DOTS = 1_500  # genes in a chart


@dataclass(frozen=True, eq=False)
class HeatMap:
    """Shift of each latent in each environment, environments that are moved most first.

    ``rows``: name, and for each latent the shift, its colour (−60 to 60, per cent of ink) and what else is known of it.
    ``left_out``: environments and latents that did not fit.
    """

    latents: list[str]
    rows: list[tuple[str, list[tuple[float, int, str]]]]
    limit: float
    left_out: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Effects:
    """The ``EACH`` strongest effects of each environment, strongest first, and half the width of the axis."""

    rows: list[dict[str, Any]]
    span: float
    total: int


@dataclass(frozen=True, eq=False)
class Reading:
    """All a report says about one fit; None where that needs data which were not given.

    ``heat`` and ``effects`` are one table, drawn and listed; ``agreement`` is the correlation of its shifts with those
    of the model's prior, which predictions use. Control environments are what others are held against: in neither.
    """

    heat: HeatMap | None
    moves: bool
    agreement: float | None = None
    effects: Effects | None = None
    programmes: dict[str, list[tuple[str, float, int]]] | None = None
    checks: list[Chart] | None = None
    intervals: dict[str, tuple[float, float]] | None = None


def without_data(fit: Fit, share: float) -> Reading:
    """What weights alone say: the interventions of a model whose prior moves latents."""
    posterior = fit.posterior(fit.schema)
    if not posterior.moves_latents:
        return Reading(None, moves=False)
    return Reading(_heat_map(_prior(posterior), share), moves=True)


def with_data(fit: Fit, data: Profiles, rows: np.ndarray, share: float) -> Reading:
    """Everything; ``rows`` are the profiles to check the fit on (held out), ``share`` this run's part of the page."""
    posterior = fit.posterior(data)
    moves = posterior.moves_latents
    effects = posterior.effects()
    agreement = _correlation(effects, _prior(posterior)) if moves else None
    effects = effects if moves else effects.drop(columns="probability")
    held = data.rows(rows)
    some = fit.posterior(data.rows(_spread(data.n, PROFILES)))
    return Reading(
        _heat_map(effects, share),
        moves,
        agreement,
        None if effects.empty else _effects(effects, share),
        _programmes(interpret.gene_programmes(some, units="sd")),
        checks(fit, held),
        _intervals(fit, held),
    )


def checks(fit: Fit, held: Profiles) -> list[Chart]:
    """Posterior predictive checks on profiles ``held`` out: other cells are drawn from their environments' laws."""
    posterior = fit.posterior(held.rows(_spread(held.n, PROFILES)))
    table = metrics.predictive_check(posterior, ("mean", "sd"), DRAWS, new_profiles=True)
    charts = []
    parts = {name: part.iloc[_spread(len(part), DOTS)] for name, part in table.groupby("statistic", sort=False)}
    for name, part in parts.items():
        missed = ((part["p"] < 0.025) | (part["p"] > 0.975)).to_numpy()
        note = (
            f"{missed.sum()} of {len(part)} genes have a Bayesian p-value beyond 0.025 or 0.975 (at most 5 % expected)."
        )
        marks = [
            Mark(part["observed"][mask], part["replicated"][mask], look, "dots", label)
            for mask, look, label in ((~missed, "s1", "replicated"), (missed, "s2", "missed by the model"))
            if mask.any()
        ]
        text = f"Each dot is a gene; on the diagonal the model replicates its {name}. {note}"
        title = f"{'Mean' if name == 'mean' else 'Standard deviation'} of each gene"
        charts.append(Chart(title, text, "observed", "replicated", marks, note, diagonal=True))
    mean, sd = parts["mean"], parts["sd"]
    charts.append(
        Chart(
            "Mean and spread",
            "Standard deviation of each gene against its mean, as observed and as replicated by the model.",
            "mean of a gene",
            "standard deviation",
            [
                Mark(mean["observed"], sd["observed"], "s0", "dots", "observed"),
                Mark(mean["replicated"], sd["replicated"], "s1", "dots", "replicated"),
            ],
        )
    )
    return [*charts, _r2_by_gene(posterior), _coverage(fit, held)]


def _prior(posterior: Posterior) -> pd.DataFrame:
    """The law of the noise in treated environments as the prior has it, in the form of ``Posterior.effects``."""
    law, treated = posterior.shift(), posterior.treated
    columns = {"shift": law.loc[treated], "sd_ratio": law.scale[treated]}
    return tidy(columns, posterior.treated_names, posterior.latent_names)


def _correlation(effects: pd.DataFrame, prior: pd.DataFrame) -> float | None:
    """Of shifts that profiles show (those with an interval) with the prior's; None where either does not vary."""
    known = effects["low"].notna().to_numpy()
    pairs = np.stack([effects["shift"].to_numpy()[known], prior["shift"].to_numpy()[known]])
    return float(np.corrcoef(pairs)[0, 1]) if known.sum() > 1 and (np.ptp(pairs, 1) > 0).all() else None


def _heat_map(table: pd.DataFrame, share: float) -> HeatMap | None:
    names, columns = table["environment"].unique(), table["latent"].unique()
    if not len(names):
        return None
    n_envs, d = len(names), len(columns)
    grid = {name: torch.from_numpy(table[name].to_numpy().reshape(n_envs, d)) for name in table.columns[2:]}
    strength = NoiseShift(grid["shift"], grid["sd_ratio"].log()).strength()
    most = max(1, int(CELLS * share))
    latents = strength.sum(0).topk(min(d, max(8, most // n_envs))).indices.sort().values
    order = strength[:, latents].sum(-1).argsort(descending=True, stable=True)[: max(1, most // len(latents))]
    shown = {name: values[order][:, latents] for name, values in grid.items()}
    limit = colour_limit(shown["shift"])
    colours = (60 * (shown["shift"] / limit).clamp(-1, 1)).round().int().tolist()
    hints = [[f"sd × {ratio:.2f}" for ratio in row] for row in shown["sd_ratio"].tolist()]
    if "probability" in shown:
        sure = shown["probability"].tolist()
        hints = [[f"{h} · P {p:.2f}" for h, p in zip(*row, strict=True)] for row in zip(hints, sure, strict=True)]
    cells = (list(zip(*row, strict=True)) for row in zip(shown["shift"].tolist(), colours, hints, strict=True))
    rows = [(str(names[e]), line) for e, line in zip(order.tolist(), cells, strict=True)]
    kept = [str(columns[j]) for j in latents.tolist()]
    return HeatMap(kept, rows, limit, (n_envs - len(rows), d - len(kept)))


def _effects(table: pd.DataFrame, share: float) -> Effects:
    weight = table["shift"].abs() * table.get("probability", 1.0)
    ranked = table.loc[weight.sort_values(ascending=False, kind="stable").index]
    kept = ranked.groupby("environment", sort=False).head(EACH).head(int(EFFECTS * share))
    # An interval from data that say nothing may be endless: the axis follows the estimates.
    span = 1.15 * float(kept["shift"].abs().max()) or 1.0
    place = kept[["low", "shift", "high"]].clip(-span, span).fillna(np.nan) / span * 50 + 50
    rows = kept.to_dict("records")
    for row, (low, middle, high) in zip(rows, place.to_numpy().tolist(), strict=True):
        known = low == low
        row["bar"] = (low if known else middle, middle, high if known else middle)
    return Effects(rows, span, len(table))


def _programmes(table: pd.DataFrame) -> dict[str, list[tuple[str, float, int]]]:
    """By latent: the genes of largest weight, their weight and the length of its bar (0 to 100)."""
    largest = (table**2).sum().nlargest(PROGRAMMES).index
    top = interpret.top_genes(table[[name for name in table.columns if name in largest]], GENES)
    longest = float(top["weight"].abs().max()) or 1.0
    return {
        str(latent): [
            (str(gene), float(weight), round(100 * abs(weight) / longest))
            for gene, weight in zip(part["gene"], part["weight"], strict=True)
        ]
        for latent, part in top.groupby("latent", sort=False)
    }


def _r2_by_gene(posterior: Posterior) -> Chart:
    x = posterior.raw.x
    values = {
        "seen (reconstruction)": metrics.r2_per_gene(x, posterior.reconstruct()),
        "from the environment alone": metrics.r2_per_gene(x, posterior.predict(n_samples=30)[posterior.raw.env]),
    }
    known = {name: r2[r2.isfinite()].clamp_min(-1).numpy() for name, r2 in values.items()}
    edges = np.linspace(min([0.0, *(v.min() for v in known.values() if len(v))]), 1, 31)
    medians = {name: f"{name}: median {np.median(v):.2f}".replace("-", "−") for name, v in known.items() if len(v)}
    marks = [
        Mark(edges, np.histogram(known[name], edges)[0], look, "steps", label)
        for look, (name, label) in zip(("s1", "s2"), medians.items(), strict=False)
    ]
    return Chart("R² of each gene", f"Histogram over genes. {'; '.join(medians.values())}.", "R²", "genes", marks)


def _coverage(fit: Fit, held: Profiles) -> Chart:
    """Do predicted intervals of expression hold as many measured values as they should?"""
    posterior = fit.posterior(held.rows(_spread(held.n, max(1, REPLICATED // (DRAWS * held.g)))))
    levels = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
    table = metrics.coverage(posterior.replicate(DRAWS, new_profiles=True), posterior.raw.x, levels)
    at = table.set_index("level")["coverage"]
    note = f"Intervals of 50 % hold {100 * at[0.5]:.0f} % of measured values, those of 90 % hold {100 * at[0.9]:.0f} %."
    return Chart(
        "Calibration",
        f"Share of measured values inside of predicted intervals, by their level. {note}",
        "level of the interval",
        "share inside",
        [Mark(table["level"], table["coverage"], "s1"), Mark(table["level"], table["coverage"], "s1", "dots")],
        note,
        xlim=(0.0, 1.0),
        ylim=(0.0, 1.0),
        diagonal=True,
    )


def _intervals(fit: Fit, held: Profiles) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals of means over profiles, resampling whole environments; ``{}`` for fewer than five."""
    if len(held.env.unique()) < 5:
        return {}
    env = held.env.cpu().numpy()
    return {name: metrics.mean_interval(values, env) for name, values in by_profile(fit, held).items()}


def _spread(n: int, most: int) -> np.ndarray:
    """At most so many of ``n`` row numbers, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))

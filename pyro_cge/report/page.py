"""The page: run folders in, one HTML file out. Nothing in it is fetched from anywhere."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from scipy import stats

from ..data.profiles import Profiles
from ..data.splits import Split
from ..runs import load_fit
from ..train.checkpoint import write_atomically
from .charts import Chart, Mark
from .folders import PARTS, Configuration, Run, configurations, find
from .readings import Reading, with_data, without_data

LEVEL = 0.95  # of intervals over seeds
SHOWN = 100  # rows of a long table at first
DETAILED = 6  # configurations that have a colour, and a section of interventions, programmes and checks
TERMS = {"loss": "Loss", "log_likelihood": "Log likelihood", "kl": "KL divergence"}
# Metric: what it is called, and whether higher (1) or lower (−1) is better.
NAMES: dict[str, tuple[str, int]] = {
    "loss": ("loss (nats a profile)", -1),
    "log_likelihood": ("log likelihood (nats a profile)", 1),
    "kl": ("KL divergence (nats a profile)", 0),
    "reconstruction_sse": ("reconstruction, squared error", -1),
    "reconstruction_mse": ("reconstruction, squared error a gene", -1),
    "reconstruction_pearson": ("reconstruction, Pearson r", 1),
    "reconstruction_r2": ("reconstruction, R²", 1),
    "prediction_sse": ("prediction, squared error", -1),
    "prediction_mse": ("prediction, squared error a gene", -1),
    "prediction_pearson": ("prediction, Pearson r", 1),
    "prediction_r2": ("prediction, R²", 1),
    "mcc": ("true noise recovered, MCC", 1),
    "target_f1": ("true targets recovered, F1", 1),
    "target_top1": ("true target ranked first", 1),
}


@dataclass(frozen=True)
class Cell:
    """A metric of a configuration: its mean over runs, a 95 % interval where there is one, whether it is the best."""

    value: float
    interval: tuple[float, float] | None
    best: bool = False


@dataclass(frozen=True, eq=False)
class Table:
    """Metrics of one part: a row a metric, a cell a configuration (None where it has no such metric)."""

    part: str
    rows: list[tuple[str, str, list[Cell | None]]]


@dataclass(frozen=True, eq=False)
class Section:
    """A configuration on the page, read through one of its runs."""

    key: str
    configuration: Configuration
    run: Run
    reading: Reading | None
    facts: dict[str, str]


def write(
    runs: Sequence[str | Path],
    out: str | Path = "report.html",
    data: Profiles | None = None,
    *,
    title: str | None = None,
) -> Path:
    """Write a report on one or several runs as a single HTML file that needs no network.

    Runs that differ in nothing but their seed are one configuration: their metrics come as means with 95 % t intervals
    over seeds, and the seed of the lowest held-out loss in training is shown in detail. A configuration of one run has,
    with ``data``, bootstrap intervals that resample whole environments.

    Parameters
    ----------
    runs : sequence of paths
        Run folders, or folders of run folders (what ``compare`` and ``demo`` write).
    out : path
        The file to write.
    data : EnvironmentData or StreamedData, optional
        The data of the runs: effects, gene programmes and posterior checks need them.
    title : str, optional

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    CheckpointError
        If a folder holds no run, or a damaged one, or ``out`` cannot be written.
    DataError
        If ``data`` are not those of the runs.
    """
    found = find([Path(folder) for folder in runs])
    groups = configurations(found)
    ranked = sorted((group for group in groups if group.best), key=lambda group: group.best_loss)
    detailed = [group for group in groups if group in ranked[:DETAILED]]
    sections = []
    for i, group in enumerate(groups):
        run = group.best or group.runs[0]
        reading = _read(run, data, 1 / len(detailed)) if group in detailed else None
        sections.append(Section(f"r{i}", group, run, reading, _facts(run)))
    page = _render(
        title=title or _title(groups),
        sections=sections,
        runs=found,
        tables=_tables(sections),
        curves=_curves(groups, detailed if len(groups) > DETAILED else groups),
        given=data is not None,
        heats=any(s.reading is not None and s.reading.heat is not None for s in sections),
        several=any(len(group.finished) > 1 for group in groups),
        single=any(len(group.finished) == 1 for group in groups),
        shown=SHOWN,
        detailed=DETAILED,
    )
    write_atomically(Path(out), page.encode())
    return Path(out)


def _title(groups: Sequence[Configuration]) -> str:
    if len(groups) > 1:
        return f"{len(groups)} models compared"
    [group] = groups
    return f"Run {group.runs[0].path.name}" if len(group.runs) == 1 else f"{group.name}, {len(group.runs)} seeds"


def _read(run: Run, data: Profiles | None, share: float) -> Reading:
    fit = load_fit(run.path)
    if data is None:
        return without_data(fit, share)
    parts = Split.load(run.path / "split.json", data)
    return with_data(fit, data, getattr(parts, run.held_out), share)


def _tables(sections: Sequence[Section]) -> list[Table]:
    """The held-out part first, then the others."""
    finished = [s for s in sections if s.configuration.finished]
    if not finished:
        return []
    lead = finished[0].run.held_out
    parts = [lead, *(part for part in reversed(PARTS) if part != lead)]
    tables = [Table(part, _rows(sections, part)) for part in parts]
    return [table for table in tables if table.rows]


def _rows(sections: Sequence[Section], part: str) -> list[tuple[str, str, list[Cell | None]]]:
    rows = []
    found = {metric: None for s in sections for run in s.configuration.finished for metric in run.metrics.get(part, {})}
    for metric in found:
        cells = [_cell(section, part, metric) for section in sections]
        name, direction = NAMES.get(metric, (metric.replace("_", " "), 0))
        known = [cell.value for cell in cells if cell is not None and np.isfinite(cell.value)]
        if direction and len(known) > 1:
            best = max(known) if direction > 0 else min(known)
            cells = [c and Cell(c.value, c.interval, c.value == best) for c in cells]
        rows.append((name, {1: "higher is better", -1: "lower is better", 0: ""}[direction], cells))
    return rows


def _cell(section: Section, part: str, metric: str) -> Cell | None:
    values = [
        run.metrics[part][metric] for run in section.configuration.finished if metric in run.metrics.get(part, {})
    ]
    if not values:
        return None
    if len(values) > 1:
        half = stats.t.ppf(0.5 + LEVEL / 2, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
        mean = float(np.mean(values))
        return Cell(mean, (mean - half, mean + half))
    intervals = None if section.reading is None or part != section.run.held_out else section.reading.intervals
    return Cell(values[0], (intervals or {}).get(metric))


def _curves(groups: Sequence[Configuration], coloured: Sequence[Configuration]) -> list[Chart]:
    """Learning curves of all runs: a chart a term, a colour a configuration, held out thicker than training."""
    charts = []
    groups = [*(group for group in groups if group not in coloured), *coloured]  # grey ones below
    for term, title in TERMS.items():
        marks, late = [], []
        for group in groups:
            colour = f"s{coloured.index(group) + 1}" if group in coloured else "s0"
            for run in group.runs:
                for part, weight in (("train", "thin"), ("valid", "thick")):
                    if f"{part}_{term}" not in run.history:
                        continue
                    x, y = run.history["epoch"], run.history[f"{part}_{term}"]
                    label = group.name if group in coloured else "others"
                    label = label if len(groups) > 1 and part == "valid" else ""
                    marks.append(Mark(x, y, f"{weight} {colour}", label=label))
                    late.append(y[x >= 0.05 * x.max()].to_numpy(float))
        if not marks:
            continue
        values = np.concatenate(late)
        values = values[np.isfinite(values)]
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
        margin = 0.05 * (high - low) or 0.5
        ends = "; ".join(f"{group.name} {_last(group, term)}" for group in coloured if _last(group, term))
        charts.append(
            Chart(
                title,
                f"By epoch, training and held out. At the end, held out: {ends}." if ends else "By epoch.",
                "epoch",
                "nats a profile",
                marks,
                ylim=(low - margin, high + margin),
                legend=[("thin", "training"), ("thick", "held out")],
            )
        )
    return charts


def _last(group: Configuration, term: str) -> str:
    column = f"valid_{term}"
    ends = [run.history[column].iloc[-1] for run in group.runs if column in run.history and len(run.history)]
    return number(float(np.mean(ends))) if ends else ""


def _facts(run: Run) -> dict[str, str]:
    epochs, seconds = len(run.history), float(run.history.get("seconds", pd.Series(dtype=float)).sum())
    each = f", {seconds / epochs:.2g} s an epoch" if epochs else ""
    unseen = {"random": "profiles at random"}.get(run.by, f"by {run.by.replace('_', ' ')}")
    return {
        "Folder": str(run.path),
        "Data": f"SHA-256 {run.data[:16]}…",
        "Split": f"{unseen}: " + ", ".join(f"{run.sizes[part]:,} {part}" for part in PARTS),
        "Epochs": f"{epochs} of {run.config.epochs}" + (f", best {run.best_epoch}" if run.best_epoch >= 0 else ""),
        "Training time": f"{_duration(seconds)}{each}",
        "Seed": str(run.config.seed),
        "Versions": ", ".join(f"{name} {version}" for name, version in run.versions.items()),
    }


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def number(value: float) -> str:
    """Three figures, a true minus; a dash where there is no value."""
    if not np.isfinite(value):
        return "–"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".removesuffix(".")
    return text.replace("-", "−")


def signed(value: float, scale: float = 1.0) -> str:
    """Two decimals (more where all values are well below one: ``scale``; one from ten on), a true minus, never −0."""
    if not np.isfinite(value):
        return "–"
    places = 1 if abs(value) >= 9.95 else 2 + max(0, min(4, math.ceil(-math.log10(2 * scale))))
    text = f"{value:.{places}f}"
    return "0" if float(text) == 0 else text.replace("-", "−")


def _render(**content: Any) -> str:
    folder = files(__package__)
    style, script, page = ((folder / name).read_text("utf-8") for name in ("page.css", "page.js", "page.html"))
    # The page may run this one script and nothing else, whatever names the data bring along.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "signed": signed}
    return environment.from_string(page).render(
        style=style, script=script, digest=digest, settings=_settings, **content
    )


def _settings(run: Run) -> Mapping[str, str]:
    """The configuration as text, as one would type it after ``--set``."""
    return {key: "none" if value is None else str(value) for key, value in run.config.model_dump(mode="json").items()}

"""The page: run folders in, one HTML file out. Nothing in it is fetched from anywhere."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from ..data.profiles import Profiles
from ..data.splits import Split
from ..errors import DataError
from ..metrics import t_interval
from ..runs import load_fit
from ..train.checkpoint import write_atomically
from .charts import Chart, Mark, common, swatch
from .folders import PARTS, Configuration, Run, configurations, find
from .readings import Reading, with_data, without_data

LEVEL = 0.95  # of intervals over seeds
SHOWN = 25  # rows of a long table at first
DETAILED = 6  # configurations that are shown in detail: interventions, programmes and checks
HUES = 8  # of the style sheet; as many configurations again are drawn dashed, and the rest in grey
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
    """Metrics of one part: a row a metric, a cell a configuration (None where it has no such metric).

    ``settings``: a row a setting in which configurations differ.
    """

    part: str
    rows: list[tuple[str, str, list[Cell | None]]]
    settings: list[tuple[str, list[str]]]


@dataclass(frozen=True, eq=False)
class Section:
    """A configuration on the page, read through one of its runs; ``look`` is that of its learning curves."""

    key: str
    look: str
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

    Models have the names of their run folders. Runs that differ in nothing but their seed are one configuration: their
    metrics come as means with 95 % t intervals over seeds, and the seed of the lowest held-out loss in training is
    shown in detail. A configuration of one run has, with ``data``, bootstrap intervals that resample whole
    environments.

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
        If ``data`` are not those of every run that is shown in detail.
    """
    found = find([Path(folder) for folder in runs])
    groups = configurations(found)
    ranked = sorted((group for group in groups if group.best), key=lambda group: group.best_loss)
    detailed = [group for group in groups if group in ranked[:DETAILED]]
    looks = _looks(groups if len(groups) <= 2 * HUES else ranked[: 2 * HUES])
    sections = []
    for i, group in enumerate(groups):
        run = group.best or group.runs[0]
        reading = _read(run, data, 1 / len(detailed)) if group in detailed else None
        sections.append(Section(f"r{i}", looks.get(group, "s0"), group, run, reading, _facts(group, run)))
    page = _render(
        title=title or _title(groups),
        sections=sections,
        runs=found,
        tables=_tables(sections),
        curves=_curves(groups, looks),
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
    return f"Run {group.name}" if len(group.runs) == 1 else f"{group.name}, {len(group.runs)} seeds"


def _read(run: Run, data: Profiles | None, share: float) -> Reading:
    fit = load_fit(run.path)
    if data is None:
        return without_data(fit, share)
    if data.digest != run.data:
        raise DataError(
            f"{run.path} is a run on other data (their hash is {run.data[:12]}, that of those given {data.digest[:12]}): "
            f"give the data it was fitted on"
        )
    parts = Split.load(run.path / "split.json", data)
    return with_data(fit, data, getattr(parts, run.held_out), share)


def _tables(sections: Sequence[Section]) -> list[Table]:
    """The held-out part first, then the others."""
    finished = [s for s in sections if s.configuration.finished]
    if not finished:
        return []
    lead = finished[0].run.held_out
    parts = [lead, *(part for part in reversed(PARTS) if part != lead)]
    settings = [
        (key, values)
        for key in sections[0].configuration.differs
        if (values := [_setting(getattr(s.run.config, key)) for s in sections])
        != [s.configuration.name for s in sections]
    ]
    tables = [Table(part, _rows(sections, part), settings) for part in parts]
    return [table for table in tables if table.rows]


def _rows(sections: Sequence[Section], part: str) -> list[tuple[str, str, list[Cell | None]]]:
    rows = []
    found = {metric: None for s in sections for run in s.configuration.finished for metric in run.metrics.get(part, {})}
    for metric in found:
        cells = [_cell(section, part, metric) for section in sections]
        name, direction = NAMES.get(metric, (metric.replace("_", " "), 0))
        known = [cell.value for cell in cells if cell is not None and np.isfinite(cell.value)]
        if direction and len({number(value) for value in known}) > 1:
            best = number(max(known) if direction > 0 else min(known))  # what reads alike is marked alike
            cells = [c and Cell(c.value, c.interval, number(c.value) == best) for c in cells]
        rows.append((name, {1: "higher is better", -1: "lower is better", 0: ""}[direction], cells))
    return rows


def _cell(section: Section, part: str, metric: str) -> Cell | None:
    values = [
        run.metrics[part][metric] for run in section.configuration.finished if metric in run.metrics.get(part, {})
    ]
    if not values:
        return None
    if len(values) > 1:
        return Cell(float(np.mean(values)), t_interval(values, level=LEVEL))
    intervals = None if section.reading is None or part != section.run.held_out else section.reading.intervals
    return Cell(values[0], (intervals or {}).get(metric))


def _looks(groups: Sequence[Configuration]) -> dict[Configuration, str]:
    """Classes of the style sheet: hues, then the same hues dashed."""
    return {group: f"s{i % HUES + 1}" + (" dash" if i >= HUES else "") for i, group in enumerate(groups)}


def _curves(groups: Sequence[Configuration], looks: Mapping[Configuration, str]) -> list[Chart]:
    """Learning curves of all runs: a chart a term, a look a configuration, held out thicker than training.

    The frame holds every run from a twentieth of the longest one on, and the end of shorter ones.
    """
    charts = []
    groups = sorted(groups, key=lambda group: group in looks)  # grey ones below
    begun = [run for group in groups for run in group.runs if len(run.history)]
    start = 0.05 * max((run.history["epoch"].max() for run in begun), default=0)
    for term, title in TERMS.items():
        marks, kept, late = [], [], [np.empty(0)]
        for group in groups:
            look, label = looks.get(group, "s0"), group.name if group in looks else "others"
            for run in group.runs:
                x = run.history.get("epoch", pd.Series(dtype=float))
                for part, weight in (("train", "thin"), ("valid", "thick")):
                    if f"{part}_{term}" not in run.history:
                        continue
                    y = run.history[f"{part}_{term}"]
                    named = label if len(groups) > 1 and part == "valid" else ""
                    marks.append(Mark(x, y, f"{weight} {look}", label=named))
                    late.append(y[(x >= start) | (x == x.max())].to_numpy(float))
                    if part == "valid" and run.finished:
                        kept.append(Mark(x[x == run.best_epoch], y[x == run.best_epoch], f"kept {look}", "dots"))
        if not marks:
            continue
        values = np.concatenate(late)
        values = values[np.isfinite(values)]
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
        margin = 0.05 * (high - low) or 0.5
        ends = "; ".join(f"{group.name} {_last(group, term)}" for group in looks if _last(group, term))
        charts.append(
            Chart(
                title,
                f"By epoch, training and held out. At the end, held out: {ends}." if ends else "By epoch.",
                "epoch",
                "nats a profile",
                [*marks, *kept],
                ylim=(low - margin, high + margin),
                legend=[
                    ("line", "thin", "training"),
                    ("line", "thick", "held out"),
                    ("dots", "kept", "epoch that was kept"),
                ],
            )
        )
    return charts


def _last(group: Configuration, term: str) -> str:
    column = f"valid_{term}"
    ends = [run.history[column].iloc[-1] for run in group.runs if column in run.history and len(run.history)]
    return number(float(np.mean(ends))) if ends else ""


def _facts(group: Configuration, run: Run) -> dict[str, str]:
    epochs, seconds = len(run.history), float(run.history.get("seconds", pd.Series(dtype=float)).sum())
    each = f", {seconds / epochs:.2g} s an epoch" if epochs else ""
    unseen = {"random": "profiles at random"}.get(run.by, f"by {run.by.replace('_', ' ')}")
    others = [str(other.path) for other in group.runs if other is not run]
    return {
        "Folder": str(run.path),
        **({"Other seeds": ", ".join(others)} if others else {}),
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
    """Three figures and no more than three decimals where these say something, a true minus; a dash for no value."""
    if not np.isfinite(value):
        return "–"
    size = abs(value)
    if size >= 1:
        text = f"{value:,.0f}" if size >= 1000 else f"{value:#.3g}".removesuffix(".")
    else:
        text = f"{value:.3f}" if size >= 5e-4 else f"{value:.1g}"
    return text.replace("-", "−")


def signed(value: float, scale: float = 1.0) -> str:
    """Two decimals (more where all values are well below one: ``scale``; one from ten on), a true minus, never −0."""
    if not np.isfinite(value):
        return "–"
    places = 1 if abs(value) >= 9.95 else 2 + max(0, min(4, math.ceil(-math.log10(2 * scale))))
    text = f"{value:.{places}f}"
    return "0" if float(text) == 0 else text.replace("-", "−")


def breakable(name: str) -> Markup:
    """A path that may go on in another line between its words."""
    return Markup(re.sub(r"([/_.-])(?=.)", r"\1<wbr>", str(escape(name))))


def _render(**content: Any) -> str:
    folder = files(__package__)
    style, script, page = ((folder / name).read_text("utf-8") for name in ("page.css", "page.js", "page.html"))
    # The page may run this one script and nothing else, whatever names the data bring along.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "signed": signed, "breakable": breakable}
    environment.globals |= {"settings": _settings, "common": common, "swatch": swatch}
    return environment.from_string(page).render(style=style, script=script, digest=digest, **content)


def _settings(section: Section) -> list[tuple[str, str, bool]]:
    """Name and value of each setting, and whether configurations differ in it: those first."""
    differs = section.configuration.differs
    config = section.run.config
    rows = [(key, _setting(value), key in differs) for key, value in config if key != "seed"]
    return sorted(rows, key=lambda row: not row[2])


def _setting(value: Any) -> str:
    """Numbers to three figures; the folder's config.json has all of them."""
    if isinstance(value, tuple):
        return ", ".join(map(_setting, value))
    if isinstance(value, float):
        return f"{value:.3g}"
    return "none" if value is None else str(value)

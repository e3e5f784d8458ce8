"""Small charts as inline SVG that follow the page: its colours (dark or light), its letters, its width.

Drawn for a column as wide as a phone, so that letters keep their size there. Colours are classes of the style sheet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

WIDTH, HEIGHT = 350.0, 270.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 10.0, 12.0, 54.0
MOST_POINTS = 400  # of a line
MANY_DOTS = 300  # more are drawn smaller


Key = tuple[str, str, str]  # of a legend: kind, look, label


@dataclass(frozen=True)
class Mark:
    """A line (``kind="line"``), dots (``"dots"``) or a step outline (``"steps"``, one more x than y) of one look."""

    x: ArrayLike
    y: ArrayLike
    look: str
    kind: str = "line"
    label: str = ""


@dataclass(frozen=True)
class Chart:
    """Marks in a frame, with what to say to those who do not see them.

    Attributes
    ----------
    title : str
        Above the chart.
    text : str
        What the chart shows, in words: the alternative text.
    note : str
        Below it.
    xlim, ylim : (low, high), optional
        Default: what the marks span. What lies outside is cut.
    diagonal : bool
        Draw the line y = x.
    legend : list of (kind, look, label)
        Of what is not told by the labels of marks.
    """

    title: str
    text: str
    x: str
    y: str
    marks: Sequence[Mark]
    note: str = ""
    xlim: tuple[float, float] | None = None
    ylim: tuple[float, float] | None = None
    diagonal: bool = False
    legend: list[Key] = field(default_factory=list)

    @property
    def keys(self) -> list[Key]:
        """The legend: of labelled marks, and what ``legend`` adds."""
        seen = {mark.label: (mark.kind, mark.look, mark.label) for mark in self.marks if mark.label}
        return [*seen.values(), *self.legend]

    def svg(self) -> Markup:
        """The chart as an ``<svg>`` element."""
        xs, ys = ([_finite(getattr(mark, axis)) for mark in self.marks] for axis in "xy")
        (x0, x1), (y0, y1) = self.xlim or _span(xs), self.ylim or _span(ys)
        if self.diagonal:
            x0, y0, x1, y1 = min(x0, y0), min(x0, y0), max(x1, y1), max(x1, y1)
        inner_w, inner_h = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

        def at(x: Any, y: Any) -> tuple[NDArray[Any], NDArray[Any]]:
            return (
                (np.asarray(x, float) - x0) / (x1 - x0) * inner_w,
                inner_h - (np.asarray(y, float) - y0) / (y1 - y0) * inner_h,
            )

        parts = [
            Markup('<svg viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">').format(
                WIDTH, HEIGHT, f"{self.title}. {self.text}"
            )
        ]
        for value in _ticks(x0, x1):
            place = float(at(value, y0)[0]) + LEFT
            parts.append(
                Markup('<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(
                    place, HEIGHT - BOTTOM + 20, _label(value)
                )
            )
        for value in _ticks(y0, y1):
            place = float(at(x0, value)[1]) + TOP
            parts.append(
                Markup('<path class="grid" d="M{:g} {:.1f}h{:g}"/>').format(LEFT, place, inner_w)
                + Markup('<text class="tick" x="{:g}" y="{:.1f}" text-anchor="end">{}</text>').format(
                    LEFT - 7, place + 5, _label(value)
                )
            )
        parts.append(
            Markup('<text x="{:g}" y="{:g}" text-anchor="middle">{}</text>').format(
                LEFT + inner_w / 2, HEIGHT - 10, self.x
            )
        )
        # An inner svg cuts what lies outside of the frame.
        parts.append(Markup('<svg x="{:g}" y="{:g}" width="{:g}" height="{:g}">').format(LEFT, TOP, inner_w, inner_h))
        if self.diagonal:
            (a, b), (c, d) = at([x0, x1], [x0, x1])
            parts.append(Markup('<path class="rule" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(a, c, b, d))
        for mark in self.marks:
            parts += _drawn(mark, at)
        return Markup("").join([*parts, Markup("</svg></svg>")])


def common(charts: Sequence[Chart]) -> list[Key]:
    """The part of their legends that charts share, to be said once."""
    counts = Counter(key for chart in charts for key in chart.keys)
    return [key for key, count in counts.items() if count > 1]


def swatch(kind: str, look: str) -> Markup:
    """A mark as small as a letter, for a legend or a heading."""
    line = "M10 5h0" if kind == "dots" else "M1 5h18"
    shape = "dots" if kind == "dots" else "line"
    return Markup(
        '<svg class="swatch" width="20" height="10" aria-hidden="true"><path class="{} {}" d="{}"/></svg>'
    ).format(shape, look, line)


def _drawn(mark: Mark, at: Any) -> Iterable[Markup]:
    x, y = np.asarray(mark.x, float), np.asarray(mark.y, float)
    if mark.kind == "steps":
        x, y = np.repeat(x, 2)[1:-1], np.repeat(y, 2)
    elif mark.kind == "line" and len(x) > MOST_POINTS:
        keep = np.unique(np.linspace(0, len(x) - 1, MOST_POINTS).round().astype(int))
        x, y = x[keep], y[keep]
    keep = np.isfinite(x) & np.isfinite(y)
    px, py = at(x[keep], y[keep])
    # Far outside of the frame numbers grow long and say nothing.
    points = [f"{a:.1f} {b:.1f}" for a, b in zip(px, np.clip(py, -1e4, 1e4), strict=True)]
    if not points:
        return
    if mark.kind == "dots":  # round caps of lines without length: one element for all dots
        look = f"{mark.look} small" if len(points) > MANY_DOTS else mark.look
        yield Markup('<path class="dots {}" d="{}"/>').format(look, "".join(f"M{p}h0" for p in points))
    else:
        line = "L".join(points) + ("h0" if len(points) == 1 else "")  # of one epoch: a dot, as lines have round ends
        yield Markup('<path class="line {}" d="M{}"/>').format(mark.look, line)


def _finite(values: ArrayLike) -> NDArray[Any]:
    flat = np.asarray(values, float).ravel()
    return flat[np.isfinite(flat)]


def _span(values: Iterable[NDArray[Any]]) -> tuple[float, float]:
    together = np.concatenate([np.empty(0), *values])
    if not len(together):
        return 0.0, 1.0
    low, high = float(together.min()), float(together.max())
    margin = 0.04 * (high - low) or 0.5 * abs(high) or 0.5
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    step = 1e-9 * (high - low)
    values = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(v) for v in values if low - step <= v <= high + step]


def _label(value: float) -> str:
    value = 0.0 if abs(value) < 1e-12 else value
    return f"{value:,.10g}".replace("-", "−") if abs(value) < 1e5 else f"{value:.2g}".replace("-", "−")

"""Plots of graphs over genes, of the probabilities of their edges, and of intervention targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import precision_recall_curve

from ..metrics.graphs import EdgeCalibration, Graph, ranked_edges
from .layout import curve, layered, sequence
from .training import PALETTE, _axes, _tidy

POSITIVE, NEGATIVE, PLAIN = PALETTE[1], PALETTE[0], "0.35"
# State of a pair beside the truth: colour and line.
VERDICTS: dict[str, tuple[str, str]] = {
    "right": (PALETTE[2], "-"),
    "direction open": (PALETTE[5], "-"),
    "reversed": (PALETTE[4], "-"),
    "extra": (PALETTE[1], "-"),
    "missing": ("0.6", "--"),
}
SMALL = 30  # genes up to which every node is drawn large enough for its name


def graph(
    estimate: nx.Graph | pd.DataFrame, truth: nx.DiGraph | pd.DataFrame | None = None, ax: Axes | None = None
) -> Axes:
    """A graph drawn in layers, causes above effects, unconnected genes in a last row.

    Width is the size of an edge's ``weight`` (of its ``probability``, where it has no weight), colour its sign. Edges that
    go both ways, as in an essential graph, have no arrow heads. Beside a ``truth`` colour says instead which edges are
    right, reversed, extra or missing, and whether the direction is left open.

    Parameters
    ----------
    estimate : networkx graph, or table of weights
        Rows and columns of the table are genes: ``[i, j] ≠ 0`` where ``i → j``.
    truth : the same, optional
        Over the same genes.
    """
    drawn = _named(estimate)
    true = None if truth is None else _named(truth)
    if true is not None and set(true) != set(drawn):
        raise ValueError(f"estimate and truth have other genes: {sorted(map(str, set(true) ^ set(drawn)))[:5]}")
    edges = _once(drawn)
    missed: list[tuple[Any, Any, dict[str, Any]]] = (
        [] if true is None else [(a, b, {}) for a, b, _ in _once(true) if not _joined(drawn, a, b)]
    )
    whole = drawn.copy() if true is None else true.copy()
    whole.add_edges_from((a, b) for a, b in drawn.edges if not _joined(whole, a, b))
    places, routes = layered(whole)
    x, y = np.array([*places.values(), *(point for route in routes.values() for point in route)]).T
    if ax is None:
        size = (float(np.clip(0.75 * np.ptp(x) + 1.5, 3, 16)), float(np.clip(0.85 * np.ptp(y) + 1, 2, 12)))
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    large = len(drawn) <= SMALL
    node_size = 620 if large else 160
    strengths = [_strength(facts) for *_, facts in edges]
    unit = float(np.median(strengths)) if strengths and np.median(strengths) > 0 else 1.0
    counts: Counter[str] = Counter()
    for a, b, facts in [*edges, *missed]:
        both = drawn.has_edge(a, b) and drawn.has_edge(b, a)
        kind = "missing" if not _joined(drawn, a, b) else _verdict(drawn, true, a, b)
        colour, style = VERDICTS.get(kind, (kind, "-"))
        counts[kind] += 1
        width = float(np.clip(1.4 * _strength(facts) / unit, 0.5, 4)) if facts else 1.4
        line = curve(routes[a, b])
        ax.plot(*line.T, color=colour, ls=style, lw=width, zorder=1)
        if both or kind == "missing":
            continue
        arrow = {"arrowstyle": "-|>", "color": colour, "lw": width, "shrinkA": 0, "shrinkB": np.sqrt(node_size) / 2 + 1}
        ax.annotate("", line[-1], line[-6], arrowprops={**arrow, "mutation_scale": 11 if large else 8}, zorder=1)
    nodes = nx.draw_networkx_nodes(drawn, places, ax=ax, node_size=node_size, node_color="0.95", edgecolors="0.4")
    nodes.set(zorder=2, linewidth=0.8)
    nx.draw_networkx_labels(drawn, places, ax=ax, font_size=7 if large else 5)
    ax.set(xlim=(x.min() - 0.6, x.max() + 0.6), ylim=(y.min() - 0.6, y.max() + 0.6))
    ax.set_axis_off()
    if true is not None:
        _legend(ax, {f"{kind} ({counts[kind]})": look for kind, look in VERDICTS.items() if counts[kind]})
    elif {POSITIVE, NEGATIVE} & set(counts):
        signs = {"positive": POSITIVE, "negative": NEGATIVE}
        _legend(ax, {name: (colour, "-") for name, colour in signs.items() if colour in counts})
    return ax


def edge_probabilities(
    probabilities: pd.DataFrame | ArrayLike,
    truth: pd.DataFrame | ArrayLike | nx.DiGraph | None = None,
    ax: Axes | None = None,
    *,
    genes: Sequence[str] | None = None,
) -> Axes:
    """Heat map of the probability of each edge, causes down and effects across, causes before effects.

    The order is that of the truth where there is one (its edges are outlined), else that of the likely edges, so that a
    posterior that is sure of the order fills the upper triangle only.

    Parameters
    ----------
    probabilities : ``[d, d]``
    genes : list of str, optional
        Names, where ``probabilities`` is an array.
    """
    table = _table(probabilities, genes)
    true = None if truth is None else _like(truth, table)
    lead = table.to_numpy() > 0.5 if true is None else true
    order = sequence(nx.from_numpy_array(lead, create_using=nx.DiGraph))
    values, names = table.to_numpy()[np.ix_(order, order)], [str(table.index[i]) for i in order]
    if ax is None:
        side = min(2.6 + 0.16 * len(values), 9.0)
        ax = plt.subplots(figsize=(side + 0.9, side), layout="constrained")[1]
    shown = np.ma.masked_array(values, np.eye(len(values), dtype=bool))
    image = ax.imshow(shown, cmap="Blues", vmin=0, vmax=1, interpolation="none")
    ax.set_facecolor("0.9")
    if true is not None:
        _outline(ax, true[np.ix_(order, order)])
    _names(ax, names, names)
    ax.set(xlabel="effect", ylabel="cause")
    figure = ax.get_figure()
    assert figure is not None
    figure.colorbar(image, ax=ax, label="P(edge)", shrink=0.8)
    return ax


def precision_recall(scores: Mapping[str, Graph], truth: Graph, ax: Axes | None = None) -> Axes:
    """Precision against recall of edges ranked by each method, with average precision; dashed: ranked at random.

    A method that names edges without ranking them is a single point.

    Parameters
    ----------
    scores : dict name → ``[d, d]``
        Probabilities or weights, of which the size counts.
    """
    ax = _axes(ax)
    for colour, (name, score) in zip(PALETTE * len(scores), scores.items()):
        ranks, true = ranked_edges(score, truth)
        precision, recall, _ = precision_recall_curve(true, ranks)
        if len(np.unique(ranks[ranks > 0])) <= 1:
            named = ranks > 0
            hit = int((named & true).sum())
            ax.plot(hit / true.sum(), hit / max(named.sum(), 1), "o", color=colour, ms=7, mec="white", label=name)
            continue
        area = float(-(np.diff(recall) * precision[:-1]).sum())
        ax.step(recall, precision, where="pre", color=colour, lw=1.8, label=f"{name}, {area:.2f}")
    share = float(true.mean())
    ax.axhline(share, color="0.5", lw=1, ls="--", label=f"at random, {share:.2f}")
    ax.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.03))
    _tidy(ax)
    ax.legend(frameon=False, fontsize="small")
    return ax


def targets(
    estimate: pd.DataFrame, truth: pd.DataFrame | ArrayLike | None = None, ax: Axes | None = None, *, most: int = 80
) -> Axes:
    """Which environment acts on which gene: a map of targets, true ones outlined.

    Parameters
    ----------
    estimate : DataFrame ``[E, d]``
        True or False, or probabilities; ``targets_`` of an estimator.
    truth : DataFrame or array ``[E, d]``, optional
    most : int
        Environments to draw, those with most targets first among equals in the table's order.
    """
    true = None if truth is None else _like(truth, estimate)
    rows: NDArray[Any] = np.arange(len(estimate))
    if len(rows) > most:
        count = estimate.to_numpy(dtype=float).sum(1) if true is None else true.sum(1)
        rows = np.sort(np.argsort(-count, kind="stable")[:most])
    values = estimate.to_numpy(dtype=float)[rows]
    if ax is None:
        size = (2.2 + min(0.2 * values.shape[1], 11), 1.4 + min(0.2 * len(rows), 11))
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    image = ax.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="none")
    if true is not None:
        _outline(ax, true[rows])
    _names(ax, [str(estimate.index[e]) for e in rows], [str(gene) for gene in estimate.columns])
    ax.set(xlabel="gene", ylabel="environment")
    if ((values > 0) & (values < 1)).any():
        figure = ax.get_figure()
        assert figure is not None
        figure.colorbar(image, ax=ax, label="P(target)", shrink=0.8)
    return ax


def edge_calibration(calibration: EdgeCalibration, ax: Axes | None = None) -> Axes:
    """Share of true edges among those given a probability, with 95 % intervals; on the diagonal they mean what they say.

    Parameters
    ----------
    calibration : EdgeCalibration
        From :func:`pyro_cge.metrics.edge_calibration`.
    """
    ax = _axes(ax)
    table = calibration.table
    ax.plot([0, 1], [0, 1], color="0.6", lw=1, ls="--")
    below, above = table["share"] - table["share_low"], table["share_high"] - table["share"]
    ax.errorbar(
        table["probability"], table["share"], yerr=[below, above], fmt="o", color=PALETTE[0], ms=5, lw=1.2, capsize=2
    )
    for row in table.itertuples():
        ax.annotate(
            f"{row.n:,}",
            (row.probability, row.share_low),
            (0, -9),
            textcoords="offset points",
            fontsize=6,
            ha="center",
            color="0.4",
        )
    ax.set(xlabel="probability given to an edge", ylabel="share that is true", xlim=(-0.03, 1.03), ylim=(-0.08, 1.05))
    ax.set_title(f"mean distance {calibration.error:.3f}, largest {calibration.largest:.3f}", fontsize="medium")
    _tidy(ax)
    return ax


def _named(given: nx.Graph | pd.DataFrame) -> nx.DiGraph:
    if isinstance(given, pd.DataFrame):
        values = given.to_numpy(dtype=float)
        made = nx.DiGraph()
        made.add_nodes_from(given.index)
        for i, j in zip(*np.nonzero(values), strict=True):
            made.add_edge(given.index[i], given.columns[j], weight=float(values[i, j]))
        return made
    return nx.DiGraph(given)


def _once(drawn: nx.DiGraph) -> list[tuple[Any, Any, dict[str, Any]]]:
    """Each edge once, undirected ones too."""
    place = {node: k for k, node in enumerate(drawn)}
    return [(a, b, facts) for a, b, facts in drawn.edges(data=True) if not drawn.has_edge(b, a) or place[a] < place[b]]


def _joined(drawn: nx.DiGraph, a: Any, b: Any) -> bool:
    return drawn.has_edge(a, b) or drawn.has_edge(b, a)


def _strength(facts: dict[str, Any]) -> float:
    return abs(float(facts.get("weight", facts.get("probability", 1.0))))


def _verdict(drawn: nx.DiGraph, true: nx.DiGraph | None, a: Any, b: Any) -> str:
    """What an edge is beside the truth; without one, the colour of its sign."""
    both = drawn.has_edge(b, a)
    if true is None:
        weight = drawn.edges[a, b].get("weight")
        return PLAIN if weight is None or both else POSITIVE if weight > 0 else NEGATIVE
    forth, back = true.has_edge(a, b), true.has_edge(b, a)
    if not forth and not back:
        return "extra"
    if both == (forth and back) and (both or forth):
        return "right"
    return "direction open" if both or (forth and back) else "reversed"


def _table(values: pd.DataFrame | ArrayLike, genes: Sequence[str] | None) -> pd.DataFrame:
    if isinstance(values, pd.DataFrame):
        return values
    array = np.asarray(values, dtype=float)
    names = [f"x{j}" for j in range(len(array))] if genes is None else list(genes)
    return pd.DataFrame(array, index=names, columns=names)


def _like(truth: pd.DataFrame | ArrayLike | nx.DiGraph, table: pd.DataFrame) -> NDArray[np.bool_]:
    """The truth in the order of the table's rows and columns."""
    if isinstance(truth, nx.DiGraph):
        return np.asarray(nx.to_numpy_array(truth, nodelist=list(table.index), weight=None) != 0)
    if isinstance(truth, pd.DataFrame):
        return truth.loc[table.index, table.columns].to_numpy() != 0
    array = np.asarray(truth) != 0
    if array.shape != table.shape:
        raise ValueError(f"the truth must be {list(table.shape)} as the estimate is, got {list(array.shape)}")
    return array


def _outline(ax: Axes, where: NDArray[np.bool_]) -> None:
    for i, j in zip(*np.nonzero(where), strict=True):
        ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, ec=PALETTE[1], lw=1.2))
    ax.plot([], [], "s", mfc="none", mec=PALETTE[1], label="true")
    ax.legend(frameon=False, fontsize="small", loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)


def _names(ax: Axes, rows: list[str], columns: list[str], *, most: int = 60) -> None:
    for names, axis, turn in ((columns, ax.xaxis, 90), (rows, ax.yaxis, 0)):
        step = max(1, -(-len(names) // most))
        axis.set_ticks(range(0, len(names), step), names[::step], fontsize=7, rotation=turn)
    ax.tick_params(length=0)


def _legend(ax: Axes, lines: Mapping[str, tuple[str, Any]]) -> None:
    handles = [Line2D([], [], color=colour, ls=style, lw=1.8, label=name) for name, (colour, style) in lines.items()]
    ax.legend(handles=handles, frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))

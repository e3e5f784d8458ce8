"""Plots of graphs: what is drawn is what was given, in the right colour and place."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import same_color

from pyro_cge import metrics, plots
from pyro_cge.discovery import essential_graph, named_graph
from pyro_cge.plots.graphs import NEGATIVE, POSITIVE, VERDICTS
from pyro_cge.plots.layout import curve, layered, sequence

GENES = ["Raf", "Mek", "Erk", "Akt", "PKA"]
TRUTH = np.zeros((5, 5))
TRUTH[0, 1] = TRUTH[1, 2] = TRUTH[0, 2] = TRUTH[2, 3] = 1


@pytest.fixture(autouse=True)
def never_show(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *_, **__: pytest.fail("a plot called show"))


def lines(ax, colour):
    return [line for line in ax.lines if same_color(line.get_color(), colour)]


def heads(ax):
    return [text for text in ax.texts if text.get_text() == "" and text.arrow_patch is not None]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_graph_has_a_line_an_edge_in_the_colour_of_its_sign():
    weights = TRUTH * np.array([1.0, -2.0, 0.5, 1, 1])[:, None]
    ax = plots.graph(named_graph(weights, GENES, weight=weights))
    ax.figure.canvas.draw()
    assert len(lines(ax, POSITIVE)) == 3 and len(lines(ax, NEGATIVE)) == 1 and len(heads(ax)) == 4
    assert legend(ax) == ["positive", "negative"]
    assert {text.get_text() for text in ax.texts} >= set(GENES)
    [negative] = lines(ax, NEGATIVE)
    assert negative.get_lw() > max(line.get_lw() for line in lines(ax, POSITIVE)), "the strongest edge is the widest"
    table = pd.DataFrame(weights, index=GENES, columns=GENES)
    assert len(lines(plots.graph(table), POSITIVE)) == 3, "a table of weights will do"


def test_undirected_edges_are_drawn_once_without_a_head():
    chain = named_graph([[0, 1, 0], [0, 0, 1], [0, 0, 0]], list("abc"))
    ax = plots.graph(essential_graph(chain))
    assert len(ax.lines) == 2 and not heads(ax)
    ax = plots.graph(essential_graph(chain, [{"a"}]))
    assert len(ax.lines) == 2 and len(heads(ax)) == 2


def test_beside_a_truth_colours_say_what_is_right():
    estimate = np.zeros((5, 5))
    estimate[0, 1] = 1  # right
    estimate[2, 1] = 1  # reversed
    estimate[0, 2] = estimate[2, 0] = 1  # left open
    estimate[4, 0] = 1  # extra; 2 → 3 is missing
    ax = plots.graph(named_graph(estimate, GENES), named_graph(TRUTH, GENES), plt.subplots()[1])
    ax.figure.canvas.draw()
    assert sorted(legend(ax)) == sorted(f"{kind} (1)" for kind in VERDICTS)
    for colour, _ in VERDICTS.values():
        assert len(lines(ax, colour)) == 1
    assert len(heads(ax)) == 3
    found = metrics.edge_recovery(estimate, TRUTH)
    assert (found.reversed, found.extra, found.missing) == (1, 1, 1)
    with pytest.raises(ValueError, match="other genes"):
        plots.graph(nx.DiGraph([("a", "b")]), named_graph(TRUTH, GENES))


def test_an_empty_graph_and_a_cyclic_one_are_drawn():
    assert not plots.graph(named_graph(np.zeros((5, 5)), GENES)).lines
    assert len(plots.graph(nx.DiGraph([(0, 1), (1, 2), (2, 0)])).lines) == 3


@pytest.mark.parametrize("seed", range(5))
def test_layers_go_down_and_nodes_do_not_touch(seed):
    rng = np.random.default_rng(seed)
    order = rng.permutation(15)
    A = np.triu(rng.random((15, 15)) < 0.2, 1)[np.ix_(order, order)]
    dag = nx.from_numpy_array(A, create_using=nx.DiGraph)
    places, routes = layered(dag)
    assert set(places) == set(dag)
    assert all(places[a][1] > places[b][1] for a, b in dag.edges)
    at = np.array(list(places.values()))
    apart = np.linalg.norm(at[:, None] - at, axis=-1) + 9 * np.eye(15)
    assert apart.min() > 1 - 1e-9
    for (a, b), route in routes.items():
        assert (route[0], route[-1]) == (places[a], places[b])
    rank = {node: k for k, node in enumerate(sequence(dag))}
    assert all(rank[a] < rank[b] for a, b in dag.edges)


def test_curves_pass_through_their_points():
    points = [(0.0, 0.0), (1.0, -1.0), (0.5, -2.0)]
    np.testing.assert_allclose(curve(points)[::16], points, atol=1e-12)
    np.testing.assert_allclose(curve(points[:2])[8], [0.5, -0.5])


def test_edge_probabilities_are_ordered_by_the_truth_and_outlined():
    shuffled = [3, 0, 4, 2, 1]
    P = np.random.default_rng(0).random((5, 5))[np.ix_(shuffled, shuffled)]
    true, genes = TRUTH[np.ix_(shuffled, shuffled)], [GENES[k] for k in shuffled]
    ax = plots.edge_probabilities(P, true, genes=genes)
    ax.figure.canvas.draw()
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names == [text.get_text() for text in ax.get_xticklabels()]
    shown = ax.images[0].get_array()
    for row, cause in enumerate(names):
        for column, effect in enumerate(names):
            if row != column:
                assert shown[row, column] == P[genes.index(cause), genes.index(effect)]
    assert len(ax.patches) == 4
    assert all(patch.get_x() > patch.get_y() for patch in ax.patches), "true edges are above the diagonal"
    graph = named_graph(true, genes)
    again = plots.edge_probabilities(pd.DataFrame(P, index=genes, columns=genes), graph)
    assert [text.get_text() for text in again.get_yticklabels()] == names
    with pytest.raises(ValueError, match=r"\[5, 5\]"):
        plots.edge_probabilities(P, np.zeros((4, 4)))


def test_precision_recall_names_each_method_with_its_area():
    rng = np.random.default_rng(0)
    scores = {"random": rng.random((5, 5)), "good": TRUTH + 0.5 * rng.random((5, 5)), "edges": TRUTH}
    ax = plots.precision_recall(scores, TRUTH, plt.subplots()[1])
    labels = legend(ax)
    assert labels[:2] == [f"{name}, {metrics.edge_aupr(scores[name], TRUTH):.2f}" for name in ("random", "good")]
    assert labels[2] == "edges" and labels[3] == "at random, 0.20"
    point = next(line for line in ax.lines if line.get_label() == "edges")
    assert (point.get_xdata()[0], point.get_ydata()[0]) == (1, 1)


def test_targets_keep_rows_and_outline_the_truth():
    table = pd.DataFrame(np.eye(4, 5, k=1, dtype=bool), index=["ctrl", "a", "b", "c"], columns=GENES)
    ax = plots.targets(table, table.to_numpy())
    np.testing.assert_array_equal(ax.images[0].get_array(), table.to_numpy())
    assert [text.get_text() for text in ax.get_yticklabels()] == ["ctrl", "a", "b", "c"]
    assert len(ax.patches) == 4
    few = plots.targets(table * 0.5, table.iloc[::-1], most=2)
    assert few.images[0].get_array().shape == (2, 5) and len(few.patches) == 2


def test_edge_calibration_states_its_error():
    rng = np.random.default_rng(0)
    p = rng.random((30, 30))
    calibration = metrics.edge_calibration(p, rng.random((30, 30)) < p)
    ax = plots.edge_calibration(calibration, plt.subplots()[1])
    assert f"{calibration.error:.3f}" in ax.get_title()
    assert {text.get_text() for text in ax.texts} == {f"{n:,}" for n in calibration.table["n"]}

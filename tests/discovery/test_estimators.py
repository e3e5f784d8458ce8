"""What all estimators of a graph with a Pyro model share: names, errors before a fit, silence, and no data in their state."""

from __future__ import annotations

import sys

import networkx as nx
import numpy as np
import pandas as pd
import pyro
import pytest
import torch

from pyro_cge.discovery import (
    DAGGNN,
    EdgeWeights,
    FactorDAG,
    InterventionalSCM,
    LinearSCM,
    LiNGAM,
    NonparametricSCM,
    TissueSCM,
)
from pyro_cge.errors import ConfigError

CELLS = 83  # of all environments; no other size is this number

QUICK = {
    "DAGGNN": lambda **kw: DAGGNN(steps=2, **kw),
    "EdgeWeights": lambda **kw: EdgeWeights(nx.DiGraph([("x0", "x1"), ("x1", "x2")]), epochs=1, **kw),
    "FactorDAG": lambda **kw: FactorDAG(2, starts=1, steps=10, threshold=0.0, **kw),
    "InterventionalSCM": lambda **kw: InterventionalSCM(steps=2, draws=20, **kw),
    "LinearSCM": lambda **kw: LinearSCM(**kw),
    "LiNGAM": lambda **kw: LiNGAM(steps=2, **kw),
    "NonparametricSCM": lambda **kw: NonparametricSCM(steps=2, **kw),
    "TissueSCM": lambda **kw: TissueSCM(steps=2, **kw),
}
SEARCHING = ["DAGGNN", "InterventionalSCM", "LinearSCM", "NonparametricSCM", "TissueSCM"]


def data():
    """``x0 → x1 → x2``, and environments of 40 and 43 cells."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(CELLS, 3))
    x[:, 1] += x[:, 0]
    x[40:, 1] += 2
    x[:, 2] -= x[:, 1]
    return pd.DataFrame(x, columns=["x0", "x1", "x2"]), np.repeat(["a", "b"], [40, 43])


def fitted(name, **settings):
    x, env = data()
    model = QUICK[name](**settings)
    return model.fit(x, env) if name in ("InterventionalSCM", "TissueSCM") else model.fit(x)


@pytest.mark.parametrize("name", QUICK)
def test_before_a_fit_there_is_one_clear_error(name):
    for ask in (lambda m: m.model(), lambda m: m.guide()):
        with pytest.raises(ConfigError, match=f"{name} has seen no data yet"):
            ask(QUICK[name]())


def test_what_else_needs_a_fit_says_so():
    for ask in (
        lambda: FactorDAG().factors(),
        lambda: FactorDAG().log_likelihood(data()[0]),
        lambda: EdgeWeights().posterior(),
        lambda: InterventionalSCM().posterior(),
        lambda: InterventionalSCM().predict(),
    ):
        with pytest.raises(ConfigError, match="has seen no data yet"):
            ask()


@pytest.mark.parametrize("name", QUICK)
def test_what_is_saved_has_no_cells_in_it(name):
    """And what is saved is all there is to load into a model of the same data."""
    model, other = fitted(name), fitted(name, random_state=1)
    state = model.state_dict()
    assert state and not any(CELLS in value.shape for value in state.values())
    other.load_state_dict(state)
    for key, value in other.state_dict().items():
        assert torch.equal(value, state[key])


@pytest.mark.parametrize("name", QUICK)
def test_names_are_the_same_everywhere(name):
    model, d = fitted(name), 3
    assert np.shape(model.adjacency_) == (d, d) and set(np.unique(model.adjacency_)) <= {0, 1}
    assert np.shape(model.weights_)[-2:] == (d, d)
    if name != "InterventionalSCM":  # whose weights are means over graphs
        assert not np.asarray(model.weights_)[..., np.asarray(model.adjacency_) == 0].any()
    assert (nx.to_numpy_array(model.graph_, nodelist=model.genes_, weight=None) == model.adjacency_).all()
    place = [model.order_.index(gene) for gene in model.genes_]
    assert sorted(place) == list(range(d))
    assert all(place[i] < place[j] for i, j in np.argwhere(model.adjacency_))


@pytest.mark.parametrize("name", SEARCHING)
def test_no_bar_means_none_of_the_search_within_either(name, capsys, monkeypatch):
    """On a terminal."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fitted(name, progress=False)
    assert capsys.readouterr().err == ""
    fitted(name, progress=True)
    assert "fit" in capsys.readouterr().err


@pytest.mark.parametrize("name", QUICK)
def test_nothing_global_changes(name):
    before = torch.get_rng_state()
    fitted(name)
    assert torch.equal(before, torch.get_rng_state()) and not list(pyro.get_param_store())
    assert torch.get_default_dtype() == torch.float32

"""The posterior of edge weights: against least squares, Pyro's own bound, and the dense linear law."""

from __future__ import annotations

import sys

import networkx as nx
import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from scipy.sparse import issparse

from pyro_cge.discovery import EdgeWeights
from pyro_cge.discovery.distributions import LinearSEM
from pyro_cge.discovery.edge_weights import SparseSEM
from pyro_cge.errors import ConfigError

GRAPH = nx.DiGraph([("x0", "x1"), ("x0", "x2"), ("x1", "x2")])


def triangle(n=400):
    rng = np.random.default_rng(0)
    a = 2 + rng.normal(size=n)
    b = 0.7 * a + rng.normal(size=n)
    return np.c_[a, b, 1.5 * a - b + 0.5 * rng.normal(size=n)]


def small_law():
    edges = torch.tensor([[0, 0, 1, 2], [1, 2, 2, 3]])
    weight = torch.tensor([0.5, -1.0, 2.0, 0.3], dtype=torch.float64)
    scale = torch.tensor([1.0, 0.5, 2.0, 1.5], dtype=torch.float64)
    W = torch.zeros(4, 4, dtype=torch.float64)
    W[edges[0], edges[1]] = weight
    return SparseSEM(edges, weight, scale, torch.tensor([1, 2, 2, 3])), LinearSEM(W, 0.0, scale, acyclic=True)


def test_the_law_is_the_dense_one():
    sparse, dense = small_law()
    x = dense.sample((5,))
    assert torch.allclose(sparse.log_prob(x), dense.log_prob(x))
    torch.manual_seed(0)
    draws = sparse.sample((100_000,))
    inverse = torch.linalg.inv(torch.eye(4, dtype=torch.float64) - dense.W)
    covariance = inverse.T @ torch.diag(sparse.scale**2) @ inverse
    assert torch.allclose(draws.T.cov(), covariance, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("prior", ["laplace", "horseshoe"])
def test_the_bound_is_pyros(prior):
    scm = EdgeWeights(GRAPH, prior=prior, epochs=5).fit(triangle())
    everything = torch.arange(400)
    draws = [Trace_ELBO().loss(scm.model, scm.guide, scm.x_, everything) / 400 for _ in range(300)]
    error = np.std(draws) / np.sqrt(len(draws))
    assert abs(np.mean(draws) - float(scm.bound(everything).detach())) < 5 * error  # fails once in 10^6 seeds
    halves = [float(scm.bound(half).detach()) for half in everything.split(200)]
    assert np.mean(halves) == pytest.approx(float(scm.bound(everything).detach())), "minibatches are unbiased"


@pytest.mark.parametrize("prior", ["laplace", "horseshoe"])
def test_least_squares_and_its_errors(prior):
    """400 cells leave a wide prior nothing to say."""
    x = triangle()
    table = (
        EdgeWeights(GRAPH, prior=prior, prior_scale=3.0, epochs=100).fit(x).posterior().set_index(["cause", "effect"])
    )
    y = x - x.mean(0)
    for effect, causes in ((1, [0]), (2, [0, 1])):
        block = y[:, causes]
        beta = np.linalg.lstsq(block, y[:, effect], rcond=None)[0]
        s2 = ((y[:, effect] - block @ beta) ** 2).mean()
        errors = np.sqrt(np.diag(np.linalg.inv(block.T @ block)) * s2)
        for k, cause in enumerate(causes):
            row = table.loc[(f"x{cause}", f"x{effect}")]
            assert row.weight == pytest.approx(beta[k], abs=0.15 * errors[k])
            assert row.sd == pytest.approx(errors[k], rel=0.1)


def test_matrices_are_those_of_the_graph(monkeypatch):
    """Sparse ones for many genes."""
    scm = EdgeWeights(GRAPH, epochs=2).fit(triangle())
    table = scm.posterior().set_index(["cause", "effect"])["weight"]
    for i in range(3):
        for j in range(3):
            assert scm.weights_[i, j] == table.get((f"x{i}", f"x{j}"), 0.0)
    assert (scm.adjacency_ == (scm.weights_ != 0)).all() and scm.order_ == ["x0", "x1", "x2"]
    monkeypatch.setattr("pyro_cge.discovery.edge_weights.DENSE", 2)
    sparse = EdgeWeights(GRAPH, epochs=2).fit(triangle())
    assert issparse(sparse.weights_) and (sparse.weights_.toarray() == scm.weights_).all()
    assert issparse(sparse.adjacency_) and (sparse.adjacency_.toarray() == scm.adjacency_).all()


def test_environments_are_no_single_law():
    with pytest.raises(ConfigError, match="one law"):
        EdgeWeights(GRAPH).fit(triangle(), ["a"] * 200 + ["b"] * 200)


def test_plain_pyro_works():
    scm = EdgeWeights(GRAPH).start(triangle())
    assert not list(pyro.get_param_store())
    svi = SVI(scm.model, scm.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    index = torch.arange(50)
    assert np.isfinite(svi.step(scm.x_[index], index))
    draws = Predictive(scm.model, guide=scm.guide, num_samples=20)(n=30)
    assert draws["x"].shape == (20, 30, 3)
    assert draws["x"].var((0, 1)) == pytest.approx(np.ones(3), rel=0.4), "as the standardised columns"


def test_the_graph_may_come_from_the_search():
    rng = np.random.default_rng(1)
    x = np.cumsum(rng.normal(size=(300, 5)), 1)
    scm = EdgeWeights(epochs=2).fit(x)
    assert {frozenset(edge) for edge in scm.graph_.edges} == {frozenset((f"x{j}", f"x{j + 1}")) for j in range(4)}
    assert all(facts["sd"] > 0 for _, _, facts in scm.graph_.edges(data=True))


def test_no_bar_means_none_of_the_search_either(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    EdgeWeights(epochs=1, progress=False).fit(triangle())
    assert capsys.readouterr().err == ""


def test_a_graph_without_edges():
    scm = EdgeWeights(nx.DiGraph(), epochs=1).fit(triangle())
    assert scm.posterior().empty and set(scm.graph_) == {"x0", "x1", "x2"}


def test_bad_input_is_refused():
    with pytest.raises(ConfigError, match="cycle"):
        EdgeWeights(nx.DiGraph([("x0", "x1"), ("x1", "x0")]))
    with pytest.raises(ConfigError, match="no genes of the data: \\['y'\\]"):
        EdgeWeights(nx.DiGraph([("x0", "y")])).fit(triangle())
    for options in ({"prior": "flat"}, {"prior_scale": 0}, {"lr": 0}, {"epochs": -1}, {"batch_size": 0}):
        with pytest.raises(ConfigError):
            EdgeWeights(**options)

"""Sign beliefs over tissues against conjugate updates and quadrature."""

from __future__ import annotations

import math

import networkx as nx
import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO

from pyro_cge.discovery import ENHANCES, REPRESSES, TissueSCM
from pyro_cge.discovery.distributions import SignedNormal
from pyro_cge.errors import ConfigError

GRAPH = nx.DiGraph([("a", "b"), ("b", "c")])


def tissues(weights, n=100, seed=0):
    """``a → b → c`` in as many tissues as there are rows of ``weights``."""
    import pandas as pd

    rng, parts = np.random.default_rng(seed), []
    for ab, bc in weights:
        a = rng.normal(size=n)
        b = ab * a + rng.normal(size=n)
        parts.append(np.c_[a, b, bc * b + rng.normal(size=n)] + rng.normal(size=3))
    return pd.DataFrame(np.concatenate(parts), columns=list("abc")), np.repeat(
        [f"t{i}" for i in range(len(weights))], n
    )


def test_density_of_a_signed_effect():
    w = torch.linspace(-12, 12, 40001).double()
    for share, scale in ((0.8, 1.0), (0.5, 2.0), (0.05, 0.3)):
        law = SignedNormal(torch.tensor(share).double(), torch.tensor(scale).double())
        density = law.log_prob(w).exp()
        assert torch.trapezoid(density, w).item() == pytest.approx(1, abs=1e-6)
        if share == 0.5:
            torch.testing.assert_close(law.log_prob(w), torch.distributions.Normal(0.0, scale).log_prob(w))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            drawn = law.sample((20000,))
        positive = torch.trapezoid(density * (w > 0), w).item()
        assert (drawn > 0).double().mean().item() == pytest.approx(positive, abs=5 * 0.5 / math.sqrt(20000))
        assert drawn.abs().mean().item() == pytest.approx(scale * math.sqrt(2 / math.pi), rel=0.03)


def test_share_of_clear_signs_is_the_beta_update():
    """Seven of nine tissues enhance: Beta(8 + 7, 2 + 2), weights far from zero."""
    x, tissue = tissues([(1.5, -1.5)] * 7 + [(-1.5, -1.5)] * 2)
    model = TissueSCM(GRAPH, signs={("a", "b"): ENHANCES}, steps=400).fit(x, tissue)
    share = model.shares_.set_index(["cause", "effect"])
    a, b = 15.0, 4.0
    assert share.loc[("a", "b"), "mean"] == pytest.approx(a / (a + b), abs=0.03)
    assert share.loc[("a", "b"), "sd"] == pytest.approx(math.sqrt(a * b / (a + b) ** 2 / (a + b + 1)), abs=0.03)
    assert share.loc[("b", "c"), "mean"] == pytest.approx(1 / 11, abs=0.04)
    np.testing.assert_allclose(model.weights_[:, 0, 1], [1.5] * 7 + [-1.5] * 2, atol=0.4)


def test_belief_decides_the_sign_of_a_weak_effect():
    """A small tissue where nothing can be seen takes the sign believed, and leaves it where others say otherwise."""
    strong, small = tissues([(1.5, 1.0)] * 8), tissues([(0.0, 1.0)], n=8, seed=5)
    x = type(strong[0])(np.concatenate([strong[0], small[0]]), columns=list("abc"))
    tissue = np.r_[strong[1], ["small"] * 8]

    def positive(signs):
        table = (
            TissueSCM(GRAPH, signs=signs, steps=300).fit(x, tissue).effects_.set_index(["tissue", "cause", "effect"])
        )
        return table.loc[("small", "a", "b"), "positive"]

    believed = positive({("a", "b"): (40.0, 1.0)})
    against = positive({("a", "b"): (1.0, 400.0)})
    assert believed > against + 0.2


def test_graph_is_found_where_none_is_given():
    x, tissue = tissues([(1.0, 1.0), (1.2, -1.0), (0.8, 1.0)], n=300)
    model = TissueSCM(steps=50).fit(x, tissue)
    assert {frozenset(edge) for edge in model.graph_.edges} >= {frozenset("ab")}
    assert set(model.effects_["tissue"]) == {"t0", "t1", "t2"} and model.history_[-1] < model.history_[0] + 1e3


def test_edges_with_a_sign_are_in_the_graph_that_is_found():
    """Against the search's direction, and where it finds nothing: ``c → a`` weighs little, and its sign is the one believed."""
    x, tissue = tissues([(1.0, 0.0)] * 3, n=300)
    free = TissueSCM(steps=5).fit(x, tissue)
    (found,) = free.graph_.edges
    assert set(found) == {"a", "b"}
    turned = found[::-1]
    model = TissueSCM(signs={turned: ENHANCES, ("c", "a"): REPRESSES}, steps=150).fit(x, tissue)
    assert set(model.graph_.edges) == {turned, ("c", "a")}
    share = model.shares_.set_index(["cause", "effect"])["mean"]
    assert share[turned] > 0.75 and share["c", "a"] < 0.4
    assert model.effects_.query("cause == 'c'")["mean"].abs().max() < 0.2


def test_signs_that_no_graph_has():
    x, tissue = tissues([(1.0, 1.0)] * 2)
    with pytest.raises(ConfigError, match="cycle"):
        TissueSCM(signs={("a", "b"): ENHANCES, ("b", "a"): ENHANCES}).fit(x, tissue)
    with pytest.raises(ConfigError, match="names 'z', which is not among the 3 genes"):
        TissueSCM(signs={("a", "z"): ENHANCES}).fit(x, tissue)


def test_plain_pyro():
    x, tissue = tissues([(1.0, 1.0)] * 3)
    model = TissueSCM(GRAPH).start(x, tissue)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    assert all(math.isfinite(svi.step(model.grams)) for _ in range(3))
    assert Predictive(model.model, num_samples=4)(None, 5)["x"].shape == (4, 5, 3, 1, 3)
    assert Predictive(model.model, guide=model.guide, num_samples=4)(None, 5)["x"].shape == (4, 5, 3, 1, 3)
    pyro.render_model(model.model, model_args=(model.grams,))


def test_bad_input():
    x, tissue = tissues([(1.0, 1.0)] * 2)
    with pytest.raises(ConfigError, match="must be a DAG"):
        TissueSCM(nx.DiGraph([("a", "b"), ("b", "a")]))
    with pytest.raises(ConfigError, match=r"needs two positive numbers \(a, b\), got \(0, 1\)"):
        TissueSCM(GRAPH, signs={("a", "b"): (0, 1)})
    with pytest.raises(ConfigError, match=r"\['z'\], which are not among the genes"):
        TissueSCM(nx.DiGraph([("a", "z")])).fit(x, tissue)
    with pytest.raises(ConfigError, match="'a' → 'c', which is not an edge"):
        TissueSCM(GRAPH, signs={("a", "c"): ENHANCES}).fit(x, tissue)
    with pytest.raises(ConfigError, match="has seen no data yet"):
        TissueSCM().model()

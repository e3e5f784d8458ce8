"""What every estimator of a graph does, whatever it assumes."""

from __future__ import annotations

import inspect

import anndata
import networkx as nx
import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO

from pyro_cge.discovery import (
    DAGGNN,
    FactorDAG,
    InterventionalSCM,
    Knowledge,
    LargeOrderSearch,
    LinearSCM,
    LiNGAM,
    NonparametricSCM,
    OrderDAG,
    OrderSearch,
    UtIgsp,
)
from pyro_cge.discovery.inputs import samples
from pyro_cge.errors import ConfigError, DataError

GENES = ["a", "b", "c", "d", "e"]
ONE_LAW = {
    "OrderSearch": OrderSearch,
    "OrderDAG": lambda **s: OrderDAG(draws=50, **s),
    "LargeOrderSearch": LargeOrderSearch,
    "LinearSCM": LinearSCM,
    "NOTEARS": LinearSCM.notears,
    "DAGMA": LinearSCM.dagma,
    "GOLEM": LinearSCM.golem,
    "NonparametricSCM": lambda **s: NonparametricSCM(steps=20, **s),
    "DAGGNN": lambda **s: DAGGNN(steps=20, hidden=8, **s),
    "LiNGAM": lambda **s: LiNGAM(steps=20, **s),
    "FactorDAG": lambda **s: FactorDAG(n_modules=2, starts=1, steps=30, **s),
}
ENVIRONMENTS = {
    "OrderSearch": OrderSearch,
    "InterventionalSCM": lambda **s: InterventionalSCM(steps=20, draws=20, **s),
    "UtIgsp": UtIgsp,
}
ALL = {**ONE_LAW, **{f"{name}, environments": build for name, build in ENVIRONMENTS.items()}}
PYRO = [name for name, build in ALL.items() if hasattr(build(), "guide")]


def rows(n=200, seed=0):
    """``a → b → c``, ``a → d``, ``e`` alone; skewed noise, so that every method has something to go by."""
    rng = np.random.default_rng(seed)
    noise = rng.laplace(size=(n, 5))
    a = noise[:, 0]
    b = a + noise[:, 1]
    c = -b + noise[:, 2]
    d = 0.8 * a + noise[:, 3]
    return pd.DataFrame(np.c_[a, b, c, d, noise[:, 4]], columns=GENES)


def data(name):
    """Arguments of ``fit``: rows, and environments where the estimator is here for them."""
    x = rows()
    if "environments" not in name:
        return {"X": x}
    moved = rows(seed=1)
    moved["b"] += 3.0
    moved["c"] -= 3.0
    return {"X": pd.concat([x, moved], ignore_index=True), "env": np.repeat(["control", "drug"], 200)}


@pytest.fixture(scope="module")
def fitted():
    done = {}

    def get(name):
        if name not in done:
            done[name] = ALL[name]().fit(**data(name))
        return done[name]

    return get


@pytest.mark.parametrize("name", ALL)
def test_answer_is_a_dag_with_names(name, fitted):
    model = fitted(name)
    assert model.genes_ == GENES
    adjacency = np.asarray(model.adjacency_)
    assert adjacency.shape == (5, 5) and set(np.unique(adjacency)) <= {0, 1}
    assert list(model.graph_) == GENES and nx.is_directed_acyclic_graph(model.graph_)
    assert {(GENES[i], GENES[j]) for i, j in np.argwhere(adjacency)} == set(model.graph_.edges)
    if hasattr(model, "weights_"):
        assert np.isfinite(model.weights_).all()
        if not hasattr(model, "edge_probabilities_"):
            assert not np.asarray(model.weights_)[adjacency == 0].any()
    if hasattr(model, "edge_probabilities_"):
        assert model.edge_probabilities_.min() >= 0 and model.edge_probabilities_.max() <= 1 + 1e-12
    if hasattr(model, "targets_"):
        assert list(model.targets_.columns) == GENES and not model.targets_.iloc[0].any()


@pytest.mark.parametrize("name", ALL)
def test_same_seed_same_answer_and_nothing_global_moves(name, fitted):
    model = fitted(name)
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.get_default_dtype()
    pyro.clear_param_store()
    again = ALL[name]().fit(**data(name))
    assert torch.equal(before[0], torch.get_rng_state()) and before[2] == torch.get_default_dtype()
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])
    assert not list(pyro.get_param_store().keys())
    np.testing.assert_array_equal(again.adjacency_, model.adjacency_)
    if hasattr(model, "weights_"):
        np.testing.assert_array_equal(again.weights_, model.weights_)


@pytest.mark.parametrize("name", ALL)
def test_arrays_tables_and_anndata_are_the_same(name, fitted):
    given = data(name)
    x, env = given["X"], given.get("env")
    profiles = anndata.AnnData(x.to_numpy(), var=pd.DataFrame(index=GENES))
    settings = {"env": env} if env is not None else {}
    from_array = ALL[name]().fit(x.to_numpy(), **settings)
    from_anndata = ALL[name]().fit(profiles, **settings)
    assert from_array.genes_ == [f"x{j}" for j in range(5)] and from_anndata.genes_ == GENES
    np.testing.assert_array_equal(from_array.adjacency_, fitted(name).adjacency_)
    np.testing.assert_array_equal(from_anndata.adjacency_, fitted(name).adjacency_)


@pytest.mark.parametrize("name", ALL)
def test_knowledge_is_enforced(name):
    build = ALL[name]
    if "knowledge" not in inspect.signature(type(build()).__init__).parameters:
        pytest.skip("takes no prior knowledge")
    model = build(knowledge=Knowledge(forbidden=[("a", "b"), ("b", "a")])).fit(**data(name))
    assert not model.graph_.has_edge("a", "b") and not model.graph_.has_edge("b", "a")


def spoiled(kind):
    x = rows()
    if kind == "NaN":
        x.iloc[3, 2] = np.nan
    elif kind == "infinite":
        x.iloc[3, 2] = np.inf
    elif kind == "constant":
        x["c"] = 1.0
    elif kind == "duplicate":
        x["c"] = 2 * x["a"]
    elif kind == "same name":
        x.columns = ["a", "b", "b", "d", "e"]
    elif kind == "two rows":
        x = x.iloc[:2]
    return x


@pytest.mark.parametrize("kind", ["NaN", "infinite", "constant", "duplicate", "same name", "two rows"])
@pytest.mark.parametrize("name", ALL)
def test_unusable_data_are_one_clear_error(name, kind):
    x = spoiled(kind)
    env = {"env": ["control", "drug"] * (len(x) // 2)} if "environments" in name else {}
    with pytest.raises(DataError):
        ALL[name]().fit(x, **env)


@pytest.mark.parametrize("name", ALL)
def test_an_environment_of_one_sample(name):
    env = np.array(["control"] * 199 + ["drug"])
    with pytest.raises((DataError, ConfigError), match="single sample|environment"):
        ALL[name]().fit(rows(), env)


@pytest.mark.parametrize("name", PYRO)
def test_plain_svi_trains(name):
    """Every parameter of the guide reaches the parameter store, and moves."""
    model = ALL[name]().start(**data(name))
    given = model.grams if hasattr(model, "grams") else torch.from_numpy(samples(data(name)["X"]).scaled)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    elbo = TraceEnum_ELBO(max_plate_nesting=2) if "Interventional" in name else Trace_ELBO()
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-2}), elbo)
    losses = [svi.step(given) for _ in range(3)]
    pyro.clear_param_store()
    assert np.isfinite(losses).all()
    assert any(not torch.equal(before[key], value) for key, value in model.named_parameters())


@pytest.mark.parametrize("name", PYRO)
def test_guide_names_sites_of_the_model(name):
    model = ALL[name]().start(**data(name))
    pyro.set_rng_seed(0)
    guide = poutine.trace(model.guide).get_trace()
    free = poutine.trace(model.model).get_trace()
    latent = {
        s for s, site in guide.nodes.items() if site["type"] == "sample" and not site["infer"].get("is_auxiliary")
    }
    known = {s for s, site in free.nodes.items() if site["type"] == "sample"}
    assert latent - {s for s in latent if type(guide.nodes[s]["fn"]).__name__ == "_Subsample"} <= known
    assert "x" in known and "x" not in latent
    assert all(p.requires_grad for p in model.parameters())

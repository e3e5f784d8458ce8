"""The autoencoder against Pyro's bound and the linear model it contains; graphs against the truth and trivial answers."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch import nn

from pyro_cge.discovery import DAGGNN, AugmentedLagrangian, CentralPath, Knowledge
from pyro_cge.errors import ConfigError, DataError


def bent(n=300, seed=0):
    """``x0 → x1 → x2``, ``x0 → x2``, ``x3`` alone; units differ."""
    rng = np.random.default_rng(seed)
    x0 = rng.normal(size=n)
    x1 = 2 * np.tanh(2 * x0) + 0.5 * rng.normal(size=n)
    x2 = np.cos(1.5 * x1) * 2 + x0**2 + 0.5 * rng.normal(size=n)
    return np.c_[x0, x1, x2, rng.normal(size=n)] * [1.0, 10.0, 0.1, 3.0] + [5, 0, 0, -2]


TRUTH = np.array([[0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


def differences(a, b):
    return int(((a != b) | (a != b).T)[np.triu_indices(len(a), 1)].sum())


def moved(scm):
    """Weights away from where they start, so that nothing is zero by chance."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in scm.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, dtype=torch.double, generator=generator)
    return scm


def test_the_objective_is_pyros_bound():
    """200 draws each: further apart than five standard errors in less than one in a million runs."""
    scm = moved(DAGGNN(hidden=8).start(bent(60)))
    with torch.no_grad():
        ours = torch.stack([scm.objective(scm.x_) for _ in range(200)])
        theirs = torch.tensor([Trace_ELBO().loss(scm.model, scm.guide, scm.x_) for _ in range(200)]) / 60
    error = (ours.var() / 200 + theirs.var() / 200).sqrt()
    assert abs(ours.mean() - theirs.mean()) < 5 * error


def test_a_minibatch_stands_for_all_rows():
    """Averaged over the three thirds of the data the bound is that of all; so is Pyro's."""
    scm = moved(DAGGNN(hidden=8).start(bent(60)))
    thirds = scm.x_.split(20)
    with torch.no_grad():
        whole = torch.stack([scm.objective(scm.x_) for _ in range(150)])
        parts = torch.stack([sum(scm.objective(part) for part in thirds) / 3 for _ in range(150)])
        pyros = torch.tensor(
            [sum(Trace_ELBO().loss(scm.model, scm.guide, t) for t in thirds) / 180 for _ in range(150)]
        )
    for other in (parts, pyros):
        error = (whole.var() / 150 + other.var() / 150).sqrt()
        assert abs(whole.mean() - other.mean()) < 5 * error


def test_with_identity_networks_it_is_the_linear_model():
    """``decode`` is ``z (I − W)⁻¹`` and ``encode`` its inverse (Yu et al. 2019, equations 1 and 2)."""
    scm = moved(DAGGNN().start(bent(50)))
    W = scm.W_loc.detach() * scm.free
    scm.decoder, scm.encoder = nn.Identity(), _Twice()
    z = torch.randn(50, 4).double()
    x = scm.decode(z, W)
    assert torch.allclose(x @ W + z, x), "x = xW + z"
    assert torch.allclose(scm.encode(x, W)[0], z)
    batch = torch.stack([W, 0 * W]).unsqueeze(1)
    assert torch.allclose(scm.decode(z.expand(2, 50, 4), batch), torch.stack([x, z]))


class _Twice(nn.Module):
    def forward(self, x):
        return x.expand(*x.shape[:-1], 2)


def test_every_parameter_has_a_gradient():
    scm = moved(DAGGNN(hidden=4).start(bent(30)))
    scm.objective(scm.x_).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in scm.parameters())
    assert (scm.W_loc.grad[~scm.free] == 0).all()


def test_the_fit_improves_the_bound_and_keeps_the_graph_of_the_search():
    x = bent()
    start = DAGGNN().start(x)
    with torch.no_grad():
        before = torch.stack([start.objective(start.x_) for _ in range(20)]).mean().item()
    found = DAGGNN(steps=300).fit(x)
    assert found.objective_ < before - 0.5
    assert (found.adjacency_ == TRUTH).all()
    assert found.graph_.edges["x0", "x1"]["weight"] == found.weights_[0, 1] != 0
    none = DAGGNN(steps=5, path=CentralPath(), threshold=100.0).fit(x)
    assert not none.adjacency_.any()


@pytest.mark.parametrize("acyclicity", ["trace-exponential", "log-det", "spectral"])
def test_a_path_ends_in_a_dag(acyclicity):
    """Also where it is stopped long before the constraint holds."""
    path = AugmentedLagrangian(rounds=2, rho_max=10)
    found = DAGGNN(hidden=8, path=path, acyclicity=acyclicity, steps=40, threshold=0.0).fit(bent(100))
    assert nx.is_directed_acyclic_graph(found.graph_)
    assert found.adjacency_.any() and not (found.W_loc.detach().numpy() != 0)[found.adjacency_ == 0].any()


def test_it_is_a_pyro_model():
    found = DAGGNN(steps=200).fit(bent())
    sites = poutine.trace(found.model).get_trace(found.x_).nodes
    assert sites["W"]["fn"].event_shape == (4, 4) and sites["z"]["cond_indep_stack"][0].name == "cells"
    drawn = Predictive(found.model, guide=found.guide, num_samples=2)(n=500)["x"]
    assert drawn.shape == (2, 500, 4) and drawn.isfinite().all() and not torch.equal(drawn[0], drawn[1])
    svi = SVI(found.model, found.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    assert np.isfinite(svi.evaluate_loss(found.x_))


def test_knowledge_is_exact():
    known = Knowledge(required=[("x3", "x0")], forbidden=[("x0", "x2")])
    found = DAGGNN(knowledge=known, steps=20).fit(bent())
    assert found.graph_.has_edge("x3", "x0") and not found.graph_.has_edge("x0", "x2")
    strict = DAGGNN(knowledge=known, steps=20, threshold=100.0).fit(bent())
    assert list(strict.graph_.edges) == [("x3", "x0")] and strict.weights_[3, 0] == strict.W_loc[3, 0].item() != 0
    with pytest.raises(ConfigError, match="required edges"):
        DAGGNN(knowledge=known, path=CentralPath()).fit(bent())


def test_the_same_seed_gives_the_same_answer_and_no_other_randomness_changes():
    before = torch.get_rng_state()
    one, two = (DAGGNN(steps=20).fit(bent(100)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert (one.weights_ == two.weights_).all() and one.objective_ == two.objective_


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mlp", "gp", "gp-add"])
def test_reference_problems_beat_the_trivial_answers(real_data, family):
    """ER2, d = 20: the empty graph, and the complete order by variance with parents of a correlation above 0.1."""
    with np.load(real_data / "causal" / "reference" / f"NL_ER2_d20_{family}_s0.npz") as arrays:
        x, truth = arrays["X"], arrays["B"] != 0
    found = DAGGNN(steps=300).fit(x)
    rank = np.argsort(np.argsort(x.var(0)))
    by_variance = (rank[:, None] < rank) & (np.abs(np.corrcoef(x.T)) > 0.1)
    ours = differences(truth, found.adjacency_ != 0)
    assert ours < truth.sum() and ours < differences(truth, by_variance)


@pytest.mark.parametrize(
    "settings", [{"hidden": 0}, {"steps": 0}, {"batch_size": 0}, {"l1": 0.0}, {"lr": -1.0}, {"threshold": -0.1}]
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        DAGGNN(**settings)


def test_bad_data_are_refused():
    with pytest.raises(DataError, match="at least 3 samples"):
        DAGGNN().fit(bent(2))
    with pytest.raises(ConfigError, match="one law"):
        DAGGNN().fit(bent(20), ["a"] * 10 + ["b"] * 10)
    with pytest.raises(ConfigError, match="no data yet"):
        DAGGNN().model(n=3)

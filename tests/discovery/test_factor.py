"""Graphs of genes and modules: a planted one is found, draws are acyclic, targets are left out."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from sklearn.metrics import average_precision_score

from pyro_cge.discovery import FactorDAG, OrderSearch
from pyro_cge.discovery.distributions import LinearSEM
from pyro_cge.discovery.factor import FactorSEM, admitted
from pyro_cge.errors import ConfigError


def planted(seed, d=60, modules=5, n=2000):
    """Standardised samples and W: each module reads six genes of lower levels, each gene is written by its own level's
    module and three in ten by another one."""
    rng = np.random.default_rng(seed)
    roots = int(0.3 * d)
    level = np.sort(np.r_[np.zeros(roots, int), rng.integers(1, modules + 1, d - roots)])
    U, V = np.zeros((d, modules)), np.zeros((modules, d))

    def effect(size):
        return rng.choice([-1, 1], size) * rng.uniform(0.5, 1, size)

    for k in range(modules):
        read = rng.choice(np.flatnonzero(level <= k), 6, replace=False)
        U[read, k] = effect(6)
    for j in range(roots, d):
        V[level[j] - 1, j] = effect(())
        if rng.random() < 0.3:
            V[rng.integers(level[j]), j] = effect(())
    W = 0.9 * U @ V
    x = rng.normal(size=(n, d))
    for j in range(roots, d):
        x[:, j] += x @ W[:, j]
    genes = rng.permutation(d)
    x, W = x[:, genes], W[np.ix_(genes, genes)]
    return (x - x.mean(0)) / x.std(0), W


def precision(truth, weights):
    """Average precision of edges by the size of their weights."""
    off = ~np.eye(len(truth), dtype=bool)
    return average_precision_score((truth != 0)[off], np.abs(weights)[off])


def given(x, adjacency, test):
    """Mean log density of held-out cells under least squares for a graph."""
    total = 0.0
    for j in range(x.shape[1]):
        parents = np.flatnonzero(adjacency[:, j])
        beta = np.linalg.lstsq(x[:, parents], x[:, j], rcond=None)[0]
        s2 = ((x[:, j] - x[:, parents] @ beta) ** 2).mean()
        total += (-0.5 * np.log(2 * np.pi * s2) - 0.5 * (test[:, j] - test[:, parents] @ beta) ** 2 / s2).mean()
    return total


def test_the_law_is_the_dense_one():
    rng = torch.Generator().manual_seed(0)
    level = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 2, 2]), 3).double()
    reads, writes = admitted(level)
    U = torch.randn(5, 2, generator=rng, dtype=torch.float64) * reads
    V = torch.randn(2, 5, generator=rng, dtype=torch.float64) * writes.mT
    scale = torch.tensor([1.0, 0.5, 2.0, 1.0, 1.5], dtype=torch.float64)
    law, dense = FactorSEM(U, V, scale), LinearSEM(U @ V, 0.0, scale, acyclic=True)
    x = dense.sample((6,))
    assert torch.allclose(law.log_prob(x), dense.log_prob(x))
    inverse = torch.linalg.inv(torch.eye(5, dtype=torch.float64) - U @ V)
    covariance = inverse.T @ torch.diag(scale**2) @ inverse
    assert torch.allclose(law.sample((200_000,)).T.cov(), covariance, rtol=0.05, atol=0.1)
    counted = torch.tensor([True, True, False, True, True])
    each = torch.distributions.Normal(x @ U @ V, scale).log_prob(x)
    assert torch.allclose(FactorSEM(U, V, scale, counted).log_prob(x), each[:, counted].sum(-1))


@pytest.mark.parametrize("seed", range(20))
def test_every_choice_of_levels_is_acyclic(seed):
    rng = np.random.default_rng(seed)
    level = torch.nn.functional.one_hot(torch.tensor(rng.integers(0, 4, 12)), 4).double()
    reads, writes = admitted(level)
    W = (torch.tensor(rng.normal(size=(12, 3))) * reads) @ (torch.tensor(rng.normal(size=(3, 12))) * writes.mT)
    assert nx.is_directed_acyclic_graph(nx.from_numpy_array(W.numpy(), create_using=nx.DiGraph))


def test_the_bound_is_pyros_for_given_levels():
    x, _ = planted(0, d=25, modules=3, n=100)
    scm = FactorDAG(3).start(x)
    with torch.no_grad():
        scm.level_logits.mul_(1000)  # certain, so that both bounds draw the same levels
    everything = torch.arange(100)
    level = torch.nn.functional.one_hot(scm.level_logits.argmax(-1), 4).double()
    mine = [float(scm.bound(everything, level).detach()) for _ in range(300)]
    theirs = [Trace_ELBO().loss(scm.model, scm.guide, scm.x_, everything) / 100 for _ in range(300)]
    error = np.sqrt(np.var(mine) / 300 + np.var(theirs) / 300)
    assert abs(np.mean(mine) - np.mean(theirs)) < 5 * error  # fails once in 10^6 seeds


def test_plain_pyro_works():
    x, _ = planted(1, d=25, modules=3, n=100)
    scm = FactorDAG(3).start(x)
    assert not list(pyro.get_param_store())
    svi = SVI(scm.model, scm.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    index = torch.arange(40)
    assert np.isfinite(svi.step(scm.x_[index], index))
    Trace_ELBO().differentiable_loss(scm.model, scm.guide, scm.x_[index], index).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in scm.parameters()), "levels among them"
    draws = Predictive(scm.model, guide=scm.guide, num_samples=4)(n=7)
    assert draws["x"].shape == (4, 7, 25) and draws["level"].sum(-1).eq(1).all()


def test_a_small_planted_graph():
    """Three modules; edges by the size of their weights against those by ordering the variances, which are all one."""
    x, W = planted(2, d=30, modules=3)
    x, test = x[:1000], x[1000:]
    scm = FactorDAG(3, starts=2, steps=800).fit(x)
    assert nx.is_directed_acyclic_graph(scm.graph_)
    assert precision(W, scm.weights_) > 2 * (W != 0).mean(), "twice what chance gives"
    assert scm.log_likelihood(test) > given(x, np.zeros((30, 30)), test) + 3
    assert (scm.levels_[list(scm.genes_)].to_numpy()[:, None] < scm.levels_.to_numpy())[scm.adjacency_ == 1].all()


def test_targets_are_left_out():
    """A gene replaced by noise of sd 5 in one environment: its mechanism is still that of the control."""
    x, _ = planted(3, d=25, modules=3, n=600)
    changed = x.copy()
    changed[300:, 4] = 5 * np.random.default_rng(0).normal(size=300)
    env = ["control"] * 300 + ["knock-out"] * 300
    scm = FactorDAG(3, starts=1, steps=20)
    scm.fit(changed, env, control="control", targets={"knock-out": ["x4"]})
    assert not scm.counted[300:, 4].any() and scm.counted.sum() == 600 * 25 - 300
    with pytest.raises(ConfigError, match="environment 'other', not in the data"):
        scm.fit(changed, env, targets={"other": ["x4"]})
    with pytest.raises(ConfigError, match="genes 'y', not in the data"):
        scm.fit(changed, env, targets={"knock-out": ["y"]})


def test_the_same_seed_gives_the_same_answer():
    x, _ = planted(4, d=25, modules=3, n=200)
    one, two = (FactorDAG(3, starts=1, steps=30, random_state=1).fit(x) for _ in range(2))
    assert (one.weights_ == two.weights_).all() and one.bounds_ == two.bounds_


@pytest.mark.parametrize(
    "options",
    [
        {"n_modules": 0},
        {"starts": 0},
        {"steps": 0},
        {"batch_size": 0},
        {"lr": 0},
        {"prior_scale": 0},
        {"threshold": -1},
    ],
)
def test_bad_settings_are_refused(options):
    with pytest.raises(ConfigError):
        FactorDAG(**options)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_five_modules_of_sixty_genes(seed):
    """Better than no graph, than the order of variances, and, as to edges, than a search that knows of no modules."""
    x, W = planted(seed)
    x, test = x[:1000], x[1000:]
    scm = FactorDAG(5).fit(x)
    later = np.triu(np.ones((60, 60)), 1)[np.ix_(*[np.argsort(np.argsort(x.var(0)))] * 2)]
    by_variance = later * np.abs(np.corrcoef(x.T))
    order = OrderSearch(restarts=0).fit(x)
    mine = precision(W, scm.weights_)
    assert mine > 2 * precision(W, by_variance) and mine > precision(W, order.weights_)
    assert scm.log_likelihood(test) > given(x, np.zeros((60, 60)), test) + 10

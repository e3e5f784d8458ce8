"""Acyclicity against all graphs of three and four nodes, eigenvalues and finite differences; paths against known optima."""

from __future__ import annotations

import itertools

import networkx as nx
import numpy as np
import pytest
import torch

from pyro_cge.discovery import AugmentedLagrangian, CentralPath, SoftPenalty, to_dag
from pyro_cge.discovery.acyclicity import PENALTIES, log_det, spectral_radius, trace_exponential
from pyro_cge.discovery.constrained import LBFGS, Adam, train
from pyro_cge.discovery.inputs import one_law
from pyro_cge.errors import ConfigError, NonFiniteLossError

NAMES = list(PENALTIES)


def all_graphs(d):
    places = [(i, j) for i in range(d) for j in range(d) if i != j]
    states = torch.tensor(list(itertools.product((0.0, 1.0), repeat=len(places))), dtype=torch.double)
    graphs = torch.zeros(len(states), d, d, dtype=torch.double)
    graphs[:, [i for i, _ in places], [j for _, j in places]] = states
    return graphs


def is_dag(matrix):
    return nx.is_directed_acyclic_graph(nx.from_numpy_array(np.asarray(matrix) != 0, create_using=nx.DiGraph))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("d", [3, 4])
def test_zero_exactly_for_dags(name, d):
    """All 64 graphs of three nodes and all 4,096 of four, with random weights."""
    graphs = all_graphs(d)
    rng = np.random.default_rng(d)
    strength = graphs * torch.from_numpy(rng.uniform(0.05, 0.2, graphs.shape))  # spectral radii stay below 1
    h = PENALTIES[name](strength)
    dags = torch.tensor([is_dag(graph) for graph in graphs])
    assert dags.sum() == {3: 25, 4: 543}[d]
    assert h[dags].abs().max() < 1e-12
    assert h[~dags].min() > 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_are_those_of_the_definition(name):
    generator = torch.Generator().manual_seed(0)
    strength = 0.15 * torch.rand(7, 5, 5, dtype=torch.double, generator=generator)
    strength.requires_grad_()
    eye = torch.eye(5, dtype=torch.double)
    definition = {
        "log-det": lambda A: -torch.logdet(eye - A),
        "trace-exponential": lambda A: torch.linalg.matrix_exp(A).diagonal(dim1=-2, dim2=-1).sum(-1) - 5,
        "spectral": lambda A: torch.linalg.eigvals(A).abs().max(-1)[0],
    }[name]
    ours, truth = PENALTIES[name](strength), definition(strength)
    assert torch.allclose(ours, truth, atol=1e-9)
    gradients = [torch.autograd.grad(value.sum(), strength)[0] for value in (ours, truth)]
    assert torch.allclose(*gradients, atol=1e-7)


def test_a_cycle_of_unequal_weights_has_its_geometric_mean_as_radius():
    """Plain power iteration never settles on it."""
    strength = torch.zeros(4, 4, dtype=torch.double)
    strength[[0, 1, 2], [1, 2, 0]] = torch.tensor([0.1, 2.0, 5.0], dtype=torch.double)
    assert float(spectral_radius(strength)) == pytest.approx(1.0, abs=1e-6)
    strength[2, 0] = 1e-12
    assert float(spectral_radius(strength)) == pytest.approx(0.2e-12 ** (1 / 3), rel=1e-6)


def test_log_det_is_a_barrier():
    strength = torch.tensor([[0.0, 1.2], [1.0, 0.0]], dtype=torch.double)
    assert log_det(strength) == torch.inf
    assert torch.isfinite(log_det(strength, s=1.5))
    # Two cycles: the determinant is positive again, although the radius is 2.
    two = torch.block_diag(2 * torch.tensor([[0.0, 1], [1, 0]]), 2 * torch.tensor([[0.0, 1], [1, 0]])).double()
    assert torch.linalg.det(torch.eye(4).double() - two) > 0
    assert log_det(two) == torch.inf


@pytest.mark.parametrize("name", NAMES)
def test_penalties_have_batch_dimensions(name):
    strength = 0.1 * torch.rand(2, 3, 4, 4, dtype=torch.double)
    each = torch.stack([PENALTIES[name](a) for a in strength.flatten(0, 1)]).reshape(2, 3)
    assert torch.allclose(PENALTIES[name](strength), each, atol=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_the_cut_is_the_smallest_that_gives_a_dag(seed):
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(6, 6)) * (rng.random((6, 6)) < 0.5)
    cut = to_dag(W, threshold=0.1)
    assert is_dag(cut)
    assert (cut[cut != 0] == W[cut != 0]).all() and not (np.abs(cut[cut != 0]) < 0.1).any()
    lost = np.abs(W[(cut == 0) & (np.abs(W) >= 0.1)])
    if len(lost):
        assert not is_dag(np.where(np.abs(W) >= lost.max(), W, 0)), "a smaller cut leaves a cycle"


def test_a_dag_is_left_as_it_is():
    W = np.triu(np.random.default_rng(0).normal(size=(5, 5)), 1)
    assert (to_dag(W) == W).all()
    assert (to_dag(np.ones((4, 4))) == 0).all()


@pytest.mark.parametrize("seed", range(10))
def test_edges_to_keep_survive_the_cut(seed):
    """However small: a DAG among them is never the cycle's fault."""
    rng = np.random.default_rng(seed)
    W, keep = rng.normal(size=(6, 6)), np.triu(rng.random((6, 6)) < 0.4, 1)
    W[keep] *= 1e-6
    cut = to_dag(W, threshold=0.1, keep=keep)
    assert is_dag(cut) and (cut[keep] == W[keep]).all()
    lost = np.abs(W[(cut == 0) & (np.abs(W) >= 0.1)])
    if len(lost):
        assert not is_dag(np.where((np.abs(W) >= lost.max()) | keep, W, 0)), "a smaller cut leaves a cycle"


def test_weights_that_are_no_numbers_end_a_path():
    """Where it starts, and where a problem leads."""
    bad = torch.tensor([[0.0, torch.nan], [0.0, 0.0]]).double()
    with pytest.raises(NonFiniteLossError, match="problem 0 of the path has weights that are not finite"):
        next(CentralPath().terms(log_det, lambda: bad))
    for path in (CentralPath(), AugmentedLagrangian(), SoftPenalty()):
        W = torch.nn.Parameter(torch.zeros(2, 2).double())

        def diverge(loss, W=W):
            loss()
            W.data[0, 1] = torch.inf

        with pytest.raises(NonFiniteLossError, match="not finite"):
            train(lambda W=W: W.sum(), lambda W=W: W * W, diverge, path, log_det, progress=False)


def test_a_central_path_goes_on_from_outside_of_its_domain():
    """Weights a hundred million times larger than it allows: ``s`` grows until they are inside."""
    far = torch.tensor([[0.0, 1e16], [1.0, 0.0]]).double()
    terms = list(CentralPath().terms(log_det, lambda: far))
    assert len(terms) == 5 and all(torch.isfinite(term(far)) for term in terms)


def test_absolute_values_are_minimised_exactly():
    """``½ (θ − a)² + l |θ|`` has the soft threshold as its minimum."""
    a, l1 = torch.tensor([2.0, -0.3, -1.5, 0.9]).double(), torch.tensor([0.5, 0.5, 0.5, torch.inf]).double()
    theta, other = torch.nn.Parameter(torch.ones(4).double()), torch.nn.Parameter(torch.zeros(()).double())
    value = LBFGS([theta, other], [l1, None])(lambda: 0.5 * ((theta - a) ** 2).sum() + (other + 3) ** 2)
    assert torch.allclose(theta.detach(), torch.tensor([1.5, 0.0, -1.0, 0.0]).double(), atol=1e-6)
    assert other.item() == pytest.approx(-3, abs=1e-4)
    assert value == pytest.approx(0.5 * (0.25 + 0.09 + 0.25 + 0.81) + 0.5 * 2.5, abs=1e-6)


@pytest.mark.parametrize(
    ("path", "h"),
    [
        (AugmentedLagrangian(), trace_exponential),
        (AugmentedLagrangian(), spectral_radius),
        (AugmentedLagrangian(), log_det),
        (CentralPath(), log_det),
    ],
    ids=["trace-exponential", "spectral", "log-det", "central path"],
)
def test_paths_end_at_the_nearest_dag(path, h):
    """``½ ‖W − B‖²`` over DAGs, of two nodes: the smaller of two opposite weights goes to zero."""
    target = torch.tensor([[0.0, 0.9], [0.4, 0.0]]).double()
    W = torch.nn.Parameter(torch.zeros(2, 2).double())
    train(lambda: 0.5 * ((W - target) ** 2).sum(), lambda: W * W, LBFGS([W], [None]), path, h, progress=False)
    assert W[0, 1].item() == pytest.approx(0.9, abs=1e-3)
    assert W[1, 0].item() == pytest.approx(0.0, abs=5e-3)


def test_a_soft_penalty_is_one_problem():
    W = torch.nn.Parameter(torch.zeros(2, 2).double())
    inner = LBFGS([W], [None])
    train(lambda: ((W - 0.5) ** 2).sum(), lambda: W * W, inner, SoftPenalty(2.0), trace_exponential, progress=False)
    assert len(inner.history) == 1


def test_adam_minimises_a_random_loss():
    generator = torch.Generator().manual_seed(0)
    theta = torch.nn.Parameter(torch.zeros(3).double())
    Adam([theta], lr=0.05, steps=300)(lambda: ((theta - 1 - 0.1 * torch.randn(3, generator=generator)) ** 2).sum())
    assert torch.allclose(theta.detach(), torch.ones(3).double(), atol=0.1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: AugmentedLagrangian(growth=1.0),
        lambda: AugmentedLagrangian(shrink=1.5),
        lambda: CentralPath(mu=(1.0,), s=(1.0, 0.9)),
        lambda: CentralPath(mu=(1.0, -1.0), s=(1.0, 0.9)),
        lambda: SoftPenalty(0.0),
    ],
)
def test_bad_paths_are_refused(make):
    with pytest.raises(ConfigError):
        make()


def test_environments_are_no_single_law():
    x = np.random.default_rng(0).normal(size=(20, 3))
    assert one_law(x).d == 3
    with pytest.raises(ConfigError, match="2 environments.*OrderSearch"):
        one_law(x, ["a"] * 10 + ["b"] * 10)

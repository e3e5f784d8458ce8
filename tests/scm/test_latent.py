"""The latent SCM against a node-by-node assignment in plain Python."""

from __future__ import annotations

from functools import partial

import networkx as nx
import numpy as np
import pytest
import torch
from pyro import poutine

from pyro_cge import LatentSCM
from pyro_cge.errors import ConfigError
from pyro_cge.scm import graphs
from pyro_cge.scm.mechanisms import (
    BinaryMechanism,
    LinearMechanism,
    NeuralMechanism,
    PolynomialMechanism,
    draw_weights,
)

MECHANISMS = {
    "signs": LinearMechanism,
    "uniform": partial(LinearMechanism, weights="uniform"),
    "normal": partial(LinearMechanism, weights="normal"),
    "neural": partial(NeuralMechanism, weights="normal"),
    "polynomial": partial(PolynomialMechanism, weights="uniform"),
    "cubic": partial(PolynomialMechanism, degree=3, weights="uniform"),
    "binary": BinaryMechanism,
}
GRAPHS = {
    "growing": lambda rng: graphs.growing_network(7, rng),
    "union": lambda rng: graphs.union_of_growing_networks(7, rng),
    "erdos renyi": lambda rng: graphs.erdos_renyi(7, rng, 9),
    "layered": lambda rng: graphs.layered(3, 2),
    "hierarchical": lambda rng: graphs.hierarchical([2, 3, 2], 0.5, rng),
}


def contribution(scm: LatentSCM, node: int, c: dict[int, float]) -> float:
    """What the parents of one node contribute, read off the mechanism's parameters one parent at a time."""
    layer = next(k for k, nodes in enumerate(scm.layers) if node in nodes)
    column = scm.layers[layer].index(node)
    row = {parent: r for r, parent in enumerate(n for nodes in scm.layers[:layer] for n in nodes)}
    mechanism = scm.mechanisms[layer - 1]
    w = mechanism.weight.detach().double()
    parents = list(scm.graph.predecessors(node))
    if isinstance(mechanism, LinearMechanism):
        return sum(float(w[row[i], column]) * c[i] for i in parents)
    if isinstance(mechanism, PolynomialMechanism):
        total, factorial = 0.0, 1.0
        for k in range(len(w)):
            factorial *= k + 1
            total += sum(float(w[k, row[i], column]) * c[i] ** (k + 1) for i in parents) / factorial
        return total
    bias, readout = mechanism.bias.detach().double(), mechanism.readout.detach().double()
    hidden = [
        max(0.0, sum(float(w[row[i], column, h]) * c[i] for i in parents) + float(bias[column, h]))
        for h in range(mechanism.hidden)
    ]
    return sum(float(readout[column, h]) * value for h, value in enumerate(hidden))


def brute_force(scm: LatentSCM, z: torch.Tensor) -> torch.Tensor:
    rows = []
    for cell in z.double().tolist():
        c: dict[int, float] = {}
        for node in nx.topological_sort(scm.graph):
            if scm.graph.in_degree(node) == 0 and node in scm.layers[0]:
                c[node] = cell[node]
                continue
            value = contribution(scm, node, c) + cell[node]
            binary = any(isinstance(m, BinaryMechanism) for m in scm.mechanisms)
            c[node] = float(value > 0) if binary else value
        rows.append([c[j] for j in range(scm.d)])
    return torch.tensor(rows, dtype=torch.float64)


def make(graph: str, mechanism: str, seed: int = 0) -> LatentSCM:
    scm = LatentSCM(
        GRAPHS[graph](np.random.default_rng(seed)),
        partial(MECHANISMS[mechanism], generator=torch.Generator().manual_seed(seed)),
    )
    with torch.no_grad():
        for name, parameter in scm.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(generator=torch.Generator().manual_seed(9))
    return scm


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("seed", [0, 1])
def test_layers_equal_node_by_node_assignment(graph, mechanism, seed):
    scm = make(graph, mechanism, seed).double()
    z = torch.randn(6, scm.d, dtype=torch.float64)
    torch.testing.assert_close(scm(z).detach(), brute_force(scm, z), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("weights", ["signs", "uniform", "normal"])
def test_a_linear_scm_is_z_times_the_inverse_of_one_minus_w(graph, weights):
    scm = make(graph, weights).double()
    W = torch.zeros(scm.d, scm.d, dtype=torch.float64)
    for layer, mechanism in enumerate(scm.mechanisms, start=1):
        earlier = [n for nodes in scm.layers[:layer] for n in nodes]
        for column, node in enumerate(scm.layers[layer]):
            W[earlier, node] = mechanism.W.detach()[:, column]
    assert torch.equal((W != 0).float(), scm.A), "weights sit exactly on the edges, parents in rows"
    z = torch.randn(8, scm.d, dtype=torch.float64)
    expected = z @ torch.linalg.inv(torch.eye(scm.d, dtype=torch.float64) - W)
    torch.testing.assert_close(scm(z).detach(), expected)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_leading_dimensions_are_samples(mechanism):
    scm = make("union", mechanism)
    z = torch.randn(2, 3, 4, scm.d)
    c = scm(z)
    assert c.shape == z.shape
    for s in range(2):
        for t in range(3):
            torch.testing.assert_close(c[s, t], scm(z[s, t]))


@pytest.mark.parametrize("graph", GRAPHS)
def test_one_site_a_layer_with_its_nodes_as_event(graph):
    scm = make(graph, "signs")
    z = torch.randn(2, 4, scm.d)
    trace = poutine.trace(scm).get_trace(z)
    assert [n for n in trace.nodes if n.startswith("c_")] == [f"c_{k + 1}" for k in range(len(scm.layers))]
    c = trace.nodes["_RETURN"]["value"]
    for layer, nodes in enumerate(scm.layers, start=1):
        site = trace.nodes[f"c_{layer}"]
        assert site["fn"].event_shape == (len(nodes),)
        assert site["fn"].batch_shape == (2, 4)
        assert site["infer"]["_deterministic"]
        assert torch.equal(site["value"], c[..., nodes])
    trace.compute_log_prob()
    assert trace.log_prob_sum() == 0
    assert torch.equal(scm.causes(trace), c)


def test_adjacency_rows_are_parents():
    scm = LatentSCM(nx.DiGraph([(2, 0), (2, 1), (1, 0)]))
    assert scm.A[2, 0] == scm.A[2, 1] == scm.A[1, 0] == 1
    assert scm.A.sum() == 3
    assert scm.layers == [[2], [1], [0]]
    z = torch.zeros(1, 3, requires_grad=True)
    jacobian = torch.autograd.functional.jacobian(lambda z: scm(z)[0], z)[:, 0]  # d c_j / d z_i
    assert jacobian[1, 2] != 0 and jacobian[0, 1] != 0
    assert jacobian[2, 0] == jacobian[2, 1] == jacobian[1, 0] == 0


def test_identity_gives_the_noise_back():
    scm = LatentSCM.identity(4)
    z = torch.randn(5, 4)
    assert torch.equal(scm(z), z)
    assert scm.A.sum() == 0 and not list(scm.parameters())


def test_a_single_latent_works():
    z = torch.randn(5, 1)
    assert torch.equal(LatentSCM(graphs.chain(1))(z), z)


@pytest.mark.parametrize("mechanism", [m for m in MECHANISMS if m != "binary"])
def test_gradients_reach_every_parameter_on_an_edge(mechanism):
    scm = make("layered", mechanism)
    scm(torch.randn(200, scm.d)).square().sum().backward()
    parameters = dict(scm.named_parameters())
    assert parameters
    for name, parameter in parameters.items():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).all(), name


@pytest.mark.parametrize("mechanism", [m for m in MECHANISMS if m != "binary"])
def test_weights_off_the_graph_change_nothing(mechanism):
    scm = make("growing", mechanism)
    z = torch.randn(5, scm.d)
    before = scm(z)
    with torch.no_grad():
        for m in scm.mechanisms:
            mask = m.mask.bool()
            mask = mask.unsqueeze(-1) if m.weight.dim() > mask.dim() and mechanism == "neural" else mask
            m.weight.copy_(torch.where(mask, m.weight, 1e6))
    torch.testing.assert_close(scm(z), before)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_generator_decides_the_weights(mechanism):
    first, again, other = (make("layered", mechanism, seed) for seed in (3, 3, 4))
    vector = torch.nn.utils.parameters_to_vector
    assert torch.equal(vector(first.parameters()), vector(again.parameters()))
    assert not torch.equal(vector(first.parameters()), vector(other.parameters()))


def test_weight_laws():
    generator = torch.Generator().manual_seed(0)
    signs, uniform = (draw_weights((4000,), kind, generator) for kind in ("signs", "uniform"))
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert uniform.abs().min() >= 0.25 and uniform.abs().max() <= 1
    # Five standard errors of the mean: failure rate below 1e-6.
    assert signs.mean().abs() < 5 / 4000**0.5 and uniform.mean().abs() < 5 * 0.66 / 4000**0.5
    assert (uniform.abs().mean() - 0.625).abs() < 5 * 0.2165 / 4000**0.5
    with pytest.raises(ValueError, match="'signs', 'uniform', 'normal' or 'small'"):
        draw_weights((2,), "cauchy")


def test_binary_children_are_zero_or_one():
    scm = make("growing", "binary")
    c = scm(torch.randn(50, scm.d))
    children = [j for j in range(scm.d) if scm.graph.in_degree(j)]
    assert set(c[:, children].unique().tolist()) == {0.0, 1.0}


def test_order_is_not_part_of_the_saved_weights():
    assert not [k for k in make("growing", "signs").state_dict() if k in ("order", "inverse")]


def test_a_cyclic_graph_is_refused():
    with pytest.raises(ConfigError, match="cycle"):
        LatentSCM(nx.DiGraph([(0, 1), (1, 0)]))

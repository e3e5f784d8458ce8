"""A nonlinear structural causal model with additive noise in Pyro: a small network or a Sobolev basis for each gene."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike
from pyro.distributions import constraints
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ..errors import ConfigError
from ..seeds import isolated
from .acyclicity import penalty, to_dag
from .constrained import LBFGS, Path, table_on, train
from .distributions import NOISE_WIDTH
from .inputs import one_law
from .knowledge import FORBIDDEN, REQUIRED, Knowledge
from .results import named_graph

HEADS, STRENGTHS = ("mlp", "sobolev"), ("group", "paths")
REACH = 3.0  # standard deviations on either side, on which a Sobolev basis is one


class GroupLaplace(dist.TorchDistribution):
    """``p(w) ∝ exp(−rate ‖w‖₂)`` over vectors ``[..., m]``: the prior whose most probable weights are a group lasso's."""

    arg_constraints: ClassVar[dict[str, Any]] = {"rate": constraints.positive}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, rate: Tensor, m: int, validate_args: bool | None = None) -> None:
        self.rate = rate
        super().__init__(rate.shape, torch.Size((m,)), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> GroupLaplace:
        new = self._get_checked_instance(GroupLaplace, _instance)
        new.rate = self.rate.expand(batch_shape)
        super(GroupLaplace, new).__init__(new.rate.shape, self.event_shape, validate_args=False)
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        m = self.event_shape[0]
        surface = math.log(2) + 0.5 * m * math.log(math.pi) - math.lgamma(m / 2) + math.lgamma(m)
        return m * self.rate.log() - surface - self.rate * torch.linalg.vector_norm(value, dim=-1)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        m = self.event_shape[0]
        shape = torch.Size(sample_shape) + self.rate.shape
        size = dist.Gamma(torch.full_like(self.rate, m), self.rate).rsample(torch.Size(sample_shape))
        way = torch.randn(*shape, m, dtype=self.rate.dtype, device=self.rate.device)
        return size.unsqueeze(-1) * way / torch.linalg.vector_norm(way, dim=-1, keepdim=True)


class AdditiveNoise(dist.TorchDistribution):
    """``x_j = f_j(x) + scale_j ε`` over ``[d]``, for mechanisms without cycles: the Jacobian of the noise is then 1."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, mechanisms: Callable[[Tensor], Tensor], scale: Tensor, validate_args: bool | None = None
    ) -> None:
        self.mechanisms, self.scale = mechanisms, scale
        super().__init__(scale.shape[:-1], scale.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> AdditiveNoise:
        new = self._get_checked_instance(AdditiveNoise, _instance)
        new.mechanisms, new.scale = self.mechanisms, self.scale.expand(torch.Size(batch_shape) + self.event_shape)
        super(AdditiveNoise, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        return dist.Normal(self.mechanisms(value), self.scale).log_prob(value).sum(-1)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.scale.shape
        noise = self.scale * torch.randn(shape, dtype=self.scale.dtype, device=self.scale.device)
        x = noise
        for _ in range(shape[-1] - 1):  # one pass a generation: no path is longer
            x = self.mechanisms(x) + noise
        return x


class NonparametricSCM(PyroModule):
    """Mechanisms of any shape with additive Gaussian noise.

    ::

        inputs[i, j, :] ~ GroupLaplace(n λ)                    zero as a whole where i is no cause of j
        layer_l[j]      ~ Normal(0, (n λ₂)^(-1/2))
        noise_scale_j   ~ LogNormal(0, 2)
        x_j             ~ Normal(f_j(x), noise_scale_j)        columns at mean 0 and standard deviation 1

        mlp:      f_j(x) = layer_L[j] σ(… σ(Σ_i inputs[i, j, :] x_i + bias_j))
        sobolev:  f_j(x) = Σ_i Σ_k inputs[i, j, k] ψ_k(x_i),  ψ_k(x) = s_k sin((x + 3) / s_k),  s_k = 12 / ((2k − 1) π)

    By default the graph comes from an order search on the evidence of Gaussian processes
    (:mod:`~pyro_cge.discovery.gaussian_process`), and the networks learn the mechanisms along its edges. With a ``path`` they
    find the graph themselves, from weights near zero and under an acyclicity constraint, as in nonparametric NOTEARS (slower,
    and worse wherever the two were compared: ``benchmarks/nonlinear``).

    Parameters
    ----------
    head : {"mlp", "sobolev"}
    hidden : sequence of int
        Widths of the mlp's hidden layers; for the Sobolev head the first is the number of terms.
    strength : {"group", "paths"}
        What of the weights counts as the strength of an edge: ``Σ_m inputs[i, j, m]²``, or the sum over paths through the
        network of the products of absolute weights (GraN-DAG).
    l1, l2 : float
        ``λ`` and ``λ₂``.
    candidates : {"edges", "order"}
        Edges whose mechanisms are learned: those found, or of all that the order found admits those more probable than not.
        With a threshold the networks choose of the latter themselves, which they do badly (20 genes, ``threshold=0.2``: 140
        wrong edges and more, 17 to 27 with ``l1=0.01``, against 0 to 8 by the probabilities).
    edge : float
        Nats an edge costs in the order search, beyond what its flexibility costs.
    max_parents : int
        Of a node, in the order search.
    restarts : int
        Of the order search.
    path : AugmentedLagrangian, CentralPath or SoftPenalty, optional
    acyclicity : {"log-det", "trace-exponential", "spectral"}
        Of the path.
    threshold : float, optional
        Edges with a smaller ``W`` are left out in the end, but for required ones. Default: 0.2 with a path, none without.
    steps : int
        Most iterations of an optimisation.
    knowledge : Knowledge, optional
        Enforced exactly. Required edges need the order search.
    random_state : int
    progress : bool, optional
        A bar over the climbs of the order search or the problems of a path; by default only on a terminal.

    Attributes
    ----------
    adjacency_ : ndarray ``[d, d]``
        A DAG, always.
    strengths_ : ndarray ``[d, d]``
        ``W``: square roots of the strengths, standardised units.
    weights_ : ndarray ``[d, d]``
        Mean of ``∂f_j/∂x_i`` over the samples, in the units of the data.
    edge_probabilities_ : ndarray ``[d, d]``
        Of each edge given the order and the other edges found, from the Gaussian processes; with a path the adjacency.
    graph_ : DiGraph
    order_ : list of str
        Causes first.
    objective_ : float
        Negative log joint density a sample (before the threshold).
    genes_ : list of str

    References
    ----------
    Zheng, Dan, Aragam, Ravikumar, Xing 2020 (nonparametric NOTEARS); Lachapelle, Brouillard, Deleu, Lacoste-Julien 2020
    (GraN-DAG); Friedman, Nachman 2000 (Gaussian process networks); Bühlmann, Peters, Ernest 2014 (CAM).
    """

    inputs_loc: nn.Parameter
    bias: nn.Parameter
    noise_log_scale: nn.Parameter
    x_: Tensor
    free: Tensor

    def __init__(
        self,
        *,
        head: str = "mlp",
        hidden: Sequence[int] = (10,),
        strength: str = "group",
        l1: float = 0.002,
        l2: float = 0.002,
        candidates: str = "edges",
        edge: float = 1.0,
        max_parents: int = 6,
        restarts: int = 3,
        path: Path | None = None,
        acyclicity: str = "log-det",
        threshold: float | None = None,
        steps: int = 300,
        knowledge: Knowledge | None = None,
        random_state: int = 0,
        progress: bool | None = None,
    ) -> None:
        super().__init__()
        given = (
            ("head", head, HEADS),
            ("strength", strength, STRENGTHS),
            ("candidates", candidates, ("edges", "order")),
        )
        for name, value, known in given:
            if value not in known:
                raise ConfigError(f"{name} is one of {list(known)}, got {value!r}")
        if not hidden or min(hidden) < 1 or min(max_parents, steps) < 1 or restarts < 0:
            raise ConfigError(
                f"hidden, max_parents and steps must be at least 1 and restarts 0, got {hidden}, {max_parents}, {steps}, {restarts}"
            )
        if not (l1 > 0 and l2 > 0) or edge < 0 or (threshold or 0) < 0:
            raise ConfigError(
                f"l1 and l2 must be positive, edge and threshold not negative, got {l1}, {l2}, {edge}, {threshold}"
            )
        self.head, self.hidden, self.strength, self.l1, self.l2 = head, tuple(hidden), strength, l1, l2
        self.candidates, self.edge, self.max_parents, self.restarts = candidates, edge, max_parents, restarts
        self.path, self.h, self.steps = path, penalty(acyclicity), steps
        self.threshold = threshold
        self.knowledge, self.random_state, self.progress = knowledge or Knowledge(), random_state, progress
        self.layers = nn.ParameterList()
        self.biases = nn.ParameterList()

    # The model and its guide

    @pyro_method
    def model(self, x: Tensor | None = None, n: int | None = None) -> Tensor:
        """Rows ``x [n, d]`` in the units of ``x_`` (standardised), or ``n`` new ones."""
        self._started()
        rate = torch.full(self.free.shape, self.n_ * self.l1, dtype=self.x_.dtype, device=self.x_.device)
        law = GroupLaplace(rate, self.inputs_loc.shape[-1])
        inputs = pyro.sample("inputs", law.mask(self.free).to_event(2)) * self.free.unsqueeze(-1)
        ridge = rate.new_tensor((self.n_ * self.l2) ** -0.5)
        layers = [
            pyro.sample(f"layer_{i + 1}", dist.Normal(torch.zeros_like(layer), ridge).to_event(3))
            for i, layer in enumerate(self.layers)
        ]
        flat = torch.zeros_like(self.noise_log_scale)
        scale = pyro.sample("noise_scale", dist.LogNormal(flat, NOISE_WIDTH).to_event(1))
        pyro.deterministic("W", self.strengths(inputs, layers).clamp_min(0).sqrt(), event_dim=2)
        with pyro.plate("cells", len(x) if x is not None else n or 1):
            return pyro.sample("x", AdditiveNoise(lambda value: self.mechanisms(value, inputs, layers), scale), obs=x)

    @pyro_method
    def guide(self, x: Tensor | None = None, n: int | None = None) -> None:
        """The most probable weights and scales."""
        self._started()
        pyro.sample("inputs", dist.Delta(self.inputs_loc).mask(self.free.unsqueeze(-1)).to_event(3))
        for i, layer in enumerate(self.layers):
            pyro.sample(f"layer_{i + 1}", dist.Delta(layer).to_event(3))
        pyro.sample("noise_scale", dist.Delta(self.noise_log_scale.exp()).to_event(1))

    def mechanisms(self, x: Tensor, inputs: Tensor | None = None, layers: Sequence[Tensor] | None = None) -> Tensor:
        """``f_j(x)`` of every gene ``[..., d]``, standardised units; by default of the weights learned."""
        if inputs is None or layers is None:
            inputs, layers = self.inputs_loc * self.free.unsqueeze(-1), list(self.layers)
        if self.head == "sobolev":
            basis = self._waves * torch.sin((x.unsqueeze(-1) + REACH) / self._waves)  # [..., d, k]
            return _contract("...ik,...ijk->...j", basis, inputs) + self.bias[:, 0]
        hidden = _contract("...i,...ijm->...jm", x, inputs) + self.bias
        for layer, bias in zip(layers, self.biases, strict=True):
            hidden = torch.einsum("...jm,...jmo->...jo", torch.sigmoid(hidden), layer) + bias
        return hidden.squeeze(-1)

    def strengths(self, inputs: Tensor, layers: Sequence[Tensor]) -> Tensor:
        """How much each gene depends on each other, ``[..., cause, effect]``; zero where it does not."""
        if self.strength == "group" or self.head == "sobolev":
            return (inputs * inputs).sum(-1)
        through = inputs.abs()
        for layer in layers:
            through = torch.einsum("...ijm,...jmo->...ijo", through, layer.abs())
        return through.squeeze(-1)

    def slopes(self, x: Tensor) -> Tensor:
        """Mean of ``∂f_j/∂x_i`` over samples ``x [n, d]``, at ``[cause, effect]``, in one pass over all of them.

        A gene acts through the linear first layer: what is needed of the rest is how ``Σ_n f_j`` changes with its biases.
        """
        inputs = self.inputs_loc.detach() * self.free.unsqueeze(-1)
        if self.head == "sobolev":
            return (inputs * torch.cos((x.unsqueeze(-1) + REACH) / self._waves).mean(0).unsqueeze(1)).sum(-1)
        with torch.enable_grad():
            (through,) = torch.autograd.grad(self.mechanisms(x).sum(), self.bias)
        return (inputs * through).sum(-1) / len(x)

    @property
    def _waves(self) -> Tensor:
        half = torch.arange(self.hidden[0], dtype=self.x_.dtype, device=self.x_.device) + 0.5
        return 2 * REACH / (half * math.pi)

    def objective(self) -> Tensor:
        """``−1/n log p(x, inputs, layers, noise_scale)`` without constants ``[]``."""
        inputs, scale = self.inputs_loc * self.free.unsqueeze(-1), self.noise_log_scale
        left = (self.x_ - self.mechanisms(self.x_)) * (-scale).exp()
        value = 0.5 * (left * left).sum() / self.n_ + scale.sum()
        value = value + self.l1 * torch.linalg.vector_norm(inputs, dim=-1).sum()
        for layer in self.layers:
            value = value + 0.5 * self.l2 * (layer * layer).sum()
        return value + (0.5 * (scale / NOISE_WIDTH) ** 2 + scale).sum() / self.n_

    # From data

    def start(self, X: Any) -> NonparametricSCM:
        """The order search and untrained networks along its edges; with a path, networks with weights near zero.

        Raises
        ------
        DataError, ConfigError
            For unusable data (:func:`~pyro_cge.discovery.inputs.samples`) and contradictory knowledge.
        """
        data = one_law(X)
        table = table_on(self.path, self.knowledge, data.genes)
        self.genes_, self.n_, d = data.genes, len(data.x), data.d
        self._scale, x = data.x.std(0), data.scaled
        free, self._required = table != FORBIDDEN, table == REQUIRED
        self.search_adjacency_ = np.zeros((d, d), dtype=np.int64)
        if self.path is None:
            free &= self._search(x)
        device = self.x_.device if hasattr(self, "x_") else torch.device("cpu")
        for name, value in (("x_", x), ("free", free)):
            self.register_buffer(name, torch.as_tensor(value, device=device), persistent=name != "x_")
        self._parameters_for(d, device)
        return self

    def _search(self, x: np.ndarray) -> np.ndarray:
        from .gaussian_process import process_order

        order, self.search_adjacency_, self.edge_probabilities_ = process_order(
            x,
            self.genes_,
            self.knowledge,
            edge=self.edge,
            max_parents=self.max_parents,
            restarts=self.restarts,
            seed=self.random_state,
            progress=self.progress,
        )
        self.order_ = [self.genes_[j] for j in order]
        place = np.argsort(order)
        return self.search_adjacency_ > 0 if self.candidates == "edges" else place[:, None] < place

    def _parameters_for(self, d: int, device: torch.device) -> None:
        widths = [*self.hidden, 1] if self.head == "mlp" else [self.hidden[0]]
        with isolated(self.random_state, "mechanisms"):
            draw = torch.randn(d, d, widths[0], dtype=torch.double)
            size = 0.05 if self.path is not None or self.head == "sobolev" else 0.5
            self.inputs_loc = nn.Parameter((size * draw).to(device) * self.free.unsqueeze(-1))
            self.bias = nn.Parameter(torch.randn(d, widths[0], dtype=torch.double).to(device))
            shapes = list(itertools.pairwise(widths))
            layers = [torch.randn(d, a, b, dtype=torch.double) / math.sqrt(a) for a, b in shapes]
        self.layers = nn.ParameterList(nn.Parameter(layer.to(device)) for layer in layers)
        self.biases = nn.ParameterList(
            nn.Parameter(torch.zeros(d, b, dtype=torch.double, device=device)) for _, b in shapes
        )
        self.noise_log_scale = nn.Parameter(torch.zeros(d, dtype=torch.double, device=device))

    def fit(self, X: Any, env: ArrayLike | str | None = None, *, control: Any = None) -> NonparametricSCM:
        """Find the graph and learn the mechanisms; ConfigError for environments: this is one law."""
        data = one_law(X, env, control)
        self.start(data)
        parameters = list(self.parameters())
        inner = LBFGS(parameters, [None] * len(parameters), steps=self.steps)
        if self.path is None:
            if self.candidates == "order" and self.threshold is None:
                self._keep(self.edge_probabilities_ > 0.5)
            inner(self.objective)
        else:
            train(self.objective, self._strength, inner, self.path, self.h, progress=self.progress)
        self._finish()
        return self

    def _strength(self) -> Tensor:
        return self.strengths(self.inputs_loc * self.free.unsqueeze(-1), list(self.layers))

    @torch.no_grad()
    def _keep(self, edges: np.ndarray) -> None:
        self.free &= torch.as_tensor(edges, device=self.free.device)
        self.inputs_loc.mul_(self.free.unsqueeze(-1))

    def _finish(self) -> None:
        with torch.no_grad():
            self.objective_ = float(self.objective())
            strengths = self._strength().sqrt().cpu().numpy()
        cut = (0.0 if self.path is None else 0.2) if self.threshold is None else self.threshold
        self.strengths_ = to_dag(strengths, cut, self._required)
        kept = (self.strengths_ > 0) | self._required
        self._keep(kept)
        self.adjacency_ = kept.astype(np.int64)
        if self.path is not None:
            self.edge_probabilities_ = self.adjacency_.astype(float)
            rank = np.linalg.matrix_power(np.eye(len(kept)) + self.adjacency_, len(kept)).astype(bool).sum(0)
            self.order_ = [self.genes_[j] for j in np.argsort(rank, kind="stable")]
        self.weights_ = self.slopes(self.x_).cpu().numpy() * self._scale / self._scale[:, None]
        facts = {"weight": self.weights_, "strength": self.strengths_, "probability": self.edge_probabilities_}
        self.graph_ = named_graph(self.adjacency_, self.genes_, **facts)

    def _started(self) -> None:
        if not hasattr(self, "inputs_loc"):
            raise ConfigError("NonparametricSCM has seen no data yet: call start(X) or fit(X) first")


def _contract(equation: str, x: Tensor, weights: Tensor) -> Tensor:
    """An einsum over causes; one matrix product where the weights have no batch dimensions."""
    return torch.einsum(equation.replace(",...", ",") if weights.dim() == 3 else equation, x, weights)

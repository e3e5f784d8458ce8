"""Linear models whose noise is not Gaussian: then observations alone tell every cause from its effect."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike, NDArray
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ..errors import ConfigError
from ..sites import NOTHING
from .distributions import LinearSEM
from .inputs import Array, Samples, one_law
from .knowledge import REQUIRED, Knowledge, precedence
from .results import named_graph
from .variational import train_guide

NOISES = ("generalised normal", "student t", "laplace")
SHAPES = (0.7, 10.0)  # of the generalised normal: from beyond Laplace to almost uniform
MOST = 30  # parents of a gene


class GeneralisedNormal(dist.TorchDistribution):
    """``p(x) ∝ exp(−|(x − loc)/scale|^shape)``: Laplace at shape 1, normal at 2, towards uniform on ``loc ± scale`` beyond.

    Parameters
    ----------
    loc, scale, shape : Tensor
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "loc": constraints.real,
        "scale": constraints.positive,
        "shape_": constraints.positive,
    }
    support = constraints.real
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, shape: Tensor, *, validate_args: bool | None = None) -> None:
        self.loc, self.scale, self.shape_ = torch.broadcast_tensors(loc, scale, shape)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> GeneralisedNormal:
        new = self._get_checked_instance(GeneralisedNormal, _instance)
        new.loc, new.scale, new.shape_ = (part.expand(batch_shape) for part in (self.loc, self.scale, self.shape_))
        super(GeneralisedNormal, new).__init__(torch.Size(batch_shape), validate_args=False)
        return new

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self.scale**2 * (torch.lgamma(3 / self.shape_) - torch.lgamma(1 / self.shape_)).exp()

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        distance = ((value - self.loc) / self.scale).abs().clamp_min(1e-12)  # the power's slope at 0 must be finite
        constant = self.shape_.log() - math.log(2) - self.scale.log() - torch.lgamma(1 / self.shape_)
        return constant - distance**self.shape_

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        power = (1 / self.shape_).expand(shape)
        size = dist.Gamma(power, torch.ones_like(power)).rsample() ** power
        sign = torch.randint(0, 2, shape, device=size.device) * 2 - 1
        return self.loc + self.scale * sign * size


class LiNGAM(PyroModule):
    """Linear non-Gaussian acyclic model: the whole graph is identified, not only its equivalence class.

    ::

        W_ij          ~ Normal(0, 1)   on the edges found, 0 elsewhere
        noise_scale_j ~ LogNormal(−½, 1)
        noise_shape_j ~ LogNormal(log 2, ½)         generalised normal;  LogNormal(log 5, 1) degrees of freedom: Student's t
        x             ~ LinearSEM(W, noise_scale, noise law)            columns at mean 0 and standard deviation 1

    The graph comes first. A pairwise likelihood ratio gives an order (DirectLiNGAM: the gene that looks least like an effect
    comes next and is regressed out); reinsertion of one gene after the other then improves the order's penalised likelihood,
    in which the residuals' law enters through its negentropy, and parents are those that pay the BIC's price. Random orders
    are improved as well and the best of all is kept. Then weights and noise get a posterior by SVI. The noise laws are
    symmetric: for strongly skewed noise the graph is found as well, but ``weights_sd_`` is too small; least squares
    (``steps=0``) is the better choice there.

    Parameters
    ----------
    noise : {"generalised normal", "student t", "laplace"}
        The first has a shape of its own for each gene: heavy tails, Gaussian or (almost) uniform.
    penalty : float
        ``λ`` of ``λ/2 log n`` for each edge, as in :class:`~pyro_cge.discovery.OrderSearch`.
    restarts : int
        Random orders to improve beside DirectLiNGAM's.
    steps, lr : int, float
        Of Adam, for the posterior.
    knowledge : Knowledge, optional
        Enforced exactly.
    progress : bool, optional
        Progress bar; default: where standard error is a terminal.
    random_state : int

    Attributes
    ----------
    adjacency_ : ndarray ``[d, d]``
        1 where ``i → j``.
    weights_, weights_sd_ : ndarray ``[d, d]``
        Posterior mean and standard deviation of ``W`` given the graph, in the units of the data.
    graph_ : DiGraph
        With ``weight`` on the edges.
    order_ : list of str
    score_ : float
        Penalised log-likelihood in nats, up to a constant of the data.
    genes_ : list of str

    References
    ----------
    Shimizu et al. 2011 (DirectLiNGAM); Hyvärinen & Smith 2013 (pairwise ratios).
    """

    W_loc: nn.Parameter
    W_log_sd: nn.Parameter
    log_scale: nn.Parameter
    log_shape: nn.Parameter
    edge: Tensor
    x_: Tensor

    def __init__(
        self,
        *,
        noise: str = "generalised normal",
        penalty: float = 2.0,
        restarts: int = 5,
        steps: int = 200,
        lr: float = 0.02,
        knowledge: Knowledge | None = None,
        progress: bool | None = None,
        random_state: int = 0,
    ) -> None:
        super().__init__()
        if noise not in NOISES:
            raise ConfigError(f"noise is one of {', '.join(map(repr, NOISES))}, got {noise!r}")
        for name, value in (("penalty", penalty), ("lr", lr)):
            if not value > 0:
                raise ConfigError(f"{name} must be positive, got {value}")
        if restarts < 0 or steps < 0:
            raise ConfigError(f"restarts and steps must not be negative, got {restarts} and {steps}")
        self.noise, self.penalty, self.restarts, self.steps, self.lr = noise, penalty, restarts, steps, lr
        self.knowledge, self.progress, self.random_state = knowledge or Knowledge(), progress, random_state

    # The model and its guide

    @pyro_method
    def model(self, x: Tensor | None = None, n: int | None = None) -> Tensor:
        """Genes ``x [n, d]``, standardised; without data, ``n`` new rows."""
        self._started()
        zero = torch.zeros_like(self.edge[0])
        prior = dist.Normal(torch.zeros_like(self.edge), self.edge.clamp_min(NOTHING)).mask(self.edge > 0)
        W = pyro.sample("W", prior.to_event(2))
        scale = pyro.sample("noise_scale", dist.LogNormal(zero - 0.5, 1.0).to_event(1))
        shape = None if self.noise == "laplace" else pyro.sample("noise_shape", self._shape_prior(zero).to_event(1))

        def law(loc: Tensor, scale: Tensor) -> Any:
            if shape is None:
                return dist.Laplace(loc, scale)
            return (
                dist.StudentT(shape, loc, scale) if self.noise == "student t" else GeneralisedNormal(loc, scale, shape)
            )

        with pyro.plate("cells", len(x) if x is not None else n or 1):
            return pyro.sample("x", LinearSEM(W, zero, scale, noise=law, acyclic=True), obs=x)

    def _shape_prior(self, zero: Tensor) -> Any:
        heavy = self.noise == "student t"
        return dist.LogNormal(zero + math.log(5.0 if heavy else 2.0), 1.0 if heavy else 0.5)

    @pyro_method
    def guide(self, x: Tensor | None = None, n: int | None = None) -> None:
        """Normal weights; scales and shapes at a point."""
        self._started()
        there = self.edge > 0
        law = dist.Normal(self.W_loc * self.edge, torch.where(there, self.W_log_sd.exp(), NOTHING))
        pyro.sample("W", law.mask(there).to_event(2))
        pyro.sample("noise_scale", dist.Delta(self.log_scale.exp(), event_dim=1))
        if self.noise != "laplace":
            pyro.sample("noise_shape", dist.Delta(self._shape(), event_dim=1))

    def _shape(self) -> Tensor:
        if self.noise == "student t":
            return self.log_shape.exp()
        low, high = (math.log(end) for end in SHAPES)
        return (low + (high - low) * torch.sigmoid(self.log_shape)).exp()

    # From data

    def start(self, X: Any, env: ArrayLike | str | None = None, *, control: Any = None) -> LiNGAM:
        """The graph, and parameters by least squares and moments: everything the guide needs.

        Raises
        ------
        DataError, ConfigError
            For data no graph can be estimated from, several environments, and prior knowledge that contradicts itself.
        """
        self._search(one_law(X, env, control))
        return self

    def fit(self, X: Any, env: ArrayLike | str | None = None, *, control: Any = None) -> LiNGAM:
        """Start, and train the posterior; see :meth:`start`."""
        self.start(X, env, control=control)
        if self.steps:
            self._train()
        ratio = self._sd / self._sd[:, None]
        self.weights_ = (self.W_loc * self.edge).detach().cpu().numpy() * ratio
        self.weights_sd_ = (self.W_log_sd.exp() * self.edge).detach().cpu().numpy() * ratio
        self.graph_ = named_graph(self.adjacency_, self.genes_, weight=self.weights_)
        return self

    def _train(self) -> None:
        optimiser = torch.optim.Adam(self.parameters(), lr=self.lr, fused=True)
        elbo = Trace_ELBO()
        with pyro.validation_enabled(False):
            train_guide(
                lambda: elbo.differentiable_loss(self.model, self.guide, self.x_) / len(self.x_),
                optimiser,
                steps=self.steps,
                decay=0.1,
                seed=self.random_state,
                progress=self.progress,
            )

    def _search(self, data: Samples) -> None:
        from .compiled.negentropy import pairwise_order, search

        table, (n, d) = self.knowledge.table(data.genes), data.x.shape
        before, x = precedence(table), np.ascontiguousarray(data.scaled.T)
        correlation, edge = x @ x.T / n, 0.5 * self.penalty * math.log(n)
        most = min(d - 1, max(1, n // 3), MOST)
        most = max(most, int((table == REQUIRED).sum(0).max()))
        rng = np.random.default_rng(self.random_state)
        starts = [pairwise_order(x, table), *(_random_order(before, rng) for _ in range(self.restarts))]
        ends = [search(x, correlation, table, before, order, edge, most, 100) for order in starts]
        order, parents, counts, scores = max(ends, key=lambda end: end[3].sum())
        self.genes_, self.order_, self.score_ = data.genes, [data.genes[j] for j in order], float(scores.sum())
        self.adjacency_ = np.zeros((d, d), dtype=np.int64)
        for j in range(d):
            self.adjacency_[parents[j, : counts[j]], j] = 1
        self._sd = data.x.std(0)
        self._parameters_from(x, correlation, parents, counts)

    def _parameters_from(
        self, x: Array, correlation: Array, parents: NDArray[np.int64], counts: NDArray[np.int64]
    ) -> None:
        """Least squares for weights, moments for the noise."""
        d, n = x.shape
        weights, sd, left = np.zeros((d, d)), np.full((d, d), 0.1), x.copy()
        for j in range(d):
            above = parents[j, : counts[j]]
            if len(above):
                inverse = np.linalg.pinv(correlation[np.ix_(above, above)], hermitian=True)
                weights[above, j] = inverse @ correlation[above, j]
                left[j] -= weights[above, j] @ x[above]
                sd[above, j] = left[j].std() * np.sqrt(np.maximum(np.diagonal(inverse), 1e-12) / n)
        noise = left.std(1)
        kurtosis = (left**4).mean(1) / noise**4
        scale, shape = _from_moments(self.noise, noise, kurtosis)
        device = self.x_.device if hasattr(self, "x_") else torch.device("cpu")
        start = {"W_loc": weights, "W_log_sd": np.log(sd), "log_scale": np.log(scale)}
        if self.noise != "laplace":
            start["log_shape"] = shape
        for name, value in start.items():
            setattr(self, name, nn.Parameter(torch.as_tensor(value, device=device)))
        self.register_buffer("edge", torch.as_tensor(self.adjacency_, dtype=torch.double, device=device))
        self.register_buffer("x_", torch.as_tensor(np.ascontiguousarray(x.T), device=device), persistent=False)

    def _started(self) -> None:
        if not hasattr(self, "W_loc"):
            raise ConfigError("LiNGAM has seen no data yet: call start(X) or fit(X) first")


def _random_order(before: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
    """An order in which required causes come first: those with more required ancestors later, at random otherwise."""
    return np.lexsort((rng.random(len(before)), before.sum(0)))


def _from_moments(noise: str, sd: Array, kurtosis: Array) -> tuple[Array, Array]:
    """Scale, and the shape's unconstrained parameter, of laws with these standard deviations and kurtoses ``[d]``."""
    from scipy.special import gammaln

    if noise == "laplace":
        return sd / math.sqrt(2), np.zeros_like(sd)
    if noise == "student t":
        freedom = np.clip(4 + 6 / np.maximum(kurtosis - 3, 0.1), 4.5, 60.0)
        return sd * np.sqrt((freedom - 2) / freedom), np.log(freedom)
    low, high = (math.log(end) for end in SHAPES)
    grid = np.exp(np.linspace(low, high, 201)[1:-1])
    each = np.exp(gammaln(5 / grid) + gammaln(1 / grid) - 2 * gammaln(3 / grid))  # decreasing in the shape
    shape = grid[np.abs(kurtosis[:, None] - each).argmin(1)]
    share = (np.log(shape) - low) / (high - low)
    return sd * np.exp(0.5 * (gammaln(1 / shape) - gammaln(3 / shape))), np.log(share / (1 - share))

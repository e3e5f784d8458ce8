"""A linear-Gaussian structural causal model in Pyro, of which NOTEARS, DAGMA and GOLEM are settings."""

from __future__ import annotations

import math
from typing import Any

import networkx as nx
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ..errors import ConfigError
from . import mean_field
from .acyclicity import penalty, to_dag
from .constrained import LBFGS, AugmentedLagrangian, CentralPath, Path, SoftPenalty, table_on, train
from .distributions import NOISE_WIDTH, LinearSEM
from .edge_prior import EdgePrior
from .inputs import Samples, one_law
from .knowledge import FORBIDDEN, REQUIRED, Knowledge
from .order_search import OrderSearch
from .results import named_graph

PRIORS, NOISES = ("laplace", "horseshoe"), ("per gene", "shared", "unit")


class LinearSCM(PyroModule):
    """Weights of a linear structural causal model, with a posterior or as the original methods estimate them.

    ::

        W_ij        ~ Laplace(0, b)   or   W_ij ~ Normal(0, τ local_ij), local_ij ~ HalfCauchy(1)
        noise_scale ~ LogNormal(0, 2)                          one for all genes or one each
        x           ~ LinearSEM(W, 0, noise_scale)             x_j = Σ_i x_i W[i, j] + noise_scale_j ε

    By default the graph comes from :class:`OrderSearch`, and what is learned is a mean-field posterior of the weights it
    leaves: the bound has a closed form, so that a fit takes no random draw. With a ``path`` it is the most probable ``W`` over
    all graphs that is sought from ``W = 0``, under an acyclicity constraint: the literature's methods, see
    :meth:`notears`, :meth:`dagma` and :meth:`golem`. Those depend on the scale of the columns (Reisach, Seiler, Weichwald 2021):
    standardised data are where they fail.

    Parameters
    ----------
    prior : {"laplace", "horseshoe"}
    prior_scale : float, optional
        ``b`` or ``τ``, in units of the standardised columns. Default: 0.5 for ``b``, and for ``τ`` what the number of edges
        found suggests, ``edges / (pairs − edges) / √n`` (Piironen & Vehtari 2017).
    noise : {"per gene", "shared", "unit"}
    candidates : {"edges", "order"}
        Weights that are free: those of the edges found, or all that the order found admits.
    density : float or EdgePrior, optional
        Probability of an edge a priori; an EdgePrior weighs the edges of the order search as well. Default: the share of
        edges that it found.
    path : AugmentedLagrangian, CentralPath or SoftPenalty, optional
        How acyclicity is imposed; None starts from the order search, whose graphs have no cycles.
    acyclicity : {"log-det", "trace-exponential", "spectral"}
        Of the path (a CentralPath is always one of the log-determinant).
    l1 : float, optional
        With a path, penalty ``λ`` a sample: the prior scale is then ``b = 1/(nλ)``.
    threshold : float
        With a path, smaller weights are left out in the end.
    initial : array ``[d, d]``, optional
        With a path, ``W`` to start from in the units of the data. Default: 0.
    standardize : bool
        Columns to standard deviation 1 (the results are in the units of the data all the same). False: only centred.
    knowledge : Knowledge, optional
        Enforced exactly: a required edge has probability 1, however small its weight. Required edges need the order search.
    random_state : int
    progress : bool, optional
        A bar over the restarts of the order search or the problems of a path; by default only on a terminal.

    Attributes
    ----------
    weights_, weights_sd_ : ndarray ``[d, d]``
        Posterior mean and standard deviation of ``W``, in the units of the data. The guide's own deviations are those given
        the other weights; these are corrected by linear response (Giordano, Broderick, Jordan 2015).
    edge_probabilities_ : ndarray ``[d, d]``
        Of ``W_ij ≠ 0`` against ``W_ij = 0``: Savage and Dickey's ratio of prior and posterior density at 0 for the Laplace
        prior, one minus the shrinkage factor for the horseshoe. Of those given the order, where there is no path.
    adjacency_ : ndarray ``[d, d]``
        A DAG, always: edges more probable than not, or what the threshold leaves.
    objective_ : float
        Negative bound, or with a path negative log posterior density less its constants, a sample (before the threshold).
    graph_ : DiGraph
    order_ : list of str
        Causes first.
    genes_ : list of str

    Examples
    --------
    >>> scm = LinearSCM().fit(X)                                  # doctest: +SKIP
    >>> pyro.infer.Predictive(scm.model, guide=scm.guide, num_samples=100)(n=500)["x"]  # doctest: +SKIP
    """

    W_loc: nn.Parameter
    W_log_scale: nn.Parameter
    noise_loc: nn.Parameter
    noise_log_scale: nn.Parameter
    local_loc: nn.Parameter
    local_log_scale: nn.Parameter
    x_: Tensor
    gram: Tensor
    free: Tensor

    def __init__(
        self,
        *,
        prior: str = "laplace",
        prior_scale: float | None = None,
        noise: str = "per gene",
        candidates: str = "edges",
        density: float | EdgePrior | None = None,
        path: Path | None = None,
        acyclicity: str = "log-det",
        l1: float | None = None,
        threshold: float = 0.0,
        initial: ArrayLike | None = None,
        standardize: bool = True,
        knowledge: Knowledge | None = None,
        random_state: int = 0,
        progress: bool | None = None,
    ) -> None:
        super().__init__()
        given = (("prior", prior, PRIORS), ("noise", noise, NOISES), ("candidates", candidates, ("edges", "order")))
        for name, value, known in given:
            if value not in known:
                raise ConfigError(f"{name} is one of {list(known)}, got {value!r}")
        if (prior_scale is not None and not prior_scale > 0) or threshold < 0 or (l1 is not None and l1 < 0):
            raise ConfigError(
                f"prior_scale must be positive, threshold and l1 not negative, got {prior_scale}, {threshold} and {l1}"
            )
        if isinstance(density, float | int) and not 0 < density < 1:
            raise ConfigError(f"density is a probability between 0 and 1, got {density}")
        if path is not None and prior == "horseshoe":
            raise ConfigError("the density of a horseshoe has no maximum: with a path the prior is 'laplace'")
        if path is not None and isinstance(density, EdgePrior):
            raise ConfigError(
                "edge probabilities weigh the edges of the order search: leave out the path, or the EdgePrior"
            )
        if path is None and (l1 is not None or threshold > 0 or initial is not None):
            raise ConfigError(
                "l1, threshold and initial belong to a path; without one the order search decides, and prior_scale"
            )
        self.prior, self.prior_scale, self.noise, self.density = prior, prior_scale, noise, density
        self.candidates, self.path, self.acyclicity, self.l1 = candidates, path, acyclicity, l1
        self.h, self.threshold, self.initial, self.standardize = penalty(acyclicity), threshold, initial, standardize
        self.knowledge, self.random_state, self.progress = knowledge or Knowledge(), random_state, progress

    # The originals

    @classmethod
    def notears(cls, *, l1: float = 0.1, threshold: float = 0.3, **settings: Any) -> LinearSCM:
        """``min 1/(2n) ‖X − XW‖² + λ ‖W‖₁  s.t.  tr exp(W∘W) = d`` (Zheng et al. 2018, equation 9), augmented Lagrangian.

        The most probable ``W`` under unit noise and ``b = 1/(nλ)``; the determinant is 1 for every ``W`` admitted.
        """
        path = settings.pop("path", AugmentedLagrangian())
        fixed: dict[str, Any] = {"noise": "unit", "acyclicity": "trace-exponential", "standardize": False}
        return cls(path=path, l1=l1, threshold=threshold, **(fixed | settings))

    @classmethod
    def dagma(cls, *, l1: float = 0.03, threshold: float = 0.3, **settings: Any) -> LinearSCM:
        """``min μ (1/(2n) ‖X − XW‖² + λ ‖W‖₁) − log det(sI − W∘W) + d log s``, ``μ → 0`` (Bello et al. 2022, algorithm 1)."""
        path = settings.pop("path", CentralPath())
        fixed: dict[str, Any] = {"noise": "unit", "standardize": False}
        return cls(path=path, l1=l1, threshold=threshold, **(fixed | settings))

    @classmethod
    def golem(
        cls, *, equal_variance: bool = True, l1: float | None = None, threshold: float = 0.3, **settings: Any
    ) -> LinearSCM:
        """``min L(W) − log |det(I − W)| + λ₁ ‖W‖₁ + λ₂ (tr exp(W∘W) − d)`` (Ng et al. 2020, equations 3 and 4).

        ``L`` is ``d/2 log ‖X − XW‖²`` with equal noise variances and ``½ Σ_j log ‖x_j − X W_j‖²`` without: the likelihood at
        its best noise scale. ``λ₁`` is 0.02 and 0.002 in the paper, ``λ₂`` 5. The paper starts unequal variances from the answer
        for equal ones, ``initial=LinearSCM.golem(threshold=0).fit(X).weights_``.
        """
        path = settings.pop("path", SoftPenalty(5.0))
        fixed: dict[str, Any] = {"acyclicity": "trace-exponential", "standardize": False}
        l1 = (0.02 if equal_variance else 0.002) if l1 is None else l1
        fixed["noise"] = "shared" if equal_variance else "per gene"
        return cls(path=path, l1=l1, threshold=threshold, **(fixed | settings))

    # The model and its guide

    @pyro_method
    def model(self, x: Tensor | None = None, n: int | None = None) -> Tensor:
        """Rows ``x [n, d]`` in the units of ``x_`` (centred, and standardised unless told otherwise), or ``n`` new ones."""
        self._started()
        width = self.gram.new_tensor(self._width())
        if self.prior == "horseshoe":
            cauchy = dist.HalfCauchy(torch.ones_like(self.gram)).mask(self.free)
            width = width * pyro.sample("local", cauchy.to_event(2))
            law: Any = dist.Normal(torch.zeros_like(self.gram), width)
        else:
            law = dist.Laplace(torch.zeros_like(self.gram), width)
        W = pyro.sample("W", law.mask(self.free).to_event(2)) * self.free
        if self.path is None and self.noise != "unit":
            flat = torch.zeros_like(self.noise_loc)
            scale = pyro.sample("noise_scale", dist.LogNormal(flat, NOISE_WIDTH).to_event(1))
        else:
            scale = pyro.deterministic("noise_scale", self._noise_scale(W), event_dim=1)
        acyclic = not isinstance(self.path, SoftPenalty)
        with pyro.plate("cells", len(x) if x is not None else n or 1):
            return pyro.sample("x", LinearSEM(W, 0.0, scale, acyclic=acyclic), obs=x)

    @pyro_method
    def guide(self, x: Tensor | None = None, n: int | None = None) -> None:
        """Independent normal weights and log-normal scales, or with a path the weights themselves."""
        self._started()
        if self.path is not None:
            pyro.sample("W", dist.Delta(self.W_loc).mask(self.free).to_event(2))
            return
        pyro.sample("W", dist.Normal(self.W_loc, self.W_log_scale.exp()).mask(self.free).to_event(2))
        if self.prior == "horseshoe":
            law = dist.LogNormal(self.local_loc, self.local_log_scale.exp()).mask(self.free)
            pyro.sample("local", law.to_event(2))
        if self.noise != "unit":
            pyro.sample("noise_scale", dist.LogNormal(self.noise_loc, self.noise_log_scale.exp()).to_event(1))

    def _width(self) -> float:
        """``b`` or ``τ``; the flat prior of ``λ = 0`` is a very wide one."""
        if self.path is not None:
            return 1 / max(self.n_ * (self.l1 or 0.0), 1e-12)
        if self.prior_scale is not None:
            return self.prior_scale
        if self.prior == "laplace":
            return 0.5
        found, pairs = self.found_, len(self.gram) * (len(self.gram) - 1) / 2
        return max(found, 1) / max(pairs - found, 1) / math.sqrt(self.n_)

    def _residual(self, W: Tensor) -> Tensor:
        """Mean square of each gene's noise ``[d]``."""
        A = torch.eye(len(W), dtype=W.dtype, device=W.device) - W
        return (A * (self.gram @ A)).sum(-2)

    def _noise_scale(self, W: Tensor) -> Tensor:
        """What maximises the likelihood, given the weights ``[1]`` or ``[d]``."""
        if self.noise == "unit":
            return W.new_ones(1)
        square = self._residual(W)
        return (square.mean(-1, keepdim=True) if self.noise == "shared" else square).clamp_min(1e-12).sqrt()

    # Objectives, a sample

    def map_objective(self, W: Tensor) -> Tensor:
        """``−1/n log p(x | W)`` without its constants, and without the prior, whose ``λ ‖W‖₁`` the optimiser adds."""
        if self.noise == "unit":
            return 0.5 * self._residual(W).sum()
        value = self._noise_scale(W).expand(len(W)).log().sum()
        if isinstance(self.path, SoftPenalty):
            value = value - torch.linalg.slogdet(torch.eye(len(W), dtype=W.dtype, device=W.device) - W)[1]
        return value

    def bound(self) -> Tensor:
        """Negative evidence lower bound ``[]``: what Pyro's ``Trace_ELBO`` estimates from draws, in closed form."""
        m, log_s, free = self.W_loc * self.free, self.W_log_scale, self.free
        s = log_s.exp() * free
        square = self._residual(m) + ((s * s) * self.gram.diagonal().unsqueeze(-1)).sum(0)
        d = len(m)
        if self.noise == "unit":
            value = 0.5 * self.n_ * square.sum()
        else:
            a, log_c = self.noise_loc, self.noise_log_scale
            precision = (2 * (2 * log_c).exp() - 2 * a).exp()
            value = self.n_ * (a.expand(d) + 0.5 * precision * square).sum()
            value = value + mean_field.log_normal_kl(a, log_c, NOISE_WIDTH).sum()
        value = value + 0.5 * self.n_ * d * math.log(2 * math.pi)
        if self.prior == "laplace":
            kl = mean_field.laplace_kl(m, log_s, self._width())
        else:
            kl = mean_field.horseshoe_kl(m, log_s, self.local_loc, self.local_log_scale, self._width())
        return value + torch.where(free, kl, 0.0).sum()

    # From data

    def start(self, X: Any) -> LinearSCM:
        """Parameters without training: from the order search, or zero weights where there is a path.

        Raises
        ------
        DataError, ConfigError
            For unusable data (:func:`~pyro_cge.discovery.inputs.samples`) and contradictory knowledge.
        """
        data = one_law(X)
        table = table_on(self.path, self.knowledge, data.genes)
        self.genes_, self.n_ = data.genes, len(data.x)
        self._scale = data.x.std(0) if self.standardize else np.ones(data.d)
        x = (data.x - data.x.mean(0)) / self._scale
        gram = x.T @ x / self.n_
        device = self.gram.device if hasattr(self, "gram") else torch.device("cpu")
        tensors = {"x_": x, "gram": gram, "free": table != FORBIDDEN}
        W, self.found_, self._required = np.zeros_like(gram), 0, table == REQUIRED
        if self.path is None:
            prior = self.density if isinstance(self.density, EdgePrior) else None
            settings: dict[str, Any] = {"random_state": self.random_state, "progress": self.progress}
            search = OrderSearch(knowledge=self.knowledge, prior=prior, **settings).fit(data)
            self.found_ = int(search.adjacency_.sum())
            tensors["free"] &= self._candidates(search, data)
            W = search.weights_ * self._scale[:, None] / self._scale
        elif self.initial is not None:
            W = np.asarray(self.initial, dtype=float)
            if W.shape != gram.shape:
                raise ConfigError(f"initial must be [{data.d}, {data.d}], got {list(W.shape)}")
            W = W * tensors["free"] * self._scale[:, None] / self._scale
        for name, value in tensors.items():
            self.register_buffer(name, torch.as_tensor(value, device=device), persistent=name != "x_")
        self.W_loc = nn.Parameter(torch.as_tensor(W, device=device))
        if self.path is None:
            self._start_widths()
        return self

    def _candidates(self, search: OrderSearch, data: Samples) -> np.ndarray:
        if self.candidates == "edges":
            return search.adjacency_ != 0
        place = np.argsort([data.genes.index(gene) for gene in search.order_])
        return place[:, None] < place

    def _start_widths(self) -> None:
        """Posterior widths that are right at large n: those of least squares."""
        with torch.no_grad():
            variance = self._residual(self.W_loc).clamp_min(1e-12)
            square = variance.mean(-1, keepdim=True) if self.noise == "shared" else variance
            width = (variance / (self.n_ * self.gram.diagonal().unsqueeze(-1))).sqrt()
        self.W_log_scale = nn.Parameter(width.log())
        if self.noise != "unit":
            self.noise_loc = nn.Parameter(0.5 * square.log())
            per_scale = self.n_ * (len(self.gram) if self.noise == "shared" else 1)
            self.noise_log_scale = nn.Parameter(torch.full_like(square, -0.5 * math.log(2 * per_scale)))
        if self.prior == "horseshoe":
            size = (self.W_loc.detach() ** 2 + width**2).sqrt() / self._width()
            self.local_loc, self.local_log_scale = nn.Parameter(size.log()), nn.Parameter(torch.full_like(size, -0.5))

    def fit(self, X: Any, env: ArrayLike | str | None = None, *, control: Any = None) -> LinearSCM:
        """Learn the weights; see :meth:`start` for what is raised, and for environments ConfigError: this is one law."""
        data = one_law(X, env, control)
        self.start(data)
        if self.path is None:
            self._fit_posterior()
        else:
            self._fit_path(self.path)
        return self

    def _fit_posterior(self) -> None:
        parameters = [p for p in self.parameters() if p.requires_grad]
        value = LBFGS(parameters, [None] * len(parameters))(lambda: self.bound() / self.n_)
        with torch.no_grad():
            W = self.W_loc * self.free
            if self.prior == "laplace":
                precision = mean_field.laplace_curvature(W, self.W_log_scale, self._width())
            else:
                precision = mean_field.horseshoe_curvature(self.local_loc, self.local_log_scale, self._width())
            noise = W.new_zeros(1) if self.noise == "unit" else self.noise_loc - (2 * self.noise_log_scale).exp()
            sd = mean_field.linear_response(
                precision, self.gram, self.n_ * (-2 * noise).exp().expand(len(W)), self.free
            )
            probability = self._edge_probability(W, sd, precision) * self.free
        self._finish(W.cpu().numpy(), sd.cpu().numpy(), probability.cpu().numpy(), value)

    def _fit_path(self, path: Path) -> None:
        l1 = torch.where(self.free, self.l1 or 0.0, torch.inf)
        inner, square = LBFGS([self.W_loc], [l1]), lambda: self.W_loc * self.W_loc
        train(lambda: self.map_objective(self.W_loc), square, inner, path, self.h, progress=self.progress)
        with torch.no_grad():
            value = float(self.map_objective(self.W_loc) + (self.l1 or 0.0) * self.W_loc.abs().sum())
            if isinstance(path, SoftPenalty):
                value += path.weight * float(self.h(self.W_loc * self.W_loc))
            W = to_dag(self.W_loc.cpu().numpy(), self.threshold)
            self.W_loc.copy_(torch.from_numpy(W))
        self._finish(W, np.zeros_like(W), (W != 0).astype(float), value)

    def _edge_probability(self, W: Tensor, sd: Tensor, precision: Tensor) -> Tensor:
        if self.prior == "horseshoe":
            return 1 - (precision * sd**2).clamp(0, 1)  # Carvalho, Polson, Scott 2010: what is not shrinkage
        if isinstance(self.density, EdgePrior):
            density = torch.as_tensor(self.density.matrix(self.genes_)).to(W)
        else:
            pairs = len(W) * (len(W) - 1) / 2
            density = W.new_tensor((self.found_ + 1) / (pairs + 2) if self.density is None else self.density)
        return mean_field.savage_dickey(W, sd, self._width(), density)

    def _finish(self, W: np.ndarray, sd: np.ndarray, probability: np.ndarray, objective: float) -> None:
        back, probability = self._scale / self._scale[:, None], np.where(self._required, 1.0, probability)
        self.edge_probabilities_, self.objective_ = probability, objective
        self.adjacency_ = (probability > 0.5).astype(np.int64)
        self.weights_, self.weights_sd_ = W * back * self.adjacency_, sd * back
        self.graph_ = named_graph(self.adjacency_, self.genes_, weight=self.weights_, probability=probability)
        self.order_ = list(nx.topological_sort(self.graph_))

    def _started(self) -> None:
        if not hasattr(self, "W_loc"):
            raise ConfigError("LinearSCM has seen no data yet: call start(X) or fit(X) first")

"""Low-rank graphs: genes act on modules, and modules on genes."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import networkx as nx
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike
from pyro.distributions import constraints
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ..errors import ConfigError
from ..seeds import isolated
from .distributions import NOISE_WIDTH
from .inputs import TARGET, known_targets, samples
from .mean_field import laplace_kl, log_normal_kl
from .progress import shown
from .results import named_graph

HOT, COLD = 1.0, 0.3  # temperatures of the relaxed levels


def admitted(level: Tensor) -> tuple[Tensor, Tensor]:
    """Which modules may read a gene and which may write it ``[..., d, M]``, from one-hot levels ``[..., d, M+1]``."""
    reads = level.cumsum(-1)[..., :-1]
    return reads, 1 - reads


class FactorSEM(dist.TorchDistribution):
    """``x = h V + scale ∘ ε`` with modules ``h = x U``, where module ``k`` reads lower levels and writes from ``k`` up.

    Parameters
    ----------
    U : Tensor ``[..., d, M]``
        Zero where module ``k`` may not read a gene; ``V [..., M, d]`` where it may not write it.
    scale : Tensor ``[..., d]``
    counted : Tensor ``[..., d]``, bool, optional
        Genes of which the density is wanted: those that nothing intervened on.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, U: Tensor, V: Tensor, scale: Tensor, counted: Tensor | None = None, *, validate_args: bool | None = None
    ) -> None:
        self.U, self.V, self.scale, self.counted = U, V, scale, counted
        rows = () if counted is None else counted.shape[:-1]
        batch = torch.broadcast_shapes(U.shape[:-2], scale.shape[:-1], rows)
        super().__init__(batch, scale.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> FactorSEM:
        scale = self.scale.expand(*batch_shape, self.scale.shape[-1])
        return FactorSEM(self.U, self.V, scale, self.counted, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        each = dist.Normal((value @ self.U) @ self.V, self.scale, validate_args=False).log_prob(value)
        return (each if self.counted is None else each * self.counted).sum(-1)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        x = self.scale * torch.randn(shape, dtype=self.scale.dtype, device=self.scale.device)
        for k in range(self.U.shape[-1]):
            x = x + (x @ self.U[..., k : k + 1]) @ self.V[..., k : k + 1, :]
        return x


class FactorDAG(PyroModule):
    """A graph of genes → modules → genes, ``W = U V`` of rank ``M``, acyclic by construction.

    ::

        level_j     ~ Categorical(0, ..., M)
        U_ik, V_kj  ~ Laplace(0, b)
        noise_scale ~ LogNormal(0, 2)
        h_k         = Σ_i x_i U_ik [level_i < k]                 module k = 1 ... M
        x_j         = Σ_k h_k V_kj [k ≤ level_j] + noise_scale_j ε

    ``i → j`` through ``k`` takes ``level_i < k ≤ level_j``, so levels rise along every edge: each draw is a DAG, and any
    DAG of factors has such levels. (Lopez et al. 2022 let all levels be free and penalise cycles among modules.) A step
    costs ``O(n d M)``, and training needs no matrix of genes by genes. The results ``adjacency_`` and ``weights_`` are two
    of them, ``16 d²`` bytes (1.6 GB for 10,000 genes) and while they are made half as much again; without them, ``start``,
    ``bound`` and ``factors`` are enough.

    What to expect: edges of five modules of sixty genes are found (average precision 0.64, the order search's 0.16, chance
    0.08), those of ten modules of two thousand genes are **not** (0.0025, which is chance), and at both sizes
    :class:`OrderSearch` predicts held-out cells better: ``benchmarks/large_graphs``.

    The guide has independent normal weights, and levels by straight-through relaxed draws that cool down. Which levels are
    right is a hard problem: of several random starts the one with the best bound is kept.

    Parameters
    ----------
    n_modules : int
        ``M``.
    prior_scale : float
        ``b``, in units of the standardised columns.
    threshold : float
        Smaller ``|W_ij|`` between standardised columns are no edges.
    starts, steps, lr, batch_size
        Random starts; steps of Adam for each; its learning rate, which falls to zero in the second half; cells a step.
    progress : bool, optional
        Progress bar; by default only on a terminal.
    random_state : int

    Attributes
    ----------
    adjacency_, weights_ : ndarray ``[d, d]``
        At the most probable levels and the posterior means; ``W`` in the units of the data. A DAG.
    graph_ : DiGraph
    order_ : list of str
        Causes first.
    levels_ : Series
        Most probable level of each gene.
    reads_, writes_ : DataFrame ``[d, M]``
        ``U`` and ``Vᵀ`` at these levels, between standardised columns.
    bounds_ : list of float
        Negative bound a cell at the end of each start, of the last tenth of the steps.
    genes_ : list of str

    References
    ----------
    Lopez, Hütter, Pritchard, Regev 2022, Large-scale differentiable causal discovery of factor graphs.
    """

    level_logits: nn.Parameter
    U_loc: nn.Parameter
    U_log_scale: nn.Parameter
    V_loc: nn.Parameter
    V_log_scale: nn.Parameter
    noise_loc: nn.Parameter
    noise_log_scale: nn.Parameter
    x_: Tensor
    counted: Tensor

    def __init__(
        self,
        n_modules: int = 10,
        *,
        prior_scale: float = 0.5,
        threshold: float = 0.05,
        starts: int = 4,
        steps: int = 2000,
        lr: float = 0.02,
        batch_size: int = 1000,
        progress: bool | None = None,
        random_state: int = 0,
    ) -> None:
        super().__init__()
        if n_modules < 1 or starts < 1 or steps < 1 or batch_size < 1:
            raise ConfigError(
                "n_modules, starts, steps and batch_size must be at least 1, got "
                f"{n_modules}, {starts}, {steps}, {batch_size}"
            )
        if not (prior_scale > 0 and lr > 0) or threshold < 0:
            raise ConfigError(
                f"prior_scale and lr must be positive and threshold not negative, got {prior_scale}, {lr}, {threshold}"
            )
        self.n_modules, self.prior_scale, self.threshold = n_modules, prior_scale, threshold
        self.starts, self.steps, self.lr, self.batch_size = starts, steps, lr, batch_size
        self.progress, self.random_state, self.temperature = progress, random_state, COLD

    # The model and its guide

    @pyro_method
    def model(self, x: Tensor | None = None, index: Tensor | None = None, n: int | None = None) -> Tensor:
        """Rows ``x [B, d]`` of the standardised ``x_`` (``index``: which ones, of a minibatch), or ``n`` new ones."""
        self._started()
        d, m = self.U_loc.shape
        flat = self.U_loc.new_zeros
        level = pyro.sample("level", dist.OneHotCategorical(logits=flat(d, m + 1)).to_event(1))
        reads, writes = admitted(level)
        U = pyro.sample("U", dist.Laplace(flat(d, m), self.prior_scale).to_event(2)) * reads
        V = pyro.sample("V", dist.Laplace(flat(m, d), self.prior_scale).to_event(2)) * writes.mT
        scale = pyro.sample("noise_scale", dist.LogNormal(flat(d), NOISE_WIDTH).to_event(1))
        size = len(self.x_) if index is not None else len(x) if x is not None else n or 1
        rows = None if x is None else self.counted if index is None else self.counted[index]
        with pyro.plate("cells", size, subsample=index):
            return pyro.sample("x", FactorSEM(U, V, scale, rows), obs=x)

    @pyro_method
    def guide(self, x: Tensor | None = None, index: Tensor | None = None, n: int | None = None) -> None:
        """Independent levels, weights and scales; gradients pass straight through the draw of a level."""
        self._started()
        levels = dist.OneHotCategoricalStraightThrough(logits=self.level_logits, validate_args=False)
        pyro.sample("level", levels.to_event(1))
        pyro.sample("U", dist.Normal(self.U_loc, self.U_log_scale.exp()).to_event(2))
        pyro.sample("V", dist.Normal(self.V_loc, self.V_log_scale.exp()).to_event(2))
        pyro.sample("noise_scale", dist.LogNormal(self.noise_loc, self.noise_log_scale.exp()).to_event(1))

    def bound(self, index: Tensor, level: Tensor | None = None) -> Tensor:
        """Negative evidence lower bound a cell ``[]`` on a minibatch: levels and weights drawn, the rest in closed form.

        ``level``: one-hot draws ``[d, M+1]``; default, the relaxed straight-through draw at ``temperature``.
        """
        if level is None:
            level = nn.functional.gumbel_softmax(self.level_logits, self.temperature, hard=True)
        reads, writes = admitted(level)
        U = (self.U_loc + self.U_log_scale.exp() * torch.randn_like(self.U_loc)) * reads
        V = (self.V_loc + self.V_log_scale.exp() * torch.randn_like(self.V_loc)) * writes.mT
        x, counted = self.x_[index], self.counted[index]
        error = (x - (x @ U) @ V).square()
        precision = (2 * (2 * self.noise_log_scale).exp() - 2 * self.noise_loc).exp()
        each = 0.5 * error * precision + self.noise_loc + 0.5 * math.log(2 * math.pi)
        kl = laplace_kl(self.U_loc, self.U_log_scale, self.prior_scale).sum()
        kl = kl + laplace_kl(self.V_loc, self.V_log_scale, self.prior_scale).sum()
        kl = kl + log_normal_kl(self.noise_loc, self.noise_log_scale, NOISE_WIDTH).sum()
        log_q = self.level_logits.log_softmax(-1)
        kl = kl + (log_q.exp() * log_q).sum() + len(log_q) * math.log(log_q.shape[-1])
        return (each * counted).sum(-1).mean() + kl / len(self.x_)

    # Estimation

    def start(
        self,
        X: Any,
        env: ArrayLike | str | None = None,
        *,
        control: Any = None,
        targets: Mapping[Any, Collection[str]] | None = None,
    ) -> FactorDAG:
        """Make the parameters, at random small weights and even levels; see :meth:`fit`.

        Raises
        ------
        DataError, ConfigError
            For data that cannot be used, and targets that are no genes or of no environment.
        """
        data = samples(X, env, control=control)
        d, m = data.d, self.n_modules
        self.genes_, self.loc_, self.scale_ = data.genes, data.x[data.env == 0].mean(0), data.x[data.env == 0].std(0)
        self.register_buffer("x_", torch.tensor(data.scaled), persistent=False)
        counted = known_targets(targets, data)[data.env] != TARGET
        self.register_buffer("counted", torch.tensor(counted), persistent=False)
        with isolated(self.random_state, "factor graph"):
            self._begin(d, m)
        return self

    def _begin(self, d: int, m: int) -> None:
        def random(*shape: int, size: float = 0.1, at: float = 0.0) -> nn.Parameter:
            return nn.Parameter((at + size * torch.randn(shape, dtype=torch.float64)).to(self.x_.device))

        self.level_logits = random(d, m + 1, size=0.01)
        self.U_loc, self.U_log_scale = random(d, m), random(d, m, size=0.0, at=math.log(0.03))
        self.V_loc, self.V_log_scale = random(m, d), random(m, d, size=0.0, at=math.log(0.03))
        self.noise_loc, self.noise_log_scale = random(d, size=0.0), random(d, size=0.0, at=math.log(0.03))

    def fit(
        self,
        X: Any,
        env: ArrayLike | str | None = None,
        *,
        control: Any = None,
        targets: Mapping[Any, Collection[str]] | None = None,
        device: torch.device | str = "cpu",
    ) -> FactorDAG:
        """Fit from several starts and keep the best.

        Parameters
        ----------
        X, env, control
            See :func:`~pyro_cge.discovery.inputs.samples`.
        targets : mapping from environment to gene names, optional
            Genes whose mechanism an environment replaces: their terms of the likelihood are left out there.
        device : torch.device or str

        Raises
        ------
        DataError, ConfigError
            As :meth:`start`.
        """
        self.start(X, env, control=control, targets=targets).to(device)
        d, best, kept = len(self.genes_), math.inf, self.state_dict()
        self.bounds_ = list[float]()
        with isolated(self.random_state, "factor graph"):
            for step in shown(range(self.starts * self.steps), self.starts * self.steps, self.progress):
                at = step % self.steps
                if at == 0:
                    self._begin(d, self.n_modules)
                    weights = [p for name, p in self.named_parameters() if name != "level_logits"]
                    groups: list[dict[str, Any]] = [
                        {"params": weights},
                        {"params": [self.level_logits], "lr": 2 * self.lr},
                    ]
                    optimizer = torch.optim.Adam(groups, lr=self.lr, fused=True)
                    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
                    tail = list[float]()
                self.temperature = HOT * (COLD / HOT) ** (at / self.steps)
                index = torch.randperm(len(self.x_))[: self.batch_size]
                loss = self.bound(index)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                if at >= 0.9 * self.steps:
                    tail.append(float(loss.detach()))
                if at == self.steps - 1:
                    self.bounds_.append(float(np.mean(tail)))
                    if self.bounds_[-1] < best:
                        best, kept = self.bounds_[-1], {k: v.clone() for k, v in self.state_dict().items()}
        self.load_state_dict(kept)
        self._report()
        return self

    def _rate(self, step: int) -> float:
        return min(1.0, 2 * (1 - step / self.steps))

    @torch.no_grad()
    def factors(self) -> tuple[Tensor, Tensor]:
        """``U [d, M]`` and ``V [M, d]`` at the most probable levels, between standardised columns."""
        self._started()
        level = nn.functional.one_hot(self.level_logits.argmax(-1), self.n_modules + 1).double()
        reads, writes = admitted(level)
        return self.U_loc * reads, self.V_loc * writes.mT

    def _report(self) -> None:
        U, V = (part.cpu().numpy() for part in self.factors())
        W = U @ V
        W[np.abs(W) < self.threshold] = 0.0
        self.adjacency_ = (W != 0).astype(np.int64)
        self.weights_ = W * self.scale_ / self.scale_[:, None]
        names = [f"module {k}" for k in range(1, self.n_modules + 1)]
        level = self.level_logits.detach().argmax(-1).cpu().numpy()
        self.levels_ = pd.Series(level, index=self.genes_, name="level")
        self.order_ = list(self.levels_.sort_values(kind="stable").index)
        self.reads_ = pd.DataFrame(U, index=self.genes_, columns=names)
        self.writes_ = pd.DataFrame(V.T, index=self.genes_, columns=names)

    @property
    def graph_(self) -> nx.DiGraph:
        """With gene names, and ``weight`` on the edges."""
        return named_graph(self.adjacency_, self.genes_, weight=self.weights_)

    @torch.no_grad()
    def log_likelihood(self, X: Any) -> float:
        """Mean log density of cells ``X [n, d]`` in the units of the data, nats a cell, at the posterior means."""
        law = FactorSEM(*self.factors(), self.noise_loc.exp())
        x = torch.as_tensor((samples(X).x - self.loc_) / self.scale_, device=self.x_.device)
        return float(law.log_prob(x).mean()) - float(np.log(self.scale_).sum())

    def _started(self) -> None:
        if not hasattr(self, "U_loc"):
            raise ConfigError("FactorDAG has seen no data yet: call start(X) or fit(X) first")

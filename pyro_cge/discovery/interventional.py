"""A posterior over graph, weights and the targets of interventions that nobody labelled, as a Pyro model."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, cast

import networkx as nx
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import ArrayLike
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ..arviz_export import graph_data
from ..errors import ConfigError
from ..scm.handlers import in_force
from ..scm.latent import LatentSCM
from ..scm.mechanisms import LinearMechanism
from ..scm.shifts import NoiseShift
from ..seeds import isolated
from .distributions import LinearSEM, LinearSEMMoments
from .edge_prior import EdgePrior
from .graph_posterior import GraphPosterior, candidates, certain, sample_graph
from .inputs import SPARED, TARGET, Samples, known_targets, samples
from .knowledge import Knowledge
from .order_search import OrderSearch, target_prices
from .results import named_graph
from .variational import train_guide

EFFECTS = {"shift": (0.0, 3.0), "log_scale": (0.0, 1.0), "gamma": (0.5, 0.5)}  # prior means and standard deviations
SURE = 1e-9  # prior probability of what is known not to be


class InterventionalSCM(PyroModule):
    """A linear structural causal model in ``E`` environments, each of which changes the mechanisms of a few genes.

    ::

        edge              as in OrderDAG, W_ij ~ Normal(0, 1), noise_scale_j ~ LogNormal(−1/2, 1)
        target[e, j]      ~ Bernoulli(rate / d)                           0 in the reference; enumerated exactly
        shift[e, j]       ~ Normal(0, 3)                                  in standard deviations of the noise
        log_scale[e, j]   ~ Normal(0, 1)
        gamma[e, j]       ~ Normal(1/2, 1/2)                              what is left of the parents' effects; 0: hard
        x_j = γ Σ_i x_i W_ij edge_ij + noise_scale_j · z_j
        z_j ~ NoiseShift:   Normal(shift, exp(log_scale)²), γ = gamma     where target[e, j] = 1
                            Normal(0, 1),                   γ = 1         elsewhere

    Genes are standardised by the reference. Everything starts from :class:`OrderSearch`: orders and parent sets are drawn
    from their posterior under its score (targets profiled out), the rest is mean-field, trained by SVI with the targets
    summed out. A start at random ends at graphs no better than the empty one.

    Parameters
    ----------
    rate : float
        Expected number of targets in an environment, a priori.
    density : float or EdgePrior, optional
        ``ρ``; an EdgePrior weighs the edges of the order search as well. Default: the share of edges that it found.
    candidates, draws, knowledge, random_state
        As in :class:`OrderDAG`.
    steps, lr
        Of SVI.
    progress : bool, optional
        A bar over the restarts of the order search and the steps of SVI; by default only on a terminal.

    Attributes
    ----------
    target_probabilities_ : DataFrame ``[E, d]``
    targets_ : DataFrame ``[E, d]``
        Those above one half.
    interventions_ : DataFrame
        One row a target: probability, and posterior mean and standard deviation of ``shift`` (standard deviations of the
        noise), ``log_scale`` and ``gamma``.
    edge_probabilities_, adjacency_, weights_, graph_, genes_, environments_
        As in :class:`OrderDAG`.
    order_ : list of str
        Causes first.
    history_ : list of float
        The loss, in nats.

    References
    ----------
    Paper, definition 2 (noise interventions); Squires, Wang, Uhler 2020 (unknown targets).
    """

    rho: Tensor
    logits: Tensor
    grams: Tensor
    prior_odds: Tensor

    def __init__(
        self,
        *,
        rate: float = 1.0,
        density: float | EdgePrior | None = None,
        candidates: int = 8,
        draws: int = 500,
        knowledge: Knowledge | None = None,
        steps: int = 500,
        lr: float = 0.02,
        random_state: int = 0,
        progress: bool | None = None,
    ) -> None:
        super().__init__()
        if not rate > 0 or not lr > 0 or steps < 1 or draws < 1:
            raise ConfigError(
                f"rate, lr, steps and draws must be positive, got {rate=}, {lr=}, {steps=}, {draws=}".replace(
                    "=", " = "
                )
            )
        if isinstance(density, float | int) and not 0 < density < 1:
            raise ConfigError(f"density is a probability between 0 and 1, got {density}")
        if not 1 <= candidates <= 16:
            raise ConfigError(f"candidates must be 1 … 16, got {candidates}")
        self.rate, self.candidates, self.draws, self.knowledge = rate, candidates, draws, knowledge or Knowledge()
        self.density, self.steps, self.lr = density, steps, lr
        self.random_state, self.progress = random_state, progress

    # The model and its guide

    @pyro_method
    def model(self, grams: Tensor | None = None, n: int = 1) -> Tensor:
        """Gram matrices of the environments' standardised genes (``grams``); without data, ``n`` new rows of each.

        Returns
        -------
        Tensor
            ``[E, d, d+1, d+1]``, or rows ``[n, E, d]``.
        """
        self._started()
        E, d = self.prior_odds.shape
        environments, genes = pyro.plate("envs", E, dim=-2), pyro.plate("genes", d, dim=-1)
        zero = self.rho.new_zeros(())
        W = pyro.sample("W", dist.Normal(self.rho.new_zeros(d, d), 1.0).to_event(2)) * sample_graph(self.rho)
        with genes:
            noise_scale = pyro.sample("noise_scale", dist.LogNormal(zero - 0.5, 1.0))
        with environments, genes:
            target = pyro.sample("target", dist.Bernoulli(logits=self.prior_odds))
            shift, log_scale, gamma = (pyro.sample(name, dist.Normal(zero + a, b)) for name, (a, b) in EFFECTS.items())
        loc, scale = noise_scale * target * shift, noise_scale * (target * log_scale).exp()
        gain = 1 + target * (gamma - 1)
        if grams is None:  # all genes of a cell at once
            loc, scale, gain = (part.unsqueeze(-2) for part in (loc, scale, gain))
            with pyro.plate("cells", n, dim=-3), environments:
                return pyro.sample("x", LinearSEM(W, loc, scale, gain=gain, acyclic=True)).squeeze(-2)
        # The density is a product over genes: each target is summed out of its own factor.
        with environments, genes:
            return pyro.sample("x", LinearSEMMoments(W, loc, scale, gain), obs=LinearSEMMoments.observed(grams))

    @pyro_method
    def guide(self, grams: Tensor | None = None, n: int = 1) -> None:
        """Graphs from their posterior; targets enumerated, and effects given targets (the prior where there is none)."""
        self._started()
        E, d = self.prior_odds.shape
        environments, genes = pyro.plate("envs", E, dim=-2), pyro.plate("genes", d, dim=-1)
        pyro.sample("W", self._law("W").to_event(2))
        self._graphs.sample(self.logits)
        with genes:
            noise = self._law("noise_scale")
            pyro.sample("noise_scale", dist.LogNormal(noise.loc, noise.scale))
        with environments, genes:
            law = dist.Bernoulli(logits=self.target_logits)
            target = pyro.sample("target", law, infer={"enumerate": "parallel"}) > 0
            for name, (loc, scale) in EFFECTS.items():
                own = self._law(name)
                law = dist.Normal(torch.where(target, own.loc, loc), torch.where(target, own.scale, scale))
                pyro.sample(name, law)

    def _law(self, name: str) -> Any:
        return dist.Normal(getattr(self, f"{name}_loc"), getattr(self, f"{name}_log_sd").exp())

    # From data

    def start(
        self,
        X: Any,
        env: ArrayLike | str | None = None,
        *,
        control: Any = None,
        targets: Mapping[Any, Collection[str]] | None = None,
    ) -> InterventionalSCM:
        """Graphs and parameters from an order search; see :meth:`OrderSearch.fit`.

        Raises
        ------
        ConfigError
            If there is one environment only.
        DataError, ConfigError
            As :class:`OrderSearch`.
        """
        from .compiled.scores import score_tables

        data = samples(X, env, control=control)
        if len(data.environments) < 2:
            raise ConfigError("interventions need environments: pass env=, one label a sample (or use OrderDAG)")
        known, table = known_targets(targets, data), self.knowledge.table(data.genes)
        believed = self.density if isinstance(self.density, EdgePrior) else None
        settings: dict[str, Any] = {"random_state": self.random_state, "progress": self.progress}
        best = OrderSearch(knowledge=self.knowledge, prior=believed, **settings)
        best.fit(data, targets=targets)
        self.genes_, self.environments_ = data.genes, data.environments
        self._mean, self._sd = data.x[data.env == 0].mean(0), data.x[data.env == 0].std(0)
        grams, d = data.grams(), data.d
        near, counts = candidates(np.asarray(np.corrcoef(data.x.T)), best.adjacency_, table, self.candidates)
        prices = (np.full((d, d), 0.5 * math.log(len(data.x))), *target_prices(data), known)
        tables = score_tables(grams, data.sizes, near, counts, prices)
        found = (best.adjacency_.sum() + 1) / (d * (d - 1) / 2 + 2)
        density = found if self.density is None else self.density
        prior = density.matrix(data.genes) if isinstance(density, EdgePrior) else np.full((d, d), density)
        first = np.array([data.genes.index(gene) for gene in best.order_])
        self._graphs = GraphPosterior(tables, near, counts, prior, table, first, self.draws, self.random_state)
        odds = np.full(known.shape, math.log(self.rate / max(d - self.rate, 0.5)))
        odds[known == SPARED], odds[known == TARGET] = math.log(SURE), -math.log(SURE)
        buffers = {"rho": certain(prior, table), "logits": np.zeros(self.draws), "grams": grams, "prior_odds": odds}
        for name, value in buffers.items():
            self.register_buffer(name, torch.as_tensor(value))
        hit = best.targets_.to_numpy()
        self.target_logits = nn.Parameter(torch.as_tensor(np.where(known > 0, odds, np.where(hit, 2.0, -2.0))))
        scaled_weights = best.weights_ * self._sd[:, None] / self._sd
        for name, (loc, sd) in _estimates(data, scaled_weights, hit).items():
            setattr(self, f"{name}_loc", nn.Parameter(torch.as_tensor(loc)))
            setattr(self, f"{name}_log_sd", nn.Parameter(torch.as_tensor(np.log(sd))))
        return self

    def fit(
        self,
        X: Any,
        env: ArrayLike | str | None = None,
        *,
        control: Any = None,
        targets: Mapping[Any, Collection[str]] | None = None,
        device: torch.device | str = "cpu",
    ) -> InterventionalSCM:
        """Start from an order search and train; parameters as in :meth:`OrderSearch.fit`."""
        self.start(X, env, control=control, targets=targets).to(device)
        others = [p for name, p in self.named_parameters() if name != "target_logits"]
        groups = [{"params": others, "lr": self.lr}, {"params": [self.target_logits], "lr": 5 * self.lr}]
        optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99))
        elbo = TraceEnum_ELBO(max_plate_nesting=2)
        self.history_ = train_guide(
            lambda: elbo.differentiable_loss(self.model, self.guide, self.grams),
            optimiser,
            steps=self.steps,
            decay=0.05,
            seed=self.random_state,
            progress=self.progress,
        )
        self._summarise()
        return self

    def _summarise(self) -> None:
        names: dict[str, Any] = {"index": self.environments_, "columns": self.genes_}
        probability = self.target_logits.detach().sigmoid().cpu().numpy()
        self.target_probabilities_ = pd.DataFrame(probability, **names)
        self.targets_ = self.target_probabilities_ > 0.5
        self.edge_probabilities_, self.adjacency_ = self._graphs.edge_probabilities, self._graphs.best_dag()
        mean = self._law("W").loc.detach().cpu().numpy() * self.edge_probabilities_
        self.weights_ = mean * self._sd / self._sd[:, None]
        self.graph_ = named_graph(
            self.adjacency_, self.genes_, weight=self.weights_, probability=self.edge_probabilities_
        )
        self.order_ = list(nx.topological_sort(self.graph_))
        rows = []
        for e, j in np.argwhere(self.targets_.to_numpy()):
            row = {"environment": self.environments_[e], "gene": self.genes_[j], "probability": probability[e, j]}
            for name in EFFECTS:
                law = self._law(name)
                row |= {name: law.loc[e, j].item(), f"{name}_sd": law.scale[e, j].item()}
            rows.append(row)
        self.interventions_ = pd.DataFrame(rows, columns=None if rows else ["environment", "gene", "probability"])

    # What follows

    def structural(self) -> tuple[LatentSCM, NoiseShift, Tensor]:
        """The fitted model in the words of latent models: ``c = x / noise_scale``, its noise, and gains ``[E, d]``.

        Gains are NaN where an environment leaves a mechanism alone.
        """
        self._started()
        noise = self._law("noise_scale").loc.exp()
        W = self._law("W").loc * noise.unsqueeze(-1) / noise * torch.as_tensor(self.adjacency_, device=noise.device)
        with isolated(self.random_state):  # weights are drawn, and replaced
            scm = LatentSCM(_numbered(self.adjacency_), LinearMechanism).to(noise)
        start = 0
        for layer, mechanism in zip(scm.layers[1:], scm.mechanisms, strict=True):
            start += len(scm.layers[scm.layers.index(layer) - 1])
            cast(LinearMechanism, mechanism).weight.data = W.detach()[scm.order[:start]][:, layer]
        on = torch.as_tensor(self.targets_.to_numpy(), device=noise.device)
        shift = NoiseShift(*(torch.where(on, self._law(name).loc, 0.0).detach() for name in ("shift", "log_scale")))
        return scm, shift, torch.where(on, self._law("gamma").loc, torch.nan).detach()

    def predict(self, environment: str | None = None, n: int = 1000) -> pd.DataFrame:
        """New profiles of an environment (default: the reference), in the units of the data ``[n, d]``.

        Inside handlers of :mod:`pyro_cge.scm.handlers` they answer what an intervention would do; genes are numbered as in
        ``genes_``, and values of a :class:`HardIntervention` are in standard deviations of the gene's noise. The noise is that
        of ``random_state`` in every call: profiles under an intervention and without it are those of the same cells.

        Raises
        ------
        ConfigError
            For an environment that was not in the data.
        """
        scm, shift, gain = self.structural()
        name = self.environments_[0] if environment is None else environment
        if name not in self.environments_:
            raise ConfigError(f"no environment {name!r}; there are {self.environments_[:8]}")
        env = torch.full((n,), self.environments_.index(name), device=gain.device)
        noise = isolated(self.random_state, "profiles")
        with noise, torch.no_grad(), in_force(None, gain, env), pyro.plate("cells", n, dim=-1):
            z = pyro.sample("z", shift.law(env), infer=cast(Any, {"exogenous": True}))
            c = scm(z)
        x = (c * self._law("noise_scale").loc.exp()).detach().cpu().numpy()
        return pd.DataFrame(x * self._sd + self._mean, columns=self.genes_)

    def posterior(self, draws: int = 1000) -> dict[str, Tensor]:
        """Joint draws of all sites ``[draws, ...]``, standardised units."""
        self._started()
        with isolated(self.random_state), torch.no_grad(), pyro.get_param_store().scope():
            traces = [poutine.trace(self.guide).get_trace() for _ in range(draws)]
        names = ("potential", "edge", "W", "noise_scale", "target", *EFFECTS)
        return {name: torch.stack([cast(Tensor, trace.nodes[name]["value"]) for trace in traces]) for name in names}

    def to_arviz(self, draws: int = 1000) -> Any:
        """:meth:`posterior` as ArviZ ``InferenceData``: targets and effects by environment and gene."""
        return graph_data(self.posterior(draws), self.genes_, self.environments_)

    def _started(self) -> None:
        if not hasattr(self, "rho"):
            raise ConfigError("InterventionalSCM has seen no data yet: call start(X, env) or fit(X, env) first")


def _numbered(adjacency: np.ndarray) -> Any:
    return nx.from_numpy_array(adjacency, create_using=nx.DiGraph)


def _estimates(data: Samples, W: np.ndarray, targets: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Where the mean-field guide starts: means and standard deviations of every site.

    Effects of each environment on each gene are those of a regression on what its parents contribute.
    """
    x, E, d = data.scaled, len(data.environments), data.d
    effect = x @ W
    alone = targets[data.env]  # [n, d]: the gene's own mechanism is not in force
    free = np.maximum((~alone).sum(0), 2)
    residual = np.where(alone, 0.0, x - effect)
    noise = np.sqrt((residual**2).sum(0) / free)
    shift, log_scale, gamma = np.zeros((E, d)), np.zeros((E, d)), np.ones((E, d))
    for e in range(E):
        y, f = x[data.env == e], effect[data.env == e]
        variance = f.var(0)
        slope = ((f - f.mean(0)) * (y - y.mean(0))).mean(0) / np.maximum(variance, 1e-9)
        gamma[e] = np.where(variance > 1e-6, slope, 1.0)
        left = y - gamma[e] * f
        shift[e] = left.mean(0) / noise
        log_scale[e] = np.log(np.maximum(left.std(0), 1e-3) / noise)
    each = 1 / np.sqrt(data.sizes)[:, None] * np.ones((E, d))
    sd = np.where(W != 0, 1 / np.sqrt(len(x)), 1.0)
    return {
        "W": (W, sd),
        "noise_scale": (np.log(noise), 1 / np.sqrt(2 * free)),
        "shift": (shift, each),
        "log_scale": (log_scale, each),
        "gamma": (gamma, each),
    }

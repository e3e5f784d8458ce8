"""Training under acyclicity: a few problems ``loss + term(A)`` one after the other, whatever the model and the optimiser.

``A [d, d]`` are the squared weights of the graph as a function of the parameters; a path says which terms come after each
other, an inner optimiser solves each problem from where the last one ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import ConfigError, NonFiniteLossError
from .acyclicity import log_det, trace_exponential
from .knowledge import REQUIRED, Knowledge
from .progress import shown

Term = Callable[[Tensor], Tensor]


class Path(Protocol):
    """Which problems come one after the other."""

    def terms(self, h: Term, strength: Callable[[], Tensor]) -> Iterator[Term]: ...


@dataclass(frozen=True)
class AugmentedLagrangian:
    """``loss + α h(A) + ρ/2 h(A)²``: ``ρ`` grows where ``h`` does not shrink, ``α`` then takes the constraint over.

    Attributes
    ----------
    tolerance : float
        ``h`` at which it ends.
    rho : float
        At the start.
    growth : float
        Factor of ``ρ`` where ``h`` did not fall to ``shrink`` times what it was.
    shrink : float
    rho_max : float
    rounds : int
        Largest number of updates of ``α``.

    References
    ----------
    Zheng et al. 2018, algorithm 1.
    """

    tolerance: float = 1e-8
    rho: float = 1.0
    growth: float = 10.0
    shrink: float = 0.25
    rho_max: float = 1e16
    rounds: int = 100

    def __post_init__(self) -> None:
        if not (self.growth > 1 and 0 < self.shrink < 1 and self.rho > 0 and self.rounds > 0):
            raise ConfigError(f"growth must be above 1, shrink between 0 and 1, rho and rounds positive, got {self}")

    def terms(self, h: Term, strength: Callable[[], Tensor]) -> Iterator[Term]:
        alpha, rho, last = 0.0, self.rho, float("inf")
        for _ in range(self.rounds):
            while True:
                yield lambda A, a=alpha, r=rho: _augmented(h(A), a, r)  # type: ignore[misc]
                value = _value(h, strength)
                if value <= self.shrink * last or rho >= self.rho_max:
                    break
                rho *= self.growth
            alpha, last = alpha + rho * value, value
            if value <= self.tolerance or rho >= self.rho_max:
                return


@dataclass(frozen=True)
class CentralPath:
    """``loss + h_s(A)/μ`` with the log-determinant ``h_s``: ``μ → 0`` leads from the empty graph to a DAG.

    References
    ----------
    Bello, Aragam, Ravikumar 2022, algorithm 1.
    """

    mu: Sequence[float] = (1.0, 0.1, 0.01, 0.001, 0.0001)
    s: Sequence[float] = (1.0, 0.9, 0.8, 0.7, 0.6)

    def __post_init__(self) -> None:
        if len(self.mu) != len(self.s) or min(*self.mu, *self.s) <= 0:
            raise ConfigError(f"mu and s need equally many positive values, got {self.mu} and {self.s}")

    def terms(self, h: Term, strength: Callable[[], Tensor]) -> Iterator[Term]:
        for problem, (mu, s) in enumerate(zip(self.mu, self.s, strict=True)):
            now = _finite(strength, problem)
            while not torch.isfinite(log_det(now, s)):
                s += 0.1 * max(1.0, s)  # outside of the domain that the last problem ended in
            yield lambda A, mu=mu, s=s: log_det(A, s) / mu  # type: ignore[misc]


@dataclass(frozen=True)
class SoftPenalty:
    """``loss + λ h(A)``, once: no constraint, as the likelihood of a cyclic graph pays for its cycles by itself.

    References
    ----------
    Ng, Ghassami, Zhang 2020, "GOLEM".
    """

    weight: float = 5.0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ConfigError(f"weight must be positive, got {self.weight}")

    def terms(self, h: Term, strength: Callable[[], Tensor]) -> Iterator[Term]:
        yield lambda A: self.weight * h(A)


def _finite(strength: Callable[[], Tensor], problem: int) -> Tensor:
    """``A``, checked: no problem of a path can start from, or end at, weights that are not numbers."""
    now = strength().detach()
    if not torch.isfinite(now).all():
        raise NonFiniteLossError(
            f"problem {problem} of the path has weights that are not finite: check the weights it starts from, and choose "
            "a smaller learning rate or standardised columns",
            site="W",
            epoch=problem,
            batch=0,
        )
    return now


def _augmented(h: Tensor, alpha: float, rho: float) -> Tensor:
    return alpha * h + 0.5 * rho * h * h


def _value(h: Term, strength: Callable[[], Tensor]) -> float:
    with torch.no_grad():
        return float(h(strength()))


@dataclass
class LBFGS:
    """``loss(θ) + Σ l1 |θ|`` by L-BFGS-B with ``θ = θ⁺ − θ⁻``, which is exact for the absolute value (Zheng et al. 2018).

    Attributes
    ----------
    parameters : list of Parameters
    l1 : list of Tensors or None
        Penalty of each entry of a parameter, None for none; an infinite one fixes the entry at 0.
    steps : int
        Largest number of iterations.
    """

    parameters: Sequence[nn.Parameter]
    l1: Sequence[Tensor | None]
    steps: int = 15000
    tolerance: float = 2.2e-9
    history: list[float] = field(default_factory=list)

    def __call__(self, loss: Callable[[], Tensor]) -> float:
        """Minimise from where the parameters are (in place); the lowest value."""
        from scipy.optimize import minimize

        costs = [
            np.full(p.numel(), -1.0) if c is None else c.detach().expand(p.shape).reshape(-1).cpu().numpy()
            for p, c in zip(self.parameters, self.l1, strict=True)
        ]
        cost = np.concatenate(costs)
        split = cost >= 0  # entries with an absolute value to pay for have two halves
        paid = np.where(np.isfinite(cost[split]), cost[split], 0.0)
        start = np.concatenate([p.detach().reshape(-1).cpu().numpy() for p in self.parameters])
        n, last = len(start), [np.inf]

        def unpack(z: np.ndarray) -> np.ndarray:
            theta = z[:n].copy()
            theta[split] -= z[n:]
            return theta

        def value(z: np.ndarray) -> tuple[float, np.ndarray]:
            self._put(unpack(z))
            for p in self.parameters:
                p.grad = None
            total = loss()
            if not torch.isfinite(total):
                # Beyond a barrier: worse than where the line search came from, and uphill from there on.
                return last[0] + abs(last[0]) + 1.0, np.zeros_like(z)
            total.backward()
            g = np.concatenate(
                [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1).cpu().numpy() for p in self.parameters]
            )
            both = np.concatenate([g, -g[split]])
            both[:n][split] += paid
            both[n:] += paid
            last[0] = float(total.detach()) + float(paid @ (z[:n][split] + z[n:]))
            return last[0], both

        free = np.isfinite(cost)
        lower = np.concatenate([np.where(split, 0.0, -np.inf), np.zeros(split.sum())])
        upper = np.where(np.concatenate([free, free[split]]), np.inf, 0.0)
        z0 = np.concatenate([np.where(split, np.maximum(start, 0), start), np.maximum(-start[split], 0)])
        options = {"maxiter": self.steps, "maxfun": 10 * self.steps, "ftol": self.tolerance}
        found = minimize(value, z0, jac=True, method="L-BFGS-B", bounds=np.c_[lower, upper], options=options)
        self._put(unpack(found.x))
        self.history.append(float(found.fun))
        return float(found.fun)

    def _put(self, theta: np.ndarray) -> None:
        at = 0
        with torch.no_grad():
            for p in self.parameters:
                p.copy_(torch.from_numpy(theta[at : at + p.numel()]).reshape(p.shape))
                at += p.numel()


@dataclass
class Adam:
    """``steps`` of Adam on a loss that may be random (a draw, a minibatch), from a new state each time it is called."""

    parameters: Sequence[nn.Parameter]
    lr: float = 3e-3
    steps: int = 500

    def __call__(self, loss: Callable[[], Tensor]) -> float:
        """Minimise from where the parameters are (in place); the last value."""
        optimizer = torch.optim.Adam(self.parameters, lr=self.lr, fused=True)
        value = torch.zeros(())
        for _ in range(self.steps):
            value = loss()
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
        return float(value.detach())


def train(
    loss: Callable[[], Tensor],
    strength: Callable[[], Tensor],
    inner: Callable[[Callable[[], Tensor]], Any],
    path: Path,
    h: Term = trace_exponential,
    *,
    progress: bool | None = None,
) -> None:
    """Minimise ``loss`` over DAGs, in place: the inner optimiser solves one problem of the path after the other.

    Raises
    ------
    NonFiniteLossError
        If a problem ends at weights that are not finite.
    """
    for problem, term in enumerate(shown(path.terms(h, strength), None, progress)):
        inner(lambda term=term: loss() + term(strength()))  # type: ignore[misc]
        _finite(strength, problem)


def table_on(path: Path | None, knowledge: Knowledge, genes: list[str]) -> NDArray[np.int8]:
    """Table of prior knowledge ``[d, d]`` for a start from the order search, or for a path.

    Raises
    ------
    ConfigError
        For required edges on a path, which only forbids.
    """
    table = knowledge.table(genes)
    if path is not None and (table == REQUIRED).any():
        raise ConfigError("required edges are kept by the order search: leave out the path, or the required edges")
    return table

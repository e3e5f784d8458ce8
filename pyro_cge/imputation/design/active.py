"""Active intervention design: which shift to try next, to find the one that brings the mean to a target."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ...errors import ConfigError
from ...scm.shifts import NoiseShift
from .acquisitions import (
    Value,
    causal_integrated_variance,
    expected_distance,
    inside,
    max_variance,
    minimise,
    output_weighted_variance,
)
from .weight_posterior import WeightPosterior

if TYPE_CHECKING:
    from ...discovery.order_dag import OrderDAG
    from ...scm.latent import LatentSCM

Acquisition = Literal["random", "greedy", "max variance", "civ", "output-weighted civ", "expected distance"]
VALUES: dict[str, Callable[[WeightPosterior, Tensor, int], Value]] = {
    "max variance": max_variance,
    "civ": causal_integrated_variance,
    "output-weighted civ": output_weighted_variance,
    "expected distance": expected_distance,
}


class ActiveDesign:
    """Ask for a shift, do the experiment, tell its outcome; the optimal shift is known better each time.

    ::

        design = ActiveDesign(WeightPosterior.prior(A, noise_variance), target)
        for _ in range(50):
            shift = design.ask()
            design.tell(experiment(shift), shift)
        design.optimal_shift_

    The goal is the shift ``a* = μ* (I − W)`` under which the mean of ``x = xW + a + ε`` is the target ``μ*``; the weights are
    unknown, shifts are limited to ``‖a‖ ≤ radius``. Leading dimensions of the posterior and of the target are repetitions
    that run side by side.

    Over several graphs, posteriors have one more dimension, the last leading one, and probabilities: each graph's are
    multiplied by the evidence of what is told, and acquisitions and ``a*`` are averages over graphs.

    Parameters
    ----------
    posterior : WeightPosterior ``[...]`` or ``[..., G]``
        Before the first experiment.
    target : ``[..., p]``
        Mean to reach, relative to the reference.
    acquisition : str
        "random": uniform on the sphere. "greedy": the best guess of the optimal shift. "max variance": learn all weights.
        "civ", "output-weighted civ": causal integrated variance (Zhang et al. 2023). "expected distance": the distance to
        the target that is left; see :mod:`~pyro_cge.imputation.design.acquisitions`.
    graph_probabilities : ``[..., G]``, optional
        Of the graphs, given all the posterior has seen.
    n : int
        Samples each experiment has.
    radius : float
    starts, steps : int
        Of the minimiser: random starts beside the last shift and the optimal one, and gradient steps from each.
    random_state : int

    Attributes
    ----------
    posterior_ : WeightPosterior
    graph_probabilities_ : Tensor ``[..., G]`` or None
    optimal_shift_ : Tensor ``[..., p]``
        Posterior mean of ``a*``, not limited to the radius.

    References
    ----------
    Zhang, Cammarata, Squires, Sapsis, Uhler 2023, "Active learning for optimal intervention design in causal models".
    """

    def __init__(
        self,
        posterior: WeightPosterior,
        target: ArrayLike | Tensor,
        *,
        acquisition: Acquisition = "civ",
        graph_probabilities: ArrayLike | Tensor | None = None,
        n: int = 1,
        radius: float = 1.0,
        starts: int = 1,
        steps: int = 25,
        random_state: int = 0,
    ) -> None:
        if acquisition not in ("random", "greedy", *VALUES):
            raise ConfigError(
                f"acquisition must be 'random', 'greedy' or one of {', '.join(VALUES)}, got {acquisition!r}"
            )
        if n < 1 or not radius > 0 or starts < 0 or steps < 1:
            raise ConfigError(f"n, radius and steps must be positive, got n={n}, radius={radius}, steps={steps}")
        self.target = torch.as_tensor(target, dtype=posterior.W.dtype, device=posterior.W.device)
        if not self.target.dim() or self.target.shape[-1] != posterior.p:
            raise ConfigError(f"target needs one mean a node, [..., {posterior.p}], got {list(self.target.shape)}")
        self.acquisition, self.n, self.radius, self.starts, self.steps = acquisition, n, radius, starts, steps
        self.posterior_ = posterior
        self._log_prior: Tensor | None = None
        if graph_probabilities is not None:
            probabilities = torch.as_tensor(graph_probabilities, dtype=posterior.W.dtype, device=posterior.W.device)
            graphs = posterior.A.shape[-3] if posterior.A.dim() > 2 else 0
            if not probabilities.dim() or probabilities.shape[-1] != graphs or not (probabilities >= 0).all():
                raise ConfigError(
                    f"graph_probabilities needs one non-negative number a graph, [..., {graphs}], got "
                    f"{list(probabilities.shape)}: the graphs are the last leading dimension of the posterior"
                )
            self._log_prior = probabilities.log() - posterior.log_evidence
        self._generator = torch.Generator(self.target.device).manual_seed(random_state)
        self._last: Tensor | None = None

    @staticmethod
    def over_graphs(
        estimator: OrderDAG, X: Any, target: ArrayLike, *, draws: int = 200, **options: Any
    ) -> ActiveDesign:
        """A design over the graphs drawn from a fitted :class:`~pyro_cge.discovery.OrderDAG`.

        Works in the standardised units of the observations ``X [n, p]`` that it was fitted on: divide experiments by
        their standard deviations (after subtracting the means), and targets and shifts by the standard deviations.
        """
        rows = np.asarray(X, dtype=float)
        x = torch.from_numpy((rows - rows.mean(0)) / rows.std(0))
        A, counts = torch.unique(estimator.posterior(draws)["edge"].double().cpu(), dim=0, return_counts=True)
        belief = WeightPosterior.prior(A, precision=estimator.slab_**-2).update(x, torch.zeros(x.shape[-1]))
        return ActiveDesign(belief, target, graph_probabilities=counts / counts.sum(), **options)

    @staticmethod
    def on_latents(
        scm: LatentSCM,
        target: ArrayLike | Tensor,
        *,
        noise_scale: Tensor | float = 1.0,
        precision: float = 1.0,
        **options: Any,
    ) -> ActiveDesign:
        """A design on the causes of a latent SCM, to be asked by :meth:`ask_environment`.

        Weights start at what the SCM's mechanisms say (their slopes at the reference, exact for linear ones) on the edges
        of its graph, as uncertain as ``precision`` says.

        Parameters
        ----------
        scm : LatentSCM
            Fitted or learned.
        target : ``[d]``
            Mean of the causes to reach, relative to the reference.
        noise_scale : Tensor ``[d]`` or float
            Standard deviation of the noise in the reference environment.
        """
        A = scm.A.detach().double()
        at = next(scm.buffers()).new_zeros(scm.d, dtype=torch.get_default_dtype())
        # Of the causes in the noise, [effect, cause]: (I − W)⁻¹ transposed.
        slopes = torch.autograd.functional.jacobian(scm, at).reshape(scm.d, scm.d).double()
        weights = torch.eye(scm.d, dtype=torch.double).to(slopes) - torch.linalg.inv(slopes).transpose(-1, -2)
        variance = torch.as_tensor(noise_scale, dtype=torch.double).square().expand(scm.d)
        belief = WeightPosterior.prior(A, variance, precision=precision, weights=weights, device=A.device)
        return ActiveDesign(belief, target, **options)

    @property
    def graph_probabilities_(self) -> Tensor | None:
        return None if self._log_prior is None else (self._log_prior + self.posterior_.log_evidence).softmax(-1)

    @property
    def optimal_shift_(self) -> Tensor:
        return self._average(self.posterior_.optimal_shift(self._targets))

    @torch.no_grad()
    def ask(self) -> Tensor:
        """The next shift ``[..., p]``."""
        optimal = self.optimal_shift_
        unit = self._random(optimal, 1).squeeze(-2)
        if self.acquisition == "random":
            return unit
        if self.acquisition == "greedy":
            return inside(optimal, self.radius)
        jitter = 0.8 + 0.4 * torch.rand(
            optimal.shape, generator=self._generator, dtype=optimal.dtype, device=optimal.device
        )
        last = unit if self._last is None else inside(self._last * jitter, self.radius)
        best = self.radius * optimal / optimal.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        starts = torch.cat([torch.stack([last, best], -2), self._random(optimal, self.starts)], -2)
        self._last = minimise(self._value(), starts, self.radius, self.steps)
        return self._last

    def ask_environment(self) -> NoiseShift:
        """The next shift as the law of the noise in a new environment, ``NoiseShift [..., 1, p]``."""
        loc = self.ask().unsqueeze(-2)
        variance = self._average(self.posterior_.noise_variance).unsqueeze(-2)
        return NoiseShift(loc, 0.5 * variance.expand(loc.shape).log())

    @torch.no_grad()
    def tell(self, x: ArrayLike | Tensor, shift: ArrayLike | Tensor | NoiseShift) -> ActiveDesign:
        """Update with samples ``x [..., n, p]`` under ``shift [..., p]``, asked for or not (zero: observations)."""
        a = shift.loc.squeeze(-2) if isinstance(shift, NoiseShift) else torch.as_tensor(shift, dtype=self.target.dtype)
        x = torch.as_tensor(x, dtype=self.target.dtype)
        if self._log_prior is not None:
            x, a = x.unsqueeze(-3), a.unsqueeze(-2)
        self.posterior_ = self.posterior_.update(x, a)
        return self

    @property
    def _targets(self) -> Tensor:
        return self.target if self._log_prior is None else self.target.unsqueeze(-2)

    def _average(self, values: Tensor) -> Tensor:
        """Over graphs, if there are several: ``[..., G, p] → [..., p]``."""
        weights = self.graph_probabilities_
        return values if weights is None else (weights.unsqueeze(-1) * values).sum(-2)

    def _value(self) -> Value:
        value = VALUES[self.acquisition](self.posterior_, self._targets, self.n)
        if self._log_prior is None:
            return value
        return lambda a: self._average(value(a.unsqueeze(-3)))

    def _random(self, like: Tensor, count: int) -> Tensor:
        """Shifts ``[..., count, p]``, uniform on the sphere."""
        shape = (*like.shape[:-1], count, like.shape[-1])
        a = torch.randn(shape, generator=self._generator, dtype=like.dtype, device=like.device)
        return self.radius * a / a.norm(dim=-1, keepdim=True)

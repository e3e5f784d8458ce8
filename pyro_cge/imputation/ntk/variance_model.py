"""The variances of a sum of kernels, as a Pyro model: genes' components in blocks, one Gaussian process a block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor

from ...seeds import isolated
from ..effects import Array

PRIOR_MEDIAN, PRIOR_SPREAD = 0.1, 2.0  # of each variance, in units of the outputs' mean square
JITTER = 1e-6


class VarianceModel(PyroModule):
    """Outputs are draws of Gaussian processes whose kernels are sums with unknown variances.

    ::

        variance[b, t] ~ LogNormal(log 0.1, 2)             blocks × (terms, noise last)
        y_b[j, :]      ~ Normal(0, Σ_t variance[b, t] K_t + variance[b, T] diag(ν))     for each output j of block b

    Outputs of a block share one Cholesky factor, which makes the likelihood that of a matrix-normal law with diagonal
    covariance of the outputs.

    Parameters
    ----------
    kernels : Tensor ``[T, n, n]``
    noise : Tensor ``[n]``
        ``ν``, relative variance of the rows' noise.
    y : sequence of Tensors ``[q_b, n]``
        Outputs of each block, of mean square 1.
    """

    def __init__(self, kernels: Tensor, noise: Tensor, y: Sequence[Tensor]) -> None:
        super().__init__()
        self.kernels, self.noise, self.y = kernels, noise, list(y)

    def forward(self) -> Tensor:
        shape = (len(self.y), len(self.kernels) + 1)
        loc = self.noise.new_full(shape, np.log(PRIOR_MEDIAN))
        variance = pyro.sample("variance", dist.LogNormal(loc, PRIOR_SPREAD).to_event(2))
        for b, y in enumerate(self.y):
            if not len(y):  # a block of nothing but zeros
                continue
            law = dist.MultivariateNormal(self.noise.new_zeros(len(self.noise)), scale_tril=self.factor(variance[b]))
            with pyro.plate(f"outputs_{b}", len(y)):
                pyro.sample(f"y_{b}", law, obs=y)
        return variance

    def factor(self, variance: Tensor) -> Tensor:
        """Cholesky factor of the covariance of rows ``[n, n]``."""
        covariance = torch.tensordot(variance[:-1], self.kernels, 1)
        noise = variance[-1] * self.noise + JITTER * (1 + covariance.detach().diagonal().mean())
        return torch.linalg.cholesky(covariance + torch.diag(noise))


def infer(
    model: VarianceModel, inference: str, *, steps: int, draws: int, random_state: int | None = 0
) -> tuple[Array, list[float]]:
    """Variances ``[S, blocks, T + 1]`` and the loss of each step.

    ``"map"``: the mode of the log variances (S = 1); ``"svi"``: draws of a mean-field log-normal posterior; ``"nuts"``: draws
    of the No-U-Turn sampler after ``steps`` steps of warm-up, from which ``draws`` are kept, evenly spaced.
    """
    with isolated(random_state, "variances"), torch.enable_grad(), pyro.get_param_store().scope():
        if inference == "nuts":
            return _nuts(model, steps, draws), []
        return _gradient(model, inference, steps, draws)


def _gradient(model: VarianceModel, inference: str, steps: int, draws: int) -> tuple[Array, list[float]]:
    shape = (len(model.y), len(model.kernels) + 1)
    loc = model.noise.new_full(shape, np.log(2 * PRIOR_MEDIAN)).requires_grad_()
    log_scale = model.noise.new_full(shape, np.log(0.1)).requires_grad_()
    learned = [loc] if inference == "map" else [loc, log_scale]
    optimizer = torch.optim.Adam(learned, lr=0.2, betas=(0.8, 0.95))
    entries = max(1, sum(y.numel() for y in model.y))
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:  # cools down in the second half
            group["lr"] = 0.2 * min(1.0, 2 * (1 - step / steps) + 0.05)
        optimizer.zero_grad()
        noise = 0.0 if inference == "map" else torch.randn(shape).to(loc) * log_scale.exp()
        log = loc + noise
        trace = poutine.trace(poutine.condition(model, data={"variance": log.exp()})).get_trace()
        # + Σ log: the density of the logarithms, whose mode and posterior are meant.
        loss = -(trace.log_prob_sum() + log.sum())
        if inference == "svi":
            loss = loss - log_scale.sum()
        (loss / entries).backward()
        torch.nn.utils.clip_grad_norm_(learned, 10.0)
        optimizer.step()
        losses.append(float(loss.detach()) / entries)
    with torch.no_grad():
        if inference == "map":
            return loc.exp().numpy(force=True)[None], losses
        sampled = loc + torch.randn(draws, *shape).to(loc) * log_scale.exp()
        return sampled.exp().numpy(force=True), losses


def _nuts(model: VarianceModel, steps: int, draws: int) -> Array:
    from pyro.infer import MCMC, NUTS

    n_samples = max(50, draws)
    kernel: Any = NUTS(model, jit_compile=False)
    chain = MCMC(kernel, num_samples=n_samples, warmup_steps=steps, disable_progbar=True)
    chain.run()
    samples = chain.get_samples()["variance"]
    return samples[np.linspace(0, n_samples - 1, draws).round().astype(int)].numpy(force=True)

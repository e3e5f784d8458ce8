"""One fit, one answer: the cells of the recovery benchmark, and how they are fitted and scored."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

import pyro_cge as cge
from pyro_cge.errors import DataError
from pyro_cge.metrics import linear_r2, match_latents, target_recovery
from pyro_cge.models.priors import LatentPrior
from pyro_cge.scm.shifts import NoiseShift

ALWAYS: dict[str, Any] = {"validation": None, "patience": None, "progress": False}
SMALL = 0.5  # shifts (or log scales) below this do not count: they are within noise of nothing

Factory = Callable[[cge.EnvironmentData, int], LatentPrior]
PRIORS: dict[str, Factory] = {
    "dense": partial(cge.DensePrior, moves="loc"),
    "softmax": partial(cge.SoftmaxPrior, temperature=0.5, moves="loc"),
    "softmax, scale too": partial(cge.SoftmaxPrior, temperature=0.5),
    "laplace": cge.LaplacePrior,
    "horseshoe": cge.HorseshoePrior,
    "spike and slab": cge.SpikeSlabPrior,
    "categorical": cge.CategoricalPrior,
}


@dataclass(frozen=True)
class Case:
    """A ground truth and what is measured of it.

    ``latents`` is how many the model has: a few more than there are causes, because a nonlinear encoder with none to
    spare settles on a wrong one (|z| in the place of z). Those not needed collapse, the sooner the heavier the KL term
    is at first (``kl_start``); so does a weak cause among many if it is too heavy.
    """

    causes: int
    environments: int
    profiles: int
    genes: int
    decoder: str
    latents: int
    variance: float = 5.0
    design: str = "one target"  # "two targets", "scale only"
    epochs: int = 200
    kl_start: float = 1.0

    def data(self, seed: int) -> cge.EnvironmentData:
        truth = cge.simulate.growing_network(
            n_latents=self.causes,
            n_genes=self.genes,
            decoder=self.decoder,
            environments=self._design(seed),
            seed=seed,
        )
        return truth.sample(self.profiles, seed=seed)

    def _design(self, seed: int) -> cge.simulate.Environments:
        if self.design == "two targets":
            return cge.simulate.multi_target(
                self.causes, self.environments, n_targets=(2, 2), loc=0.0, sd=self.variance**0.5, seed=seed
            )
        shifts = cge.simulate.random_shifts(
            self.causes, self.environments, variance=self.variance, cover=True, seed=seed
        )
        if self.design == "scale only":  # log sd ~ N(0, variance / 5)
            log_scale = shifts.shift.loc / 5**0.5
            return replace(shifts, shift=NoiseShift(torch.zeros_like(log_scale), log_scale))
        return shifts


SETTINGS = {
    "d5_linear": Case(5, 25, 200, 100, "linear", 8, epochs=150),
    "d5_mlp": Case(5, 25, 200, 100, "neural", 8, epochs=200, kl_start=10.0),
    "d15_linear": Case(15, 100, 100, 300, "linear", 20, epochs=60),
    "d15_mlp": Case(15, 100, 100, 300, "neural", 20, epochs=100),
}


def train(
    case: Case, data: cge.EnvironmentData, prior: Factory, seed: int, hidden: Sequence[int] = (256, 256)
) -> cge.Fit:
    """The recipe: one wide hidden layer in the decoder, the KL term heavy at first, one learning-rate cycle."""
    with cge.isolated(seed):
        wide = (512,)
        decoder = (
            cge.LinearDecoder(case.latents, data.g)
            if case.decoder == "linear"
            else cge.MLPDecoder(case.latents, data.g, hidden=wide)
        )
        model = cge.CellModel(prior(data, case.latents), None, decoder)
        guide = cge.AmortizedGuide(model, None, hidden=hidden)
    return cge.fit(
        model,
        guide,
        data,
        epochs=case.epochs,
        batch_size=batch_size(data),
        lr=4e-3,
        schedule="one_cycle",
        kl_warmup=max(1, case.epochs // 2),
        kl_start=case.kl_start,
        seed=seed,
        **ALWAYS,
    )


def refit_options(case: Case, seed: int) -> dict[str, Any]:
    """Half as many epochs, with half the peak of the learning rate."""
    return {
        **ALWAYS,
        "epochs": max(1, case.epochs // 2),
        "lr": 2e-3,
        "schedule": "one_cycle",
        "kl_warmup": 0,
        "seed": seed + 1,
    }


def batch_size(data: cge.EnvironmentData) -> int:
    return min(512, max(64, data.n // 10))


def rotated(fit: cge.Fit, data: cge.EnvironmentData, case: Case, seed: int) -> dict[str, cge.Fit]:
    """After one rotation, and after the whole step; the fit as it was where there is nothing to rotate to."""
    try:
        options = {**refit_options(case, seed), "batch_size": batch_size(data)}
        return {"rotated once": cge.rotate(fit, data), "rotated": cge.rotate_and_refit(fit, data, **options)}
    except DataError:
        return {"rotated once": fit, "rotated": fit}


def score(case: Case, fit: cge.Fit, data: cge.EnvironmentData) -> dict[str, float]:
    """MCC to the true noise, its ceiling, and how often the latent an environment moves most is a true target."""
    assert data.truth is not None
    posterior = fit.posterior(data)
    z, shift, truth = posterior.latents().to_numpy(), posterior.shift(), data.truth
    matching = match_latents(z, truth.z)
    size = truth.shift.log_scale if case.design == "scale only" else truth.shift.loc
    recovery = target_recovery(shift.strength(), truth.targets, matching, threshold=0.5, size=size, min_size=SMALL)
    # Stated beside the MCC: no rotation could do better.
    return {
        "z_mcc": matching.mcc,
        "ceiling": float(np.sqrt(max(linear_r2(z, truth.z), 0.0))),
        "target_accuracy": recovery.top1,
        "target_f1": recovery.f1,
        "environments": int((size.abs().amax(1) > SMALL).sum()),
    }


def dense_and_rotated(case: Case, seed: int, moves: str = "loc") -> dict[str, dict[str, float]]:
    """Scores of the dense fit as it is, after the rotation, and after the whole step."""
    data, started = case.data(seed), time.perf_counter()
    fits = {"dense": train(case, data, partial(cge.DensePrior, moves=moves), seed)}
    trained = time.perf_counter()
    if moves != "scale":  # scales alone have no means to rotate by, and need no rotation
        fits |= rotated(fits["dense"], data, case, seed)
    seconds = {"dense": trained - started, "rotated": time.perf_counter() - started}
    return {
        name: {**score(case, fit, data), **_about(fit), "seconds": seconds.get(name, seconds["dense"])}
        for name, fit in fits.items()
    }


def _about(fit: cge.Fit) -> dict[str, float]:
    rotation = fit.settings.get("rotation", {})
    return {"latents": fit.model.d, **{k: v for k, v in rotation.items() if k in ("n_active", "n_agree")}}


def in_loop(case: Case, seed: int, prior: str) -> dict[str, dict[str, float]]:
    """Scores of a prior trained from the start, as long as the dense fit and its refit together."""
    data, started = case.data(seed), time.perf_counter()
    longer = replace(case, epochs=case.epochs + case.epochs // 2)
    fit = train(longer, data, PRIORS[prior], seed)
    return {"in loop": {**score(case, fit, data), "seconds": time.perf_counter() - started}}


def after_rotation(case: Case, seed: int, priors: Sequence[str]) -> dict[str, dict[str, float]]:
    """Scores of every prior that goes on from one rotated dense fit."""
    data = case.data(seed)
    start = rotated(train(case, data, PRIORS["dense"], seed), data, case, seed)["rotated"]
    options = {**refit_options(case, seed), "batch_size": batch_size(data)}
    rows = {}
    for name in priors:
        started = time.perf_counter()
        with cge.isolated(seed):
            prior = PRIORS[name](data, start.model.d)
        moved = cge.transfer(start, prior, data)
        fit = cge.fit(moved.model, moved.guide, data, **options)
        rows[name] = {**score(case, fit, data), "seconds": time.perf_counter() - started}
    return rows

"""The simulators, our recipe and the presets: who is trained on what, and for how long."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from scoring import Array, environment_means, otsu

import pyro_cge as cge
from pyro_cge.presets import PRESETS
from pyro_cge.scm.shifts import NoiseShift
from pyro_cge.simulate import GroundTruth

BATCH = 512
ALWAYS: dict[str, Any] = {"schedule": "one_cycle", "validation": None, "patience": None, "progress": False}
STEPS = 2000  # of training for every preset
DOUBTFUL = 0.6  # of the threshold: from here on a shift may yet turn out to be a target


@dataclass(frozen=True)
class Case:
    """One simulator: its truth by seed, how much of it is seen, and the sizes of our networks.

    ``latents`` is what our dense fit starts with; the presets get ``d``, as the peers' models do.
    """

    truth: Callable[[int], GroundTruth]
    profiles: int
    seen: int  # environments, the first ones
    counts: bool
    latents: int
    hidden: Sequence[int]
    epochs: int
    d: int = 15
    oracle: int = 3000  # steps of the regression that marks the ceiling

    def data(self, truth: GroundTruth, seed: int) -> cge.EnvironmentData:
        """Profiles of all environments: those seen in training and those held out."""
        return truth.sample(self.profiles, seed=seed)

    def split(self, data: cge.EnvironmentData) -> tuple[cge.EnvironmentData, cge.EnvironmentData]:
        seen = data.env < self.seen
        return data.rows(seen.nonzero().flatten()), data.rows((~seen).nonzero().flatten())


CASES = {
    "sparse_shift": Case(lambda s: cge.simulate.sparse_shift(seed=s), 250, 80, True, 20, (128, 128), 40),
    "sparse_shift_genes": Case(
        lambda s: cge.simulate.sparse_shift(seed=s, over="genes"), 250, 80, True, 20, (128, 128), 40
    ),
    "additive": Case(lambda s: cge.simulate.additive_sparse(seed=s), 500, 100, False, 20, (512,), 20),
}


def ours(case: Case, data: cge.EnvironmentData, seed: int) -> dict[str, cge.Fit]:
    """Dense fit; rotated, superfluous latents left out, trained on; then twice again with only targets free to move.

    The last steps take what the first ones found for granted, as a spike-and-slab prior would in the end: a latent that
    an environment does not move has one law in all such environments, which straightens what was bent. First whatever may
    be a target stays free, then what is still above the threshold.
    """
    with cge.isolated(seed):
        likelihood = cge.PoissonLikelihood(data) if case.counts else None
        decoder = cge.MLPDecoder(case.latents, data.g, hidden=case.hidden, likelihood=likelihood)
        model = cge.CellModel(cge.DensePrior(data, case.latents, moves="loc"), None, decoder)
        guide = cge.AmortizedGuide(model, None, hidden=(256, 256))
    first = {"epochs": case.epochs, "lr": 1e-2, "kl_warmup": case.epochs // 2, "kl_start": 1.0}
    later = {"epochs": max(1, case.epochs // 2), "lr": 5e-3, "kl_warmup": 0, "batch_size": BATCH, **ALWAYS}
    settle = {**later, "epochs": case.epochs, "lr": 1e-2}
    dense = cge.fit(model, guide, data, seed=seed, batch_size=BATCH, **first, **ALWAYS)
    rotated = cge.rotate_and_refit(dense, data, seed=seed + 1, **later)
    loose = settled(rotated, data, DOUBTFUL, seed=seed + 2, **settle)
    return {"ours, dense": dense, "ours, rotated": rotated, "ours": settled(loose, data, seed=seed + 3, **later)}


def settled(fit: cge.Fit, data: cge.EnvironmentData, share: float = 1.0, **options: Any) -> cge.Fit:
    """The fit trained on with only those shifts free that lie above this share of the threshold."""
    shift = torch.as_tensor(environment_means(latents(fit, data), data))
    targets = shift.abs() >= share * threshold(fit, data)
    with cge.isolated(options["seed"]):
        prior = cge.DensePrior(data, fit.model.d, moves="loc", targets=targets)
    start = cge.transfer(fit, prior, data)
    return cge.fit(start.model, start.guide, data, **options)


def adapted(fit: cge.Fit, held: cge.EnvironmentData, seed: int, epochs: int = 20) -> cge.Fit:
    """Environments that were not seen, with the decoder as it is: their means are free, the encoder may follow."""
    with cge.isolated(seed):
        prior = cge.DensePrior(held, fit.model.d, moves="loc")
    start = cge.transfer(fit, prior, held)
    start.model.decoder.requires_grad_(False)
    options = {"epochs": epochs, "lr": 2e-3, "kl_warmup": 0, "batch_size": BATCH, "standardize": False, **ALWAYS}
    scaled = fit.scaler.transform(held)
    moved = cge.fit(start.model, start.guide, scaled, seed=seed, **options)
    return replace(moved, scaler=fit.scaler)


def latents(fit: cge.Fit, data: cge.EnvironmentData) -> Array:
    return fit.posterior(data).latents().to_numpy().astype(float)


def threshold(fit: cge.Fit, data: cge.EnvironmentData) -> float:
    shift = environment_means(latents(fit, data), data)
    here = (data.env_counts > 0).numpy()
    here[list(data.control)] = False
    return otsu(shift[here])


def preset(
    name: str, data: cge.EnvironmentData, d: int, counts: bool, seed: int, steps: int = STEPS
) -> tuple[cge.Fit, cge.EnvironmentData]:
    """Any model of the suite as it is, sparsity in the loop, the same number of steps for all; and the data it reads.

    Counts have a Poisson likelihood; only the discrepancy-VAE, whose objective differentiates through draws of expression,
    reads ``log(1 + x)`` with a Gaussian one.
    """
    if counts and name == "discrepancy":
        data, counts = replace(data, x=data.x.log1p()), False
    options = {"likelihood": "poisson" if counts else "gaussian", "hidden": (128, 128)}
    objective: Any = None
    with cge.isolated(seed):
        if name == "adversarial":
            objective = cge.AdversarialPrior(data, d)
        elif name == "discrepancy":
            objective = cge.Mmd()
        accepted = inspect.signature(PRESETS[name]).parameters
        model, guide = PRESETS[name](data, d, **{k: v for k, v in options.items() if k in accepted})
    epochs = max(1, math.ceil(steps * BATCH / data.n))
    fit = partial(cge.fit, model, guide, data, batch_size=BATCH, lr=4e-3, kl_warmup=epochs // 2, kl_start=1.0)
    return fit(epochs=epochs, objective=objective, seed=seed, **ALWAYS), data


def own_targets(fit: cge.Fit, data: cge.EnvironmentData) -> Array | None:
    """The model's own probability of a target, where its prior moves latents."""
    posterior = fit.posterior(data)
    return posterior.targets().to_numpy() if posterior.moves_latents else None


def shift_of(fit: cge.Fit, data: cge.EnvironmentData) -> NoiseShift:
    """Noise law of each environment: the prior's where it has one, what the profiles show where it does not."""
    posterior = fit.posterior(data)
    return posterior.shift() if posterior.moves_latents else posterior.aggregate()


@torch.no_grad()
def combined(
    fit: cge.Fit, data: cge.EnvironmentData, parts: Sequence[str], n: int, seed: int, law: NoiseShift | None = None
) -> torch.Tensor:
    """Expected expression of ``n`` cells of each combination ``"A+B"`` of environments of ``data``: shifts add up.

    ``[len(parts) · n, g]``: noise is drawn from the law with the sum of the parts' shifts, then causes and the mean of
    expression. No cell of a combination is seen.
    """
    law = shift_of(fit, data) if law is None else law
    rows = [data.environments(text.split("+")) for text in parts]
    loc, log_scale = (torch.stack([values[r].sum(0) for r in rows]) for values in (law.loc, law.log_scale))
    with cge.isolated(seed, "combined"):
        z = NoiseShift(loc, log_scale).law(torch.arange(len(rows)).repeat_interleave(n)).sample()
    return fit.scaler.inverse(fit.model.decoder.mean(fit.model.scm(z)))

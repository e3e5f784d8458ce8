"""Between two fits: going on with another prior, and choosing the number of latents."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..data.align import align
from ..data.profiles import Profiles
from ..errors import ConfigError
from ..guides.amortized import AmortizedGuide
from ..models.cell import CellModel
from ..models.priors import LatentPrior
from .fit import Fit, fit
from .prune import superfluous, without_latents
from .rotation import rotate


def transfer(fitted: Fit, prior: LatentPrior, data: Profiles) -> Fit:
    """The same fit under another prior, which starts at the noise laws found so far.

    Typically after :func:`~pyro_cge.train.rotation.rotate`: the sparse prior starts with the right latents already
    apart. Encoder and decoder keep their weights; train on with
    :func:`~pyro_cge.train.fit.fit`. A penalty that is too strong makes a good rotation worse: compare held-out bounds.

    Parameters
    ----------
    fitted : Fit
        Left as it is.
    prior : LatentPrior
        Untrained, of as many latents, made for the same environments.
    data : EnvironmentData or StreamedData
        The data it was made for.

    Raises
    ------
    ConfigError
        If the prior has another number of latents.
    """
    if prior.d != fitted.model.d:
        raise ConfigError(f"the new prior has {prior.d} latents, the fit {fitted.model.d}")
    data = align(data, fitted.schema)
    model, guide = copy.deepcopy((fitted.model, fitted.guide))  # together: the guide refers to the model
    device = next(model.parameters()).device
    everything = data.to(device).cells(torch.arange(data.n_envs, device=device))
    with torch.no_grad():
        law = guide.shift(everything)
    guide.swap_prior(copy.deepcopy(prior))
    model.to(device), guide.to(device)
    guide.start_at(law, everything)
    return replace(fitted, model=model, guide=guide, settings={**fitted.settings, "prior": type(prior).__name__})


def rotate_and_refit(
    dense: Fit, data: Profiles, *, prior: Callable[[int], LatentPrior] | None = None, **options: Any
) -> Fit:
    """The whole step between a dense fit and a finished one: rotate, leave out superfluous latents, train on, rotate.

    Training on under fewer latents brings encoder and decoder into the new coordinates; the second rotation takes away
    what was left of the first one's error.

    Parameters
    ----------
    dense : Fit
        With a :class:`~pyro_cge.models.priors.DensePrior` and a few more latents than needed. Left as it is.
    data : EnvironmentData or StreamedData
        The profiles it was trained on.
    prior : callable, optional
        Number of latents kept → the sparse prior to end with (``lambda d: SpikeSlabPrior(data, d)``), trained on from there.
    **options
        For :func:`~pyro_cge.train.fit.fit`; typically half the epochs and half the learning rate of the dense fit.
    """
    data = align(data, dense.schema)
    turned = rotate(dense, data)
    smaller = without_latents(turned, superfluous(turned, data))
    refitted = rotate(fit(smaller.model, smaller.guide, data, **options), data)
    if prior is None:
        return refitted
    sparse = transfer(refitted, prior(refitted.model.d), data)
    return fit(sparse.model, sparse.guide, data, **options)


def choose_latents(
    build: Callable[[int], tuple[CellModel, AmortizedGuide]],
    data: Profiles,
    candidates: Sequence[int],
    *,
    validation: float | Profiles = 0.1,
    n_samples: int = 50,
    seed: int = 0,
    **options: Any,
) -> tuple[pd.DataFrame, Fit]:
    """Fit models of several sizes and take the smallest that explains held-out profiles as well as the best.

    Every size is judged by its importance-weighted bound on ``log P(x | e)`` of the same held-out profiles. The
    one-standard-error rule: the smallest size whose bound is within one standard error (of the paired differences) of
    the best one's.

    Parameters
    ----------
    build : callable
        Number of latents → untrained model and guide, e.g.
        ``lambda d: environment_vae(data, d)``.
    candidates : sequence of int
    validation : float or data
        As for :func:`~pyro_cge.train.fit.fit`.
    n_samples : int
        Of the bound.
    **options
        For :func:`~pyro_cge.train.fit.fit`.

    Returns
    -------
    table : DataFrame
        One row a candidate: ``bound`` (nats a profile), ``gap`` to the best and its standard error ``gap_se``,
        ``chosen``.
    best : Fit
        Of the chosen size.
    """
    if not candidates:
        raise ConfigError("choose_latents needs candidate numbers of latents, got none")
    if validation is None:
        raise ConfigError("choose_latents judges by held-out profiles: validation must be a fraction or data")
    sizes = sorted(set(candidates))
    fits, bounds = [], []
    for d in sizes:
        model, guide = build(d)
        fitted = fit(model, guide, data, validation=validation, seed=seed, **options)
        held_out = data.rows(fitted.valid_rows) if isinstance(validation, int | float) else validation
        fits.append(fitted)
        bounds.append(fitted.posterior(held_out).log_evidence(n_samples, seed=seed).double().numpy())
    best = int(np.argmax([bound.mean() for bound in bounds]))
    gaps = [bounds[best] - bound for bound in bounds]
    errors = [float(gap.std() / len(gap) ** 0.5) for gap in gaps]
    chosen = next(i for i, gap in enumerate(gaps) if gap.mean() <= errors[i])
    table = pd.DataFrame(
        {
            "bound": [bound.mean() for bound in bounds],
            "gap": [gap.mean() for gap in gaps],
            "gap_se": errors,
            "chosen": [i == chosen for i in range(len(sizes))],
        },
        index=pd.Index(sizes, name="latents"),
    )
    return table, fits[chosen]

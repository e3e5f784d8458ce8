"""What the posterior says an environment does to each gene, before anyone looks at what it is known to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyro
import torch

from ..errors import DataError
from ..posterior import Posterior
from ..seeds import isolated
from .programmes import ENTRIES, Units, unit_of

if TYPE_CHECKING:
    from ..scm.shifts import NoiseShift


@torch.no_grad()
def environment_effects(
    posterior: Posterior,
    shift: NoiseShift | None = None,
    *,
    units: Units = "data",
    n_pairs: int = 32,
    seed: int | None = 0,
) -> pd.DataFrame:
    """Effect of each environment on each gene, environment × gene: ``E[x | e] − E[x | reference]``; 0 in controls.

    Averaged over antithetic pairs ``±ε`` shared by all environments and the reference N(0, I), so it is exact for
    linear models and has no sampling noise where an environment does nothing.

    Parameters
    ----------
    posterior : Posterior
    shift : NoiseShift, optional
        Law of the noise in each environment; default the model's prior. ``posterior.aggregate()`` reads models whose
        prior knows no environments (and what the controls' profiles show of the reference is then not quite 0).
    units : {"data", "sd"}
        See :func:`~pyro_cge.interpret.programmes.gene_programmes`.
    """
    shift = (posterior.shift() if shift is None else shift).to(posterior.device)
    model, device = posterior.model, posterior.device
    batch = posterior.every_environment()
    total = torch.zeros(posterior.data.n_envs, model.g, dtype=torch.float64, device=device)
    with isolated(seed), pyro.validation_enabled(False):
        half = torch.randn(n_pairs, 1, model.d)
        noise = torch.stack([half, -half], 1).flatten(0, 1).to(device)  # ε_1, −ε_1, ε_2, −ε_2, …
        for eps in noise.split(max(1, ENTRIES // (posterior.data.n_envs * model.g))):
            treated, reference = shift.loc + shift.scale * eps, eps.expand(-1, *shift.loc.shape)
            own = model.scm.draw_own((len(eps), 1))
            total += (model.mean(treated, batch, own) - model.mean(reference, batch, own)).double().sum(0)
    values = total.cpu() / (2 * n_pairs) * unit_of(posterior, units)
    return pd.DataFrame(
        values.numpy(), index=pd.Index(posterior.raw.env_names, name="environment"), columns=posterior.raw.gene_names
    )


def strongest_latent_effects(shifts: pd.DataFrame, programmes: pd.DataFrame) -> pd.DataFrame:
    """The programme of the one latent that moved most, times its shift: environment (or profile) × gene.

    The reading under "one environment, one target": ``j = argmax |shift[e, j]|``, effect ``shift[e, j] · B[:, j]``.
    The latent's arbitrary sign cancels. Latents must be on one scale, and the basis a sparse one: rotate first.

    Parameters
    ----------
    shifts : DataFrame, environment (or profile) × latent
        Shifts of the noise mean, or ``posterior.latents()`` of single profiles.
    programmes : DataFrame, gene × latent
        With respect to the noise.

    Raises
    ------
    DataError
        If the latents of the two disagree.
    """
    if list(shifts.columns) != list(programmes.columns):
        raise DataError(
            f"shifts have latents {list(shifts.columns[:3])}…, the programmes {list(programmes.columns[:3])}…; take "
            "both from one posterior"
        )
    values = shifts.to_numpy()
    latent = np.abs(values).argmax(1)
    effects = values[np.arange(len(values)), latent, None] * programmes.to_numpy().T[latent]
    return pd.DataFrame(effects, index=shifts.index, columns=programmes.index)


def relative_effects(effects: pd.DataFrame) -> pd.DataFrame:
    """Effects in standard deviations of the same gene over the *other* environments (leave one out).

    Some genes answer to everything. What singles an environment out is a gene that hardly ever moves elsewhere; its
    own environment is left out of the yardstick, or a strong effect would be measured against itself.

    Raises
    ------
    DataError
        For fewer than three environments.
    """
    x = effects.to_numpy(dtype=np.float64)
    n = len(x)
    if n < 3:
        raise DataError(f"relative effects compare with at least two other environments, got {n} in all")
    x = x - x.mean(0)  # changes no result, and keeps the sums of squares below from cancelling
    rest = -x / (n - 1)
    variance = ((x**2).sum(0) - x**2) / (n - 1) - rest**2
    scale = np.sqrt(np.maximum(variance, 1e-24 + 1e-12 * (x**2).mean(0)))
    return pd.DataFrame((x - rest) / scale, index=effects.index, columns=effects.columns)

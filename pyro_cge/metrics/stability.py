"""Do several fits of the same data say the same?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..errors import ConfigError
from .disentanglement import Matching, match_latents

if TYPE_CHECKING:
    from ..posterior import Posterior


@dataclass(frozen=True)
class Stability:
    """Agreement of fits, in the latents of the fit that agrees best with the others.

    Attributes
    ----------
    reference : int
        Number of that fit.
    matchings : list of Matching
        Each fit's latents matched to the reference's.
    latents : DataFrame
        One row a latent of the reference: ``correlation`` (mean of |correlation| with the latent matched to it in each
        other fit), ``lowest`` (its smallest), ``target_agreement`` (mean over pairs of fits of the Jaccard index of the
        environments in which the latent is a target; NaN where no fit names any), ``environments`` (mean number of
        those).
    targets : DataFrame
        Environment × latent: share of fits that name the latent a target.
    """

    reference: int
    matchings: list[Matching]
    latents: pd.DataFrame
    targets: pd.DataFrame

    @property
    def mcc(self) -> float:
        """Mean |correlation| of matched latents over the other fits."""
        return float(self.latents["correlation"].mean())


def stability(posteriors: Sequence[Posterior], threshold: float = 0.5) -> Stability:
    """Match the latents of several fits (seeds, say) on the same profiles, and compare what they call targets.

    Latents are matched by their posterior means (Hungarian, up to sign). The reference is the fit with the highest mean
    correlation with all others. Agreement is necessary for a finding, not sufficient: fits can share a bias.

    Parameters
    ----------
    posteriors : sequence of Posterior
        Of the same data, two or more.
    threshold : float
        Probability at or above which a latent is named a target.
    """
    if len(posteriors) < 2:
        raise ConfigError(f"stability compares two fits or more, got {len(posteriors)}")
    z = [p.latents() for p in posteriors]
    if any(not table.index.equals(z[0].index) for table in z):
        raise ConfigError("the posteriors are of different profiles: give each fit's posterior of the same data")
    probabilities = [p.targets() for p in posteriors]
    if any(not table.index.equals(probabilities[0].index) for table in probabilities):
        raise ConfigError("the posteriors have different environments: give each fit's posterior of the same data")
    values = [table.to_numpy() for table in z]
    mutual = [np.mean([match_latents(b, a).mcc for j, b in enumerate(values) if j != i]) for i, a in enumerate(values)]
    reference = int(np.argmax(mutual))
    matchings = [match_latents(a, values[reference]) for a in values]
    named = np.stack(
        [m.apply(p.to_numpy(), signed=False) >= threshold for m, p in zip(matchings, probabilities, strict=True)]
    )
    others = np.stack([m.correlation for i, m in enumerate(matchings) if i != reference])
    columns = probabilities[reference].columns
    latents = pd.DataFrame(
        {
            "correlation": others.mean(0),
            "lowest": others.min(0),
            "target_agreement": _agreement(named),
            "environments": named.sum(1).mean(0),
        },
        index=pd.Index(columns, name="latent"),
    )
    targets = pd.DataFrame(named.mean(0), index=probabilities[reference].index, columns=columns)
    return Stability(reference, matchings, latents, targets)


def _agreement(named: np.ndarray) -> np.ndarray:
    """Mean over pairs of fits of the Jaccard index of environments, from ``named [fits, E, d]``: ``[d]``."""
    pairs = list(combinations(named, 2))
    both = np.stack([(a & b).sum(0) for a, b in pairs]).astype(float)
    either = np.stack([(a | b).sum(0) for a, b in pairs]).astype(float)
    index = np.divide(both, either, out=np.full_like(both, np.nan), where=either > 0)
    told = np.isfinite(index)
    return np.divide(np.nansum(index, 0), told.sum(0), out=np.full(index.shape[1], np.nan), where=told.any(0))

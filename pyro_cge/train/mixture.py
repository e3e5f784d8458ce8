"""What several fits of the same data say together: latents brought into line, answers mixed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from ..errors import ConfigError
from ..metrics.disentanglement import match_latents
from ..metrics.stability import Stability, stability
from ..posterior import Posterior
from ..scm.shifts import NoiseShift


class EnsemblePosterior:
    """An equal mixture of the posteriors of several fits, in the latents of the fit that agrees best with the others.

    Latents are identified up to order and sign only, so each member's are matched to the reference's by the correlation
    of their posterior means (:func:`~pyro_cge.metrics.stability.stability`). What no latent enters (predictions,
    reconstructions) is the plain mean.

    Parameters
    ----------
    posteriors : sequence of Posterior
        Of the same data.

    Raises
    ------
    ConfigError
        If the fits have different numbers of latents.
    """

    def __init__(self, posteriors: Sequence[Posterior]) -> None:
        self.posteriors = list(posteriors)
        if len(sizes := {p.model.d for p in self.posteriors}) != 1:
            raise ConfigError(
                f"the members have different numbers of latents {sorted(sizes)}, which cannot be brought into line: mix "
                "members of one number, Ensemble.select(d=…)"
            )

    @cached_property
    def stability(self) -> Stability:
        """How far the members agree; also who is the reference, and whose latent is whose."""
        if len(self.posteriors) > 1:
            return stability(self.posteriors)
        [only] = self.posteriors
        z, targets = only.latents(), only.targets()
        table = pd.DataFrame({"correlation": 1.0}, index=pd.Index(targets.columns, name="latent"))
        return Stability(0, [match_latents(z.to_numpy(), z.to_numpy())], table, targets)

    @property
    def reference(self) -> Posterior:
        """The member whose latents name those of the mixture."""
        return self.posteriors[self.stability.reference]

    # In the reference's latents

    def latents(self, kind: str = "z") -> pd.DataFrame:
        """Posterior mean of the noise or the causes, profile × latent: the mean over members."""
        own = self.reference.latents(kind)
        each = self._each([p.latents(kind).to_numpy() for p in self.posteriors], signed=True)
        return pd.DataFrame(each.mean(0), own.index, own.columns)

    def targets(self) -> pd.DataFrame:
        """Probability that a latent is intervened on, environment × latent: the mean over members."""
        own = self.reference.targets()
        each = self._each([p.targets().to_numpy() for p in self.posteriors])
        return pd.DataFrame(each.mean(0), own.index, own.columns)

    def shift_draws(self, n_samples: int = 100, seed: int | None = 0) -> NoiseShift:
        """Draws of the environments' noise laws ``NoiseShift [members · S, E, d]``, ``S`` of each member."""
        draws = [
            matching.apply_shift(p.shift_draws(n_samples, seed))
            for p, matching in zip(self.posteriors, self.stability.matchings, strict=True)
        ]
        return NoiseShift(torch.cat([s.loc for s in draws]), torch.cat([s.log_scale for s in draws]))

    def effects(self, level: float = 0.9, seed: int | None = 0) -> pd.DataFrame:
        """What each environment does to each latent, with an interval that covers members and seeds: one row a pair.

        With ``m_k`` member ``k``'s estimate (:meth:`~pyro_cge.posterior.Posterior.effects`) and ``s_k`` its standard
        error, read from its own interval::

            shift = mean(m_k)      error² = mean(s_k²) + var(m_k)      interval = shift ± z · error

        the law of total variance for the mixture: what a member does not know, plus what members do not agree on.

        Returns
        -------
        DataFrame
            ``environment``, ``latent``, ``shift``, ``low``, ``high``, ``between`` (sd of ``m_k`` over the members),
            ``sd_ratio`` and ``probability`` (means).
        """
        tables = [p.effects(level, seed) for p in self.posteriors]

        def values(name: str, signed: bool = False) -> np.ndarray:
            return self._each([t[name].to_numpy().reshape(-1, self.reference.model.d) for t in tables], signed)

        shift, z = values("shift", signed=True), stats.norm.ppf(0.5 + level / 2)
        within = (((values("high") - values("low")) / 2 / z) ** 2).mean(0)
        between = shift.var(0, ddof=1) if len(shift) > 1 else np.zeros_like(within)
        middle, half = shift.mean(0), z * np.sqrt(within + between)
        columns = {"shift": middle, "low": middle - half, "high": middle + half, "between": np.sqrt(between)}
        columns |= {name: values(name).mean(0) for name in ("sd_ratio", "probability")}
        keys = tables[self.stability.reference][["environment", "latent"]]
        return keys.assign(**{name: column.ravel() for name, column in columns.items()})

    # In genes

    def reconstruct(self) -> Tensor:
        """Expected expression ``[n, g]`` of the observed profiles: the mean over members."""
        return torch.stack([p.reconstruct() for p in self.posteriors]).mean(0)

    def predict(self, environments: Any = None, n_samples: int = 100, seed: int | None = 0) -> Tensor:
        """Expected expression ``[E, g]`` of environments, from the priors alone: the mean over members."""
        return torch.stack([p.predict(environments, n_samples, seed) for p in self.posteriors]).mean(0)

    # Pieces

    def _each(self, values: Sequence[np.ndarray], signed: bool = False) -> np.ndarray:
        """Values ``[..., d]`` of every member in the reference's latents ``[members, ..., d]``."""
        return np.stack([m.apply(v, signed) for m, v in zip(self.stability.matchings, values, strict=True)])

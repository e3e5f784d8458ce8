"""What several fits of the same data say together: latents brought into line, answers mixed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from ...errors import ConfigError
from ...interventions import discoveries
from ...metrics.disentanglement import match_latents
from ...metrics.stability import Stability, stability
from ...posterior import Posterior
from ...scm.shifts import NoiseShift

if TYPE_CHECKING:
    import arviz


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

    def __repr__(self) -> str:
        first = self.posteriors[0]
        return f"EnsemblePosterior({len(self.posteriors)} members, {first.model.d} latents; {first.raw})"

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

    def shift(self) -> NoiseShift:
        """Law of the noise in each environment ``NoiseShift [E, d]``: mean over members of ``loc`` and ``log_scale``.

        As for one posterior, the mean of an uncertain law. That members disagree about it is not spread of profiles'
        noise, and is in :meth:`shift_draws` and :meth:`effects`.
        """
        laws = self._laws([p.shift() for p in self.posteriors])
        return NoiseShift(laws.loc.mean(0), laws.log_scale.mean(0))

    def aggregate(self) -> NoiseShift:
        """The noise each environment's profiles show ``NoiseShift [E, d]``: mean over members, as in :meth:`shift`."""
        laws = self._laws([p.aggregate() for p in self.posteriors])
        return NoiseShift(laws.loc.mean(0), laws.log_scale.mean(0))

    def similarity(self, kind: Literal["targets", "direction"] = "targets") -> pd.DataFrame:
        """Environment × environment, do they act on the same latents: the mean over members."""
        # Neither a Jaccard index nor a cosine asks how latents are numbered.
        tables = [p.similarity(kind) for p in self.posteriors]
        return cast(pd.DataFrame, sum(tables[1:], tables[0])) / len(tables)

    def shift_draws(self, n_samples: int = 100, seed: int | None = 0) -> NoiseShift:
        """Draws of the environments' noise laws ``NoiseShift [members · S, E, d]``, ``S`` of each member.

        Member ``k`` draws with seed ``seed + k``. The variance over all draws is that of the mixture: the mean of the
        members' variances plus the variance of their means.
        """
        seeds = [None if seed is None else seed + k for k in range(len(self.posteriors))]
        laws = self._laws([p.shift_draws(n_samples, own) for p, own in zip(self.posteriors, seeds, strict=True)])
        return NoiseShift(laws.loc.flatten(0, 1), laws.log_scale.flatten(0, 1))

    def effects(self, level: float = 0.9, seed: int | None = 0) -> pd.DataFrame:
        """What each treated environment does to each latent, with an interval that covers members: one row a pair.

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

    def discoveries(self, fdr: float = 0.05, level: float = 0.9) -> pd.DataFrame:
        """Interventions named with at most ``fdr`` expected false ones, most certain first.

        Rows of :meth:`effects` with a column ``fdr``, as :meth:`~pyro_cge.posterior.Posterior.discoveries`, by the mean
        of the members' probabilities: what only some members find needs a higher rate to be named.
        """
        return discoveries(self.effects(level), fdr)

    def to_arviz(
        self,
        n_samples: int = 100,
        seed: int | None = 0,
        *,
        log_likelihood: int = 0,
        posterior_predictive: bool = False,
        profiles: bool = True,
    ) -> arviz.InferenceData:
        """Every site as an ArviZ ``InferenceData``, each member a chain, in the reference's latents.

        Groups and dimensions as :meth:`~pyro_cge.posterior.Posterior.to_arviz`, ``n_samples`` draws a chain; those of
        :meth:`shift_draws` of the same seed. ArviZ's ``r_hat`` then compares the members: near 1 where they say the same,
        large where they differ by more than each is unsure of::

            arviz.summary(ensemble.posterior(data).to_arviz(), var_names="env_loc")

        Draws that are copies leave ``r_hat`` nothing to compare with: it is NaN (with a warning) or huge. Such are
        ``env_loc`` where the prior maps an environment to one law, as in the Environment VAE (there ``between`` of
        :meth:`effects` says how far members differ), and targets that no draw has.
        """
        from ...arviz_export import inference_data

        matchings = self.stability.matchings
        settings = (n_samples, seed, log_likelihood, posterior_predictive, profiles)
        return inference_data(self.posteriors, self.reference, matchings, *settings)

    # In genes

    def reconstruct(self) -> Tensor:
        """Expected expression ``[n, g]`` of the observed profiles: the mean over members."""
        return torch.stack([p.reconstruct() for p in self.posteriors]).mean(0)

    def counterfactual(self, environment: str) -> Tensor:
        """Expression ``[n, g]`` of the same profiles, had they been in ``environment``: the mean over members."""
        return torch.stack([p.counterfactual(environment) for p in self.posteriors]).mean(0)

    def predict(self, environments: Any = None, n_samples: int = 100, seed: int | None = 0) -> Tensor:
        """Expected expression ``[E, g]`` of environments, from the priors alone: the mean over members."""
        return torch.stack([p.predict(environments, n_samples, seed) for p in self.posteriors]).mean(0)

    # Pieces

    def _laws(self, laws: Sequence[NoiseShift]) -> NoiseShift:
        """Every member's laws ``[..., E, d]`` in the reference's latents ``[members, ..., E, d]``."""
        each = [m.apply_shift(law) for m, law in zip(self.stability.matchings, laws, strict=True)]
        return NoiseShift(torch.stack([law.loc for law in each]), torch.stack([law.log_scale for law in each]))

    def _each(self, values: Sequence[np.ndarray], signed: bool = False) -> np.ndarray:
        """Values ``[..., d]`` of every member in the reference's latents ``[members, ..., d]``."""
        return np.stack([m.apply(v, signed) for m, v in zip(self.stability.matchings, values, strict=True)])

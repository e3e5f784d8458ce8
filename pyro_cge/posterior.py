"""What a fitted model says: latent interventions, latents, reconstructions, predictions, counterfactuals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import pyro
import torch
from torch import Tensor

from .data.align import align, chosen_environments
from .data.environment import Batch, EnvironmentData
from .data.profiles import Profiles
from .data.standardize import Standardizer
from .data.streamed import StreamedData
from .errors import ConfigError, DataError
from .guides.amortized import AmortizedGuide
from .interventions import (
    credible_interval,
    discoveries,
    moments,
    sampling_interval,
    similarity,
    target_probability,
    tidy,
)
from .models.cell import CellModel
from .objectives.elbo import iwae_bound
from .objectives.marginal import marginal_log_likelihood
from .scm.shifts import NoiseShift
from .seeds import isolated

if TYPE_CHECKING:
    import arviz

BATCH = 1024
DECODED = 10_000_000  # entries of expression decoded at a time
DRAWS = 1000  # of the environments' laws, for intervals


class Posterior:
    """Posterior of a fitted model and guide for some data.

    Three different questions, three calls: :meth:`reconstruct` (profiles that were seen), :meth:`predict`
    (environments, no treated profile enters) and :meth:`counterfactual` (these profiles under another environment).
    Everything goes in and comes out in the data's own units.

    Parameters
    ----------
    model, guide
        Trained.
    data : EnvironmentData or StreamedData
        Raw units. Genes are brought into the training order by name; environments are matched by name.
    scaler : Standardizer
        The one the model was trained with.
    schema : EnvironmentData, optional
        Genes and environments of training; default: those of ``data``.

    Raises
    ------
    DataError
        If genes are missing, or an environment was not in training and has no features to describe it.
    """

    def __init__(
        self,
        model: CellModel,
        guide: AmortizedGuide,
        data: Profiles,
        scaler: Standardizer,
        *,
        schema: EnvironmentData | None = None,
    ) -> None:
        self.model, self.guide, self.scaler = model, guide, scaler
        self.schema = data.schema() if schema is None else schema
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.raw = align(data, self.schema)
        self.data = scaler.transform(self.raw).to(self.device)

    def __repr__(self) -> str:
        return f"Posterior({self.model.d} latents; {self.raw})"

    # Latent interventions

    @torch.no_grad()
    def shift(self) -> NoiseShift:
        """Law of the noise in each environment of the data, ``NoiseShift [E, d]`` on the CPU."""
        return self._law().to("cpu")

    @torch.no_grad()
    def shift_draws(self, n_samples: int = 100, seed: int | None = 0) -> NoiseShift:
        """Posterior draws ``NoiseShift [S, E, d]``; equal where the prior maps an environment to one law."""
        with isolated(seed, "posterior"):
            return self._shift_draws(n_samples).to("cpu")

    @property
    def moves_latents(self) -> bool:
        """Whether the model's prior lets environments move latents at all."""
        return bool(self.shift().moved(0.0).any())

    def aggregate(self) -> NoiseShift:
        """The noise each environment's profiles actually show, ``NoiseShift [E, d]``, relative to the control.

        Mean and sd of the aggregated posterior ``(1/n_e) Σ_i q(z | x_i, e)``, centred at the control environments (at
        the mean of all where there is none). Available for every model, also those whose prior knows no environments.
        Environments without profiles get the reference law.
        """
        loc, scale = self._encode()
        env = self.raw.env.cpu()
        mean, _, total = moments(loc, scale, env, self.raw.n_envs)
        control = torch.isin(env, torch.tensor(self.raw.control, dtype=torch.long))
        centre = (loc[control] if control.any() else loc).double().mean(0)
        seen = self.raw.env_counts.cpu().unsqueeze(-1) > 0
        return NoiseShift(
            torch.where(seen, mean - centre, 0.0).float(),
            torch.where(seen, 0.5 * total.clamp_min(1e-6).log(), 0.0).float(),
        )

    def targets(self, prior_odds: float | None = None) -> pd.DataFrame:
        """Probability that an environment intervenes on a latent's noise, environment × latent.

        Where the prior has a site ``env_target``, its posterior probability. Otherwise the evidence that an environment's
        profiles follow its own law of the noise and not the reference N(0, 1), less a penalty for what of that law was
        fitted, at ``prior_odds`` (:func:`~pyro_cge.interventions.target_probability`).

        Where the model itself sets an environment's law to the reference, the probability is 0: in controls, which
        define it, and everywhere in models whose prior knows no environments (:attr:`moves_latents` is False).

        Parameters
        ----------
        prior_odds : float, optional
            Odds before seeing data; default one latent in ``d``, ``1 / (d − 1)``. Unused where the prior has
            ``env_target``: there the odds are the prior's.
        """
        with torch.no_grad():
            probability = self.guide.target_probability(self.every_environment())
        if probability is None:
            odds = 1 / max(self.model.d - 1, 1) if prior_odds is None else prior_odds
            fitted = any(p.requires_grad for p in self.model.prior.parameters())
            counts = self.data.env_counts.cpu() if fitted else None
            probability = target_probability(*self._encode(), self.data.env.cpu(), self.shift(), odds, counts)
        values = (probability.cpu() * self.treated.unsqueeze(-1)).numpy()
        return pd.DataFrame(values, pd.Index(self.raw.env_names, name="environment"), self.latent_names)

    def effects(self, level: float = 0.9, seed: int | None = 0) -> pd.DataFrame:
        """What each treated environment does to each latent: one row a pair, with an interval.

        Stochastic priors: mean and equal-tailed interval of the posterior draws of the mean shift. Other priors: the mean
        noise the environment's profiles show, with its sampling interval
        (:func:`~pyro_cge.interventions.sampling_interval`); environments with fewer than two profiles have the prior's
        shift and no interval (NaN). Controls are what effects are relative to, and have no row; what their profiles show
        is in :meth:`aggregate`.

        Parameters
        ----------
        level : float
            Coverage of the interval, 0 < level < 1.

        Returns
        -------
        DataFrame
            ``environment``, ``latent``, ``shift``, ``low``, ``high`` (in sd of the reference noise), ``sd_ratio`` (sd
            of the noise over that of the reference), ``probability`` (:meth:`targets`).
        """
        if not 0 < level < 1:
            raise ConfigError(f"level is the coverage of an interval, between 0 and 1, got {level}")
        draws = self.shift_draws(DRAWS, seed)
        if (draws.loc != draws.loc[:1]).any() or (draws.log_scale != draws.log_scale[:1]).any():
            columns = credible_interval(draws, level)
        else:
            columns = sampling_interval(*self._encode(), self.data.env.cpu(), self.shift(), level)
        columns["probability"] = torch.from_numpy(self.targets().to_numpy())
        columns = {name: values[self.treated] for name, values in columns.items()}
        return tidy(columns, self.treated_names, self.latent_names)

    def discoveries(self, fdr: float = 0.05, level: float = 0.9) -> pd.DataFrame:
        """Interventions named with at most ``fdr`` expected false ones, most certain first.

        Rows of :meth:`effects`, with a column ``fdr``: the expected share of false ones if the list ended there
        (:func:`~pyro_cge.interventions.discoveries`). Holds where :meth:`targets` is calibrated and the latents are
        those of the truth.
        """
        return discoveries(self.effects(level), fdr)

    def similarity(self, kind: Literal["targets", "direction"] = "targets") -> pd.DataFrame:
        """Environment × environment: do they act on the same latents?

        ``"targets"``: Jaccard index of the target sets, 0 to 1. ``"direction"``: cosine of the shifts weighted by the
        probability of a target, −1 to 1.
        """
        values = similarity(torch.from_numpy(self.targets().to_numpy()), self.shift().loc, kind)
        names = pd.Index(self.raw.env_names, name="environment")
        return pd.DataFrame(values.numpy(), index=names, columns=list(self.raw.env_names))

    # Latents

    @torch.no_grad()
    def latents(self, kind: str = "z") -> pd.DataFrame:
        """Posterior mean of the noise (``"z"``) or of the causes at that mean (``"c"``), profile × latent."""
        values = torch.cat([self._of_kind(kind, batch, *self._means(batch)) for batch in self._batches()])
        return pd.DataFrame(values.numpy(), index=self.raw.obs.index, columns=self.latent_names)

    @torch.no_grad()
    def samples(self, n_samples: int = 100, seed: int | None = 0, kind: str = "z") -> Tensor:
        """Joint draws ``[S, n, d]`` of noise or (another call) causes, and of :meth:`shift_draws` of the same seed."""
        with isolated(seed, "posterior"):
            laws = self._shift_draws(n_samples)
            return torch.cat([self._of_kind(kind, b, *self._noise(b, laws)) for b in self._batches()], -2)

    # Expression

    @torch.no_grad()
    def reconstruct(self) -> Tensor:
        """Expected expression ``[n, g]`` of the observed profiles, at the posterior mean of their noise."""
        means = ((*self._means(batch), batch) for batch in self._batches())
        parts = [self.model.mean(z, batch, own) for z, own, batch in means]
        return self.scaler.inverse(torch.cat(parts).cpu())

    def predict(
        self,
        environments: EnvironmentData | StreamedData | Sequence[str] | str | None = None,
        n_samples: int = 100,
        seed: int | None = 0,
    ) -> Tensor:
        """Expected expression ``[E, g]`` of environments, from the prior alone: no treated profile enters.

        Parameters
        ----------
        environments : EnvironmentData, StreamedData, name, sequence of names, or None
            Environments of another data set (only its environment table and features are read), some of this one's by
            name, or all of this one's.

        Raises
        ------
        DataError
            For no environments; for one that was not in training, in a model that knows environments by name only.
        """
        table, rows = chosen_environments(environments, self.raw.schema(), self.schema)
        batch = table.to(self.device).cells(torch.tensor(rows, device=self.device))
        with isolated(seed, "posterior"):
            return self.scaler.inverse(self.model.predict(batch, n_samples, self.guide).cpu())

    @torch.no_grad()
    def counterfactual(self, environment: str) -> Tensor:
        """Expression ``[n, g]`` of the same profiles, had they been in ``environment``.

        Abduction, action, prediction: the posterior mean noise is moved to the other environment's law with its
        quantile kept, mechanisms and decoder are re-run, and each profile's residual is kept,
        ``x' = x + mean(z') − mean(z)``.
        """
        [target] = self.raw.environments([environment])
        shift = self._law()
        parts = []
        for batch in self._batches():
            z, own = self._means(batch)
            source = batch.envs.index_select(0, batch.env)
            goal = torch.full_like(source, target)
            moved = shift.transport(z, source, goal)
            treated, seen = self.model.mean(moved, self.data.cells(goal), own), self.model.mean(z, batch, own)
            parts.append(batch.x + treated - seen)
        return self.scaler.inverse(torch.cat(parts).cpu())

    @torch.no_grad()
    def replicate(self, n_samples: int = 1, seed: int | None = 0, *, new_profiles: bool = False) -> Tensor:
        """Replicated data sets ``[S, n, g]``: what the model says could have been measured instead.

        Each is drawn with noise from the guide (the same cells measured again), or, with ``new_profiles``, with noise
        from the law of each profile's environment (other cells under the same treatment).
        """
        parts = []
        with isolated(seed, "posterior"):
            laws = self._shift_draws(n_samples)
            for batch in self._batches():
                z, own = self._noise(batch, laws, new_profiles)
                c = self.model.causes(z, batch, own)
                parts.append(self.scaler.inverse(self.model.likelihood(c, batch).sample().cpu()))
        return torch.cat(parts, -2)

    # Fit to the data

    def log_evidence(self, n_samples: int = 100, seed: int | None = 0) -> Tensor:
        """Importance-weighted bound on ``log P(x | e)`` of each profile ``[n]``, in nats of the data's own units."""
        with isolated(seed, "posterior"), pyro.validation_enabled(False):
            bounds = [iwae_bound(self.model, self.guide, batch, n_samples) for batch in self._batches()]
        return torch.cat(bounds).cpu() - self.scaler.scale.log().sum().cpu()

    def log_likelihood(self, n_samples: int = 100, n_importance: int = 1000, seed: int | None = 0) -> Tensor:
        """``log P(x_i | e)`` of each profile under each posterior draw of the environments' laws ``[S, n]``, in nats.

        Each profile's own noise is integrated out with ``n_importance`` draws of the guide
        (:func:`~pyro_cge.objectives.marginal.marginal_log_likelihood`), in the data's own units. Network weights are
        point estimates, which leave-one-out on the training data does not pay for: where they were learned, compare
        models on held-out data. (There a profile told the laws nothing, so leaving it out costs a little too much.)
        """
        size = max(1, min(BATCH, DECODED // (n_importance * self.data.g)))
        with isolated(seed, "posterior"):
            laws = self._shift_draws(n_samples)
            parts = [
                marginal_log_likelihood(self.model, self.guide, batch, laws.select(batch.envs), n_importance)
                for batch in self._batches(size)
            ]
        return torch.cat(parts, -1).cpu() - self.scaler.scale.log().sum().cpu()

    # Export

    def to_arviz(
        self,
        n_samples: int = 100,
        seed: int | None = 0,
        *,
        log_likelihood: int = 0,
        posterior_predictive: bool = False,
        profiles: bool = True,
    ) -> arviz.InferenceData:
        """Every site as an ArviZ ``InferenceData`` with named dimensions.

        Groups: ``posterior`` (``z``, ``c``: chain × draw × profile × latent; ``env_loc``, ``env_log_scale`` and latent
        effects such as ``env_target``: chain × draw × treated environment × latent) and ``observed_data`` (``x``:
        profile × gene). The draws are independent and make one chain: there is no convergence to look at::

            arviz.summary(posterior.to_arviz(), var_names="env_loc", kind="stats")

        Parameters
        ----------
        log_likelihood : int
            Importance samples for the group ``log_likelihood`` (``x``: chain × draw × profile, see
            :meth:`log_likelihood`), which ``arviz.loo`` and ``arviz.compare`` read; 0 leaves it out. 1000, with a few
            hundred draws, keeps the Monte Carlo error small beside differences of models.
        posterior_predictive : bool
            Add the group ``posterior_predictive`` (``x``: chain × draw × profile × gene, see :meth:`replicate`).
        profiles : bool
            Whether to export ``z``, ``c`` and ``observed_data``. Without, what is said of environments remains.

        Raises
        ------
        ConfigError
            If all of it would not fit in memory.
        """
        from .arviz_export import inference_data

        return inference_data([self], self, None, n_samples, seed, log_likelihood, posterior_predictive, profiles)

    # Pieces

    def _batches(self, size: int | None = None) -> Any:
        if not self.raw.n:
            raise DataError("these data have no profiles; without any, ask for shift() or predict()")
        return self.data.batches(size or BATCH)

    def every_environment(self) -> Batch:
        """One unobserved cell of each environment."""
        return self.data.cells(torch.arange(self.data.n_envs, device=self.device))

    @torch.no_grad()
    def _law(self) -> NoiseShift:
        """Noise law of every environment ``[E, d]`` (posterior mean where it is uncertain), on the model's device."""
        return self.guide.shift(self.every_environment())

    def _shift_draws(self, n_samples: int) -> NoiseShift:
        return self.guide.draw_shift(self.every_environment(), n_samples)

    def _noise(self, batch: Batch, laws: NoiseShift, new_profiles: bool = False) -> tuple[Tensor, Tensor | None]:
        """Draws of the noise ``[S, n, d]`` and of what children have of their own ``[S, n, k]``, for draws of the laws."""
        shift, shape = laws.select(batch.envs), torch.Size((len(laws.loc), len(batch)))
        if new_profiles:
            return shift.law(batch.env).sample(), self.model.scm.draw_own(shape)
        z, own = self.guide.posterior(batch, shift), self.guide.own_noise(batch, shift)
        return z.expand(shape).sample(), None if own is None else own.expand(shape).sample()

    def _means(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Posterior means of the same two."""
        own = self.guide.own_noise(batch)
        return self.guide.encode(batch)[0], None if own is None else own.mean

    def _of_kind(self, kind: str, batch: Batch, z: Tensor, own: Tensor | None) -> Tensor:
        if kind not in ("z", "c"):
            raise ValueError(f"kind must be 'z' (noise) or 'c' (causes), got {kind!r}")
        return (z if kind == "z" else self.model.causes(z, batch, own)).cpu()

    @torch.no_grad()
    def _encode(self) -> tuple[Tensor, Tensor]:
        """Posterior mean and sd of the noise, ``[n, d]`` each, on the CPU."""
        parts = [self.guide.encode(batch) for batch in self._batches()]
        loc, log_scale = (torch.cat(p).cpu() for p in zip(*parts, strict=True))
        return loc, log_scale.exp()

    @property
    def treated(self) -> Tensor:
        """Boolean ``[E]``: environments that are not controls."""
        return ~self.raw.is_control.cpu()

    @property
    def treated_names(self) -> pd.Index:
        return pd.Index(self.raw.env_names)[self.treated.numpy()]

    @property
    def latent_names(self) -> list[str]:
        return [f"latent {j}" for j in range(self.model.d)]

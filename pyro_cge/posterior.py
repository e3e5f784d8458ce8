"""What a fitted model says: latent interventions, latents, reconstructions, predictions, counterfactuals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyro
import torch
from torch import Tensor

from .data.align import align, training_rows
from .data.environment import Batch, EnvironmentData
from .data.standardize import Standardizer
from .guides.amortized import AmortizedGuide
from .models.cell import CellModel
from .objectives.elbo import iwae_bound
from .scm.shifts import NoiseShift
from .seeds import isolated

if TYPE_CHECKING:
    import arviz

BATCH = 1024


class Posterior:
    """Posterior of a fitted model and guide for some data.

    Three different questions, three calls: :meth:`reconstruct` (profiles that were seen), :meth:`predict`
    (environments, no treated profile enters) and :meth:`counterfactual` (these profiles under another environment).
    Everything goes in and comes out in the data's own units.

    Parameters
    ----------
    model, guide
        Trained.
    data : EnvironmentData
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
        data: EnvironmentData,
        scaler: Standardizer,
        *,
        schema: EnvironmentData | None = None,
    ) -> None:
        self.model, self.guide, self.scaler = model, guide, scaler
        self.schema = data.schema() if schema is None else schema
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.raw = align(data, self.schema)
        self.data = scaler.transform(self.raw).to(self.device)

    # Latent interventions

    @torch.no_grad()
    def shift(self) -> NoiseShift:
        """Law of the noise in each environment of the data, ``NoiseShift [E, d]`` on the CPU."""
        return self.model.prior.shift(self._every_environment()).to("cpu")

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
        loc, scale = (v.double() for v in self._encode())
        env, counts = self.raw.env.cpu(), self.raw.env_counts.cpu().clamp_min(1).unsqueeze(-1)
        empty = torch.zeros(self.raw.n_envs, loc.shape[1], dtype=torch.float64)
        mean = empty.index_add(0, env, loc) / counts
        variance = empty.index_add(0, env, loc**2 + scale**2) / counts - mean**2
        control = torch.isin(env, torch.tensor(self.raw.control, dtype=torch.long))
        centre = (loc[control] if control.any() else loc).mean(0)
        seen = self.raw.env_counts.cpu().unsqueeze(-1) > 0
        return NoiseShift(
            torch.where(seen, mean - centre, 0.0).float(),
            torch.where(seen, 0.5 * variance.clamp_min(1e-6).log(), 0.0).float(),
        )

    def targets(self, prior_odds: float | None = None) -> pd.DataFrame:
        """Probability that a latent is intervened on, environment × latent.

        For each environment and latent, two laws of the noise of its profiles are compared: the environment's own
        (``N(loc, scale²)``) and the reference (N(0, 1))::

            log BF[e, j] = Σ_{i in e} E_q[log N(z_ij; loc_ej, scale_ej²) − log N(z_ij; 0, 1)]
            P(target)    = 1 / (1 + 1 / (prior_odds · BF))

        Parameters
        ----------
        prior_odds : float, optional
            Odds before seeing data; default one latent in ``d``, ``1 / (d − 1)``.
        """
        shift, (loc, scale) = self.shift(), self._encode()
        env, d = self.data.env.cpu(), self.model.d
        law = shift.select(env)
        second_moment = loc**2 + scale**2
        gain = (
            0.5 * second_moment - law.log_scale - 0.5 * ((loc - law.loc) ** 2 + scale**2) * (-2 * law.log_scale).exp()
        )
        evidence = torch.zeros(shift.loc.shape, dtype=torch.float64).index_add_(0, env, gain.double())
        odds = prior_odds if prior_odds is not None else 1 / max(d - 1, 1)
        return self._by_environment(torch.sigmoid(evidence + np.log(odds)))

    # Latents

    def latents(self, kind: str = "z") -> pd.DataFrame:
        """Posterior mean of the noise (``"z"``) or of the causes at that mean (``"c"``), profile × latent."""
        if kind not in ("z", "c"):
            raise ValueError(f"kind must be 'z' (noise) or 'c' (causes), got {kind!r}")
        z = self._encode()[0]
        if kind == "c":
            with torch.no_grad():
                z = self.model.scm(z.to(self.device)).cpu()
        return pd.DataFrame(z.numpy(), index=self.raw.obs.index, columns=self._latent_names())

    def samples(self, n_samples: int = 100, seed: int | None = 0) -> Tensor:
        """Draws of the noise ``[S, n, d]``."""
        loc, scale = self._encode()
        with isolated(seed):
            return loc + scale * torch.randn(n_samples, *loc.shape)

    # Expression

    @torch.no_grad()
    def reconstruct(self) -> Tensor:
        """Expected expression ``[n, g]`` of the observed profiles, at the posterior mean of their noise."""
        parts = [self.model.mean(self.guide.encode(b)[0], b) for b in self._batches()]
        return self.scaler.inverse(torch.cat(parts).cpu())

    def predict(
        self,
        environments: EnvironmentData | Sequence[str] | None = None,
        n_samples: int = 100,
        seed: int | None = 0,
    ) -> Tensor:
        """Expected expression ``[E, g]`` of environments, from the prior alone: no treated profile enters.

        Parameters
        ----------
        environments : EnvironmentData, sequence of names, or None
            Environments of another data set (only its environment table and features are read), some of this one's by
            name, or all of this one's.

        Raises
        ------
        DataError
            For an environment that was not in training, in a model that knows environments by name only.
        """
        table = self.raw.schema()
        rows = list(range(table.n_envs))
        if isinstance(environments, EnvironmentData) and self.schema.n_features is None:
            rows = training_rows(list(environments.env_names), self.schema)
        elif isinstance(environments, EnvironmentData):
            table = align(environments.schema(), self.schema)
            rows = list(range(table.n_envs))
        elif environments is not None:
            rows = table.environments(environments)
        env = torch.tensor(rows, dtype=torch.long)
        with isolated(seed):
            return self.scaler.inverse(
                self.model.predict(table.to(self.device).cells(env.to(self.device)), n_samples).cpu()
            )

    @torch.no_grad()
    def counterfactual(self, environment: str) -> Tensor:
        """Expression ``[n, g]`` of the same profiles, had they been in ``environment``.

        Abduction, action, prediction: the posterior mean noise is moved to the other environment's law with its
        quantile kept, mechanisms and decoder are re-run, and each profile's residual is kept,
        ``x' = x + mean(z') − mean(z)``.
        """
        [target] = self.raw.environments([environment])
        shift = self.model.prior.shift(self._every_environment())
        parts = []
        for batch in self._batches():
            z = self.guide.encode(batch)[0]
            source = batch.envs.index_select(0, batch.env)
            goal = torch.full_like(source, target)
            moved = shift.transport(z, source, goal)
            parts.append(batch.x + self.model.mean(moved, self.data.cells(goal)) - self.model.mean(z, batch))
        return self.scaler.inverse(torch.cat(parts).cpu())

    # Fit to the data

    def log_evidence(self, n_samples: int = 100, seed: int | None = 0) -> Tensor:
        """Importance-weighted bound on ``log P(x | e)`` of each profile ``[n]``, in nats of the data's own units."""
        with isolated(seed), pyro.validation_enabled(False):
            bounds = [iwae_bound(self.model, self.guide, batch, n_samples) for batch in self._batches()]
        return torch.cat(bounds).cpu() - self.scaler.scale.log().sum().cpu()

    # Export

    def to_arviz(self, n_samples: int = 100, seed: int | None = 0) -> arviz.InferenceData:
        """Every site as an ArviZ ``InferenceData`` with named dimensions.

        Groups: ``posterior`` (``z``, ``c``: chain × draw × profile × latent; ``env_loc``, ``env_log_scale``: chain ×
        draw × environment × latent) and ``observed_data`` (``x``: profile × gene).
        """
        from .arviz_export import inference_data

        z = self.samples(n_samples, seed)
        with torch.no_grad():
            c = self.model.scm(z.to(self.device)).cpu()
        shift = self.shift()
        names = {
            "profile": list(self.raw.obs.index),
            "latent": self._latent_names(),
            "environment": list(self.raw.env_names),
            "gene": list(self.raw.gene_names),
        }
        return inference_data(z=z, c=c, shift=shift, x=self.raw.x, names=names)

    # Pieces

    def _batches(self) -> Any:
        return self.data.batches(BATCH)

    def _every_environment(self) -> Batch:
        return self.data.cells(torch.arange(self.data.n_envs, device=self.device))

    @torch.no_grad()
    def _encode(self) -> tuple[Tensor, Tensor]:
        """Posterior mean and sd of the noise, ``[n, d]`` each, on the CPU."""
        parts = [self.guide.encode(batch) for batch in self._batches()]
        loc, log_scale = (torch.cat(p).cpu() for p in zip(*parts, strict=True))
        return loc, log_scale.exp()

    def _latent_names(self) -> list[str]:
        return [f"latent {j}" for j in range(self.model.d)]

    def _by_environment(self, values: Tensor) -> pd.DataFrame:
        index = pd.Index(self.raw.env_names, name="environment")
        return pd.DataFrame(values.numpy(), index=index, columns=self._latent_names())

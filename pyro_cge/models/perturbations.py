"""Environments made of perturbations: combinations add up, doses follow a Hill curve."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import pandas as pd
import torch
from torch import Tensor, nn

from ..data.environment import Batch, EnvironmentData
from ..errors import ConfigError, DataError
from ..scm.shifts import NoiseShift
from .networks import soft_clamp
from .priors import NONE, LatentPrior

HILL_RANGE = (-1.5, 1.5)  # log Hill coefficient: 0.22 … 4.5


class PerturbationPrior(LatentPrior):
    """Effects belong to perturbations, and an environment adds up those it is made of::

        loc_e = Σ_p r_ep · loc_p,    log_scale_e = Σ_p r_ep · log_scale_p
        r_ep  = 1[dose_ep > 0]                                  without a dose-response curve
        r_ep  = dose_ep^h_p / (EC50_p^h_p + dose_ep^h_p)         with one (Hill), dose and EC50 in µM

    All doses of a drug therefore share its targets, and their size grows monotonically with dose; pairs of perturbations
    that were only seen apart are predictable. ``data.env_features [E, P]`` holds the doses, 0 where a perturbation is
    absent; see :func:`dosed`.

    Parameters
    ----------
    data : EnvironmentData
        Whose environment features are doses.
    prior : callable, EnvironmentData → LatentPrior
        Makes the prior over perturbations from their schema, e.g. ``lambda units: SpikeSlabPrior(units, d)``.
    hill : bool
        Fit a Hill curve a perturbation; else only presence counts.
    names : sequence of ``P`` str, optional
        Names of the perturbations.
    features : Tensor ``[P, f]``, optional
        What is known of the perturbations (fingerprints, …), for the prior or its guide to generalise to new ones.

    Raises
    ------
    DataError
        If the data have no dose table, or a negative dose.
    """

    users: Tensor
    unit_features: Tensor | None

    def __init__(
        self,
        data: EnvironmentData,
        prior: Callable[[EnvironmentData], LatentPrior],
        *,
        hill: bool = False,
        names: Sequence[str] | None = None,
        features: Tensor | None = None,
    ) -> None:
        doses = data.env_features
        if doses is None:
            raise DataError(
                "PerturbationPrior needs env_features [E, P] with each environment's doses; see dosed(data)"
            )
        if (doses < 0).any():
            raise DataError(f"doses must not be negative, the smallest is {float(doses.min()):g}")
        if names is None:
            names = data.env_table.attrs.get("feature_names") or [f"perturbation {p}" for p in range(doses.shape[1])]
        units = EnvironmentData(
            x=torch.empty(0, data.g),
            env=torch.empty(0, dtype=torch.long),
            gene_names=data.gene_names,
            env_names=list(names),
            env_features=features,
        )
        inner = prior(units)
        super().__init__(data, inner.d)
        self.prior, self.perturbations = inner, units
        self.register_buffer("users", (doses > 0).sum(0).clamp_min(1).float(), persistent=False)
        self.register_buffer("unit_features", features, persistent=False)
        self.log_ec50: nn.Parameter | None = None
        self.log_hill: nn.Parameter | None = None
        if hill:
            logs = torch.where(doses > 0, doses, torch.nan).log().nanmedian(0).values.nan_to_num(0.0)
            self.log_ec50, self.log_hill = nn.Parameter(logs), nn.Parameter(torch.zeros_like(logs))

    @property
    def supports(self):  # type: ignore[no-untyped-def]
        return self.prior.supports

    @property
    def hidden(self) -> tuple[int, ...]:
        return getattr(self.prior, "hidden", ())

    @property
    def unit_schema(self) -> EnvironmentData:
        return self.perturbations

    def response(self, batch: Batch) -> Tensor:
        """``r [E_b, P]`` in [0, 1]: how much of each perturbation's effect an environment shows; none in controls."""
        if batch.env_features is None:
            raise DataError("this model reads doses from env_features [E, P], but the batch has none")
        dose = batch.env_features
        present = (dose > 0) & ~batch.is_control.unsqueeze(-1)
        if self.log_ec50 is None:
            return present.to(dose.dtype)
        log_dose = torch.where(present, dose, 1.0).log()
        slope = soft_clamp(cast(Tensor, self.log_hill), *HILL_RANGE).exp()
        return torch.sigmoid(slope * (log_dose - self.log_ec50)) * present

    def units(self, batch: Batch) -> Batch:
        """All perturbations, weighted as the batch's environments that use them."""
        doses = cast(Tensor, batch.env_features)
        everyone = torch.arange(len(self.users), device=doses.device)
        weight = ((doses > 0).to(doses.dtype) * batch.env_weight.unsqueeze(-1)).sum(0) / self.users
        return replace(
            batch,
            x=None,
            envs=everyone,
            env_features=self.unit_features,
            is_control=torch.zeros_like(everyone, dtype=torch.bool),
            env_counts=torch.ones_like(everyone),
            n_envs=len(everyone),
            unit="perturbation",
            weight=weight,
        )

    def effects(self, batch: Batch) -> dict[str, Tensor]:
        return self.prior.effects(batch)

    def shift(self, batch: Batch, effects: Mapping[str, Tensor] = NONE) -> NoiseShift:
        each = self.prior.shift(self.units(batch), effects)
        response = self.response(batch)
        return NoiseShift(response @ each.loc, response @ each.log_scale)

    def start_at(self, shift: NoiseShift, batch: Batch) -> None:
        self.prior.start_at(self.unit_shift(shift, batch), self.units(batch))

    def starting_effects(self, shift: NoiseShift) -> dict[str, Tensor]:
        return self.prior.starting_effects(shift)

    @torch.no_grad()
    def unit_shift(self, shift: NoiseShift, batch: Batch) -> NoiseShift:
        """Least-squares effects of the perturbations ``[P, d]`` that add up to the environments' ``shift``."""
        response = self.response(batch).double()
        inverse = torch.linalg.pinv(response)
        return NoiseShift((inverse @ shift.loc.double()).float(), (inverse @ shift.log_scale.double()).float())


def dosed(
    data: EnvironmentData, column: str = "perturbagen", dose: str | None = "dose", separator: str = "+"
) -> EnvironmentData:
    """The same data with doses as environment features ``[E, P]``, for :class:`PerturbationPrior`.

    Parameters
    ----------
    column : str
        Column of ``env_table`` naming what each environment is made of: ``"A"``, or ``"A+B"`` for a combination. Controls
        get zeros whatever it says.
    dose : str or None
        Column with the dose in µM of every perturbation named; None (or a column the table lacks) for presence only.
    separator : str
        Between the parts of a combination.

    Raises
    ------
    ConfigError
        If the table has no such column.
    """
    table = data.env_table
    if column not in table:
        raise ConfigError(f"env_table has no column {column!r}; it has {list(table.columns)}")
    parts = [
        [] if e in data.control else [part.strip() for part in str(text).split(separator)]
        for e, text in enumerate(table[column])
    ]
    names = sorted({part for row in parts for part in row})
    position = {name: p for p, name in enumerate(names)}
    amount = table[dose].to_numpy(dtype=float) if dose is not None and dose in table else [1.0] * len(table)
    doses = torch.zeros(data.n_envs, len(names))
    for e, row in enumerate(parts):
        for part in row:
            doses[e, position[part]] = float(amount[e])
    annotated = pd.DataFrame(table)
    annotated.attrs["feature_names"] = names
    return replace(data, env_features=doses, env_table=annotated)

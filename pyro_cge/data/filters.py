"""Which profiles and genes to keep, and a report of what each filter removed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from ..errors import DataError
from .geo import column
from .l1000 import Expression

CONTROL_TYPES = ("ctl_vehicle", "ctl_untrt", "ctl_vector")
"""Perturbation types that are controls, as GEO spells them (Broad's own files use capitals)."""


class Filters(BaseModel):
    """What to keep; a filter left out (None or False) does nothing.

    Controls (``ctl_vehicle``, ``ctl_untrt``, ``ctl_vector``) pass the filters of dose and signature quality: they
    have no dose, and a weak signature is what makes them controls.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    landmarks: bool = Field(default=False, description="Only the 978 measured genes, as the gene metadata says")
    pert_types: tuple[str, ...] | None = Field(
        default=None, description="Perturbation types: [trt_cp, trt_sh, ctl_vehicle, ...]; case does not matter"
    )
    cell_lines: tuple[str, ...] | None = Field(default=None, description="Names of cell lines")
    times: tuple[float, ...] | None = Field(default=None, description="Hours")
    doses: tuple[float, float] | None = Field(default=None, description="Lowest and highest, in µM")
    min_tas: float | None = Field(default=None, description="Least transcriptional activity score; missing is below")
    min_distil_cc_q75: float | None = Field(
        default=None, description="Least correlation of replicates; missing is below"
    )
    min_distil_ss: float | None = Field(default=None, description="Least strength of a signature; missing is below")
    min_profiles_per_environment: int | None = Field(
        default=None, ge=1, description="Environments with fewer are left out, after all other filters"
    )


def apply(
    expression: Expression, filters: Filters, by: Sequence[str] = ("perturbagen",)
) -> tuple[Expression, pd.DataFrame]:
    """The profiles and genes that pass, and a report with a row for each filter: ``filter, of, removed, kept``.

    ``by`` are the columns that make an environment, for ``min_profiles_per_environment``.

    Raises
    ------
    DataError
        If a filter needs a column that is not there (with those there are), or nothing passes it.
    """
    profiles, genes, report = select(expression.obs, expression.var, filters, by, expression.source)
    return expression.take(profiles, genes), report


def select(
    obs: pd.DataFrame,
    var: pd.DataFrame,
    filters: Filters,
    by: Sequence[str] = ("perturbagen",),
    source: str | Path = "expression",
) -> tuple[pd.Index, pd.Index, pd.DataFrame]:
    """As :func:`apply`, from the metadata alone: ids of profiles and genes to keep, and the report."""
    steps: list[tuple[str, str, int, int]] = []

    def keep(table: pd.DataFrame, passes: pd.Series, name: str, of: str) -> pd.DataFrame:
        if not passes.any():
            raise DataError(f"{source}: filter {name!r} leaves no {of} of {len(table)}; loosen it")
        steps.append((name, of, int((~passes).sum()), int(passes.sum())))
        return table[passes.to_numpy()]

    if filters.landmarks:
        var = keep(var, is_landmark(var, source), "landmarks", "genes")
    for name, field, wanted in (
        ("pert_types", "pert_type", filters.pert_types),
        ("cell_lines", "cell_line", filters.cell_lines),
    ):
        if wanted is not None:
            values = column(obs, field, source).astype(str).str.lower()
            obs = keep(obs, values.isin([value.lower() for value in wanted]), name, "profiles")
    if filters.times is not None:
        hours = column(obs, "time", source)
        near = np.isclose(hours.to_numpy()[:, None], np.array(filters.times)).any(1)
        obs = keep(obs, pd.Series(near, index=obs.index), "times", "profiles")
    if filters.doses is not None:
        low, high = filters.doses
        in_range = column(obs, "dose", source).between(low * (1 - 1e-6), high * (1 + 1e-6))
        obs = keep(obs, in_range | is_control(obs), "doses", "profiles")
    for field in ("tas", "distil_cc_q75", "distil_ss"):
        if (least := getattr(filters, f"min_{field}")) is not None:
            strong = pd.to_numeric(column(obs, field, source), errors="coerce") >= least
            obs = keep(obs, strong | is_control(obs), f"min_{field}", "profiles")
    if filters.min_profiles_per_environment is not None:
        keys = [column(obs, name, source).to_numpy() for name in by]
        sizes = pd.Series(1, index=obs.index).groupby(keys, dropna=False).transform("size")
        enough = sizes >= filters.min_profiles_per_environment
        obs = keep(obs, enough, "min_profiles_per_environment", "profiles")
    return obs.index, var.index, pd.DataFrame(steps, columns=["filter", "of", "removed", "kept"])


def is_control(obs: pd.DataFrame) -> pd.Series:
    """Boolean per profile: perturbation type is a control type; False throughout where types are not given."""
    if "pert_type" not in obs.columns:
        return pd.Series(False, index=obs.index)
    return obs["pert_type"].astype(str).str.lower().isin(CONTROL_TYPES)


def is_landmark(var: pd.DataFrame, source: str | Path = "expression") -> pd.Series:
    """Boolean per gene: measured, not inferred."""
    values = column(var, "landmark", source)
    return values.astype(str).str.lower().isin(("1", "1.0", "true", "y", "yes", "landmark"))

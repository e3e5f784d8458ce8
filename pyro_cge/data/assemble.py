"""From expression as read to ``EnvironmentData``: which profiles share an environment, and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..errors import DataError
from .environment import EnvironmentData
from .features import environment_features
from .filters import is_control
from .fingerprints import inchi_key_block
from .geo import SPELLINGS, as_ids, column, spelling
from .l1000 import Expression

_ENV_FIELDS = ("perturbagen", "name", "pert_type", "smiles", "inchi_key", "dose", "time", "cell_line", "target")


def to_environment_data(
    expression: Expression,
    by: Sequence[str] = ("perturbagen",),
    features: Sequence[str] = (),
    *,
    control: str | Sequence[str] | None = None,
    smiles: Mapping[str, str] | None = None,
    **feature_options: Any,
) -> EnvironmentData:
    """Group profiles into environments.

    Parameters
    ----------
    expression : Expression
        From :func:`~pyro_cge.data.l1000.read_gct`, joined with its side tables.
    by : sequence of str
        Columns of ``obs`` whose combinations are the environments, under any of their spellings:
        ``("perturbagen",)``, ``("perturbagen", "cell_line", "dose", "time")``, ``("profile",)`` for each profile by
        itself, or any other column. Names are joined by ``|``.
    features : sequence of block names
        See :func:`~pyro_cge.data.features.environment_features`; empty for none.
    control : str or sequence of str, optional
        Reference environments: a boolean column of ``obs``, or values of the first column of ``by``. By default
        those whose ``pert_type`` is a control type.
    smiles : mapping, optional
        Perturbagen → SMILES, where ``obs`` has none or instead of it.
    feature_options
        Passed on: ``basal``, ``reference``, ``radius``, ``n_bits``, ``counts``, ``like``.

    Returns
    -------
    EnvironmentData
        ``env_table`` has perturbagen, name, SMILES, InChIKey skeleton, dose (µM), time (h), cell line and target
        where they are one and the same within an environment, missing elsewhere;
        ``env_table.attrs["feature_names"]`` names the features.

    Raises
    ------
    DataError
        If a column is not there, a profile has no value in it, an environment holds both control and treated
        profiles, a control is unknown, or a feature cannot be made.
    """
    obs, source = expression.obs, expression.source
    env, names = _environments(obs, by, source)
    table = _env_table(obs, env, names, by, smiles, source)
    controls = _controls(obs, env, names, by, control, source)
    table["inchi_key_block"] = _skeletons(table, source)
    table = table.drop(columns="inchi_key", errors="ignore")
    values = None
    if features:
        values, feature_names = environment_features(table, features, control=controls, **feature_options)
        table.attrs["feature_names"] = feature_names
    return EnvironmentData(
        x=torch.from_numpy(expression.x),
        env=torch.from_numpy(env.astype(np.int64)),
        gene_names=list(expression.var.index),
        env_names=names,
        env_features=None if values is None else torch.from_numpy(values),
        obs=obs,
        env_table=table,
        control=controls,
    )


def _environments(obs: pd.DataFrame, by: Sequence[str], source: str) -> tuple[np.ndarray, list[str]]:
    if isinstance(by, str) or not by:
        raise DataError(f"by must be a sequence of columns, like ('perturbagen',), got {by!r}")
    parts = []
    for field in by:
        values = column(obs, field, source)
        absent = values.isna().to_numpy()
        # A control has no dose; anything else missing leaves the profile without an environment.
        if field != "dose" and absent.any():
            raise DataError(
                f"{source}: column {field!r} is missing for profile {obs.index[absent][0]!r} ({int(absent.sum())} such); "
                "fill it in (a side table), leave these profiles out, or leave the column out of by="
            )
        numbers = values.dtype.kind == "f"
        text = [f"{v:g}" for v in values] if numbers else [str(v) for v in values]
        parts.append(["-" if gone else t for t, gone in zip(text, absent, strict=True)])
    codes, names = pd.factorize(pd.Index(["|".join(key) for key in zip(*parts, strict=True)], dtype=object), sort=True)
    return codes, list(names)


def _env_table(
    obs: pd.DataFrame,
    env: np.ndarray,
    names: list[str],
    by: Sequence[str],
    smiles: Mapping[str, str] | None,
    source: str,
) -> pd.DataFrame:
    fields = [f for f in _ENV_FIELDS if spelling(obs, f) is not None]
    fields += [field for field in by if field not in fields and field != "profile"]
    table = pd.DataFrame(index=pd.Index(names, dtype=object))
    for field in fields:
        table[field] = _constant(column(obs, field, source).to_numpy(), env, len(names))
    if smiles is not None:
        if "perturbagen" not in table.columns:
            raise DataError(f"{source}: smiles= goes by perturbagen, which is not there ({SPELLINGS['perturbagen']})")
        given = dict(zip(as_ids(list(smiles)), smiles.values(), strict=True))
        added = pd.Series([given.get(key, np.nan) for key in as_ids(table["perturbagen"])], index=table.index)
        if added.isna().all():
            raise DataError(
                f"{source}: no perturbagen is in smiles=, which has {', '.join(map(repr, list(given)[:3]))}; the data "
                f"have {', '.join(map(repr, table['perturbagen'][:3]))}"
            )
        table["smiles"] = added.where(added.notna(), table["smiles"]) if "smiles" in table.columns else added
    return table


def _constant(values: np.ndarray, env: np.ndarray, n_envs: int) -> np.ndarray:
    """One value an environment, missing where its profiles differ."""
    codes, uniques = pd.factorize(values)
    low, high = np.full(n_envs, len(uniques)), np.full(n_envs, -1)
    np.minimum.at(low, env, codes)
    np.maximum.at(high, env, codes)
    same = (low == high) & (low >= 0)
    result = np.full(n_envs, np.nan, dtype=float if np.asarray(values).dtype.kind in "iuf" else object)
    result[same] = np.asarray(uniques)[low[same]]
    return result


def _controls(
    obs: pd.DataFrame,
    env: np.ndarray,
    names: list[str],
    by: Sequence[str],
    control: str | Sequence[str] | None,
    source: str,
) -> list[int]:
    if control is None:
        per_profile = is_control(obs).to_numpy()
    elif isinstance(control, str) and control in obs.columns:
        values = obs[control]
        if not set(values.dropna().unique()) <= {True, False}:
            raise DataError(f"{source}: control column {control!r} must hold only True and False (1 and 0)")
        per_profile = values.fillna(False).astype(bool).to_numpy()
    else:
        wanted = [control] if isinstance(control, str) else list(control)
        first = column(obs, by[0], source).astype(str)
        if unknown := [name for name in wanted if name not in set(first)]:
            raise DataError(
                f"{source}: control {unknown[0]!r} is neither a column of obs nor a {by[0]}; there are "
                f"{', '.join(sorted(set(first))[:10])}"
            )
        per_profile = first.isin(wanted).to_numpy()
    count = np.bincount(env, weights=per_profile, minlength=len(names))
    if (mixed := np.flatnonzero((count > 0) & (count < np.bincount(env, minlength=len(names))))).size:
        raise DataError(
            f"{source}: environment {names[mixed[0]]!r} holds control and treated profiles; add the column that tells "
            "them apart to by="
        )
    return np.flatnonzero(count).tolist()


def _skeletons(table: pd.DataFrame, source: str) -> pd.Series:
    """InChIKey first blocks: from the file where it has keys, from the structure elsewhere."""
    keys = pd.Series(np.nan, index=table.index, dtype=object)
    if "inchi_key" in table.columns:
        keys = table["inchi_key"].astype(object).map(lambda key: str(key).split("-")[0], na_action="ignore")
    if "smiles" in table.columns:
        for name in table.index[keys.isna() & table["smiles"].notna()]:
            try:
                keys[name] = inchi_key_block([table.at[name, "smiles"]])[0]
            except DataError as error:
                raise DataError(f"{source}: environment {name!r}: {error}") from None
    return keys

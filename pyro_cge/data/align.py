"""Bringing data into a model's terms: genes and environments by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

from ..errors import DataError
from .environment import EnvironmentData
from .profiles import Profiles
from .streamed import StreamedData

Data = TypeVar("Data", bound=Profiles)


def align(data: Data, schema: EnvironmentData) -> Data:
    """Genes in the schema's order by name; environments by name too, where they have no features.

    Parameters
    ----------
    data : EnvironmentData or StreamedData
    schema : EnvironmentData
        Genes and environments a model was trained on (:meth:`EnvironmentData.schema`).

    Returns
    -------
    EnvironmentData or StreamedData, as given
        With features, the data's own environments; without, those of the schema (controls included).

    Raises
    ------
    DataError
        If genes or features are missing, features differ in number, or an environment without features was not in
        training.
    """
    data = data.genes(schema.gene_names)
    if schema.n_features is not None:
        if data.n_features != schema.n_features:
            given = "none" if data.n_features is None else str(data.n_features)
            raise DataError(
                f"the model was trained with {schema.n_features} environment features, the data have {given}: "
                "prepare both with the same features"
            )
        return data
    if list(data.env_names) == list(schema.env_names) and data.control == schema.control:
        return data
    row = torch.zeros(data.n_envs, dtype=torch.long)
    present = sorted(set(data.env.tolist()))
    row[present] = torch.tensor(training_rows([data.env_names[e] for e in present], schema), dtype=torch.long)
    return data.among(schema, row.to(data.env.device)[data.env])


def chosen_environments(
    chosen: EnvironmentData | StreamedData | Sequence[str] | str | None, table: EnvironmentData, schema: EnvironmentData
) -> tuple[EnvironmentData, list[int]]:
    """The environment table that answers a question about some environments, and their rows in it.

    Parameters
    ----------
    chosen : EnvironmentData, StreamedData, str, sequence of str, or None
        Environments of another data set, some of ``table``'s by name, or all of these.
    table : EnvironmentData
        Environments at hand.
    schema : EnvironmentData
        Those of training.

    Raises
    ------
    DataError
        If there are none; for an environment that was not in training, in a model that knows environments by name only.
    """
    if chosen is None:
        rows = list(range(table.n_envs))
    elif not isinstance(chosen, EnvironmentData | StreamedData):
        rows = table.environments([chosen] if isinstance(chosen, str) else chosen)
    elif schema.n_features is None:
        rows = training_rows(list(chosen.env_names), schema)
    else:
        table = align(chosen.schema(), schema)
        rows = list(range(table.n_envs))
    if not rows:
        raise DataError("no environments were given; name one or more, or give None for all of them")
    return table, rows


def training_rows(names: list[str], schema: EnvironmentData) -> list[int]:
    """Row numbers of environments of training by name, for a model that knows them by name only.

    Raises
    ------
    DataError
        If one was not in training.
    """
    known = set(schema.env_names)
    if unseen := [name for name in names if name not in known]:
        raise DataError(
            f"unknown environments {unseen[:5]}: they were not in training, and this model knows environments by name "
            "only. Train with environment features (fingerprints, dose, …) to predict unseen environments."
        )
    return schema.environments(names)

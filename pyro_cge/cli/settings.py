"""The command that prints settings."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from .options import app

if TYPE_CHECKING:
    from pydantic import BaseModel


class Command(StrEnum):
    fit, compare, tune, prepare, discover, impute = "fit", "compare", "tune", "prepare", "discover", "impute"
    rank_drugs = "rank-drugs"


@app.command("settings")
def print_settings(
    command: Annotated[Command, typer.Argument(help="Whose; fit, compare and tune have the same.")] = Command.fit,
) -> None:
    """Print the settings of a command with their defaults, as the YAML that --config takes.

    A single one is given as --set key=value.
    """
    from .. import config

    kinds: dict[Command, type[BaseModel]] = {
        **dict.fromkeys((Command.fit, Command.compare, Command.tune), config.RunConfig),
        Command.discover: config.DiscoverConfig,
        Command.impute: config.ImputeConfig,
        Command.rank_drugs: config.RankDrugsConfig,
    }
    if command is Command.prepare:
        from ..data.filters import Filters

        kinds[command] = Filters
    typer.echo(config.as_yaml(kinds[command]), nl=False)

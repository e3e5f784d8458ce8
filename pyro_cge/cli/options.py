"""The application, the options its commands share, and what they print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(
    help="Cell causal embeddings: fit environment-conditioned latent-variable models, inspect latent interventions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Out = Annotated[Path, typer.Option("--out", help="Where to write.")]
Data = Annotated[
    Path,
    typer.Option("--data", help="An .h5ad file (pyro-cge prepare or simulate, or your own), or a CSV or TSV table."),
]
EnvKey = Annotated[str | None, typer.Option(help="obs column that names the environment (files not written by us).")]
Control = Annotated[
    list[str], typer.Option("--control", help="Control environment, may be repeated (files not written by us).")
]
Config = Annotated[Path | None, typer.Option("--config", help="YAML file of settings.")]
Overrides = Annotated[list[str], typer.Option("--set", help="key=value, may be repeated.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Random seed.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, ...")]


def new_folder(path: Path) -> None:
    """Refuse a folder that holds something.

    Raises
    ------
    ConfigError
    """
    from ..errors import ConfigError

    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} exists and is not an empty folder: choose another with --out, or remove it")


def show(table: pd.DataFrame) -> None:
    """A table on the terminal: a row a figure, a column a model or part."""
    from rich.console import Console
    from rich.table import Table

    drawn = Table(show_edge=False)
    drawn.add_column("")
    for column in table.columns:
        drawn.add_column(str(column), justify="right")
    for name, row in table.iterrows():
        drawn.add_row(str(name).replace("_", " "), *("–" if value != value else f"{value:.3g}" for value in row))
    Console(width=None if sys.stdout.isatty() else 160).print(drawn)

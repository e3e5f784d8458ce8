"""The application, the options its commands share, and what they print.

Mistakes that can be seen without the data (paths, settings, folders) are told before anything heavy is loaded.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ..data.files import kind_of, separator
from ..errors import PyroCgeError

if TYPE_CHECKING:
    import pandas as pd

# Arguments of functions whose option is called otherwise.
OPTIONS = {"env_column": "--env-key", "env": "--env-key", "keys": "--context-key and --action-key"}


class Commands(TyperGroup):
    """Errors name the arguments of functions; here they get the names a terminal knows."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PyroCgeError as error:
            parameters = self.commands[str(ctx.invoked_subcommand)].params
            options = {str(p.name): p.opts[0] for p in parameters if p.opts[0].startswith("--")}
            error.args = (in_options(str(error), OPTIONS | options), *error.args[1:])
            raise


def in_options(message: str, options: dict[str, str]) -> str:
    """``message`` with options in place of ``argument=`` and, unless quoted, of ``an_argument`` with an underscore."""
    for name, option in options.items():
        bare = r"|(?![\w'\"/=-]|\.\w)" if "_" in name else ""
        for pattern, words in ((r"=(?=['\"\w])", f"{option} "), (f"(?:={bare})", option)):
            message = re.sub(rf"(?<![\w'\"/.-]){name}{pattern}", words, message)
    return message


app = typer.Typer(
    cls=Commands,
    help="Cell causal embeddings: fit environment-conditioned latent-variable models, inspect latent interventions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def there(paths: Any) -> Any:
    """Refuse paths of files or folders that do not exist.

    Raises
    ------
    DataError
    """
    from ..errors import DataError

    for path in [paths] if isinstance(paths, str | Path) else paths or []:
        if not os.path.exists(path):  # as False where a name is too long, unlike Path.exists
            raise DataError(f"{path}: no such file; check the path")
    return paths


Out = Annotated[Path, typer.Option("--out", help="Where to write.")]
Data = Annotated[
    Path,
    typer.Option(
        "--data",
        callback=there,
        help="An .h5ad file (pyro-cge prepare or simulate, or your own), or a CSV or TSV table with a row a profile, a "
        "column a gene, and a column 'environment' (or --env-key). Elsewhere: pyro-cge prepare.",
    ),
]
Stream = Annotated[
    bool,
    typer.Option("--stream", help="Read expression as it is needed: files beyond memory (.h5ad, .zarr, .gctx)."),
]
EnvKey = Annotated[str | None, typer.Option(help="Column that names the environment (files not written by us).")]
Control = Annotated[
    list[str], typer.Option("--control", help="Control environment, may be repeated (files not written by us).")
]
FeaturesKey = Annotated[
    str | None,
    typer.Option(
        "--features-key",
        help="Environment features of such a file: a table or array of its uns, or an obsm that is the same within each.",
    ),
]
Layer = Annotated[
    str | None, typer.Option("--layer", help="Layer of the file to read instead of its X (counts, often).")
]
Config = Annotated[
    Path | None,
    typer.Option("--config", callback=there, help="YAML file of settings; pyro-cge settings prints them all."),
]
Overrides = Annotated[list[str], typer.Option("--set", help="A setting, key=value; may be repeated.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Random seed.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, ...")]


def readable(path: Path, streamed: bool = False, features_key: str | None = None, layer: str | None = None) -> None:
    """Refuse a kind of file that :func:`read` does not read, or not with these keys.

    Raises
    ------
    DataError
    """
    from ..errors import DataError

    kind, table = kind_of(path), separator(path) is not None
    if kind == ".gct":
        raise DataError(f"{path}: make an .h5ad file of it with pyro-cge prepare")
    if table and (features_key is not None or layer is not None):
        raise DataError(f"{path}: --features-key and --layer are of .h5ad files; a table has none, leave them out")
    if streamed and table:
        raise DataError(f"{path}: --stream reads .h5ad, .zarr and .gctx; leave it out, tables are read into memory")
    if not streamed and (path.is_dir() or kind in (".gctx", ".zarr")):
        raise DataError(f"{path}: folders, .zarr and .gctx are read with --stream; .gctx also by pyro-cge prepare")


def read(
    path: Path,
    env_key: str | None,
    streamed: bool = False,
    control: Sequence[str] = (),
    features_key: str | None = None,
    layer: str | None = None,
) -> Any:
    """Profiles of a data file, in memory or streamed."""
    readable(path, streamed, features_key, layer)
    if streamed:
        from ..data.opening import stream

        return stream(path, env_key, features_key, list(control) or None, layer=layer)
    if separator(path) is not None:
        from ..data.tables import read_table

        return read_table(path, env_column=env_key or "environment", control=list(control) or None)
    from ..data.anndata import read_h5ad

    return read_h5ad(path, env_key, features_key, list(control) or None, layer=layer)


def check_device(device: str | None) -> None:
    """Refuse a device that is not here, before data are read for it.

    Raises
    ------
    ConfigError
    """
    from torch import nn

    from ..train.settings import device_of

    device_of(nn.Module(), device)


def say(line: str) -> None:
    """A line on standard error: how things go, not what came out."""
    typer.echo(line, err=True)


def show(table: pd.DataFrame) -> None:
    """A table on the terminal: a row a figure, a column a model or part; of numbers, or of texts as they are."""
    from rich.console import Console
    from rich.table import Table

    drawn = Table(show_edge=False)
    drawn.add_column("")
    for column in table.columns:
        drawn.add_column(str(column), justify="right")
    for name, row in table.iterrows():
        drawn.add_row(str(name).replace("_", " "), *(_cell(value) for value in row))
    Console(width=None if sys.stdout.isatty() else 160).print(drawn)


def _cell(value: float | str) -> str:
    return value if isinstance(value, str) else "–" if value != value else f"{value:.3g}"

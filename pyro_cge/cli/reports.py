"""The command that reports on runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Control, EnvKey, FeaturesKey, Layer, Out, Stream, app, read, there


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(callback=there, help="Run folders, or folders of them (of compare, of demo).")
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", callback=there, help="The data of the runs: adds effects, gene programmes and posterior checks."
        ),
    ] = None,
    out: Out = Path("report.html"),
    stream: Stream = False,
    env_key: EnvKey = None,
    control: Control = [],  # noqa: B006
    features_key: FeaturesKey = None,
    layer: Layer = None,
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
) -> None:
    """Write a report on runs: one HTML file that needs no network, for screens, phones and print."""
    from ..report import write

    content = None if data is None else read(data, env_key, stream, control, features_key, layer)
    path = write(runs, out, content, title=title)
    typer.echo(f"{path}: {path.stat().st_size / 1e3:,.0f} kB; open it in a browser")

"""The command line: ``pyro-cge demo | simulate | prepare | fit | compare | tune | predict | report | discover | impute | rank-drugs | settings``.

Heavy packages are imported inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys

import typer

from ..errors import PyroCgeError
from . import models, reports, screens, settings  # noqa: F401 (they register their commands)
from .options import app


def main() -> None:
    """Entry point: our own errors become one line and exit code 1."""
    try:
        app(standalone_mode=True)
    except PyroCgeError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        sys.exit(130)

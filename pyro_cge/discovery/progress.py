"""The progress bar of a search or a fit, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def shown(steps: Iterable[T], total: int | None, progress: bool | None) -> Iterator[T]:
    """The steps, with a progress bar on standard error: by default only where that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    hidden = not (sys.stderr.isatty() if progress is None else progress)
    yield from track(steps, "fit", total=total, console=Console(stderr=True), disable=hidden)

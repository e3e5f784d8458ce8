"""The progress bar of a fit."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class EpochProgress:
    """A bar over epochs with losses and time left, on standard error; silent where ``shown`` is False."""

    def __init__(self, epochs: int, done: int, shown: bool | None) -> None:
        self.progress = Progress(
            TextColumn("fit"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[losses]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not (sys.stderr.isatty() if shown is None else shown),
        )
        self.task = self.progress.add_task("fit", total=epochs, completed=done, losses="")

    def __enter__(self) -> EpochProgress:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def update(self, row: dict[str, float]) -> None:
        """One epoch done; ``row`` is its line of the history."""
        losses = f"train {row['train_loss']:.4g}"
        if "valid_loss" in row:
            losses += f"  held out {row['valid_loss']:.4g}"
        self.progress.update(self.task, advance=1, losses=losses)

"""How far a fit is: a bar on a terminal, a line now and then elsewhere (a log file)."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINES = 10  # a fit, at least
LONGEST_SILENCE = 30.0  # seconds, where an epoch takes less


class EpochProgress:
    """Epochs done, losses and time left, on standard error.

    Parameters
    ----------
    epochs, done : int
        In all, and before this fit went on.
    shown : bool or None
        True: a bar on a terminal, plain lines elsewhere. None: only the bar. False: neither.
    """

    def __init__(self, epochs: int, done: int, shown: bool | None) -> None:
        terminal = sys.stderr.isatty()
        self.progress = Progress(
            TextColumn("fit"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[losses]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=shown is False or not terminal,
        )
        self.task = self.progress.add_task("fit", total=epochs, completed=done, losses="")
        self.plain = bool(shown) and not terminal
        self.epochs, self.first, self.done, self.said = epochs, done, done, done
        self.started = self.spoke = time.monotonic()
        self.losses = ""

    def __enter__(self) -> EpochProgress:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        if self.plain and self.done > self.said:  # the last epoch, where patience ended the fit
            self._say()

    def update(self, row: dict[str, float]) -> None:
        """One epoch done; ``row`` is its line of the history."""
        self.losses = f"train {row['train_loss']:.4g}"
        if "valid_loss" in row:
            self.losses += f"  held out {row['valid_loss']:.4g}"
        self.progress.update(self.task, advance=1, losses=self.losses)
        self.done += 1
        due = self.done == self.first + 1 or self.done * LINES // self.epochs > self.said * LINES // self.epochs
        if self.plain and (due or time.monotonic() - self.spoke >= LONGEST_SILENCE):
            self._say()

    def _say(self) -> None:
        self.said, self.spoke = self.done, time.monotonic()
        left = (self.spoke - self.started) / (self.done - self.first) * (self.epochs - self.done)
        minutes, seconds = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        line = f"epoch {self.done} of {self.epochs}  {self.losses}  at most {hours}:{minutes:02}:{seconds:02} left"
        print(line, file=sys.stderr, flush=True)

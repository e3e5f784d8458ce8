"""Learning-rate schedules: functions of the step number alone, so that a resumed run needs no state of theirs."""

from __future__ import annotations

import math
from typing import Literal

from ..errors import ConfigError

Schedule = Literal["one_cycle", "cosine"] | None

RISE = 0.3  # share of a one-cycle run spent rising
START, END = 1 / 25, 1e-4  # first and last rate of a one-cycle run, as shares of the highest


def rate_factor(schedule: Schedule, step: int, total: int) -> float:
    """The learning rate of one step, as a share of its highest value.

    ``"cosine"`` falls to zero, ``½ (1 + cos(π t))`` with ``t = step / total``. ``"one_cycle"`` (Smith and Topin 2018)
    rises by half a cosine from 1/25 to 1 over the first 30 % of the steps and falls by another to 1/10,000: high rates
    in the middle cross poor minima, low ones at the end settle. ``None`` is 1 throughout.

    Parameters
    ----------
    step, total : int
        Steps done, and steps in all.

    Raises
    ------
    ConfigError
        For an unknown schedule.
    """
    done = step / max(total, 1)
    if schedule is None:
        return 1.0
    if schedule == "cosine":
        return _between(1.0, 0.0, done)
    if schedule == "one_cycle":
        return _between(START, 1.0, done / RISE) if done < RISE else _between(1.0, END, (done - RISE) / (1 - RISE))
    raise ConfigError(f"schedule must be 'one_cycle', 'cosine' or None, got {schedule!r}")


def _between(start: float, stop: float, share: float) -> float:
    """Half a cosine from ``start`` (share 0) to ``stop`` (share 1)."""
    return stop + (start - stop) * (1 + math.cos(math.pi * min(share, 1.0))) / 2

"""The package's own errors: each message names what was given, what was expected and the likely fix."""

from __future__ import annotations

FLOAT32 = 1.2e-38, 3.4e38  # what a positive number of the models lies between
SEEDS = 2**63


class PyroCgeError(Exception):
    """Parent of every error raised on purpose by this package."""


class DataError(PyroCgeError, ValueError):
    """Input data that cannot be used: the message names file, field and row."""


class ConfigError(PyroCgeError, ValueError):
    """A setting that does not exist or does not make sense."""


class CheckpointError(PyroCgeError, ValueError):
    """A checkpoint or weights file that cannot be read, or belongs to something else."""


class NonFiniteLossError(PyroCgeError, ArithmeticError):
    """The loss became NaN or infinite. ``site``, ``epoch`` and ``batch`` say where.

    The weights from before the failing step are still in the model when this is raised.
    """

    def __init__(self, message: str, *, site: str, epoch: int, batch: int) -> None:
        super().__init__(message)
        self.site, self.epoch, self.batch = site, epoch, batch


def check_sizes(least: int = 1, **sizes: int) -> None:
    """Raise :class:`ConfigError` unless each is a whole number, ``least`` or more."""
    for name, value in sizes.items():
        if not hasattr(value, "__index__") or value < least:
            raise ConfigError(f"{name} must be a whole number of {least} or more, got {value!r}")


def check_positive(**values: float) -> None:
    """Raise :class:`ConfigError` unless each is positive, and finite as float32."""
    low, high = FLOAT32
    for name, value in values.items():
        if not low <= value <= high:
            raise ConfigError(f"{name} must be positive and finite, got {value!r}")


def check_seed(seed: int) -> None:
    """Raise :class:`ConfigError` unless numpy and torch take it."""
    if not hasattr(seed, "__index__") or not 0 <= seed < SEEDS:
        raise ConfigError(f"seed must be a whole number from 0 to 2⁶³ − 1, got {seed!r}")

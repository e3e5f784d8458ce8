"""Reproducible randomness that leaves the caller's random state alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def isolated(seed: int | None) -> Iterator[None]:
    """Run with torch seeded by ``seed``, on every device, and put the caller's random state back afterwards.

    ``None`` uses (and advances) the random state in force.
    """
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield

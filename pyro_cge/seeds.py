"""Reproducible randomness that leaves the caller's random state alone."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def isolated(seed: int | None, stream: str = "") -> Iterator[None]:
    """Run with torch seeded by ``seed``, on every device, and put the caller's random state back afterwards.

    ``None`` uses (and advances) the random state in force. Streams of different names draw different numbers from one
    seed: a simulator and a posterior of seed 0 must not share their noise.
    """
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(mix(seed, stream))
        yield


def mix(seed: int, stream: str) -> int:
    """The seed of a named stream of ``seed``: what :func:`isolated` seeds torch with."""
    return seed ^ zlib.crc32(stream.encode())

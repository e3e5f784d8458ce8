"""Random numbers of K members: each draws what its own single run would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...seeds import mix


@dataclass(frozen=True)
class Draw:
    """One call of a random number generator: ``normal_``, ``uniform_`` or ``exponential_``, and what it fills."""

    kind: str
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def __call__(self, generator: torch.Generator | None = None) -> Tensor:
        empty = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        return getattr(empty, self.kind)(generator=generator)


class MemberNoise:
    """Random numbers of K members: each draws what its own single run would, in a stream of its own seed."""

    def __init__(self, seeds: Sequence[int], stream: str, device: torch.device) -> None:
        mixed = [mix(seed, stream) for seed in seeds]
        self.cpu = [torch.Generator().manual_seed(seed) for seed in mixed]
        on_cpu = device.type == "cpu"
        self.own = self.cpu if on_cpu else [torch.Generator(device).manual_seed(seed) for seed in mixed]

    def orders(self, n: int) -> Tensor:
        """A permutation of the profiles for each member ``[K, n]``."""
        return torch.stack([torch.randperm(n, generator=generator) for generator in self.cpu])

    def draw(self, tapes: Sequence[Sequence[Draw]], shapes: Sequence[Draw]) -> list[Tensor]:
        """Each member's draws ``[K, ...]``, zeros where ``shapes`` (of a padded batch) go beyond its own."""
        drawn = [torch.zeros(len(self.own), *s.shape, dtype=s.dtype, device=s.device) for s in shapes]
        for k, (generator, tape) in enumerate(zip(self.own, tapes, strict=True)):
            for all_members, draw in zip(drawn, tape, strict=True):
                row = all_members[k]
                if row.shape == draw.shape:
                    getattr(row, draw.kind)(generator=generator)
                else:
                    row[tuple(map(slice, draw.shape))] = draw(generator)
        return drawn

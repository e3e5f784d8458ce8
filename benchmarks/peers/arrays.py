"""The arrays every contender is given: profiles, environments and their features; continuous, and counts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

import pyro_cge as cge


@dataclass(frozen=True)
class Arrays:
    """One part of the data, as plain tensors: ``x [n, g]``, ``env [n]``, ``features [n, f]``, ``counts [n, g]``.

    ``data`` are the same numbers for us, environments described by their features.
    """

    data: cge.EnvironmentData
    counts: Tensor

    @property
    def x(self) -> Tensor:
        return self.data.x

    @property
    def env(self) -> Tensor:
        return self.data.env

    @property
    def features(self) -> Tensor:
        assert self.data.env_features is not None
        return self.data.env_features.index_select(0, self.data.env)

    @property
    def n_envs(self) -> int:
        return self.data.n_envs

    @property
    def named(self) -> cge.EnvironmentData:
        """Environments known by name only."""
        return replace(self.data, env_features=None)

    @property
    def counted(self) -> cge.EnvironmentData:
        return replace(self.named, x=self.counts)


def simulated(n: int, held_out: int, g: int, environments: int, f: int, seed: int) -> tuple[Arrays, Arrays]:
    """Ten causes, of which each environment shifts two; genes are linear in them, with as much noise as signal.

    Counts are Poisson around ``40 softmax``-like rates of the same signal. Both parts have the same environments.
    """
    rng = np.random.default_rng(seed)
    d, total = 10, n + held_out
    features = (rng.random((environments, f)) < 0.1).astype(np.float32)
    shift = np.zeros((environments, d))
    for row in shift[1:]:
        row[rng.choice(d, 2, replace=False)] = rng.choice([-3.0, 3.0], 2)
    env = rng.permutation(np.arange(total) % environments)
    signal = (rng.normal(size=(total, d)) + shift[env]) @ rng.normal(size=(d, g)) / d**0.5
    x = signal + rng.normal(size=(total, g)) * signal.std()
    x = (x - x[:n].mean(0)) / x[:n].std(0)
    counts = rng.poisson(40 * np.exp(0.3 * signal - 0.5 * (0.3 * signal.std()) ** 2))
    data = cge.EnvironmentData(
        x=torch.from_numpy(x.astype(np.float32)),
        env=torch.from_numpy(env),
        gene_names=[f"g{k}" for k in range(g)],
        env_names=[f"e{e}" for e in range(environments)],
        env_features=torch.from_numpy(features),
        control=[0],
    )
    whole = torch.from_numpy(counts.astype(np.float32))
    return Arrays(data.rows(np.arange(n)), whole[:n]), Arrays(data.rows(np.arange(n, total)), whole[n:])

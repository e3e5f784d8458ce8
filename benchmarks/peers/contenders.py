"""Ours, and hand-written torch: what can be timed and judged, each behind the same four functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from arrays import Arrays
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_cge as cge
from pyro_cge.metrics import pearson_per_profile
from pyro_cge.models.networks import mlp
from pyro_cge.presets import PRESETS
from pyro_cge.train.loop import evaluate

LR = 1e-3  # everyone's


@dataclass(frozen=True)
class Size:
    """Width of every contender."""

    hidden: int = 500
    d: int = 200


@dataclass
class Contender:
    """``tensors(size)`` and ``loader(size)`` give an epoch of batches, ``step`` trains on one, ``held_out`` judges.

    ``match`` names the one of ours with the same architecture.
    """

    name: str
    match: str
    tensors: Callable[[int], Iterator[Any]]
    loader: Callable[[int], Iterator[Any]]
    step: Callable[[Any], None]
    held_out: Callable[[], dict[str, float]]


def of_tensors(*tensors: Tensor) -> tuple[Callable[[int], Iterator[Any]], Callable[[int], Iterator[Any]]]:
    """An epoch in shuffled batches: rows taken from tensors, or through torch's own loader, profile by profile."""

    def rows(size: int) -> Iterator[Any]:
        for index in torch.randperm(len(tensors[0])).split(size):
            yield tuple(t[index] for t in tensors)

    def loaded(size: int) -> Iterator[Any]:
        return iter(DataLoader(TensorDataset(*tensors), batch_size=size, shuffle=True))

    return rows, loaded


def scores(x: Tensor, reconstruction: Tensor, elbo: float) -> dict[str, float]:
    """Mean squared error, mean per-profile r, and the ELBO (nats a profile)."""
    r = float(np.nanmean(pearson_per_profile(x, reconstruction)))
    return {"mse": float((x - reconstruction).square().mean()), "r": r, "elbo": elbo}


def ours(preset: str, train: Arrays, held: Arrays, size: Size, seed: int) -> Contender:
    """A preset, trained as ``fit`` does: one fused Adam, gradient norm clipped. ``fit`` has no other loader."""
    name, _, likelihood = preset.partition(", ")
    named = name in ("sams_vae", "svae_plus")
    part = (
        (train.counted, held.counted) if likelihood else (train.named, held.named) if named else (train.data, held.data)
    )
    options: dict[str, Any] = {"likelihood": "negative_binomial"} if likelihood else {}
    if name == "environment":
        options["moves"] = "loc"
    with cge.isolated(seed):
        model, guide = PRESETS[name.removesuffix("_vae")](part[0], size.d, hidden=(size.hidden,), **options)
    parameters = [*model.parameters(), *guide.parameters()]
    adam, elbo = torch.optim.Adam(parameters, lr=LR, fused=True), cge.Elbo()

    def step(batch: Any) -> None:
        loss = elbo(model, guide, batch)["loss"]
        adam.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)
        if not (loss.detach() + norm).isfinite():
            raise RuntimeError("not finite")
        if norm > 100.0:
            nn.utils.clip_grads_with_norm_(parameters, 100.0, norm, foreach=True)
        adam.step()

    def batches(count: int) -> Iterator[Any]:
        return part[0].batches(count, shuffle=True)

    def held_out() -> dict[str, float]:
        batch = part[1].batch()
        with torch.no_grad():
            mean = model.mean(guide.encode(batch)[0], batch)
        return scores(part[1].x, mean, -evaluate(model, guide, part[1])["loss"])

    return Contender(f"ours: {preset}", preset, batches, batches, step, held_out)


class PaperVAE(nn.Module):
    """The paper's basic VAE: 978-500-200-500-978, summed squared error, KL from the log variance."""

    def __init__(self, g: int, size: Size) -> None:
        super().__init__()
        self.hidden, self.mean, self.log_var = mlp([g, size.hidden]), *(mlp([size.hidden, size.d]) for _ in range(2))
        self.decoder = mlp([size.d, size.hidden, g])

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.relu(self.hidden(x))
        return self.mean(h), self.log_var(h)

    def forward(self, x: Tensor) -> Tensor:
        mean, log_var = self.encode(x)
        z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
        kl = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum()
        return (x - self.decoder(z)).square().sum() + kl


def handwritten(train: Arrays, held: Arrays, size: Size, seed: int, *, fused: bool) -> Contender:
    """A tensor-batch loop around the paper's architecture, with torch's default Adam or the fused one."""
    torch.manual_seed(seed)
    net = PaperVAE(train.x.shape[1], size)
    adam = torch.optim.Adam(net.parameters(), lr=LR, fused=fused)

    def step(batch: tuple[Tensor]) -> None:
        loss = net(batch[0])
        adam.zero_grad()
        loss.backward()
        adam.step()

    def held_out() -> dict[str, float]:
        with torch.no_grad():
            return scores(held.x, net.decoder(net.encode(held.x)[0]), squared_error_elbo(float(net(held.x)), held.x))

    tensors, loader = of_tensors(train.x)
    name = "hand-written torch" + (", fused Adam" if fused else "")
    return Contender(name, "basic", tensors, loader, step, held_out)


def squared_error_elbo(loss: float, x: Tensor) -> float:
    """The bound per profile of which squared error + KL is the negative, up to a constant: noise of variance ½."""
    return -loss / len(x) - 0.5 * math.log(math.pi) * x.shape[1]


def no_model(train: Arrays, held: Arrays) -> dict[str, float]:
    """The baseline: each gene's training mean and variance."""
    mean, sd = train.x.mean(0), train.x.std(0)
    law = torch.distributions.Normal(mean, sd)
    return scores(held.x, cast(Tensor, mean.expand_as(held.x)), float(law.log_prob(held.x).sum(1).mean()))

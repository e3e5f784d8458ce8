"""The paper's basic and Environment VAE as straight-line torch, with the parts that may explode switched one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from heavy import HOURS_AND_DOSE, Parts
from torch import Tensor, nn

from pyro_cge.models.networks import mlp, soft_clamp

EXPLODED = 10.0  # times the loss of predicting zero with the posterior at the prior


@dataclass(frozen=True)
class Switches:
    """What a run does; the defaults are the original's: nothing is bounded, clipped or standardised.

    ``features`` are what the environment model knows: fingerprints, and hours and dose ("raw", "standardised", or left
    out). ``bound`` holds log variances: not at all, in [−8, 4] by force, or smoothly, as pyro_cge does.
    """

    model: Literal["basic", "environment"] = "basic"
    features: Literal["fingerprint", "raw", "standardised"] = "fingerprint"
    bound: Literal["none", "clamp", "soft"] = "none"
    clip: float = math.inf
    standardise_genes: bool = False
    student: bool = False


class HandWritten(nn.Module):
    """Encoder ``x (, e) → (μ, log σ²)``, decoder ``z → x``, and for environments a softmax-sparse ``e → (μ_e, log σ_e²)``.

    The loss is a sum over the batch: squared errors and ``½ Σ [log σ_e² − log σ² − 1 + ((μ − μ_e)² + σ²) / σ_e²]``.
    """

    def __init__(self, switches: Switches, g: int, f: int, hidden: int, d: int) -> None:
        super().__init__()
        self.switches, self.df = switches, 2.0
        environment = switches.model == "environment"
        self.encoder = mlp([g + f * environment, hidden, 2 * d])
        self.decoder = mlp([d, hidden, g])
        self.loc, self.log_var = (mlp([f, hidden, d]) if environment else None for _ in range(2))

    def bounded(self, log_var: Tensor) -> Tensor:
        if self.switches.bound == "clamp":
            return log_var.clamp(-8.0, 4.0)
        return log_var if self.switches.bound == "none" else soft_clamp(log_var, -14.0, 6.0)

    def misfit(self, error: Tensor) -> Tensor:
        if self.switches.student:
            return (self.df + 1) * torch.log1p(error.square() / self.df)
        return error.square()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        mean, log_var = self.encoder(x if self.loc is None else torch.cat([x, e], 1)).chunk(2, -1)
        log_var = self.bounded(log_var)
        z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
        prior_mean, prior_log_var = torch.zeros_like(mean), torch.zeros_like(mean)
        if self.loc is not None and self.log_var is not None:
            prior_mean, prior_log_var = (v * torch.softmax(v.abs(), -1) for v in (self.loc(e), self.log_var(e)))
            prior_log_var = self.bounded(prior_log_var)
        ratio = ((mean - prior_mean).square() + log_var.exp()) / prior_log_var.exp()
        kl = 0.5 * (prior_log_var - log_var - 1 + ratio).sum()
        return self.misfit(x - self.decoder(z)).sum() + kl


def prepared(data: Parts, switches: Switches) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Profiles and their environments' features, of the training and of the held-out part."""
    profiles, features = [part.x for part in data], [part.env_features[part.env] for part in data]  # type: ignore[index]
    if switches.standardise_genes:
        mean, sd = profiles[0].mean(0), profiles[0].std(0)
        profiles = [(x - mean) / sd for x in profiles]
    if switches.features == "fingerprint":
        features = [e[:, : HOURS_AND_DOSE.start] for e in features]
    elif switches.features == "standardised":
        mean, sd = features[0].mean(0), features[0].std(0).clamp_min(1e-3)
        features = [
            torch.cat([e[:, : HOURS_AND_DOSE.start], ((e - mean) / sd)[:, HOURS_AND_DOSE]], 1) for e in features
        ]
    return profiles, features


def train(
    data: Parts, switches: Switches, seed: int, *, epochs: int, batch: int, lr: float, hidden: int, d: int
) -> dict[str, Any]:
    """Did it explode, and in which epoch? Losses are divided by that of predicting zero.

    Exploded means not finite, or ``EXPLODED`` in the end. ``worst`` is the largest mean loss of an epoch: single batches
    may spike and training recover.
    """
    profiles, features = prepared(data, switches)
    torch.manual_seed(seed)
    net = HandWritten(switches, profiles[0].shape[1], features[0].shape[1], hidden, d)
    adam = torch.optim.Adam(net.parameters(), lr=lr, fused=True)
    trivial = [float(net.misfit(x).sum()) for x in profiles]
    held_out, worst = [], 0.0
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(profiles[0])).split(batch):
            loss = net(profiles[0][rows], features[0][rows])
            adam.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), switches.clip, foreach=True)
            adam.step()
            total += float(loss.detach())
        with torch.no_grad():
            held_out.append(float(net(profiles[1], features[1])) / trivial[1])
        worst = max(worst, total / trivial[0] if math.isfinite(total) else math.inf)
        if not (math.isfinite(worst) and math.isfinite(held_out[-1])):
            return {
                "exploded": True,
                "epoch": epoch + 1,
                "worst": math.inf,
                "last": math.inf,
                "best": np.nanmin(held_out),
            }
    worst, last = max(worst, *held_out), held_out[-1]
    return {"exploded": last > EXPLODED, "epoch": None, "worst": worst, "last": last, "best": min(held_out)}

"""Time of one training step of the Environment VAE against hand-written torch doing the same mathematics.

Both sides take the same batches, use one fused Adam, clip the gradient norm, and are timed in turn within one run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyro
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from contract import finish, options

import pyro_cge as cge
from pyro_cge.data.environment import Batch

SIZES = {"l1000": (978, 500, 200, 128, 2048, 1074), "tiny": (10, 5, 2, 20, 8, 10)}  # g, hidden, d, batch, f, E


class HandWritten(nn.Module):
    """The same model as straight-line torch: no Pyro, no sites, no plates."""

    def __init__(self, g: int, hidden: int, d: int, f: int) -> None:
        super().__init__()
        self.encoder, self.head = nn.Linear(g, hidden), nn.Linear(hidden, 2 * d)
        self.concat = nn.Linear(f, hidden)
        self.prior = nn.Sequential(nn.Linear(f, hidden), nn.ReLU(), nn.Linear(hidden, 2 * d))
        self.decoder = nn.Sequential(nn.Linear(d, hidden), nn.ReLU(), nn.Linear(hidden, g))
        self.gene_scale = nn.Parameter(torch.zeros(g))

    @staticmethod
    def clamp(raw: Tensor, low: float, high: float) -> Tensor:
        middle, half = (low + high) / 2, (high - low) / 2
        return middle + half * torch.tanh((raw - middle) / half)

    def forward(self, batch: Batch, temperature: float = 0.5) -> Tensor:
        x, env, features = batch.x, batch.env, batch.env_features
        raw_loc, raw_scale = (self.prior(features) * ~batch.is_control.unsqueeze(-1)).chunk(2, -1)
        raw_scale = self.clamp(raw_scale, -3.0, 3.0)
        prior_loc = (raw_loc * torch.softmax(raw_loc.abs() / temperature, -1)).index_select(0, env)
        prior_log_scale = (raw_scale * torch.softmax(raw_scale.abs() / temperature, -1)).index_select(0, env)
        hidden = torch.relu(self.encoder(x) + self.concat(features).index_select(0, env))
        loc, log_scale = self.head(hidden).chunk(2, -1)
        log_scale = self.clamp(log_scale, -7.0, 3.0)
        scale = log_scale.exp()
        z = loc + scale * torch.randn_like(loc)
        ratio = (scale / prior_log_scale.exp()) ** 2
        shift = ((loc - prior_loc) / prior_log_scale.exp()) ** 2
        kl = 0.5 * (ratio + shift - 1 - ratio.log()).sum()
        gene_log_scale = self.clamp(self.gene_scale, -6.0, 4.0)
        error = (x - self.decoder(z)) / gene_log_scale.exp()
        fit = (0.5 * error**2 + gene_log_scale + 0.9189385332).sum()
        return (kl + fit) / len(x)


def stepper(loss: Callable[[Batch], Tensor], parameters: list[nn.Parameter]) -> Callable[[Batch], None]:
    adam = torch.optim.Adam(parameters, lr=1e-4, fused=True)

    def step(batch: Batch) -> None:
        value = loss(batch)
        adam.zero_grad(set_to_none=True)
        value.backward()
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)
        if norm > 100.0:
            nn.utils.clip_grads_with_norm_(parameters, 100.0, norm, foreach=True)
        adam.step()

    return step


def ratio(size: str, seconds: float, device: str) -> dict[str, float]:
    """Median over rounds of (our time / hand-written time), both medians in ms."""
    g, hidden, d, batch_size, f, n_envs = SIZES[size]
    torch.manual_seed(0)
    n = batch_size * 20
    data = cge.EnvironmentData(
        x=torch.randn(n, g),
        env=torch.randint(n_envs, (n,)),
        gene_names=[f"g{i}" for i in range(g)],
        env_names=[f"e{i}" for i in range(n_envs)],
        env_features=(torch.rand(n_envs, f) < 0.05).float(),
        control=[0],
    ).to(device)
    batches = list(data.batches(batch_size))
    model, guide = cge.environment_vae(data, d, hidden=(hidden,), conditioning="concat")
    model.to(device), guide.to(device)
    elbo = cge.Elbo()
    ours = stepper(lambda b: elbo(model, guide, b)["loss"], [*model.parameters(), *guide.parameters()])
    hand_net = HandWritten(g, hidden, d, f).to(device)
    hand = stepper(hand_net, list(hand_net.parameters()))
    n_ours = sum(p.numel() for m in (model, guide) for p in m.parameters())
    n_hand = sum(p.numel() for p in hand_net.parameters())
    # Concatenation written as two linear maps has one redundant bias.
    assert abs(n_ours - n_hand) <= hidden, (n_ours, n_hand)
    times: dict[str, list[float]] = {"ours": [], "hand": []}

    def timed(step: Callable[[Batch], None], count: int) -> float:
        start = time.perf_counter()
        for i in range(count):
            step(batches[i % len(batches)])
        if device != "cpu":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / count * 1e3

    with pyro.validation_enabled(False):
        per_step = min(timed(hand, 5) for _ in range(3))
        timed(ours, 15)
        count = max(3, int(seconds * 1e3 / 40 / per_step / 2.5))
        for _ in range(40):
            times["ours"].append(timed(ours, count))
            times["hand"].append(timed(hand, count))
    paired = np.array(times["ours"]) / np.array(times["hand"])
    return {
        "ours_ms": float(np.median(times["ours"])),
        "hand_ms": float(np.median(times["hand"])),
        "ratio": float(np.median(paired)),
        "low": float(np.quantile(paired, 0.25)),
        "high": float(np.quantile(paired, 0.75)),
    }


def main() -> None:
    parser = options(__doc__ or "", seeds=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    seconds = 8.0 if arguments.quick else 60.0
    results = {size: ratio(size, seconds, arguments.device) for size in SIZES}
    print(f"{'size':<8}{'ours ms':>10}{'torch ms':>10}{'ratio':>8}   quartiles")
    for size, r in results.items():
        print(f"{size:<8}{r['ours_ms']:>10.3f}{r['hand_ms']:>10.3f}{r['ratio']:>8.3f}   {r['low']:.3f}-{r['high']:.3f}")
    figures = {f"ratio_{size}": round(r["ratio"], 3) for size, r in results.items()}
    finish(arguments.out or Path(__file__).parent / "results", figures, arguments)


if __name__ == "__main__":
    main()

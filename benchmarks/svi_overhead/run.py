"""Time of one training step of our models against hand-written torch, and against the paper's own code.

Hand-written torch does the same mathematics in straight lines, takes the same batches, one fused Adam, and clips the
gradient norm. Against the paper's code (``--paper``, the root of a checkout; always: a loop of its architecture with
torch's default Adam) a step begins with taking the batch's rows. Contenders take blocks of steps in turn; ratios are of
neighbours in time, in processor time of one thread (on a GPU, of the clock).
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "peers"))
from adapters import Missing, paper
from arrays import simulated
from contenders import Contender, Size, handwritten, ours
from contract import finish, options

import pyro_cge as cge
from pyro_cge.data.environment import Batch

SIZES = {"l1000": (978, 500, 200, 128, 2048, 1074), "tiny": (10, 5, 2, 20, 8, 10)}  # g, hidden, d, batch, f, E
BLOCK = 0.06  # seconds a contender runs before the next one's turn
Step = Callable[[], None]


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


def stepper(loss: Callable[[Batch], Tensor], parameters: list[nn.Parameter], batches: list[Batch]) -> Step:
    adam = torch.optim.Adam(parameters, lr=1e-4, fused=True)
    turn = itertools.cycle(batches)

    def step() -> None:
        value = loss(next(turn))
        adam.zero_grad(set_to_none=True)
        value.backward()
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)
        if not norm <= 100.0:
            nn.utils.clip_grads_with_norm_(parameters, 100.0, norm, foreach=True)
        adam.step()

    return step


def same_mathematics(size: str, device: str) -> dict[str, Step]:
    """Our Environment VAE and the hand-written one, on the same batches."""
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
    hand = HandWritten(g, hidden, d, f).to(device)
    parameters = [*model.parameters(), *guide.parameters()], list(hand.parameters())
    n_ours, n_hand = (sum(p.numel() for p in side) for side in parameters)
    # Concatenation written as two linear maps has one redundant bias.
    assert abs(n_ours - n_hand) <= hidden, (n_ours, n_hand)
    return {
        "ours": stepper(lambda batch: elbo(model, guide, batch)["loss"], parameters[0], batches),
        "theirs": stepper(hand, parameters[1], batches),
    }


def with_rows(contender: Contender, size: int) -> Step:
    """A step that begins with taking the rows of the next batch, in a new order every epoch."""

    def forever() -> Iterator[Any]:
        while True:
            yield from contender.tensors(size)

    batches = forever()
    return lambda: contender.step(next(batches))


def against_the_paper(checkout: Path | None) -> dict[str, dict[str, Step]]:
    """Ours and the paper's code, by architecture; a loop of its basic VAE with torch's default Adam in any case."""
    train, held = simulated(2560, 16, 978, 65, 256, 0)
    theirs = [handwritten(train, held, Size(), 0, fused=False)]
    if checkout is not None:
        try:
            theirs += paper(checkout, train, held, Size(), 0)
        except Missing as error:
            print(f"--paper cannot be run: {error}")
    mine = {match: ours(match, train, held, Size(), 0) for match in {peer.match for peer in theirs}}
    names = {"hand-written torch": "restated", "paper's code: basic": "paper", "paper's code: environment": "paper_env"}
    return {
        names[peer.name]: {"ours": with_rows(mine[peer.match], 128), "theirs": with_rows(peer, 128)} for peer in theirs
    }


def paired(steps: Mapping[str, Step], rounds: int, device: str) -> dict[str, float]:
    """Milliseconds a step of both sides (medians), and the median and quartiles of their ratio, round by round."""
    clock = time.process_time if device == "cpu" else time.perf_counter

    def block(step: Step, count: int) -> float:
        start = clock()
        for _ in range(count):
            step()
        if device != "cpu":
            torch.cuda.synchronize()
        return (clock() - start) / count * 1e3

    for step in steps.values():
        block(step, 15)
    count = max(2, round(1e3 * BLOCK / min(block(step, 3) for step in steps.values())))
    times = np.array([[block(step, count) for step in steps.values()] for _ in range(rounds)])
    ratio = times[:, 0] / times[:, 1]
    low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75])
    mine, other = np.median(times, axis=0)
    return {"ours_ms": mine, "theirs_ms": other, "ratio": middle, "low": low, "high": high}


def main() -> None:
    parser = options(__doc__ or "", seeds=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--paper", type=Path, default=None, metavar="PATH", help="root of a checkout of the paper's code"
    )
    parser.add_argument("--rounds", type=int, default=150, help="of blocks taken in turn, in each comparison")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 20 if arguments.quick else arguments.rounds
    results = {}
    with pyro.validation_enabled(False):
        for size in SIZES:
            results[size] = paired(same_mathematics(size, arguments.device), rounds, arguments.device)
        if arguments.device == "cpu":
            for name, steps in against_the_paper(arguments.paper).items():
                results[name] = paired(steps, rounds, "cpu")
    print(f"{'against':<10}{'ours ms':>10}{'theirs ms':>10}{'ratio':>8}   quartiles")
    for name, r in results.items():
        print(
            f"{name:<10}{r['ours_ms']:>10.3f}{r['theirs_ms']:>10.3f}{r['ratio']:>8.3f}   {r['low']:.3f}-{r['high']:.3f}"
        )
    # Against the paper's code speed is the figure: our samples a second over theirs.
    figures = {f"ratio_{name}": round(float(r["ratio"]), 3) for name, r in results.items() if name in SIZES}
    figures |= {
        f"samples_per_s_{name}": round(float(1 / r["ratio"]), 3) for name, r in results.items() if name not in SIZES
    }
    finish(arguments.out or Path(__file__).parent / "results", figures, arguments)


if __name__ == "__main__":
    main()

"""What test_distributed.py looks at: each scenario run by two processes, connected as ``torchrun`` connects them.

``python two_processes.py FOLDER`` leaves what process r returned (or raised) from a scenario in ``FOLDER/name.r.pt``.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib
import matplotlib.pyplot
import torch
import torch._dynamo  # optimisers import it: once here, not in every process
from pyro.poutine.messenger import Messenger
from torch import nn

import pyro_cge as cge
from pyro_cge.config import RunConfig
from pyro_cge.objectives.handlers import in_cells, is_latent
from pyro_cge.runs import run
from pyro_cge.train.distributed import joined

PATIENCE = 240  # seconds until processes that wait for each other for ever are ended
OPTIONS = {"epochs": 3, "batch_size": 10, "lr": 1e-2, "kl_warmup": 2, "progress": False}


def make_data(n=61, n_envs=7):
    generator = torch.Generator().manual_seed(3)
    return cge.EnvironmentData(
        x=torch.randn(n, 8, generator=generator),
        env=torch.arange(n) % n_envs,
        gene_names=[f"gene {k}" for k in range(8)],
        env_names=[f"env {e}" for e in range(n_envs)],
        env_features=torch.randn(n_envs, 5, generator=generator),
        control=[0],
    )


class Fixed(Messenger):
    """Latent sites take their mean, and in the cells plate a deviation that belongs to the profile."""

    def __init__(self, index):
        super().__init__()
        self.deviation = torch.randn(200, 50, generator=torch.Generator().manual_seed(5))[index]

    def _pyro_sample(self, msg):
        if not is_latent(msg) or msg["done"]:
            return
        law = msg["fn"]
        width = law.event_shape[-1] if law.event_shape else 1
        deviation = self.deviation[:, :width] if in_cells(msg) else 0.0
        try:
            msg["value"] = law.mean + 0.3 * deviation
        except NotImplementedError:  # a flow
            msg["value"] = deviation
        msg["done"] = True


class FixedNoise:
    """An objective under :class:`Fixed` noise."""

    def __init__(self, base=None):
        self.base = cge.Elbo() if base is None else base

    def __repr__(self):
        return f"FixedNoise({self.base!r})"

    def __call__(self, model, guide, batch, *, warmup=1.0):
        with Fixed(batch.index):
            return self.base(model, guide, batch, warmup=warmup)


class Spied:
    """The ELBO, noting the rows it is given in training and the next random number at each."""

    def __init__(self):
        self.rows, self.noise = [], []

    def __repr__(self):
        return "Spied"

    def __call__(self, model, guide, batch, *, warmup=1.0):
        if torch.is_grad_enabled():
            self.rows.append(batch.index.clone())
            with torch.random.fork_rng():
                self.noise.append(torch.rand(()).item())
        return cge.Elbo()(model, guide, batch, warmup=warmup)


def fitted(data, weights=0, **options):
    """Weights and history of a fit."""
    with cge.isolated(weights):
        model, guide = cge.sams_vae(data, 3, hidden=(8,))
    fit = cge.fit(model, guide, data, **OPTIONS | options)
    found = {f"{k}.{n}": v for k, m in (("model", model), ("guide", guide)) for n, v in m.state_dict().items()}
    return found, fit.history.drop(columns="seconds").to_dict("list")


def same(**options):
    data = make_data()
    options = {"objective": FixedNoise(), "optimizer": partial(torch.optim.SGD, lr=3e-3), "clip": 5.0} | options
    return fitted(data.rows(range(41)), validation=data.rows(range(41, 61)), **options)


def spied(rank=0):
    """The weights that come in differ between processes: the first one's count."""
    objective = Spied()
    return *fitted(make_data(), weights=rank, objective=objective, validation=None), objective.rows, objective.noise


def overflowing():
    data = make_data(20)
    x = data.x.clone()
    x[7, 2] = 3e38
    return fitted(replace(data, x=x), standardize=False, validation=None, batch_size=20)


def failing(rank):
    def on_epoch(epoch):
        if rank == 1 and epoch == 1:
            raise KeyError("of my own")

    return fitted(make_data(), on_epoch=on_epoch)


def unlike(rank):
    return fitted(make_data(), lr=1e-2 + rank)


def resumed(rank, folder):
    path = folder / ("first" if rank == 0 else "elsewhere") / "checkpoint.safetensors"
    path.parent.mkdir()
    fitted(make_data(), epochs=1, checkpoint=path)
    return fitted(make_data(), epochs=2, checkpoint=path, resume=True), fitted(make_data(), epochs=2), path.exists()


def averaged(rank):
    """Gradients of parameters that both, one and none of the processes used; rank 0 has one profile, rank 1 three."""
    both, second, none = parameters = [nn.Parameter(torch.ones(2, 3)) for _ in range(3)]
    both.grad = torch.full((2, 3), 4.0 + 4 * rank)
    second.grad = torch.arange(6.0).view(2, 3) if rank else None
    with joined() as world:
        loss = world.average(parameters, torch.tensor(8.0 * rank), 1 + 2 * rank)
        idle = world.average(parameters[:1], None if rank else torch.tensor(3.0), 1 - rank)
    return [p.grad for p in (both, second, none)], loss, idle


def folders(rank, folder):
    config = RunConfig(latents=3, hidden=(8,), epochs=2, batch_size=16)
    rows = []
    result, scores = run(config, make_data(), folder / "run", progress=False, on_record=rows.append)
    return {k: v.clone() for k, v in result.model.state_dict().items()}, scores, len(rows)


def again(folder):
    """The folder holds the run of :func:`folders` already."""
    return run(RunConfig(latents=3, hidden=(8,), epochs=2, batch_size=16), make_data(), folder / "run", progress=False)


def process(rank, port, name, scenario, folder):
    connection = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({k: str(v) for k, v in connection.items()}, MASTER_ADDR="127.0.0.1", TORCHELASTIC_RUN_ID="test")
    torch.set_num_threads(1)
    matplotlib.use("Agg")
    try:
        result = scenario(rank)
    except Exception as error:
        result = {"error": type(error).__name__, "message": str(error), "site": getattr(error, "site", None)}
    torch.save(result, folder / f"{name}.{rank}.pt")


def main(folder):
    scenarios = {
        "same": lambda rank: same(),
        "spied": spied,
        "overflowing": lambda rank: overflowing(),
        "failing": failing,
        "unlike": unlike,
        "resumed": lambda rank: resumed(rank, folder),
        "averaged": averaged,
        "folders": lambda rank: folders(rank, folder),
        "again": lambda rank: again(folder),
    }
    forks = multiprocessing.get_context("fork")  # after the imports, before torch does anything
    for name, scenario in scenarios.items():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes = [forks.Process(target=process, args=(rank, port, name, scenario, folder)) for rank in range(2)]
        for one in processes:
            one.start()
        for one in processes:
            one.join(PATIENCE)
            if one.is_alive():
                one.kill()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

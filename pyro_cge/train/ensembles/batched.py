"""The loop over epochs for K members at once: what :func:`~pyro_cge.train.fit.fit` does for one."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...data.environment import EnvironmentData
from ...errors import NonFiniteLossError
from ...models.cell import CellModel
from ..loop import EVALUATION_BATCH, Objective, blame
from ..progress import EpochProgress
from ..schedule import Schedule, rate_factor
from ..settings import kl_weight
from ..state import TrainingState
from .noise import MemberNoise
from .program import Pair, Program, member_batch
from .stack import Stack

OF_TORCH = vars(nn.Module()).keys() | {"_pyro_name"}  # attributes that every module has
FEWER = 0.75  # members that have stopped leave the program when this share of it is left: another size is another trace


@dataclass(eq=False)
class Member:
    """One fit to be: its seed, what is varied, and the parts built for it."""

    seed: int
    varied: dict[str, Any]
    lr: float
    beta: float | None
    pair: Pair
    state: TrainingState
    failure: NonFiniteLossError | None = None


@dataclass(frozen=True)
class BatchedRun:
    """What all members share, and the loop over epochs."""

    train_data: EnvironmentData
    valid: EnvironmentData
    objective: Objective
    epochs: int
    batch_size: int
    schedule: Schedule
    kl_warmup: int
    kl_start: float
    clip: float
    patience: int | None
    on_epoch: Callable[[int, CellModel], None] | None

    def train(self, group: list[Member], device: torch.device, progress: bool | None) -> None:
        """Train members of one shape; each ends with its best weights in its own model and guide."""
        for member in group:
            member.pair.to(device)
        active = sorted(group, key=lambda member: member.lr)  # neighbours share a call of Adam
        stack = Stack([m.pair for m in active], [m.lr for m in active])
        program = Program(active[0].pair, self.objective, stack.trained)
        with ExitStack() as closing:
            closing.callback(_own_weights, group)
            bar = closing.enter_context(EpochProgress(self.epochs, 0, progress))
            for epoch in range(self.epochs):
                started = time.perf_counter()
                if self.on_epoch is not None:
                    for member in active:
                        self.on_epoch(epoch, member.pair.model)
                    program.renew(_structure(active[0].pair), repr(self.objective))
                stack.read_buffers([m.pair for m in active])
                going = [not self._stopped(member) for member in active]
                rows = self._epoch(active, torch.tensor(going, device=device), stack, program, epoch)
                if self.valid.n:
                    held_out = self._evaluate(active, stack, program)
                    rows = [
                        row | {f"valid_{k}": v for k, v in h.items()} for row, h in zip(rows, held_out, strict=True)
                    ]
                seconds = (time.perf_counter() - started) / sum(going)
                done = [k for k, member in enumerate(active) if going[k] and member.failure is None]
                for k in done:
                    active[k].state.record(rows[k] | {"seconds": seconds})
                if done:
                    bar.update({name: float(np.mean([rows[k][name] for k in done])) for name in rows[0]})
                left = [k for k, member in enumerate(active) if not self._stopped(member)]
                if not left:
                    break
                if len(left) <= FEWER * len(active):
                    _own_weights(active)
                    active = [active[k] for k in left]
                    stack.keep(left, [m.pair for m in active])
        for member in group:
            member.state.restore_best()

    def _stopped(self, member: Member) -> bool:
        return member.failure is not None or member.state.exhausted(self.patience, self.kl_warmup)

    def _epoch(
        self, active: list[Member], going: Tensor, stack: Stack, program: Program, epoch: int
    ) -> list[dict[str, float]]:
        """One pass over the training profiles, each member in its own order."""
        data, size, beta = self.train_data, self.batch_size, _betas(active, stack.device)
        noise = MemberNoise([m.seed for m in active], f"epoch {epoch}", stack.device)
        steps = -(-data.n // size)
        warmup = torch.tensor(kl_weight(epoch, self.kl_start, self.kl_warmup), device=stack.device)
        totals: dict[str, Any] = {}
        for number, rows in enumerate(noise.orders(data.n).to(stack.device).split(size, 1)):
            batch, drawn = member_batch(data, rows, program, noise)
            terms, grads, norm = program.step(stack.weights, batch, drawn, warmup, beta)
            wrong = ~(terms["loss"] + norm).isfinite() & going
            if wrong.any():
                for k in wrong.nonzero().flatten().tolist():
                    self._fail(active[k], data, rows[k], epoch, number)
                going = going & ~wrong
            if (norm > self.clip).any():
                factor = torch.where(norm > self.clip, self.clip / (norm + 1e-6), 1.0)
                grads = [g if g is None else g * factor.reshape(-1, *[1] * (g.dim() - 1)) for g in grads]
            stack.step(grads, rate_factor(self.schedule, epoch * steps + number, self.epochs * steps))
            for name, value in {**terms, "grad_norm": norm}.items():
                totals[name] = totals.get(name, 0.0) + value * rows.shape[1]
        means = {("" if k == "grad_norm" else "train_") + k: (v / data.n).tolist() for k, v in totals.items()}
        return [{"epoch": epoch, **{k: v[member] for k, v in means.items()}} for member in range(len(active))]

    @torch.no_grad()
    def _evaluate(self, active: list[Member], stack: Stack, program: Program) -> list[dict[str, float]]:
        noise = MemberNoise([m.seed for m in active], "posterior", stack.device)
        totals: dict[str, Any] = {}
        for batch in self.valid.batches(EVALUATION_BATCH):
            tape = program.tape(len(batch), len(batch.envs), partial(replace, batch))
            drawn = noise.draw([tape] * len(active), tape)
            terms = program.terms(stack.weights, batch, drawn, _betas(active, stack.device))
            for name, value in terms.items():
                totals[name] = totals.get(name, 0.0) + value * len(batch)
        means = {name: (value / self.valid.n).tolist() for name, value in totals.items()}
        return [{name: values[member] for name, values in means.items()} for member in range(len(active))]

    def _fail(self, member: Member, data: EnvironmentData, rows: Tensor, epoch: int, number: int) -> None:
        """End a member with the weights from before this step; the others go on."""
        _own_weights([member])
        site = blame({"model": member.pair.model, "guide": member.pair.guide}, data.batch(rows))
        member.failure = NonFiniteLossError(
            f"the loss is no longer finite at site {site!r}, epoch {epoch}, batch {number}, in the member of seed "
            f"{member.seed}{f' with {member.varied}' if member.varied else ''}. Try a smaller lr or clip, or look for extreme "
            "values in the data.",
            site=site,
            epoch=epoch,
            batch=number,
        )
        warnings.warn(f"{member.failure} It ends here; the other members go on.", RuntimeWarning, stacklevel=2)


def _betas(active: list[Member], device: torch.device) -> Tensor | None:
    return None if active[0].beta is None else torch.tensor([m.beta for m in active], device=device)


def alike(members: list[Member]) -> list[list[Member]]:
    """Members that are one program: the same modules with the same shapes and options, whatever their weights."""
    groups: dict[Any, list[Member]] = {}
    for member in members:
        groups.setdefault(_structure(member.pair), []).append(member)
    return list(groups.values())


def _structure(pair: Pair) -> tuple[Any, ...]:
    plain = str | int | float | bool | list | tuple | dict | None
    shapes = [(name, tuple(value.shape)) for name, value in pair.state_dict().items()]
    options = [
        (path, type(module).__qualname__, name, repr(value))
        for path, module in pair.named_modules()
        for name, value in sorted(vars(module).items())
        if name not in OF_TORCH and isinstance(value, plain)
    ]
    return str(shapes), str(options)


def _own_weights(members: Sequence[Member]) -> None:
    """Weights that were rows of the stack become their modules' own again."""
    for member in members:
        for parameter in member.pair.parameters():
            parameter.data = parameter.data.clone()

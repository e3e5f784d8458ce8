"""Several processes that train one model together, as ``torchrun`` starts them: each takes its part of every batch.

Nothing here is needed, or changes anything, where a process is alone.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..data.environment import Batch
from ..data.profiles import Profiles
from ..errors import ConfigError, PyroCgeError
from .state import TrainingState

Result = TypeVar("Result")
MEETINGS = itertools.count()  # groups that this process has been in


@dataclass(frozen=True)
class World:
    """The processes of a run: this one's number, and how many there are.

    Every process draws the same batches, computes the loss and gradient of its part of each, and takes the mean over
    the batch: for losses that are means over profiles, which ELBOs are, exactly what one process would compute from
    the whole batch and the same noise. Terms that are not sums over profiles (a penalty on a batch's environments, a
    discrepancy, free bits) are means over the parts of what each part says. All processes therefore hold the same
    weights, to the bit, after every step; each draws noise of its own. Each has all data, or reads all of them where
    they are streamed.

    Parameters
    ----------
    rank, size : int
        In ``0 … size − 1``; the first process alone writes files and shows progress.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """This process's own GPU where ``device`` is a GPU without a number and each process may have one."""
        if self.size == 1 or device.type != "cuda" or device.index is not None:
            return device
        own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", self.rank)) % torch.cuda.device_count())
        torch.cuda.set_device(own)
        return own

    # What each process does by itself

    def batches(self, data: Profiles, size: int) -> Iterator[Batch]:
        """Shuffled batches of ``size`` profiles, the same in every process, of which each gets its part.

        The order is drawn as a process alone would draw it; then every process goes on with noise of its own.
        """
        batches = data.batches(size, shuffle=True)
        return batches if self.size == 1 else self.parts(self._in_step(batches))

    def parts(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """This process's part of each batch: contiguous rows, in sizes that differ by one at most."""
        if self.size == 1:
            return batches
        return (
            batch.part(slice(*(len(batch) * r // self.size for r in (self.rank, self.rank + 1)))) for batch in batches
        )

    def _in_step(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """What is random in ``batches`` draws from the state in force at the start, and nothing else does."""
        order = torch.get_rng_state()
        own = hashlib.sha256(f"{torch.initial_seed()} {self.rank}".encode()).digest()
        torch.manual_seed(int.from_bytes(own[:8], "little", signed=True))
        while True:
            noise = torch.get_rng_state()
            torch.set_rng_state(order)
            batch = next(batches, None)
            order = torch.get_rng_state()
            torch.set_rng_state(noise)
            if batch is None:
                return
            yield batch

    def stream(self, name: str) -> str:
        """Name of this process's own stream of random numbers; the first one's are those of a process alone."""
        return name if self.first else f"{name} of process {self.rank}"

    # What they do together

    def average(self, parameters: Sequence[nn.Parameter], loss: Tensor | None, profiles: int) -> Tensor:
        """Replace gradients by their mean over all profiles of the batch, and return that of the loss: one all-reduce.

        ``Σ_r (n_r / n) ∇loss_r``, with ``n_r`` the ``profiles`` of process ``r``. A gradient that no process has stays
        None, as it does in one process, so that optimisers leave its parameter alone.
        """
        if self.size == 1:
            assert loss is not None
            return loss.detach()
        first, sizes = parameters[0], [p.numel() for p in parameters]
        flat = first.new_zeros(sum(sizes) + len(sizes) + 2)
        *slots, used, ends = flat.split([*sizes, len(sizes), 2])
        for i, (slot, parameter) in enumerate(zip(slots, parameters, strict=True)):
            if parameter.grad is not None:
                torch.mul(parameter.grad.flatten(), profiles, out=slot)
                used[i] = 1
        ends[0], ends[1] = (0.0 if loss is None else loss.detach() * profiles), profiles
        with _together():
            dist.all_reduce(flat)
        taking_part = used.tolist()
        flat /= ends[1].clone()
        for slot, parameter, known in zip(slots, parameters, taking_part, strict=True):
            parameter.grad = slot.view_as(parameter) if known else None
        return ends[0]

    def add(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Sums over the processes, name by name."""
        every = self.gather(dict(totals))
        return {name: sum(one.get(name, 0.0) for one in every) for one in every for name in one}

    def gather(self, value: Result) -> list[Result]:
        """Each process's value, in order, on all of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _together():
            dist.all_gather_object(values, value)
        return values

    def once(self, action: Callable[[], Result]) -> Result:
        """What ``action`` returns in the first process, or the error it raises there; the others do not run it."""
        if self.size == 1:
            return action()
        outcome: list[Any] = [None, None]
        error: Exception | None = None
        if self.first:
            try:
                outcome[0] = action()
            except Exception as caught:
                error, outcome[1] = caught, (type(caught) if _plain(caught) else PyroCgeError, str(caught))
        with _together():
            dist.broadcast_object_list(outcome)
        if error is not None:
            raise error
        if outcome[1] is not None:
            kind, message = outcome[1]
            raise kind(message)
        return outcome[0]

    def share(self, state: TrainingState, settings: Mapping[str, Any]) -> None:
        """All go on from the first process's weights, optimiser and history.

        Raises
        ------
        ConfigError
            If processes were started with other settings or data than the first.
        """
        if self.size == 1:
            return
        every = self.gather(dict(settings))
        if others := [(r, k) for r, theirs in enumerate(every) for k in every[0] if theirs.get(k) != every[0][k]]:
            rank, name = others[0]
            raise ConfigError(
                f"process {rank} has {name} = {every[rank].get(name)!r}, the first process {every[0][name]!r}: start all "
                "with the same command and the same data"
            )
        content = self.once(lambda: _written(state))
        if not self.first:
            theirs = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            for name, module in state.modules.items():
                module.load_state_dict(theirs["modules"][name])
            state.optimizer.load_state_dict(theirs["optimizer"])
            state.history, state.best, state.best_epoch = (theirs[k] for k in ("history", "best", "best_epoch"))


ALONE = World()


def first_process() -> bool:
    """Whether this process is alone or the first of those that ``torchrun`` started."""
    return not _launched() or os.environ["RANK"] == "0"


def _launched() -> bool:
    return dist.is_available() and dist.is_torchelastic_launched()


@contextmanager
def joined() -> Iterator[World]:
    """The processes that ``torchrun`` started with this one; :data:`ALONE` where it did not.

    Gloo connects CPUs, and processes that share a GPU; NCCL connects processes with a GPU each. A process group that
    exists already is used and left in place.
    """
    if dist.is_available() and dist.is_initialized():
        yield World(dist.get_rank(), dist.get_world_size())
    elif not _launched():
        yield ALONE
    else:
        gpus = dist.is_nccl_available() and torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        with _together():
            store, rank, size = next(dist.rendezvous("env://"))
            store = dist.PrefixStore(f"pyro_cge {next(MEETINGS)}", store)  # else processes would find the last group's
            dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", store=store, rank=rank, world_size=size)
        try:
            yield World(dist.get_rank(), dist.get_world_size())
        finally:
            dist.destroy_process_group()  # lets go of processes that still wait for this one


@contextmanager
def _together() -> Iterator[None]:
    """What torch raises when a process has gone, as an error of ours."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise PyroCgeError(
            f"another process of this run ended or cannot be reached; its own message says why ({reason})"
        ) from error


def _plain(error: Exception) -> bool:
    """Whether an error is made from its message alone, here and in another process."""
    return isinstance(error, PyroCgeError) and type(error).__init__ in (ValueError.__init__, Exception.__init__)


def _written(state: TrainingState) -> bytes:
    buffer = io.BytesIO()
    content = {
        "modules": {name: dict(module.state_dict()) for name, module in state.modules.items()},
        "optimizer": state.optimizer.state_dict(),
        "history": state.history,
        "best": dict(state.best),
        "best_epoch": state.best_epoch,
    }
    torch.save(content, buffer)
    return buffer.getvalue()

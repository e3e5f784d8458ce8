"""``fit``: minibatch SVI over profiles, with early stopping, checkpoints and a history."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pyro
import torch
from torch import nn

from ..data.environment import EnvironmentData
from ..data.files import clear_leftovers
from ..data.profiles import Profiles
from ..data.standardize import Standardizer
from ..errors import ConfigError, check_seed
from ..guides.amortized import AmortizedGuide
from ..guides.refined import RefinedGuide
from ..models.cell import CellModel
from ..objectives.elbo import Elbo
from ..posterior import Posterior
from ..seeds import isolated
from .compiled import Precision, checked_precision, compiled, in_bf16
from .distributed import joined
from .loop import Objective, evaluate, train_epoch
from .progress import EpochProgress
from .schedule import Schedule, rate_factor
from .settings import check_settings, described, device_of, kl_weight, parts_of
from .state import TrainingState


@dataclass(eq=False)
class Fit:
    """A fitted model: best weights in place, with what is needed to use and to judge it.

    Attributes
    ----------
    model, guide
        The same objects that went in, now trained.
    scaler : Standardizer
        Fitted on the training part; predictions are returned in the data's own units.
    history : DataFrame
        One row an epoch: ``train_*`` and ``valid_*`` terms per profile (nats), ``grad_norm``, ``seconds``.
    best_epoch : int
        Epoch whose weights are in place (the last one where nothing was held out).
    settings : dict
        Every argument of :func:`fit`, for the record.
    train_rows, valid_rows : ndarray
        Row numbers of the data's profiles in each part.
    """

    model: CellModel
    guide: AmortizedGuide
    schema: EnvironmentData
    scaler: Standardizer
    history: pd.DataFrame
    best_epoch: int
    settings: dict[str, Any]
    train_rows: np.ndarray = field(default_factory=lambda: np.empty(0, int))
    valid_rows: np.ndarray = field(default_factory=lambda: np.empty(0, int))

    def posterior(self, data: Profiles, *, refine: int = 0) -> Posterior:
        """Posterior of latents and interventions for ``data`` (in raw units, genes in any order).

        ``refine`` gradient steps improve each profile's posterior beyond what the encoder says
        (:class:`~pyro_cge.guides.refined.RefinedGuide`).
        """
        guide = RefinedGuide(self.guide, steps=refine) if refine else self.guide
        return Posterior(self.model, cast(AmortizedGuide, guide), data, self.scaler, schema=self.schema)


def fit(
    model: CellModel,
    guide: AmortizedGuide,
    data: Profiles,
    *,
    objective: Objective | None = None,
    epochs: int = 200,
    batch_size: int = 128,
    lr: float = 1e-3,
    schedule: Schedule = None,
    kl_warmup: int = 10,
    kl_start: float = 0.0,
    clip: float = 100.0,
    validation: float | Profiles | None = 0.1,
    patience: int | None = 30,
    standardize: bool = True,
    seed: int = 0,
    device: str | torch.device | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    on_epoch: Callable[[int], None] | None = None,
    on_record: Callable[[Mapping[str, float]], None] | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: bool | None = None,
    compile: bool = False,
    precision: Precision = "float32",
) -> Fit:
    """Train a model and guide by stochastic variational inference.

    Parameters
    ----------
    data : EnvironmentData or StreamedData
        In memory, or read from disk as training goes on (:func:`~pyro_cge.data.opening.stream`).
    objective : callable
        Default :class:`~pyro_cge.objectives.elbo.Elbo`. Where it is an ``nn.Module`` with parameters of its own (a
        critic, say) they are trained with the model's, in place.
    epochs, batch_size, lr
        Passes over the training profiles, profiles a step, learning rate of fused Adam.
    schedule : {"one_cycle", "cosine"} or None
        How the learning rate changes from step to step (:func:`~pyro_cge.train.schedule.rate_factor`); ``lr`` is its
        highest value. Schedules end with the last epoch, so train to the end (``patience=None``).
    kl_warmup : int
        Epochs over which the weight of the KL term goes linearly to one.
    kl_start : float
        Where it comes from: from zero, latents are used before they are paid for; from well above one (10, say, over
        half of the epochs), latents that others make redundant are dropped while that is still easy.
    clip : float
        Largest norm of the gradient (of the loss per profile); larger ones are scaled down.
    validation : float, data or None
        Held-out data for early stopping. A fraction holds out whole environments where they have features (so the
        prior is judged on environments it never saw), and profiles of every environment where they have none.
    patience : int or None
        Epochs without improvement before stopping; None trains to the end. Best weights are restored either way,
        where anything is held out.
    standardize : bool
        Give each gene mean 0 and sd 1 over the training part. Counts, under a likelihood of counts, stay as they are.
    seed : int
        The run is a function of it (on one machine) and of the weights that come in: order and noise of an epoch
        follow from seed and epoch. The caller's random state is left alone.
    on_epoch : callable, optional
        Called with the epoch number before it starts, e.g. to anneal a temperature.
    on_record : callable, optional
        Called with an epoch's row of the history when it is done, e.g. to log it elsewhere.
    checkpoint : path, optional
        File rewritten atomically after every epoch; with ``resume=True`` training continues from it bit for bit.
    progress : bool, optional
        Progress bar with loss and time left; default: only on a terminal.
    compile : bool
        Run encoders, decoders and other networks as ``torch.compile`` makes them. The same numbers up to rounding; pays
        where networks have many small operations, not where Pyro or large matrix products take the time.
    precision : {"float32", "bf16"}
        In "bf16" networks compute in bfloat16, on a GPU or a CPU that has it; weights, laws and sums stay float32.

    Under ``torchrun`` the processes train one model (:class:`~pyro_cge.train.distributed.World`): batches are those of
    one process, ``batch_size`` profiles, of which each gets its part. The first process alone writes the checkpoint,
    shows progress and calls ``on_record``; all return the same fit.

    Returns
    -------
    Fit

    Raises
    ------
    NonFiniteLossError
        With site, epoch and batch; the model keeps the weights from before the failing step.
    DataError, ConfigError, CheckpointError
        For unusable data, settings, or a checkpoint of another run.
    """
    check_settings(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        clip=clip,
        patience=patience,
        kl_warmup=kl_warmup,
        kl_start=kl_start,
    )
    check_seed(seed)
    epochs, batch_size, kl_warmup, seed = map(operator.index, (epochs, batch_size, kl_warmup, seed))  # not numpy's
    lr, clip, kl_start = float(lr), float(clip), float(kl_start)
    patience = None if patience is None else operator.index(patience)
    validation = float(validation) if isinstance(validation, Real) else validation
    objective = Elbo() if objective is None else objective
    parts = parts_of(data, validation, [model], standardize=standardize, seed=seed)
    settings = {
        "objective": described(objective),
        "optimizer": "default" if optimizer is None else described(optimizer),
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        # A schedule depends on the number of epochs, which a resumed run may otherwise change.
        "schedule": schedule and f"{schedule} over {epochs} epochs",
        "kl_warmup": kl_warmup,
        "kl_start": kl_start,
        "clip": clip,
        "validation": validation if isinstance(validation, float | None) else validation.digest,
        "patience": patience,
        "standardize": standardize,
        "seed": seed,
        "compile": compile or None,  # None, as in checkpoints from before there was a choice
        "precision": None if checked_precision(precision) == "float32" else precision,
        "data": data.digest,
        "shuffling": data.shuffling,
    }
    if resume and checkpoint is None:
        raise ConfigError("resume=True needs the checkpoint file to resume from: pass checkpoint=")
    steps = -(-parts.train.n // batch_size)  # an epoch

    with ExitStack() as stack:
        world = stack.enter_context(joined())
        stack.enter_context(pyro.validation_enabled(False))
        device = world.device(device_of(model, device))
        train, valid = parts.train.to(device), parts.valid.to(device)
        modules: dict[str, nn.Module] = {"model": model.to(device), "guide": guide.to(device)}
        if isinstance(objective, nn.Module):
            modules["objective"] = objective.to(device)
        if precision == "bf16":
            stack.enter_context(in_bf16(modules.values(), device))
        if compile:
            stack.enter_context(compiled(modules.values(), device))
        parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
        adam = torch.optim.Adam(parameters, lr=lr, fused=True) if optimizer is None else optimizer(parameters)
        base_rates = [group["lr"] for group in adam.param_groups]
        state = TrainingState(modules, adam, data.schema())
        if resume and checkpoint is not None:
            world.once(partial(_resume, state, Path(checkpoint), settings))
        world.share(state, settings)
        bar = stack.enter_context(EpochProgress(epochs, state.epoch, progress if world.first else False))
        for epoch in range(state.epoch, epochs):
            if state.exhausted(patience, kl_warmup):
                break
            started = time.perf_counter()
            warmup = kl_weight(epoch, kl_start, kl_warmup)
            rates = [
                [base * rate_factor(schedule, epoch * steps + i, epochs * steps) for base in base_rates]
                for i in range(steps)
            ]
            row: dict[str, float] = {"epoch": epoch}
            with isolated(seed, f"epoch {epoch}"):
                if on_epoch is not None:
                    on_epoch(epoch)
                row |= train_epoch(
                    modules, objective, adam, train, batch_size, rates, warmup, clip, parameters, epoch, world
                )
            if valid.n:
                held_out = evaluate(model, guide, valid, objective, seed=seed, world=world)
                row |= {f"valid_{name}": value for name, value in held_out.items()}
            row["seconds"] = time.perf_counter() - started
            state.record(row)
            bar.update(row)
            if world.first and on_record is not None:
                on_record(row)
            if world.first and checkpoint is not None:
                state.save(Path(checkpoint), settings)
    state.restore_best()
    return Fit(
        model,
        guide,
        data.schema(),
        parts.scaler,
        pd.DataFrame(state.history),
        state.best_epoch,
        settings,
        parts.train_rows,
        parts.valid_rows,
    )


def _resume(state: TrainingState, checkpoint: Path, settings: Mapping[str, Any]) -> None:
    clear_leftovers(checkpoint.parent, checkpoint.name)
    if checkpoint.exists():
        state.load(checkpoint, settings)

"""``fit``: minibatch SVI over profiles, with early stopping, checkpoints and a history."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pyro
import torch
from torch import nn

from ..data.align import align
from ..data.environment import EnvironmentData
from ..data.standardize import Standardizer
from ..errors import ConfigError, DataError
from ..guides.amortized import AmortizedGuide
from ..guides.refined import RefinedGuide
from ..models.cell import CellModel
from ..objectives.elbo import Elbo
from ..posterior import Posterior
from ..seeds import isolated
from .loop import Objective, evaluate, train_epoch
from .progress import EpochProgress
from .schedule import Schedule, rate_factor
from .state import TrainingState, get_rng, set_rng


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

    def posterior(self, data: EnvironmentData, *, refine: int = 0) -> Posterior:
        """Posterior of latents and interventions for ``data`` (in raw units, genes in any order).

        ``refine`` gradient steps improve each profile's posterior beyond what the encoder says
        (:class:`~pyro_cge.guides.refined.RefinedGuide`).
        """
        guide = RefinedGuide(self.guide, steps=refine) if refine else self.guide
        return Posterior(self.model, cast(AmortizedGuide, guide), data, self.scaler, schema=self.schema)


def fit(
    model: CellModel,
    guide: AmortizedGuide,
    data: EnvironmentData,
    *,
    objective: Objective | None = None,
    epochs: int = 200,
    batch_size: int = 128,
    lr: float = 1e-3,
    schedule: Schedule = None,
    kl_warmup: int = 10,
    kl_start: float = 0.0,
    clip: float = 100.0,
    validation: float | EnvironmentData | None = 0.1,
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
) -> Fit:
    """Train a model and guide by stochastic variational inference.

    Parameters
    ----------
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
    validation : float, EnvironmentData or None
        Held-out data for early stopping. A fraction holds out whole environments where they have features (so the
        prior is judged on environments it never saw), and profiles of every environment where they have none.
    patience : int or None
        Epochs without improvement before stopping; None trains to the end. Best weights are restored either way,
        where anything is held out.
    standardize : bool
        Give each gene mean 0 and sd 1 over the training part. Counts, under a likelihood of counts, stay as they are.
    seed : int
        The run is a function of it (on one machine) and of the weights that come in. The caller's random state is
        left alone.
    on_epoch : callable, optional
        Called with the epoch number before it starts, e.g. to anneal a temperature.
    on_record : callable, optional
        Called with an epoch's row of the history when it is done, e.g. to log it elsewhere.
    checkpoint : path, optional
        File rewritten atomically after every epoch; with ``resume=True`` training continues from it bit for bit.
    progress : bool, optional
        Progress bar with loss and time left; default: only on a terminal.

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
    _check_settings(epochs=epochs, batch_size=batch_size, lr=lr, clip=clip, patience=patience, kl_warmup=kl_warmup)
    objective = Elbo() if objective is None else objective
    device = torch.device(device) if device is not None else _device_of(model)
    settings = {
        "objective": _described(objective),
        "optimizer": "default" if optimizer is None else _described(optimizer),
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        # A schedule depends on the number of epochs, which a resumed run may otherwise change.
        "schedule": schedule and f"{schedule} over {epochs} epochs",
        "kl_warmup": kl_warmup,
        "kl_start": kl_start,
        "clip": clip,
        "validation": validation
        if isinstance(validation, float)
        else None
        if validation is None
        else validation.digest,
        "patience": patience,
        "standardize": standardize,
        "seed": seed,
        "data": data.digest,
    }
    train_rows, valid_rows = _hold_out(data, validation, seed)
    train = data.rows(train_rows) if len(valid_rows) else data
    valid = validation if isinstance(validation, EnvironmentData) else data.rows(valid_rows)
    valid = align(valid, data.schema())
    likelihood = model.decoder.likelihood
    likelihood.check(train.x)
    scaled = standardize and not likelihood.counts
    scaler = Standardizer.fit(train) if scaled else Standardizer.identity(data.gene_names)
    train, valid = scaler.transform(train).to(device), scaler.transform(valid).to(device)
    steps = -(-train.n // batch_size)  # an epoch
    model.to(device), guide.to(device)

    modules: dict[str, nn.Module] = {"model": model, "guide": guide}
    if isinstance(objective, nn.Module):
        modules["objective"] = objective.to(device)
    parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
    adam = torch.optim.Adam(parameters, lr=lr, fused=True) if optimizer is None else optimizer(parameters)
    base_rates = [group["lr"] for group in adam.param_groups]
    state = TrainingState(modules, adam)
    if resume:
        if checkpoint is None:
            raise ConfigError("resume=True needs the checkpoint file to resume from: pass checkpoint=")
        if Path(checkpoint).exists():
            state.load(Path(checkpoint), settings)

    with ExitStack() as stack:
        stack.enter_context(isolated(seed))
        stack.enter_context(pyro.validation_enabled(False))
        bar = stack.enter_context(EpochProgress(epochs, state.epoch, progress))
        if state.rng is not None:
            set_rng(state.rng, device)
        for epoch in range(state.epoch, epochs):
            if state.exhausted(patience, kl_warmup):
                break
            if on_epoch is not None:
                on_epoch(epoch)
            started = time.perf_counter()
            warmup = kl_start + (1 - kl_start) * min(1.0, (epoch + 1) / kl_warmup) if kl_warmup else 1.0
            row: dict[str, float] = {"epoch": epoch}
            rates = [
                [base * rate_factor(schedule, epoch * steps + i, epochs * steps) for base in base_rates]
                for i in range(steps)
            ]
            row |= train_epoch(modules, objective, adam, train, batch_size, rates, warmup, clip, parameters, epoch)
            if valid.n:
                row |= {f"valid_{k}": v for k, v in evaluate(model, guide, valid, objective, seed=seed).items()}
            row["seconds"] = time.perf_counter() - started
            state.record(row)
            bar.update(row)
            if on_record is not None:
                on_record(row)
            if checkpoint is not None:
                state.save(Path(checkpoint), settings, get_rng(device))
    state.restore_best()
    return Fit(
        model,
        guide,
        data.schema(),
        scaler,
        pd.DataFrame(state.history),
        state.best_epoch,
        settings,
        train_rows,
        valid_rows,
    )


def _described(part: object) -> str:
    """A name that is the same in every process: the repr, unless it holds a memory address."""
    text = repr(part)
    return text if " at 0x" not in text else str(getattr(part, "__qualname__", type(part).__qualname__))


def _hold_out(
    data: EnvironmentData, validation: float | EnvironmentData | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    everything, nothing = np.arange(data.n), np.empty(0, int)
    if not data.n:
        raise DataError("the data have no profiles to train on; check the filters or the split")
    if validation is None or isinstance(validation, EnvironmentData):
        return everything, nothing
    if not 0 < validation < 1:
        raise ConfigError(f"validation is a fraction between 0 and 1, data, or None; got {validation}")
    rng = np.random.default_rng(seed)
    env = data.env.cpu().numpy()
    if data.n_features is None:
        chosen = rng.random(data.n) < validation
    else:
        treated = np.setdiff1d(np.unique(env), data.control)
        held = rng.permutation(treated)[: max(1, round(validation * len(treated)))]
        chosen = np.isin(env, held)
    if chosen.all() or not chosen.any():
        raise DataError(
            f"cannot hold out {validation:.0%} of {data.n} profiles in {len(np.unique(env))} environments: nothing would "
            "be left to train on or to validate; pass validation=None or a validation set"
        )
    return everything[~chosen], everything[chosen]


def _check_settings(**settings: float | None) -> None:
    for name, value in settings.items():
        low = 0 if name == "kl_warmup" else 1 if name in ("epochs", "batch_size", "patience") else None
        if value is None:
            continue
        if (low is not None and value < low) or (low is None and not value > 0):
            raise ConfigError(f"{name} must be {'positive' if low is None else f'at least {low}'}, got {value}")


def _device_of(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))

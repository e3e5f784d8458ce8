"""``fit_ensemble``: many seeds, and a grid of hyper-parameters, as one program."""

from __future__ import annotations

import inspect
import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from numbers import Integral
from typing import Any, cast

import numpy as np
import pandas as pd
import pyro
import torch
from torch import nn

from ...data.environment import EnvironmentData
from ...data.streamed import StreamedData
from ...errors import ConfigError, check_seed
from ...guides.amortized import AmortizedGuide
from ...models.cell import CellModel
from ...objectives.elbo import Elbo
from ...seeds import isolated
from ..fit import Fit
from ..loop import Objective
from ..schedule import Schedule
from ..settings import check_settings, described, device_of, parts_of
from ..state import TrainingState
from .batched import BatchedRun, Member, alike
from .mixture import EnsemblePosterior
from .program import Pair

OF_TRAINING = ("lr", "beta")  # what may vary that is not an option of the builder


@dataclass(eq=False)
class Ensemble:
    """Fits of one kind of model to the same data, from several seeds or with several settings.

    Attributes
    ----------
    members : list of Fit
        Each usable alone.
    table : DataFrame
        One row a member: ``seed``, what was varied, ``best_epoch``, and ``elbo``, the negative ELBO per profile (``β = 1``;
        the loss where an objective has other terms) there, of the held-out part where there is one.
    """

    members: list[Fit]
    table: pd.DataFrame

    def __len__(self) -> int:
        return len(self.members)

    def __repr__(self) -> str:
        varied = [name for name in self.table if name not in ("seed", "best_epoch", "elbo")]
        what = "".join(f", {name} varied" for name in varied)
        return f"Ensemble({len(self)} members, {self.table['seed'].nunique()} seeds{what})"

    @property
    def history(self) -> pd.DataFrame:
        """The members' histories, one below the other; ``member`` is the row of ``table``."""
        return pd.concat([fit.history.assign(member=k) for k, fit in enumerate(self.members)], ignore_index=True)

    @property
    def best(self) -> Fit:
        """The member with the lowest negative ELBO, held out where anything is."""
        return self.members[int(np.nanargmin(self.table["elbo"].to_numpy()))]

    def select(self, **settings: Any) -> Ensemble:
        """The members with these settings, e.g. ``ensemble.select(temperature=0.5)``.

        Raises
        ------
        ConfigError
            If a setting was not varied, or no member has the value.
        """
        if unknown := settings.keys() - set(self.table.columns):
            raise ConfigError(f"members do not differ in {sorted(unknown)}; they do in {list(self.table.columns)}")
        keep = np.ones(len(self), bool)
        for name, value in settings.items():
            keep &= (self.table[name] == value).to_numpy()
        if not keep.any():
            raise ConfigError(f"no member has {settings}; the table of the ensemble lists what there is")
        return Ensemble([self.members[k] for k in np.flatnonzero(keep)], self.table[keep].reset_index(drop=True))

    def posterior(self, data: EnvironmentData, *, refine: int = 0) -> EnsemblePosterior:
        """What the members say together of ``data``, their latents brought into line; ``refine`` as in ``Fit.posterior``."""
        return EnsemblePosterior([fit.posterior(data, refine=refine) for fit in self.members])


def fit_ensemble(
    build: Callable[..., tuple[CellModel, AmortizedGuide]],
    data: EnvironmentData,
    *,
    seeds: int | Sequence[int] = 8,
    vary: Mapping[str, Sequence[Any]] | None = None,
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
    device: str | torch.device | None = None,
    on_epoch: Callable[[int, CellModel], None] | None = None,
    progress: bool | None = None,
) -> Ensemble:
    """Train a model from several seeds, and with several settings, at once.

    ::

        ensemble = cge.fit_ensemble(partial(cge.environment_vae, d=5), data, seeds=16)
        ensemble = cge.fit_ensemble(partial(cge.environment_vae, d=5), data, seeds=4,
                                    vary={"temperature": [0.3, 1.0], "beta": [1.0, 4.0]})

    Every member is what :func:`~pyro_cge.train.fit.fit` makes of its seed alone, to float tolerance: the seed decides its
    weights, the order of its profiles and its noise. All members share one split and one scaling of the data, so that
    their held-out losses can be compared: a member equals ``fit(*build(train), train, validation=valid, seed=seed)``.

    Members of one shape run as one program (:mod:`~pyro_cge.train.ensembles.program`), which for small models costs little more
    than one of them; different latent sizes or widths make several programs, one after the other. That pays where a step
    is overhead; where it is arithmetic (978 genes, 500 units), a member costs what it costs alone.

    Parameters
    ----------
    build : callable, ``(data, **varied) → (model, guide)``
        A preset with its sizes filled in. Called once a member, under the member's seed.
    seeds : int or sequence of int
        Members a setting: that many, from 0 on, or these.
    vary : mapping of str to sequence, optional
        A grid: every combination is fitted from every seed. ``lr`` and ``beta`` (of an objective that has one) belong to
        the training, all other names are options of ``build``.
    epochs, batch_size, lr, schedule, kl_warmup, kl_start, clip, validation, standardize, device, progress
        As in :func:`~pyro_cge.train.fit.fit`; what is held out is drawn from the first seed.
    patience : int or None
        Each member stops by itself; those that have cost nothing any more.
    on_epoch : callable, optional
        Called with the epoch and each member's model before the epoch starts, e.g. to anneal a temperature.

    Returns
    -------
    Ensemble

    Raises
    ------
    ConfigError
        For settings that make no sense, and for a model or objective that cannot run as a batch: an objective with
        weights of its own, a learned order of latents.
    DataError
        For data that cannot be used.
    NonFiniteLossError
        If no member's loss stays finite, with seed, site, epoch and batch. One that fails alone ends with the best weights
        it had, a warning, and no ``elbo`` where it had no epoch to its end.
    """
    numbers = list(range(operator.index(seeds))) if isinstance(seeds, Integral) else list(cast("Sequence[int]", seeds))
    grid = [dict(zip(vary or {}, values, strict=True)) for values in itertools.product(*(vary or {}).values())]
    if not numbers or not grid:
        raise ConfigError(f"an ensemble needs a seed and a value of everything varied, got seeds={seeds}, vary={vary}")
    for seed in numbers:
        check_seed(seed)
    if len(set(numbers)) < len(numbers):
        raise ConfigError(f"seeds must differ: equal ones make equal members, got {numbers}")
    for rate in [lr, *(vary or {}).get("lr", [])]:
        check_settings(
            lr=rate,
            epochs=epochs,
            batch_size=batch_size,
            clip=clip,
            patience=patience,
            kl_warmup=kl_warmup,
            kl_start=kl_start,
        )
    objective = Elbo() if objective is None else objective
    _check_objective(objective, vary or {})
    for given in (data, validation):
        if (given is data and not isinstance(given, EnvironmentData)) or isinstance(given, StreamedData):
            raise ConfigError(
                f"an ensemble trains on data in memory, got {type(given).__name__}; fit the members one by one"
            )

    members = [_member(build, data, operator.index(seed), varied, lr) for varied in grid for seed in numbers]
    models = [m.pair.model for m in members]
    parts = parts_of(data, validation, models, standardize=standardize, seed=members[0].seed)
    at = device_of(models[0], device)
    run = BatchedRun(
        cast(EnvironmentData, parts.train.to(at)),
        cast(EnvironmentData, parts.valid.to(at)),
        objective,
        epochs,
        batch_size,
        schedule,
        kl_warmup,
        kl_start,
        clip,
        patience,
        on_epoch,
    )
    with pyro.validation_enabled(False):
        for group in alike(members):
            run.train(group, at, progress)
    failures = [m.failure for m in members if m.failure is not None]
    if len(failures) == len(members):
        raise failures[0]
    common = {
        "objective": described(objective),
        "epochs": epochs,
        "batch_size": batch_size,
        "schedule": schedule and f"{schedule} over {epochs} epochs",
        "kl_warmup": kl_warmup,
        "kl_start": kl_start,
        "clip": clip,
        "validation": validation.digest if isinstance(validation, EnvironmentData) else validation,
        "patience": patience,
        "standardize": standardize,
        "data": data.digest,
        "members": len(members),
    }
    fits = [
        Fit(
            m.pair.model,
            m.pair.guide,
            data.schema(),
            parts.scaler,
            pd.DataFrame(m.state.history),
            m.state.best_epoch,
            {**common, **m.varied, "lr": m.lr, "seed": m.seed},
            parts.train_rows,
            parts.valid_rows,
        )
        for m in members
    ]
    rows = [
        {"seed": m.seed, **m.varied, "best_epoch": m.state.best_epoch, "elbo": _negative_elbo(m.state)} for m in members
    ]
    return Ensemble(fits, pd.DataFrame(rows))


def _member(
    build: Callable[..., tuple[CellModel, AmortizedGuide]],
    data: EnvironmentData,
    seed: int,
    varied: dict[str, Any],
    lr: float,
) -> Member:
    try:
        inspect.signature(build).bind(
            data, **{name: value for name, value in varied.items() if name not in OF_TRAINING}
        )
    except TypeError as error:
        raise ConfigError(
            f"build makes (model, guide) from data, as partial(cge.environment_vae, d=5) does; got {build!r:.80} ({error})"
        ) from error
    with isolated(seed):
        pair = Pair(*build(data, **{name: value for name, value in varied.items() if name not in OF_TRAINING}))
    beta = varied.get("beta")
    # The state keeps history and best weights; its optimiser would be for checkpoints, which ensembles have none of.
    state = TrainingState({"model": pair.model, "guide": pair.guide}, cast(torch.optim.Optimizer, None))
    return Member(seed, varied, float(varied.get("lr", lr)), beta, pair, state)


def _check_objective(objective: Objective, vary: Mapping[str, Any]) -> None:
    name = type(objective).__name__
    if isinstance(objective, nn.Module) and any(True for _ in objective.parameters()):
        raise ConfigError(
            f"{name} has weights of its own and cannot be trained as one batched program; fit the members one after the "
            "other: [fit(*build(data), data, objective=…, seed=seed) for seed in seeds]"
        )
    known = is_dataclass(objective) and any(f.name == "beta" for f in fields(objective))
    if "beta" in vary and not known:
        raise ConfigError(f"{name} has no beta to vary; Elbo has one")


def _negative_elbo(state: TrainingState) -> float:
    if not state.history:  # of a member that failed in its first epoch
        return math.nan
    row = state.history[state.best_epoch]
    part = "valid_" if "valid_loss" in row else "train_"
    if {f"{part}kl", f"{part}log_likelihood"} <= row.keys():
        return row[f"{part}kl"] - row[f"{part}log_likelihood"]
    return row[f"{part}loss"]

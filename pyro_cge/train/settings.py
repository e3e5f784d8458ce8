"""What a training run is given, checked: settings, what is held out, the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
from torch import nn

from ..data.align import align
from ..data.environment import EnvironmentData
from ..data.profiles import Profiles
from ..data.standardize import Standardizer
from ..data.streamed import StreamedData
from ..errors import ConfigError, DataError
from ..models.cell import CellModel
from .checkpoint import name_differences


def check_settings(**settings: float | None) -> None:
    """Raise :class:`ConfigError` for a rate that is not positive and finite, or a number of epochs or profiles below one."""
    for name, value in settings.items():
        whole = {"epochs": 1, "batch_size": 1, "patience": 1, "kl_warmup": 0}.get(name)
        if value is None:
            continue
        if whole is not None and not (hasattr(value, "__index__") and value >= whole):
            raise ConfigError(f"{name} must be a whole number of at least {whole}, got {value!r}")
        if name == "kl_start" and not 0 <= value < math.inf:
            raise ConfigError(f"kl_start must be at least 0 and finite, got {value}")
        if whole is None and name != "kl_start" and not 0 < value < math.inf:
            raise ConfigError(f"{name} must be positive and finite, got {value}")


def kl_weight(epoch: int, start: float, warmup: int) -> float:
    """What the KL term is multiplied by in an epoch: from ``start`` linearly to one, over ``warmup`` epochs."""
    return start + (1 - start) * min(1.0, (epoch + 1) / warmup) if warmup else 1.0


def described(part: object) -> str:
    """A name that is the same in every process: the repr, unless it holds a memory address."""
    text = repr(part)
    return text if " at 0x" not in text else str(getattr(part, "__qualname__", type(part).__qualname__))


@dataclass(frozen=True, eq=False)
class Parts:
    """What is trained on and what is held out, both scaled by the former, and the row numbers of both."""

    train: Profiles
    valid: Profiles
    scaler: Standardizer
    train_rows: np.ndarray
    valid_rows: np.ndarray


def parts_of(
    data: Profiles,
    validation: float | Profiles | None,
    models: Sequence[CellModel],
    *,
    standardize: bool,
    seed: int,
) -> Parts:
    """Split and scale ``data`` for models that were made for them.

    A fraction holds out whole environments where they have features; where they have none, profiles, of which each
    environment keeps one to train on (unless none of those drawn has another).

    Raises
    ------
    ConfigError
        For a fraction that is none, or likelihoods of counts and of other values at once.
    DataError
        If the models were made for other data, the likelihood cannot explain these, or nothing is left of one part.
    """
    for model in models:
        _check_made_for(model, data)
    train_rows, valid_rows = _split(data, validation, seed)
    train = data.rows(train_rows) if len(valid_rows) else data
    valid = data.rows(valid_rows)
    if isinstance(validation, EnvironmentData | StreamedData):
        valid = align(validation, data.schema())
    likelihoods = [model.decoder.likelihood for model in models]
    counts = likelihoods[0].counts
    if any(likelihood.counts != counts for likelihood in likelihoods):
        raise ConfigError("likelihoods of counts and of other values see differently scaled data: train them apart")
    for x in train.blocks() if counts else ():
        for likelihood in likelihoods:
            likelihood.check(x)
    scaler = Standardizer.fit(train) if standardize and not counts else Standardizer.identity(data.gene_names)
    return Parts(scaler.transform(train), scaler.transform(valid), scaler, train_rows, valid_rows)


def _check_made_for(model: CellModel, data: Profiles) -> None:
    theirs = model.prior.environments
    differences = []
    if model.g != data.g:
        differences.append(f"{model.g} genes, not {data.g}")
    if theirs.n_features != data.n_features:
        differences.append(f"{theirs.n_features or 'no'} environment features, not {data.n_features or 'none'}")
    elif data.n_features is None:
        differences += name_differences("environments", list(theirs.env_names), list(data.env_names))
    if differences:
        raise DataError(
            f"the model was made for other data ({'; '.join(differences)}): make a model from these, or give it those it "
            "was made for"
        )


def _split(data: Profiles, validation: float | Profiles | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    everything, nothing = np.arange(data.n), np.empty(0, int)
    if not data.n:
        raise DataError("the data have no profiles to train on; check the filters or the split")
    if validation is None:
        return everything, nothing
    if isinstance(validation, EnvironmentData | StreamedData):
        if not validation.n:
            raise DataError("the validation data have no profiles: pass validation=None to hold out nothing")
        return everything, nothing
    share = float(validation) if isinstance(validation, Real) else math.nan
    if not 0 < share < 1:
        raise ConfigError(f"validation is a fraction between 0 and 1, data, or None; got {validation!r}")
    rng = np.random.default_rng(seed)
    env = data.env.cpu().numpy()
    if data.n_features is None:
        chosen = rng.random(data.n) < share
        names, first = np.unique(env, return_index=True)
        kept = first[~np.isin(names, env[~chosen])]  # nothing else says what these environments do
        if len(kept) < chosen.sum():
            chosen[kept] = False
    else:
        treated = np.setdiff1d(np.unique(env), data.control)
        held = rng.permutation(treated)[: max(1, round(share * len(treated)))]
        chosen = np.isin(env, held)
    if chosen.all() or not chosen.any():
        raise DataError(
            f"cannot hold out {share:.0%} of {data.n} profiles in {len(np.unique(env))} environments: nothing would "
            "be left to train on or to validate; pass validation=None or a validation set"
        )
    return everything[~chosen], everything[chosen]


def device_of(module: nn.Module, device: str | torch.device | None = None) -> torch.device:
    """The device asked for, if it is here, or the one where the module's weights are."""
    if device is None:
        return next((p.device for p in module.parameters()), torch.device("cpu"))
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError, ValueError) as error:  # no such kind, not compiled in, not there
        raise ConfigError(f"no device {str(device)!r} here: {str(error).splitlines()[0]}") from error

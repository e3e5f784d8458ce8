"""What a training run is given, checked: settings, what is held out, the device."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from ..data.profiles import Profiles
from ..errors import ConfigError, DataError


def check_settings(**settings: float | None) -> None:
    """Raise :class:`ConfigError` for a rate that is not positive and finite, or a number of epochs or profiles below one."""
    for name, value in settings.items():
        low = 0 if name == "kl_warmup" else 1 if name in ("epochs", "batch_size", "patience") else None
        if value is None:
            continue
        if (low is not None and value < low) or (low is None and not 0 < value < math.inf):
            raise ConfigError(
                f"{name} must be {'positive and finite' if low is None else f'at least {low}'}, got {value}"
            )


def described(part: object) -> str:
    """A name that is the same in every process: the repr, unless it holds a memory address."""
    text = repr(part)
    return text if " at 0x" not in text else str(getattr(part, "__qualname__", type(part).__qualname__))


def validation_rows(data: Profiles, validation: float | Profiles | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers to train on and to hold out.

    A fraction holds out whole environments where they have features, profiles of every environment where they have none.

    Raises
    ------
    ConfigError
        For a fraction that is none.
    DataError
        If nothing would be left of one part.
    """
    everything, nothing = np.arange(data.n), np.empty(0, int)
    if not data.n:
        raise DataError("the data have no profiles to train on; check the filters or the split")
    if not isinstance(validation, int | float):
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


def device_of(module: nn.Module, device: str | torch.device | None = None) -> torch.device:
    """The device asked for, if it is here, or the one where the module's weights are."""
    if device is None:
        return next((p.device for p in module.parameters()), torch.device("cpu"))
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError, ValueError) as error:  # no such kind, not compiled in, not there
        raise ConfigError(f"no device {str(device)!r} here: {str(error).splitlines()[0]}") from error

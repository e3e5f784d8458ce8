"""How networks are computed, not what they compute: compiled by torch, or in half precision."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import ConfigError

Precision = Literal["float32", "bf16"]


def networks(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """The outermost parts that are made of torch's own layers alone: encoders, decoders, networks of environments."""
    found: list[nn.Module] = []
    for module in modules:
        if all(type(part).__module__.startswith("torch.nn.") for part in module.modules()) and not isinstance(
            module, nn.ModuleList | nn.ModuleDict | nn.ParameterList
        ):
            found.append(module)
        else:
            found += networks(module.children())
    return found


@contextmanager
def compiled(modules: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """While in force, the networks in ``modules`` run as ``torch.compile`` makes them; sites and handlers stay Python.

    Weights, names and files are the same with and without. Every new shape of a batch is compiled once more.

    Raises
    ------
    ConfigError
        Where torch cannot compile, which on a CPU needs a C++ compiler.
    """
    try:
        with warnings.catch_warnings():  # torch's compiler, imported here, uses parts of torch that are deprecated
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.compile(nn.Linear(2, 2).to(device))(torch.zeros(1, 2, device=device)).sum().backward()
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"compile=True, but torch cannot compile on {device.type} here ({reason}); install a C++ compiler "
            "(g++ or clang), on a GPU Triton as well, or pass compile=False"
        ) from error
    parts = networks(modules)
    for part in parts:
        part.compile()
    try:
        yield
    finally:
        for part in parts:
            part._compiled_call_impl = None


@contextmanager
def in_bf16(modules: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """While in force, the networks in ``modules`` compute in bfloat16 (autocast) and put out float32.

    Weights, gradients, laws and sums stay float32: rounding enters through the networks' outputs alone, at a relative
    2⁻⁸.

    Raises
    ------
    ConfigError
        On a GPU without bfloat16.
    """
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError(f"precision='bf16', but {torch.cuda.get_device_name(device)} has no bfloat16; use 'float32'")
    parts = networks(modules)
    for part in parts:
        part.forward = partial(_autocast, part.forward, device.type)
    try:
        yield
    finally:
        for part in parts:
            del part.forward


def _autocast(forward: Callable[..., Tensor], device: str, *inputs: Tensor) -> Tensor:
    with torch.autocast(device, torch.bfloat16):
        return forward(*inputs).float()


def checked_precision(precision: Precision) -> Precision:
    if precision not in ("float32", "bf16"):
        raise ConfigError(f"precision must be 'float32' or 'bf16', got {precision!r}")
    return precision

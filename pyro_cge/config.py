"""Settings of a run, checked when read: a typo is an error, not a default."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import SEEDS, ConfigError

Settings = TypeVar("Settings", bound=BaseModel)

_BRIEFLY = reprlib.Repr()
_BRIEFLY.maxlevel = 2  # nested aliases of YAML would fill a screen a million times over


class RunConfig(BaseModel):
    """Everything that decides a run, besides the data.

    Model: ``model`` (a preset), ``latents``, ``hidden``, ``decoder``, ``conditioning``, ``guide``, ``temperature``,
    ``final_temperature``, ``moves``, ``depth``, ``mechanism``, ``additive``, ``hill``; what a preset does not take is
    ignored, and its own defaults hold for ``moves`` and ``conditioning`` that are not given. ``rotate`` turns a fitted
    ``dense`` model to sparse. Objective: ``irm`` (weight of the penalty, 0 for none), ``weight`` (of the adversarial or MMD term;
    default: the objective's own).
    Training: ``epochs``, ``batch_size``, ``lr``, ``schedule``, ``kl_warmup``, ``clip``, ``patience``, ``standardize``,
    ``seed``. Split: ``split`` (``auto``, ``perturbagen``, ``combination``, ``cell_line``, ``environment``, ``random`` or
    ``column:NAME``) and ``fractions`` (train, valid, test).

    ``auto`` splits by environment where environments have features, so that held-out environments were never seen, and
    by profile where a model can know them by name only.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: Literal[
        "basic",
        "conditional",
        "environment",
        "dense",
        "translation",
        "structured",
        "structured_translation",
        "adversarial",
        "sams",
        "svae_plus",
        "discrepancy",
    ] = "environment"
    latents: int = Field(default=10, ge=1)
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (128,)
    decoder: Literal["linear", "mlp", "sparse"] = "mlp"
    likelihood: Literal["gaussian", "student_t", "poisson", "negative_binomial"] = "gaussian"
    conditioning: Literal["preset", "concat", "film", "shift"] | None = "preset"
    guide: Literal["mean_field", "full", "structured", "flow"] = "mean_field"
    temperature: float = Field(default=0.5, gt=0)
    final_temperature: float | None = Field(default=None, gt=0)
    moves: Literal["loc", "scale", "both"] | None = None
    depth: int | None = Field(default=None, ge=1)
    mechanism: Literal["linear", "neural"] = "linear"
    additive: bool = False
    hill: bool = False
    rotate: bool = False
    irm: float = Field(default=0.0, ge=0)
    weight: float | None = Field(default=None, ge=0)
    epochs: int = Field(default=200, ge=1)
    batch_size: int = Field(default=128, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    schedule: Literal["one_cycle", "cosine"] | None = None
    kl_warmup: int = Field(default=10, ge=0)
    clip: float = Field(default=100.0, gt=0)
    patience: int | None = Field(default=30, ge=1)
    standardize: bool = True
    split: str = "auto"
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = Field(default=0, ge=0, lt=SEEDS)


def read_settings(
    kind: type[Settings], path: Path | None = None, overrides: Sequence[str] = (), **given: Any
) -> Settings:
    """Settings from a YAML file, then ``key=value`` overrides, then keyword arguments that are not None.

    Raises
    ------
    ConfigError
        Naming the key or value at fault and the closest key that exists.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            content = _yaml(Path(path).read_text(encoding="utf-8"), str(path))
        except FileNotFoundError as error:
            raise ConfigError(f"{path}: no such file; check the path") from error
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read {path} as YAML: {error}") from error
        if not isinstance(content, dict | None):
            raise ConfigError(f"{path} must hold 'key: value' lines, found {type(content).__name__}")
        values |= content or {}
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator:
            raise ConfigError(f"--set needs key=value, got {item!r}")
        values[key.strip()] = _yaml(text, f"--set {key.strip()}")
    values |= {k: v for k, v in given.items() if v is not None}
    return validated(kind, values, str(path) if path else "settings")


def _yaml(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date of month 99 is a ValueError
        raise ConfigError(f"cannot read {source} as YAML: {error}") from error


def validated(kind: type[Settings], values: Mapping[str, Any], source: str) -> Settings:
    """Build settings, with pydantic's findings as one :class:`ConfigError`."""
    if words := [key for key in values if not isinstance(key, str)]:
        raise ConfigError(f"{source}: settings have names, got {words[0]!r}")
    try:
        return kind(**values)
    except ValidationError as error:
        findings = []
        for finding in error.errors():
            name = ".".join(map(str, finding["loc"]))
            if finding["type"] == "extra_forbidden":
                close = difflib.get_close_matches(name, kind.model_fields, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(kind.model_fields)}"
                findings.append(f"unknown setting {name!r}: {hint}")
            else:
                findings.append(f"{name} = {_BRIEFLY.repr(finding['input'])}: {finding['msg']}")
        raise ConfigError(f"{source}: " + "; ".join(findings)) from error

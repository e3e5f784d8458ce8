"""Settings of the commands, checked when read: a typo is an error, not a default.

Nothing heavy is loaded here, so that the command line tells a mistake at once.
"""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .errors import SEEDS, ConfigError

Settings = TypeVar("Settings", bound=BaseModel)

_BRIEFLY = reprlib.Repr()
_BRIEFLY.maxlevel = 2  # nested aliases of YAML would fill a screen a million times over

SPLITS = ("auto", "perturbagen", "combination", "cell_line", "environment", "random")


class Checked(BaseModel):
    """Settings that refuse names they do not have, and numbers that are none."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RunConfig(Checked):
    """Everything that decides a run, besides the data; each setting says what it is (``pyro-cge settings fit``).

    What a preset does not take is ignored, and its own defaults hold for ``moves`` and ``conditioning`` that are not given.

    ``split="auto"`` splits by environment where environments have features, so that held-out environments were never
    seen, and by profile where a model can know them by name only.
    """

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
    ] = Field(default="environment", description="Preset that is fitted")
    latents: int = Field(default=10, ge=1, description="Latent causes")
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(128,), description="Widths of hidden layers")
    decoder: Literal["linear", "mlp", "sparse"] = Field(default="mlp", description="From latent causes to genes")
    likelihood: Literal["gaussian", "student_t", "poisson", "negative_binomial"] = Field(
        default="gaussian", description="Law of a gene; the last two are of counts"
    )
    conditioning: Literal["preset", "concat", "film", "shift"] | None = Field(
        default="preset", description="How the encoder sees the environment; null: not at all"
    )
    guide: Literal["mean_field", "full", "structured", "flow"] = Field(
        default="mean_field", description="Family of a profile's posterior"
    )
    temperature: float = Field(
        default=0.5, gt=0, description="Of a softmax prior: low, and an environment moves few latents"
    )
    final_temperature: float | None = Field(
        default=None, gt=0, description="Where the temperature goes by the last epoch"
    )
    moves: Literal["loc", "scale", "both"] | None = Field(
        default=None, description="What an environment changes of a latent's noise; null: as the preset has it"
    )
    depth: int | None = Field(default=None, ge=1, description="Layers of the latent graph, of structured presets")
    mechanism: Literal["linear", "neural"] = Field(
        default="linear", description="Of a latent cause, of structured presets"
    )
    additive: bool = Field(default=False, description="sams: effects of the parts of a combination add up")
    hill: bool = Field(default=False, description="With additive: effects grow with the dose along a Hill curve")
    rotate: bool = Field(
        default=False, description="dense: turn the fitted model so that environments move few latents"
    )
    irm: float = Field(default=0.0, ge=0, description="Weight of the invariant risk penalty; 0: none")
    weight: float | None = Field(
        default=None, ge=0, description="Of the adversarial or MMD term, of those presets; null: its own default"
    )
    epochs: int = Field(default=200, ge=1, description="Most passes over the training profiles")
    batch_size: int = Field(default=128, ge=1, description="Profiles a step")
    lr: float = Field(default=1e-3, gt=0, description="Learning rate, or the highest of a schedule")
    schedule: Literal["one_cycle", "cosine"] | None = Field(
        default=None, description="How the learning rate changes up to the last epoch; then set patience to null"
    )
    kl_warmup: int = Field(default=10, ge=0, description="Epochs until the KL term has its full weight")
    clip: float = Field(default=100.0, gt=0, description="Largest norm of a gradient")
    patience: int | None = Field(
        default=30, ge=1, description="Epochs without improvement before stopping; null: never"
    )
    standardize: bool = Field(default=True, description="Train on genes of mean 0 and sd 1; counts stay as they are")
    split: str = Field(
        default="auto",
        description=f"What is held out: {', '.join(SPLITS)}, group:NAME (whole values of a column) or column:NAME (of train, "
        "valid and test)",
    )
    fractions: tuple[float, float, float] = Field(
        default=(0.8, 0.1, 0.1), description="Shares of train, valid and test"
    )
    seed: int = Field(default=0, ge=0, lt=SEEDS, description="Random seed")

    @field_validator("split")
    @classmethod
    def known(cls, value: str) -> str:
        kind, colon, name = value.partition(":")
        if value not in SPLITS and not (kind in ("group", "column") and colon and name):
            raise ValueError(f"expected {', '.join(SPLITS)}, group:NAME or column:NAME")
        return value

    @field_validator("fractions")
    @classmethod
    def shares(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) < 0 or value[0] == 0 or not math.isclose(sum(value), 1, rel_tol=1e-5):
            raise ValueError("expected three shares that add up to 1, the first above 0")
        return value

    @model_validator(mode="after")
    def rotatable(self) -> Self:
        if self.rotate and self.model != "dense":
            raise ValueError(f"rotate turns fits of model = 'dense' only, and model is {self.model!r}")
        return self


class DiscoverConfig(Checked):
    """Settings of :func:`~pyro_cge.discover.discover`; what is None is the search's own default."""

    penalty: float = Field(default=2.0, gt=0, description="Of an edge: 1 is the BIC, more is sparser")
    target_penalty: float = Field(default=1.0, gt=0, description="Of a target of an environment")
    gamma: float | None = Field(
        default=None, ge=0, description="Of the extended BIC, which grows with the number of genes"
    )
    restarts: int | None = Field(
        default=None, ge=0, description="Times the best order is shaken (the large search: starts anew)"
    )
    max_parents: int | None = Field(default=None, ge=1, description="Most causes of a gene")
    large: bool | None = Field(
        default=None, description="The search for thousands of genes, of one environment; null: from 500 genes on"
    )
    seed: int = Field(default=0, ge=0, lt=SEEDS, description="Random seed")


METHODS = (
    "ntk-gp",
    "ntk",
    "bayesian-synthetic",
    "synthetic",
    "dnpp",
    "falrtc",
    "shrunk",
    "fixed",
    "two-way",
    "action-mean",
    "context-mean",
)


class ImputeConfig(Checked):
    """Settings of :func:`~pyro_cge.impute.impute`."""

    method: str = Field(default="ntk-gp", description=f"What imputes: {', '.join(METHODS)}")
    compare: tuple[str, ...] = Field(default=(), description="Methods it is compared with, where there are folds")
    folds: int = Field(default=0, ge=0, description="Of cross-validation within contexts; 0: none")
    seed: int = Field(default=0, ge=0, lt=SEEDS, description="Random seed, of the folds")

    @field_validator("method", "compare")
    @classmethod
    def known(cls, value: Any) -> Any:
        for name in [value] if isinstance(value, str) else value:
            if name not in METHODS:
                raise ValueError(f"unknown method {name!r}; known are {', '.join(METHODS)}")
        return value

    @field_validator("folds")
    @classmethod
    def at_least_two(cls, value: int) -> int:
        if value == 1:
            raise ValueError("one fold leaves nothing to train on; give 2 or more, or 0 for no cross-validation")
        return value


class RankDrugsConfig(Checked):
    """Settings of :func:`~pyro_cge.imputation.rank_drugs` and :func:`~pyro_cge.imputation.identify_targets`."""

    score: Literal["pearson", "spearman", "cosine"] = Field(default="pearson", description="Drug against disease")
    imputer: Literal["ntk-gp", "mean", "shrunk", "fixed"] | None = Field(
        default=None, description="Transports effects to the context; null: drugs measured there are ranked"
    )
    top: int = Field(default=10, ge=1, description="k of p_top, the probability to be among the k best")
    draws: int = Field(default=500, ge=1, description="Of the posterior of ranks")
    n_genes: int = Field(default=150, ge=2, description="Disease genes that the tree connects")
    omega: float | None = Field(default=None, ge=0, description="Cost of each tree of a forest; null: one tree")
    hub_penalty: float | None = Field(
        default=0.0, description="log10 of the price of proteins with many interactions; null: none"
    )
    scope: Literal["tree", "network"] | None = Field(
        default=None, description="Genes of the causal graph; null: those of the network if they are few"
    )
    noise: float = Field(
        default=0.2, ge=0, description="sd of log prizes and costs, for how often a gene is in the tree"
    )
    graphs: int = Field(default=200, ge=1, description="Draws of the causal graph")
    seed: int = Field(default=0, ge=0, lt=SEEDS, description="Random seed")


def read_settings(
    kind: type[Settings], path: Path | None = None, overrides: Sequence[str] = (), **given: Any
) -> Settings:
    """Settings from a YAML file, then ``key=value`` overrides, then keyword arguments that are not None.

    Raises
    ------
    ConfigError
        Naming the key or value at fault and the closest key that exists; for a setting that an override and a keyword
        argument give differently, and a model that is not the file's.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            content = from_yaml(Path(path).read_text(encoding="utf-8"), str(path))
        except FileNotFoundError as error:
            raise ConfigError(f"{path}: no such file; check the path") from error
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read {path} as YAML: {error}") from error
        if not isinstance(content, dict | None):
            raise ConfigError(f"{path} must hold 'key: value' lines, found {type(content).__name__}")
        values |= content or {}
    # What one command says twice is no default: nor is the model, which the file's other settings were made for.
    said = {"model": str(path)} if "model" in values else {}
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator:
            raise ConfigError(f"--set needs key=value, got {item!r}")
        name = key.strip()
        values[name], said[name] = from_yaml(text, f"--set {name}"), "--set"
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        if name in said and values[name] != value:
            raise ConfigError(f"{name} is {values[name]!r} in {said[name]} and given as {value!r}, too: leave one out")
    return validated(kind, values | given, str(path) if path else "settings")


def as_yaml(kind: type[BaseModel]) -> str:
    """The settings of a kind with their defaults, a line each, and what they are: :func:`read_settings` takes it."""
    defaults, lines = kind().model_dump(mode="json"), []
    for name, field in kind.model_fields.items():
        value = yaml.safe_dump(defaults[name], default_flow_style=True).removesuffix("...\n").strip()
        line = f"{name}: {value}"
        choices = f" ({', '.join(found)})" if (found := _choices(field.annotation)) else ""
        given = "# " if name == "model" else ""  # it is named on the command line
        lines.append(f"{given + line:26}  # {field.description}{choices}\n")
    return "".join(lines)


def _choices(annotation: Any) -> list[str]:
    parts = get_args(annotation)
    return [str(p) for p in parts] if get_origin(annotation) is Literal else [c for p in parts for c in _choices(p)]


def from_yaml(text: str, source: str) -> Any:
    """What a YAML text says; :class:`ConfigError` naming its source where it is none."""
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
            elif not name:  # of several settings together
                findings.append(finding["msg"].removeprefix("Value error, "))
            else:
                findings.append(
                    f"{name} = {_BRIEFLY.repr(finding['input'])}: {finding['msg'].removeprefix('Value error, ')}"
                )
        raise ConfigError(f"{source}: " + "; ".join(findings)) from error

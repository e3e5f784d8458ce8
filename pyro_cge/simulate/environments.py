"""Designs: which environments a simulated experiment has, and what each does to the latent SCM."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..data.environment import EnvironmentData
from ..errors import ConfigError, check_seed, check_sizes
from ..scm.handlers import in_force
from ..scm.shifts import NoiseShift

Kind = Literal["shift", "scale", "hard", "mechanism"]
LARGE = 1e12  # sizes of interventions beyond it are mistakes, and would not survive float32


@dataclass(frozen=True, eq=False)
class Environments:
    """What each environment does: a noise law, hard interventions and mechanism changes, side by side.

    Parameters
    ----------
    names : list of str
    shift : NoiseShift ``[E, d]``
        Shift and scale interventions: ``loc`` is added to the noise, ``exp(log_scale)`` multiplies its sd.
    hard : Tensor ``[E, d]``, optional
        ``do(C_j = value)``; NaN where there is none.
    gain : Tensor ``[E, d]``, optional
        Multiplier on what the parents of ``C_j`` contribute; NaN where the mechanism is untouched.
    table : DataFrame, optional
        Annotations, one row an environment.
    control : tuple of int
        Reference environments.
    features : Tensor ``[E, f]``, optional
        What models may know of the environments; by default only their names.
    """

    names: list[str]
    shift: NoiseShift
    hard: Tensor | None = None
    gain: Tensor | None = None
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    control: tuple[int, ...] = ()
    features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def d(self) -> int:
        return self.shift.d

    @property
    def targets(self) -> Tensor:
        """Boolean ``[E, d]``: latents an environment acts on, by whatever kind of intervention."""
        touched = (self.shift.loc != 0) | (self.shift.log_scale != 0)
        for change in (self.hard, self.gain):
            if change is not None:
                touched = touched | ~change.isnan()
        return touched

    def schema(self, gene_names: Sequence[str]) -> EnvironmentData:
        """An :class:`EnvironmentData` of these environments with no profiles."""
        return EnvironmentData(
            x=torch.empty(0, len(gene_names)),
            env=torch.empty(0, dtype=torch.long),
            gene_names=gene_names,
            env_names=self.names,
            env_features=self.features,
            env_table=self.table,
            control=self.control,
        )

    def handlers(self, env: Tensor) -> ExitStack:
        """Handlers that put hard and mechanism interventions in force for profiles in environments ``env [n]``."""
        return in_force(self.hard, self.gain, env)


def reference(n_latents: int, *, offset: Sequence[float] | None = None) -> Environments:
    """One environment: N(0, I), or the paper's ``(T_0, T_1, …)`` with every latent offset as given."""
    loc = torch.zeros(1, n_latents) if offset is None else torch.tensor([list(map(float, offset))])
    if loc.shape != (1, n_latents):
        raise ConfigError(f"offset needs one number a latent ({n_latents}), got {loc.numel()}")
    name = "control" if offset is None else "(" + ", ".join(f"{v:g}" for v in offset) + ")"
    return _design(loc, names=[name], control=(0,) if offset is None else ())


def offsets(values: Sequence[Sequence[float]]) -> Environments:
    """The paper's notation: one environment ``(T_0, T_1, …)`` a row; rows of zeros are reference environments."""
    loc = torch.tensor([[float(v) for v in row] for row in values])
    control = tuple((loc == 0).all(1).nonzero().flatten().tolist())
    return _design(loc, names=["(" + ", ".join(f"{v:g}" for v in row) + ")" for row in values], control=control)


def random_shifts(
    n_latents: int,
    n_environments: int,
    *,
    variance: float | None = None,
    sd: float | None = None,
    cover: bool = False,
    control: bool = True,
    seed: int = 0,
) -> Environments:
    """The paper's random environments (section 6.4): one latent at random, offset ~ N(0, variance).

    Parameters
    ----------
    variance, sd : float
        Exactly one of the two (the paper's ``N(0, 5)`` does not say which).
    cover : bool
        Visit every latent once before repeating any.
    control : bool
        Put an unperturbed reference environment first.
    """
    if (variance is None) == (sd is None):
        raise ConfigError("random_shifts needs exactly one of variance and sd")
    check_sizes(n_latents=n_latents, n_environments=n_environments)
    check_seed(seed)
    size = variance if sd is None else sd
    if size is None or not 0 <= size < LARGE:
        raise ConfigError(f"variance or sd must be 0 or more, and finite; got {size}")
    sd = math.sqrt(size) if sd is None else float(sd)
    rng = np.random.default_rng(seed)
    target = rng.integers(n_latents, size=n_environments)
    if cover:
        first = min(n_latents, n_environments)
        target[:first] = rng.permutation(n_latents)[:first]
    loc = torch.zeros(n_environments, n_latents)
    loc[torch.arange(n_environments), torch.from_numpy(target)] = _normal(rng, n_environments) * sd
    return _with_control(loc) if control else _design(loc)


def one_per_latent(n_latents: int, *, kind: Kind = "shift", value: float = 3.0, control: bool = True) -> Environments:
    """One environment a latent, all of one kind.

    ``value`` is the offset (``shift``), the factor on the noise sd (``scale``), the value set (``hard``) or the
    multiplier on the parents' contribution (``mechanism``).
    """
    check_sizes(n_latents=n_latents)
    eye = torch.eye(n_latents)
    if control:
        eye = torch.cat([torch.zeros(1, n_latents), eye])
    if not abs(value) < LARGE:
        raise ConfigError(f"value must be finite, got {value}")
    zeros = torch.zeros_like(eye)
    setting = torch.where(eye.bool(), torch.full_like(eye, value), torch.full_like(eye, torch.nan))
    names = ["control"] * control + [f"{kind} {j}" for j in range(n_latents)]
    where = (0,) if control else ()
    if kind == "shift":
        return Environments(names, NoiseShift(eye * value, zeros), control=where)
    if kind == "scale":
        if not value > 0:
            raise ConfigError(f"a scale intervention needs a positive factor, got {value}")
        return Environments(names, NoiseShift(zeros, eye * math.log(value)), control=where)
    if kind == "hard":
        return Environments(names, NoiseShift(zeros, zeros), hard=setting, control=where)
    if kind == "mechanism":
        return Environments(names, NoiseShift(zeros, zeros), gain=setting, control=where)
    raise ConfigError(f"kind must be 'shift', 'scale', 'hard' or 'mechanism', got {kind!r}")


def multi_target(
    n_latents: int,
    n_environments: int,
    *,
    n_targets: tuple[int, int] = (1, 3),
    loc: float = 5.0,
    sd: float = 0.5,
    seed: int = 0,
) -> Environments:
    """Each environment shifts a random set of latents by ±N(loc, sd²); a control comes first.

    The number of targets is uniform on ``n_targets`` (both ends included).
    """
    low, high = n_targets
    if not 1 <= low <= high <= n_latents:
        raise ConfigError(f"n_targets must satisfy 1 <= low <= high <= {n_latents}, got {n_targets}")
    check_sizes(n_latents=n_latents, n_environments=n_environments)
    check_seed(seed)
    if not (abs(loc) < LARGE and 0 <= sd < LARGE):
        raise ConfigError(f"loc and sd must be finite, and sd 0 or more; got {loc} and {sd}")
    rng = np.random.default_rng(seed)
    mask = np.zeros((n_environments, n_latents), dtype=np.float32)
    for row in mask:
        row[rng.choice(n_latents, size=rng.integers(low, high + 1), replace=False)] = 1
    size = rng.choice([-1, 1], mask.shape) * rng.normal(loc, sd, mask.shape)
    return _with_control(torch.from_numpy((mask * size).astype(np.float32)))


def combinations(singles: Environments, pairs: Sequence[tuple[str, str]] | None = None) -> Environments:
    """The given environments and their pairwise combinations, whose shifts add up.

    ``pairs`` names the combinations to add (default: all pairs of treated environments). The table's column ``parts``
    lists what each environment is made of.
    """
    if singles.hard is not None or singles.gain is not None:
        raise ConfigError("combinations adds up noise shifts; hard and mechanism interventions do not add")
    treated = [i for i in range(len(singles)) if i not in singles.control]
    if pairs is None:
        chosen = list(itertools.combinations(treated, 2))
    else:
        position = {name: i for i, name in enumerate(singles.names)}
        if unknown := [name for pair in pairs for name in pair if name not in position]:
            raise ConfigError(f"unknown environments {unknown}; there are {singles.names}")
        chosen = [(position[a], position[b]) for a, b in pairs]
    first, second = (torch.tensor([pair[k] for pair in chosen], dtype=torch.long) for k in (0, 1))
    a, b = singles.shift.select(first), singles.shift.select(second)
    names = singles.names + [f"{singles.names[i]}+{singles.names[j]}" for i, j in chosen]
    parts = [[name] for name in singles.names] + [[singles.names[i], singles.names[j]] for i, j in chosen]
    return Environments(
        names,
        NoiseShift(
            torch.cat([singles.shift.loc, a.loc + b.loc]),
            torch.cat([singles.shift.log_scale, a.log_scale + b.log_scale]),
        ),
        table=pd.DataFrame({"parts": ["+".join(p) for p in parts]}, index=pd.Index(names)),
        control=singles.control,
    )


def graded_doses(
    n_latents: int,
    n_drugs: int,
    *,
    doses: Sequence[float] = (0.04, 0.12, 0.37, 1.11, 3.33, 10.0),
    max_effect_sd: float = 5.0,
    seed: int = 0,
) -> Environments:
    """Every drug at every dose (µM): one target a drug, size by a Hill curve; a control comes first.

    ``loc = Emax · dose^h / (EC50^h + dose^h)`` with ``Emax ~ N(0, max_effect_sd²)``, ``EC50`` log-uniform over the
    dose range and ``h ~ U(1, 2)``, one triple a drug. The table has columns ``perturbagen`` and ``dose`` (µM).
    """
    dose = np.asarray(doses, dtype=float)
    check_sizes(n_latents=n_latents, n_drugs=n_drugs)
    check_seed(seed)
    if not (dose.size and (dose > 1 / LARGE).all() and (dose < LARGE).all()):
        raise ConfigError(f"doses must be positive concentrations in µM, got {list(doses)}")
    rng = np.random.default_rng(seed)
    target, emax = rng.integers(n_latents, size=n_drugs), rng.normal(0, max_effect_sd, n_drugs)
    ec50 = np.exp(rng.uniform(np.log(dose.min()), np.log(dose.max()), n_drugs))
    hill = rng.uniform(1, 2, n_drugs)[:, None]
    curve = emax[:, None] * dose**hill / (ec50[:, None] ** hill + dose**hill)
    loc = torch.zeros(n_drugs, len(dose), n_latents)
    loc[torch.arange(n_drugs), :, torch.from_numpy(target)] = torch.from_numpy(curve).float()
    rows = [(f"drug {i}", float(value)) for i in range(n_drugs) for value in dose]
    names = ["control"] + [f"{drug} at {value:g} µM" for drug, value in rows]
    table = pd.DataFrame([("control", 0.0), *rows], columns=["perturbagen", "dose"], index=pd.Index(names))
    loc = torch.cat([torch.zeros(1, n_latents), loc.flatten(0, 1)])
    return Environments(names, NoiseShift(loc, torch.zeros_like(loc)), table=table, control=(0,))


def descriptors(n_latents: int, n_features: int, *, seed: int = 0) -> Callable[[Environments], Environments]:
    """A fixed random projection of the shifts, in the place of a molecular fingerprint (paper, Hypothesis 3).

    Returns a function that gives environments their features ``loc @ R / sqrt(d)``, ``R [d, f]`` standard normal: what
    a model may know of an environment without being told which latent it acts on.
    """
    rng = np.random.default_rng(seed)
    projection = torch.from_numpy(rng.standard_normal((n_latents, n_features)).astype(np.float32)) / math.sqrt(
        n_latents
    )
    return lambda environments: replace(environments, features=environments.shift.loc @ projection)


def _normal(rng: np.random.Generator, n: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal(n).astype(np.float32))


def _with_control(loc: Tensor) -> Environments:
    names = ["control"] + [f"env {i + 1}" for i in range(len(loc))]
    return _design(torch.cat([torch.zeros(1, loc.shape[1]), loc]), names=names, control=(0,))


def _design(loc: Tensor, names: list[str] | None = None, control: tuple[int, ...] = ()) -> Environments:
    names = [f"env {i + 1}" for i in range(len(loc))] if names is None else names
    return Environments(names, NoiseShift(loc, torch.zeros_like(loc)), control=control)

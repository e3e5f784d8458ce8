"""K models of one kind as one program: stacked weights, one batch and one stream of noise a member.

The program is the objective itself, run once under ``torch.func.vmap``, with random draws as inputs and layers that batch
well (:mod:`~pyro_cge.train.ensembles.layers`). Once it has proved itself it is traced to a flat list of tensor operations, which
leaves out Pyro, vmap and autograd from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, cast

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, fx, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from ...data.environment import Batch, EnvironmentData
from ...errors import ConfigError
from ...guides.amortized import AmortizedGuide
from ...models.cell import CellModel
from ...seeds import isolated
from ..loop import Objective
from .layers import MemberMode
from .noise import Draw, MemberNoise
from .tracing import traced

TRACE_AFTER = 1  # runs of one shape
Tensors = dict[str, Tensor]


class Pair(nn.Module):
    """A model and its guide under one roof: their weights are named ``model.…`` and ``guide.…``."""

    model: CellModel
    guide: AmortizedGuide

    def __init__(self, model: CellModel, guide: AmortizedGuide) -> None:
        super().__init__()
        self.model, self.guide = model, guide

    def forward(self, objective: Objective, batch: Batch, warmup: Tensor | float) -> Tensors:
        with _NoStore():
            return objective(self.model, self.guide, batch, warmup=cast(float, warmup))


class _NoStore(Messenger):
    """Keeps weights, which for a while are those of all members, out of Pyro's global parameter store."""

    def _pyro_param(self, msg: Any) -> None:
        msg["value"], msg["done"] = msg["args"][1], True


class Program:
    """The objective of K members at once, and its gradients.

    Parameters
    ----------
    pair : Pair
        Any member; only its structure is used.
    objective : Objective
    trained : sequence of str
        Names of the weights that are trained.

    Raises
    ------
    ConfigError
        When called, for a model or objective that cannot run as a batch, with what it was that could not.
    """

    def __init__(self, pair: Pair, objective: Objective, trained: Sequence[str]) -> None:
        self.pair, self.objective, self.trained = pair, objective, list(trained)
        self.tapes: dict[tuple[int, int], list[Draw]] = {}
        self.tables: dict[int, Batch] = {}  # a batch of each size, for the environment tables that all batches share
        self.runs: dict[Any, int] = {}
        self.traced: dict[Any, fx.GraphModule] = {}
        self.named: list[str] = []  # the terms, in order
        self.options: tuple[Any, ...] = ()  # what a trace takes for granted

    def renew(self, *options: Any) -> None:
        """Trace anew if ``options``, what is no tensor in model and objective, are others than before."""
        if options != self.options:
            self.options = options
            self.runs.clear()
            self.traced.clear()

    def tape(self, n: int, n_envs: int, batch: Callable[[], Batch]) -> list[Draw]:
        """What one member draws at random for a batch of ``n`` profiles in ``n_envs`` environments, such as ``batch()``."""
        if (n, n_envs) not in self.tapes:
            with isolated(0), MemberMode() as mode:
                self.pair(self.objective, batch(), 1.0)
            self.tapes[n, n_envs] = mode.taken
        return self.tapes[n, n_envs]

    @torch.no_grad()
    def terms(self, weights: Tensors, batch: Batch, noise: Sequence[Tensor], beta: Tensor | None) -> Tensors:
        """The objective's terms ``[K]`` each, without gradients: what held-out data are judged by."""
        one = torch.ones((), device=batch.env.device)
        return self._run(self._values, weights, batch, noise, one, beta)[0]

    def step(
        self, weights: Tensors, batch: Batch, noise: Sequence[Tensor], warmup: Tensor, beta: Tensor | None
    ) -> tuple[Tensors, list[Tensor | None], Tensor]:
        """Terms ``[K]``, gradients of the trained weights ``[K, ...]``, and their norm ``[K]``."""
        terms, (norm, *grads) = self._run(self._gradients, weights, batch, noise, warmup, beta)
        return terms, grads, cast(Tensor, norm)

    def _run(
        self,
        program: Callable[..., tuple[Tensors, list[Tensor | None]]],
        weights: Tensors,
        batch: Batch,
        noise: Sequence[Tensor],
        warmup: Tensor,
        beta: Tensor | None,
    ) -> tuple[Tensors, list[Tensor | None]]:
        """What ``program`` puts out, from its trace once it has run often enough."""
        given = _tensors(batch)
        tensors = [*weights.values(), *given.values(), *noise, warmup, *([] if beta is None else [beta])]

        def flat(*tensors: Tensor) -> list[Tensor | None]:
            rest = iter(tensors)
            own = {name: next(rest) for name in weights}
            # Weights that are trained say so, or Pyro warns that they are not.
            own |= {name: own[name].detach().requires_grad_() for name in self.trained}
            here = replace(batch, **cast(dict[str, Any], {name: next(rest) for name in given}))
            terms, more = program(own, here, [next(rest) for _ in noise], next(rest), next(rest, None))
            self.named = list(terms)
            return [*(value.detach() for value in terms.values()), *more]

        key = (program.__name__, tensors[0].shape[0], *(t.shape for t in (*given.values(), *noise)))
        self.runs[key] = self.runs.get(key, 0) + 1
        if self.runs[key] == TRACE_AFTER + 1:
            self.traced[key] = traced(flat, tensors)
        if key in self.traced:
            with torch.no_grad():
                result = self.traced[key](*tensors)
        else:
            result = flat(*tensors)
        return dict(zip(self.named, result, strict=False)), result[len(self.named) :]

    def _values(self, *given: Any) -> tuple[Tensors, list[Tensor | None]]:
        return self._terms(*given), []

    def _gradients(self, weights: Tensors, *given: Any) -> tuple[Tensors, list[Tensor | None]]:
        terms = self._terms(weights, *given)
        trained = [weights[name] for name in self.trained]
        grads = torch.autograd.grad(terms["loss"].sum(), trained, allow_unused=True)
        grads = tuple(None if g is None else g.contiguous() for g in grads)
        norms = [torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1) for g in grads if g is not None]
        return terms, [torch.linalg.vector_norm(torch.stack(norms), dim=0), *grads]

    def _terms(
        self, weights: Tensors, batch: Batch, noise: Sequence[Tensor], warmup: Tensor | float, beta: Tensor | None
    ) -> Tensors:
        # Fields of the batch with a dimension more than usual are one a member.
        given = _tensors(batch)
        dims = {name: 0 if value.dim() > ORDINARY[name] else None for name, value in given.items()}

        def member(weights: Tensors, given: Tensors, noise: list[Tensor], beta: Tensor | None) -> Tensors:
            objective = self.objective if beta is None else replace(cast(Any, self.objective), beta=beta)
            with MemberMode(noise):
                return functional_call(
                    self.pair, weights, (objective, replace(batch, **cast(dict[str, Any], given)), warmup)
                )

        try:
            return vmap(member, (0, dims, 0, None if beta is None else 0), randomness="error")(
                weights, given, list(noise), beta
            )
        except (RuntimeError, NotImplementedError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            # One member alone has run before (its tape was taken), so it is the batch that cannot.
            parts = [*self.pair.model.children(), self.pair.guide, self.objective]
            raise ConfigError(
                f"a model of {', '.join(type(part).__name__ for part in parts)} cannot run as a batch of members "
                f"({str(error).strip().splitlines()[0]}); fit them one after the other: "
                "[fit(*build(data), data, seed=seed) for seed in seeds]"
            ) from error


def _tensors(batch: Batch) -> Tensors:
    return {f.name: value for f in fields(batch) if isinstance(value := getattr(batch, f.name), Tensor)}


def member_batch(
    data: EnvironmentData, rows: Tensor, program: Program, noise: MemberNoise
) -> tuple[Batch, list[Tensor]]:
    """Profiles ``rows [K, n]``, a row of them a member, as one batch, and each member's noise for it.

    Environments travel with the batch as in :meth:`~pyro_cge.data.environment.EnvironmentData.batch`. Where those are
    only the ones present, their number differs between members: all get as many as profiles, the last of no weight.
    """
    members, n = rows.shape
    if n not in program.tables:
        program.tables[n] = data.batch(rows[0])
    tables = program.tables[n]
    x = data.x.index_select(0, rows.flatten()).unflatten(0, rows.shape)
    env = data.env.index_select(0, rows.flatten()).unflatten(0, rows.shape)
    if len(tables.envs) == data.n_envs:
        weight = _weight(env, data.env_counts.expand(members, -1), data.n)
        tape = program.tape(n, data.n_envs, lambda: tables)
        return replace(tables, x=x, env=env, index=rows, weight=weight), noise.draw([tape] * members, tape)
    present = [torch.unique(row, return_inverse=True) for row in env]
    tapes = [program.tape(n, len(here), partial(data.batch, row)) for (here, _), row in zip(present, rows, strict=True)]
    envs = torch.stack([F.pad(here, (0, n - len(here)), value=int(here[0])) for here, _ in present])
    counts = data.env_counts[envs]
    env = torch.stack([inverse for _, inverse in present])
    batch = replace(
        tables,
        x=x,
        env=env,
        envs=envs,
        env_features=None if data.env_features is None else data.env_features[envs],
        is_control=data.is_control[envs],
        env_counts=counts,
        index=rows,
        weight=_weight(env, counts, data.n),
    )
    return batch, noise.draw(tapes, program.tape(n, n, lambda: _first(batch)))


def _first(batch: Batch) -> Batch:
    """The batch of the first member."""
    own = {name: value[0] for name, value in _tensors(batch).items()}
    return replace(batch, **cast(dict[str, Any], own))


def _weight(env: Tensor, counts: Tensor, n_total: int) -> Tensor:
    """``Batch.env_weight`` of each member ``[K, E]``."""
    here = torch.zeros(counts.shape, device=env.device).scatter_add_(1, env, torch.ones(env.shape, device=env.device))
    return here / counts.clamp_min(1) * (n_total / env.shape[1])


# Dimensions of a batch's fields where members share them.
ORDINARY = {"x": 2, "env": 1, "envs": 1, "env_features": 2, "is_control": 1, "env_counts": 1, "index": 1, "weight": 1}

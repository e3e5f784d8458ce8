"""K models of one kind as one program: stacked weights, one batch and one stream of noise a member.

The program is the objective itself, run once under ``torch.func.vmap``. Three things are put right on the way: random
draws are inputs (so that each member has the noise of its own seed), linear layers and row look-ups have batched forms
that read memory in order, and a program that has proved itself is traced to a flat list of tensor operations, which leaves
out Pyro, vmap and autograd from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, cast

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, fx, nn
from torch.func import functional_call, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..data.environment import Batch, EnvironmentData
from ..errors import ConfigError
from ..guides.amortized import AmortizedGuide
from ..models.cell import CellModel
from ..seeds import isolated, mix
from .loop import Objective

TRACE_AFTER = 20  # runs of one shape; a trace costs about a second
NARROW = 16  # columns of a product that are few
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Draw:
    """One call of a random number generator: ``normal_``, ``uniform_`` or ``exponential_``, and what it fills."""

    kind: str
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def __call__(self, generator: torch.Generator | None = None) -> Tensor:
        empty = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        return getattr(empty, self.kind)(generator=generator)


class MemberMode(TorchFunctionMode):
    """While in force, random draws are taken from ``given`` (or drawn, and noted in ``taken``), and layers batch well."""

    def __init__(self, given: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.given, self.taken = given, cast(list[Draw], [])

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and args[0].dim() > 1:
            return MemberLinear.apply(*args, *([None] if len(args) == 2 else []))
        if func is torch.Tensor.index_select and args[1] == -2:
            return MemberRows.apply(args[0], args[2])
        if func is F.embedding and args[0].dim() == 1:
            return MemberRows.apply(args[1], args[0])
        if (
            func is torch.Tensor.normal_ and len(args) == 1 and not kwargs
        ):  # of distributions, which use what it returns
            return self._next("normal_", args[0])
        if func in (torch.randn, torch.rand):
            shape = args[0] if isinstance(args[0], Sequence) else args
            return self._next("normal_" if func is torch.randn else "uniform_", torch.empty(shape, **kwargs))
        if func in (torch.randn_like, torch.rand_like):
            return self._next("normal_" if func is torch.randn_like else "uniform_", args[0])
        if func is torch.Tensor.__setitem__ and getattr(args[1], "dtype", None) is torch.bool and _is_number(args[2]):
            return args[0].masked_fill_(args[1], args[2])
        if func is torch.multinomial and args[1] == 1:  # as torch does it: the winner of exponential races
            return (args[0] / self._next("exponential_", args[0])).argmax(-1, keepdim=True)
        return func(*args, **kwargs)

    def _next(self, kind: str, like: Tensor) -> Tensor:
        draw = Draw(kind, like.shape, like.dtype, like.device)
        self.taken.append(draw)
        return draw() if self.given is None else self.given[len(self.taken) - 1]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


class MemberLinear(torch.autograd.Function):
    """``x [..., n, i] → x Wᵀ + b``, over members one batched product each way, gradients laid out like the weights."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if weight.dim() == 2:
            return F.linear(x, weight, bias)
        rows = x.flatten(1, -2)
        if bias is None or weight.shape[-2] <= NARROW:
            y = _product(rows, weight.mT) if bias is None else _product(rows, weight.mT) + bias.unsqueeze(1)
        else:
            y = torch.baddbmm(bias.unsqueeze(1), rows, weight.mT)
        return y.unflatten(1, x.shape[1:-1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        members = weight.dim() - 2
        rows, grads = x.flatten(members, -2), grad.flatten(members, -2)
        dx = _product(grads, weight).unflatten(members, x.shape[members:-1]) if ctx.needs_input_grad[0] else None
        dw = _product(grads.mT, rows) if ctx.needs_input_grad[1] else None
        return dx, dw, grads.sum(-2) if ctx.needs_input_grad[2] else None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Tensor | None) -> tuple[Tensor, int]:
        x, weight, bias = (_in_front(t, d, info.batch_size) for t, d in zip(inputs, in_dims, strict=True))
        return cast(Tensor, MemberLinear.apply(x, weight, bias)), 0


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b``, turned around where that makes it long and thin: libraries are several times slower at those."""
    return (b.mT @ a.mT).mT.contiguous() if b.shape[-1] <= NARROW < a.shape[-2] else a @ b


class MemberRows(torch.autograd.Function):
    """``x [..., E, h] → x[..., index, :]``; over members with indices of their own, rows of one long table."""

    @staticmethod
    def forward(x: Tensor, index: Tensor) -> Tensor:
        return x.index_select(-2, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.new_zeros(ctx.shape).index_add(-2, ctx.saved_tensors[0], grad), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, index: Tensor) -> tuple[Tensor, int]:
        if in_dims[1] is None:
            return cast(Tensor, MemberRows.apply(_in_front(x, in_dims[0], info.batch_size), index)), 0
        x, index = (_in_front(t, d, info.batch_size) for t, d in zip((x, index), in_dims, strict=True))
        table = x.movedim(-2, 1) if x.dim() > 3 else x  # [K, E, ..., h]
        offset = torch.arange(0, len(x) * table.shape[1], table.shape[1], device=index.device).unsqueeze(-1)
        chosen = cast(Tensor, MemberRows.apply(table.flatten(0, 1).flatten(1), (index + offset).flatten()))
        chosen = chosen.view(*index.shape, *table.shape[2:])
        return (chosen.movedim(1, -2) if x.dim() > 3 else chosen), 0


def _in_front(value: Any, dim: int | None, size: int) -> Any:
    if value is None:
        return None
    return value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)


class MemberNoise:
    """Random numbers of K members: each draws what its own single run would, in a stream of its own seed."""

    def __init__(self, seeds: Sequence[int], stream: str, device: torch.device) -> None:
        mixed = [mix(seed, stream) for seed in seeds]
        self.cpu = [torch.Generator().manual_seed(seed) for seed in mixed]
        on_cpu = device.type == "cpu"
        self.own = self.cpu if on_cpu else [torch.Generator(device).manual_seed(seed) for seed in mixed]

    def orders(self, n: int) -> Tensor:
        """A permutation of the profiles for each member ``[K, n]``."""
        return torch.stack([torch.randperm(n, generator=generator) for generator in self.cpu])

    def draw(self, tapes: Sequence[Sequence[Draw]], shapes: Sequence[Draw]) -> list[Tensor]:
        """Each member's draws ``[K, ...]``, zeros where ``shapes`` (of a padded batch) go beyond its own."""
        drawn = [torch.zeros(len(self.own), *s.shape, dtype=s.dtype, device=s.device) for s in shapes]
        for k, (generator, tape) in enumerate(zip(self.own, tapes, strict=True)):
            for all_members, draw in zip(drawn, tape, strict=True):
                row = all_members[k]
                if row.shape == draw.shape:
                    getattr(row, draw.kind)(generator=generator)
                else:
                    row[tuple(map(slice, draw.shape))] = draw(generator)
        return drawn


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

    def tape(self, n: int, n_envs: int, batch: Callable[[], Batch]) -> list[Draw]:
        """What one member draws at random for a batch of ``n`` profiles in ``n_envs`` environments, such as ``batch()``."""
        if (n, n_envs) not in self.tapes:
            with isolated(0), MemberMode() as mode:
                self.pair(self.objective, batch(), 1.0)
            self.tapes[n, n_envs] = mode.taken
        return self.tapes[n, n_envs]

    @torch.no_grad()
    def terms(
        self, weights: Tensors, batch: Batch, noise: Sequence[Tensor], warmup: Tensor | float, beta: Tensor | None
    ) -> Tensors:
        """The objective's terms ``[K]`` each, without gradients: what held-out data are judged by."""
        # Weights that are trained say so, or Pyro warns that they are not.
        own = {name: weights[name].detach().requires_grad_() for name in self.trained}
        return self._terms(weights | own, batch, noise, warmup, beta)

    def _terms(
        self, weights: Tensors, batch: Batch, noise: Sequence[Tensor], warmup: Tensor | float, beta: Tensor | None
    ) -> Tensors:
        # Fields of the batch with a dimension more than usual are one a member.
        given = {f.name: value for f in fields(batch) if isinstance(value := getattr(batch, f.name), Tensor)}
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

    def step(
        self, weights: Tensors, batch: Batch, noise: Sequence[Tensor], warmup: Tensor, beta: Tensor | None
    ) -> tuple[Tensors, list[Tensor | None], Tensor]:
        """Terms ``[K]``, gradients of the trained weights ``[K, ...]``, and their norm ``[K]``."""
        given = {f.name: value for f in fields(batch) if isinstance(value := getattr(batch, f.name), Tensor)}
        tensors = [*weights.values(), *given.values(), *noise, warmup, *([] if beta is None else [beta])]

        def program(*tensors: Tensor) -> list[Tensor | None]:
            rest = iter(tensors)
            own = {name: next(rest) for name in weights}
            here = replace(batch, **cast(dict[str, Any], {name: next(rest) for name in given}))
            drawn, warm, b = [next(rest) for _ in noise], next(rest), next(rest, None)
            trained = [own[name].detach().requires_grad_() for name in self.trained]
            terms = self._terms(own | dict(zip(self.trained, trained, strict=True)), here, drawn, warm, b)
            self.named = list(terms)
            grads = torch.autograd.grad(terms["loss"].sum(), trained, allow_unused=True)
            grads = tuple(None if g is None else g.contiguous() for g in grads)
            norms = [torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1) for g in grads if g is not None]
            norm = torch.linalg.vector_norm(torch.stack(norms), dim=0)
            return [norm, *(value.detach() for value in terms.values()), *grads]

        key = tuple(t.shape for t in (*given.values(), *noise))
        self.runs[key] = self.runs.get(key, 0) + 1
        if self.runs[key] == TRACE_AFTER + 1:
            self.traced[key] = _tidied(make_fx(program)(*tensors))
        if key in self.traced:
            with torch.no_grad():
                result = self.traced[key](*tensors)
        else:
            result = program(*tensors)
        n_terms = 1 + len(self.named)
        return dict(zip(self.named, result[1:n_terms], strict=True)), result[n_terms:], result[0]


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
    own = {f.name: value[0] for f in fields(batch) if isinstance(value := getattr(batch, f.name), Tensor)}
    return replace(batch, **cast(dict[str, Any], own))


def _weight(env: Tensor, counts: Tensor, n_total: int) -> Tensor:
    """``Batch.env_weight`` of each member ``[K, E]``."""
    here = torch.zeros(counts.shape, device=env.device).scatter_add_(1, env, torch.ones(env.shape, device=env.device))
    return here / counts.clamp_min(1) * (n_total / env.shape[1])


# Dimensions of a batch's fields where members share them.
ORDINARY = {"x": 2, "env": 1, "envs": 1, "env_features": 2, "is_control": 1, "env_counts": 1, "index": 1, "weight": 1}


def _tidied(graph: fx.GraphModule) -> fx.GraphModule:
    """The same program without steps that do nothing, or again what was done before."""
    aten = torch.ops.aten
    same = {aten.detach.default, aten.alias.default}
    shaped = {aten.view.default, aten.expand.default, aten._unsafe_view.default}
    nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
    pure = not any(getattr(node.target, "_schema", None) and node.target._schema.is_mutable for node in nodes)
    done: dict[str, fx.Node] = {}
    for node in nodes:
        unmoved = node.target is aten.permute.default and list(node.args[1]) == list(range(len(node.args[1])))
        if node.target in same or unmoved or (node.target in shaped and _shape(node.args[0]) == _shape(node)):
            node.replace_all_uses_with(node.args[0])
        elif pure and (before := done.setdefault(str((node.target, node.args, node.kwargs)), node)) is not node:
            node.replace_all_uses_with(before)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)

"""What lets one program serve K members: random draws as inputs, layers and look-ups that read memory in order.

Random draws are inputs so that each member has the noise of its own seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .noise import Draw

NARROW = 16  # columns of a product that are few


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

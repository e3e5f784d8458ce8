"""The weights of K models of one shape, stacked, and Adam over them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.adam import adam


class Stack:
    """Weights ``[K, ...]`` of K modules of one shape. The modules' own weights are rows of it: they always say the same.

    Parameters
    ----------
    modules : sequence of nn.Module
    rates : sequence of float
        Each member's learning rate; equal ones side by side are one call of Adam.
    """

    def __init__(self, modules: Sequence[nn.Module], rates: Sequence[float]) -> None:
        self.rates = list(rates)
        names = [name for name, _ in modules[0].named_parameters()]
        self.trained = [name for name, parameter in modules[0].named_parameters() if parameter.requires_grad]
        self.parameters = {name: torch.stack([m.get_parameter(name).detach() for m in modules]) for name in names}
        self.mean = {name: torch.zeros_like(self.parameters[name]) for name in self.trained}
        self.square = {name: torch.zeros_like(self.parameters[name]) for name in self.trained}
        self.steps = 0
        self._groups: dict[tuple[str, ...], list[tuple[float, slice, list[list[Tensor]]]]] = {}
        self.device = next(iter(self.parameters.values())).device
        self.buffers: dict[str, Tensor] = {}
        self._lend(modules)

    @property
    def weights(self) -> dict[str, Tensor]:
        """All there is to a member but its structure: parameters and buffers, by name."""
        return self.parameters | self.buffers

    def read_buffers(self, modules: Sequence[nn.Module]) -> None:
        """Take over the modules' buffers (a temperature, say), which may have been changed."""
        names = [name for name, _ in modules[0].named_buffers()]
        self.buffers = {name: torch.stack([m.get_buffer(name) for m in modules]) for name in names}

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor | None], factor: float) -> None:
        """One step of fused Adam at ``factor`` times the learning rates; weights without a gradient stay."""
        used = [k for k, grad in enumerate(grads) if grad is not None]
        names = tuple(self.trained[k] for k in used)
        if names not in self._groups:
            self._groups[names] = self._by_rate(names)
        for rate, rows, (weights, means, squares) in self._groups[names]:
            adam(
                weights,
                [cast(Tensor, grads[k])[rows] for k in used],
                means,
                squares,
                [],
                list(torch.full((len(used),), float(self.steps), device=self.device)),
                fused=True,
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=rate * factor,
                weight_decay=0.0,
                eps=1e-8,
                maximize=False,
            )
        self.steps += 1

    def _by_rate(self, names: Sequence[str]) -> list[tuple[float, slice, list[list[Tensor]]]]:
        """Members of one learning rate side by side, with their rows of these weights and of both moments."""
        groups, start = [], 0
        for rate, same in groupby(self.rates):
            rows = slice(start, start := start + len(list(same)))
            groups.append(
                (
                    rate,
                    rows,
                    [[table[name][rows] for name in names] for table in (self.parameters, self.mean, self.square)],
                )
            )
        return groups

    def keep(self, members: Sequence[int], modules: Sequence[nn.Module]) -> None:
        """Go on with these members only; ``modules`` are theirs."""
        rows = torch.tensor(members, device=self.device)
        for table in (self.parameters, self.mean, self.square, self.buffers):
            for name in table:
                table[name] = table[name].index_select(0, rows)
        self.rates = [self.rates[k] for k in members]
        self._groups.clear()
        self._lend(modules)

    def _lend(self, modules: Sequence[nn.Module]) -> None:
        for name, rows in self.parameters.items():
            for module, row in zip(modules, rows, strict=True):
                module.get_parameter(name).data = row

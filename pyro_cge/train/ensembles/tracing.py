"""A function of tensors as a flat list of the operations it comes to: no Python of its own, no autograd, no vmap."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
SAME = {aten.detach.default, aten.alias.default}
SHAPED = {aten.view.default, aten.expand.default, aten._unsafe_view.default}


def traced(function: Callable[..., Sequence[Tensor | None]], inputs: Sequence[Tensor]) -> fx.GraphModule:
    """``function`` for inputs of these shapes, from one run of it.

    What it takes from elsewhere becomes a constant, and so does every choice it makes.

    Raises
    ------
    RuntimeError
        If a choice hangs on the value of a tensor.
    """
    with Recorder(inputs) as recorder:
        outputs = function(*inputs)
    recorder.graph.output([None if value is None else recorder.node(value) for value in outputs])
    graph = fx.GraphModule(recorder.constants, recorder.graph)
    _tidy(graph.graph)
    graph.recompile()
    return graph


class Recorder(TorchDispatchMode):
    """Notes every operation on tensors while it is in force, those of a backward pass too."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.constants: dict[str, Any] = {}
        self.nodes: dict[int, fx.Node] = {}
        self.kept: list[Tensor] = []  # while they live no other tensor has their id
        for number, value in enumerate(inputs):
            self._known(value, self.graph.placeholder(f"input_{number}"))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten._local_scalar_dense.default:
            raise RuntimeError("a choice hangs on the value of a tensor (.item(), bool(…))")
        result = func(*args, **(kwargs or {}))
        given: Any = fx.node.map_aggregate((args, kwargs or {}), lambda a: self.node(a) if isinstance(a, Tensor) else a)
        node = self.graph.call_function(func, *given)
        if isinstance(result, Tensor):
            self._known(result, node)
        elif isinstance(result, tuple | list):
            for number, part in enumerate(result):
                if isinstance(part, Tensor):
                    self._known(part, self.graph.call_function(operator.getitem, (node, number)))
        return result

    def node(self, value: Tensor) -> fx.Node:
        """Where the tensor came from."""
        if id(value) not in self.nodes:
            name = f"constant_{len(self.constants)}"
            self.constants[name] = value.detach()
            self._known(value, self.graph.get_attr(name))
        return self.nodes[id(value)]

    def _known(self, value: Tensor, node: fx.Node) -> None:
        self.nodes[id(value)] = node
        self.kept.append(value)
        node.meta["shape"] = value.shape


def _tidy(graph: fx.Graph) -> None:
    """Leave out steps that do nothing, or again what was done before."""
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    pure = not any(getattr(node.target, "_schema", None) and node.target._schema.is_mutable for node in nodes)
    done: dict[str, fx.Node] = {}
    for node in nodes:
        unmoved = node.target is aten.permute.default and list(node.args[1]) == list(range(len(node.args[1])))
        still = node.target in SHAPED and node.args[0].meta["shape"] == node.meta["shape"]
        if node.target in SAME or unmoved or still:
            node.replace_all_uses_with(node.args[0])
        elif pure and (before := done.setdefault(str((node.target, node.args, node.kwargs)), node)) is not node:
            node.replace_all_uses_with(before)
    graph.eliminate_dead_code()

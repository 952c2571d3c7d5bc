"""A network as a graph of operations (torch.fx): which there are, their shapes and their times.

The graph has no in-place operations and keeps dropout as modules, so that parts of it can
be cut out and run on their own.
"""

from __future__ import annotations

import copy
import inspect
import operator
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

PROBES = (2, 3)
"""Batch sizes at which shapes are read, so that what follows the batch size can be told from constants."""
IN_PLACE_OPERATORS = {
    getattr(operator, f"i{name}"): getattr(operator, name)
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")
}


@lru_cache(maxsize=1)
def traced(network: nn.Module, image_size: int) -> tuple[fx.GraphModule, list[dict[str, Any]]]:
    """The traced network and, for batches of each size in PROBES, the values of its nodes; kept for its next cut."""
    graph = _trace(network)
    return graph, _shapes(graph, image_size)


def outputs(network: nn.Module, nodes: Sequence[str]) -> fx.GraphModule:
    """The part of a network that computes the named nodes of its traced graph: images → a tuple of tensors."""
    traced = _trace(network)
    graph, copied = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in traced.graph.nodes:
        if node.op != "output":
            copied[node] = graph.node_copy(node, copied.__getitem__)
    named = {node.name: copy for node, copy in copied.items()}
    graph.output(tuple(named[name] for name in nodes))
    return tidied(traced, graph)


def seconds_per_node(
    network: nn.Module, image_size: int, batch: int, device: torch.device | None = None
) -> dict[str, float]:
    """Seconds an image that each node of the traced graph takes on a device, in eval mode, at a batch size.

    Of the network's tensors only the shapes matter.
    """
    seconds: dict[str, float] = {}
    where = device or torch.device("cpu")

    class Timer(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            started = time.perf_counter()
            value = super().run_node(n)
            if where.type == "cuda":
                torch.cuda.synchronize(where)
            seconds[n.name] = (time.perf_counter() - started) / batch
            return value

    images = torch.randn(batch, 3, image_size, image_size, device=where).contiguous(memory_format=torch.channels_last)
    zeros = _copy_with(traced(network, image_size)[0], lambda x: torch.empty_like(x, device=where).zero_())
    timer = Timer(channels_last(zeros.eval()))
    with torch.no_grad():
        for _ in range(2):  # the second time counts: the first warms up
            timer.run(images)
    return seconds


def channels_last(network: nn.Module) -> nn.Module:
    """The network with its convolutions' weights channels last, in place.

    `nn.Module.to` would refuse a network that has tensors of five axes, as timm's Swin has.
    """
    for x in (*network.parameters(), *network.buffers()):
        if x.dim() == 4:
            x.data = x.data.contiguous(memory_format=torch.channels_last)
    return network


class _Tracer(fx.Tracer):
    """Looks into a module only where that can part one layer from another."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        children = list(m.children())
        if not children or super().is_leaf_module(m, module_qualified_name):
            return True
        owns = next(m.parameters(recurse=False), None) is not None
        return owns and not any(True for child in children for _ in child.parameters())


def _trace(network: nn.Module) -> fx.GraphModule:
    """The traced network, without in-place operations and with dropout as modules.

    Raises:
        Exception: it cannot be traced, or needs what it does in place; it is then left as it was.
    """
    was_training = network.training
    in_place = [module for module in network.modules() if getattr(module, "inplace", False)]
    _set_in_place(in_place, False)
    try:
        traced = fx.GraphModule(network, _Tracer().trace(network.train()))
        for index, node in enumerate(list(traced.graph.nodes)):
            _out_of_place(traced, node, in_place)
            if node.target is F.dropout:
                _dropout_module(traced, node, f"dropout_{index}")
    except Exception:
        _set_in_place(in_place, True)
        raise
    finally:
        network.train(was_training)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced


def _set_in_place(modules: Iterable[nn.Module], value: bool) -> None:
    for module in modules:
        module.inplace = value  # type: ignore[assignment]


def _out_of_place(traced: fx.GraphModule, node: fx.Node, in_place: Sequence[nn.Module]) -> None:
    """Let a node that changes its input make a new tensor instead.

    Raises:
        ValueError: the change is what later nodes see, through the input and not through the node's output.
    """
    if node.op == "call_module":
        if traced.get_submodule(str(node.target)) not in in_place:
            return
    elif (arguments := _in_place_arguments(node)) is not None:
        node.args, node.kwargs = (), arguments | {"inplace": False}
    elif (target := _counterpart(node)) is not None:
        node.target = target
    else:
        return
    changed = node.all_input_nodes[0]
    if not node.users or any(user > node for user in changed.users):
        raise ValueError(f"{node.name} changes {changed.name} in place, which is used after it")


def _in_place_arguments(node: fx.Node) -> dict[str, Any] | None:
    """The arguments, by name, of a call such as `F.relu(x, True)`; None for any other node."""
    if node.op != "call_function":
        return None
    try:
        arguments = inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments  # type: ignore[arg-type]
    except (TypeError, ValueError):  # most of torch's own functions have no signature
        return None
    return arguments if arguments.get("inplace") else None


def _counterpart(node: fx.Node) -> Any:
    """What computes the result of `x.add_(y)`, `torch.relu_(x)` or `x += y` as a new tensor; None for other nodes.

    Raises:
        ValueError: there is no such method or function.
    """
    if node.op == "call_function" and node.target in IN_PLACE_OPERATORS:
        return IN_PLACE_OPERATORS[node.target]
    method = node.op == "call_method"
    name = str(node.target) if method else getattr(node.target, "__name__", "")
    if node.op not in ("call_method", "call_function") or not name.endswith("_") or name.endswith("__"):
        return None
    owner = Tensor if method else next((place for place in (torch, F) if hasattr(place, name)), None)
    found = getattr(owner, name[:-1], None)
    if not callable(found):
        raise ValueError(f"{name} has no counterpart that makes a new tensor")
    return name[:-1] if method else found


def _dropout_module(traced: fx.GraphModule, node: fx.Node, name: str) -> None:
    """A functional dropout has its mode baked in by tracing; a module follows train() and eval()."""
    p = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
    traced.add_submodule(name, nn.Dropout(float(p)))  # type: ignore[arg-type]
    with traced.graph.inserting_before(node):
        node.replace_all_uses_with(traced.graph.call_module(name, (node.all_input_nodes[0],)))
    traced.graph.erase_node(node)


def _shapes(traced: fx.GraphModule, image_size: int) -> list[dict[str, Any]]:
    """The values of all nodes on the meta device, where they have shapes but neither arithmetic nor memory."""
    shadow = _copy_with(traced, lambda x: x.to("meta")).eval()
    return [_values(shadow, torch.empty(batch, 3, image_size, image_size, device="meta")) for batch in PROBES]


@torch.no_grad()
def _values(traced: fx.GraphModule, images: Tensor) -> dict[str, Any]:
    """The value of every node."""
    values: dict[str, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            values[n.name] = super().run_node(n)
            return values[n.name]

    Recorder(traced).run(images)
    return values


def _copy_with(traced: fx.GraphModule, make: Callable[[Tensor], Tensor]) -> fx.GraphModule:
    """A copy that has `make(x)` for every parameter and buffer x, none of which is copied itself."""
    made: dict[int, Tensor] = {}
    for x in (*traced.parameters(), *traced.buffers()):
        new = make(x.detach())
        made[id(x)] = nn.Parameter(new, requires_grad=False) if isinstance(x, nn.Parameter) else new
    return copy.deepcopy(traced, made)


def tidied(root: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """A module that computes the graph with the root's modules, without operations that nothing needs."""
    side = fx.GraphModule(root, graph)
    side.graph.eliminate_dead_code()
    side.graph.lint()
    side.delete_all_unused_submodules()
    side.recompile()
    return side

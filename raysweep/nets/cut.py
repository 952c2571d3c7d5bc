"""Count a network's layers from its output, and cut it into a frozen prefix and a trainable suffix.

A layer is a module that owns parameters itself, in the order of definition; a residual
block's shortcut projection (convolution + norm) counts as one. Depth 1 trains the last
layer alone, `all` every layer, a module name everything from there to the output, a list
of patterns just the layers it matches.

The cut is made on the traced graph (torch.fx). What does not depend on a trainable
parameter can stand in the prefix, whose output is then a fixed function of the image.
Of all frontiers that keep every frozen layer in the prefix, the one that stores the
fewest bytes an image is chosen, by a minimum cut: parameter-free operations such as
DenseNet's concatenations stand on whichever side is smaller. Each side has its own
copy of the graph and shares the network's modules, so parameters that the root owns
(class tokens, position embeddings) are where they are needed.

Reference: Yosinski et al. 2014, "How transferable are features in deep neural
networks?", arXiv:1411.1792.
"""

from __future__ import annotations

import copy
import fnmatch
import inspect
import operator
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import networkx
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from raysweep.kernels import arrange
from raysweep.recipe import RecipeError, depth_label, near

SHORTCUTS = ("downsample", "shortcut", "proj")
"""Names that torchvision and timm give to a residual block's shortcut projection."""
PROBES = (2, 3)
"""Batch sizes at which shapes are read, so that what follows the batch size can be told from constants."""
IN_PLACE_OPERATORS = {
    getattr(operator, f"i{name}"): getattr(operator, name)
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")
}
_FORCED = 10**12
_UNSTORABLE = 10**18


@dataclass(frozen=True)
class Layer:
    """What depth counts."""

    name: str
    parameters: tuple[str, ...]
    """Qualified names of its parameter tensors."""


@dataclass(frozen=True)
class Cut:
    """A network in two sides: `suffix(*prefix(images))` equals `network(images)`."""

    prefix: fx.GraphModule | None
    """(batch, 3, height, width) → a tuple of frontier tensors; None where nothing is frozen before the suffix."""
    suffix: nn.Module
    """The frontier tensors → (batch, classes)."""
    frontier: tuple[str, ...]
    """Names of the nodes whose values cross the cut."""
    shapes: tuple[tuple[int, ...], ...]
    """Shape of each frontier tensor, without the batch axis."""
    trained: frozenset[str]
    """Qualified names of the parameters that train."""
    whole: bool
    """True where the network could not be traced: it then runs whole, with its frozen layers inside."""

    def own_suffix(self) -> nn.Module:
        """A copy of the suffix in which exactly the trained parameters ask for gradients."""
        suffix = copy.deepcopy(self.suffix)
        for name, parameter in suffix.named_parameters():
            parameter.requires_grad_(name in self.trained)
        return suffix

    @property
    def numbers_per_image(self) -> int:
        """Elements that cross the cut for one image."""
        return sum(int(torch.Size(shape).numel()) for shape in self.shapes)


def layers(network: nn.Module) -> tuple[Layer, ...]:
    """All layers, in order of definition: the last is depth 1."""
    found: dict[str, list[str]] = {}
    shortcut = ""
    for name, module in network.named_modules():
        if name.rpartition(".")[2] in SHORTCUTS and _is_projection(module):
            shortcut = name
        own = [f"{name}.{key}".lstrip(".") for key, _ in module.named_parameters(recurse=False)]
        if own:
            inside = shortcut and f"{name}.".startswith(f"{shortcut}.")
            found.setdefault(shortcut if inside else name, []).extend(own)
    return tuple(Layer(name, tuple(parameters)) for name, parameters in found.items())


def select(
    network: nn.Module, depth: int | str | Sequence[str], head: Sequence[str], name: str = "the network"
) -> tuple[Layer, ...]:
    """The layers that train at a depth, in order of definition.

    Args:
        network: the network with its new head.
        depth: a number of layers, `head`, `all`, a module name, or module patterns.
        head: names of the modules that make up the classifier.
        name: what an error message calls the network.

    Raises:
        RecipeError: the depth is not one that this network has.
    """
    every = layers(network)
    if depth == "all":
        return every
    if depth == "head":
        return tuple(layer for layer in every if _within(layer.name, head))
    if isinstance(depth, int):
        if depth > len(every):
            raise RecipeError(
                f"grid.depth={depth} is deeper than {name}, which has {len(every)} layers "
                f"({every[0].name or 'its own parameters'} ... {every[-1].name}); "
                f'choose 1 (classifier alone) to {len(every)}, or "all"'
            )
        return every[len(every) - depth :]
    if isinstance(depth, str):
        starts = [index for index, layer in enumerate(every) if _within(layer.name, [depth])]
        if not starts:
            names = {".".join(layer.name.split(".")[: n + 1]) for layer in every for n in range(2)}
            raise RecipeError(f"grid.depth={depth} is no module of {name}; {near(depth, sorted(names))}")
        return every[starts[0] :]
    return _matching(every, depth, head, name)


def freeze(network: nn.Module, trained: Iterable[Layer]) -> None:
    """Let the given layers train and no other."""
    names = {name for layer in trained for name in layer.parameters}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in names)


def set_modes(module: nn.Module, batch_norm: str) -> None:
    """Training mode for what trains, eval mode for what is frozen.

    With batch norm `training` everything is in training mode, as after `model.train()`.
    Otherwise a module that owns parameters, none of which trains, is in eval mode:
    its running statistics would drift although its weights stand still.
    """
    module.train()
    if batch_norm == "training":
        return
    for child in module.modules():
        own = list(child.parameters(recurse=False))
        if (own or isinstance(child, _BatchNorm)) and not any(parameter.requires_grad for parameter in own):
            child.eval()


def cut(network: nn.Module, trained: Sequence[Layer], image_size: int) -> Cut:
    """Cut a network below the layers that train. The sides share the network's modules."""
    freeze(network, trained)
    names = frozenset(name for layer in trained for name in layer.parameters)
    try:
        graph, values = traced(network, image_size)
    except Exception:  # a forward pass with control flow on values; tracing fails in many ways
        return Cut(None, network, ("images",), ((3, image_size, image_size),), names, whole=True)
    return _Cutter(graph, *values).cut(names)


def outputs(network: nn.Module, nodes: Sequence[str]) -> fx.GraphModule:
    """The part of a network that computes the named nodes of its traced graph: images → a tuple of tensors."""
    traced = _trace(network)
    graph, copied = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in traced.graph.nodes:
        if node.op != "output":
            copied[node] = graph.node_copy(node, copied.__getitem__)
    named = {node.name: copy for node, copy in copied.items()}
    graph.output(tuple(named[name] for name in nodes))
    return _tidy(traced, graph)


def seconds_per_node(network: nn.Module, image_size: int, batch: int) -> dict[str, float]:
    """Seconds an image that each node of the traced graph takes on this machine, in eval mode, at a batch size.

    Of the network's tensors only the shapes matter.
    """
    seconds: dict[str, float] = {}

    class Timer(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            started = time.perf_counter()
            value = super().run_node(n)
            seconds[n.name] = (time.perf_counter() - started) / batch
            return value

    images = torch.randn(batch, 3, image_size, image_size).contiguous(memory_format=torch.channels_last)
    zeros = _copy_with(traced(network, image_size)[0], lambda x: torch.empty_like(x, device="cpu").zero_())
    timer = Timer(arrange(zeros.eval(), torch.device("cpu")))
    with torch.no_grad():
        for _ in range(2):  # the second time counts: the first warms up
            timer.run(images)
    return seconds


def _is_projection(module: nn.Module) -> bool:
    owners = [child for child in module.modules() if next(child.parameters(recurse=False), None) is not None]
    norm = len(owners) > 1 and (isinstance(owners[1], _BatchNorm) or "Norm" in type(owners[1]).__name__)
    return len(owners) == 2 and isinstance(owners[0], nn.Conv2d) and norm


def _within(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _matching(every: Sequence[Layer], patterns: Sequence[str], head: Sequence[str], network: str) -> tuple[Layer, ...]:
    chosen: set[str] = set()
    for pattern in patterns:
        if pattern == "head":
            hits = [layer.name for layer in every if _within(layer.name, head)]
        else:
            hits = [x.name for x in every if fnmatch.fnmatchcase(x.name, pattern) or _within(x.name, [pattern])]
        if not hits:
            names = [layer.name for layer in every]
            raise RecipeError(
                f"grid.depth={depth_label(patterns)}: no layer of {network} matches {pattern}; {near(pattern, names)}"
            )
        chosen.update(hits)
    return tuple(layer for layer in every if layer.name in chosen)


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


@lru_cache(maxsize=1)
def traced(network: nn.Module, image_size: int) -> tuple[fx.GraphModule, list[dict[str, Any]]]:
    """The traced network and, for batches of each size in PROBES, the values of its nodes; kept for its next cut."""
    graph = _trace(network)
    return graph, _shapes(graph, image_size)


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


class _Cutter:
    """One cut of one traced network; the methods are its steps."""

    def __init__(self, traced: fx.GraphModule, small: dict[str, Any], large: dict[str, Any]) -> None:
        self.traced = traced
        self.small, self.large = small, large
        self.nodes: list[fx.Node] = list(traced.graph.nodes)
        self.input = next(node for node in self.nodes if node.op == "placeholder")
        self.tainted: set[fx.Node] = set()
        self.static: set[fx.Node] = set()
        for node in self.nodes:
            if any(parameter.requires_grad for parameter in self._parameters(node)) or self._any_input(
                node, self.tainted
            ):
                self.tainted.add(node)
            elif node is not self.input and node.op != "output" and all(x in self.static for x in node.all_input_nodes):
                self.static.add(node)
        self._claim_dropout()

    def cut(self, trained: frozenset[str]) -> Cut:
        if not self.tainted:
            raise RecipeError("nothing of the network would train")
        prefix = self._prefix_nodes()
        frontier = [
            node for node in self.nodes
            if node in prefix and self._is_stored(node) and any(user not in prefix for user in node.users)
        ]  # fmt: skip
        shapes = tuple(tuple(self.small[node.name].shape[1:]) for node in frontier)
        names = tuple(node.name for node in frontier)
        first = None if frontier == [self.input] else self._prefix_graph(frontier)
        return Cut(first, self._suffix_graph(frontier), names, shapes, trained, whole=False)

    def _parameters(self, node: fx.Node) -> list[nn.Parameter]:
        if node.op == "call_module":
            return list(self.traced.get_submodule(str(node.target)).parameters())
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            value = getattr(self.traced.get_submodule(owner), name)
            return [value] if isinstance(value, nn.Parameter) else []
        return []

    @staticmethod
    def _any_input(node: fx.Node, among: set[fx.Node]) -> bool:
        return any(source in among for source in node.all_input_nodes)

    def _claim_dropout(self) -> None:
        """Dropout that stands between the last frozen layer and the first trainable one is the latter's."""
        feeds_frozen: set[fx.Node] = set()
        for node in reversed(self.nodes):
            if any(
                user in feeds_frozen or (user not in self.tainted and self._parameters(user)) for user in node.users
            ):
                feeds_frozen.add(node)
        for node in self.nodes:
            module = self.traced.get_submodule(str(node.target)) if node.op == "call_module" else None
            dropout = isinstance(module, nn.modules.dropout._DropoutNd) and node not in feeds_frozen
            if dropout or self._any_input(node, self.tainted):
                self.tainted.add(node)

    def _is_stored(self, node: fx.Node) -> bool:
        """Whether the node's value would cross the cut as data: a tensor that depends on the image."""
        return node not in self.static and isinstance(self.small.get(node.name), Tensor)

    def _bytes(self, node: fx.Node) -> int:
        """Cost of storing the node, an image; prohibitive where the first axis is not the batch."""
        small, large = self.small[node.name], self.large[node.name]
        per_image = (
            small.dim() > 0 and (small.shape[0], large.shape[0]) == PROBES and small.shape[1:] == large.shape[1:]
        )
        return max(1, small[0].numel() * 4) if per_image else _UNSTORABLE

    def _prefix_nodes(self) -> set[fx.Node]:
        """A minimum vertex cut between the frozen layers and the trainable ones."""
        flow = networkx.DiGraph()
        flow.add_edge("source", (self.input.name, "in"))
        for node in self.nodes:
            if node in self.static or not (self._is_stored(node) or node in self.tainted):
                continue
            if node in self.tainted:
                flow.add_edge((node.name, "in"), "sink")
            else:
                flow.add_edge((node.name, "in"), (node.name, "out"), capacity=self._bytes(node))
                if self._parameters(node):
                    flow.add_edge("source", (node.name, "in"), capacity=_FORCED)
            for source in self._stored_inputs(node):
                if source not in self.tainted:
                    flow.add_edge((source.name, "out"), (node.name, "in"))
                    flow.add_edge((node.name, "in"), (source.name, "in"))
        _, (reached, _) = networkx.minimum_cut(flow, "source", "sink")
        inside = {node for node in self.nodes if (node.name, "in") in reached}
        for node in self.nodes:  # what is not stored goes along with the nodes it is computed from
            if (
                node not in self.tainted
                and not self._is_stored(node)
                and node.op != "output"
                and all(source in inside for source in node.all_input_nodes)
            ):
                inside.add(node)
        return inside

    def _stored_inputs(self, node: fx.Node) -> set[fx.Node]:
        """The stored nodes a node depends on, looking through tuples, shapes and the like."""
        found, waiting = set(), list(node.all_input_nodes)
        while waiting:
            source = waiting.pop()
            if source in self.static:
                continue
            if self._is_stored(source) or source in self.tainted:
                found.add(source)
            elif isinstance(self.small[source.name], tuple | list) and self._holds_tensor(self.small[source.name]):
                waiting.extend(source.all_input_nodes)
        return found

    @staticmethod
    def _holds_tensor(value: Any) -> bool:
        return any(isinstance(item, Tensor) for item in value)

    def _prefix_graph(self, frontier: list[fx.Node]) -> fx.GraphModule:
        graph, copied = fx.Graph(), dict[fx.Node, fx.Node]()
        for node in self.nodes:
            if node not in self.tainted and node.op != "output":
                copied[node] = graph.node_copy(node, copied.__getitem__)
        graph.output(tuple(copied[node] for node in frontier))
        return _tidy(self.traced, graph)

    def _suffix_graph(self, frontier: list[fx.Node]) -> fx.GraphModule:
        graph = fx.Graph()
        copied = {node: graph.placeholder(node.name) for node in frontier}
        batch = graph.call_method("size", (copied[frontier[0]], 0))
        needed = self._needed(frontier)
        for node in self.nodes:
            if node in copied or node not in needed:
                continue
            small, large = self.small.get(node.name), self.large.get(node.name)
            if node not in self.tainted and node not in self.static and _is_plain(small):
                copied[node] = _rebuild(graph, batch, small, large)
            else:
                copied[node] = graph.node_copy(node, copied.__getitem__)
        return _tidy(self.traced, graph)

    def _needed(self, frontier: list[fx.Node]) -> set[fx.Node]:
        """The nodes that lead from the frontier to the output."""
        needed: set[fx.Node] = set()
        waiting = [node for node in self.nodes if node.op == "output"]
        while waiting:
            node = waiting.pop()
            if node in needed or node in frontier:
                continue
            needed.add(node)
            plain = node not in self.tainted and node not in self.static and _is_plain(self.small.get(node.name))
            if not plain:
                waiting.extend(node.all_input_nodes)
        return needed


def _is_plain(value: Any) -> bool:
    """Whether a value is a number or shape, which follows from the batch size alone."""
    if isinstance(value, tuple | list):
        return all(_is_plain(item) for item in value)
    return isinstance(value, int | float | bool | str | torch.dtype | torch.device | type(None))


def _rebuild(graph: fx.Graph, batch: fx.Node, small: Any, large: Any) -> Any:
    """The nodes that compute a shape from the batch size, given its value at both probes."""
    if isinstance(small, tuple | list):
        return tuple(_rebuild(graph, batch, a, b) for a, b in zip(small, large, strict=True))
    if isinstance(small, torch.device):  # the probes ran on "meta"
        return graph.call_function(getattr, (batch.args[0], "device"))
    if small == large:
        return small
    step = (large - small) // (PROBES[1] - PROBES[0])
    scaled = graph.call_function(operator.mul, (batch, step))
    return graph.call_function(operator.add, (scaled, small - step * PROBES[0]))


def _tidy(root: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    side = fx.GraphModule(root, graph)
    side.graph.eliminate_dead_code()
    side.graph.lint()
    side.recompile()
    return side

"""Cut a network into a frozen prefix and a trainable suffix.

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
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import networkx
import torch
from torch import Tensor, fx, nn

from ..recipe import RecipeError
from .cpu import MOST_OUTPUTS
from .layers import Layer, freeze
from .tracing import PROBES, tidied, traced

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_FORCED = 10**12
"""Capacity of an edge that the minimum cut must not cross: a frozen layer belongs to the prefix."""
_UNSTORABLE = 10**18
"""Capacity of a node whose value cannot be stored image by image."""


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
    small_maps: tuple[str, ...] = ()
    """Names of the suffix's convolutions with at most `cpu.MOST_OUTPUTS` output pixels."""

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


def cut(network: nn.Module, trained: Sequence[Layer], image_size: int) -> Cut:
    """Cut a network below the layers that train. The sides share the network's modules."""
    freeze(network, trained)
    names = frozenset(name for layer in trained for name in layer.parameters)
    try:
        graph, values = traced(network, image_size)
    except Exception:  # a forward pass with control flow on values; tracing fails in many ways
        return Cut(None, network, ("images",), ((3, image_size, image_size),), names, whole=True)
    return _Cutter(graph, *values).cut(names)


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
        suffix = self._suffix_graph(frontier)
        return Cut(first, suffix, names, shapes, trained, whole=False, small_maps=self._small_maps(suffix))

    def _small_maps(self, suffix: fx.GraphModule) -> tuple[str, ...]:
        """See `Cut.small_maps`; a convolution that is used twice is among them if all its outputs are small."""
        pixels: dict[str, int] = {}
        for node in suffix.graph.nodes:
            if node.op == "call_module" and type(suffix.get_submodule(str(node.target))) is nn.Conv2d:
                size = self.small[node.name].shape[2:].numel()
                pixels[str(node.target)] = max(size, pixels.get(str(node.target), 0))
        return tuple(name for name, count in pixels.items() if count <= MOST_OUTPUTS)

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
            dropout = isinstance(module, DROPOUTS) and node not in feeds_frozen
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
        return tidied(self.traced, graph)

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
        return tidied(self.traced, graph)

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

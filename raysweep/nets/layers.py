"""Count a network's layers from its output, and choose those that train.

A layer is a module that owns parameters itself, in the order of definition; a residual
block's shortcut projection (convolution + norm) counts as one. Depth 1 trains the last
layer alone, `all` every layer, a module name everything from there to the output, a list
of patterns just the layers it matches.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from ..recipe import RecipeError, depth_label, near

SHORTCUTS = ("downsample", "shortcut", "proj")
"""Names that torchvision and timm give to a residual block's shortcut projection."""
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""With their subclasses, timm's BatchNormAct2d and SyncBatchNormAct among them."""


@dataclass(frozen=True)
class Layer:
    """What depth counts."""

    name: str
    parameters: tuple[str, ...]
    """Qualified names of its parameter tensors."""


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
        if (own or isinstance(child, BATCH_NORMS)) and not any(parameter.requires_grad for parameter in own):
            child.eval()


def _is_projection(module: nn.Module) -> bool:
    owners = [child for child in module.modules() if next(child.parameters(recurse=False), None) is not None]
    norm = len(owners) > 1 and (isinstance(owners[1], BATCH_NORMS) or "Norm" in type(owners[1]).__name__)
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

"""A backbone's name to a network: architecture, weights, classifier, normalisation.

Names are those of `raysweep.zoo`, tensors come by `raysweep.weights`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from raysweep import weights, zoo
from raysweep.recipe import Head, Model, RecipeError, Statistics
from raysweep.scratch import SCRATCH, SmallCnn
from raysweep.zoo import IMAGENET, UNIT, check, check_weights

__all__ = [
    "IMAGENET", "UNIT", "Backbone", "SmallCnn", "build", "check", "check_image_size", "check_weights", "outline",
    "reset_head",
]  # fmt: skip


@dataclass(frozen=True)
class Backbone:
    """A network, ready to be cut."""

    network: nn.Module
    """(batch, 3, height, width) normalised images → (batch, classes) logits; with a kept
    classifier (batch, its outputs), of which the first are the classes."""
    head: tuple[str, ...]
    """Names of the modules that make up the classifier; of a stacked one, the new layer."""
    fresh: bool
    """True where the head is new and its values come from the trial's seed."""
    statistics: Statistics
    """Channel statistics that the network's weights expect."""


def build(name: str, model: Model, classes: int, seed: int, *, load: bool = True) -> Backbone:
    """Build the network with its weights and head; everything random follows from `seed`.

    With `load` false all values are random, whatever `model.weights` says, and nothing is read or fetched.

    Raises:
        RecipeError: unknown name, weights that cannot be fetched, read or fitted, a head that the network cannot have.
    """
    if load:
        check_weights(name, model)
    else:
        check(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = zoo.create(name, model.weights)
        classifier = _classifier_name(network, name)
        if load and model.weights != "none":
            is_replaced = model.head.kind in ("linear", "mlp")
            weights.load(network, name, model.weights, classifier if is_replaced else None)
        head = _with_head(network, name, classifier, model.head, classes)
    return Backbone(network, (head,), model.head.kind != "keep", zoo.statistics(name, model.weights))


def outline(name: str, model: Model, classes: int) -> Backbone:
    """The same network without weights or memory (meta device), for counting and tracing."""
    try:
        with torch.device("meta"):
            return build(name, model, classes, seed=0, load=False)
    except (NotImplementedError, RuntimeError):  # an initialiser that needs values
        return build(name, model, classes, seed=0, load=False)


def check_image_size(name: str, image_size: int) -> None:
    """Raise RecipeError if images are too small for a network that is known to need larger ones."""
    least = SCRATCH[name].least_image_size if name in SCRATCH else 1
    if image_size < least:
        raise RecipeError(f"data.image_size={image_size} is too small for {name}; choose at least {least}")


def reset_head(module: nn.Module, head: tuple[str, ...], seed: int) -> None:
    """Draw the new head's values afresh from `seed`, in place."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in head:
            for child in module.get_submodule(name).modules():
                if isinstance(child, nn.Linear | nn.Conv2d):
                    child.reset_parameters()


def _classifier_name(network: nn.Module, name: str) -> str:
    """The module that gives the class scores: timm's word for it, else the last linear or 1×1 convolution."""
    stated = getattr(network, "pretrained_cfg", {}).get("classifier")
    if isinstance(stated, tuple | list):
        raise RecipeError(f"grid.backbone={name} has several classifiers ({', '.join(stated)}), which is not supported")
    if stated and isinstance(network.get_submodule(stated), nn.Linear | nn.Conv2d):
        return stated
    owners = [key for key, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    if not owners:
        raise RecipeError(f"grid.backbone={name} has no linear classifier to replace")
    return owners[-1]


def _with_head(network: nn.Module, name: str, classifier: str, head: Head, classes: int) -> str:
    """Put the head where the classifier is; returns the name of what is new, or kept."""
    old = network.get_submodule(classifier)
    assert isinstance(old, nn.Linear | nn.Conv2d)
    if head.kind == "keep":
        outputs = old.weight.shape[0]
        if classes > outputs:
            raise RecipeError(
                f"model.head.kind=keep: the classifier of {name} has {outputs} outputs, fewer than the {classes} "
                "classes of the data; choose linear, mlp or stacked"
            )
        return classifier
    if head.kind == "linear":
        _replace(network, classifier, _like(old, classes))
        return classifier
    if not isinstance(old, nn.Linear):
        raise RecipeError(
            f"model.head.kind={head.kind}: the classifier of {name} is a convolution ({classifier}); "
            "choose linear or keep"
        )
    if head.kind == "mlp":
        _replace(network, classifier, _mlp(old.in_features, head, classes))
        return classifier
    _replace(network, classifier, nn.Sequential(old, nn.Softmax(-1), nn.Linear(old.out_features, classes)))
    return f"{classifier}.2"


def _like(old: nn.Linear | nn.Conv2d, classes: int) -> nn.Module:
    if isinstance(old, nn.Conv2d):
        return nn.Conv2d(old.in_channels, classes, old.kernel_size)  # type: ignore[arg-type]
    return nn.Linear(old.in_features, classes)


def _mlp(inputs: int, head: Head, classes: int) -> nn.Sequential:
    modules: list[nn.Module] = [nn.Dropout(head.dropout)] if head.dropout else []
    for outputs in head.sizes:
        modules.append(nn.Linear(inputs, outputs))
        modules += [nn.ReLU()] if head.activation == "relu" else []
        modules += [nn.Dropout(head.hidden_dropout)] if head.hidden_dropout else []
        inputs = outputs
    return nn.Sequential(*modules, nn.Linear(inputs, classes))


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, key = name.rpartition(".")
    setattr(network.get_submodule(parent), key, module)

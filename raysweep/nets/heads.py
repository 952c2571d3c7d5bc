"""The classifier of a network: which module it is, and what takes its place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..recipe import Head, RecipeError


def output_names(class_names: Sequence[str], outputs: int) -> tuple[str, ...]:
    """A name for each output of a network: the classes, then numbers, as a kept classifier has more outputs."""
    return (*class_names, *(f"output {number}" for number in range(len(class_names), outputs)))


def reset_head(module: nn.Module, head: tuple[str, ...], seed: int) -> None:
    """Draw the new head's values afresh from `seed`, in place."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in head:
            for child in module.get_submodule(name).modules():
                if isinstance(child, nn.Linear | nn.Conv2d):
                    child.reset_parameters()


def classifier_name(network: nn.Module, name: str) -> str:
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


def attach_head(network: nn.Module, name: str, classifier: str, head: Head, classes: int) -> str:
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

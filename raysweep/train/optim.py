"""Optimizers, learning rates by layer and learning-rate schedules by their names in a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, StepLR

from ..nets.layers import layers
from ..recipe import Train

FUSED: dict[str, type[Optimizer]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
"""PyTorch's that go through memory once."""
PLAIN: dict[str, type[Optimizer]] = {
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
}
"""Other ones of PyTorch; what is in neither is timm's."""


def optimizer_of(
    settings: Train, network: nn.Module, lr: float, distances: Mapping[str, int] | None = None
) -> Optimizer:
    """The optimizer of a network's trained parameters, starting at a learning rate.

    Args:
        settings: which, and how.
        network: its parameters with requires_grad are trained.
        lr: of the last layer.
        distances: how many layers stand between each parameter and the output, by its name; counted in
            the network itself when None.
    """
    groups = parameter_groups(settings, network, lr, distances)
    common: dict[str, Any] = {"lr": lr, "weight_decay": settings.weight_decay}
    if settings.optimizer in FUSED:
        if settings.optimizer == "sgd":
            common |= {"momentum": settings.momentum, "nesterov": settings.nesterov}
        optimizer = FUSED[settings.optimizer](groups, fused=True, **common)  # type: ignore[call-arg]
        if settings.optimizer == "sgd" and settings.momentum and settings.precision == "float16":
            _begin_at_rest(optimizer)
        return optimizer
    if settings.optimizer in PLAIN:
        return PLAIN[settings.optimizer](groups, **common)
    return create_optimizer_v2(groups, opt=settings.optimizer, **common)


def _begin_at_rest(optimizer: Optimizer) -> None:
    """Let momentum begin at zero: PyTorch's fused SGD leaves it undefined if the first step is skipped, as steps whose
    scaled gradients overflow are."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def parameter_groups(
    settings: Train, network: nn.Module, lr: float, distances: Mapping[str, int] | None = None
) -> list[dict[str, Any]]:
    """The trained parameters by their learning rate and weight decay, those nearest the output first.

    Args: see `optimizer_of`.
    """
    trained = {name: value for name, value in network.named_parameters() if value.requires_grad}
    if settings.layer_decay == 1 and settings.decay_norms:
        return [{"params": list(trained.values())}]
    distances = distances or distances_in(network)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, value in trained.items():
        distance = distances[name] if settings.layer_decay < 1 else 0
        decays = settings.decay_norms or value.dim() > 1
        groups.setdefault((distance, decays), []).append(value)
    return [
        {
            "params": values,
            "lr": lr * settings.layer_decay**distance,
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for (distance, decays), values in sorted(groups.items(), key=lambda pair: (pair[0][0], not pair[0][1]))
    ]


def distances_in(network: nn.Module) -> dict[str, int]:
    """How many layers stand between each parameter and the output, by the parameter's name."""
    every = enumerate(reversed(layers(network)))
    return {name: distance for distance, layer in every for name in layer.parameters}


def schedule_of(settings: Train, optimizer: Optimizer) -> LRScheduler:
    """The schedule, stepped once an epoch."""
    if settings.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=settings.epochs)
    if settings.schedule == "step":
        return StepLR(optimizer, settings.step_epochs, settings.step_gamma)
    return ConstantLR(optimizer, factor=1.0)


def warmth(settings: Train, step: int, steps_in_an_epoch: int) -> float:
    """What the learning rate is multiplied by at a step, counted from 1: it rises to 1 over the warm-up."""
    rising = settings.warmup_epochs * steps_in_an_epoch
    return min(1.0, step / rising) if rising else 1.0


@contextmanager
def scaled_rates(optimizer: Optimizer, factor: float) -> Iterator[None]:
    """A context in which all learning rates are multiplied by a factor."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * factor
    try:
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

"""A backbone's name to a network: architecture, weights, classifier, normalisation.

Names are those of `raysweep.nets.zoo`, tensors come by `raysweep.nets.weights`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from ..recipe import Model, RecipeError, Statistics
from . import weights, zoo
from .heads import attach_head, classifier_name
from .scratch import SCRATCH


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
        zoo.check_weights(name, model)
    else:
        zoo.check(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = zoo.create(name, model.weights)
        classifier = classifier_name(network, name)
        if load and model.weights != "none":
            is_replaced = model.head.kind in ("linear", "mlp")
            weights.load(network, name, model.weights, classifier if is_replaced else None)
        head = attach_head(network, name, classifier, model.head, classes)
    return Backbone(network, (head,), model.head.kind != "keep", zoo.statistics(name, model.weights))


@lru_cache(maxsize=64)
def outline(name: str, model: Model, classes: int) -> Backbone:
    """The same network without weights or memory (meta device), for counting and tracing; kept for the next call."""
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

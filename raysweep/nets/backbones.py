"""A backbone's name to a network: architecture, weights, classifier, normalisation.

Names are those of `raysweep.nets.zoo`, tensors come by `raysweep.nets.weights`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from ..recipe import Model, Statistics, is_weights_file
from . import checkpoints, sizes, weights, zoo
from .heads import attach_head, classifier_name

REPLACING = ("linear", "mlp")
"""Kinds of heads that take the place of the pretrained classifier."""


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


def build(
    name: str, model: Model, classes: int, seed: int, image_size: int | None = None, *, load: bool = True
) -> Backbone:
    """Build the network with its weights and head; everything random follows from `seed`.

    It is built for images of `image_size` pixels where it takes them only so (see `nets.sizes`). With `load` false
    all values are random, whatever `model.weights` says, and nothing is read or fetched.

    Raises:
        RecipeError: unknown name, weights that cannot be fetched, read or fitted, a head that the network cannot have.
    """
    if load:
        zoo.check_weights(name, model)
    else:
        zoo.check(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = zoo.create(name, model.weights, sizes.built_for(name, model.weights, image_size))
        classifier = classifier_name(network, name)
        if load and model.weights != "none":
            weights.load(network, name, model.weights, classifier if model.head.kind in REPLACING else None)
        head = attach_head(network, name, classifier, model.head, classes)
    return Backbone(network, (head,), model.head.kind != "keep", zoo.statistics(name, model.weights))


@lru_cache(maxsize=64)
def outline(name: str, model: Model, classes: int, image_size: int | None = None) -> Backbone:
    """The same network without weights or memory (meta device), for counting and tracing; kept for the next call."""
    try:
        with torch.device("meta"):
            return build(name, model, classes, 0, image_size, load=False)
    except (NotImplementedError, RuntimeError):  # an initialiser that needs values
        return build(name, model, classes, 0, image_size, load=False)


@lru_cache(maxsize=64)
def check_weights_file(name: str, model: Model, image_size: int | None = None) -> None:
    """Raise RecipeError if `model.weights` is a file that cannot be read or does not fit; reads it once."""
    if is_weights_file(model.weights):
        network = sizes.blank(name, model.weights, sizes.built_for(name, model.weights, image_size))
        replaced = classifier_name(network, name) if model.head.kind in REPLACING else None
        checkpoints.read(Path(model.weights), network, name, replaced)

"""Which image sizes a network takes, told without memory or weights (on the meta device).

Convolutions take many sizes, down to one at which nothing is left of the image. A network
with positions or windows of its own takes the one that it was built for; many of timm's
can be built for another (`img_size`), where their pretrained weights are resampled by the
function that timm has for it.
"""

from __future__ import annotations

import sys
from functools import lru_cache

import torch
from torch import Tensor, nn

from ..recipe import RecipeError
from . import zoo

PROBED = (16, 32, 48, 64, 96, 128, 160, 192, 224, 256, 288, 320, 384, 448, 512)
"""Sides in pixels that are tried to say which a network takes."""


def check(name: str, weights: str, image_size: int) -> None:
    """Raise RecipeError, with the sizes that it takes, if a network does not take images of so many pixels."""
    if _takes(name, weights, image_size):
        return
    own = zoo.own_size(name, weights)
    if not _takes(name, weights, own):  # nothing can be told of this network without memory
        return
    sizes = [size for size in sorted({*PROBED, own}) if _takes(name, weights, size)]
    wanted = next((size for size in sizes if size > image_size), sizes[-1])
    if sizes == [size for size in sorted({*PROBED, own}) if size >= sizes[0]]:
        wanted = _least(name, weights, image_size, sizes[0])
        said = f"takes images of {wanted} pixels or more"
    elif len(sizes) == 1:
        said = f"takes images of {sizes[0]} pixels alone"
    else:
        said = f"takes images of such sizes as {', '.join(map(str, sizes))} pixels"
    raise RecipeError(f"data.image_size: {name} {said}, not of {image_size}; set data.image_size={wanted}")


@lru_cache(maxsize=256)
def built_for(name: str, weights: str, image_size: int | None) -> int | None:
    """The size in pixels that a network is built for so that it takes such images; None for the library's own.

    With weights, only where they can be brought to that size.
    """
    if image_size is None or not zoo.has_fixed_size(name, weights) or image_size == zoo.own_size(name, weights):
        return None
    usual = blank(name, weights)
    if _runs(usual, image_size):
        return None
    try:
        built = blank(name, weights, image_size)
    except (TypeError, ValueError, AssertionError, RuntimeError, ZeroDivisionError):
        return None  # timm has no such argument for it, or no such size
    fits = weights == "none" or _can_be_resampled(usual, built)
    return image_size if fits and _runs(built, image_size) else None


def resampled(network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of one of timm's networks brought to the size that `network` is built for, by timm's own function."""
    brought = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    return state if brought is None else brought(dict(state), network)


def _can_be_resampled(usual: nn.Module, built: nn.Module) -> bool:
    """Whether tensors of the one fit the other once they are resampled; tried on zeros that take no memory."""
    own = built.state_dict()
    zeros = {key: torch.zeros(()).expand(value.shape) for key, value in usual.state_dict().items()}
    try:
        found = resampled(built, zeros)
    except Exception:  # each of timm's functions raises its own
        return False
    return all(key in found and found[key].shape == value.shape for key, value in own.items())


@lru_cache(maxsize=256)
def _takes(name: str, weights: str, image_size: int) -> bool:
    return _runs(blank(name, weights, built_for(name, weights, image_size)), image_size)


def _least(name: str, weights: str, below: int, enough: int) -> int:
    """The least size that is taken, between one that is not and one that is."""
    while enough - below > 1:
        middle = (below + enough) // 2
        below, enough = (below, middle) if _takes(name, weights, middle) else (middle, enough)
    return enough


@lru_cache(maxsize=2)
def blank(name: str, weights: str, image_size: int | None = None) -> nn.Module:
    """A backbone as its library has it, with neither weights nor memory."""
    try:
        with torch.device("meta"):
            return zoo.create(name, weights, image_size)
    except NotImplementedError:  # its constructor needs values
        return zoo.create(name, weights, image_size).to("meta")


def _runs(network: nn.Module, image_size: int) -> bool:
    """Whether images of so many pixels pass through."""
    try:
        with torch.no_grad():
            network.eval()(torch.empty(2, 3, image_size, image_size, device="meta"))
    except Exception:  # layers and libraries refuse a size with errors of every type
        return False
    return True

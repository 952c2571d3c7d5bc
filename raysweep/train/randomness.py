"""What is drawn at random within a network, alike for one rank and many.

Dropout and stochastic depth are drawn for the whole batch, of which a rank takes its share,
from a seed of the step and the place in the network. So one rank and many compute the same
step, and a step can be repeated.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from .ddp import World

DROPOUTS: dict[type[nn.Module], bool] = {nn.Dropout: False, nn.Dropout1d: True, nn.Dropout2d: True, nn.Dropout3d: True}
"""Kinds of dropout, and whether they drop whole channels."""


class Draws:
    """The random numbers of one step.

    Args:
        world: the ranks that share a batch.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._generator = torch.Generator(world.device)
        self._seed = self._images = self._count = 0
        self._part = slice(None)

    def begin(self, seed: int, images: int, part: int = 0, parts: int = 1) -> None:
        """A new step on so many images over all ranks, or one of the parts that they are divided into."""
        self._seed, self._images, self._count = seed, images, 0
        self._part = slice(part, None, parts)

    def kept(self, values: Tensor, tail: tuple[int, ...], share: float, whole: bool = False) -> Tensor:
        """Which values to keep, each with a probability, and by how much to scale them so that means stay.

        Args:
            values: (images of this rank × parts, ...).
            tail: shape of what is drawn for each part.
            share: the probability.
            whole: draw once for the whole batch.

        Returns:
            Zeros and 1 / share, a shape that broadcasts over `values`.
        """
        self._generator.manual_seed((self._seed * 1_000_003 + self._count) % 2**63)
        self._count += 1
        world = self.world
        if whole:
            drawn = torch.rand((1, *tail), generator=self._generator, device=world.device)
        else:
            own = len(range(self._images)[self._part][world.rank :: world.size])
            if not own:  # nothing counts of what stands in for it
                return values.new_ones(())
            parts = len(values) // own
            drawn = torch.rand((self._images, parts, *tail), generator=self._generator, device=world.device)
            drawn = drawn[self._part][world.rank :: world.size].flatten(0, 1)
        return (drawn < share).to(values.dtype) / share


class WholeBatchDropout(nn.Module):
    """Dropout of single values or of whole channels, drawn for the whole batch."""

    def __init__(self, p: float, channels: bool, draws: Draws) -> None:
        super().__init__()
        self.p, self.channels, self.draws = p, channels, draws

    def forward(self, values: Tensor) -> Tensor:
        """Any shape with the images first → the same."""
        if not self.training:
            return values
        tail = (values.shape[1], *[1] * (values.dim() - 2)) if self.channels else tuple(values.shape[1:])
        return values * self.draws.kept(values, tail, 1 - self.p)


class WholeBatchDropPath(nn.Module):
    """Stochastic depth: the values of an image, or of the whole batch, are dropped together."""

    def __init__(self, p: float, whole: bool, draws: Draws) -> None:
        super().__init__()
        self.p, self.whole, self.draws = p, whole, draws

    def forward(self, values: Tensor) -> Tensor:
        """Any shape with the images first → the same."""
        if not self.training:
            return values
        return values * self.draws.kept(values, (1,) * (values.dim() - 1), 1 - self.p, self.whole)


def draw_for_the_whole_batch(network: nn.Module, draws: Draws) -> None:
    """Replace every dropout and stochastic depth of a network that drops something, in place."""
    for name, module in list(network.named_modules(remove_duplicate=False)):  # one may stand in several places
        replacement = _replacement(module, draws)
        if replacement is not None:
            parent, _, key = name.rpartition(".")
            setattr(network.get_submodule(parent), key, replacement.train(module.training))


def _replacement(module: Any, draws: Draws) -> nn.Module | None:
    if type(module) in DROPOUTS and 0 < module.p < 1:
        return WholeBatchDropout(module.p, DROPOUTS[type(module)], draws)
    if isinstance(module, StochasticDepth) and 0 < module.p < 1:
        return WholeBatchDropPath(module.p, module.mode == "batch", draws)
    if isinstance(module, DropPath) and 0 < module.drop_prob < 1 and module.scale_by_keep:
        return WholeBatchDropPath(module.drop_prob, False, draws)
    return None

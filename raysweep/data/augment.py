"""Random views of training images: mirrored, cropped, recoloured, erased, by torchvision's transforms.

A view is one member of an augmentation. Horizontal flips have two: the image and its mirror.
Of crops and the like there is no end: a view is drawn anew each time, or `data.views` says how
many of each image there are. Every view follows from a number alone, image by image, so that
it does not matter who computes it, nor what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from ..recipe import Data

GREY = 0.5
"""Of what is erased, and of corners that a rotation leaves."""
MOST_NUMBERS = 2**62
_DRAWING = Lock()
"""Transforms draw from the one generator of the process, which threads share."""


@dataclass(frozen=True)
class Augmentation:
    """What may be done to a training image."""

    kinds: tuple[str, ...] = ()
    """See `data.augment`."""
    count: int | None = None
    """How many random views of each image there are; no end of them when None."""
    seed: int = 0
    """Of the views that there are."""
    crop_scale: tuple[float, float] = (0.08, 1.0)

    @classmethod
    def of(cls, data: Data) -> Augmentation:
        """As a recipe asks for it."""
        return cls(data.augment, data.views, data.split_seed, data.crop_scale)

    @property
    def is_random(self) -> bool:
        """Whether there is more than mirroring."""
        return any(kind != "hflip" for kind in self.kinds)

    @property
    def is_finite(self) -> bool:
        """Whether an image has a fixed set of views."""
        return not self.is_random or self.count is not None

    @property
    def numbers(self) -> range:
        """Numbers of the views of a finite augmentation, beside the image itself, which is 0."""
        return range(1, 1 + (self.count or 0)) if self.is_random else range(1, 1 + len(set(self.kinds)))

    def name(self, number: int) -> str:
        """What determines a view of a finite augmentation beside the image; empty for the image itself."""
        if not number:
            return ""
        if not self.is_random:
            return "mirrored"
        crop = f" of {self.crop_scale[0]:g} to {self.crop_scale[1]:g}" if "crop" in self.kinds else ""
        return f"view {number:06} by {'+'.join(self._ordered)}{crop}, seed {self.seed}"

    def views(self, number: int, count: int) -> Tensor | None:
        """What to ask a source for, to get so many images in one view of a finite augmentation."""
        if not number:
            return None
        return torch.full((count,), number) if self.is_random else torch.ones(count, dtype=torch.bool)

    def draw(self, count: int, generator: torch.Generator) -> Tensor | None:
        """A view for each of so many images: whether mirrored (bool), or a number (int64); None where all are plain."""
        if not self.kinds:
            return None
        if not self.is_random:
            return torch.rand(count, generator=generator) < 0.5
        ends = (0, MOST_NUMBERS) if self.count is None else (1, self.count + 1)
        return torch.randint(*ends, (count,), generator=generator)

    def __call__(self, images: Tensor, rows: Sequence[int], views: Tensor) -> Tensor:
        """Random views of images.

        Args:
            images: (batch, 3, side, side) float32 from 0 to 1, on any device.
            rows: of each image in the pool of the data set, which with a finite augmentation tells images apart.
            views: (batch,) int64 numbers of the views.

        Returns:
            The same shape, from 0 to 1.
        """
        change = _transforms(self._ordered, self.crop_scale, images.shape[-1])
        changed = []
        with _DRAWING, torch.random.fork_rng(devices=[]):
            for image, row, view in zip(images, rows, views.tolist(), strict=True):
                number = view if self.count is None else ((self.seed * 1_000_003 + int(row)) * 1_000_003 + view)
                torch.default_generator.manual_seed(number % 2**63)
                changed.append(change(image))
        return torch.stack(changed).clamp_(0, 1)

    @property
    def _ordered(self) -> tuple[str, ...]:
        return tuple(kind for kind in _KINDS if kind in self.kinds)


_KINDS: dict[str, Callable[[int, tuple[float, float]], v2.Transform]] = {
    "crop": lambda side, scale: v2.RandomResizedCrop(side, scale=scale, antialias=True),
    "hflip": lambda side, scale: v2.RandomHorizontalFlip(),
    "color": lambda side, scale: v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    "trivial": lambda side, scale: v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR, fill=GREY),
    "randaugment": lambda side, scale: v2.RandAugment(interpolation=InterpolationMode.BILINEAR, fill=GREY),
    "erase": lambda side, scale: v2.RandomErasing(p=0.25, value=GREY),
}
"""In the order in which they are applied."""


@lru_cache(maxsize=16)
def _transforms(kinds: tuple[str, ...], crop_scale: tuple[float, float], side: int) -> v2.Compose:
    return v2.Compose([_KINDS[kind](side, crop_scale) for kind in kinds])

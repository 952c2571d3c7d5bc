"""Mixup and CutMix: each image of a step is mixed with the one before it in the whole batch.

References: Zhang et al. 2018, "mixup", arXiv:1710.09412; Yun et al. 2019, "CutMix", arXiv:1905.04899.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from torch import Tensor

from ..recipe import Train


@dataclass(frozen=True)
class Mixing:
    """How the images of a step are mixed, alike for all of them."""

    share: float
    """Of the image itself; the rest is its partner's."""
    centre: tuple[float, float] | None = None
    """Of CutMix: of the box that is the partner's, as parts of height and width; None for mixup."""

    def __call__(self, images: Tensor, partners: Tensor) -> tuple[Tensor, float]:
        """Mixed images, and the share of their own label.

        Args:
            images: (batch, 3, height, width).
            partners: the same shape.
        """
        if self.centre is None:
            return images.lerp(partners, 1 - self.share), self.share
        top, bottom, left, right = self.box(*images.shape[-2:])
        mixed = images.clone()
        mixed[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
        return mixed, 1 - (bottom - top) * (right - left) / images.shape[-2:].numel()

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, bottom, left and right of the partner's box, cut off at the edges of the image."""
        assert self.centre is not None
        edges: list[int] = []
        for place, side in zip(self.centre, (height, width), strict=True):
            half, middle = int(0.5 * sqrt(1 - self.share) * side), int(place * side)
            edges += [max(0, middle - half), min(side, middle + half)]
        top, bottom, left, right = edges
        return top, bottom, left, right


def mixing_of(settings: Train, seed: int) -> Mixing | None:
    """How a step mixes, drawn from its seed; with both, one of them with equal chances."""
    if not settings.mixes_images:
        return None
    random = np.random.default_rng(seed)
    cuts = settings.cutmix > 0 and (settings.mixup == 0 or random.random() < 0.5)
    alpha = settings.cutmix if cuts else settings.mixup
    share = float(random.beta(alpha, alpha))
    return Mixing(share, (random.random(), random.random()) if cuts else None)

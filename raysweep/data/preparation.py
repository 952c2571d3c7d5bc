"""From a stored or an opened image to the network's input: the one way, in training and in serving.

A data set stores its images at one size (`Preparation.stored`). From there a batch is
resized to the network's input size, mirrored and normalised on the device. An opened file
is first decoded to the stored size, so that a served image goes the way of a trained one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..recipe import Statistics
from .decode import Size, ValueRange, decode


@dataclass(frozen=True)
class Preparation:
    """From pixels to the network's input."""

    stored: Size
    """Height and width at which the data set stores its images."""
    image_size: int
    """Side of the network's input in pixels."""
    statistics: Statistics
    value_range: ValueRange | None = None
    """By which images with more than 8 bits are scaled (see `decode`)."""

    def decode(self, image: Image.Image) -> np.ndarray:
        """An opened image as the data set would store it: (3, height, width) uint8."""
        return decode(image, self.stored, self.value_range)

    def __call__(
        self,
        images: Tensor,
        flips: Tensor | None = None,
        change: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Stored images to the network's input, on their device.

        Args:
            images: (batch, 3, height, width) uint8.
            flips: (batch,) bool, which images to mirror.
            change: what to do to the images at the input size, from 0 to 1, before they are normalised.

        Returns:
            (batch, 3, image_size, image_size) float32, channels last.
        """
        if images.shape[0] == 0:
            return torch.empty(0, 3, self.image_size, self.image_size, device=images.device)
        scaled = images.to(torch.float32).div_(255.0).contiguous(memory_format=torch.channels_last)
        size = (self.image_size, self.image_size)
        if scaled.shape[-2:] != size:
            scaled = F.interpolate(scaled, size, mode="bilinear", antialias=True, align_corners=False)
        if flips is not None:
            scaled = torch.where(flips.view(-1, 1, 1, 1), scaled.flip(-1), scaled)
        if change is not None:
            scaled = change(scaled)
        mean, std = _channels(self.statistics, images.device)
        return ((scaled - mean) / std).contiguous(memory_format=torch.channels_last)


@lru_cache(maxsize=16)
def _channels(statistics: Statistics, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation as (1, 3, 1, 1), kept on the device: making them there would wait for it."""
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (statistics.mean, statistics.std))
    return mean, std

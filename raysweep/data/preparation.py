"""From a stored or an opened image to the network's input: the one way, in training and in serving.

A data set stores its images at one size (`Preparation.stored`). From there a batch is
resized to the network's input size, mirrored and normalised on the device. An opened file
is first decoded to the stored size, so that a served image goes the way of a trained one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
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

    def module(self) -> PrepareImages:
        """What prepares images on any device."""
        return PrepareImages(self.image_size, self.statistics)

    def __call__(self, images: Tensor) -> Tensor:
        """A few stored images to the network's input, on their device; see `PrepareImages.forward`."""
        prepared: Tensor = self.module().to(images.device)(images)
        return prepared


class PrepareImages(nn.Module):
    """Stored images to the network's input.

    Args:
        image_size: side of the network's input in pixels.
        statistics: by which images are normalised.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, image_size: int, statistics: Statistics) -> None:
        super().__init__()
        self.image_size = image_size
        for name, values in (("mean", statistics.mean), ("std", statistics.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(
        self,
        images: Tensor,
        flips: Tensor | None = None,
        change: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Stored images to the network's input, on their device, where the module is too.

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
        return ((scaled - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

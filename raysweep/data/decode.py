"""From an opened image file to pixels: upright, RGB, 8 bits, at the size that a data set stores."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

Size = tuple[int, int]
"""Height and width in pixels."""


def decode(image: Image.Image, size: Size | None) -> np.ndarray:
    """An image upright in RGB, as (3, height, width) uint8.

    Args:
        image: as PIL opened it.
        size: of the result: the largest centred part of that shape, resized (bicubic,
            antialiased). An image that has this size already is left as it is. None keeps
            the image's own size.

    Raises:
        ValueError: pixels of neither 8 nor 16 bits.
    """
    if size is not None:
        image.draft("RGB", (2 * size[1], 2 * size[0]))  # JPEG decodes straight to a fraction of its size
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):  # PIL would clip these to white
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError(f"mode {image.mode}: only images of 8 or 16 bits are understood")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")  # what PIL warns to do first
    image = image.convert("RGB")
    if size is not None and (image.height, image.width) != size:
        image = ImageOps.fit(image, (size[1], size[0]), method=Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))

"""From an opened image file to pixels: upright, RGB, 8 bits, at the size that a data set stores.

Greys of more than 8 bits (microscopes, CT, sensors of 12 bits) seldom fill what their type
holds. They are scaled by a range of values that is one for the whole data set and is kept
with the model that is served.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps
from PIL.Image import Resampling

Size = tuple[int, int]
"""Height and width in pixels."""
ValueRange = tuple[float, float]
"""The values that become black and white."""
SIXTEEN_BITS: ValueRange = (0, 65535)


def is_deep(image: Image.Image) -> bool:
    """Whether an opened image has greys of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;")


def is_truncated(image: Image.Image) -> bool:
    """Whether an opened image has colours of 16 bits, of which Pillow reads the upper 8."""
    return not is_deep(image) and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def values_of(image: Image.Image) -> ValueRange:
    """The lowest and highest value of a deep image.

    Raises:
        ValueError: one is not finite.
    """
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(low) or not np.isfinite(high):
        raise ValueError("it has values that are not finite")
    return low, high


def decode(image: Image.Image, size: Size | None, value_range: ValueRange | None = None) -> np.ndarray:
    """An image upright in RGB, as (3, height, width) uint8.

    Args:
        image: as PIL opened it.
        size: of the result: the largest centred part of that shape, resized (bicubic,
            antialiased). An image that has this size already is left as it is. None keeps
            the image's own size.
        value_range: of images with more than 8 bits: what becomes black and white; what lies
            beyond is clipped. Where it is None they are taken to fill 16 bits.

    Raises:
        ValueError: no range is given, and the values are no whole numbers of 16 bits.
    """
    if size is not None:
        image.draft("RGB", (2 * size[1], 2 * size[0]))  # JPEG decodes straight to a fraction of its size
    image = ImageOps.exif_transpose(image)
    if is_deep(image):  # PIL would clip these to white
        image = Image.fromarray(_levels(image, value_range))
    if "transparency" in image.info:
        image = image.convert("RGBA")  # what PIL warns to do first
    image = image.convert("RGB")
    if size is not None and (image.height, image.width) != size:
        image = fitted(image, size)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def fitted(image: Image.Image, size: Size) -> Image.Image:
    """The largest centred part of that shape, resized to it, width first.

    Pillow's own order of the two directions depends on its version and on the sizes; pixels may not,
    as the model that is served must see what was trained on.
    """
    height, width = size
    across = min(image.width, image.height * width / height)
    down = min(image.height, image.width * height / width)
    left, top = (image.width - across) / 2, (image.height - down) / 2
    narrowed = image.resize((width, image.height), Resampling.BICUBIC, box=(left, 0, left + across, image.height))
    return narrowed.resize((width, height), Resampling.BICUBIC, box=(0, top, width, top + down))


def _levels(image: Image.Image, value_range: ValueRange | None) -> np.ndarray:
    """The values of a deep image as levels from 0 to 255: (height, width) uint8."""
    lowest, highest = values_of(image)
    if value_range is None and (image.mode == "F" or lowest < 0 or highest > SIXTEEN_BITS[1]):
        raise ValueError(f"mode {image.mode}, values from {lowest:,g} to {highest:,g}: set data.value_range")
    low, high = value_range or SIXTEEN_BITS
    scaled = (np.asarray(image).astype(np.float64) - low) * (255 / (high - low))
    return np.rint(scaled.clip(0, 255)).astype(np.uint8)

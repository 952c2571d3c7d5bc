"""Pictures of a run folder."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
from PIL import Image, UnidentifiedImageError

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, UnidentifiedImageError, Image.DecompressionBombError)
"""What Pillow raises of a file that is cut off or changed."""


def picture(path: Path, name: str, unread: list[str]) -> np.ndarray | None:
    """The pixels (height, width, 3 or 4) of a PNG file; None, with a sentence in `unread`, where it cannot be read."""
    try:
        pixels = matplotlib.image.imread(path)
    except UNREADABLE:
        unread.append(f"{name} cannot be read as a picture")
        return None
    return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)

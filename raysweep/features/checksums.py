"""Whether a file of features is the one that was written: all of it, or blocks evenly spaced over it."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any, Literal

Verify = Literal["sampled", "full"]
CHUNK = 1 << 24
"""Bytes read at a time where a file is read whole."""
BLOCK = 1 << 16
"""Bytes of a sampled block."""
BLOCKS = 64
"""Sampled, the first and the last of the file among them; a file that has no more is read whole."""


def sums(path: Path) -> dict[str, int]:
    """What is kept of a file to know it by."""
    return {"bytes": path.stat().st_size, "crc32": _whole(path), "crc32_sampled": _sampled(path)}


def is_as_stated(path: Path, stated: dict[str, Any], verify: Verify) -> bool:
    """Whether a file is the one of which these sums were taken.

    Raises:
        KeyError: there are no sums.
    """
    if verify == "full" or "crc32_sampled" not in stated:
        return _whole(path) == stated["crc32"]
    return path.stat().st_size == stated["bytes"] and _sampled(path) == stated["crc32_sampled"]


def _whole(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def _sampled(path: Path) -> int:
    last = max(0, path.stat().st_size - BLOCK)
    count = min(BLOCKS, -(-last // BLOCK) + 1)
    crc = 0
    with path.open("rb") as file:
        for block in range(count):
            file.seek(last * block // max(1, count - 1))
            crc = zlib.crc32(file.read(BLOCK), crc)
    return crc

"""Where raysweep keeps what it can make or fetch again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where raysweep keeps what it can make again: $RAYSWEEP_CACHE, else ~/.cache/raysweep."""
    return Path(os.environ.get("RAYSWEEP_CACHE") or "~/.cache/raysweep").expanduser().resolve()


def data_folder() -> Path:
    """Where data sets are fetched to: $RAYSWEEP_DATA, else `data` in the cache folder."""
    return Path(os.environ.get("RAYSWEEP_DATA") or cache_folder() / "data").expanduser().resolve()

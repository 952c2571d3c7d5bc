"""Where raysweep keeps what it can make or fetch again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..files import write_text


def cache_folder() -> Path:
    """Where raysweep keeps what it can make again: $RAYSWEEP_CACHE, else ~/.cache/raysweep."""
    return Path(os.environ.get("RAYSWEEP_CACHE") or "~/.cache/raysweep").expanduser().resolve()


def data_folder() -> Path:
    """Where data sets are fetched to: $RAYSWEEP_DATA, else `data` in the cache folder."""
    return Path(os.environ.get("RAYSWEEP_DATA") or cache_folder() / "data").expanduser().resolve()


def recall(kind: str, key: Any) -> Any:
    """What was kept under a key; None where nothing is, or nothing that can be read.

    Args:
        kind: folder within the cache.
        key: everything that determines the value, as plain values.
    """
    try:
        return json.loads(_place(kind, key).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def keep(kind: str, key: Any, value: Any) -> None:
    """Keep plain values under a key for all later sweeps; a cache that is full or read-only keeps nothing."""
    with suppress(OSError):
        write_text(_place(kind, key), json.dumps(value))


def name_of(key: Any) -> str:
    """32 hexadecimal digits, determined by plain values."""
    return hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=16).hexdigest()


def make_once(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder that is not there yet; two processes never do so at once, and no reader sees half of it.

    Args:
        folder: which.
        fill: is given a folder beside it, which is then renamed.

    Raises:
        OSError: it cannot be written.
    """
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if folder.is_dir():
            return
        unfinished = folder.with_suffix(".part")
        shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
        unfinished.mkdir()
        try:
            fill(unfinished)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _place(kind: str, key: Any) -> Path:
    return cache_folder() / kind / f"{name_of(key)}.json"

"""Starting and ending a process without the waits that nobody asked for."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import without garbage collection, and set what was imported apart from it.

    Torch, torchvision and Ray together make a million objects that stay; walking them again
    and again while they are made takes a quarter of the time, and `free_memory` need not
    walk them after every trial.
    """
    before = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:
            gc.freeze()
        gc.enable()


def free_memory() -> None:
    """Collect what holds each other, and give freed memory back where the C library can (glibc)."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def leave(status: int) -> NoReturn:
    """End the process now: taking torch's libraries down one by one takes a second and frees what the system does."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

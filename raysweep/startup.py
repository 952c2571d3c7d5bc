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


def keep_freed_memory() -> None:
    """Have the C library (glibc) keep the memory that training frees for its next step.

    Else it gives the large tensors of every step back and the system clears them anew: a fifth
    and more of a step's time. One heap for all threads keeps that small; `free_memory` gives
    it back between trials.
    """
    arena_max, mmap_max, trim_threshold = -8, -4, -1  # M_… of malloc.h
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for option, value in ((arena_max, 1), (mmap_max, 0), (trim_threshold, 2**31 - 1)):
            library.mallopt(option, value)


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

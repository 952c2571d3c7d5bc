"""Starting and ending a process without the waits that nobody asked for."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import without garbage collection.

    Torch, torchvision and Ray together make a million objects that stay; walking them again
    and again while they are made takes a quarter of the time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def leave(status: int) -> NoReturn:
    """End the process now: taking torch's libraries down one by one takes a second and frees what the system does."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

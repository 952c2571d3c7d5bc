"""What a person sees while images are read: a bar on a terminal, and a line when it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

WORTH_A_LINE_S = 1.0
"""A stage that took less is not mentioned."""

Advance = Callable[[int], None]
"""Told of so many images more."""


def unseen(images: int) -> None:
    """An `Advance` that nobody looks at."""


@contextmanager
def stage(doing: str, done: str, images: int, passes: int = 1, console: Console | None = None) -> Iterator[Advance]:
    """Follow a stage over all images; use as a context manager, which gives what to tell of progress.

    Args:
        doing: what the bar says, such as "decoding".
        done: what the line at the end begins with, such as "decoded".
        images: how many there are.
        passes: how often each is looked at.
        console: where it is shown; standard error when None.
    """
    console = console or Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    started = time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"{doing} {images:,} images", total=passes * images)
        yield lambda more: bar.advance(task, more)
    seconds = time.monotonic() - started
    if seconds >= WORTH_A_LINE_S:
        console.print(f"{done} {images:,} images in {seconds:.0f} s", markup=False, soft_wrap=True)

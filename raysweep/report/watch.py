"""The report of a sweep that is running, built again as its rows arrive."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from ..sweep.ledger import ENDED, EPOCHS, FINAL, TRIALS, in_use, read
from . import wording
from .facts import Facts
from .page import gather, write

EVERY_S = 15
"""Seconds between two looks at the run folder. An open page loads itself again as often."""
SHARE = 4
"""The pause between two reports is at least so many times as long as building one took."""


def watch(
    folders: Sequence[Path],
    out: Path | None,
    tolerance: float | None,
    confidence: float | None,
    say: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Build the report whenever there are new rows, as long as a sweep writes to the folders.

    Args:
        folders: run folders.
        out: see `page.write`.
        tolerance: see `page.build`.
        confidence: see `page.build`.
        say: is told how far the sweep is, a line for each report.
        sleep: waits for some seconds.

    Raises:
        RunFolderError: a folder holds no run.
    """
    seen: list[int] | None = None
    while any(map(in_use, folders)):
        sizes, started = _sizes(folders), time.monotonic()
        if sizes != seen:
            facts = gather([read(folder) for folder in folders], tolerance, confidence)
            say(_progress(facts, write(facts, out, refresh_s=EVERY_S)))
            seen = sizes
        sleep(max(EVERY_S, SHARE * (time.monotonic() - started)))


def _sizes(folders: Sequence[Path]) -> list[int]:
    """What grows when a sweep goes on."""
    files = [folder / name for folder in folders for name in (EPOCHS, TRIALS)]
    finals = sum(len(list((folder / FINAL).glob("*"))) for folder in folders)
    return [finals, *(file.stat().st_size if file.is_file() else 0 for file in files)]


def _progress(facts: Facts, page: Path) -> str:
    """How many trials have ended, and where the page is."""
    ended, trials = facts.count(*ENDED), wording.count(len(facts.trials), "trial")
    return f"{datetime.now():%H:%M:%S}  {ended} of {trials} ended, {len(facts.epochs):,} epochs: {page}"

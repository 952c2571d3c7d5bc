"""From run folders to tables, statistics, figures and the page; imports neither torch nor Ray.

run = raysweep.report.load("runs/quickstart-...")
run.depths      # a row per network and depth
run.trials      # a row per trial
run.epochs      # a row per trial and epoch
"""

from __future__ import annotations

from pathlib import Path

from ..sweep.ledger import read
from .facts import Facts
from .page import gather

__all__ = ["Facts", "load"]


def load(*folders: str | Path) -> Facts:
    """The tables of a run folder, or of several together.

    Raises:
        RunFolderError: a folder holds no run.
    """
    return gather([read(Path(folder)) for folder in folders])

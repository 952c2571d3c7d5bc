"""From run folders to tables, statistics, figures and the page; imports neither torch nor Ray.

from raysweep import report

run = report.load("runs/quickstart-...")
run.depths      # a row per network and depth
run.trials      # a row per trial
run.epochs      # a row per trial and epoch
"""

from __future__ import annotations

from pathlib import Path

from raysweep.report.facts import Facts
from raysweep.report.page import gather
from raysweep.sweep.ledger import read

__all__ = ["Facts", "load"]


def load(*folders: str | Path) -> Facts:
    """The tables of a run folder, or of several together.

    Raises:
        RunFolderError: a folder holds no run.
    """
    return gather([read(Path(folder)) for folder in folders])

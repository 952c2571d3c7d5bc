"""What the sections of the report draw on, and what a section is."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from ..sweep.ledger import Run
from ..sweep.rows import FinalResult
from .statistics import Recommendation


@dataclass(frozen=True)
class Facts:
    """What the sections draw on: the runs, and the tables over all of them."""

    runs: tuple[Run, ...]
    trials: pd.DataFrame
    epochs: pd.DataFrame
    depths: pd.DataFrame
    advice: Recommendation | None
    """None if no trial completed, or if the runs were made on different images."""

    def count(self, *states: str) -> int:
        """Trials in any of these states."""
        return int(self.trials["state"].isin(states).sum())

    @property
    def finals(self) -> list[tuple[str, FinalResult]]:
        """Name of the run and result of each final fit."""
        return [(name_of(run), run.final) for run in self.runs if run.final]


@dataclass(frozen=True)
class Section:
    """One part of the page."""

    title: str
    text: str = ""
    figure: Figure | None = None
    table: tuple[dict[str, str], ...] = ()
    folded: tuple[tuple[str, str], ...] = ()
    """A heading and preformatted text each."""

    @property
    def file(self) -> str:
        """Name of the figure's file."""
        return self.title.lower().replace(" ", "_") + ".png"


def name_of(run: Run) -> str:
    """A run goes by the name of its folder."""
    return run.folder.resolve().name

"""What the sections of the report draw on, and what a section is."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd
from matplotlib.figure import Figure

from ..sweep.ledger import Run
from ..sweep.rows import FinalResult
from .answer import Answer, names_of

DEPTH_COLUMNS = ("series", "depth_label")


@dataclass(frozen=True)
class Facts:
    """What the sections draw on: the runs, and the tables over all of them."""

    runs: tuple[Run, ...]
    trials: pd.DataFrame
    epochs: pd.DataFrame
    compared: Answer | None
    """None if no trial completed."""
    same_data: bool = True
    """Whether the runs are on the same data, so that they can be ranked."""
    unread: list[str] = field(default_factory=list)
    """What of the run folders cannot be read, a sentence each; sections add what they find."""

    @property
    def answer(self) -> Answer | None:
        """The answer, where there is one to give."""
        return self.compared if self.same_data else None

    @property
    def depths(self) -> pd.DataFrame:
        """A row per series and depth (see `Answer.depths`); empty if no trial completed."""
        return pd.DataFrame(columns=DEPTH_COLUMNS) if self.compared is None else self.compared.depths

    def count(self, *states: str) -> int:
        """Trials in any of these states."""
        return int(self.trials["state"].isin(states).sum())

    @property
    def names(self) -> list[str]:
        """Of the runs, as the tables have them in `run`."""
        return names_of(self.runs)

    @property
    def finals(self) -> list[tuple[Run, str, FinalResult]]:
        """Run, name and result of each final fit."""
        return [(run, name, result) for run in self.runs for name, result in run.finals.items()]

    @property
    def first_final(self) -> str:
        """The final model that sections on a single one are about, in words."""
        if len(self.finals) == 1:
            return "the final model"
        run, name, _ = self.finals[0]
        return f"the final model {self.final_name(run, name)} (the first of {len(self.finals)})"

    def final_name(self, run: Run, name: str) -> str:
        """A final fit by its run and its own name."""
        of_run = self.names[self.runs.index(run)]
        return f"{of_run}: {name}" if name else of_run


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

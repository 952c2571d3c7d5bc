"""What a person sees while a sweep runs: one live view on a terminal, a line a trial elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from .rows import Configuration, EpochRow

MOST_RUNNING = 8


class Display:
    """Follows the trials of a sweep; use as a context manager."""

    def __init__(self, planned: Sequence[Configuration], console: Console | None = None) -> None:
        """`planned` are the trials that there will be."""
        self.console = console or Console(highlight=False)
        self.trials = {configuration.trial: configuration for configuration in planned}
        self.last: dict[str, EpochRow] = {}
        self.ended: dict[str, str] = {}
        self.running: dict[str, None] = {}
        self.passed: tuple[int, int] | None = None
        self.started = time.monotonic()
        self.live = Live(console=self.console, get_renderable=self._view, refresh_per_second=4, transient=True)

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False, soft_wrap=True)

    def features(self, done: int, total: int) -> None:
        """So many images passed through the frozen prefix."""
        self.passed = (done, total) if done < total else None

    def start(self, trial: str) -> None:
        """A trial began."""
        self.running[trial] = None

    def row(self, row: EpochRow) -> None:
        """A trial ended an epoch."""
        self.last[row.trial] = row

    def resume(self, trial: str, state: str) -> None:
        """A trial had ended before the sweep was interrupted."""
        self.ended[trial] = state

    def recover(self, trial: str, reason: str, times: int) -> None:
        """A trial's process was lost, and it goes on from its checkpoint."""
        self.running.pop(trial, None)
        self.say(f"{self._line(trial, 'goes on from its checkpoint', reason)}, failure {times}")

    def end(self, trial: str, state: str, reason: str = "") -> None:
        """A trial ended: finished, stopped, dropped or failed."""
        self.running.pop(trial, None)
        self.ended[trial] = state
        if not self.console.is_terminal or state == "failed":
            self.say(f"[{len(self.ended)}/{len(self.trials)}] {self._line(trial, state, reason)}")

    def _line(self, trial: str, state: str, reason: str) -> str:
        planned, row = self.trials[trial], self.last.get(trial)
        axes = "".join(f" {axis}={value}" for axis, value in planned.axes.items())
        place = f"{planned.backbone} depth {planned.depth_label}{axes}"
        text = f"{place} lr {planned.lr:g} seed {planned.seed}: {state}"
        if row:
            text += f" after epoch {row.epoch}/{planned.epochs_planned}, val accuracy {row.val_accuracy:.4f}"
        return f"{text} ({reason})" if reason else text

    def _view(self) -> Group:
        if self.passed:
            done, total = self.passed
            bar = Progress(TextColumn("frozen prefix"), BarColumn(), MofNCompleteColumn(), TextColumn("images"))
            bar.add_task("", total=total, completed=done)
            return Group(bar)
        bar = Progress(
            TextColumn("trials"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), expand=False
        )
        stopped = sum(state in ("stopped", "dropped") for state in self.ended.values())
        left = f"{stopped} stopped early, {self._time_left()}"
        bar.add_task(left, total=len(self.trials), completed=len(self.ended))
        lines = [self._line(trial, "running", "") for trial in list(self.running)[:MOST_RUNNING]]
        return Group(bar, *lines, self._best())

    def _time_left(self) -> str:
        done = sum(self._share(trial) for trial in self.trials)
        if done < 0.01 * len(self.trials):
            return "time left unknown yet"
        seconds = (time.monotonic() - self.started) * (len(self.trials) - done) / done
        return f"about {int(seconds // 60)}:{int(seconds % 60):02d} left"

    def _share(self, trial: str) -> float:
        if trial in self.ended:
            return 1.0
        row = self.last.get(trial)
        return row.epoch / self.trials[trial].epochs_planned if row else 0.0

    def _best(self) -> Table:
        best: dict[tuple[str, int, str], float] = {}
        for trial, row in self.last.items():
            planned = self.trials[trial]
            key = (planned.backbone, planned.layers, planned.depth_label)
            best[key] = max(best.get(key, 0.0), row.val_accuracy or 0.0)
        table = Table("backbone", "depth", "best val accuracy so far", box=None)
        for (backbone, _, label), value in sorted(best.items()):
            table.add_row(backbone, label, f"{100 * value:.1f} %")
        return table

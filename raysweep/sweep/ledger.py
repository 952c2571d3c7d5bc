"""The run folder: what a sweep writes down, and how it is read again.

`epochs.jsonl` holds one row per (trial, epoch) and `trials.jsonl` one row per change of
a trial's state. Both are append-only: a row is one line, written and flushed when it
arrives, so that a run that is killed keeps every row but at most the half-written last
one, which reading ignores. Other files are written beside and renamed. One process
writes at a time: the folder's lock is the operating system's, gone with its holder.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..files import write_text
from ..recipe import yaml_core
from .rows import Configuration, EpochRow, FinalResult, State, TrialRow

Row = dict[str, Any]
"""A line of a file, as it is on disk."""

RECIPE, EPOCHS, TRIALS, FEATURES = "recipe.yaml", "epochs.jsonl", "trials.jsonl", "features.json"
FINAL, RESULT = "final", "result.json"
FIRST_EDITION = ""
"""Name of the one final fit of a run of the first edition, whose files are in final/ itself."""


class RunFolderError(OSError):
    """A run folder that cannot be used as asked."""


@dataclass(frozen=True)
class Run:
    """A run folder, read."""

    folder: Path
    about: Row
    """recipe.yaml: keys `recipe`, `versions`, `host`, `command`, `started`."""
    epochs: list[Row]
    """Rows of epochs.jsonl, in order of arrival."""
    trials: list[Row]
    """Rows of trials.jsonl, in order of arrival."""
    features: Row | None
    """features.json, if it is there."""
    finals: dict[str, FinalResult]
    """The final fits that were made, by name: final/<name>/result.json."""

    def final_folder(self, name: str) -> Path:
        """Where the model of a final fit is."""
        return self.folder / FINAL if name == FIRST_EDITION else self.folder / FINAL / name


class Ledger:
    """The one writer of a run folder; use as a context manager to hold its lock.

    Raises:
        RunFolderError: another process holds the folder, it holds an earlier run, or it cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / ".lock")
        self._columns: dict[str, Row] = {}

    def __enter__(self) -> Ledger:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except FileExistsError:
            raise RunFolderError(f"{self.folder} is a file, not a folder; give another --run-dir") from None
        except Timeout:
            raise RunFolderError(
                f"the run folder {self.folder} is in use by another sweep; give another --run-dir"
            ) from None
        except OSError as error:
            raise RunFolderError(
                f"the run folder {self.folder} cannot be written to ({error.strerror}); give another --run-dir"
            ) from None
        if (self.folder / RECIPE).exists():
            self._lock.release()
            raise RunFolderError(f"the run folder {self.folder} holds an earlier run; give another --run-dir")
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def describe(self, about: Row) -> None:
        """Write recipe.yaml."""
        write_text(self.folder / RECIPE, yaml_core.dumps(about))

    def plan(self, configurations: Sequence[Configuration]) -> None:
        """Write down every planned trial; rows of its epochs repeat its columns."""
        for configuration in configurations:
            columns = configuration.columns()
            self._columns[configuration.trial] = {
                key: value for key, value in columns.items() if key not in ("axes", "schema_version")
            }
            row = TrialRow(trial=configuration.trial, state="planned", time=time.time())
            self._append(TRIALS, row.model_dump(mode="json", exclude_none=True) | columns)

    def epoch(self, row: EpochRow) -> None:
        """Append a row to epochs.jsonl."""
        unsaid = {name for name in ("val_by_step", "shared", "over") if not getattr(row, name)}
        plain = row.model_dump(mode="json", exclude_none=True, exclude=unsaid)
        self._append(EPOCHS, self._columns.get(row.trial, {}) | plain | {"time": row.time or time.time()})

    def trial(self, trial: str, state: State, **more: Any) -> None:
        """Append a trial's change of state to trials.jsonl; `more` are fields of `TrialRow`."""
        row = TrialRow(trial=trial, state=state, time=time.time(), **more)
        self._append(TRIALS, row.model_dump(mode="json", exclude_none=True))

    def _append(self, name: str, row: Row) -> None:
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def read(folder: Path) -> Run:
    """Read a run folder, finished or not, of this edition or of the first.

    Raises:
        RunFolderError: the folder holds no run.
    """
    about = folder / RECIPE
    if not about.is_file():
        raise RunFolderError(f"{folder} holds no run (no {RECIPE}); give a run folder such as runs/quickstart-…")
    features = folder / FEATURES
    return Run(
        folder=folder,
        about=yaml_core.loads(about.read_text(encoding="utf-8")),
        epochs=_rows(folder / EPOCHS),
        trials=_rows(folder / TRIALS),
        features=json.loads(features.read_text(encoding="utf-8")) if features.is_file() else None,
        finals=_finals(folder / FINAL),
    )


def epoch_rows(run: Run, trial: str) -> list[EpochRow]:
    """The rows of one trial, in order of epochs; of two rows for one epoch the later."""
    rows = {row["epoch"]: row for row in run.epochs if row["trial"] == trial}
    known = EpochRow.model_fields
    return [EpochRow.model_validate({key: row[key] for key in row if key in known}) for _, row in sorted(rows.items())]


def _finals(folder: Path) -> dict[str, FinalResult]:
    found = sorted([*folder.glob(RESULT), *folder.glob(f"*/{RESULT}")])
    return {
        FIRST_EDITION if path.parent == folder else path.parent.name: FinalResult.model_validate_json(
            path.read_text(encoding="utf-8")
        )
        for path in found
    }


def _rows(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # the half-written last line of a run that was killed
    return rows

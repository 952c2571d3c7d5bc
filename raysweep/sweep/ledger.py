"""The run folder: what a sweep writes down, and how it is read again.

`epochs.jsonl` holds one row per (trial, epoch) and `trials.jsonl` one row per change of
a trial's state. Both are append-only: a row is one line, written and flushed when it
arrives, so that a run that is killed keeps every row but at most the half-written last
one, which reading ignores. Other files are written beside and renamed. One process
writes at a time: the folder's lock is the operating system's, gone with its holder.
Before a sweep goes on in its folder, a half-written last line is cut off.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..files import NO_ROOM, write_text
from ..recipe import yaml_core
from ..recipe.yaml_core import YamlError
from . import reading
from .rows import Configuration, EpochRow, FinalResult, State, TrialRow

Row = dict[str, Any]
"""A line of a file, as it is on disk."""

RECIPE, EPOCHS, TRIALS, FEATURES = "recipe.yaml", "epochs.jsonl", "trials.jsonl", "features.json"
FINAL, RESULT = "final", "result.json"
ENDED = ("finished", "stopped", "dropped", "failed")
"""States of a trial that has nothing left to do."""
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
    """Rows of epochs.jsonl, in order of arrival, without the columns that repeat the trial's planned row."""
    trials: list[Row]
    """Rows of trials.jsonl, in order of arrival."""
    features: Row | None
    """features.json, if it is there."""
    finals: dict[str, FinalResult]
    """The final fits that were made, by name: final/<name>/result.json."""
    unread: tuple[str, ...] = ()
    """What is in the folder and cannot be read, a sentence each, which names the file and the line."""

    @property
    def last_notes(self) -> dict[str, Row]:
        """The last change of state of each trial that has one after it was planned, by name."""
        return {row["trial"]: row for row in self.trials if row["state"] != "planned"}

    def final_folder(self, name: str) -> Path:
        """Where the model of a final fit is."""
        return self.folder / FINAL if name == FIRST_EDITION else self.folder / FINAL / name


class Ledger:
    """The one writer of a run folder; use as a context manager to hold its lock.

    Args:
        folder: the run folder.
        resume: go on in a folder that holds an unfinished run, instead of in a new one.

    Raises:
        RunFolderError: another process holds the folder, it holds a run or holds none, or it cannot be
            written to. Its methods raise it too, when the disk is full or the folder is gone.
    """

    def __init__(self, folder: Path, resume: bool = False) -> None:
        self.folder, self.resume = folder, resume
        self._lock = FileLock(folder / ".lock")
        self._columns: dict[str, Row] = {}
        self._planned: set[str] = set()
        self._described = resume

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
        try:
            self._check()
        except BaseException:
            self._lock.release()
            raise
        return self

    def _check(self) -> None:
        there = (self.folder / RECIPE).exists()
        if there and not self.resume:
            how = "give another --run-dir"
            if not is_finished(read(self.folder)):
                how = f"--resume {self.folder} continues it, or {how}"
                raise RunFolderError(f"the run folder {self.folder} holds an unfinished run; {how}")
            raise RunFolderError(f"the run folder {self.folder} holds an earlier run; {how}")
        if self.resume:
            for name in (EPOCHS, TRIALS):
                _cut_torn_line(self.folder / name)
            self._planned = {
                row["trial"] for row in reading.rows(self.folder / TRIALS, []) if row["state"] == "planned"
            }

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def describe(self, about: Row) -> None:
        """Write recipe.yaml."""
        write_text(self.folder / RECIPE, yaml_core.dumps(about))
        self._described = True

    def plan(self, configurations: Sequence[Configuration]) -> None:
        """Write down every planned trial that is not yet; rows of its epochs repeat its columns."""
        for configuration in configurations:
            columns = configuration.columns()
            self._columns[configuration.trial] = {
                key: value for key, value in columns.items() if key not in ("axes", "schema_version")
            }
            if configuration.trial in self._planned:
                continue
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
        """A whole line, or none of it."""
        path, line = self.folder / name, (json.dumps(row) + "\n").encode()
        if self._described and not (self.folder / RECIPE).exists():  # a trial may have made the folder anew
            raise RunFolderError(f"the run folder {self.folder} was removed while the sweep ran")
        try:
            with path.open("ab", buffering=0) as file:
                before = os.fstat(file.fileno()).st_size
                try:
                    _write_whole(file.fileno(), line)
                except OSError:
                    os.truncate(path, before)
                    raise
        except OSError as error:
            raise RunFolderError(error.errno, written_to(self.folder, error)) from None


def _write_whole(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def written_to(folder: Path, error: OSError) -> str:
    """Why a run folder could not be written to, and what to do."""
    if error.errno in NO_ROOM:
        why = "its disk is full; free some space"
    elif not folder.exists():
        return f"the run folder {folder} was removed while the sweep ran"
    else:
        why = f"{error.strerror or error}; mend that"
    return f"the run folder {folder} cannot be written to: {why}, then --resume {folder} continues"


def _cut_torn_line(path: Path) -> None:
    """Remove what a killed process left of a line."""
    if path.is_file() and not (content := path.read_bytes()).endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)


def in_use(folder: Path) -> bool:
    """Whether a sweep holds a run folder."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # a folder that can only be read
        return False
    lock.release()
    return False


def is_finished(run: Run) -> bool:
    """Whether a run has nothing left to do."""
    planned = {row["trial"] for row in run.trials if row["state"] == "planned"}
    states = {name: note["state"] for name, note in run.last_notes.items()}
    ended = bool(planned) and all(states.get(name, "") in ENDED for name in planned)
    final = ((run.about.get("recipe") or {}).get("final") or {}).get("enabled", True)
    failed = ended and all(states[name] == "failed" for name in planned)
    return ended and (failed or not final or bool(run.finals))


def read(folder: Path) -> Run:
    """Read a run folder, finished or not, of this edition or of the first; what cannot be read is left out and said.

    Raises:
        RunFolderError: the folder holds no run, or none of which anything can be read.
    """
    about = folder / RECIPE
    if not about.is_file():
        raise RunFolderError(f"{folder} holds no run (no {RECIPE}); give a run folder such as runs/quickstart-…")
    unread: list[str] = []
    trials = reading.rows(folder / TRIALS, unread)
    planned = {row["trial"]: row for row in trials if row["state"] == "planned"}
    epochs = reading.rows(folder / EPOCHS, unread, lambda row: _own(row, planned.get(row["trial"], {})))
    return Run(
        folder=folder,
        about=_about(about, bool(epochs or trials), unread),
        epochs=epochs,
        trials=trials,
        features=reading.features(folder / FEATURES, unread),
        finals=_finals(folder, unread),
        unread=tuple(unread),
    )


def _about(path: Path, has_rows: bool, unread: list[str]) -> Row:
    """recipe.yaml; empty where it cannot be read but there are rows."""
    try:
        return reading.about(path, unread)
    except YamlError as error:
        if not has_rows:
            raise RunFolderError(f"{path} cannot be read, and there are no rows of trials: {error}") from None
        unread.append(f"{path.name} cannot be read: {error}")
        return {}


def epoch_rows(run: Run, trial: str) -> list[EpochRow]:
    """The rows of one trial, in order of epochs; of two rows for one epoch the later."""
    rows = {row["epoch"]: row for row in run.epochs if row["trial"] == trial}
    known = EpochRow.model_fields
    return [EpochRow.model_validate({key: row[key] for key in row if key in known}) for _, row in sorted(rows.items())]


def _finals(folder: Path, unread: list[str]) -> dict[str, FinalResult]:
    finals: dict[str, FinalResult] = {}
    for path in sorted([*(folder / FINAL).glob(RESULT), *(folder / FINAL).glob(f"*/{RESULT}")]):
        found = reading.final(path, path.relative_to(folder).as_posix(), unread)
        if found is not None:
            finals[FIRST_EDITION if path.parent.name == FINAL else path.parent.name] = found
    return finals


def _own(row: Row, planned: Row) -> Row:
    """What an epoch's row does not repeat of its trial's, with equal texts held once: all rows are in memory."""
    own = EpochRow.model_fields.keys()
    return {
        sys.intern(key): sys.intern(value) if isinstance(value, str) else value
        for key, value in row.items()
        if key in own or key not in planned or planned[key] != value
    }

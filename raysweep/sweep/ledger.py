"""The run folder: what a sweep writes down, and how it is read again.

`epochs.jsonl` holds one row per (trial, epoch) and `trials.jsonl` one row per change of
a trial's state. Both are append-only: a row is one line, written and flushed when it
arrives, so that a run that is killed keeps every row but at most the half-written last
one, which reading ignores. Other files are written beside and renamed. One process
writes at a time: the folder's lock is the operating system's, gone with its holder.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock, Timeout

Row = dict[str, Any]
State = Literal["planned", "running", "finished", "stopped", "failed", "interrupted"]
"""planned → running → finished (all its epochs, or out of patience) | stopped (by ASHA)
| failed (an error) | interrupted (the sweep ended first)."""

FEATURES = "features.json"
"""What the trials share: decisions, what was made (see `precompute.record`)."""


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
    final: Row | None
    """final/result.json, if the final fit was made."""


class Ledger:
    """The one writer of a run folder; use as a context manager to hold its lock.

    Raises:
        RunFolderError: another process holds the folder, it holds an earlier run, or it cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / ".lock")

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
        if (self.folder / "recipe.yaml").exists():
            self._lock.release()
            raise RunFolderError(f"the run folder {self.folder} holds an earlier run; give another --run-dir")
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def describe(self, about: Row) -> None:
        """Write recipe.yaml."""
        write_text(self.folder / "recipe.yaml", yaml.safe_dump(about, sort_keys=False))

    def epoch(self, row: Row) -> None:
        """Append a row to epochs.jsonl."""
        _append(self.folder / "epochs.jsonl", row)

    def trial(self, trial: str, state: State, **more: Any) -> None:
        """Append a trial's change of state to trials.jsonl."""
        _append(self.folder / "trials.jsonl", {"trial": trial, "state": state, "time": time.time(), **more})


def read(folder: Path) -> Run:
    """Read a run folder, finished or not.

    Raises:
        RunFolderError: the folder holds no run.
    """
    about = folder / "recipe.yaml"
    if not about.is_file():
        raise RunFolderError(f"{folder} holds no run (no recipe.yaml); give a run folder such as runs/quickstart-…")
    final = folder / "final" / "result.json"
    return Run(
        folder=folder,
        about=yaml.safe_load(about.read_text(encoding="utf-8")),
        epochs=_rows(folder / "epochs.jsonl"),
        trials=_rows(folder / "trials.jsonl"),
        final=json.loads(final.read_text(encoding="utf-8")) if final.is_file() else None,
    )


def write_text(path: Path, text: str) -> None:
    """Write a whole file, or leave the old one: no reader ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def _append(path: Path, row: Row) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


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

"""What differs between two runs of one sweep, and what early stopping decided in one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raysweep.engine.trials import early_stopping, rungs_of
from raysweep.recipe import load
from raysweep.sweep.history import history_of
from raysweep.sweep.ledger import read
from raysweep.sweep.plan import plan
from raysweep.sweep.rows import Stop

VOLATILE = ("seconds", "time", "pid")
"""Fields of a row that differ between any two runs."""

Key = tuple[str, int]
"""A trial's name, and an epoch."""


def rows_differ(expected: Path, found: Path, tolerance: float, partly: bool = False) -> list[str]:
    """What differs between the rows of two run folders, in words.

    Args:
        tolerance: of numbers, absolute for those below 1 and relative for the others.
        partly: a trial may have ended earlier in one than in the other; rows are compared as far as both go.
    """
    problems = []
    for folder in (expected, found):
        doubled = [key for key, count in Counter(map(_key, read(folder).epochs)).items() if count > 1]
        problems += [f"{len(doubled)} rows doubled in {folder.name}"] if doubled else []
    ones, others = rows_of(expected), rows_of(found)
    if ones.keys() != others.keys() and not partly:
        problems.append(f"{len(others)} rows, not {len(ones)}")
    both = [(ones[key], others[key]) for key in ones.keys() & others.keys()]
    wrong = [(one, other) for one, other in both if not _alike(one, other, tolerance)]
    fields = sorted({key for one, other in wrong for key in {**one, **other} if one.get(key) != other.get(key)})
    return [*problems, f"{len(wrong)} rows differ in {', '.join(fields)}"] if wrong else problems


def ends_differ(one: Path, other: Path) -> list[str]:
    """Trials that ended otherwise in another run, in words."""
    ends, others = _ends(one), _ends(other)
    wrong = [name for name in ends if ends[name] != others.get(name)]
    return [f"{len(wrong)} trials ended otherwise"] if wrong else []


def ends_against_rule(recipe: Path, folder: Path) -> list[str]:
    """Trials that did not end as early stopping says of the rows in the order in which they were recorded, in words.

    A trial that the rule stops has no row after the first one that came when it was stopped; one that the
    rule does not stop has all its epochs.
    """
    settings = load(str(recipe), [])
    planned = plan(settings)
    rule = early_stopping(settings, planned, rungs_of(settings))
    assert rule is not None, "the recipe has no early stopping"
    expected: dict[str, tuple[str, Stop | None]] = {}
    epochs: Counter[str] = Counter()
    problems = []
    for row in history_of(read(folder)).rows:
        epochs[row.trial] += 1
        if row.trial in expected or row.epoch != epochs[row.trial]:
            problems.append(f"{row.trial} has a row of epoch {row.epoch} that it should not have")
        rule.report(row)
        if row.over:
            expected[row.trial] = ("finished", None)
        elif row.trial in rule.stopped:
            expected[row.trial] = ("stopped", rule.stopped[row.trial])
    for one in planned:
        if one.name in rule.stopped:
            expected.setdefault(one.name, ("dropped", rule.stopped[one.name]))
    ends = _ends(folder)
    wrong = [one.name for one in planned if ends.get(one.name) != expected.get(one.name)]
    return [*problems, f"{len(wrong)} ends are not what the rule says"] if wrong else problems


def ended_early(folder: Path) -> int:
    """How many trials early stopping ended or did not start."""
    return sum(state in ("stopped", "dropped") for state, _ in _ends(folder).values())


def rows_of(folder: Path) -> dict[Key, dict[str, Any]]:
    """The rows of a run without what differs between any two runs, by trial and epoch."""
    return {_key(row): {key: row[key] for key in row if key not in VOLATILE} for row in read(folder).epochs}


def _key(row: Mapping[str, Any]) -> Key:
    return row["trial"], row["epoch"]


def _ends(folder: Path) -> dict[str, tuple[str, Stop | None]]:
    """The last state of each trial, and why early stopping ended it."""
    return {
        name: (note["state"], Stop.model_validate(note["stop"]) if note.get("stop") else None)
        for name, note in read(folder).last_notes.items()
    }


def _alike(one: Mapping[str, Any], other: Mapping[str, Any], tolerance: float) -> bool:
    if not tolerance:
        return one == other
    numbers = [key for key in one if isinstance(one[key], float)]
    return all(abs(one[key] - other[key]) <= tolerance * max(1, abs(one[key])) for key in numbers)

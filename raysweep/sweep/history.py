"""What an interrupted sweep has done and decided, read from its ledger.

The ledger is the truth. Early stopping is replayed from the rows in the order in which they
arrived, by the same code that decides while a sweep runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from ..recipe import Recipe, RecipeError, dump
from .ledger import ENDED, Row, Run
from .plan import PlannedTrial
from .rows import EpochRow, Stop
from .rungs import EarlyStopping


@dataclass(frozen=True)
class History:
    """What was recorded of a sweep's trials."""

    rows: tuple[EpochRow, ...] = ()
    """In order of arrival, one for each (trial, epoch)."""
    ended: Mapping[str, str] = field(default_factory=dict)
    """States of the trials that have nothing left to do."""
    began: tuple[str, ...] = ()
    """Trials in the order in which they first started."""

    def recorded(self) -> dict[str, EpochRow]:
        """The last row of each trial."""
        return {row.trial: row for row in self.rows}

    def unfinished(self, names: Sequence[str]) -> list[str]:
        """Of these trials the ones with something left to do, those that had begun first."""
        left = [name for name in names if name not in self.ended]
        began = {name: place for place, name in enumerate(self.began)}
        return sorted(left, key=lambda name: began.get(name, len(began)))


@dataclass(frozen=True)
class Ending:
    """That a trial had ended although the ledger does not say so yet."""

    trial: str
    stop: Stop | None
    """Of a trial that early stopping ended; None of one that was over."""


def history_of(run: Run) -> History:
    """The history in a run folder. Failed trials have something left to do, unless they would fail again."""
    rows: dict[tuple[str, int], EpochRow] = {}
    known = EpochRow.model_fields
    for one in run.epochs:
        try:
            row = EpochRow.model_validate({key: one[key] for key in one if key in known})
        except ValidationError:
            continue  # a damaged line: the epoch is trained again
        rows.setdefault((row.trial, row.epoch), row)
    began = dict.fromkeys(note["trial"] for note in run.trials if note["state"] == "running")
    ended = {name: note["state"] for name, note in run.last_notes.items() if _is_over(note)}
    return History(tuple(rows.values()), ended, tuple(began))


def _is_over(note: Row) -> bool:
    state = note.get("state")
    return state in ENDED and (state != "failed" or bool(note.get("diverged")))


def replay(history: History, rule: EarlyStopping | None) -> list[Ending]:
    """Tell the rule all rows in their order; returns the trials that had ended unrecorded."""
    endings: dict[str, Ending] = {}
    for row in history.rows:
        if rule is not None:
            rule.report(row)
        if row.trial in history.ended:
            continue
        if row.over:
            endings[row.trial] = Ending(row.trial, None)
        elif rule is not None and row.trial in rule.stopped:
            endings[row.trial] = Ending(row.trial, rule.stopped[row.trial])
    return list(endings.values())


def check_same(recipe: Recipe, recorded: Recipe, where: str) -> None:
    """Raise RecipeError where a recipe differs from the one that a run folder holds."""
    asked, there = dict(_flat(dump(recipe))), dict(_flat(dump(recorded)))
    keys = [key for key in {**there, **asked} if asked.get(key) != there.get(key) and key != "description"]
    if keys:
        raise RecipeError(
            *(
                f"--resume {where}: {key} is {there.get(key)} there and {asked.get(key)} here; "
                "leave the recipe out, or start a new run"
                for key in keys
            )
        )


def check_plan(planned: Sequence[PlannedTrial], recorded: Run, where: str) -> None:
    """Raise RecipeError where a run planned other trials than this version does."""
    there = {row["trial"] for row in recorded.trials if row.get("state") == "planned"}
    if unknown := there - {one.name for one in planned}:
        raise RecipeError(
            f"--resume {where}: {len(unknown)} of its trials are not in this version's plan; it was begun by raysweep "
            f"{recorded.about.get('versions', {}).get('raysweep')}: go on with that, or start a new run"
        )


def other_versions(recorded: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Packages whose version is not the recorded one, in words."""
    return [f"{name} {recorded[name]} → {now[name]}" for name in now if recorded.get(name, now[name]) != now[name]]


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for index, one in enumerate(value):
                yield from _flat(one, f"{above}{key}.{index}." if len(value) > 1 else f"{above}{key}.")
        else:
            yield f"{above}{key}", value

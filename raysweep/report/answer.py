"""The answer of a run: its configurations' evidence, the verdict on them, and the table of depths that follows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..recipe import Objective
from ..sweep.evidence import FOLDER, LABELS, contributions, read_labels, read_predictions
from ..sweep.ledger import Run
from . import wording
from .groups import Group, configurations, eligible, records, with_series
from .statistics import Evidence, Verdict, judge


@dataclass(frozen=True)
class Question:
    """What is asked of a run."""

    objective: Objective = "accuracy"
    tolerance: float = 0.5
    """Percentage points."""
    confidence: float = 0.9


@dataclass(frozen=True)
class Answer:
    """What a run, or several, say."""

    question: Question
    configurations: pd.DataFrame
    """The eligible configurations (see `groups.eligible`), with their `row` and `score`, in order of rows and rates:
    nothing depends on the order of the grid."""
    depths: pd.DataFrame
    """A row per series and depth at its chosen learning rate, from the cheapest to the dearest. Beside the
    columns of `groups.configurations`: `score` and `standard_error`, `upper` and `lower` (how much better the
    best configuration may be at most, another depth at least), `status`, `difference` from the recommended
    and `difference_error`, `gap_error`, and `stopped_early`, how many trials at this depth were stopped."""
    verdict: Verdict
    from_predictions: bool
    """Whether every trial left its predictions; else scores were compared unpaired where they are missing."""
    asked: Objective = "accuracy"
    """The objective that was asked for. Where predictions are missing, accuracy is what can be compared."""
    unread: tuple[str, ...] = ()
    """Files of predictions that cannot be read, a sentence each."""

    @cached_property
    def recommended(self) -> Group:
        """The recommended row of `depths`."""
        return records(self.depths)[self.verdict.recommended]

    @cached_property
    def best(self) -> Group:
        """The row of `depths` with the highest score."""
        return records(self.depths)[self.verdict.best]

    @property
    def several_series(self) -> bool:
        """Whether there is more than one series."""
        return self.depths["series"].nunique() > 1


def question_of(run: Run, tolerance: float | None = None, confidence: float | None = None) -> Question:
    """What a run's recipe asks, changed by what is given."""
    recipe: Mapping[str, Any] = run.about.get("recipe") or {}
    default = Question()
    return Question(
        recipe.get("objective") or default.objective,
        _first(tolerance, recipe.get("tolerance"), default.tolerance),
        _first(confidence, recipe.get("confidence"), default.confidence),
    )


def _first(*values: float | None) -> float:
    """The first of the values that is there."""
    return next(value for value in values if value is not None)


def answer_of(trials: pd.DataFrame, runs: Sequence[Run], question: Question) -> Answer | None:
    """Compare what has completed; None if nothing has.

    Args:
        trials: the trials of all runs, `run` naming the folder of each.
        runs: on the same data.
        question: what to compare by.
    """
    groups = eligible(configurations(trials))
    if groups.empty:
        return None
    groups = groups.assign(row=_rows_by_cost(groups)).sort_values(["row", "lr"], ignore_index=True)
    folders = dict(zip(names_of(runs), (run.folder for run in runs), strict=True))
    asked = question.objective
    evidence, found = _evidence(groups, folders, asked)
    if not found.complete and asked != "accuracy":
        question = replace(question, objective="accuracy")
        evidence, _ = _evidence(groups, folders, "accuracy")
    verdict = judge(evidence, question.tolerance / 100, question.confidence)
    groups = groups.assign(score=verdict.scores)
    depths = _depths(groups, trials, evidence, verdict, question.objective)
    return Answer(question, groups, depths, verdict, found.complete, asked, tuple(found.unread))


def names_of(runs: Sequence[Run]) -> list[str]:
    """Runs go by the names of their folders, with as much of the path before them as tells them apart."""
    paths = [run.folder.resolve().parts for run in runs]
    length = 1
    while len({path[-length:] for path in paths}) < len(set(paths)):
        length += 1
    return ["/".join(path[-length:]) for path in paths]


def to_refit(answer: Answer, of: str) -> dict[str, Group]:
    """The rows of `Answer.depths` to refit and test, by the names of their folders.

    Args:
        answer: the answer on validation.
        of: as `final.of`.
    """
    rows = records(answer.depths)
    if of == "recommended":
        return {"recommended": answer.recommended}
    if of == "best":
        return {"best": answer.best}
    if of == "all":
        return {_slug(f"{row['series']} {wording.depth_name(row['depth_label'])}"): row for row in rows}
    found: dict[str, Group] = {}
    for row in rows:
        name = _slug(row["series"])
        if name not in found or row["score"] > found[name]["score"]:
            found[name] = row
    return found


def _slug(text: str) -> str:
    """A name fit for a folder."""
    return re.sub(r"[^A-Za-z0-9._=+-]+", "-", text).strip("-")


def _rows_by_cost(groups: pd.DataFrame) -> list[int]:
    """The number of each configuration's depth, from the cheapest to the dearest.

    Within one series layers tell; over several, what a trial costs.
    """
    by = ["layers", "cost_seconds"] if groups["series"].nunique() == 1 else ["cost_seconds", "layers"]
    costs = groups.groupby(["series", "depth_label"], sort=False)[["layers", "cost_seconds"]].mean()
    order = {key: place for place, key in enumerate(costs.sort_values(by, kind="stable").index)}
    return [order[key] for key in zip(groups["series"], groups["depth_label"], strict=True)]


def _evidence(
    groups: pd.DataFrame, folders: Mapping[str, Path], objective: Objective
) -> tuple[list[Evidence], _Predictions]:
    """The evidence of each configuration, and the predictions that it is from."""
    found = _Predictions(folders, objective)
    return [found.of(group) for group in records(groups)], found


class _Predictions:
    """Evidence from the predictions of trials, read once."""

    def __init__(self, folders: Mapping[str, Path], objective: Objective) -> None:
        self.folders, self.objective = folders, objective
        self.labels = {name: read_labels(folder) for name, folder in folders.items()}
        self.complete = True
        self.unread = [said for name in folders if self.labels[name] is None for said in self._said(name, LABELS)]

    def of(self, group: Group) -> Evidence:
        """The evidence of a configuration: from its seeds' predictions, else from their scores alone."""
        found = [self._contributions(*one) for one in zip(group["folders"], group["names"], strict=True)]
        whole = [one for one in found if one is not None]
        keys = {key for _, key in whole}
        if len(whole) == len(found) and len(keys) == 1:
            stacked = np.stack([values for values, _ in whole])
            return Evidence(group["row"], group["backbone"], group["lr"], stacked, keys.pop())
        self.complete = False
        return Evidence(group["row"], group["backbone"], group["lr"], _as_images(group), "")

    def _contributions(self, run: str, trial: str) -> tuple[np.ndarray, str] | None:
        known, found = self.labels[run], read_predictions(self.folders[run], trial)
        if found is None:
            self.unread += self._said(run, trial)
        if known is None or found is None:
            return None
        labels, classes, key = known
        if found.val_key != key or len(found.predicted) != len(labels):
            return None
        return contributions(self.objective, found.predicted, found.true_probability, labels, classes), key

    def _said(self, run: str, file: str) -> list[str]:
        """That a file of predictions cannot be read; nothing where there is none."""
        there = (self.folders[run] / FOLDER / f"{file}.npz").is_file()
        return [f"{FOLDER}/{file}.npz cannot be read"] * there


def _as_images(group: Group) -> np.ndarray:
    """(seeds, images) as if each seed had the first of the images right, as many as its accuracy says."""
    images = max(2, int(group["val_images"])) if not pd.isna(group.get("val_images")) else 2
    right = np.rint(np.asarray(group["accuracies"]) * images)
    return np.arange(images) < right[:, None]


def _depths(
    groups: pd.DataFrame, trials: pd.DataFrame, evidence: Sequence[Evidence], verdict: Verdict, objective: Objective
) -> pd.DataFrame:
    """See `Answer.depths`."""
    depths = groups.iloc[list(verdict.chosen)].reset_index(drop=True)
    differences, errors = zip(*verdict.differences, strict=True)
    train, val = depths["train_accuracy"], depths["val_accuracy"]
    images = np.array([evidence[k].images for k in verdict.chosen])
    of_val = np.square(verdict.errors) if objective == "accuracy" else val * (1 - val) / images
    stopped = with_series(trials).groupby(["series", "depth_label"])["stopped_early"].sum().rename("stopped_early")
    return depths.assign(
        standard_error=verdict.errors,
        upper=verdict.upper,
        lower=verdict.lower,
        status=verdict.status,
        difference=differences,
        difference_error=errors,
        gap_error=np.sqrt(of_val + train * (1 - train) / images),
    ).merge(stopped.reset_index(), on=["series", "depth_label"], how="left")

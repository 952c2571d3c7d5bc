"""The sections of the report, each a small function of the facts.

A section returns what to show, or None where its data are missing. To extend the report,
write one more and name it in `report.SECTIONS`. Nothing in a section is HTML or Markdown: the
template and the summary escape what they print, for a run folder may hold any name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import yaml
from matplotlib.figure import Figure

from analysis import figures, statistics, wording
from analysis.statistics import Group, Recommendation
from raysweep.ledger import Row, Run


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
    def finals(self) -> list[tuple[str, Row]]:
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


def accuracy(facts: Facts) -> Section | None:
    """Validation accuracy by depth."""
    if len(facts.depths) < 2:
        return None
    text = (
        "Points are means over seeds at each depth's best learning rate; bars are one standard error. The dotted line "
        "is one standard error below the best: as far as this run can tell, a depth above it is as good as the best. "
        "Faint crosses are trials stopped early, at the last epoch they reached; they are in no mean."
    )
    return Section("Accuracy by depth", text, figures.accuracy_by_depth(facts.trials, facts.depths, facts.advice))


def overfitting(facts: Facts) -> Section | None:
    """The generalization gap by depth."""
    if len(facts.depths) < 2 or facts.depths["gap"].isna().all():
        return None
    text = (
        "How much more accurate the network is on images it was trained on than on others, after the same epoch, both "
        "in evaluation mode. A gap that grows while validation accuracy does not is depth spent on memorizing."
    )
    return Section("Overfitting by depth", text, figures.gap_by_depth(facts.trials, facts.depths, facts.advice))


def cost(facts: Facts) -> Section | None:
    """Accuracy against training time."""
    if len(facts.depths) < 2 or facts.depths["seconds"].isna().all():
        return None
    text = (
        "Up and to the left is better; the names at the points are depths. Time is that of a trial's epochs as they "
        "ran, beside other trials on the same machine. Computing features that trials share is not in it."
    )
    return Section("Cost by depth", text, figures.cost(facts.trials, facts.depths, facts.advice))


def depths(facts: Facts) -> Section | None:
    """The table of depths."""
    if facts.depths.empty:
        return None
    text = (
        "Each depth at its best learning rate, means over the seeds that finished. ● is recommended, ○ the cheapest "
        "depth within one standard error of the best of its own network. Errors are over seeds, pooled over a "
        "network's depths; with one seed, over the validation images."
    )
    picks = [pick for pick, _ in facts.advice.choices] if facts.advice else []
    marks = {(pick["series"], pick["depth_label"]): "○" for pick in picks}
    if facts.advice:
        marks[facts.advice.recommended["series"], facts.advice.recommended["depth_label"]] = "●"
    rows = statistics.records(facts.depths)
    table = ({"": marks.get((row["series"], row["depth_label"]), ""), **_depth_row(row)} for row in rows)
    return Section("Depths", text, table=tuple(table))


def test(facts: Facts) -> Section | None:
    """Results of the final fits."""
    if not facts.finals:
        return None
    text = (
        "The best configuration on validation, refitted on training and validation images together and measured once "
        "on test images that chose nothing. The error is the binomial one of so many images."
    )
    return Section("Test", text, table=tuple({"run": name, **_final_row(final)} for name, final in facts.finals))


def confusion(facts: Facts) -> Section | None:
    """Which classes the final model confuses."""
    if len(facts.finals) != 1 or not facts.finals[0][1].get("confusion"):
        return None
    final = facts.finals[0][1]
    few = len(final["class_names"]) <= figures.MAX_CLASSES
    text = "Test images by their class and by the class they were taken for. " if few else ""
    wrong = statistics.confusions(final).head(10).to_dict("records")
    rows = [{**row, "share": wording.percent(row["share"])} for row in wrong]
    return Section(
        "Confusion",
        f"{text}The table holds the most frequent mistakes; share is of the images of the true class.",
        figures.confusion(final) if few else None,
        tuple({str(key): str(cell) for key, cell in row.items()} for row in rows),
    )


def curves(facts: Facts) -> Section | None:
    """Learning curves."""
    if facts.epochs["val_accuracy"].isna().all():
        return None
    text = (
        "Solid is validation, dashed training accuracy; colour is the learning rate. A solid line still rising at its "
        "end would gain from more epochs; a dashed one leaving it behind is overfitting. Crosses end trials early. "
        "Each network has a scale of its own."
    )
    return Section("Learning curves", text, figures.learning_curves(facts.epochs))


def rates(facts: Facts) -> Section | None:
    """Accuracy by learning rate."""
    if not figures.swept_lr(facts.trials):
        return None
    text = (
        "Means over finished seeds; crosses are trials stopped early, at the last epoch they reached. A best rate at "
        "an end of the axis says that the range was too narrow."
    )
    return Section("Learning rates", text, figures.accuracy_by_lr(facts.trials))


def trials(facts: Facts) -> Section | None:
    """The table of trials."""
    text = (
        "Accuracies are those of the last epoch completed; of a trial stopped early that is no final accuracy. "
        "A click on a heading sorts. results.csv has every column."
    )
    rows = tuple(_trial_row(row) for row in statistics.records(facts.trials))
    return Section("Trials", text, table=rows) if rows else None


def failures(facts: Facts) -> Section | None:
    """Failed trials and their errors."""
    failed = statistics.records(facts.trials[facts.trials["state"] == "failed"])
    folded = tuple((wording.trial_name(row), wording.value(row["error"])) for row in failed)
    return Section("Failed trials", folded=folded) if folded else None


def provenance(facts: Facts) -> Section:
    """How it was run: recipe, versions, host, command."""
    about = ((name_of(run), yaml.safe_dump(run.about, sort_keys=False, allow_unicode=True)) for run in facts.runs)
    return Section("How this was run", folded=tuple(about))


def _depth_row(row: Group) -> dict[str, str]:
    return {
        "network": row["series"],
        "depth": row["depth_label"],
        "layers": wording.value(row["layers"]),
        "parameters trained": wording.value(row["trainable_parameters"]),
        "lr": wording.rate(row["lr"]),
        "validation accuracy (%)": wording.points(row["val_accuracy"], row["standard_error"]),
        "gap (points)": wording.points(row["gap"], row["gap_error"]),
        "time": wording.duration(row["seconds"]),
        "seeds": wording.value(row["n_seeds"]),
        "error over": row["error_from"],
        "epochs completed": wording.value(row["epochs_completed"]),
        "stopped early": wording.value(row["stopped_early"]),
    }


def _trial_row(row: Group) -> dict[str, str]:
    return {
        "network": row["series"],
        "depth": row["depth_label"],
        "lr": wording.rate(row["lr"]),
        "seed": wording.setting(row["seed"]),
        "state": row["state"],
        "epochs completed": f"{row['epochs_completed']} of {wording.value(row['epochs_planned'])}",
        "stopped early": wording.value(row["stopped_early"]),
        "validation (%)": wording.points(row["val_accuracy"]),
        "train (%)": wording.points(row["train_accuracy"]),
        "gap (points)": wording.points(row["gap"]),
        "best epoch": wording.value(row["best_epoch"]),
        "seconds": wording.value(round(row["seconds"], 1)),
        "trial": row["trial"],
    }


def _final_row(final: dict[str, Any]) -> dict[str, str]:
    error = statistics.binomial_error(final["test_accuracy"], final["test_images"])
    return {
        "network": final["backbone"],
        "depth": final["depth_label"],
        "lr": wording.rate(final["lr"]),
        "epochs": wording.value(final.get("epochs")),
        "test accuracy (%)": wording.points(final["test_accuracy"], error),
        "test images": wording.value(final["test_images"]),
        "time": wording.duration(final.get("seconds")),
    }

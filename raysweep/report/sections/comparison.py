"""The comparison of depths: differences, scores, overfitting, cost, the table of depths, and curves."""

from __future__ import annotations

import math
from collections.abc import Callable

from .. import groups, sentences, wording
from ..answer import Answer
from ..facts import Facts, Section
from ..figures.cost import cost as cost_figure
from ..figures.curves import accuracy_by_lr, learning_curves, swept_lr
from ..figures.depths import gap_by_depth, score_by_depth
from ..figures.differences import differences as differences_figure
from ..groups import Group
from ..objectives import METRICS, Metric


def differences(facts: Facts) -> Section | None:
    """Every depth minus the recommended one."""
    if facts.answer is None or len(facts.depths) < 2:
        return None
    sure = f"{100 * facts.answer.question.confidence:g} %"
    paired = "image by image on the same validation images" if facts.answer.verdict.paired else "not paired by image"
    text = (
        f"Every depth minus the recommended one (the diamond), {paired}. Each end of a bar is a limit that the true "
        f"difference keeps to with {sure} confidence. A depth is enough if, with {sure} confidence, no configuration "
        "tried is better by more than the tolerance (the grey band); too shallow if, with the same confidence, another "
        f"depth is; else open. The best of several rivals is partly lucky: a depth whose bar ends just left of the "
        f"band may still be open. {sentences.errors_apart(facts.answer)} Cost is training and the trial's share of the "
        "pass through the frozen prefix."
    )
    return Section("Which depth is enough", text, differences_figure(facts.answer))


def score(facts: Facts) -> Section | None:
    """The objective on validation by depth."""
    if len(facts.depths) < 2:
        return None
    metric = _metric(facts)
    text = (
        "Points are means over seeds at each depth's best learning rate; bars are one standard error, of the images "
        "and of the seeds together. Two bars that overlap say little: depths are compared with each other in the "
        "figure above. Faint crosses are trials stopped early, at the last epoch they reached; they are in no mean."
    )
    title = f"{wording.sentence_case(metric.name)} by depth"
    return Section(title, text, score_by_depth(facts.trials, facts.depths, metric, facts.answer))


def overfitting(facts: Facts) -> Section | None:
    """The generalization gap by depth."""
    if len(facts.depths) < 2 or facts.depths["gap"].isna().all():
        return None
    text = (
        "How much more accurate the network is on images it was trained on than on others, after the same epoch, both "
        "in evaluation mode. A gap that grows while validation accuracy does not is depth spent on memorizing."
    )
    return Section("Overfitting by depth", text, gap_by_depth(facts.trials, facts.depths, facts.answer))


def cost(facts: Facts) -> Section | None:
    """The objective against the cost of a trial."""
    if len(facts.depths) < 2 or facts.depths["cost_seconds"].isna().all():
        return None
    text = (
        "The names at the points are depths. The cost of a trial is its epochs as they ran, beside other trials on the "
        "same machine, and its share of the pass through the frozen prefix, which its depth's trials made once between "
        "them. An epoch of a phase that several trials share counts in full for each."
    )
    return Section("Cost by depth", text, cost_figure(facts.trials, facts.depths, _metric(facts), facts.answer))


def depths(facts: Facts) -> Section | None:
    """The table of depths."""
    if facts.compared is None:
        return None
    text = (
        "Each depth at its best learning rate among those of which every planned seed finished, means over the seeds. "
        "● is recommended. Behind by at most: how much better the best configuration tried can be; behind by at least: "
        "how much better some other depth is. Both hold with the confidence asked for. Errors are of the images and of "
        "the seeds together."
    )
    pick = facts.answer.verdict.recommended if facts.answer else -1
    rows = enumerate(groups.records(facts.depths))
    table = ({"": "●" if place == pick else "", **_depth_row(row, facts.compared)} for place, row in rows)
    return Section("Depths", text, table=tuple(table))


def curves(facts: Facts) -> Section | None:
    """Accuracy by epoch."""
    if facts.epochs["val_accuracy"].isna().all():
        return None
    text = (
        "Solid is validation, dashed training accuracy; colour is the learning rate. A solid line still rising at its "
        "end would gain from more epochs; a dashed one leaving it behind is overfitting. Crosses end trials early. "
        "Each network has a scale of its own."
    )
    return Section("Learning curves", text, learning_curves(facts.epochs, "accuracy"))


def losses(facts: Facts) -> Section | None:
    """Loss by epoch."""
    if facts.epochs["val_loss"].isna().all():
        return None
    text = (
        "Solid is validation loss in evaluation mode, dashed the mean over the epoch's own training steps, with "
        "dropout and label smoothing where there are any. The network improves within an epoch, so that this mean may "
        "lie above the validation loss."
    )
    return Section("Loss curves", text, learning_curves(facts.epochs, "loss"))


def rates(facts: Facts) -> Section | None:
    """Accuracy by learning rate."""
    if not swept_lr(facts.trials):
        return None
    text = (
        "Means over finished seeds; crosses are trials stopped early, at the last epoch they reached. A best rate at "
        "an end of the axis says that the range was too narrow."
    )
    return Section("Learning rates", text, accuracy_by_lr(facts.trials))


def _metric(facts: Facts) -> Metric:
    return METRICS[facts.compared.question.objective if facts.compared else "accuracy"]


def _outward(bound: float, rounded: Callable[[float], int]) -> float:
    """A bound to a tenth of a point, away from what it excludes, as the sentences have it."""
    return rounded(round(1000 * bound, 6)) / 1000


def _depth_row(row: Group, answer: Answer) -> dict[str, str]:
    metric = METRICS[answer.question.objective]
    points = "points" if metric.scale == 100 else "hundredths"
    scores = {
        metric.axis: wording.scaled(row, metric.column, metric.scale),
        f"± ({points})": wording.points(row["standard_error"]),
        "verdict": row["status"],
        f"behind by at most ({points})": wording.points(_outward(row["upper"], math.ceil)),
        f"behind by at least ({points})": wording.points(_outward(row["lower"], math.floor)),
        "validation accuracy (%)": wording.points(row["val_accuracy"]),
        "validation loss": wording.decimals(row["val_loss"]),
    }
    return {
        "network": row["series"],
        "depth": row["depth_label"],
        "layers": wording.value(row["layers"]),
        "parameters trained": wording.value(row["trainable_parameters"]),
        "lr": wording.rate(row["lr"]),
        **scores,
        "gap (points)": wording.points(row["gap"], row["gap_error"]),
        "cost of a trial": wording.duration(row["cost_seconds"]),
        "seeds": wording.value(row["n_seeds"]),
        "epochs completed": wording.value(row["epochs_completed"]),
        "stopped early": wording.value(row["stopped_early"]),
    }

"""The comparison of depths: accuracy, overfitting, cost, and the table of depths."""

from __future__ import annotations

from .. import statistics, wording
from ..facts import Facts, Section
from ..figures.cost import cost as cost_figure
from ..figures.curves import accuracy_by_lr, learning_curves, swept_lr
from ..figures.depths import accuracy_by_depth, gap_by_depth
from ..statistics import Group


def accuracy(facts: Facts) -> Section | None:
    """Validation accuracy by depth."""
    if len(facts.depths) < 2:
        return None
    text = (
        "Points are means over seeds at each depth's best learning rate; bars are one standard error. The dotted line "
        "is one standard error below the best: as far as this run can tell, a depth above it is as good as the best. "
        "Faint crosses are trials stopped early, at the last epoch they reached; they are in no mean."
    )
    return Section("Accuracy by depth", text, accuracy_by_depth(facts.trials, facts.depths, facts.advice))


def overfitting(facts: Facts) -> Section | None:
    """The generalization gap by depth."""
    if len(facts.depths) < 2 or facts.depths["gap"].isna().all():
        return None
    text = (
        "How much more accurate the network is on images it was trained on than on others, after the same epoch, both "
        "in evaluation mode. A gap that grows while validation accuracy does not is depth spent on memorizing."
    )
    return Section("Overfitting by depth", text, gap_by_depth(facts.trials, facts.depths, facts.advice))


def cost(facts: Facts) -> Section | None:
    """Accuracy against training time."""
    if len(facts.depths) < 2 or facts.depths["seconds"].isna().all():
        return None
    text = (
        "Up and to the left is better; the names at the points are depths. Time is that of a trial's epochs as they "
        "ran, beside other trials on the same machine. Computing features that trials share is not in it."
    )
    return Section("Cost by depth", text, cost_figure(facts.trials, facts.depths, facts.advice))


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


def curves(facts: Facts) -> Section | None:
    """Learning curves."""
    if facts.epochs["val_accuracy"].isna().all():
        return None
    text = (
        "Solid is validation, dashed training accuracy; colour is the learning rate. A solid line still rising at its "
        "end would gain from more epochs; a dashed one leaving it behind is overfitting. Crosses end trials early. "
        "Each network has a scale of its own."
    )
    return Section("Learning curves", text, learning_curves(facts.epochs))


def rates(facts: Facts) -> Section | None:
    """Accuracy by learning rate."""
    if not swept_lr(facts.trials):
        return None
    text = (
        "Means over finished seeds; crosses are trials stopped early, at the last epoch they reached. A best rate at "
        "an end of the axis says that the range was too narrow."
    )
    return Section("Learning rates", text, accuracy_by_lr(facts.trials))


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

"""The final fits on the test images: scores, confusions, calibration."""

from __future__ import annotations

from ...data.fonts import undrawn_classes
from ...sweep.rows import FinalResult
from .. import groups, wording
from ..facts import Facts, Section
from ..figures.calibration import reliability
from ..figures.confusion import MAX_CLASSES
from ..figures.confusion import confusion as confusion_figure
from ..groups import Group


def test(facts: Facts) -> Section | None:
    """Results of the final fits."""
    if not facts.finals:
        return None
    text = (
        "What was chosen on validation, refitted on training and validation images together and measured once on test "
        "images that chose nothing. Train and validation are the figures of the trial that was chosen, before its "
        "refit, at the epoch that it counts with. The error is the binomial one of so many test images."
    )
    trials = {(row["run"], row["trial"]): row for row in groups.records(facts.trials)}
    rows = (
        {"final fit": facts.final_name(run, name)}
        | _final_row(final, trials.get((facts.names[facts.runs.index(run)], final.trial), {}))
        for run, name, final in facts.finals
    )
    return Section("Test", text, table=tuple(rows))


def confusion(facts: Facts) -> Section | None:
    """Which classes the final model confuses."""
    if len(facts.finals) != 1 or not facts.finals[0][2].confusion:
        return None
    final = facts.finals[0][2]
    few = len(final.class_names) <= MAX_CLASSES
    text = "Test images by their class and by the class they were taken for. " if few else ""
    undrawn = f" {undrawn_classes(final.class_names)}".rstrip() if few else ""
    wrong = groups.confusions(final).head(10).to_dict("records")
    rows = [{**row, "share": wording.percent(row["share"])} for row in wrong]
    return Section(
        "Confusion",
        f"{text}The table holds the most frequent mistakes; share is of the images of the true class.{undrawn}",
        confusion_figure(final) if few else None,
        tuple({str(key): str(cell) for key, cell in row.items()} for row in rows),
    )


def calibration(facts: Facts) -> Section | None:
    """Whether the final model's confidence can be believed."""
    if len(facts.finals) != 1 or not facts.finals[0][2].calibration:
        return None
    text = (
        "Test images in bins of the probability that the model gives its own answer. Below the dashed line it is surer "
        "than it is right. The expected calibration error is the mean gap over images."
    )
    return Section("Calibration", text, reliability(facts.finals[0][2]))


def _final_row(final: FinalResult, trial: Group) -> dict[str, str]:
    error = groups.binomial_error(final.test_accuracy, final.test_images)
    return {
        "network": final.backbone,
        "depth": final.depth_label,
        "lr": wording.rate(final.lr),
        "epochs": wording.value(final.epochs),
        "train accuracy (%)": wording.points(trial.get("train_accuracy")),
        "train loss": wording.decimals(trial.get("train_loss")),
        "validation accuracy (%)": wording.points(trial.get("val_accuracy")),
        "validation loss": wording.decimals(trial.get("val_loss")),
        "test accuracy (%)": wording.points(final.test_accuracy, error),
        "test loss": wording.decimals(final.test_loss),
        "balanced accuracy (%)": wording.points(final.test_balanced_accuracy),
        "macro-F1 (%)": wording.points(final.test_macro_f1),
        "top-5 (%)": wording.points(final.test_top5),
        "calibration error (points)": wording.points(final.test_calibration_error),
        "test images": wording.value(final.test_images),
        "time": wording.duration(final.seconds),
    }

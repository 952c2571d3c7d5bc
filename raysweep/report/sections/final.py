"""The final fit on the test images: accuracy and confusions."""

from __future__ import annotations

from ...sweep.rows import FinalResult
from .. import statistics, wording
from ..facts import Facts, Section
from ..figures import confusion as figures


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
    if len(facts.finals) != 1 or not facts.finals[0][1].confusion:
        return None
    final = facts.finals[0][1]
    few = len(final.class_names) <= figures.MAX_CLASSES
    text = "Test images by their class and by the class they were taken for. " if few else ""
    wrong = statistics.confusions(final).head(10).to_dict("records")
    rows = [{**row, "share": wording.percent(row["share"])} for row in wrong]
    return Section(
        "Confusion",
        f"{text}The table holds the most frequent mistakes; share is of the images of the true class.",
        figures.confusion(final) if few else None,
        tuple({str(key): str(cell) for key, cell in row.items()} for row in rows),
    )


def _final_row(final: FinalResult) -> dict[str, str]:
    error = statistics.binomial_error(final.test_accuracy, final.test_images)
    return {
        "network": final.backbone,
        "depth": final.depth_label,
        "lr": wording.rate(final.lr),
        "epochs": wording.value(final.epochs),
        "test accuracy (%)": wording.points(final.test_accuracy, error),
        "test images": wording.value(final.test_images),
        "time": wording.duration(final.seconds),
    }

"""Recall of each class by depth."""

import numpy as np
import pytest

from raysweep.report import page
from raysweep.report.sections.classes import recall, recalls
from raysweep.sweep.evidence import ImagePredictions
from tests.report.synthetic_runs import CLASSES, IMAGES, LABELS, VAL_KEY, finished, planned
from tests.sweep.stored_predictions import write_predictions


@pytest.fixture
def facts(make_run):
    """Depth 3 is right of every image; depth 1 of all but those of class 2, and of one seed in two of class 1."""
    trials = [planned(depth, seed=seed) for depth in (1, 3) for seed in (0, 1)]
    run = make_run([finished(one, 0.8 + one.layers / 100) for one in trials])
    for one in trials:
        wrong = [] if one.layers == 3 else [2] if one.seed == 0 else [1, 2]
        predicted = np.where(np.isin(LABELS, wrong), 0, LABELS)
        found = ImagePredictions(6, predicted, np.full(IMAGES, 0.5), VAL_KEY)
        write_predictions(run.folder, one.trial, found)
    return page.gather([run])


def test_recall_by_hand(facts):
    table = recalls(facts)
    assert table["images"].tolist() == np.bincount(LABELS, minlength=CLASSES).tolist()
    assert table["1"].tolist() == [1.0, 0.5, 0.0]
    assert table["3"].tolist() == [1.0, 1.0, 1.0]


def test_classes_that_gain_most_come_first(facts):
    section = recall(facts)
    assert [row["class"] for row in section.table] == ["class 2", "class 1", "class 0"]
    assert [row["gain (points)"] for row in section.table] == ["100.0", "50.0", "0.0"]
    assert section.table[1]["depth 1 (%)"] == "50.0"
    title = section.figure.axes[0].get_title(loc="left").replace("\n", " ")
    assert title == "From depth 1 to 3, “class 2” gains most: 100 points"


def test_there_is_none_of_one_depth_or_without_predictions(make_run):
    assert recall(page.gather([make_run([finished(planned(1), 0.9)], name="one depth")])) is None
    run = make_run([finished(planned(depth), 0.9) for depth in (1, 3)], name="no predictions")
    for path in (run.folder / "predictions").glob("*.npz"):
        path.unlink()
    assert recall(page.gather([run])) is None

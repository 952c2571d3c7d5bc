"""The figures of a score and of the gap by depth draw what the tables hold."""

import pytest

from raysweep.report import page
from raysweep.report.figures.depths import gap_by_depth, score_by_depth
from raysweep.report.objectives import METRICS
from tests.report.figures.drawn import heading, legend_of
from tests.report.synthetic_runs import epoch_rows, finished, planned


def drawn(run):
    facts = page.gather([run])
    metric = METRICS[facts.answer.question.objective]
    return score_by_depth(facts.trials, facts.depths, metric, facts.answer)


def rings(axes):
    """Marks of the recommendation."""
    return [line for line in axes.lines if line.get_markersize() == 20]


def test_accuracy_by_depth(digits_run):
    axes = drawn(digits_run).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "3", "9", "21", "33"]
    assert axes.get_ylabel() == "validation accuracy (%)"
    assert heading(axes) == "Depth 33 is the cheapest that is enough"
    assert "off the axis (10 trials)" in legend_of(axes.figure)
    assert any("small_cnn" in text.get_text() for text in axes.texts)  # the yardstick, named on its line
    (ring,) = rings(axes)
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (4, pytest.approx(96.0))


def test_means_and_errors_are_those_of_the_answer(digits_run):
    facts = page.gather([digits_run])
    own = facts.depths[facts.depths["backbone"] == "tf_efficientnet_lite0"]
    (bars,) = drawn(digits_run).axes[0].containers
    assert bars.lines[0].get_ydata().tolist() == pytest.approx((100 * own["val_accuracy"]).tolist())
    halves = [(top - bottom) / 2 for (_, bottom), (_, top) in bars.lines[2][0].get_segments()]
    assert halves == pytest.approx((100 * own["standard_error"]).tolist())


@pytest.mark.parametrize(
    ("objective", "label", "scale"),
    [
        ("balanced_accuracy", "validation balanced accuracy (%)", 100),
        ("macro_f1", "validation macro-F1 (%)", 100),
        ("loss", "validation loss", 1),
    ],
)
def test_the_objective_is_what_is_drawn(make_run, objective, label, scale):
    outcomes = [finished(planned(depth), 0.9 + depth / 100) for depth in (1, 3)]
    run = make_run(outcomes, recipe={"data": {"dataset": "digits"}, "objective": objective})
    (axes,) = drawn(run).axes
    assert axes.get_ylabel() == label
    (bars,) = axes.containers
    column = page.gather([run]).depths[METRICS[objective].column]
    assert bars.lines[0].get_ydata().tolist() == pytest.approx((scale * column).tolist())
    assert rings(axes)[0].get_ydata()[0] in bars.lines[0].get_ydata()


def test_undecided(make_run):
    run = make_run([finished(planned(depth), 0.9) for depth in (1, 3)], predictions=False)
    assert heading(drawn(run).axes[0]) == "Undecided; until then, depth 1"


def test_the_legend_has_no_key_to_what_is_not_drawn(make_run):
    """Of a network trained whole from scratch the mean is a line; its single trials are no points."""
    outcomes = [finished(planned(depth), 0.9 + depth / 100) for depth in (1, 3)]
    plan = planned("all", backbone="small_cnn")
    poor = planned("all", backbone="small_cnn", lr=1e-1)
    outcomes += [finished(plan, 0.88), (poor, "stopped", epoch_rows(poor, 0.1, 2))]
    legend = legend_of(drawn(make_run(outcomes)))
    assert not [text for text in legend if "off the axis" in text or "stopped" in text]


@pytest.mark.parametrize(
    ("gaps", "title"),
    [
        ((0.01, 0.05), "The overfitting gap grows from 1.0 points (depth 1) to 5.0 points (depth 3)"),
        ((0.05, 0.01), "The overfitting gap shrinks from 5.0 points (depth 1) to 1.0 points (depth 3)"),
        ((0.02, 0.02), "The overfitting gap is 2.0 points, for depth 1 as for depth 3"),
    ],
)
def test_overfitting_by_depth(make_run, gaps, title):
    outcomes = [finished(planned(depth), 0.9, gap=gap) for depth, gap in zip((1, 3), gaps, strict=True)]
    facts = page.gather([make_run(outcomes)])
    assert heading(gap_by_depth(facts.trials, facts.depths, facts.answer).axes[0]) == title


def test_the_legend_has_keys_to_what_is_drawn(make_run):
    """Stopped trials far below the axis are not crosses but marks at its edge."""
    for accuracy, cross, mark in ((0.2, False, True), (0.94, True, False)):
        stopped = planned(1, lr=0.1)
        outcomes = [finished(planned(depth), 0.9 + depth / 100) for depth in (1, 3)]
        run = make_run([*outcomes, (stopped, "stopped", epoch_rows(stopped, accuracy, 5))], name=f"run{accuracy}")
        found = legend_of(drawn(run))
        assert ("stopped early at epoch 5, not in the mean" in found) is cross
        assert ("off the axis (1 trial)" in found) is mark

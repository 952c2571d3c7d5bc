"""The figure of accuracy by depth draws what the tables hold."""

from raysweep.report import page
from raysweep.report.figures.depths import accuracy_by_depth
from tests.report.synthetic_runs import epoch_rows, planned


def drawn(run):
    facts = page.gather([run])
    return accuracy_by_depth(facts.trials, facts.depths, facts.advice)


def test_accuracy_by_depth(digits_run):
    axes = drawn(digits_run).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "3", "9", "21", "33"]
    assert axes.get_ylabel() == "validation accuracy (%)"
    assert axes.get_title(loc="left") == "Depth 33 has the highest validation accuracy"
    legend = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    assert "stopped early at epoch 3, not in the mean" in legend
    assert any("small_cnn" in text.get_text() for text in axes.texts)  # the yardstick, named on its line
    assert sum(line.get_markersize() == 20 for line in axes.lines) == 1  # the ring of the recommendation


def test_the_legend_has_no_key_to_what_is_not_drawn(make_run):
    """Of a network trained whole from scratch the mean is a line; its single trials are no points."""
    outcomes = [(plan := planned(depth), "finished", epoch_rows(plan, 0.9 + depth / 100)) for depth in (1, 3)]
    plan = planned("all", backbone="small_cnn")
    poor = planned("all", backbone="small_cnn", lr=1e-1)
    outcomes += [(plan, "finished", epoch_rows(plan, 0.88)), (poor, "stopped", epoch_rows(poor, 0.1, 2))]
    legend = [text.get_text() for text in drawn(make_run(outcomes)).legends[0].get_texts()]
    assert not [text for text in legend if "off the axis" in text or "stopped" in text]

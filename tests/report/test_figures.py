"""Figures draw what the tables hold, for every shape of run, and leave matplotlib alone."""

import matplotlib as mpl
import pytest
from synthetic_runs import digits_outcomes, epoch_rows, final_result, planned

from raysweep.report import figures
from raysweep.report import statistics
from raysweep.report import tables

PNG = b"\x89PNG\r\n"


def drawn(run):
    """Every figure by depth of a run."""
    trials = tables.trials_table(run)
    depths, advice = statistics.by_depth(trials), statistics.recommend(trials)
    return [draw(trials, depths, advice) for draw in (figures.accuracy_by_depth, figures.gap_by_depth, figures.cost)]


def test_accuracy_by_depth(digits_run):
    axes = drawn(digits_run)[0].axes[0]
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
    legend = [text.get_text() for text in drawn(make_run(outcomes))[0].legends[0].get_texts()]
    assert not [text for text in legend if "off the axis" in text or "stopped" in text]


def test_learning_curves_have_a_panel_for_each_depth(digits_run):
    figure = figures.learning_curves(tables.epochs_table(digits_run))
    titles = [axes.get_title(loc="left").splitlines()[-1] for axes in figure.axes]
    assert titles == [f"depth {depth}" for depth in (1, 3, 9, 21, 33, "all")]


def test_panels_of_one_network_have_one_scale(digits_run):
    figure = figures.learning_curves(tables.epochs_table(digits_run))
    *pretrained, scratch = [axes.get_ylim() for axes in figure.axes]
    assert len(set(pretrained)) == 1
    assert scratch != pretrained[0]


def test_curves_show_phases_and_what_was_measured_within_an_epoch(make_run):
    plan = planned(3)
    rows = epoch_rows(plan, 0.9)
    for row in rows:
        row["phase"] = 1 if row["epoch"] <= 2 else 2
    rows[0]["val_by_step"] = [{"step": 5, "epoch": 0.5, "val_loss": 2.0, "val_accuracy": 0.1}]
    run = make_run([(plan, "finished", rows)])
    (axes,) = figures.learning_curves(tables.epochs_table(run)).axes
    validation, phase, train = axes.lines
    assert list(validation.get_xdata()) == [0.5, *range(1, len(rows) + 1)]
    assert validation.get_ydata()[0] == pytest.approx(10)
    assert len(train.get_xdata()) == len(rows)
    assert list(phase.get_xdata()) == [2.5, 2.5]
    assert "next phase" in [text.get_text() for text in axes.figure.legends[0].get_texts()]


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
@pytest.mark.parametrize("lrs", [(1e-3,), (1e-3, 1e-2, 1e-1)])
def test_one_or_many_seeds_and_rates(make_run, seeds, lrs):
    run = make_run(digits_outcomes(seeds, lrs))
    assert len(drawn(run)) == 3
    assert figures.swept_lr(tables.trials_table(run)) == (["tf_efficientnet_lite0"] if len(lrs) == 3 else [])


def test_odd_depths_and_hostile_names_are_drawn_as_they_are(make_run):
    outcomes = []
    for depth in ("head", "layer3", ["conv1", "layer4.2.$conv^3"], "all"):
        plan = planned(depth, backbone="_$x^{_<b>")
        outcomes.append((plan, "finished", epoch_rows(plan, 0.8)))
    run = make_run(outcomes)
    pages = [*drawn(run), figures.learning_curves(tables.epochs_table(run))]
    assert all(figures.png(figure).startswith(PNG) for figure in pages)


def test_confusion_states_the_most_frequent():
    axes = figures.confusion(final_result()).axes[0]
    assert axes.get_title(loc="left") == "Most frequent confusion: 8 taken for 1 (6)"


def test_drawing_leaves_no_state_behind(digits_run):
    before = dict(mpl.rcParams)
    drawn(digits_run)
    assert dict(mpl.rcParams) == before
    assert mpl._pylab_helpers.Gcf.figs == {}

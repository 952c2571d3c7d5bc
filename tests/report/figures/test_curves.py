"""Learning curves draw what the tables hold, a panel for each depth."""

import pytest

from raysweep.report import tables
from raysweep.report.figures.curves import learning_curves, swept_lr
from tests.report.figures.drawn import beyond, headings, legend_of, overlaps
from tests.report.synthetic_runs import digits_outcomes, epoch_rows, finished, planned


def test_learning_curves_have_a_panel_for_each_depth(digits_run):
    figure = learning_curves(tables.epochs_table(digits_run), "accuracy")
    titles = [axes.get_title(loc="left").splitlines()[-1] for axes in figure.axes]
    assert titles == [*(f"depth {depth}" for depth in (1, 3, 9, 21, 33)), "all layers"]


def test_panels_of_one_network_have_one_scale(digits_run):
    for kind in ("accuracy", "loss"):
        *pretrained, scratch = [axes.get_ylim() for axes in learning_curves(tables.epochs_table(digits_run), kind).axes]
        assert len(set(pretrained)) == 1
        assert scratch != pretrained[0]


@pytest.mark.parametrize(("kind", "label", "scale"), [("accuracy", "accuracy (%)", 100), ("loss", "loss", 1)])
def test_curves_of_either_kind(make_run, kind, label, scale):
    rows = epoch_rows(planned(3), 0.9)
    (axes,) = learning_curves(tables.epochs_table(make_run([(planned(3), "finished", rows)])), kind).axes
    validation, train = axes.lines
    assert axes.get_ylabel() == label
    assert validation.get_ydata().tolist() == pytest.approx([scale * getattr(row, f"val_{kind}") for row in rows])
    assert train.get_ydata().tolist() == pytest.approx([scale * getattr(row, f"train_{kind}") for row in rows])
    assert (validation.get_linestyle(), train.get_linestyle()) == ("-", "--")


def test_a_loss_that_is_no_number_is_a_gap_in_the_curve(make_run):
    *rows, last = epoch_rows(planned(3), 0.9, 3)
    run = make_run([(planned(3), "failed", [*rows, last.model_copy(update={"val_loss": None})])])
    (axes,) = learning_curves(tables.epochs_table(run), "loss").axes
    assert len(axes.lines[0].get_xdata()) == 3


def test_curves_show_phases_and_what_was_measured_within_an_epoch(make_run):
    plan = planned(3)
    rows = [row.model_copy(update={"phase": 1 if row.epoch <= 2 else 2}) for row in epoch_rows(plan, 0.9)]
    within = [{"step": 5, "epoch": 0.5, "val_loss": 2.0, "val_accuracy": 0.1}]
    rows[0] = rows[0].model_validate(rows[0].model_dump() | {"val_by_step": within})
    run = make_run([(plan, "finished", rows)])
    for kind, first in (("accuracy", 10), ("loss", 2.0)):
        figure = learning_curves(tables.epochs_table(run), kind)
        validation, phase, train = figure.axes[0].lines
        assert list(validation.get_xdata()) == [0.5, *range(1, len(rows) + 1)]
        assert validation.get_ydata()[0] == pytest.approx(first)
        assert len(train.get_xdata()) == len(rows)
        assert list(phase.get_xdata()) == [2.5, 2.5]
        assert "next phase" in legend_of(figure)


@pytest.mark.parametrize("panels", [2, 4, 5, 6])
def test_long_names_neither_overlap_nor_leave_the_figure(make_run, panels):
    names = ("timm/vit_small_patch16_224.augreg_in1k", "tf_efficientnet_lite0")
    plans = [planned(depth, backbone=names[depth % 2]) for depth in range(1, panels + 1)]
    figure = learning_curves(tables.epochs_table(make_run([finished(plan, 0.9) for plan in plans])), "loss")
    assert overlaps(headings(figure)) == []
    assert beyond(figure) == []


@pytest.mark.parametrize("panels", [5, 7])
def test_panels_above_a_gap_have_numbers_of_epochs(make_run, panels):
    run = make_run([finished(planned(depth), 0.9) for depth in range(1, panels + 1)])
    figure = learning_curves(tables.epochs_table(run), "accuracy")
    lowest = figure.axes[-4:]
    assert [axes.get_xlabel() for axes in lowest] == ["epoch"] * 4
    assert all(axes.xaxis.get_tick_params()["labelbottom"] for axes in lowest)


@pytest.mark.parametrize(("lrs", "swept"), [((1e-3,), []), ((1e-3, 1e-2, 1e-1), ["tf_efficientnet_lite0"])])
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_three_learning_rates_make_a_curve(make_run, seeds, lrs, swept):
    assert swept_lr(tables.trials_table(make_run(digits_outcomes(seeds, lrs)))) == swept

"""Learning curves draw what the tables hold, a panel for each depth."""

import pytest

from raysweep.report import tables
from raysweep.report.figures.curves import learning_curves, swept_lr
from tests.report.synthetic_runs import digits_outcomes, epoch_rows, planned


def test_learning_curves_have_a_panel_for_each_depth(digits_run):
    figure = learning_curves(tables.epochs_table(digits_run))
    titles = [axes.get_title(loc="left").splitlines()[-1] for axes in figure.axes]
    assert titles == [f"depth {depth}" for depth in (1, 3, 9, 21, 33, "all")]


def test_panels_of_one_network_have_one_scale(digits_run):
    figure = learning_curves(tables.epochs_table(digits_run))
    *pretrained, scratch = [axes.get_ylim() for axes in figure.axes]
    assert len(set(pretrained)) == 1
    assert scratch != pretrained[0]


def test_curves_show_phases_and_what_was_measured_within_an_epoch(make_run):
    plan = planned(3)
    rows = [row.model_copy(update={"phase": 1 if row.epoch <= 2 else 2}) for row in epoch_rows(plan, 0.9)]
    within = [{"step": 5, "epoch": 0.5, "val_loss": 2.0, "val_accuracy": 0.1}]
    rows[0] = rows[0].model_validate(rows[0].model_dump() | {"val_by_step": within})
    run = make_run([(plan, "finished", rows)])
    (axes,) = learning_curves(tables.epochs_table(run)).axes
    validation, phase, train = axes.lines
    assert list(validation.get_xdata()) == [0.5, *range(1, len(rows) + 1)]
    assert validation.get_ydata()[0] == pytest.approx(10)
    assert len(train.get_xdata()) == len(rows)
    assert list(phase.get_xdata()) == [2.5, 2.5]
    assert "next phase" in [text.get_text() for text in axes.figure.legends[0].get_texts()]


@pytest.mark.parametrize(("lrs", "swept"), [((1e-3,), []), ((1e-3, 1e-2, 1e-1), ["tf_efficientnet_lite0"])])
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_three_learning_rates_make_a_curve(make_run, seeds, lrs, swept):
    assert swept_lr(tables.trials_table(make_run(digits_outcomes(seeds, lrs)))) == swept

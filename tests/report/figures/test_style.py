"""Figures leave matplotlib alone, and draw whatever names a run folder holds."""

import matplotlib as mpl
import pytest

from raysweep.report import page
from raysweep.report.figures.calibration import reliability
from raysweep.report.figures.cost import cost
from raysweep.report.figures.curves import learning_curves
from raysweep.report.figures.depths import gap_by_depth, score_by_depth
from raysweep.report.figures.differences import differences
from raysweep.report.figures.style import png
from raysweep.report.objectives import METRICS
from tests.report.synthetic_runs import digits_outcomes, final_result, finished, planned

PNG = b"\x89PNG\r\n"


def figures_of(run):
    """How to draw every figure of depths of a run, by name."""
    facts = page.gather([run])
    tables, accuracy = (facts.trials, facts.depths), METRICS["accuracy"]
    return {
        "differences": lambda: differences(facts.answer),
        "accuracy": lambda: score_by_depth(*tables, accuracy, facts.answer),
        "gap": lambda: gap_by_depth(*tables, facts.answer),
        "cost": lambda: cost(*tables, accuracy, facts.answer),
        "curves": lambda: learning_curves(facts.epochs, "accuracy"),
        "losses": lambda: learning_curves(facts.epochs, "loss"),
    }


def test_drawing_leaves_no_state_behind(digits_run):
    before = dict(mpl.rcParams)
    for draw in figures_of(digits_run).values():
        draw()
    reliability(final_result())
    assert dict(mpl.rcParams) == before
    assert mpl._pylab_helpers.Gcf.figs == {}


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
@pytest.mark.parametrize("lrs", [(1e-3,), (1e-3, 1e-2, 1e-1)])
def test_one_or_many_seeds_and_rates(make_run, seeds, lrs):
    assert all(draw().axes for draw in figures_of(make_run(digits_outcomes(seeds, lrs))).values())


@pytest.mark.parametrize("which", ["differences", "accuracy", "gap", "cost", "curves", "losses"])
def test_odd_depths_and_hostile_names_are_drawn_as_they_are(make_run, which):
    depths = ("head", "layer3", ["conv1", "layer4.2.$conv^3"], "all")
    outcomes = [finished(planned(depth, backbone="_$x^{_<b>"), 0.8) for depth in depths]
    run = make_run([*outcomes, finished(planned(1, backbone="$y$"), 0.8)])
    assert png(figures_of(run)[which]()).startswith(PNG)

"""Figures leave matplotlib alone, and draw whatever names a run folder holds."""

import matplotlib as mpl
import pytest

from raysweep.report import page
from raysweep.report.figures.cost import cost
from raysweep.report.figures.curves import learning_curves
from raysweep.report.figures.depths import accuracy_by_depth, gap_by_depth
from raysweep.report.figures.style import png
from tests.report.synthetic_runs import digits_outcomes, epoch_rows, planned

PNG = b"\x89PNG\r\n"


def drawn(run):
    """Every figure by depth of a run."""
    facts = page.gather([run])
    return [draw(facts.trials, facts.depths, facts.advice) for draw in (accuracy_by_depth, gap_by_depth, cost)]


def test_drawing_leaves_no_state_behind(digits_run):
    before = dict(mpl.rcParams)
    drawn(digits_run)
    assert dict(mpl.rcParams) == before
    assert mpl._pylab_helpers.Gcf.figs == {}


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
@pytest.mark.parametrize("lrs", [(1e-3,), (1e-3, 1e-2, 1e-1)])
def test_one_or_many_seeds_and_rates(make_run, seeds, lrs):
    assert len(drawn(make_run(digits_outcomes(seeds, lrs)))) == 3


@pytest.mark.parametrize("which", range(4), ids=["accuracy", "gap", "cost", "curves"])
def test_odd_depths_and_hostile_names_are_drawn_as_they_are(make_run, which):
    outcomes = []
    for depth in ("head", "layer3", ["conv1", "layer4.2.$conv^3"], "all"):
        plan = planned(depth, backbone="_$x^{_<b>")
        outcomes.append((plan, "finished", epoch_rows(plan, 0.8)))
    run = make_run(outcomes)
    figures = [*drawn(run), learning_curves(page.gather([run]).epochs)]
    assert png(figures[which]).startswith(PNG)

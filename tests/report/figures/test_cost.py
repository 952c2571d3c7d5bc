"""What depth costs, as it is drawn."""

import re

import pytest

from raysweep.report import page
from raysweep.report.figures.cost import cost
from raysweep.report.objectives import METRICS
from tests.report.figures.drawn import beyond, heading, legend_of, texts
from tests.report.synthetic_runs import finished, planned


@pytest.fixture
def draw(make_run):
    """The figure of depths by accuracy and seconds an epoch."""

    def drawn(depths, **recipe):
        outcomes = [finished(planned(depth), score, seconds=seconds) for depth, (score, seconds) in depths.items()]
        facts = page.gather([make_run(outcomes, recipe={"data": {"dataset": "digits"}} | recipe)])
        metric = METRICS[facts.answer.question.objective]
        return cost(facts.trials, facts.depths, metric, facts.answer)

    return drawn


def test_the_best_is_recommended(draw):
    figure = draw({1: (0.80, 1.0), 3: (0.95, 2.0)})
    assert heading(figure.axes[0]) == "What depth costs in time, and what it buys"
    assert figure.axes[0].get_xlabel().endswith("(seconds)")
    assert legend_of(figure)[-1] == "recommended"


def test_a_cheaper_one_is_recommended(draw):
    title = heading(draw({1: (0.946, 1.0), 3: (0.95, 4.0)}, tolerance=3.0).axes[0])
    assert title == "Depth 1 measures 0.4 points less than depth 3, at 0.25× its cost"


def test_a_loss_is_no_percentage(draw):
    title = heading(draw({1: (0.946, 1.0), 3: (0.95, 4.0)}, tolerance=5.0, objective="loss").axes[0])
    assert re.fullmatch(r"Depth 1 measures a loss 0\.\d{3} above that of depth 3, at 0\.25× its cost", title)


@pytest.mark.parametrize("most", [9.0, 40.0, 5_000.0])
def test_a_logarithmic_axis_has_plain_numbers(draw, most):
    """Names are drawn letter by letter, so that matplotlib's own powers of ten would show as TeX."""
    figure = draw({1: (0.8, 1.0), 3: (0.9, most / 4), 9: (0.95, most)})
    labels = [text for text, _ in texts(figure)]
    assert not [text for text in labels if "$" in text]
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    ticks = [value for value in axes.get_xticks() if low <= value <= high]
    assert len(ticks) >= 2
    assert beyond(figure) == []

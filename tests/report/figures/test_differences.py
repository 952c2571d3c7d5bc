"""Every depth against the recommended one, as it is drawn."""

import pytest
from scipy.stats import norm

from raysweep.report.figures.differences import differences
from tests.report.figures.drawn import beyond, heading, legend_of
from tests.report.made_answers import Depth, answer

LONG = "timm/vit_small_patch16_224.augreg_in1k"


def names_of(figure):
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


@pytest.fixture
def three():
    """Depth 6 is recommended; differences of others have an error of half a point."""
    return answer(
        Depth(3, 93.0, "too shallow", 3.0, 1.5, cost=30), Depth(6, 95.0, "enough", 0.3, cost=90),
        Depth(9, 95.2, "enough", 0.2, cost=7_200), recommended=1,
    )  # fmt: skip


def test_a_row_for_each_depth_the_cheapest_on_top(three):
    figure = differences(three)
    left, right = figure.axes
    assert names_of(figure) == ["depth 3", "depth 6", "depth 9"]
    assert left.yaxis_inverted()
    assert [bar.get_width() for bar in right.patches] == [30, 90, 7_200]
    assert [text.get_text() for text in right.texts] == ["30 s", "90 s", "2.0 h"]
    assert heading(left) == "Depth 6 is the cheapest that is enough"
    assert left.get_xlabel().splitlines() == [
        "accuracy minus that of the recommended depth (points)",
        "each end of a bar with 90 % confidence",
    ]


def test_bars_end_at_the_one_sided_limits(three):
    bars = [container.lines[2][0].get_segments()[0][:, 0] for container in differences(three).axes[0].containers]
    half = 100 * norm.ppf(0.9) * 0.005
    assert [tuple(bar) for bar in bars] == [
        pytest.approx((-2 - half, -2 + half)),
        pytest.approx((0, 0)),
        pytest.approx((0.2 - half, 0.2 + half)),
    ]


def test_the_recommended_is_a_diamond_in_the_band_of_the_tolerance(three):
    figure = differences(three)
    (left, _) = figure.axes
    marks = [container.lines[0].get_marker() for container in left.containers]
    assert marks == ["o", "D", "o"]
    (band,) = left.patches
    assert (band.get_x(), band.get_x() + band.get_width()) == (-0.5, 0.5)
    assert legend_of(figure) == ["enough", "too shallow", "recommended", "within the tolerance of 0.5 points"]


def test_undecided():
    figure = differences(answer(Depth(3, 95.0, "open", 0.9), Depth(6, 95.2, "open", 0.8)))
    assert heading(figure.axes[0]) == "Undecided; until then, depth 3"


def test_a_loss_is_drawn_so_that_right_is_better():
    found = answer(
        Depth(3, 25.0, "too shallow", 5, 3), Depth(9, 20.0), recommended=1, objective="loss", tolerance=2.0
    )  # fmt: skip
    figure = differences(found)
    assert figure.axes[0].get_xlabel().splitlines()[0] == "loss of the recommended depth minus this one's (hundredths)"
    assert figure.axes[0].containers[0].lines[0].get_xdata() == pytest.approx([-5])
    assert "within the tolerance of 0.02" in legend_of(figure)


def test_names_differ_however_long_the_network_s_is():
    depths = [Depth(layers, 95.0, network=name) for name in (LONG, f"{LONG} (run=b)") for layers in (1, 33, "all")]
    figure = differences(answer(*depths))
    assert len(set(names_of(figure))) == 6
    assert names_of(figure)[1].endswith(", depth 33")
    assert max(map(len, names_of(figure))) <= 40


@pytest.mark.parametrize("status", ["open", "enough"])
@pytest.mark.parametrize(("count", "cost"), [(2, 10_000), (30, 7_000)])
def test_nothing_is_cut_off(count, cost, status):
    depths = [Depth(layers, 95.0, status, network=("b", LONG)[layers % 2], cost=cost) for layers in range(1, count + 1)]
    figure = differences(answer(*depths))
    assert beyond(figure) == []
    (_, right) = figure.axes
    edge = right.get_window_extent().x1
    assert max(text.get_window_extent().x1 for text in right.texts) <= edge

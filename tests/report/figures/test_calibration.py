import numpy as np

from raysweep.report.figures.calibration import reliability
from tests.report.figures.drawn import beyond, heading, legend_of
from tests.report.synthetic_runs import final_result


def test_bins_of_test_images_and_their_gaps():
    figure = reliability(final_result())
    (axes,) = figure.axes
    gaps, bins = axes.collections
    expected = np.array([[55, 40], [75, 70], [95, 96], [99, 100]])
    np.testing.assert_allclose(bins.get_offsets(), expected)
    np.testing.assert_allclose([segment[:, 1] for segment in gaps.get_segments()], expected)
    areas = bins.get_sizes().tolist()
    assert areas == sorted(areas)
    assert heading(axes) == "Expected calibration error: 2.1 points"
    assert legend_of(figure)[0] == "perfectly calibrated"
    assert beyond(figure) == []

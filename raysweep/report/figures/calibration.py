"""How far the final model's confidence can be believed."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from ...sweep.rows import FinalResult
from .style import blank, key, legend, styled, title


@styled
def reliability(final: FinalResult) -> Figure:
    """Accuracy (%) against confidence (%) in bins of test images; the area of a point is their number."""
    figure, axes = blank(height=5.0, width=6.2)
    sure, right, images = (np.array(column, dtype=float) for column in zip(*final.calibration, strict=True))
    axes.plot([0, 100], [0, 100], color="0.4", lw=1.2, ls="--", zorder=1)
    axes.vlines(100 * sure, 100 * sure, 100 * right, color="#d55e00", lw=2, zorder=2)
    axes.scatter(100 * sure, 100 * right, 25 + 500 * images / images.sum(), color="#0173b2", zorder=3, clip_on=False)
    axes.set(xlim=(-4, 104), ylim=(-4, 104), xlabel="confidence of the model (%)", ylabel="accuracy on test (%)")
    gap = 100 * (final.test_calibration_error or 0)
    title(axes, f"Expected calibration error: {gap:.1f} points", width=48)
    keys = [
        key("perfectly calibrated", color="0.4", ls="--"),
        key("a bin of test images; area: how many", color="#0173b2", ls="", marker="o"),
        key("gap", color="#d55e00", lw=2),
    ]
    legend(figure, keys, columns=2)
    return figure

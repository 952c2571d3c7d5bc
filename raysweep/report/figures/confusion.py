"""What the final model confuses."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from ...data.fonts import Lettering, drawable_classes
from ...sweep.rows import FinalResult
from ..groups import confusions
from .style import WIDTH, blank, short, styled, title

MAX_CLASSES = 30  # a larger confusion matrix is unreadable at this width


@styled
def confusion(final: FinalResult) -> Figure:
    """Test images by true class (rows) and predicted class (columns), coloured by share of the true class."""
    drawn = final.model_copy(update={"class_names": tuple(drawable_classes(final.class_names))})
    with mpl.rc_context({"font.family": Lettering(final.class_names).families}):
        return _confusion(drawn)


def _confusion(final: FinalResult) -> Figure:
    matrix = np.asarray(final.confusion)  # (true class, predicted class), images
    names = [short(name, 18) for name in final.class_names]
    side = min(4.0 + 0.2 * len(names), WIDTH - 1.2)
    figure, axes = blank(side, side + 1.2)
    shares = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    counts = np.where(matrix == 0, "", matrix.astype(str)) if len(names) <= 20 else False
    style: Any = {"cmap": "Blues", "vmin": 0, "vmax": 100, "square": True, "linewidths": 0.5}
    text: Any = {"fmt": "", "annot_kws": {"fontsize": 10}, "cbar_kws": {"label": "% of the true class"}}
    sns.heatmap(shares, annot=counts, ax=axes, xticklabels=names, yticklabels=names, **style, **text)
    axes.tick_params(axis="x", rotation=90 if max(map(len, names)) > 2 else 0)
    axes.tick_params(axis="y", rotation=0)
    axes.set(xlabel="predicted class", ylabel="true class")
    top = confusions(final).head(1).to_dict("records")
    finding = [f"{short(row['true'])} taken for {short(row['predicted'])} ({row['images']})" for row in top]
    title(axes, f"Most frequent confusion: {finding[0]}" if finding else "No test image is confused", width=60)
    return figure

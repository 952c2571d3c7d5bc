"""Recall of each class by depth."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from ...data.fonts import Lettering, drawable_classes
from .style import WIDTH, blank, short, styled, title


@styled
def recall_by_depth(table: pd.DataFrame) -> Figure:
    """Recall of each class (rows) at each depth (columns) in per cent.

    Args:
        table: see `report.sections.classes.recalls`.
    """
    names = [str(name) for name in table.index]
    with mpl.rc_context({"font.family": Lettering(names).families}):
        figure, axes = blank(2.0 + 0.34 * len(names), WIDTH)
        shares = 100 * table.drop(columns="images")
        style: Any = {"cmap": "Blues", "vmin": min(50.0, float(shares.min().min())), "vmax": 100, "linewidths": 0.5}
        text: Any = {"fmt": ".0f", "annot_kws": {"fontsize": 10}, "cbar_kws": {"label": "recall (%)"}}
        rows = [short(name, 18) for name in drawable_classes(names)]
        columns = [short(str(name), 14) for name in shares.columns]
        sns.heatmap(shares, annot=True, ax=axes, xticklabels=columns, yticklabels=rows, **style, **text)
        axes.tick_params(axis="y", rotation=0)
        axes.set(xlabel="depth (layers trained, counted from the output)", ylabel="class")
        gain = shares.iloc[:, -1] - shares.iloc[:, 0]
        most = rows[int(gain.to_numpy().argmax())]
        title(axes, f"From depth {columns[0]} to {columns[-1]}, “{most}” gains most: {gain.max():.0f} points", width=60)
    return figure

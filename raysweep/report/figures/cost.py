"""What depth costs in time, against what it buys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .. import wording
from ..answer import Answer
from ..objectives import Metric
from .depths import place_name
from .style import RING, blank, key, legend, line_of, looks_of, short, styled, title


@styled
def cost(trials: pd.DataFrame, depths: pd.DataFrame, metric: Metric, answer: Answer | None = None) -> Figure:
    """The objective ± standard error against the cost of a trial, points named by depth."""
    figure, axes = blank()
    longest, shortest = depths["cost_seconds"].max(), depths["cost_seconds"].min()
    unit, length = ("seconds", 1) if longest < 300 else ("minutes", 60) if longest < 3 * 3600 else ("hours", 3600)
    keys = []
    is_log = longest > 8 * shortest > 0
    corners = [(-8, 8), (8, -15), (8, 8), (-8, -15)]  # points right of and above the mark
    for (name, look), corner in zip(looks_of(trials).items(), corners * len(depths), strict=False):
        group = depths[depths["series"] == name]
        x, y = group["cost_seconds"] / length, metric.scale * group[metric.column]
        axes.errorbar(x, y, metric.scale * group["standard_error"], **line_of(look), capsize=3)
        keys.append(key(short(name, 60), **line_of(look)))
        rooms = _rooms(np.log(x) if is_log else x)
        for label, (left, right), *point in zip(group["depth_label"], rooms, x, y, strict=True):
            own, other = (left, right) if corner[0] < 0 else (right, left)
            place = corner if own >= other else (-corner[0], -15 if corner[1] > 0 else 8)  # where a name has room
            side = "left" if place[0] > 0 else "right"
            offset: Any = {"xytext": place, "textcoords": "offset points", "ha": side}
            axes.annotate(short(label, 16), tuple(point), color=look.colour, fontsize=11, **offset)
    axes.margins(0.12)
    if is_log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, 1.1 * longest if longest > 0 else 1)
    if answer:
        pick = answer.recommended
        axes.plot(pick["cost_seconds"] / length, metric.scale * pick[metric.column], ms=20, **RING)
        keys.append(key("recommended", ms=12, **RING))
    axes.set(xlabel=f"cost of one trial: training and its share of the prefix pass ({unit})", ylabel=metric.axis)
    title(axes, _cost_title(trials, metric, answer))
    legend(figure, keys)
    return figure


def _rooms(values: Sequence[float]) -> list[tuple[float, float]]:
    """How far the next smaller and the next larger value are from each."""
    order = np.argsort(values, kind="stable")
    gaps = np.diff(np.asarray(values)[order], prepend=-np.inf, append=np.inf)
    rooms = np.empty((len(order), 2))
    rooms[order] = np.column_stack([gaps[:-1], gaps[1:]])
    return [(left, right) for left, right in rooms]


def _cost_title(trials: pd.DataFrame, metric: Metric, answer: Answer | None) -> str:
    is_best = answer is None or answer.verdict.recommended == answer.verdict.best
    if answer is None or is_best or not answer.best["cost_seconds"] > 0:
        return "What depth costs in time, and what it buys"
    pick, best = answer.recommended, answer.best
    behind = best["score"] - pick["score"]
    less = f"{100 * behind:.1f} points less than" if metric.scale == 100 else f"a loss {behind:.3f} above that of"
    cost = wording.share_of_cost(pick["cost_seconds"] / best["cost_seconds"])
    name = wording.capital(place_name(pick, trials))
    return f"{name} measures {less} {place_name(best, trials)}, at {cost}"

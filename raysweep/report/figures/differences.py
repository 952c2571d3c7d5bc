"""Every depth against the recommended one: the paired difference, and what each costs."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import norm

from .. import wording
from ..answer import Answer
from ..groups import records
from ..objectives import METRICS
from ..sentences import tolerance
from .style import STATUS_COLOURS, WIDTH, key, legend, short, styled, title

ROW_HEIGHT = 0.42
"""Inches of a depth."""


@styled
def differences(answer: Answer) -> Figure:
    """Score minus the recommended depth's, with an interval that holds the truth by the confidence on each side.

    Beside it the cost of a trial, in the unit that suits the longest.
    """
    rows = records(answer.depths)
    figure = Figure(figsize=(WIDTH, 2.3 + ROW_HEIGHT * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    _draw_differences(left, rows, answer)
    _draw_costs(right, rows)
    names = [_short_name(row, answer) for row in rows]
    left.set_yticks(range(len(rows)), names)
    left.set_ylim(len(rows) - 0.4, -0.6)  # the cheapest on top
    title(left, _title(answer), width=78 - 2 * max(map(len, names)) // 3)  # long names leave it less room
    keys = [key(status, color=STATUS_COLOURS[status], marker="o", ls="-") for status in _statuses(rows)]
    keys.append(key("recommended", color="0.4", marker="D", ls="", ms=9))
    keys.append(key(f"within the tolerance of {tolerance(answer)}", color="0.85", lw=8))
    legend(figure, keys, columns=5)
    return figure


def _draw_differences(axes: Axes, rows: list[dict[str, Any]], answer: Answer) -> None:
    z, band = float(norm.ppf(answer.question.confidence)), answer.question.tolerance
    axes.axvspan(-band, band, color="0.85", lw=0, zorder=0)
    axes.axvline(0, color="0.3", lw=1.2, zorder=1)
    for place, row in enumerate(rows):
        colour = STATUS_COLOURS[row["status"]]
        recommended = place == answer.verdict.recommended
        value, half = 100 * row["difference"], 100 * z * row["difference_error"]
        style: Any = {"marker": "D" if recommended else "o", "ms": 9 if recommended else 7, "capsize": 4}
        axes.errorbar(value, place, xerr=half, color=colour, lw=1.8, zorder=3, **style)
    if answer.question.objective == "loss":
        what = "loss of the recommended depth minus this one's (hundredths)"
    else:
        what = f"{METRICS[answer.question.objective].name} minus that of the recommended depth (points)"
    axes.set_xlabel(f"{what}\neach end of a bar with {100 * answer.question.confidence:g} % confidence")
    axes.grid(axis="y", visible=False)


def _draw_costs(axes: Axes, rows: list[dict[str, Any]]) -> None:
    costs = np.array([row["cost_seconds"] for row in rows], dtype=float)
    axes.barh(range(len(rows)), costs, height=0.55, color="0.7")
    style: Any = {"textcoords": "offset points", "va": "center", "fontsize": 11}
    for place, value in enumerate(costs):
        axes.annotate(wording.duration(value), (value, place), xytext=(4, 0), **style)
    axes.margins(x=1.3)
    axes.set_xticks([])
    axes.set_xlabel("cost of a trial")
    axes.grid(visible=False)
    axes.tick_params(labelleft=False)


def _short_name(row: dict[str, Any], answer: Answer) -> str:
    """With room for the depth, by which rows differ."""
    name = short(wording.depth_name(row["depth_label"]), 22)
    return f"{_middle(short(row['series'], 200), 36 - len(name))}, {name}" if answer.several_series else name


def _middle(text: str, length: int) -> str:
    """At most so long, cut in the middle: series of one network differ at their ends."""
    half = length // 2
    return text if len(text) <= length else f"{text[: length - half - 1]}…{text[-half:]}"


def _statuses(rows: list[dict[str, Any]]) -> list[str]:
    return [status for status in STATUS_COLOURS if any(row["status"] == status for row in rows)]


def _title(answer: Answer) -> str:
    row = answer.recommended
    pick = wording.place(row) if answer.several_series else wording.depth_name(row["depth_label"])
    if not answer.verdict.is_decided:
        return f"Undecided; until then, {pick}"
    return f"{wording.capital(pick)} is the cheapest that is enough"

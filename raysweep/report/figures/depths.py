"""Accuracy and overfitting by depth.

Completed trials are drawn at full strength. Trials that were stopped early or broken off
are faint crosses at the last epoch they reached, and in no mean. Depths are places in
order of layers, evenly spaced, so that 1, 3, 9, 21 and 33 all stay readable.
"""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .. import wording
from ..answer import Answer
from ..groups import completed, records, with_series
from ..objectives import Metric
from .style import (
    RING,
    Look,
    blank,
    cross,
    key,
    legend,
    line_of,
    looks_of,
    loose_keys,
    short,
    styled,
    title,
    yardsticks,
)  # fmt: skip

GAP = Metric("gap", "gap", 100, "percentage points")


@styled
def score_by_depth(trials: pd.DataFrame, depths: pd.DataFrame, metric: Metric, answer: Answer | None = None) -> Figure:
    """The objective on validation against depth: mean ± standard error, and every trial."""
    figure, axes = blank()
    keys = _draw_depths(axes, trials, depths, metric, "standard_error", answer)
    axes.set_ylabel(metric.axis)
    title(axes, _score_title(trials, depths, metric, answer))
    legend(figure, keys)
    return figure


@styled
def gap_by_depth(trials: pd.DataFrame, depths: pd.DataFrame, answer: Answer | None = None) -> Figure:
    """Train minus validation accuracy (percentage points) against depth, both in eval mode after the same epoch."""
    figure, axes = blank()
    axes.axhline(0, color="0.2", lw=1.2, zorder=1)
    keys = _draw_depths(axes, trials, depths, GAP, "gap_error", answer)
    axes.set_ylabel("train − validation accuracy\n(percentage points)")
    title(axes, _gap_title(trials, depths, answer))
    legend(figure, keys)
    return figure


def _draw_depths(
    axes: Axes, trials: pd.DataFrame, depths: pd.DataFrame, metric: Metric, error: str, answer: Answer | None
) -> list[Line2D]:
    """Draw one metric: means ± errors, every trial, yardsticks. Returns the legend's keys."""
    trials, depths = _scaled(with_series(trials), metric), _scaled(depths, metric, error)
    trials = trials[trials["drawn"].notna()]
    looks, lone = looks_of(trials), yardsticks(trials)
    points = trials[~trials["series"].isin(lone)]
    layers = points.groupby("depth_label")["layers"].max().sort_values(kind="stable")
    places = {str(label): place for place, label in enumerate(layers.index)}
    low, high = _limits(trials, depths)
    axes.set(ylim=(low, high), xlim=(-0.5, len(places) - 0.5))
    axes.set_xticks(list(places.values()), [short(label, 14) for label in places])
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("depth (layers trained, counted from the output)")
    free = low  # the lowest height in the right margin that no name has taken
    for name, group in sorted(depths.groupby("series"), key=lambda item: item[1]["drawn"].max()):
        if name in lone:
            free = _draw_yardstick(axes, group.iloc[0].to_dict(), looks[name], free)
    for name, look in looks.items():
        if name not in lone:
            own, means = trials[trials["series"] == name], depths[depths["series"] == name]
            _draw_series(axes, own, means, places, look)
    if answer and answer.recommended["series"] not in lone:
        pick = answer.recommended
        at = places[pick["depth_label"]] + looks[pick["series"]].shift
        axes.plot(at, metric.scale * pick[metric.column], ms=20, zorder=5, **RING)
    lines = {name: look for name, look in looks.items() if name not in lone}
    inside = points["drawn"].between(low, high)
    return _depth_keys(lines, points[inside], depths, int((~inside).sum()), ringed=answer is not None)


def _draw_series(axes: Axes, trials: pd.DataFrame, depths: pd.DataFrame, places: dict[str, int], look: Look) -> None:
    """Means ± errors of one series; beside them dots for seeds, circles for other rates, crosses for the rest."""
    at = depths["depth_label"].map(places) + look.shift
    axes.errorbar(at, depths["drawn"], depths["half"], **line_of(look), capsize=4, zorder=3)
    chosen = depths.set_index("depth_label")
    x, y = trials["depth_label"].map(places) + look.shift, trials["drawn"]
    done, here = trials["state"] == "finished", trials["lr"] == trials["depth_label"].map(chosen["lr"])
    seeds = done & here & (trials["depth_label"].map(chosen["n_seeds"]) > 1)
    axes.scatter(x[seeds] + 0.07, y[seeds], 24, color=look.colour, alpha=0.75, lw=0, zorder=4)
    other = done & ~here
    axes.scatter(x[other] - 0.07, y[other], 24, facecolors="none", edgecolors=look.colour, alpha=0.6, lw=1)
    faint: Any = {"color": look.colour, "alpha": 0.45}
    for state, group in trials[~done].groupby("state"):
        axes.scatter(x[group.index] - 0.14, y[group.index], 30, marker=cross(state), lw=1.2, **faint)
    low, high = axes.get_ylim()
    for beyond, edge, marker in ((y < low, low, "v"), (y > high, high, "^")):
        axes.scatter(x[beyond] - 0.14, y[beyond].clip(edge, edge), 40, marker=marker, lw=0, clip_on=False, **faint)


def _draw_yardstick(axes: Axes, group: wording.Group, look: Look, free: float) -> float:
    """A level with its band across all depths, named in the right margin above `free`; returns the name's upper end."""
    level, half = group["drawn"], np.nan_to_num(group["half"])
    axes.axhline(level, color=look.colour, lw=1.5, ls="--", zorder=2)
    axes.axhspan(level - half, level + half, color=look.colour, alpha=0.12, lw=0, zorder=0)
    scratch = ["from scratch"] if group.get("weights") == "none" else []
    lines = [*textwrap.wrap(short(group["series"], 50) + ",", 20), wording.depth_name(group["depth_label"]), *scratch]
    low, high = axes.get_ylim()
    height = 0.052 * (high - low) * len(lines)
    middle = max(level, free + height / 2)
    place: Any = {"xycoords": ("axes fraction", "data"), "xytext": (8, 0), "textcoords": "offset points"}
    style: Any = {"va": "center", "color": look.colour, "fontsize": 10.5, "annotation_clip": False}
    axes.annotate("\n".join(lines), (1, middle), **place, **style)
    return middle + height / 2


def _scaled(table: pd.DataFrame, metric: Metric, error: str | None = None) -> pd.DataFrame:
    """The table with what is drawn of the metric, and half the length of its error bar."""
    drawn = table.assign(drawn=metric.scale * table[metric.column])
    return drawn if error is None else drawn.assign(half=metric.scale * table[error])


def _limits(trials: pd.DataFrame, depths: pd.DataFrame) -> tuple[float, float]:
    """Ends of the y axis that show all means, and single trials unless they are far off."""
    half = depths["half"].fillna(0)
    core = pd.concat([depths["drawn"] - half, depths["drawn"] + half])
    span = max(core.max() - core.min(), 0.02 * abs(core.max()), 1e-9)
    every = trials["drawn"]
    near = every[every.between(core.min() - 0.35 * span, core.max() + 0.35 * span)]
    return min(core.min(), near.min()) - 0.07 * span, max(core.max(), near.max()) + 0.09 * span


def _depth_keys(
    lines: dict[str, Look], trials: pd.DataFrame, depths: pd.DataFrame, hidden: int, ringed: bool
) -> list[Line2D]:
    """Keys to what `_draw_depths` drew: these trials, and a mark for each of those that are hidden."""
    dot: Any = {"ls": "", "color": "0.3", "marker": "o", "ms": 5}
    several = (depths["n_seeds"] > 1).any()
    only = f"{'mean' if several else 'one seed'} ± standard error (images and seeds)"
    keys = [key(only if len(lines) == 1 else short(name, 60), **line_of(look)) for name, look in lines.items()]
    keys += [key("one seed", **dot)] if several else []
    if (completed(trials).groupby(["series", "depth_label"])["lr"].nunique() > 1).any():
        keys.append(key("other learning rates, not in the mean", **dot, mfc="none"))
    keys += loose_keys(trials)
    keys += [key(f"off the axis ({wording.count(hidden, 'trial')})", **dot | {"marker": "v"})] if hidden else []
    return keys + ([key("recommended", ms=12, **RING)] if ringed else [])


def place_name(group: wording.Group, trials: pd.DataFrame) -> str:
    """The depth, with its network unless that is the only one tried at several depths."""
    lone = yardsticks(trials)
    only = with_series(trials)["series"].nunique() - len(lone) == 1 and group["series"] not in lone
    return (
        wording.depth_name(group["depth_label"])
        if only
        else wording.place({**group, "series": short(group["series"], 44)})
    )


def _score_title(trials: pd.DataFrame, depths: pd.DataFrame, metric: Metric, answer: Answer | None) -> str:
    if answer is None or len(depths) == 1:
        return f"Validation {metric.name} by depth"
    name, sure = place_name(answer.recommended, trials), answer.verdict.is_decided
    return f"{wording.capital(name)} is the cheapest that is enough" if sure else f"Undecided; until then, {name}"


def _gap_title(trials: pd.DataFrame, depths: pd.DataFrame, answer: Answer | None) -> str:
    own = depths[depths["series"] == answer.recommended["series"]].dropna(subset="gap") if answer else depths.head(0)
    if len(own) < 2:
        return "Overfitting: train minus validation accuracy by depth"
    first, *_, last = records(own)
    one, other = (f"{100 * row['gap']:.1f} points" for row in (first, last))
    start, end = (place_name(row, trials) for row in (first, last))
    if one == other:
        return f"The overfitting gap is {one}, for {start} as for {end}"
    verb = "grows" if last["gap"] > first["gap"] else "shrinks"
    return f"The overfitting gap {verb} from {one} ({start}) to {other} ({end})"

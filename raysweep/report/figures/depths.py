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
from ..statistics import Recommendation, completed, with_series
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

LIMIT = {"color": "0.35", "lw": 1.0, "ls": (0, (2, 2))}  # one standard error below the best


@styled
def accuracy_by_depth(trials: pd.DataFrame, depths: pd.DataFrame, advice: Recommendation | None = None) -> Figure:
    """Validation accuracy (%) against depth: mean ± standard error, and every trial."""
    figure, axes = blank()
    keys = _draw_depths(axes, trials, depths, "val_accuracy", "standard_error", advice)
    if advice:
        floor = advice.best["val_accuracy"] - np.nan_to_num(advice.best["standard_error"])
        axes.axhline(100 * floor, zorder=1, **LIMIT)  # type: ignore[arg-type]
        keys.append(key("one standard error below the best", **LIMIT))
    axes.set_ylabel("validation accuracy (%)")
    title(axes, _accuracy_title(trials, depths, advice))
    legend(figure, keys)
    return figure


@styled
def gap_by_depth(trials: pd.DataFrame, depths: pd.DataFrame, advice: Recommendation | None = None) -> Figure:
    """Train minus validation accuracy (percentage points) against depth, both in eval mode after the same epoch."""
    figure, axes = blank()
    axes.axhline(0, color="0.2", lw=1.2, zorder=1)
    keys = _draw_depths(axes, trials, depths, "gap", "gap_error", advice)
    axes.set_ylabel("train − validation accuracy\n(percentage points)")
    title(axes, _gap_title(trials, depths, advice))
    legend(figure, keys)
    return figure


def _draw_depths(
    axes: Axes, trials: pd.DataFrame, depths: pd.DataFrame, value: str, error: str, advice: Recommendation | None
) -> list[Line2D]:
    """Draw one column, in percent: means ± errors, every trial, yardsticks. Returns the legend's keys."""
    trials = with_series(trials)
    trials = trials[trials[value].notna()]
    looks, lone = looks_of(trials), yardsticks(trials)
    points = trials[~trials["series"].isin(lone)]
    layers = points.groupby("depth_label")["layers"].max().sort_values(kind="stable")
    places = {str(label): place for place, label in enumerate(layers.index)}
    low, high = _limits(trials, depths, value, error)
    axes.set(ylim=(low, high), xlim=(-0.5, len(places) - 0.5))
    axes.set_xticks(list(places.values()), [short(label, 14) for label in places])
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("depth (layers trained, counted from the output)")
    free = low  # the lowest height in the right margin that no name has taken
    for name, group in sorted(depths.groupby("series"), key=lambda item: item[1][value].max()):
        if name in lone:
            free = _draw_yardstick(axes, group.iloc[0].to_dict(), looks[name], value, error, free)
    for name, look in looks.items():
        if name not in lone:
            own, means = trials[trials["series"] == name], depths[depths["series"] == name]
            _draw_series(axes, own, means, places, look, value, error)
    if advice and advice.recommended["series"] not in lone:
        pick = advice.recommended
        axes.plot(places[pick["depth_label"]] + looks[pick["series"]].shift, 100 * pick[value], ms=20, zorder=5, **RING)
    lines = {name: look for name, look in looks.items() if name not in lone}
    hidden = int((~(100 * points[value]).between(low, high)).sum())
    return _depth_keys(lines, points, depths, hidden, ringed=advice is not None)


def _draw_series(
    axes: Axes, trials: pd.DataFrame, depths: pd.DataFrame, places: dict[str, int], look: Look, value: str, error: str
) -> None:
    """Means ± errors of one series; beside them dots for seeds, circles for other rates, crosses for the rest."""
    at = depths["depth_label"].map(places) + look.shift
    axes.errorbar(at, 100 * depths[value], 100 * depths[error], **line_of(look), capsize=4, zorder=3)
    chosen = depths.set_index("depth_label")
    x, y = trials["depth_label"].map(places) + look.shift, 100 * trials[value]
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


def _draw_yardstick(axes: Axes, group: wording.Group, look: Look, value: str, error: str, free: float) -> float:
    """A level with its band across all depths, named in the right margin above `free`; returns the name's upper end."""
    level, half = 100 * group[value], 100 * np.nan_to_num(group[error])
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


def _limits(trials: pd.DataFrame, depths: pd.DataFrame, value: str, error: str) -> tuple[float, float]:
    """Ends of the y axis, in percent, that show all means, and single trials unless they are far off."""
    half = depths[error].fillna(0)
    core = 100 * pd.concat([depths[value] - half, depths[value] + half])
    span = max(core.max() - core.min(), 2.0)
    every = 100 * trials[value]
    near = every[every.between(core.min() - 0.35 * span, core.max() + 0.35 * span)]
    return min(core.min(), near.min()) - 0.07 * span, max(core.max(), near.max()) + 0.09 * span


def _depth_keys(
    lines: dict[str, Look], trials: pd.DataFrame, depths: pd.DataFrame, hidden: int, ringed: bool
) -> list[Line2D]:
    """Keys to what `_draw_depths` drew."""
    dot: Any = {"ls": "", "color": "0.3", "marker": "o", "ms": 5}
    several = (depths["n_seeds"] > 1).any()
    only = "mean ± standard error" if several else "one seed ± standard error (images)"
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
    name = wording.depth_name(group["depth_label"])
    return name if only else f"{short(group['series'], 44)} at {name}"


def _accuracy_title(trials: pd.DataFrame, depths: pd.DataFrame, advice: Recommendation | None) -> str:
    if advice is None or len(depths) == 1:
        return "Validation accuracy by depth"
    name = wording.capital(place_name(advice.recommended, trials))
    if advice.recommended == advice.best:
        return f"{name} has the highest validation accuracy"
    return f"{name} is the cheapest within one standard error of the best"


def _gap_title(trials: pd.DataFrame, depths: pd.DataFrame, advice: Recommendation | None) -> str:
    own = depths[depths["series"] == advice.recommended["series"]].dropna(subset="gap") if advice else depths.head(0)
    if len(own) < 2:
        return "Overfitting: train minus validation accuracy by depth"
    first, *_, last = own.to_dict("records")
    verb = "grows" if last["gap"] > first["gap"] else "shrinks"
    ends = " to ".join(f"{100 * row['gap']:.1f} points at {place_name(row, trials)}" for row in (first, last))  # type: ignore[arg-type]
    return f"The overfitting gap {verb} from {ends}"

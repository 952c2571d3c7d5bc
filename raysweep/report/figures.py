"""Tables to matplotlib figures: no arithmetic beyond percent, no global state, no pyplot.

Completed trials are drawn at full strength. Trials that were stopped early or broken off
are faint crosses at the last epoch they reached, and in no mean. Depths are places in
order of layers, evenly spaced, so that 1, 3, 9, 21 and 33 all stay readable. Colours are
seaborn's colour-blind palette; every series has a marker of its own as well.
"""

from __future__ import annotations

import functools
import io
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from analysis import wording
from analysis.statistics import Recommendation, completed, confusions, with_series

WIDTH = 9.0  # inches, shown at 900 px: 12 points are 17 px
DPI = 150
MAX_CLASSES = 30  # a larger confusion matrix is unreadable at this width
MARKERS = "osD^vP*X"
STYLE: Any = {
    **sns.axes_style("whitegrid"),
    **sns.plotting_context("notebook"),
    "axes.edgecolor": "0.4",
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "grid.color": "0.9",
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "text.parse_math": False,  # names in a run folder may hold a dollar sign
}
LIMIT = {"color": "0.35", "lw": 1.0, "ls": (0, (2, 2))}  # one standard error below the best
RING: Any = {"ls": "", "marker": "o", "mfc": "none", "mec": "0.1", "mew": 1.6}  # the recommended depth
P = ParamSpec("P")
T = TypeVar("T")


class Look(NamedTuple):
    """How one series is drawn, alike in every figure."""

    colour: Any
    marker: str
    shift: float
    """Sideways, in places of the depth axis, so that error bars do not cover each other."""


def _styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Run a function under our style and leave matplotlib's settings as they were."""

    @functools.wraps(draw)
    def within(*args: P.args, **kwargs: P.kwargs) -> T:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return within


@_styled
def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()


@_styled
def accuracy_by_depth(trials: pd.DataFrame, depths: pd.DataFrame, advice: Recommendation | None = None) -> Figure:
    """Validation accuracy (%) against depth: mean ± standard error, and every trial."""
    figure, axes = _figure()
    keys = _draw_depths(axes, trials, depths, "val_accuracy", "standard_error", advice)
    if advice:
        floor = advice.best["val_accuracy"] - np.nan_to_num(advice.best["standard_error"])
        axes.axhline(100 * floor, zorder=1, **LIMIT)  # type: ignore[arg-type]
        keys.append(_key("one standard error below the best", **LIMIT))
    axes.set_ylabel("validation accuracy (%)")
    _title(axes, _accuracy_title(trials, depths, advice))
    _legend(figure, keys)
    return figure


@_styled
def gap_by_depth(trials: pd.DataFrame, depths: pd.DataFrame, advice: Recommendation | None = None) -> Figure:
    """Train minus validation accuracy (percentage points) against depth, both in eval mode after the same epoch."""
    figure, axes = _figure()
    axes.axhline(0, color="0.2", lw=1.2, zorder=1)
    keys = _draw_depths(axes, trials, depths, "gap", "gap_error", advice)
    axes.set_ylabel("train − validation accuracy\n(percentage points)")
    _title(axes, _gap_title(trials, depths, advice))
    _legend(figure, keys)
    return figure


@_styled
def cost(trials: pd.DataFrame, depths: pd.DataFrame, advice: Recommendation | None = None) -> Figure:
    """Validation accuracy (%) ± standard error against training time of a trial, points named by depth."""
    figure, axes = _figure()
    longest, shortest = depths["seconds"].max(), depths["seconds"].min()
    unit, length = ("seconds", 1) if longest < 300 else ("minutes", 60) if longest < 3 * 3600 else ("hours", 3600)
    keys = []
    is_log = longest > 8 * shortest > 0
    corners = [(-8, 8), (8, -15), (8, 8), (-8, -15)]  # points right of and above the mark
    for (name, look), corner in zip(_looks(trials).items(), corners * len(depths), strict=False):
        group = depths[depths["series"] == name]
        x, y = group["seconds"] / length, 100 * group["val_accuracy"]
        axes.errorbar(x, y, 100 * group["standard_error"], **_line(look), capsize=3)
        keys.append(_key(_short(name, 60), **_line(look)))
        rooms = _rooms(np.log(x) if is_log else x)
        for label, (left, right), *point in zip(group["depth_label"], rooms, x, y, strict=True):
            own, other = (left, right) if corner[0] < 0 else (right, left)
            place = corner if own >= other else (-corner[0], -15 if corner[1] > 0 else 8)  # where a name has room
            side = "left" if place[0] > 0 else "right"
            offset: Any = {"xytext": place, "textcoords": "offset points", "ha": side}
            axes.annotate(_short(label, 16), tuple(point), color=look.colour, fontsize=11, **offset)
    axes.margins(0.12)
    if is_log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.set_xlim(0, 1.1 * longest if longest > 0 else 1)
    if advice:
        pick = advice.recommended
        axes.plot(pick["seconds"] / length, 100 * pick["val_accuracy"], ms=20, **RING)
        keys.append(_key("recommended", ms=12, **RING))
    axes.set(xlabel=f"training time of one trial ({unit})", ylabel="validation accuracy (%)")
    _title(axes, _cost_title(trials, advice))
    _legend(figure, keys)
    return figure


def _rooms(values: Sequence[float]) -> list[tuple[float, float]]:
    """How far the next smaller and the next larger value are from each."""
    order = np.argsort(values, kind="stable")
    gaps = np.diff(np.asarray(values)[order], prepend=-np.inf, append=np.inf)
    rooms = np.empty((len(order), 2))
    rooms[order] = np.column_stack([gaps[:-1], gaps[1:]])
    return [(left, right) for left, right in rooms]


@_styled
def learning_curves(epochs: pd.DataFrame) -> Figure:
    """Validation (solid) and train accuracy (dashed), in %, by epoch; a panel for each depth, a colour for each lr.

    Validation measured within an epoch has points of its own; dotted verticals part the phases. Panels of one
    series have one scale: a network from scratch must not press the curves of a pretrained one flat.
    """
    epochs = with_series(epochs)
    order = list(epochs["series"].unique())
    groups = epochs.sort_values("layers", kind="stable").groupby(["series", "depth_label"], sort=False)
    panels = sorted(groups, key=lambda panel: order.index(panel[0][0]))
    colours = _shades(sorted(epochs["lr"].unique()))
    figure, grid = _panels(len(panels), height=2.5, one_scale=len(order) == 1)
    for axes, ((name, label), rows) in zip(grid, panels, strict=True):
        for _, trial in rows.groupby(["run", "trial"]):
            _draw_curve(axes, trial.sort_values("epoch"), colours[trial["lr"].iloc[0]])
        depth = f"depth {_short(label, 28)}"
        _title(axes, f"{_short(name, 50)}\n{depth}" if len(order) > 1 else depth, width=28, size=11)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.set_xlabel("epoch")
        axes.set_ylabel("accuracy (%)")
        axes.label_outer()
    if len(order) > 1:
        for name in order:
            _share_scale([axes for axes, ((own, _), _) in zip(grid, panels, strict=True) if own == name])
    keys = [_key(f"lr {wording.rate(lr)}", color=colour, lw=3) for lr, colour in colours.items()]
    keys += [_key("validation", color="0.3"), _key("train", color="0.3", ls="--")]
    if (epochs.groupby(["run", "trial"])["phase"].nunique() > 1).any():
        keys.append(_key("next phase", color="0.6", lw=1, ls=":"))
    keys += _loose_keys(epochs.groupby(["run", "trial"]).last())
    _legend(figure, keys, columns=4 if len(colours) > 3 else None)
    return figure


def swept_lr(trials: pd.DataFrame) -> list[str]:
    """The series with at least three learning rates: fewer make no curve."""
    counts = with_series(trials[trials["val_accuracy"].notna()]).groupby("series", sort=False)["lr"].nunique()
    return [str(name) for name in counts.index[counts >= 3]]


@_styled
def accuracy_by_lr(trials: pd.DataFrame) -> Figure:
    """Validation accuracy (%) against learning rate: a line over the means for each depth, a panel for each series."""
    trials = with_series(trials).dropna(subset="val_accuracy").sort_values("layers", kind="stable")
    names = swept_lr(trials)
    trials = trials[trials["series"].isin(names)]
    colours = _shades(list(trials["depth_label"].unique()))
    markers = {label: MARKERS[place % len(MARKERS)] for place, label in enumerate(colours)}
    figure, grid = _panels(len(names), height=4.2, columns=2)
    for axes, name in zip(grid, names, strict=True):
        rows = trials[trials["series"] == name]
        for label, here in rows.groupby("depth_label", sort=False):
            means = 100 * completed(here).groupby("lr")["val_accuracy"].mean()
            axes.plot(means.index, means, marker=markers[label], color=colours[label], lw=1.5, ms=7)
            for state, group in here[here["state"] != "finished"].groupby("state"):
                y = 100 * group["val_accuracy"]
                axes.scatter(group["lr"], y, 22, color=colours[label], marker=_cross(state), alpha=0.6, lw=1)
        ticks = sorted(rows["lr"].unique())
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(ticks, [wording.rate(lr) for lr in ticks], rotation=45 if len(ticks) > 6 else 0)
        axes.tick_params(labelbottom=True)
        axes.set(xlabel="learning rate", ylabel="validation accuracy (%)" if axes is grid[0] else "")
        _title(axes, _short(name, 80) if len(names) > 1 else "Validation accuracy by learning rate", width=40)
    keys = [_key(f"depth {_short(label)}", color=colours[label], marker=markers[label]) for label in colours]
    _legend(figure, [*keys, *_loose_keys(trials)])
    return figure


@_styled
def confusion(final: dict[str, Any]) -> Figure:
    """Test images by true class (rows) and predicted class (columns), coloured by share of the true class."""
    matrix = np.asarray(final["confusion"])  # (true class, predicted class), images
    names = [_short(name, 18) for name in final["class_names"]]
    side = min(4.0 + 0.2 * len(names), WIDTH - 1.2)
    figure, axes = _figure(side, side + 1.2)
    shares = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    counts = np.where(matrix == 0, "", matrix.astype(str)) if len(names) <= 20 else False
    style: Any = {"cmap": "Blues", "vmin": 0, "vmax": 100, "square": True, "linewidths": 0.5}
    text: Any = {"fmt": "", "annot_kws": {"fontsize": 10}, "cbar_kws": {"label": "% of the true class"}}
    sns.heatmap(shares, annot=counts, ax=axes, xticklabels=names, yticklabels=names, **style, **text)
    axes.tick_params(axis="x", rotation=90 if max(map(len, names)) > 2 else 0)
    axes.tick_params(axis="y", rotation=0)
    axes.set(xlabel="predicted class", ylabel="true class")
    top = confusions(final).head(1).to_dict("records")
    finding = [f"{_short(row['true'])} taken for {_short(row['predicted'])} ({row['images']})" for row in top]
    _title(axes, f"Most frequent confusion: {finding[0]}" if finding else "No test image is confused", width=60)
    return figure


# What the two figures by depth share.


def _draw_depths(
    axes: Axes, trials: pd.DataFrame, depths: pd.DataFrame, value: str, error: str, advice: Recommendation | None
) -> list[Line2D]:
    """Draw one column, in percent: means ± errors, every trial, yardsticks. Returns the legend's keys."""
    trials = with_series(trials)
    trials = trials[trials[value].notna()]
    looks, lone = _looks(trials), _yardsticks(trials)
    points = trials[~trials["series"].isin(lone)]
    layers = points.groupby("depth_label")["layers"].max().sort_values(kind="stable")
    places = {str(label): place for place, label in enumerate(layers.index)}
    low, high = _limits(trials, depths, value, error)
    axes.set(ylim=(low, high), xlim=(-0.5, len(places) - 0.5))
    axes.set_xticks(list(places.values()), [_short(label, 14) for label in places])
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
    axes.errorbar(at, 100 * depths[value], 100 * depths[error], **_line(look), capsize=4, zorder=3)
    chosen = depths.set_index("depth_label")
    x, y = trials["depth_label"].map(places) + look.shift, 100 * trials[value]
    done, here = trials["state"] == "finished", trials["lr"] == trials["depth_label"].map(chosen["lr"])
    seeds = done & here & (trials["depth_label"].map(chosen["n_seeds"]) > 1)
    axes.scatter(x[seeds] + 0.07, y[seeds], 24, color=look.colour, alpha=0.75, lw=0, zorder=4)
    other = done & ~here
    axes.scatter(x[other] - 0.07, y[other], 24, facecolors="none", edgecolors=look.colour, alpha=0.6, lw=1)
    faint: Any = {"color": look.colour, "alpha": 0.45}
    for state, group in trials[~done].groupby("state"):
        axes.scatter(x[group.index] - 0.14, y[group.index], 30, marker=_cross(state), lw=1.2, **faint)
    low, high = axes.get_ylim()
    for beyond, edge, marker in ((y < low, low, "v"), (y > high, high, "^")):
        axes.scatter(x[beyond] - 0.14, y[beyond].clip(edge, edge), 40, marker=marker, lw=0, clip_on=False, **faint)


def _draw_yardstick(axes: Axes, group: wording.Group, look: Look, value: str, error: str, free: float) -> float:
    """A level with its band across all depths, named in the right margin above `free`; returns the name's upper end."""
    level, half = 100 * group[value], 100 * np.nan_to_num(group[error])
    axes.axhline(level, color=look.colour, lw=1.5, ls="--", zorder=2)
    axes.axhspan(level - half, level + half, color=look.colour, alpha=0.12, lw=0, zorder=0)
    scratch = ["from scratch"] if group.get("weights") == "none" else []
    lines = [*textwrap.wrap(_short(group["series"], 50) + ",", 20), wording.depth_name(group), *scratch]
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
    keys = [_key(only if len(lines) == 1 else _short(name, 60), **_line(look)) for name, look in lines.items()]
    keys += [_key("one seed", **dot)] if several else []
    if (completed(trials).groupby(["series", "depth_label"])["lr"].nunique() > 1).any():
        keys.append(_key("other learning rates, not in the mean", **dot, mfc="none"))
    keys += _loose_keys(trials)
    keys += [_key(f"off the axis ({wording.count(hidden, 'trial')})", **dot | {"marker": "v"})] if hidden else []
    return keys + ([_key("recommended", ms=12, **RING)] if ringed else [])


def _looks(trials: pd.DataFrame) -> dict[str, Look]:
    """The look of each series; those that are points on the depth axis stand side by side."""
    trials = with_series(trials)
    names = [str(name) for name in trials["series"].unique()]
    moved = [name for name in names if name not in _yardsticks(trials)]
    shifts = dict(zip(moved, np.linspace(-1, 1, len(moved)) * min(0.09 * (len(moved) - 1), 0.25), strict=True))
    palette = sns.color_palette("colorblind") if len(names) <= 10 else sns.color_palette("husl", len(names))
    return {
        name: Look(palette[place], MARKERS[place % len(MARKERS)], float(shifts.get(name, 0.0)))
        for place, name in enumerate(names)
    }


def _yardsticks(trials: pd.DataFrame) -> list[str]:
    """Series with one depth, beside others that have several: levels to compare with, not points on the axis."""
    counts = with_series(trials).groupby("series", sort=False)["depth_label"].nunique()
    return [str(name) for name in counts.index[counts == 1]] if (counts > 1).any() else []


# Smaller parts.


def _figure(height: float = 5.4, width: float = WIDTH) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _panels(count: int, height: float, columns: int = 4, one_scale: bool = True) -> tuple[Figure, list[Axes]]:
    """So many axes on a grid, with a common scale upwards or without; three a row where that leaves no gap."""
    columns = min(columns, count) if count % 3 or count % 4 == 0 else min(columns, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH, max(height * rows + 1.2, 5.0)), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=one_scale).flat)
    for axes in grid[count:]:
        axes.remove()
    return figure, grid[:count]


def _share_scale(grid: Sequence[Axes]) -> None:
    """Give axes the same limits upwards, and each its own numbers."""
    lows, highs = zip(*(axes.get_ylim() for axes in grid), strict=True)
    for axes in grid:
        axes.set_ylim(min(lows), max(highs))
        axes.tick_params(labelleft=True)


def _draw_curve(axes: Axes, trial: pd.DataFrame, colour: Any) -> None:
    within = [one for some in trial["val_by_step"] if isinstance(some, list) for one in some]
    points = pd.concat([trial[["epoch", "val_accuracy"]], pd.DataFrame(within, columns=["epoch", "val_accuracy"])])
    points = points.astype(float).drop_duplicates("epoch").sort_values("epoch")
    axes.plot(points["epoch"], 100 * points["val_accuracy"], ".-", color=colour, lw=1.6, ms=5)
    for end in trial.groupby("phase")["epoch"].max().sort_values().iloc[:-1]:
        axes.axvline(end + 0.5, color="0.6", lw=1, ls=":", zorder=0)
    axes.plot(trial["epoch"], 100 * trial["train_accuracy"], "--", color=colour, lw=1.2, alpha=0.8)
    last = trial.iloc[-1]
    if last["state"] != "finished":
        axes.plot(last["epoch"], 100 * last["val_accuracy"], _cross(last["state"]), color=colour, ms=9, mew=2)


def _cross(state: Any) -> str:
    return "x" if state == "stopped" else "+"


def _loose_keys(trials: pd.DataFrame) -> list[Line2D]:
    """Keys to the crosses, with the epochs at which trials were stopped."""
    keys = []
    stopped = sorted(trials.loc[trials["state"] == "stopped", "epochs_completed"].unique())
    if stopped:
        epochs = " or ".join(map(str, stopped)) if len(stopped) <= 4 else f"{stopped[0]} to {stopped[-1]}"
        keys.append(_key(f"stopped early at epoch {epochs}, not in the mean", ls="", marker="x", color="0.5"))
    if not trials["state"].isin(["finished", "stopped"]).all():
        keys.append(_key("not finished, not in the mean", ls="", marker="+", color="0.5"))
    return keys


def _key(label: str, **style: Any) -> Line2D:
    return Line2D([], [], label=label, **style)


def _line(look: Look) -> dict[str, Any]:
    return {"color": look.colour, "marker": look.marker, "ls": "-", "lw": 1.8, "ms": 8}


def _legend(figure: Figure, keys: Sequence[Line2D], columns: int | None = None) -> None:
    """A legend below the axes, where it covers nothing."""
    longest = max(len(str(key.get_label())) for key in keys)
    columns = columns or (1 if longest > 60 else 2 if longest > 30 else 3 if longest > 18 else 5)
    figure.legend(handles=keys, loc="outside lower center", ncols=min(columns, len(keys)))


def _shades(values: Sequence[Any]) -> dict[Any, Any]:
    """A colour for each of some ordered values, dark to light, none too light for paper."""
    shades = mpl.colormaps["viridis"](np.linspace(0.0, 0.85, len(values)))
    return dict(zip(values, map(tuple, shades), strict=True))


def _title(axes: Axes, text: str, width: int = 82, size: float = 12.5) -> None:
    axes.set_title("\n".join(textwrap.fill(line, width) for line in text.splitlines()), fontsize=size)


def _short(name: Any, length: int = 24) -> str:
    """A name fit to be drawn: one line, at most so long, and no underscore first (legends drop such labels)."""
    text = " ".join(str(name).split())
    text = text if len(text) <= length else text[: length - 1] + "…"
    return " " + text if text.startswith("_") else text


# Titles that state the finding.


def _place(group: wording.Group, trials: pd.DataFrame) -> str:
    """The depth, with its network unless that is the only one tried at several depths."""
    lone = _yardsticks(trials)
    only = with_series(trials)["series"].nunique() - len(lone) == 1 and group["series"] not in lone
    return wording.depth_name(group) if only else f"{_short(group['series'], 44)} at {wording.depth_name(group)}"


def _accuracy_title(trials: pd.DataFrame, depths: pd.DataFrame, advice: Recommendation | None) -> str:
    if advice is None or len(depths) == 1:
        return "Validation accuracy by depth"
    name = wording.capital(_place(advice.recommended, trials))
    if advice.recommended == advice.best:
        return f"{name} has the highest validation accuracy"
    return f"{name} is the cheapest within one standard error of the best"


def _gap_title(trials: pd.DataFrame, depths: pd.DataFrame, advice: Recommendation | None) -> str:
    own = depths[depths["series"] == advice.recommended["series"]].dropna(subset="gap") if advice else depths.head(0)
    if len(own) < 2:
        return "Overfitting: train minus validation accuracy by depth"
    first, *_, last = own.to_dict("records")
    verb = "grows" if last["gap"] > first["gap"] else "shrinks"
    ends = " to ".join(f"{100 * row['gap']:.1f} points at {_place(row, trials)}" for row in (first, last))  # type: ignore[arg-type]
    return f"The overfitting gap {verb} from {ends}"


def _cost_title(trials: pd.DataFrame, advice: Recommendation | None) -> str:
    if advice is None or advice.recommended == advice.best or not advice.best["seconds"] > 0:
        return "What depth costs in training time, and what it buys"
    pick, best = advice.recommended, advice.best
    less = f"{100 * (best['val_accuracy'] - pick['val_accuracy']):.1f} points less than {_place(best, trials)}"
    time = wording.share_of_time(pick["seconds"] / best["seconds"])
    return f"{wording.capital(_place(pick, trials))} gives {less}, at {time}"

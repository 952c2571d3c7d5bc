"""How every figure looks: size, colours, markers, legends, titles; no pyplot, no global state.

Colours are seaborn's colour-blind palette; every series has a marker of its own as well.
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

from ..groups import with_series

WIDTH = 9.0  # inches, shown at 900 px: 12 points are 17 px
DPI = 150
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
STATUS_COLOURS = {"enough": "#029e73", "open": "#de8f05", "too shallow": "#949494"}
"""Of what the verdict says of a depth."""
RING: Any = {"ls": "", "marker": "o", "mfc": "none", "mec": "0.1", "mew": 1.6}  # the recommended depth
P = ParamSpec("P")
T = TypeVar("T")


class Look(NamedTuple):
    """How one series is drawn, alike in every figure."""

    colour: Any
    marker: str
    shift: float
    """Sideways, in places of the depth axis, so that error bars do not cover each other."""


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Run a function under our style and leave matplotlib's settings as they were."""

    @functools.wraps(draw)
    def within(*args: P.args, **kwargs: P.kwargs) -> T:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return within


@styled
def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()


def blank(height: float = 5.4, width: float = WIDTH) -> tuple[Figure, Axes]:
    """An empty figure of so many inches, with one set of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def columns_of(count: int, most: int = 4) -> int:
    """Of a grid of so many panels: three where that leaves no gap."""
    return min(most, count) if count % 3 or count % 4 == 0 else min(most, 3)


def panels_of(count: int, height: float, columns: int = 4, one_scale: bool = True) -> tuple[Figure, list[Axes]]:
    """So many axes on a grid, with a common scale upwards or without."""
    columns = columns_of(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH, max(height * rows + 1.2, 5.0)), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=one_scale).flat)
    for axes in grid[count:]:
        axes.remove()
    return figure, grid[:count]


def share_scale(grid: Sequence[Axes]) -> None:
    """Give axes the same limits upwards, and each its own numbers."""
    lows, highs = zip(*(axes.get_ylim() for axes in grid), strict=True)
    for axes in grid:
        axes.set_ylim(min(lows), max(highs))
        axes.tick_params(labelleft=True)


def cross(state: Any) -> str:
    """The marker of a trial that did not finish."""
    return "x" if state == "stopped" else "+"


def loose_keys(trials: pd.DataFrame, in_means: bool = True) -> list[Line2D]:
    """Keys to the crosses, with the epochs at which trials were stopped; `in_means`: whether means are drawn."""
    left_out = ", not in the mean" if in_means else ""
    keys = []
    stopped = sorted(trials.loc[trials["state"] == "stopped", "epochs_completed"].unique())
    if stopped:
        epochs = " or ".join(map(str, stopped)) if len(stopped) <= 4 else f"{stopped[0]} to {stopped[-1]}"
        keys.append(key(f"stopped early at epoch {epochs}{left_out}", ls="", marker="x", color="0.5"))
    if not trials["state"].isin(["finished", "stopped"]).all():
        keys.append(key(f"not finished{left_out}", ls="", marker="+", color="0.5"))
    return keys


def key(label: str, **style: Any) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], label=label, **style)


def line_of(look: Look) -> dict[str, Any]:
    """How a series is drawn as a line with markers."""
    return {"color": look.colour, "marker": look.marker, "ls": "-", "lw": 1.8, "ms": 8}


def legend(figure: Figure, keys: Sequence[Line2D], columns: int | None = None) -> None:
    """A legend below the axes, where it covers nothing."""
    longest = max(len(str(key.get_label())) for key in keys)
    columns = columns or (1 if longest > 60 else 2 if longest > 30 else 3 if longest > 18 else 5)
    figure.legend(handles=keys, loc="outside lower center", ncols=min(columns, len(keys)))


def shades(values: Sequence[Any]) -> dict[Any, Any]:
    """A colour for each of some ordered values, dark to light, none too light for paper."""
    shades = mpl.colormaps["viridis"](np.linspace(0.0, 0.85, len(values)))
    return dict(zip(values, map(tuple, shades), strict=True))


def title(axes: Axes, text: str, width: int = 82, size: float = 12.5) -> None:
    """Set a title, its lines broken at a width in characters."""
    axes.set_title("\n".join(textwrap.fill(line, width) for line in text.splitlines()), fontsize=size)


def short(name: Any, length: int = 24) -> str:
    """A name fit to be drawn: one line, at most so long, and no underscore first (legends drop such labels)."""
    text = " ".join(str(name).split())
    text = text if len(text) <= length else text[: length - 1] + "…"
    return " " + text if text.startswith("_") else text


def looks_of(trials: pd.DataFrame) -> dict[str, Look]:
    """The look of each series; those that are points on the depth axis stand side by side."""
    trials = with_series(trials)
    names = [str(name) for name in trials["series"].unique()]
    moved = [name for name in names if name not in yardsticks(trials)]
    shifts = dict(zip(moved, np.linspace(-1, 1, len(moved)) * min(0.09 * (len(moved) - 1), 0.25), strict=True))
    palette = sns.color_palette("colorblind") if len(names) <= 10 else sns.color_palette("husl", len(names))
    return {
        name: Look(palette[place], MARKERS[place % len(MARKERS)], float(shifts.get(name, 0.0)))
        for place, name in enumerate(names)
    }


def yardsticks(trials: pd.DataFrame) -> list[str]:
    """Series with one depth, beside others that have several: levels to compare with, not points on the axis."""
    counts = with_series(trials).groupby("series", sort=False)["depth_label"].nunique()
    return [str(name) for name in counts.index[counts == 1]] if (counts > 1).any() else []

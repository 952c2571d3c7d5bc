"""Accuracy by epoch and by learning rate."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from .. import wording
from ..groups import completed, with_series
from .style import (
    MARKERS,
    columns_of,
    cross,
    key,
    legend,
    loose_keys,
    panels_of,
    shades,
    share_scale,
    short,
    styled,
    title,
)  # fmt: skip


@styled
def learning_curves(epochs: pd.DataFrame, kind: str) -> Figure:
    """Validation (solid) and training (dashed) by epoch; a panel for each depth, a colour for each learning rate.

    `kind` is accuracy, drawn in %, or loss.

    Validation measured within an epoch has points of its own; dotted verticals part the phases. Panels of one
    series have one scale: a network from scratch must not press the curves of a pretrained one flat.
    """
    epochs = with_series(epochs)
    order = list(epochs["series"].unique())
    groups = epochs.sort_values("layers", kind="stable").groupby(["series", "depth_label"], sort=False)
    panels = sorted(groups, key=lambda panel: order.index(panel[0][0]))
    colours = shades(sorted(epochs["lr"].unique()))
    several = len(order) > 1  # networks: titles are longer
    columns = columns_of(len(panels), 3 if several else 4)
    figure, grid = panels_of(len(panels), height=2.5, columns=columns, one_scale=not several)
    for axes, ((name, label), rows) in zip(grid, panels, strict=True):
        for _, trial in rows.groupby(["run", "trial"]):
            _draw_curve(axes, trial.sort_values("epoch"), colours[trial["lr"].iloc[0]], kind)
        depth = short(wording.depth_name(label), 34)
        title(axes, f"{short(name, 50)}\n{depth}" if several else depth, width=75 // columns, size=10)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.set_xlabel("epoch")
        axes.set_ylabel("accuracy (%)" if kind == "accuracy" else "loss")
        axes.label_outer()
    for axes in grid[-columns:]:  # below some of these there may be no panel
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("epoch")
    if several:
        for name in order:
            share_scale([axes for axes, ((own, _), _) in zip(grid, panels, strict=True) if own == name])
    keys = [key(f"lr {wording.rate(lr)}", color=colour, lw=3) for lr, colour in colours.items()]
    keys += [key("validation", color="0.3"), key("train", color="0.3", ls="--")]
    if (epochs.groupby(["run", "trial"])["phase"].nunique() > 1).any():
        keys.append(key("next phase", color="0.6", lw=1, ls=":"))
    keys += loose_keys(epochs.groupby(["run", "trial"]).last(), in_means=False)
    legend(figure, keys, columns=4 if len(colours) > 3 else None)
    return figure


def _draw_curve(axes: Axes, trial: pd.DataFrame, colour: Any, kind: str) -> None:
    """One trial: validation with a point for each epoch and for each measure within one, training, ends of phases."""
    val, train, scale = f"val_{kind}", f"train_{kind}", 100 if kind == "accuracy" else 1
    within = [one for some in trial["val_by_step"] if isinstance(some, list) for one in some]
    points = pd.concat([trial[["epoch", val]], pd.DataFrame(within, columns=["epoch", val])])
    points = points.astype(float).drop_duplicates("epoch").sort_values("epoch")
    axes.plot(points["epoch"], scale * points[val], ".-", color=colour, lw=1.6, ms=5)
    for end in trial.groupby("phase")["epoch"].max().sort_values().iloc[:-1]:
        axes.axvline(end + 0.5, color="0.6", lw=1, ls=":", zorder=0)
    axes.plot(trial["epoch"], scale * trial[train], "--", color=colour, lw=1.2, alpha=0.8)
    last = trial.iloc[-1]
    if last["state"] != "finished":
        axes.plot(last["epoch"], scale * last[val], cross(last["state"]), color=colour, ms=9, mew=2)


def swept_lr(trials: pd.DataFrame) -> list[str]:
    """The series with at least three learning rates: fewer make no curve."""
    counts = with_series(trials[trials["val_accuracy"].notna()]).groupby("series", sort=False)["lr"].nunique()
    return [str(name) for name in counts.index[counts >= 3]]


@styled
def accuracy_by_lr(trials: pd.DataFrame) -> Figure:
    """Validation accuracy (%) against learning rate: a line over the means for each depth, a panel for each series."""
    trials = with_series(trials).dropna(subset="val_accuracy").sort_values("layers", kind="stable")
    names = swept_lr(trials)
    trials = trials[trials["series"].isin(names)]
    colours = shades(list(trials["depth_label"].unique()))
    markers = {label: MARKERS[place % len(MARKERS)] for place, label in enumerate(colours)}
    figure, grid = panels_of(len(names), height=4.2, columns=2)
    for axes, name in zip(grid, names, strict=True):
        rows = trials[trials["series"] == name]
        for label, here in rows.groupby("depth_label", sort=False):
            means = 100 * completed(here).groupby("lr")["val_accuracy"].mean()
            axes.plot(means.index, means, marker=markers[label], color=colours[label], lw=1.5, ms=7)
            for state, group in here[here["state"] != "finished"].groupby("state"):
                y = 100 * group["val_accuracy"]
                axes.scatter(group["lr"], y, 22, color=colours[label], marker=cross(state), alpha=0.6, lw=1)
        ticks = sorted(rows["lr"].unique())
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(
            ticks, [wording.rate(lr) for lr in ticks], rotation=45 if len(ticks) * min(2, len(names)) > 6 else 0
        )
        axes.tick_params(labelbottom=True)
        axes.set(xlabel="learning rate", ylabel="validation accuracy (%)" if axes is grid[0] else "")
        if len(names) > 1:
            title(axes, short(name, 80), width=42, size=11)
        else:
            title(axes, "Validation accuracy by learning rate")
    keys = [key(short(wording.depth_name(label), 30), color=colours[label], marker=markers[label]) for label in colours]
    legend(figure, [*keys, *loose_keys(trials)])
    return figure

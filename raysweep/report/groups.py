"""The table of trials in groups: series, configurations, and what a trial of each takes.

Only completed trials enter a mean. A trial that was stopped has no final accuracy, and the
ones that are stopped are the worst, so that a mean with them in it would depend on the
scheduler. Accuracies are fractions from 0 to 1, times are seconds.

A *series* is a backbone together with whichever other axes vary among its trials (batch
norm policy, image size, run, …); depth, learning rate and seed vary within it. A
*configuration* is a series at one depth and learning rate.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ..sweep.rows import FinalResult
from . import wording
from .tables import BY_EPOCH, COLUMNS, SCORES

Group = dict[str, Any]
"""A row of a table."""
FIRST = ("run", "backbone", "depth", "layers", "trainable_parameters", "total_parameters", "trainable_tensors")
MEANS = (*SCORES, "gap", "seconds", "prefix_seconds", "epochs_completed")


def completed(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials that ran to their end and have a validation accuracy."""
    return trials[(trials["state"] == "finished") & trials["val_accuracy"].notna()]


def with_series(trials: pd.DataFrame) -> pd.DataFrame:
    """The table with a column `series`: the backbone, then (`axis=value`, …) of axes that vary among its trials."""
    if "series" in trials.columns:
        return trials  # of a part of the trials, an axis may vary less: names stay what they are in the whole
    extra = [column for column in trials.columns if column not in (*COLUMNS, *BY_EPOCH)]
    labels = pd.Series("", trials.index)
    for axis in extra:
        varies = trials.groupby("backbone")[axis].transform("nunique") > 1
        label = ", " + axis + "=" + trials[axis].map(wording.setting).astype(str)
        labels = labels + label.where(varies & trials[axis].notna(), "")
    names = trials["backbone"].astype(str)
    return trials.assign(series=names.where(labels == "", names + " (" + labels.str.removeprefix(", ") + ")"))


def configurations(trials: pd.DataFrame) -> pd.DataFrame:
    """One row per (series, depth, lr) with a completed trial: means over its completed seeds.

    `cost_seconds` are those of training and of the trial's share of the prefix pass; `n_seeds` have completed
    of `n_planned`; `names` are the names of the completed trials, `folders` those of
    their runs, by seed.
    """
    named = with_series(trials)
    keys = ["series", "depth_label", "lr"]
    planned = named.groupby(keys).size().rename("n_planned").reset_index()
    done = completed(named).sort_values("seed", kind="stable")
    kept = {name: (name, "first") for name in (*FIRST, "val_images", "weights") if name in done}
    means = {name: (name, "mean") for name in MEANS if name in done}
    lists = {"names": ("trial", list), "folders": ("run", list), "accuracies": ("val_accuracy", list)}
    groups = done.groupby(keys, sort=False).agg(**kept, **means, n_seeds=("seed", "size"), **lists).reset_index()
    return groups.assign(cost_seconds=groups["seconds"] + groups["prefix_seconds"]).merge(planned, on=keys, how="left")


def eligible(groups: pd.DataFrame) -> pd.DataFrame:
    """Of every (series, depth) the configurations of which every planned seed has completed.

    Where there is none, those with the most completed seeds. The others are not compared: a
    configuration whose bad seeds were stopped would look better than it is.
    """
    whole = groups["n_seeds"] == groups["n_planned"]
    keys = [groups["series"], groups["depth_label"]]
    any_whole = whole.groupby(keys).transform("any")
    most = groups["n_seeds"] == groups["n_seeds"].groupby(keys).transform("max")
    return groups[whole | (~any_whole & most)].reset_index(drop=True)


def furthest(trials: pd.DataFrame) -> Group | None:
    """Of trials none of which has completed, the one with most epochs, then the highest accuracy; None without any."""
    named = with_series(trials)
    seen = named[named["val_accuracy"].notna()]
    rows = seen.sort_values(["epochs_completed", "val_accuracy"], ascending=False, kind="stable")
    return records(rows)[0] if len(rows) else None


def confusions(final: FinalResult) -> pd.DataFrame:
    """Classes that the final model takes for another, the most frequent first.

    Columns `true`, `predicted` (class names), `images` and `share` (of the true class's images).
    """
    matrix = np.asarray(final.confusion)  # (true class, predicted class), images
    names = np.asarray(final.class_names, dtype=object)
    true, predicted = np.nonzero(matrix * (1 - np.eye(len(matrix), dtype=int)))
    images = matrix[true, predicted]
    share = images / matrix.sum(axis=1)[true]
    table = pd.DataFrame({"true": names[true], "predicted": names[predicted], "images": images, "share": share})
    return table.sort_values(["images", "share"], ascending=False, kind="stable").reset_index(drop=True)


def binomial_error(share: float, images: int) -> float:
    """Standard error of an accuracy measured on so many images (both as fractions)."""
    return float(np.sqrt(share * (1 - share) / images))


def records(table: pd.DataFrame) -> list[Group]:
    """The rows of a table as dicts of plain values."""
    return [{str(key): cell for key, cell in row.items()} for row in table.to_dict("records")]

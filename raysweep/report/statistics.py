"""Arithmetic on the table of trials: means over seeds, their errors, the recommendation.

Only completed trials enter a mean. A trial that ASHA stopped has no final accuracy, and
the ones it stops are the worst, so that a mean with them in it would depend on the
scheduler. Accuracies are fractions from 0 to 1, times are seconds.

A *series* is a backbone together with whichever other axes vary among its trials (batch
norm policy, image size, run, …); depth, learning rate and seed vary within it.

The rule of one standard error: Breiman et al. 1984, Classification and Regression
Trees, section 3.4.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..sweep.rows import FinalResult
from . import wording
from .tables import BY_EPOCH, COLUMNS

SEEDS, IMAGES = "seeds", "validation images"
"""Where a standard error comes from: the column `error_from`."""
Group = dict[str, Any]
"""A row of `by_depth` or of the trials table."""
TOLERANCE = 1e-9  # of comparisons between accuracies, for rounding


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
    """One row per (series, depth, lr) with a completed trial: means over its seeds.

    Errors are pooled over all of a backbone's configurations, unsteady learning rates
    included; those of `by_depth` are pooled over the chosen ones.
    """
    return _with_errors(_means(trials))


def by_depth(trials: pd.DataFrame) -> pd.DataFrame:
    """One row per (series, depth), in order of layers, at its best learning rate.

    The learning rate is the one with most completed seeds, among equals the one with the
    highest mean validation accuracy. Columns `val_accuracy` ± `standard_error` and `gap` ±
    `gap_error` (fractions), `seconds` and `epochs_completed` (means over the seeds),
    `n_seeds`, `error_from`, and `stopped_early`: how many trials at this depth, over all
    learning rates, are in no mean because they were stopped.
    """
    ranked = _means(trials).sort_values(["n_seeds", "val_accuracy"], ascending=False, kind="stable")
    chosen = _with_errors(ranked.drop_duplicates(["series", "depth_label"]))
    stopped = with_series(trials).groupby(["series", "depth_label"])["stopped_early"].sum().rename("stopped_early")
    chosen = chosen.merge(stopped.reset_index(), on=["series", "depth_label"], how="left")
    order = {name: place for place, name in enumerate(with_series(trials)["series"].unique())}
    return chosen.sort_values(
        ["series", "layers", "seconds"], key=lambda column: column.map(order) if column.name == "series" else column
    ).reset_index(drop=True)


def _means(trials: pd.DataFrame) -> pd.DataFrame:
    """Means and variances over the completed seeds of every (series, depth, lr)."""
    done = completed(with_series(trials))
    first = ("run", "backbone", "depth", "layers", "trainable_parameters", "total_parameters", "trainable_tensors")
    kept = {name: (name, "first") for name in (*first, "val_images", "weights") if name in done}
    means = {name: (name, "mean") for name in ("val_accuracy", "train_accuracy", "gap", "seconds", "epochs_completed")}
    spread = {"n_seeds": ("seed", "size"), "variance": ("val_accuracy", "var"), "gap_variance": ("gap", "var")}
    return done.groupby(["series", "depth_label", "lr"], sort=False).agg(**kept, **means, **spread).reset_index()


def _with_errors(groups: pd.DataFrame) -> pd.DataFrame:
    """Replace the variances by standard errors of the means.

    With two or more seeds: the pooled standard deviation within groups of the same
    backbone, over sqrt(seeds). Two seeds alone tell next to nothing of their spread; five
    depths of two seeds each give five degrees of freedom.

    With one seed: the bootstrap over the validation images, which for a mean of n zeros
    and ones has the closed form sqrt(p (1 - p) / n). It leaves out the luck of the seed.
    The gap's error is then that of its validation term.
    """
    several, p = groups["n_seeds"] >= 2, groups["val_accuracy"]
    of_images = np.sqrt(p * (1 - p) / groups["val_images"])
    root = np.sqrt(groups["n_seeds"])
    return groups.assign(
        standard_error=(_pooled_deviation(groups, "variance") / root).where(several, of_images),
        gap_error=(_pooled_deviation(groups, "gap_variance") / root).where(several, of_images),
        error_from=np.where(several, SEEDS, IMAGES),
    ).drop(columns=["variance", "gap_variance"])


def _pooled_deviation(groups: pd.DataFrame, variance: str) -> pd.Series:
    """For each group: sqrt(Σ (n-1) s² / Σ (n-1)) over the groups of its run and backbone; NaN if none has two seeds."""
    freedom = groups["n_seeds"] - 1
    squares = (groups[variance] * freedom).where(freedom > 0, 0.0)
    pool = [groups["run"], groups["backbone"]]
    return np.sqrt(squares.groupby(pool).transform("sum") / freedom.groupby(pool).transform("sum"))


@dataclass(frozen=True)
class Recommendation:
    """The depth to use beside the best one, each a row of `by_depth` as a dict."""

    recommended: Group
    best: Group
    """Highest mean validation accuracy of all."""
    choices: tuple[tuple[Group, Group], ...]
    """For each series its cheapest depth within one standard error, and its best depth."""
    sentence: str
    """What to do, with its error bar, and how it compares with the best."""
    notes: tuple[str, ...]
    """Reservations, a sentence each."""


def recommend(trials: pd.DataFrame) -> Recommendation | None:
    """The cheapest depth that is within one standard error of the best; None if no trial completed.

    In every series: the fewest layers whose mean validation accuracy is at least the best
    mean minus one standard error of that best. Over all series: among these choices, those
    within one standard error of the overall best; of them the least training seconds.
    """
    depths = by_depth(trials)
    if depths.empty:
        return None
    choices = tuple(_choice(group) for _, group in depths.groupby("series", sort=False))
    best = max((best for _, best in choices), key=lambda group: group["val_accuracy"])
    rivals = [pick for pick, _ in choices if pick["val_accuracy"] >= _floor(best)]
    pick = min(rivals, key=lambda group: group["seconds"])
    return Recommendation(pick, best, choices, _sentence(pick, best, depths), tuple(_notes(pick, depths, trials)))


def best_configuration(trials: pd.DataFrame) -> Group | None:
    """The trial to refit: the lowest seed of the best depth at its best learning rate, as a row of `trials`.

    The best of `by_depth`, so that the sweep refits what the report calls best. If no trial
    completed: of the trials with most epochs the one with the highest validation accuracy;
    None if no trial has an epoch.
    """
    trials = with_series(trials)
    depths = by_depth(trials)
    if depths.empty:
        seen = trials[trials["val_accuracy"].notna()]
        rows = seen.sort_values(["epochs_completed", "val_accuracy"], ascending=False, kind="stable")
    else:
        best = depths.loc[depths["val_accuracy"].idxmax()]
        alike = (trials[["series", "depth_label", "lr"]] == best[["series", "depth_label", "lr"]]).all(axis=1)
        rows = completed(trials[alike]).sort_values("seed")
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


def _choice(group: pd.DataFrame) -> tuple[Group, Group]:
    """The cheapest depth within one standard error, and the best, of one series."""
    rows = records(group)
    best = max(rows, key=lambda row: row["val_accuracy"])
    within = [row for row in rows if row["val_accuracy"] >= _floor(best)]
    return min(within, key=lambda row: (row["layers"], row["seconds"])), best


def _floor(best: Group) -> float:
    error = best["standard_error"]
    return best["val_accuracy"] - (0.0 if wording.missing(error) else error) - TOLERANCE


def records(table: pd.DataFrame) -> list[Group]:
    """The rows of a table as dicts of plain values."""
    return [{str(key): cell for key, cell in row.items()} for row in table.to_dict("records")]


def _same(one: Group, other: Group) -> bool:
    return (one["series"], one["depth_label"]) == (other["series"], other["depth_label"])


def _sentence(pick: Group, best: Group, depths: pd.DataFrame) -> str:
    accuracy = wording.plus_minus(pick["val_accuracy"], pick["standard_error"])
    seeds = wording.count(pick["n_seeds"], "seed")
    standing = _best_of(pick, depths) if _same(pick, best) else _beside(pick, best)
    do = f"{wording.instruction(pick)} at lr {wording.rate(pick['lr'])}"
    return f"{do}: validation accuracy {accuracy} ({seeds}), {standing}."


def _best_of(pick: Group, depths: pd.DataFrame) -> str:
    if len(depths) == 1:
        return "the only depth with a finished trial"
    own = depths[depths["series"] == pick["series"]]
    standing = f"the best of the {len(depths)} {'depths' if len(own) == len(depths) else 'combinations'} tried"
    if (own["layers"] < pick["layers"]).any():
        standing += "; no shallower depth comes within one standard error of it"
    return standing


def _beside(pick: Group, best: Group) -> str:
    name = wording.depth_name(best["depth_label"])
    if pick["series"] != best["series"]:
        name = f"{best['series']} at {name}"
    standing = f"within one standard error of the best, {name} ({wording.percent(best['val_accuracy'])})"
    if not best["seconds"] > 0:
        return standing
    return f"{standing}, at {wording.share_of_time(pick['seconds'] / best['seconds'])}"


def _notes(pick: Group, depths: pd.DataFrame, trials: pd.DataFrame) -> Iterator[str]:
    """What to bear in mind before acting on the recommendation."""
    own = depths[depths["series"] == pick["series"]]
    deepest = pick["layers"] == own["layers"].max() and pick["trainable_parameters"] < pick["total_parameters"]
    if len(own) > 1 and deepest:
        yield "It is the deepest depth tried and accuracy was still rising: a deeper one may be better."
    named = with_series(trials)
    here = named[(named["series"] == pick["series"]) & (named["depth_label"] == pick["depth_label"])]["lr"]
    for end, other in (("smallest", "smaller"), ("largest", "larger")):
        if here.nunique() > 1 and pick["lr"] == (here.min() if end == "smallest" else here.max()):
            lr = wording.rate(pick["lr"])
            yield f"{lr} is the {end} learning rate tried at this depth: a {other} one may be better."
    if pick["error_from"] == IMAGES:
        yield (
            f"One seed finished, so the error is that of counting on {wording.value(pick['val_images'])} validation "
            "images; the luck of the seed is not in it."
        )

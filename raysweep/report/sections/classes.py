"""Recall of each class by depth: which classes gain from going deeper."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ...data.fonts import undrawn_classes
from ...sweep.evidence import read_labels, read_predictions
from .. import wording
from ..facts import Facts, Section
from ..figures.classes import recall_by_depth
from ..groups import records

MOST_ROWS = 12
MOST_DRAWN = 30
"""Classes that a figure still holds."""


def recall(facts: Facts) -> Section | None:
    """The share of each class's validation images that is predicted right, by depth of the recommended network."""
    table = recalls(facts)
    if table is None or len(table.columns) < 3:
        return None
    names, depths = [str(name) for name in table.index], [str(name) for name in table.columns[1:]]
    gain = table[depths[-1]] - table[depths[0]]
    ordered = table.assign(gain=gain).sort_values("gain", ascending=False, kind="stable")
    few = len(ordered) <= MOST_DRAWN
    ends = [ordered.head(MOST_ROWS // 2), ordered.tail(MOST_ROWS // 2)]
    shown = ordered if len(ordered) <= MOST_ROWS else pd.concat(ends)
    which = "" if len(shown) == len(ordered) else f" The table holds the {len(shown)} that gain most and least."
    text = (
        "The share of each class's validation images that is predicted right, at each depth's best learning rate, mean "
        f"over seeds; gain is from depth {depths[0]} to depth {depths[-1]}. A class of few images says little: of 10 "
        f"images one is 10 points.{which} {undrawn_classes(names) if few else ''}"
    )
    rows = tuple(
        {
            "class": str(name),
            "images": str(int(row["images"])),
            **{f"depth {depth} (%)": wording.points(row[depth]) for depth in depths},
            "gain (points)": wording.points(row["gain"]),
        }
        for name, row in shown.iterrows()
    )
    drawn = ordered[[*table.columns]] if few else None
    return Section("Recall by class", text.rstrip(), None if drawn is None else recall_by_depth(drawn), rows)


def recalls(facts: Facts) -> pd.DataFrame | None:
    """Recall by class (rows) and depth (columns, the shallowest first), with the classes' `images` before.

    Of the recommended network's series; None where its predictions are not there.
    """
    if facts.answer is None:
        return None
    series = facts.answer.recommended["series"]
    own = records(facts.depths[facts.depths["series"] == series].sort_values("layers", kind="stable"))
    folders = {name: run.folder for name, run in zip(facts.names, facts.runs, strict=True)}
    known = read_labels(folders[own[0]["folders"][0]])
    if known is None:
        return None
    labels, classes, key = known
    if not len(labels) or labels.min() < 0 or labels.max() >= classes:
        return None
    columns: dict[str, np.ndarray] = {}
    for depth in own:
        seeds = zip(depth["folders"], depth["names"], strict=True)
        found = [read_predictions(folders[run], trial) for run, trial in seeds]
        alike = [one for one in found if one is not None and one.val_key == key and len(one.predicted) == len(labels)]
        right = [one.predicted == labels for one in alike]
        if right:
            columns[str(depth["depth_label"])] = np.mean(right, axis=0)
    counts = np.bincount(labels, minlength=classes)
    means = {depth: np.bincount(labels, hits, classes) / np.maximum(counts, 1) for depth, hits in columns.items()}
    table = pd.DataFrame({"images": counts, **means}, index=pd.Index(_names(facts, classes), name="class"))
    return table[table["images"] > 0]


def _names(facts: Facts, classes: int) -> list[str]:
    """Of the classes, as a final fit has them; else their numbers."""
    for _, _, final in facts.finals:
        if len(final.class_names) == classes:
            return list(final.class_names)
    return [f"class {number}" for number in range(classes)]

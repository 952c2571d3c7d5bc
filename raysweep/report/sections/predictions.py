"""Test images with what the final model says of them, and how it does on each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field

from ...data.fonts import Lettering, drawable_classes, undrawn_classes
from ...sweep.reading import Lenient, validated
from .. import wording
from ..facts import Facts, Section
from ..pictures import picture

COLUMNS = 6
MOST_CLASSES = 10
PICTURE, ABOUT = "samples.png", "samples.json"


class _Sample(Lenient):
    true: str
    predicted: str
    probability: float


class _Superclasses(Lenient):
    accuracy: float
    errors_within: float


class _Samples(Lenient):
    """What is read of samples.json."""

    tile: Annotated[int, Field(ge=1)]
    samples: tuple[_Sample, ...]
    superclasses: _Superclasses | None


def samples(facts: Facts) -> Section | None:
    """A grid of test images, the mistakes first."""
    if not facts.finals:
        return None
    run, name, final = facts.finals[0]
    folder = run.final_folder(name)
    if not (folder / PICTURE).is_file() or not (folder / ABOUT).is_file():
        return None
    where = folder.relative_to(run.folder)
    about = validated(folder / ABOUT, _Samples, facts.unread, (where / ABOUT).as_posix())
    strip = picture(folder / PICTURE, (where / PICTURE).as_posix(), facts.unread)
    if about is None or strip is None or not about.samples:
        return None
    if strip.shape[0] < about.tile or strip.shape[1] < about.tile * len(about.samples):
        facts.unread.append(f"{(where / PICTURE).as_posix()} has not the size that {ABOUT} says")
        return None
    text = (
        f"Test images as {facts.first_final} sees them, mistakes first: what it predicts, and what is true if that "
        "differs."
    )
    if about.superclasses:
        right, within = about.superclasses.accuracy, about.superclasses.errors_within
        text += (
            f" Counting superclasses, accuracy is {wording.percent(right)}; {wording.percent(within)} of the mistakes"
        )
        text += " stay within the superclass."
    with mpl.rc_context({"font.family": Lettering(final.class_names).families}):
        figure = _grid(strip, about.tile, about.samples, final.class_names)
    return Section("Sample predictions", f"{text} {undrawn_classes(final.class_names)}".rstrip(), figure=figure)


def classes(facts: Facts) -> Section | None:
    """Accuracy of each class, the hardest first."""
    finals = [final for _, _, final in facts.finals]
    if not finals:
        return None
    counts = np.array(finals[0].confusion)
    totals = counts.sum(axis=1)
    table = pd.DataFrame(
        {
            "class": list(finals[0].class_names),
            "right": counts.diagonal(),
            "images": totals,
            "called so": counts.sum(axis=0),
        }
    )
    table = table[table["images"] > 0]
    table["accuracy"] = table["right"] / table["images"]
    hardest = table.sort_values("accuracy").head(MOST_CLASSES)
    rows = tuple(
        {
            "class": str(row["class"]),
            "accuracy": wording.percent(row["accuracy"]),
            "test images": str(row["images"]),
            "images called so": str(row["called so"]),
        }
        for _, row in hardest.iterrows()
    )
    title = "Accuracy by class" if len(table) <= MOST_CLASSES else f"Hardest {MOST_CLASSES} of {len(table)} classes"
    return Section(title, f"Of {facts.first_final}, on the test images.", table=rows)


def _grid(strip: np.ndarray, tile: int, about: Sequence[_Sample], class_names: Sequence[str]) -> Figure:
    """Tiles of a strip (tile, n × tile, 3) in rows of `COLUMNS`."""
    drawn = dict(zip(class_names, drawable_classes(class_names), strict=True))
    rows = -(-len(about) // COLUMNS)
    figure = Figure(figsize=(9, 1.85 * rows), layout="constrained")
    for index, one in enumerate(about):
        axes = figure.add_subplot(rows, COLUMNS, index + 1)
        axes.imshow(strip[:, index * tile : (index + 1) * tile])
        axes.set_axis_off()
        wrong = one.predicted != one.true
        said, true = (_short(drawn.get(name, name)) for name in (one.predicted, one.true))
        label = f"says {said}, {100 * one.probability:.0f} %"
        label += f"\nis {true}" if wrong else "\nright"
        axes.set_title(label, fontsize=10, color="#b3261e" if wrong else "#1b5e20", parse_math=False)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= 14 else name[:13] + "…"

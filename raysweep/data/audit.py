"""Duplicates and leaks: images that occur more than once within and across train, val and test.

A copy in train makes a test image easy for the wrong reason, the more so the more layers are
trained: depth looks better than it is. Barz & Denzler 2020, "Do we train on test data? Purging
CIFAR of near-duplicates", arXiv:1902.00423, found such copies of 3 % of CIFAR-10's test images
and of 9 % of CIFAR-100's. How they are found: `raysweep.data.copies`.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import write_text
from .cache import keep, recall
from .copies import FORMAT, PASSES, find_pairs
from .dataset import Dataset
from .findings import COLUMNS, KINDS, Findings, Image, Pair, class_counts, parts
from .stages import stage

KEPT = "audits"
"""Folder of the cache."""
SHOWN = 12
"""Pairs in the picture."""


def audit(dataset: Dataset) -> Findings:
    """Look for copies within and across the splits, and count the classes.

    The copies that were found are kept for all later sweeps on the same splits of the same images.
    """
    key = [FORMAT, dataset.fingerprint]
    pairs = _pairs(dataset, recall(KEPT, key))
    if pairs is None:
        total = sum(len(part) for _, part in parts(dataset))
        with stage("auditing", "audited", total, PASSES) as advance:
            pairs = find_pairs(dataset, advance)
        keep(KEPT, key, [_row(pair) for pair in pairs])
    return Findings(pairs, class_counts(dataset), dataset.notes)


def _row(pair: Pair) -> list[Any]:
    """What is kept of a pair: names and classes are the data set's."""
    return [pair.kind, pair.a.split, pair.a.position, pair.b.split, pair.b.position, pair.similarity]


def _pairs(dataset: Dataset, kept: Any) -> tuple[Pair, ...] | None:
    """The pairs that were kept; None where they are none of this data set."""
    if not isinstance(kept, list):
        return None
    images = dict(parts(dataset))

    def image(split: str, position: int) -> Image:
        label = dataset.class_names[images[split].labels[position]]
        return Image(split, position, images[split].names[position], label)

    try:
        return tuple(Pair(kind, image(a, i), image(b, j), float(alike)) for kind, a, i, b, j, alike in kept)
    except (TypeError, ValueError, LookupError):
        return None


def write(folder: Path, findings: Findings, dataset: Dataset) -> None:
    """Write audit.csv, audit.json and, if there are pairs, audit_pairs.png into a run folder."""
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(pair.row() for pair in findings.pairs)
    write_text(folder / "audit.csv", table.getvalue())
    write_text(folder / "audit.json", json.dumps(findings.summary(), indent=1) + "\n")
    if findings.pairs:
        (folder / "audit_pairs.png").write_bytes(picture(worst(findings.pairs), dataset))


def worst(pairs: Sequence[Pair], most: int = SHOWN) -> list[Pair]:
    """The first pairs of every kind in turn: exact copies alone would be dull, and near ones need a look."""
    seen: Counter[str] = Counter()
    turns = []
    for place, pair in enumerate(pairs):
        turns.append((seen[pair.kind], KINDS.index(pair.kind), place))
        seen[pair.kind] += 1
    chosen = sorted(turns)[:most]
    return [pairs[place] for _, _, place in sorted(chosen, key=lambda turn: turn[1:])]


def picture(pairs: Sequence[Pair], dataset: Dataset, columns: int = 3) -> bytes:
    """The pairs side by side with split, name and label under each image, as a PNG file 1,350 pixels wide."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from .fonts import Lettering, drawable_classes

    rows = -(-len(pairs) // columns)
    lettering = Lettering([*dataset.class_names, *(image.name for pair in pairs for image in (pair.a, pair.b))])
    classes = dict(zip(dataset.class_names, drawable_classes(dataset.class_names), strict=True))
    style: Any = {"text.parse_math": False, "font.size": 8, "font.family": lettering.families}
    with mpl.rc_context(style):  # names may hold a dollar sign
        figure = Figure(figsize=(9, 2.3 * rows), dpi=150)
        cells = figure.subplots(rows, columns, squeeze=False).flat
        for cell in cells:
            cell.axis("off")
        for cell, pair in zip(figure.axes, pairs, strict=False):
            differ = "" if pair.same_label else ", labels differ"
            alike = f", similarity {pair.similarity:.3f}" if pair.kind == "near" else ""
            cell.set_title(f"{pair.kind}{alike}{differ}", fontsize=9, color="k" if pair.same_label else "#b3261e")
            for left, image in ((0.0, pair.a), (0.52, pair.b)):
                inside = cell.inset_axes((left, 0.24, 0.48, 0.76))
                inside.imshow(getattr(dataset, image.split).images([image.position])[0].transpose(1, 2, 0))
                inside.axis("off")
                name = image.name if lettering.has(image.name) else f"image {image.position + 1}"
                text = "\n".join(_short(part) for part in (image.split, name, classes[image.label]))
                cell.text(left + 0.24, 0.21, text, ha="center", va="top")
        figure.subplots_adjust(0.01, 0.02 / rows, 0.99, 1 - 0.12 / rows, wspace=0.06, hspace=0.16)
        file = io.BytesIO()
        figure.savefig(file, format="png")
    return file.getvalue()


def _short(text: str, most: int = 20) -> str:
    return text if len(text) <= most else f"…{text[1 - most :]}"

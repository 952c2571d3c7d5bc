"""Numbers and depths in words, alike in every sentence, table and figure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Group = Mapping[str, Any]
"""A row of `Answer.depths`."""
WHOLE = ("head", "all")
"""Depths that are called by what they train."""


def missing(value: Any) -> bool:
    """Whether a table's cell is empty."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def percent(fraction: float) -> str:
    """0.948 → 94.8 %."""
    return f"{100 * fraction:.1f} %"


def plus_minus(fraction: float, error: float) -> str:
    """0.948, 0.004 → 94.8 % ± 0.4."""
    return percent(fraction) if missing(error) else f"{percent(fraction)} ± {100 * error:.1f}"


def points(fraction: float | None, error: float | None = None) -> str:
    """0.948, 0.004 → 94.8 ± 0.4, for a column whose heading has the unit."""
    if fraction is None or missing(fraction):
        return "–"
    return f"{100 * fraction:.1f}" + ("" if error is None or missing(error) else f" ± {100 * error:.1f}")


def decimals(number: float | None) -> str:
    """A loss, to three decimals."""
    return "–" if number is None or missing(number) else f"{number:.3f}"


def scaled(row: Group, column: str, scale: float) -> str:
    """A column in percent, or a loss."""
    return points(row[column]) if scale == 100 else decimals(row[column])


def sentence_case(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def duration(seconds: float | None) -> str:
    """A time span in the unit that suits it."""
    if seconds is None or missing(seconds):
        return "–"
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def count(number: int, noun: str) -> str:
    """1 seed, 2 seeds."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def value(cell: Any) -> str:
    """A cell of a table as text."""
    if missing(cell):
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int) or (isinstance(cell, float) and cell.is_integer()):
        return f"{cell:,.0f}"
    return f"{cell:g}" if isinstance(cell, float) else str(cell)


def setting(cell: Any) -> str:
    """A value of an axis as text, without commas: 1024, 0.0001, frozen."""
    return f"{cell:g}" if isinstance(cell, float) else str(cell)


def place(group: Group) -> str:
    """A series and its depth: resnet18 at depth 9, resnet18 with all layers."""
    label = group["depth_label"]
    return f"{group['series']} {'with' if label in WHOLE else 'at'} {depth_name(label)}"


def trial_name(trial: Group) -> str:
    """A trial by what it is: network, depth, learning rate, seed."""
    return f"{place(trial)}, lr {rate(trial['lr'])}, seed {setting(trial['seed'])}"


def depth_name(label: str) -> str:
    """The depth as a noun: depth 9, the head alone, all layers, depth layer3."""
    return {"head": "the head alone", "all": "all layers"}.get(label, f"depth {label}")


def capital(place: str) -> str:
    """A depth's name at the head of a sentence; names of networks keep their own spelling."""
    return place[:1].upper() + place[1:] if place.startswith(("depth ", "all layers", "the head")) else place


def share_of_cost(ratio: float) -> str:
    """0.62 → 0.62× its cost."""
    if 0.95 < ratio < 1.05:
        return "about the same cost"
    return f"{ratio:.2g}× its cost" if ratio < 10 else f"{ratio:.0f}× its cost"


def rate(lr: float) -> str:
    """A learning rate to three digits."""
    return f"{lr:.3g}"


def instruction(group: Group) -> str:
    """What to train, as an imperative without its full stop."""
    depth, layers, network = group["depth"], count(int(group["layers"]), "layer"), group["series"]
    if depth == "all":
        return f"Train all layers of {network}{' from scratch' if group.get('weights') == 'none' else ''}"
    if depth == "head":
        return f"Train only the head of {network}"
    if isinstance(depth, list | tuple):
        return f"Fine-tune only {', '.join(map(str, depth))} of {network} ({layers})"
    if str(depth) == "1":
        return f"Train only the classifier of {network}"
    if str(depth).isdigit():
        return f"Fine-tune the last {depth} layers of {network}"
    return f"Fine-tune {network} from {depth} to the output ({layers})"

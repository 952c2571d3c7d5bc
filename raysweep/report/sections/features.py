"""What the trials shared: the frozen prefix computed once, as predicted and as measured."""

from __future__ import annotations

from typing import Any

from ...recipe import stored_type
from ...sweep.ledger import Row, Run
from .. import wording
from ..facts import Facts, Section


def features(facts: Facts) -> Section | None:
    """Which cuts were stored, why, what that was thought to save and what it did."""
    notes = [(run, run.features) for run in facts.runs if run.features]
    rows = [_row(one) for _, note in notes for one in note["decisions"] if one["prefix_ms_per_image"]]
    if not rows:
        return None
    return Section("Shared computation", " ".join(_text(run, note) for run, note in notes), table=tuple(rows))


def _row(one: Row) -> dict[str, str]:
    return {
        "network": one["backbone"],
        "depth": one["depth_label"],
        "stored": "yes" if one["store"] else "no",
        "size (MiB)": f"{one['mebibytes']:,.1f}",
        "prefix (ms an image)": f"{one['prefix_ms_per_image']:.2f}",
        "predicted saving": wording.duration(max(0.0, one["predicted_saving_s"])),
        "why": one["reason"],
    }


def _text(run: Run, note: dict[str, Any]) -> str:
    """Predicted and measured, in sentences."""
    stored = [one for one in note["decisions"] if one["store"]]
    predicted = sum(one["predicted_saving_s"] for one in stored)
    made = [one for one in note["made"] if one["images"]]
    spent = sum(one["seconds"] * one["lanes"] for one in made)
    text = "Frozen layers give the same output in every epoch and every trial, so it is computed once and stored. "
    text += _rounding(run.about.get("recipe") or {})
    text += _views(run.about.get("recipe") or {})
    text += f"Predicted saving: {wording.duration(max(0.0, predicted))} of one process, if no trial is stopped early. "
    saved = _saved(run, stored)
    if made:
        images = sum(one["images"] for one in made)
        text += f"Measured: the pass over {images:,} images took {wording.duration(spent)} of one process. "
    elif stored and not any(one["problem"] for one in note["made"]):
        text += "Measured: everything was there from an earlier run, so no pass was made. "
    text += f"The epochs that were run read features that would have taken {wording.duration(saved)} to compute."
    return text + "".join(f" Warning: {one['problem']}." for one in note["made"] if one["problem"])


def _rounding(recipe: Row) -> str:
    """In what the recipe computes and stores features, where that is not float32."""
    features = recipe.get("features")
    features = features if isinstance(features, dict) else {}
    precision = str(features.get("precision") or "float32")
    dtype = stored_type(features.get("dtype"), precision)
    found = "" if precision == "float32" else f"It is computed in {precision}, which rounds it. "
    return found if dtype == "float32" else f"{found}It is stored as {dtype}, which rounds it. "


def _views(recipe: Row) -> str:
    """What a random augmentation's views were, where there was one with a fixed number of them."""
    blocks = recipe.get("grid")
    places = [recipe.get("data"), *(blocks if isinstance(blocks, list) else [blocks])]
    listed = [_listed(place.get("views")) for place in places if isinstance(place, dict)]
    counts = {count for values in listed for count in values if isinstance(count, int) and count > 0}
    if not counts:
        return ""
    numbers = " or ".join(map(str, sorted(counts)))
    return (
        f"Where data.views={numbers}, each training image has so many fixed random views, of which epochs draw: "
        "fewer than there could be, so that training may overfit them. "
    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _saved(run: Run, stored: list[Row]) -> float:
    """Seconds of prefix that the epochs run did not compute, at the rate measured before the trials."""
    an_epoch = {
        trial: one["images_an_epoch"] * one["prefix_ms_per_image"] / 1000 for one in stored for trial in one["trials"]
    }
    return sum(an_epoch.get(row["trial"], 0.0) for row in run.epochs if _read(row))


def _read(row: Row) -> bool:
    """Whether the epoch read stored features, and was not another trial's."""
    return bool(row.get("cached")) and not row.get("shared")

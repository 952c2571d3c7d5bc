"""Keys that had other names in earlier versions: refused in a recipe, understood in what a run has written down."""

from __future__ import annotations

from typing import Any

AUTOCAST, PRECISION = "autocast", "precision"


def precision_of(autocast: Any) -> Any:
    """What `train.precision` calls a value of the former `train.autocast`."""
    return "float32" if autocast == "none" else autocast


def now_called(path: str, value: Any) -> str:
    """What to write instead of a former key of a recipe; empty for other keys."""
    section, _, key = path.rpartition(".")
    if key != AUTOCAST or section.partition(".")[0] not in ("train", "grid"):
        return ""
    values = value if isinstance(value, list | tuple) else [value]
    now = ",".join(str(precision_of(one)) for one in values)
    return f"it is now {section}.{PRECISION}: write {section}.{PRECISION}={now if len(values) == 1 else f'[{now}]'}"


def renewed(record: dict[str, Any]) -> dict[str, Any]:
    """A recipe or trial that was written down by an earlier version, with the keys of this one."""
    found = dict(record)
    if isinstance(found.get("train"), dict):
        found["train"] = _renewed(found["train"])
    if isinstance(found.get("grid"), list):
        found["grid"] = [_renewed(block) if isinstance(block, dict) else block for block in found["grid"]]
    return found


def _renewed(section: dict[str, Any]) -> dict[str, Any]:
    if AUTOCAST not in section:
        return section
    value = section[AUTOCAST]
    new = [precision_of(one) for one in value] if isinstance(value, list) else precision_of(value)
    return {key: x for key, x in section.items() if key != AUTOCAST} | {PRECISION: new}

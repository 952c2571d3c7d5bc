"""Pydantic's findings as sentences: field, value, what is allowed.

A part of a path that starts with `~` is one of pydantic's, not the user's: it is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from .errors import near
from .renamed import now_called


def problems(error: ValidationError, known: Mapping[str, Sequence[str]], grid: str = "") -> list[str]:
    """One sentence for each thing that pydantic found.

    Args:
        error: raised by a part of a recipe.
        known: the keys of each section, by its dotted path.
        grid: path of the block that set the values of a trial, whose own path is not the user's.
    """
    found: dict[str, str] = {}
    for item in error.errors():
        parts = [str(part) for part in item["loc"] if not str(part).startswith("~")]
        if parts[:2] == ["grid", "0"]:
            parts.pop(1)
        path = ".".join([grid, *parts[1:]] if grid else parts)
        if item["type"] == "extra_forbidden":
            section = ".".join(part for part in parts[:-1] if not part.isdigit())
            hint = now_called(path, item["input"]) or near(parts[-1], known[section])
            found[path] = f"{path} is not a key of a recipe; {hint}"
        else:
            found.setdefault(path, f"{path}{_assigned(item['input'])}: {_allowed(item)}")
    return list(found.values())


def _allowed(item: Mapping[str, Any]) -> str:
    if item["type"] == "model_type":
        return "must be a mapping"
    return item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")


def _assigned(value: Any) -> str:
    """`=value`; nothing where it is a mapping or list that other sentences take apart."""
    return "" if isinstance(value, dict | list | tuple | BaseModel) and value else f"={shown(value)}"


def shown(value: Any) -> str:
    """A value as a user writes it."""
    return json.dumps(value) if value is None or isinstance(value, bool | list) else str(value)

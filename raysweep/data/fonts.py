"""Installed fonts for names in any script: matplotlib's own has no Chinese, Japanese or Korean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.font_manager import FontEntry


class Lettering:
    """The fonts that some texts are drawn with, and what stands for a text that none of them has."""

    def __init__(self, texts: Iterable[str]) -> None:
        wanted = {ord(character) for text in texts for character in text if not character.isspace()}
        families, missing = _fonts_for(frozenset(wanted))
        self.families: list[str] = [*mpl.rcParams["font.family"], *families]
        """For `font.family`, matplotlib's own first."""
        self.missing = missing

    def has(self, text: str) -> bool:
        """Whether every character of a text can be drawn."""
        return not self.missing.intersection(map(ord, text))


def drawable_classes(names: Sequence[str]) -> list[str]:
    """Class names as they are drawn: `class 3` for the third where no installed font has its characters."""
    lettering = Lettering(names)
    return [name if lettering.has(name) else f"class {number}" for number, name in enumerate(names, start=1)]


def undrawn_classes(names: Sequence[str]) -> str:
    """Which classes `drawable_classes` numbers, in a sentence; empty where it numbers none."""
    pairs = [f"{drawn} is {name}" for drawn, name in zip(drawable_classes(names), names, strict=True) if drawn != name]
    if not pairs:
        return ""
    return f"No installed font has the characters of some class names; in pictures {', '.join(pairs)}."


@cache
def _fonts_for(wanted: frozenset[int]) -> tuple[tuple[str, ...], frozenset[int]]:
    """Families beside matplotlib's own that have what it lacks, and what none of them has."""
    own = font_manager.findfont(font_manager.FontProperties(family=mpl.rcParamsDefault["font.family"]))
    missing = wanted - _characters(own)
    families: list[str] = []
    for entry in _others() if missing else ():
        covered = missing & _characters(entry.fname)
        if covered and entry.name not in families:
            families.append(entry.name)
            missing -= covered
        if not missing:
            break
    return tuple(families), missing


def _others() -> list[FontEntry]:
    """The fonts of this machine, also those that were installed after matplotlib looked for them."""
    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    for file in sorted(set(font_manager.findSystemFonts()) - known):
        with suppress(OSError, RuntimeError):  # damaged
            font_manager.fontManager.addfont(file)
    return sorted(font_manager.fontManager.ttflist, key=_unlikeliness)


def _unlikeliness(entry: FontEntry) -> tuple[bool, bool, bool, str]:
    """Plain upright fonts first, those made for Chinese, Japanese and Korean before others."""
    plain = entry.style == "normal" and entry.weight in (400, "normal", "regular")
    return "CJK" not in entry.name, "Sans" not in entry.name, not plain, entry.name


@cache
def _characters(file: str) -> frozenset[int]:
    """What a font can draw; nothing of one that only shows that something is missing, or has no outlines."""
    try:
        font = font_manager.get_font(file)
    except (OSError, RuntimeError):  # not there any more, or damaged
        return frozenset()
    if font.family_name.startswith("Last Resort") or not font.scalable:
        return frozenset()
    return frozenset(font.get_charmap())

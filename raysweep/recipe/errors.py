"""What a mistake of the user's is answered with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_NAMED = 30
"""Names that an error message lists."""


class RecipeError(ValueError):
    """A mistake in what the user asked for; `problems` holds one sentence each, in printable characters."""

    def __init__(self, *problems: str) -> None:
        self.problems = tuple(map(printable, problems))
        super().__init__("\n".join(self.problems))


def printable(text: str) -> str:
    """The text on one line, with characters that no terminal shows as Python writes them."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def near(name: str, known: Iterable[str]) -> str:
    """A hint that ends an error message: the known names nearest to `name`, else all or the first of them."""
    known = list(dict.fromkeys(known))
    matches = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    if matches:
        return f"did you mean {' or '.join(matches)}?"
    more = f", … ({len(known):,} in all)" if len(known) > MOST_NAMED else ""
    return f"choose one of {', '.join(known[:MOST_NAMED])}{more}"

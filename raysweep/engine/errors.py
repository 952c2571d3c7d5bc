"""What Ray says of an error, as a person reads it."""

from __future__ import annotations

import re

KILLED = "the trial's process was killed (signal 9) or crashed"
LOST = {
    "running low on memory": "the machine ran out of memory, and Ray ended the trial's process",
    "node has died": "the trial's node was lost",
    "node was terminated": "the trial's node was lost",
    "node is dead": "the trial's node was lost",
    "temporarily unavailable": "the trial's node was lost",
    "worker process has died": KILLED,
    "actor died": KILLED,
    "worker died": KILLED,
}
"""Words by which Ray says that a process is gone, and what a person reads instead. How a process
ended Ray does not say."""


def last_line(error: Exception | str) -> str:
    """What an error says, without the traceback that Ray puts before it and the module that the error is from."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "errors.pydantic.dev" not in line]
    return re.sub(r"^(\w+\.)*(\w+Error: )", r"\2", lines[-1]) if lines else ""


def what_was_lost(text: str) -> str:
    """Why a trial's process is gone, from what Ray says of it; the last line of an error of another kind."""
    lower = text.lower()
    return next((plain for words, plain in LOST.items() if words in lower), None) or last_line(text) or KILLED

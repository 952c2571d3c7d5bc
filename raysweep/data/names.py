"""Names of images in a file that every process maps: a million names are in no process's own memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np


class Names(Sequence[str]):
    """The names at some rows of a stored array, each made when it is asked for."""

    def __init__(self, stored: np.ndarray, rows: np.ndarray | slice = slice(None)) -> None:
        """`stored` is (n,) of bytes, as `write_names` writes them; `rows` picks from it."""
        self.stored, self.rows = stored, rows

    def __len__(self) -> int:
        return len(self.stored) if isinstance(self.rows, slice) else len(self.rows)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        row = at if isinstance(self.rows, slice) else self.rows[at]
        found = self.stored[row]
        return [_text(name) for name in found.tolist()] if isinstance(at, slice) else _text(bytes(found))

    def at(self, rows: np.ndarray) -> Names:
        """The names at some of these rows."""
        return Names(self.stored, rows if isinstance(self.rows, slice) else self.rows[rows])


def write_names(file: Path, names: Sequence[str]) -> None:
    """Write names as an array of bytes of one width, for `read_names`."""
    np.save(file, np.array([name.encode("utf-8", "surrogateescape") for name in names]), allow_pickle=False)


def read_names(file: Path) -> Names:
    """The names in a file, mapped."""
    return Names(np.load(file, mmap_mode="r", allow_pickle=False))


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")

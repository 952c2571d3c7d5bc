"""Folders as they are listed: names alone, each folder read once, no file opened."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..recipe import RecipeError

SERVICE_FOLDERS = frozenset(
    ("@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "__macosx", "$recycle.bin",
     "lost+found", "system volume information")
)  # fmt: skip
"""Lower-case names of folders that storage systems make: thumbnails, waste bins, snapshots."""
SETTLED_S = 2.0
"""A folder changed less than so long before it was listed may change again within the clock's tick."""


@dataclass(frozen=True)
class Listing:
    """What lies in one folder, sorted; hidden entries and service folders do not count."""

    identity: tuple[int, int]
    """Device and inode: two ways to one folder share them."""
    changed_ns: int
    folders: tuple[str, ...]
    files: tuple[str, ...]


class Tree:
    """The folders below a root by their path from there (with slashes, empty for the root), listed when asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.listings: dict[str, Listing] = {}
        self.entered: dict[tuple[int, int], str] = {}
        """The path by which each folder was first met, by its identity."""
        self.shared: list[tuple[str, str]] = []
        """Paths of one and the same folder in two classes or splits."""
        self.started_ns = time.time_ns()

    def __getitem__(self, path: str) -> Listing:
        """Raises RecipeError: the folder cannot be read."""
        if path not in self.listings:
            try:
                self.listings[path] = _listing(self.root / path)
            except OSError as error:
                raise RecipeError(
                    f"the folder {path or '.'} cannot be listed ({error.strerror}); make it readable or move it away"
                ) from error
        return self.listings[path]

    def is_fresh(self) -> bool:
        """Whether no listed folder has other entries now than when it was listed."""
        return all(
            listing.changed_ns < self.started_ns - SETTLED_S * 1e9 and _stamp(self.root / path) == _known(listing)
            for path, listing in self.listings.items()
        )

    def enter(self, path: str) -> None:
        """Note a class folder before any is walked; it is shared if it is a folder that was met already."""
        met = self.entered.setdefault(self[path].identity, path)
        if met != path:
            self.shared.append((met, path))

    def below(self, top: str, path: str | None = None) -> Iterator[tuple[str, Listing]]:
        """A class folder and all below it, top down. Links are followed; no folder is listed twice, and those
        of another class or split are noted as shared."""
        here = top if path is None else path
        listing = self[here]
        yield here, listing
        for name in listing.folders:
            inner = f"{here}/{name}"
            met = self.entered.setdefault(self[inner].identity, inner)
            if met == inner:
                yield from self.below(top, inner)
            elif not _is_within(met, top) and not _is_within(top, met):  # else it is a loop
                self.shared.append((met, inner))


def _is_within(path: str, folder: str) -> bool:
    return folder in ("", path) or path.startswith(f"{folder}/")


def _listing(folder: Path) -> Listing:
    identity, changed_ns = _stamp(folder) or ((0, 0), 0)
    folders, files = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not entry.is_dir():
                files.append(entry.name)
            elif entry.name.lower() not in SERVICE_FOLDERS:
                folders.append(entry.name)
    return Listing(identity, changed_ns, tuple(sorted(folders)), tuple(sorted(files)))


def _known(listing: Listing) -> tuple[tuple[int, int], int]:
    return listing.identity, listing.changed_ns


def _stamp(folder: Path) -> tuple[tuple[int, int], int] | None:
    """Identity and time of change; None of a folder that is gone."""
    try:
        stat = folder.stat()
    except OSError:
        return None
    return (stat.st_dev, stat.st_ino), stat.st_mtime_ns

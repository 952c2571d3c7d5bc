"""Outputs of the frozen prefix, computed once, kept on disk, mapped by every trial of the node.

A stored feature is a `.npy` file named by the hash of everything that determines it (see
`Spec`), beside a `.json` file with its checksum, which is written last: without it there is
no feature. A reader holds a shared lock, so that a file in use is never evicted.

Features are made in a folder `<hash>.making`, with their space reserved before they are
written to, and renamed when they are whole. Several processes may make the same features
together: each part of the work has a lock and a mark in that folder. What a killed process
left unfinished is finished by the next that wants it, or removed by the next that makes
room. All locks are the operating system's and end with their process.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
from filelock import FileLock, Timeout

from ..data.cache import cache_folder
from ..files import write_text
from .checksums import Verify, is_as_stated, sums
from .spec import STORED_AS, Spec, joint_digest

KEEP_FREE = 1 << 30
"""Bytes of the disk that features never take."""


def folder_of(named: str | None) -> Path:
    """The folder that `features.dir` names; one in the user's cache when None."""
    return cache_folder() / "features" if named is None else Path(named)


class Store:
    """A folder of features with a size budget."""

    def __init__(self, folder: Path | None = None, budget_bytes: int | None = None, verify: Verify = "sampled") -> None:
        """`folder` is the user's cache when None; `budget_bytes` half of what the disk has free; `verify` says
        how much is read of a file that is there before it is used."""
        self.folder = folder or folder_of(None)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.budget_bytes, self.verify = budget_bytes, verify
        self._opened: list[IO[bytes]] = []

    def missing(self, specs: Sequence[Spec]) -> list[Spec]:
        """Those of the specs that are not stored whole; a damaged file is removed."""
        wanted = {spec.digest: spec for spec in specs}
        return [spec for digest, spec in wanted.items() if not self._is_sound(digest, spec)]

    def open(self, spec: Spec) -> np.ndarray | None:
        """The feature as a read-only array (count, ...) mapped from disk, or None if it is not stored."""
        path, about = self._paths(spec.digest)
        try:
            file = path.open("rb")
            fcntl.flock(file, fcntl.LOCK_SH)
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            os.utime(about)
        except (OSError, ValueError, EOFError):
            return None
        if array.shape != spec.stored_shape or array.dtype != STORED_AS[spec.dtype]:
            return None
        self._opened.append(file)  # its lock keeps the feature from eviction
        return np.asarray(array)

    @contextmanager
    def making(self, specs: Sequence[Spec]) -> Iterator[Making]:
        """Make what is missing of the specs, alone or with other processes; stored on leaving without an error.

        Args:
            specs: every process that takes part names the same.

        Raises:
            OSError: the disk or the budget has no room for them.
        """
        group = joint_digest(specs)
        with self._lock(group):
            making = Making(self.folder / f"{group}.making", self.missing(specs))
            self._remove_abandoned(but=making.folder)
            making.remove_unless_whole()
            if making.files and not making.is_reserved():
                self._make_room(sum(spec.nbytes for spec in making.files))
            making.join()
        try:
            yield making
            with self._lock(group):
                if making.is_current():  # the first to get here stores what all have made
                    self._finish(making)
        finally:
            with self._lock(group):
                making.leave()

    def _lock(self, group: str, wait: bool = True) -> FileLock:
        return FileLock(self.folder / f"{group}.lock", timeout=-1 if wait else 0)

    def used_bytes(self) -> int:
        """Bytes of all stored features."""
        return sum(path.stat().st_size for path in self.folder.glob("*.npy"))

    def room_bytes(self) -> int:
        """Bytes that may still be stored if everything not in use were evicted."""
        free = shutil.disk_usage(self.folder).free - KEEP_FREE
        used = self.used_bytes()
        budget = (free + used) // 2 if self.budget_bytes is None else self.budget_bytes
        return max(0, min(budget, free + used))

    def _paths(self, digest: str) -> tuple[Path, Path]:
        return self.folder / f"{digest}.npy", self.folder / f"{digest}.json"

    def _is_sound(self, digest: str, spec: Spec) -> bool:
        path, about = self._paths(digest)
        try:
            stated = json.loads(about.read_text(encoding="utf-8"))
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if array.shape == spec.stored_shape and is_as_stated(path, stated, self.verify):
                os.utime(about)  # about to be used: the last to make way
                return True
        except (OSError, ValueError, EOFError, KeyError):
            pass
        about.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        return False

    def _finish(self, making: Making) -> None:
        for spec, part in making.files.items():
            path, about = self._paths(spec.digest)
            write_text(about, json.dumps(sums(part) | spec.facts(), indent=1))
            part.replace(path)
        making.end()

    def _make_room(self, wanted: int) -> None:
        room = self.room_bytes()
        if wanted > room:
            raise OSError(
                errno.ENOSPC,
                f"features need {wanted / 1e9:.2f} GB and {room / 1e9:.2f} GB may be used",
                str(self.folder),
            )
        oldest = sorted(self.folder.glob("*.json"), key=lambda about: about.stat().st_mtime)
        used = self.used_bytes()
        for about in oldest:
            if used + wanted <= room:
                return
            used -= self._evict(about)
        if used + wanted > room:
            raise OSError(errno.ENOSPC, "the other features are in use and leave no room", str(self.folder))

    @staticmethod
    def _evict(about: Path) -> int:
        """Remove a feature unless it is in use; returns the bytes won."""
        path = about.with_suffix(".npy")
        try:
            with path.open("r+b") as file:  # NFS wants a writable file for an exclusive lock
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                size = path.stat().st_size
                about.unlink(missing_ok=True)
                path.unlink(missing_ok=True)
                return size
        except OSError:
            return 0

    def _remove_abandoned(self, but: Path) -> None:
        """Remove what no process makes any more, and arrays without a checksum."""
        for folder in self.folder.glob("*.making"):
            if folder != but:
                with suppress(Timeout), self._lock(folder.stem, wait=False):
                    Making(folder, ()).remove_if_abandoned()
        for path in self.folder.glob("*.npy"):
            if not path.with_suffix(".json").exists():
                self._evict(path.with_suffix(".json"))


class Making:
    """Features that are being made, by one process or several."""

    def __init__(self, folder: Path, specs: Sequence[Spec]) -> None:
        self.folder = folder
        self.files = {spec: folder / f"{spec.digest}.npy" for spec in specs}
        """Where to write each array, which has its shape and space already."""
        self._presence: IO[bytes] | None = None

    def is_reserved(self) -> bool:
        """Whether the arrays are there to be written to."""
        return (self.folder / "reserved").exists()

    def is_current(self) -> bool:
        """Whether this process takes part, and what it takes part in has not been stored or removed since."""
        if self._presence is None:
            return False
        with suppress(FileNotFoundError):
            now = (self.folder / "presence").stat()
            return self.is_reserved() and os.path.samestat(now, os.fstat(self._presence.fileno()))
        return False

    def join(self) -> None:
        """Take part; the first process reserves the space.

        Raises:
            OSError: the disk is full.
        """
        if not self.files:
            return
        self.folder.mkdir(exist_ok=True)
        self._presence = (self.folder / "presence").open("a+b")
        fcntl.flock(self._presence, fcntl.LOCK_SH)
        if not self.is_reserved():
            try:
                for spec, part in self.files.items():
                    _reserve(part, spec)
            except OSError:
                self.leave()
                raise
            write_text(self.folder / "reserved", "")

    def leave(self) -> None:
        """Take part no longer. Parts that are done stay, for whoever goes on with the work.

        The last to leave removes what is left after all was stored: until then others look at the marks.
        """
        if self._presence is not None:
            self._presence.close()
            self._presence = None
            if not self.is_reserved():
                self.remove_if_abandoned()

    def end(self) -> None:
        """All is stored."""
        (self.folder / "reserved").unlink()

    @contextmanager
    def claim(self, part: str, wait: bool = False) -> Iterator[bool]:
        """Take on a part of the work: True if it is this process's to do now, which marks it done at the end.

        With `wait` a part that another process has taken on is waited for, and is this one's if that one failed.
        """
        mark = self.folder / f"{part}.part"
        try:
            with FileLock(mark.with_suffix(".lock"), timeout=-1 if wait else 0):
                if mark.exists() or not self.is_current():  # in this order: `remove` goes in the other
                    yield False
                    return
                yield True
                write_text(mark, "")
        except Timeout:
            yield False

    def remove(self) -> None:
        """Remove everything, first what says that it can be used."""
        (self.folder / "reserved").unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove_unless_whole(self) -> None:
        """Remove what a killed process left too early, or too late, for others to go on with."""
        if self.files and not (self.is_reserved() and all(part.exists() for part in self.files.values())):
            self.remove()

    def remove_if_abandoned(self) -> None:
        """Remove everything unless a process takes part."""
        with suppress(OSError), (self.folder / "presence").open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.remove()


def _reserve(part: Path, spec: Spec) -> None:
    """An array file with its disk space taken: writing past a full disk through a map would kill the process."""
    np.lib.format.open_memmap(part, "w+", STORED_AS[spec.dtype], spec.stored_shape).flush()
    if hasattr(os, "posix_fallocate"):
        with part.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, part.stat().st_size)

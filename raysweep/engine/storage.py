"""Where a run's files are: a folder, or a prefix of an object store by fsspec (`s3://bucket/prefix`, `gs://…`).

Trials write their predictions and checkpoints straight to it, from whichever node they are
on. The sweep's own process keeps its ledger and report in a folder of this machine; for an
object store that is a copy, which is uploaded every few seconds and at the end.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.cache import cache_folder
from ..files import write_bytes
from ..recipe import RecipeError

if TYPE_CHECKING:
    from torch import Tensor

SYNC_S = 5.0
"""Between uploads of what the sweep's own process has written."""
CHECKPOINTS = "checkpoints"
"""Folder of a run, with one for each trial."""
OF_TRIALS = ("predictions/", "final/")
"""Beginnings of the names of files that trials write."""
PROBLEM = "problem.txt"
"""File among a trial's checkpoints: why its ranks are to end instead of starting again."""
NOT_UPLOADED = ("ray",)
"""Folders of the local copy that are of this machine alone."""


class Storage:
    """Files by names with slashes, below one folder or URL."""

    def __init__(self, where: str) -> None:
        self.where = where.rstrip("/")
        self.is_local = "://" not in where
        self._fs: Any = None

    def write(self, name: str, content: bytes) -> None:
        """Write a whole file, or leave the old one.

        Raises:
            OSError: there is no room, or no way to the store.
        """
        if self.is_local:
            write_bytes(Path(self.where, name), content)
        else:
            self._filesystem().pipe_file(f"{self._root()}/{name}", content)

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """As `write`, a safetensors file of contiguous tensors on the CPU."""
        from safetensors.torch import save

        from ..train.checkpoint import write_tensors

        if self.is_local:
            write_tensors(Path(self.where, name), tensors)
        else:
            self.write(name, save(dict(tensors)))

    def read(self, name: str) -> bytes:
        """Content of a file.

        Raises:
            OSError: it is not there, or cannot be read.
        """
        if self.is_local:
            return Path(self.where, name).read_bytes()
        return bytes(self._filesystem().cat_file(f"{self._root()}/{name}"))

    def names(self, below: str = "") -> list[str]:
        """Names of all files below a folder, relative to it."""
        if self.is_local:
            top = Path(self.where, below)
            return sorted(path.relative_to(top).as_posix() for path in top.rglob("*") if path.is_file())
        top_url = f"{self._root()}/{below}".rstrip("/")
        filesystem = self._filesystem()
        filesystem.invalidate_cache()
        found = (str(path).removeprefix(top_url).lstrip("/") for path in filesystem.find(top_url))
        return sorted(name for name in found if name and not name.endswith("/"))  # others stand for folders

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        if self.is_local:
            Path(self.where, name).unlink(missing_ok=True)
        else:
            with suppress(FileNotFoundError):
                self._filesystem().rm_file(f"{self._root()}/{name}")

    def remove_folder(self, name: str) -> None:
        """Remove a folder with all files below it, if it is there."""
        if self.is_local:
            shutil.rmtree(Path(self.where, name), ignore_errors=True)
        else:
            with suppress(FileNotFoundError):
                self._filesystem().rm(f"{self._root()}/{name}", recursive=True)

    def below(self, folder: str) -> Storage:
        """The files below a folder of this."""
        return Storage(f"{self.where}/{folder}")

    def check(self) -> None:
        """Raise RecipeError unless files can be written to, read from and removed from here."""
        try:
            self.write(".writable", b"yes")
            self.read(".writable")
            self.remove(".writable")
        except Exception as error:  # every store raises its own
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise RecipeError(f"--run-dir={self.where} cannot be written to ({reason}); give another") from None

    def _filesystem(self) -> Any:
        if self._fs is None:
            import fsspec

            self._fs = fsspec.filesystem(self.where.partition("://")[0])
        return self._fs

    def _root(self) -> str:
        return self.where.partition("://")[2]


def storage_of(run_dir: str) -> Storage:
    """The storage of a run folder as the user gives it.

    Raises:
        RecipeError: a kind of URL that is not known, or whose library is not installed.
    """
    if "://" not in run_dir:
        return Storage(str(Path(run_dir).expanduser().absolute()))
    protocol = run_dir.partition("://")[0]
    found = Storage(run_dir)
    try:
        found._filesystem()
    except (ImportError, ValueError):
        extra = {"s3": "s3", "gs": "gcs", "gcs": "gcs"}.get(protocol)
        how = f'install it with pip install "raysweep[{extra}]"' if extra else "give a folder, s3:// or gs://"
        raise RecipeError(f"--run-dir={run_dir}: no way to {protocol}:// here; {how}") from None
    return found


class LocalCopy:
    """The part of a run folder that the sweep's own process writes, on this machine; a context manager.

    For a run folder on a path it is that folder. For an object store it is a copy, uploaded every few
    seconds and when the block ends.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        if storage.is_local:
            self.folder = Path(storage.where)
        else:
            name = hashlib.blake2b(storage.where.encode(), digest_size=8).hexdigest()
            self.folder = cache_folder() / "runs" / name
        self._uploaded: dict[str, tuple[int, int]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> LocalCopy:
        if not self.storage.is_local:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.storage.is_local:
            self._over.set()
            self._thread.join()
            self.upload()

    def download(self) -> None:
        """Bring a run that another process has left here, but for its checkpoints, which the trials read themselves."""
        self._fetch(name for name in self._remote() if not name.startswith(f"{CHECKPOINTS}/"))

    def fetch(self) -> None:
        """Bring here what the trials have written."""
        self._fetch(name for name in self._remote() if name.startswith(OF_TRIALS))

    def _remote(self) -> list[str]:
        return [] if self.storage.is_local else self.storage.names()

    def _fetch(self, names: Iterable[str]) -> None:
        for name in names:
            write_bytes(self.folder / name, self.storage.read(name))
            stat = (self.folder / name).stat()
            self._uploaded[name] = (stat.st_size, stat.st_mtime_ns)

    def upload(self) -> None:
        """Bring what has changed here to the store."""
        for name, stamp in self._stamps():
            if self._uploaded.get(name) != stamp:
                self.storage.write(name, (self.folder / name).read_bytes())
                self._uploaded[name] = stamp

    def _stamps(self) -> Iterator[tuple[str, tuple[int, int]]]:
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder)
            if path.is_file() and name.parts[0] not in NOT_UPLOADED and not path.name.startswith("."):
                stat = path.stat()
                yield name.as_posix(), (stat.st_size, stat.st_mtime_ns)

    def _follow(self) -> None:
        while not self._over.wait(SYNC_S):
            with suppress(Exception):  # the store is away for a while: the next turn, or the end, brings it
                self.upload()

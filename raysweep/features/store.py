"""Outputs of the frozen prefix, computed once, kept on disk, mapped by every trial of the node.

A stored feature is one tensor of the cut's frontier for all images of one split in one
view: a `.npy` file named by the hash of everything that determines it (the images, how
they are prepared, the network's tensors, the node), beside a `.json` file with its
checksum, which is written last: without it there is no feature. Files are made under
another name and renamed, space is reserved before it is written to, and what a killed
process left is removed by the next. A reader holds a shared lock, so that a file in use
is never evicted.

Tensors with two spatial axes are stored channels last, as they are trained.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from raysweep.datasets import cache_folder
from raysweep.recipe import Statistics

CHUNK = 1 << 24
"""Bytes read at a time when a file is checked."""
KEEP_FREE = 1 << 30
"""Bytes of the disk that features never take."""
STALE_S = 24 * 3600
"""Age after which an unfinished file of another host is thought abandoned."""
STORED_AS = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
"""numpy has no bfloat16: its bits are kept."""


@dataclass(frozen=True)
class Spec:
    """Everything that determines a stored feature."""

    data: str
    """Fingerprint of the images and their split."""
    split: str
    count: int
    image_size: int
    statistics: Statistics
    flip: bool
    network: str
    """Hash of the network's tensors and of the batch-norm policy's effect on them."""
    node: str
    """Name of the frontier tensor in the traced graph."""
    shape: tuple[int, ...]
    """Of one image."""
    dtype: str

    @property
    def digest(self) -> str:
        """32 hexadecimal digits."""
        facts = asdict(self) | {"statistics": self.statistics.model_dump(), "torch": torch.__version__}
        return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of the array, channels last."""
        shape = (*self.shape[1:], self.shape[0]) if len(self.shape) == 3 else self.shape
        return (self.count, *shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return int(np.prod(self.stored_shape)) * np.dtype(STORED_AS[self.dtype]).itemsize


class Store:
    """A folder of features with a size budget."""

    def __init__(self, folder: Path | None = None, budget_bytes: int | None = None) -> None:
        """`folder` is the user's cache when None; `budget_bytes` half of what the disk has free."""
        self.folder = folder or cache_folder() / "features"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.budget_bytes = budget_bytes
        self._opened: list[IO[bytes]] = []

    def missing(self, specs: Sequence[Spec]) -> list[Spec]:
        """Those of the specs that are not stored whole; a damaged file is removed. Reads every file."""
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
    def making(self, specs: Sequence[Spec]) -> Iterator[list[Path]]:
        """Make features: write an array to each path given; they are stored on leaving without an error.

        Raises:
            OSError: the disk or the budget has no room for them.
        """
        self._remove_abandoned()
        self._make_room(sum(spec.nbytes for spec in specs))
        mark = f"{socket.gethostname()}-{os.getpid()}"
        parts = [self.folder / f"{spec.digest}.part-{mark}" for spec in specs]
        try:
            for spec, part in zip(specs, parts, strict=True):
                _reserve(part, spec)
            yield parts
            for spec, part in zip(specs, parts, strict=True):
                self._finish(spec, part)
        finally:
            for part in parts:
                part.unlink(missing_ok=True)

    def lock(self, specs: Sequence[Spec]) -> FileLock:
        """A lock under which to make these features, so that two runs do not make them at once."""
        together = hashlib.blake2b("".join(sorted(spec.digest for spec in specs)).encode(), digest_size=16)
        return FileLock(self.folder / f"{together.hexdigest()}.lock")

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
            stated = json.loads(about.read_text(encoding="utf-8"))["crc32"]
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if array.shape == spec.stored_shape and _crc32(path) == stated:
                os.utime(about)  # about to be used: the last to make way
                return True
        except (OSError, ValueError, EOFError, KeyError):
            pass
        about.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        return False

    def _finish(self, spec: Spec, part: Path) -> None:
        path, about = self._paths(spec.digest)
        text = json.dumps(
            {"crc32": _crc32(part), **asdict(spec), "statistics": spec.statistics.model_dump(mode="json")}, indent=1
        )
        beside = about.with_suffix(f".part-{os.getpid()}")
        beside.write_text(text, encoding="utf-8")
        with part.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # or it could be taken for an array without its checksum
            part.replace(path)
            beside.replace(about)

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
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                size = path.stat().st_size
                about.unlink(missing_ok=True)
                path.unlink(missing_ok=True)
                return size
        except OSError:
            return 0

    def _remove_abandoned(self) -> None:
        """Remove unfinished files whose maker is gone."""
        for part in self.folder.glob("*.part-*"):
            host, _, pid = part.name.partition(".part-")[2].rpartition("-")
            here = host in ("", socket.gethostname())
            with suppress(OSError):
                gone = (
                    not _is_alive(int(pid)) if here and pid.isdigit() else time.time() - part.stat().st_mtime > STALE_S
                )
                if gone:
                    part.unlink(missing_ok=True)
        for path in self.folder.glob("*.npy"):
            if not path.with_suffix(".json").exists():
                self._evict(path.with_suffix(".json"))


class Stored:
    """A split's frontier tensors, read from stored features; a `sources.Source`."""

    def __init__(
        self, views: Sequence[Sequence[np.ndarray]], dtype: str, device: torch.device, store: Store | None = None
    ) -> None:
        """`views[0]` holds the frontier's arrays of the images, `views[1]` of their mirrors if there are any.

        `store` is the one that opened them: its locks last as long as this source.
        """
        self.views, self.dtype, self.device, self.store = views, dtype, device, store
        self._resident = self._load_to_gpu() if device.type == "cuda" else None

    def __len__(self) -> int:
        return len(self.views[0][0])

    def batch(self, positions: Tensor, flips: Tensor | None, training: bool) -> tuple[Tensor, ...]:
        """See `sources.Source`."""
        return tuple(self._gather(index, positions, flips) for index in range(len(self.views[0])))

    def _gather(self, index: int, positions: Tensor, flips: Tensor | None) -> Tensor:
        if self._resident is not None:
            views = [view[index] for view in self._resident]
            rows = positions.to(self.device)
            picked = views[0][rows] if flips is None else _pick(views, rows, flips.to(self.device))
            return _as_trained(picked)
        tensor = self._typed(self._read(index, positions.numpy(), None if flips is None else flips.numpy()))
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return _as_trained(tensor.to(self.device, non_blocking=True))

    def _read(self, index: int, rows: np.ndarray, mirrored: np.ndarray | None) -> np.ndarray:
        """Copies just the rows asked for out of the map."""
        arrays = [view[index] for view in self.views]
        if mirrored is None:
            return arrays[0][rows]
        gathered = np.empty((len(rows), *arrays[0].shape[1:]), arrays[0].dtype)
        for array, here in ((arrays[0], ~mirrored), (arrays[1], mirrored)):
            gathered[here] = array[rows[here]]
        return gathered

    def _typed(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.view(torch.bfloat16) if self.dtype == "bfloat16" else tensor

    def _load_to_gpu(self) -> list[list[Tensor]] | None:
        """All arrays on the GPU where they take less than half of what is free there."""
        needed = sum(array.nbytes for view in self.views for array in view)
        if needed > torch.cuda.mem_get_info(self.device)[0] // 2:
            return None
        return [[self._typed(np.array(array)).to(self.device) for array in view] for view in self.views]


def write_batch(array: np.ndarray, start: int, values: Tensor, dtype: str) -> None:
    """Write (batch, ...) values as a network gives them into rows of a stored array."""
    last = values.movedim(1, -1) if values.dim() == 4 else values
    typed = last.to(getattr(torch, dtype)).cpu().contiguous()
    array[start : start + len(values)] = typed.view(torch.uint16).numpy() if dtype == "bfloat16" else typed.numpy()


def _pick(views: Sequence[Tensor], rows: Tensor, flips: Tensor) -> Tensor:
    mask = flips.view(-1, *[1] * (views[0].dim() - 1))
    return torch.where(mask, views[1][rows], views[0][rows])


def _as_trained(tensor: Tensor) -> Tensor:
    """(batch, height, width, channels) of any dtype → (batch, channels, height, width) float32, channels last."""
    full = tensor.float()
    return full.permute(0, 3, 1, 2) if full.dim() == 4 else full


def _reserve(part: Path, spec: Spec) -> None:
    """An array file with its disk space taken: writing past a full disk through a map would kill the process."""
    np.lib.format.open_memmap(part, "w+", STORED_AS[spec.dtype], spec.stored_shape).flush()
    if hasattr(os, "posix_fallocate"):
        with part.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, part.stat().st_size)


def _crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def tensors_digest(tensors: dict[str, Tensor], skip: Sequence[str] = ()) -> str:
    """Hash of named tensors, but for those of the modules named in `skip`."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        if not any(name.startswith(f"{module}.") for module in skip):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()

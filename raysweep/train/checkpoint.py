"""What a trial needs to go on from where it was: tensors and facts, whole or not at all.

A checkpoint is a safetensors file and a JSON file that holds its checksum and is written
last. The one before is kept until the next is whole; a damaged one falls back to it.
Nothing is unpickled. Where the files are is the caller's: see `Files`.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from ..files import write_bytes
from .ddp import World

FORMAT = 2
KEPT = 2
"""Checkpoints of a trial that are kept: the last, and the one before."""


class Files(Protocol):
    """Where a trial's checkpoints are: a folder, or a prefix of an object store."""

    def names(self) -> list[str]:
        """Of all files."""

    def read(self, name: str) -> bytes:
        """Content of a file.

        Raises:
            OSError: it is not there, or cannot be read.
        """

    def write(self, name: str, content: bytes) -> None:
        """Write a whole file, or leave the old one."""

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a whole safetensors file, or leave the old one.

        Args:
            tensors: contiguous, on the CPU.
        """

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""


class Folder:
    """Files in a folder of this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        """See `Files`."""
        return [found.name for found in self.path.iterdir()] if self.path.is_dir() else []

    def read(self, name: str) -> bytes:
        """See `Files`."""
        return (self.path / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """See `Files`."""
        write_bytes(self.path / name, content)

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """See `Files`."""
        write_tensors(self.path / name, tensors)

    def remove(self, name: str) -> None:
        """See `Files`."""
        (self.path / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class Checkpoint:
    """A state that can be saved."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    """Plain values."""

    def below(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix/`, by the rest of their names."""
        start = f"{prefix}/"
        return {name.removeprefix(start): x for name, x in self.tensors.items() if name.startswith(start)}


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by names that begin with `prefix/`; `Checkpoint.below` is the inverse."""
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a whole safetensors file, or leave the old one: `save_file` writes beside it and renames.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise (OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))) from None


def write(files: Files, checkpoint: Checkpoint) -> None:
    """Save a checkpoint after the earlier ones, of which the last is kept.

    Raises:
        OSError: there is no room; the earlier checkpoints are still there.
    """
    earlier = _numbers(files)
    number = max(earlier, default=0) + 1
    tensors = {name: value.detach().cpu().contiguous() for name, value in checkpoint.tensors.items()}
    facts = json.dumps(dict(checkpoint.facts))
    about = {"format": FORMAT, "crc32": _checksum(tensors), "facts_crc32": zlib.crc32(facts.encode()), "facts": facts}
    files.write_tensors(f"{number:09}.safetensors", tensors)
    files.write(f"{number:09}.json", json.dumps(about).encode())
    for old in [*earlier, number][:-KEPT]:
        _remove(files, old)


def read(files: Files, world: World | None = None) -> Checkpoint | None:
    """The newest checkpoint that is whole, the same on every rank; None where there is none.

    Raises:
        OSError: a rank cannot read what rank 0 can.
    """
    world = world or World()
    found = _newest(files) if world.rank == 0 else None
    number = int(world.sum(torch.tensor(0 if found is None else found[0])))
    if world.rank == 0 or not number:
        return None if found is None else found[1]
    return _read(files, number)


def _newest(files: Files) -> tuple[int, Checkpoint] | None:
    for number in reversed(_numbers(files)):
        try:
            return number, _read(files, number)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):  # torn, damaged, or of another format
            continue
    return None


def remove_all(files: Files) -> None:
    """Remove every checkpoint."""
    for number in _numbers(files):
        _remove(files, number)


def _read(files: Files, number: int) -> Checkpoint:
    about = json.loads(files.read(f"{number:09}.json"))
    tensors = load(files.read(f"{number:09}.safetensors"))
    if about["format"] != FORMAT or _checksum(tensors) != about["crc32"]:
        raise ValueError("the tensors are damaged")
    if zlib.crc32(about["facts"].encode()) != about["facts_crc32"]:
        raise ValueError("the facts are damaged")
    return Checkpoint(tensors, json.loads(about["facts"]))


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    """Of names, types, shapes and numbers."""
    found = 0
    for name, value in sorted(tensors.items()):
        found = zlib.crc32(f"{name} {value.dtype} {tuple(value.shape)}".encode(), found)
        found = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().data, found)
    return found


def _numbers(files: Files) -> list[int]:
    found = {name.partition(".")[0] for name in files.names() if name.endswith((".json", ".safetensors"))}
    return sorted(int(number) for number in found if number.isdigit())


def _remove(files: Files, number: int) -> None:
    files.remove(f"{number:09}.json")  # first: without it there is no checkpoint
    files.remove(f"{number:09}.safetensors")


# ---- states of PyTorch's objects as tensors and facts ----


def optimizer_state(optimizer: torch.optim.Optimizer, prefix: str = "optimizer") -> Checkpoint:
    """The state of an optimizer, of which `restore_optimizer` is the inverse."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}/{index}/{name}"] = value
            else:
                numbers.setdefault(str(index), {})[name] = value
    groups = [dict(group) for group in state["param_groups"]]
    for index, group in enumerate(groups):
        for name in [name for name, value in group.items() if isinstance(value, Tensor)]:
            tensors[f"{prefix} of groups/{index}/{name}"] = group.pop(name)  # timm's Lamb counts steps in one
    return Checkpoint(tensors, {"groups": groups, "numbers": numbers})


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], prefix: str = "optimizer"
) -> None:
    """Bring an optimizer of the same parameters to a saved state."""
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in facts["numbers"].items()}
    for key, value in tensors.items():
        if key.startswith(f"{prefix}/"):
            _, index, name = key.split("/", 2)
            state.setdefault(int(index), {})[name] = value
    groups = [
        {key: tuple(x) if isinstance(x, list) and key != "params" else x for key, x in group.items()}
        for group in facts["groups"]
    ]
    for key, value in tensors.items():
        if key.startswith(f"{prefix} of groups/"):
            _, index, name = key.split("/", 2)
            groups[int(index)][name] = value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                # fused optimizers go through memory, so that all tensors must be laid out as the parameter is
                values[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)

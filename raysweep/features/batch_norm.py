"""Statistics of recalibrated batch norm: estimated once a sweep, kept beside the features, read by every process.

The file is named by the hash of everything that determines the statistics: the network's
tensors, the images and their split, and how they become the network's input. Which machine
and device estimate them changes the last bits, and so not the name.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from weakref import WeakSet

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from ..data.sources import Images
from ..files import write_bytes
from ..nets.layers import BATCH_NORMS
from ..nets.precision import gpu_settings
from ..nets.task import RECALIBRATION_BATCH, TransferTask, task_of, tensors_digest
from ..nets.tracing import channels_last
from ..recipe import Features, Trial
from .store import folder_of

CHECKSUM = "checksum"
_READY: WeakSet[nn.Module] = WeakSet()
"""Networks of this process whose statistics are in place."""


def recalibrated(trial: Trial, settings: Features, device: torch.device) -> TransferTask:
    """The task of a trial, with the statistics in its network that `model.batch_norm` asks for.

    They are read from the store. Where they are not there, or damaged, they are estimated on
    the device and kept, by one process of those that share the store. Where the store cannot
    be written to, every process estimates its own.

    Raises:
        RecipeError: as `task_of`.
    """
    task = task_of(trial)
    network = task.backbone.network
    if trial.model.batch_norm != "recalibrated" or network in _READY:
        return task
    if wanted := _statistics(network):
        path = _path(task, settings)
        with _alone(path):
            found = _read(path, wanted)
            if found is None:
                found = _estimated(task, device)
                with suppress(OSError):
                    write_bytes(path, save(found, {CHECKSUM: tensors_digest(found)}))
        network.load_state_dict(found, strict=False)
    _READY.add(network)
    return task


def are_kept(trial: Trial, settings: Features) -> bool:
    """Whether a process of this machine would find a trial's statistics; also where it needs none."""
    if trial.model.batch_norm != "recalibrated":
        return True
    task = task_of(trial)
    wanted = _statistics(task.backbone.network)
    return not wanted or _read(_path(task, settings), wanted) is not None


def _path(task: TransferTask, settings: Features) -> Path:
    return folder_of(settings.dir) / f"{task.digest}.safetensors"


def _statistics(network: nn.Module) -> dict[str, Tensor]:
    """Running statistics of a network's batch norms, by name."""
    return {
        f"{name}.{buffer}": value
        for name, module in network.named_modules()
        if isinstance(module, BATCH_NORMS)
        for buffer, value in module.named_buffers(recurse=False)
    }


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """A context that one process at a time is in; in a folder that cannot be written to, every process."""
    lock = FileLock(path.with_suffix(".lock"))
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _read(path: Path, wanted: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The statistics in a file; None where there is none, or it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call]
            names = file.keys()
            found = {name: file.get_tensor(name) for name in names}
            stated = (file.metadata() or {}).get(CHECKSUM)
    except (OSError, SafetensorError):
        return None
    shapes = {name: value.shape for name, value in found.items()}
    whole = shapes == {name: value.shape for name, value in wanted.items()} and stated == tensors_digest(found)
    return found if whole else None


def _estimated(task: TransferTask, device: torch.device) -> dict[str, Tensor]:
    """Statistics of every batch norm on the training images, in their own order."""
    network = task.backbone.network
    own = channels_last(copy.deepcopy(network).to(device)) if device.type != "cpu" else copy.deepcopy(network)
    train = task.dataset.train
    source = Images(train.pool, train.rows, task.preparation, device)

    def batches() -> Iterator[Tensor]:
        # of nearly equal size: batch norm wants more than one image
        for positions in torch.arange(len(train)).tensor_split(-(-len(train) // RECALIBRATION_BATCH)):
            yield source.batch(positions, None, training=False)[0]

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)  # of dropout within the network
        with gpu_settings("float32", device):
            update_bn(batches(), own)
    return {name: value.cpu() for name, value in _statistics(own).items()}

"""A transfer task: a backbone with its weights, the images it is trained on, and how one becomes the other's input.

What trials share is made once a process and kept: a lane that trains twenty trials of one
backbone reads its weights and traces it once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor, fx

from ..data import dataset as datasets
from ..data import snapshot
from ..data.dataset import Dataset
from ..data.preparation import Preparation
from ..recipe import Data, Depth, Model, RecipeError, Trial
from . import backbones, sizes, zoo
from .backbones import Backbone
from .cut import Cut, cut
from .layers import select
from .tracing import outputs, traced

RECALIBRATION_BATCH = 64
"""Images on which batch norm is estimated at a time, nearly: see `features.batch_norm`."""
_snapshots: list[str] = []
"""What `expect` was given last."""


@dataclass(frozen=True)
class TransferTask:
    """What all trials of one backbone on one data set share."""

    dataset: Dataset
    backbone: Backbone
    """With recalibrated batch norm its statistics are in place after `features.batch_norm.recalibrated`."""
    preparation: Preparation
    digest: str
    """Hash of the network's tensors but for a new head's, and of what its batch norm is recalibrated on."""


def task_of(trial: Trial) -> TransferTask:
    """The task of a trial; kept for the next trial that shares it.

    Raises:
        RecipeError: data or weights are not there, or cannot be used; the network does not take the images' size.
    """
    return _task(trial.backbone, trial.model, weights_seed(trial), _unaugmented(trial.data))


def cut_of(trial: Trial) -> Cut:
    """The cut of a trial's network at its depth; kept for the next trial that shares it.

    Raises:
        RecipeError: as `task_of`, or a depth that the network does not have.
    """
    return _cut(trial.backbone, trial.model, weights_seed(trial), _unaugmented(trial.data), trial.depth)


def outputs_of(trial: Trial, nodes: Sequence[str]) -> fx.GraphModule:
    """The part of a trial's network that computes the named nodes; kept for the next call."""
    return _outputs(trial.backbone, trial.model, weights_seed(trial), _unaugmented(trial.data), tuple(nodes))


def weights_seed(trial: Trial) -> int:
    """Pretrained weights do not depend on the seed (the head is drawn anew); random ones do."""
    return trial.seed if trial.model.weights == "none" else 0


def save_dataset(trial: Trial) -> str | None:
    """Keep the data set of a trial for the sweep's other processes; returns its name for `expect`, if it has one.

    Raises:
        RecipeError: as `task_of`.
    """
    data = _plain(_unaugmented(trial.data))
    return snapshot.save(data, _dataset(data))


def expect(snapshots: Sequence[str]) -> None:
    """Take data sets from these snapshots from now on, where they are at hand."""
    _snapshots[:] = snapshots


def release() -> None:
    """Drop all that is kept for the process."""
    for kept in (_dataset, _task, _cut, _outputs, traced):
        kept.cache_clear()


def tensors_digest(tensors: Mapping[str, Tensor], skip: Sequence[str] = ()) -> str:
    """Hash of named tensors, but for those of the modules named in `skip`: 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        if not any(name.startswith(f"{module}.") for module in skip):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _unaugmented(data: Data) -> Data:
    """The data as a task has it: what is done to training images changes nothing of it."""
    return data.model_copy(
        update={name: Data.model_fields[name].default for name in ("augment", "crop_scale", "views")}
    )


def _plain(data: Data) -> Data:
    """The data as a data set has it: images that are not normalised."""
    return data.model_copy(update={"normalize": "none"})


@lru_cache(maxsize=2)
def _dataset(data: Data) -> Dataset:
    return snapshot.opened(data, _snapshots) or datasets.load(data)


@lru_cache(maxsize=2)
def _task(name: str, model: Model, seed: int, data: Data) -> TransferTask:
    dataset = _dataset(_plain(data))
    image_size = _image_size(data, dataset)
    sizes.check(name, model.weights, image_size)
    backbone = backbones.build(name, model, len(dataset.class_names), seed, image_size)
    preparation = _preparation(data, backbone, dataset)
    skipped = backbone.head if backbone.fresh else ()
    digest = tensors_digest(backbone.network.state_dict(), skipped)
    if model.batch_norm == "recalibrated":
        digest = _recalibrated_digest(digest, dataset, preparation)
    return TransferTask(dataset, backbone, preparation, digest)


@lru_cache(maxsize=8)
def _cut(name: str, model: Model, seed: int, data: Data, at: Depth) -> Cut:
    task = _task(name, model, seed, data)
    network = task.backbone.network
    try:
        trained = select(network, at, task.backbone.head)
    except RecipeError as error:
        raise RecipeError(f"{error} (backbone {name})") from None
    return cut(network, trained, task.preparation.image_size)


@lru_cache(maxsize=4)
def _outputs(name: str, model: Model, seed: int, data: Data, nodes: tuple[str, ...]) -> fx.GraphModule:
    return outputs(_task(name, model, seed, data).backbone.network, nodes)


def _preparation(data: Data, backbone: Backbone, dataset: Dataset) -> Preparation:
    if data.normalize == "dataset":
        statistics = dataset.statistics
    elif data.normalize == "backbone":
        statistics = backbone.statistics
    else:
        statistics = zoo.UNIT if data.normalize == "none" else data.normalize
    height, width = dataset.train.pool.shape[-2:]
    return Preparation((height, width), _image_size(data, dataset), statistics, dataset.value_range)


def _image_size(data: Data, dataset: Dataset) -> int:
    return data.image_size or dataset.train.pool.shape[-1]


def _recalibrated_digest(tensors: str, dataset: Dataset, preparation: Preparation) -> str:
    """What determines a network whose batch norm is recalibrated: the same on every machine, whoever estimates."""
    facts = (tensors, dataset.fingerprint, preparation.image_size, preparation.statistics.model_dump_json())
    text = " ".join(map(str, (*facts, RECALIBRATION_BATCH)))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

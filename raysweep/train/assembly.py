"""One trial's parts put together: data, network, cut, and what the suffix is fed with.

What trials share is made once a process and kept: a lane that trains twenty trials of one
backbone reads its weights and traces it once. A trial gets its own copy of the suffix.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from raysweep import backbones, datasets, depth
from raysweep.backbones import Backbone
from raysweep.datasets import Dataset
from raysweep.depth import Cut
from raysweep.features import Spec, Store, Stored, tensors_digest, write_batch
from raysweep.kernels import arrange
from raysweep.recipe import Data, Depth, Features, Model, RecipeError, Trial
from raysweep.sources import Images, Preparation, Source
from raysweep.startup import free_memory
from raysweep.training import Labelled

PIXELS_AT_ONCE = 2**18
"""Of a batch that passes through the frozen prefix: bounds its memory."""
RECALIBRATION_BATCH = 64

Shard = tuple[str, bool, int, int]
"""Split, mirrored, first and last position + 1: a part of the images to compute features of."""


@dataclass(frozen=True)
class Base:
    """What all trials of one backbone on one data set share."""

    dataset: Dataset
    backbone: Backbone
    preparation: Preparation
    digest: str
    """Hash of the network's tensors but for a new head's."""


@dataclass(frozen=True)
class Parts:
    """One trial's own."""

    base: Base
    cut: Cut
    suffix: nn.Module
    """A copy of the cut's, with its head drawn from the trial's seed."""
    prefix: nn.Module | None
    own_prefix: bool = False
    """True where the prefix is not the base's: earlier phases trained it, or its running statistics move."""

    @property
    def digest(self) -> str:
        """Hash of the tensors that the prefix's outputs depend on."""
        if not self.own_prefix or self.prefix is None:
            return self.base.digest
        return tensors_digest(self.prefix.state_dict())

    def trained_network(self) -> nn.Module:
        """The whole network with the suffix as it is now."""
        network = copy.deepcopy(self.base.backbone.network)
        state = ({} if self.prefix is None else self.prefix.state_dict()) | self.suffix.state_dict()
        unknown = network.load_state_dict(state, strict=False).unexpected_keys
        assert not unknown, f"the suffix has tensors that the network has not: {unknown}"
        return network


def assemble(trial: Trial, device: torch.device, state: Mapping[str, Tensor] | None = None) -> Parts:
    """Put a trial's parts together.

    Args:
        trial: of one phase.
        device: where to train.
        state: tensors that earlier phases trained, by name; the rest is as the backbone has it.

    Raises:
        RecipeError: data, weights or depth are not there; normally found before any trial starts.
    """
    base, cut = base_of(trial), cut_of(trial)
    suffix, prefix = cut.own_suffix(), cut.prefix
    if base.backbone.fresh:
        backbones.reset_head(suffix, base.backbone.head, trial.seed)
    own = prefix is not None and (trial.model.batch_norm == "training" or _differs(prefix, state or {}))
    if own:
        prefix = copy.deepcopy(prefix)
    for side in (suffix, prefix) if own else (suffix,):
        assert side is not None
        side.load_state_dict({name: x for name, x in (state or {}).items() if name in side.state_dict()}, strict=False)
    placed = None if prefix is None else arrange(prefix, device).eval()
    return Parts(base, cut, arrange(suffix, device), placed, own)


def _differs(prefix: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether tensors of the prefix have been trained."""
    own = prefix.state_dict()
    return any(name in own and not torch.equal(own[name].cpu(), value) for name, value in state.items())


def labelled(parts: Parts, trial: Trial, split: str, device: torch.device, stored: Stored | None = None) -> Labelled:
    """A split as training sees it: from stored features, else from images through the frozen prefix."""
    images = getattr(parts.base.dataset, split)
    source: Source = stored or Images(
        images.pool, images.rows, parts.base.preparation, device, parts.prefix, trial.model.batch_norm
    )
    return Labelled(source, torch.from_numpy(images.labels))


def base_of(trial: Trial) -> Base:
    """See `Base`; kept for the next trial that shares it."""
    return _base(trial.backbone, trial.model, weights_seed(trial), trial.data)


def cut_of(trial: Trial) -> Cut:
    """The cut of a trial's network at its depth; kept for the next trial that shares it."""
    return _cut(trial.backbone, trial.model, weights_seed(trial), trial.data, trial.depth)


def forget() -> None:
    """Let go of all that is kept for the process, and give its memory back."""
    for kept in (load_dataset, _base, _cut, _outputs, depth.traced):
        kept.cache_clear()
    free_memory()


def is_cacheable(trial: Trial, cut: Cut) -> bool:
    """Whether the prefix is a fixed function of the image, and there is one."""
    return cut.prefix is not None and trial.model.batch_norm != "training"


# ---- stored features ----


def store_of(settings: Features) -> Store:
    """The store that the recipe's settings name."""
    budget = None if settings.budget_gb is None else int(settings.budget_gb * 1e9)
    return Store(None if settings.dir is None else Path(settings.dir), budget)


def specs_of(trial: Trial, split: str, flip: bool, dtype: str, parts: Parts | None = None) -> list[Spec]:
    """The stored features, one a frontier tensor, that a trial reads of a split in one view.

    With `parts` they are those of its own prefix, which earlier phases may have trained.
    """
    base, cut = base_of(trial), cut_of(trial)
    digest = base.digest if parts is None else parts.digest
    return [
        Spec(
            data=base.dataset.fingerprint,
            split=split,
            count=len(getattr(base.dataset, split)),
            image_size=base.preparation.image_size,
            statistics=base.preparation.statistics,
            flip=flip,
            network=digest,
            node=node,
            shape=shape,
            dtype=dtype,
        )
        for node, shape in zip(cut.frontier, cut.shapes, strict=True)
    ]


def views_of(trial: Trial) -> list[tuple[str, bool]]:
    """Splits and views that training reads: mirrored ones of the training images alone."""
    return [("train", False), ("val", False)] + ([("train", True)] if "hflip" in trial.data.augment else [])


def make_features(
    trials: Sequence[Trial],
    settings: Features,
    run: Callable[[list[Shard], dict[Spec, Path]], None],
    images: int,
    parts: Parts | None = None,
) -> int:
    """Make what is missing of the features of trials that share their base; returns the bytes made.

    Args:
        trials: one for each depth to store.
        settings: where and how to store.
        run: computes shards into the files given, anywhere on this node.
        images: how many a shard has at most.
        parts: see `specs_of`.

    Raises:
        OSError: there is no room for the features.
    """
    store = store_of(settings)
    views = views_of(trials[0])
    specs = {spec: None for trial in trials for view in views for spec in specs_of(trial, *view, settings.dtype, parts)}
    with store.lock(list(specs)):
        missing = store.missing(list(specs))
        if not missing:
            return 0
        wanted = {(spec.split, spec.flip, spec.count) for spec in missing}
        shards = [
            (split, flip, start, min(start + images, count))
            for split, flip, count in sorted(wanted)
            for start in range(0, count, images)
        ]
        with store.making(missing) as paths:
            run(shards, dict(zip(missing, paths, strict=True)))
    return sum(spec.nbytes for spec in missing)


def prefix_of(trial: Trial, specs: Sequence[Spec], device: torch.device) -> nn.Module:
    """The frozen prefix that computes the features, made once a process: before threads share it, as that is no
    work for several of them.
    """
    nodes = tuple(spec.node for spec in specs)
    return _outputs(trial.backbone, trial.model, weights_seed(trial), trial.data, nodes, device)


@torch.no_grad()
def compute_shard(
    trial: Trial, shard: Shard, files: dict[Spec, Path], device: torch.device, parts: Parts | None = None
) -> int:
    """Pass a shard's images through the frozen prefix, writing every frontier wanted; returns their number."""
    split, flip, start, end = shard
    base = base_of(trial)
    wanted = {spec: path for spec, path in files.items() if (spec.split, spec.flip) == (split, flip)}
    prefix = prefix_of(trial, list(wanted), device) if parts is None else _OwnOutputs(parts, wanted)
    arrays = [np.load(path, mmap_mode="r+", allow_pickle=False) for path in wanted.values()]
    part = getattr(base.dataset, split)
    source = Images(part.pool, part.rows, base.preparation, device, prefix)
    size = max(8, min(128, PIXELS_AT_ONCE // base.preparation.image_size**2))
    for positions in torch.arange(start, end).split(size):
        flips = torch.ones(len(positions), dtype=torch.bool) if flip else None
        for spec, array, values in zip(wanted, arrays, source.batch(positions, flips, training=False), strict=True):
            write_batch(array, int(positions[0]), values, spec.dtype)
    for array in arrays:
        array.flush()
    return end - start


class _OwnOutputs(nn.Module):
    """The parts' own prefix, giving the wanted of its frontier tensors."""

    def __init__(self, parts: Parts, wanted: Iterable[Spec]) -> None:
        super().__init__()
        assert parts.prefix is not None
        self.prefix, self.picked = parts.prefix, [parts.cut.frontier.index(spec.node) for spec in wanted]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        frontier = self.prefix(images)
        return tuple(frontier[index] for index in self.picked)


def stored_source(
    trial: Trial, split: str, settings: Features, device: torch.device, parts: Parts | None = None
) -> Stored | None:
    """A split's stored features, or None if they are not all there."""
    store = store_of(settings)
    flips = [flip for name, flip in views_of(trial) if name == split]
    views = [[store.open(spec) for spec in specs_of(trial, split, flip, settings.dtype, parts)] for flip in flips]
    whole = [[array for array in view if array is not None] for view in views]
    if not views or any(len(a) != len(b) for a, b in zip(whole, views, strict=True)):
        return None
    return Stored(whole, settings.dtype, device, store)


# ---- kept for the process ----


def weights_seed(trial: Trial) -> int:
    """Pretrained weights do not depend on the seed (the head is drawn anew); random ones do."""
    return trial.seed if trial.model.weights == "none" else 0


@lru_cache(maxsize=2)
def load_dataset(data: Data) -> Dataset:
    """See `datasets.load`."""
    return datasets.load(data)


@lru_cache(maxsize=2)
def _base(name: str, model: Model, seed: int, data: Data) -> Base:
    dataset = load_dataset(data.model_copy(update={"normalize": "none", "augment": ()}))
    backbone = backbones.build(name, model, len(dataset.class_names), seed)
    preparation = _preparation(data, backbone, dataset)
    if model.batch_norm == "recalibrated":
        _recalibrate(backbone.network, dataset, preparation)
    skipped = backbone.head if backbone.fresh else ()
    return Base(dataset, backbone, preparation, tensors_digest(backbone.network.state_dict(), skipped))


@lru_cache(maxsize=8)
def _cut(name: str, model: Model, seed: int, data: Data, at: Depth) -> Cut:
    base = _base(name, model, seed, data)
    network = base.backbone.network
    try:
        trained = depth.select(network, at, base.backbone.head)
    except RecipeError as error:
        raise RecipeError(f"{error} (backbone {name})") from None
    return depth.cut(network, trained, base.preparation.image_size)


@lru_cache(maxsize=4)
def _outputs(name: str, model: Model, seed: int, data: Data, nodes: tuple[str, ...], device: torch.device) -> nn.Module:
    return arrange(depth.outputs(_base(name, model, seed, data).backbone.network, nodes), device).eval()


def _preparation(data: Data, backbone: Backbone, dataset: Dataset) -> Preparation:
    if data.normalize == "dataset":
        statistics = dataset.statistics
    elif data.normalize == "backbone":
        statistics = backbone.statistics
    else:
        statistics = backbones.UNIT if data.normalize == "none" else data.normalize
    return Preparation(data.image_size or dataset.train.pool.shape[-1], statistics)


def _recalibrate(network: nn.Module, dataset: Dataset, preparation: Preparation) -> None:
    """Estimate every batch norm's statistics anew on the training images, in their own order.

    On one thread: sums over several differ in their last bits, and every process, however many
    threads it has, must come to the same network and so to the same stored features.
    """
    train = dataset.train
    source = Images(train.pool, train.rows, preparation, torch.device("cpu"))

    def batches() -> Iterator[torch.Tensor]:
        # of nearly equal size: batch norm wants more than one image
        for positions in torch.arange(len(train)).tensor_split(-(-len(train) // RECALIBRATION_BATCH)):
            yield source.batch(positions, None, training=False)[0]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        update_bn(batches(), network)
    finally:
        torch.set_num_threads(threads)

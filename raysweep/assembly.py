"""One trial's parts put together: data, network, cut, sources.

What trials share is made once a process and kept: a lane that trains twenty trials of one
backbone reads its weights and traces it once. A trial gets its own copy of the suffix.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from raysweep import backbones, datasets, depth
from raysweep.backbones import Backbone
from raysweep.datasets import Dataset, Split
from raysweep.depth import Cut
from raysweep.features import Images, Preparation, Source
from raysweep.recipe import Data, Model, RecipeError, Trial
from raysweep.training import Labelled


@dataclass(frozen=True)
class Assembly:
    """Everything `training.train` needs for one trial."""

    dataset: Dataset
    backbone: Backbone
    preparation: Preparation
    suffix: nn.Module
    """This trial's own, with its head drawn from its seed."""
    prefix: nn.Module | None

    def labelled(self, split: Split, trial: Trial, device: torch.device) -> Labelled:
        """A split's labels, with its images passed through the frozen prefix as they are asked for."""
        source: Source = Images(split.pool, split.rows, self.preparation, device, self.prefix, trial.model.batch_norm)
        return Labelled(source, torch.from_numpy(split.labels))

    def trained_network(self) -> nn.Module:
        """The whole network with the suffix as it is now."""
        network = copy.deepcopy(self.backbone.network)
        prefix = {} if self.prefix is None else self.prefix.state_dict()
        state = prefix | self.suffix.state_dict()
        unknown = network.load_state_dict(state, strict=False).unexpected_keys
        assert not unknown, f"the suffix has tensors that the network has not: {unknown}"
        return network


def assemble(trial: Trial, device: torch.device) -> Assembly:
    """Put a trial's parts together.

    Raises:
        RecipeError: data, weights or depth are not there; normally found before any trial starts.
    """
    dataset = load_dataset(data_key(trial.data))
    backbone, cut = _cut(trial.backbone, trial.model, len(dataset.class_names), _weights_seed(trial), trial.depth,
                         network_input(trial, dataset.train.pool.shape[-1]))
    suffix, prefix = copy.deepcopy((cut.suffix, cut.prefix))
    if backbone.fresh:
        backbones.reset_head(suffix, backbone.head, trial.seed)
    memory = torch.channels_last
    prefix = None if prefix is None else prefix.to(device, memory_format=memory).eval()  # type: ignore[call-overload]
    preparation = prepare(trial, backbone, dataset)
    return Assembly(dataset, backbone, preparation, suffix.to(device, memory_format=memory), prefix)  # type: ignore[call-overload]


def network_input(trial: Trial, own_size: int) -> int:
    """Side in pixels of what the network sees."""
    return trial.data.image_size or own_size


def prepare(trial: Trial, backbone: Backbone, dataset: Dataset) -> Preparation:
    """How this trial's images become the network's input."""
    normalize = trial.data.normalize
    statistics = {"backbone": backbone.statistics, "dataset": dataset.statistics, "none": backbones.UNIT}
    chosen = statistics[normalize] if isinstance(normalize, str) else normalize
    return Preparation(network_input(trial, dataset.train.pool.shape[-1]), chosen)


@lru_cache(maxsize=2)
def load_dataset(data: Data) -> Dataset:
    """See `datasets.load`."""
    return datasets.load(data)


def data_key(data: Data) -> Data:
    """The data without what does not change the stored images, so that trials share them."""
    return data.model_copy(update={"normalize": "none", "augment": ()})


def _weights_seed(trial: Trial) -> int:
    """Pretrained weights do not depend on the seed (the head is drawn anew); random ones do."""
    return trial.seed if trial.model.weights == "none" else 0


@lru_cache(maxsize=2)
def _backbone(name: str, model: Model, classes: int, seed: int) -> Backbone:
    return backbones.build(name, model, classes, seed)


@lru_cache(maxsize=8)
def _cut(
    name: str, model: Model, classes: int, seed: int, at: int | str | tuple[str, ...], image_size: int
) -> tuple[Backbone, Cut]:
    backbone = _backbone(name, model, classes, seed)
    try:
        trained = depth.select(backbone.network, at, backbone.head)
    except RecipeError as error:
        raise RecipeError(f"{error} (backbone {name})") from None
    return backbone, depth.cut(backbone.network, trained, image_size)

"""One trial's network in two sides: the frozen prefix that trials share, and a trainable suffix of its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.augment import Augmentation
from ..data.sources import Images, Source
from ..features.batch_norm import recalibrated
from ..features.compute import OwnPrefix
from ..features.stored import Stored
from ..nets.cpu import place_matrix_convolutions
from ..nets.cut import Cut
from ..nets.heads import reset_head
from ..nets.precision import InPrecision
from ..nets.task import TransferTask, cut_of, tensors_digest
from ..nets.tracing import channels_last
from ..recipe import SIXTEEN_BITS, Features, Precision, Trial
from .ddp import World, synchronised
from .metrics import Labelled
from .optim import distances_in
from .randomness import Draws, draw_for_the_whole_batch


@dataclass(frozen=True)
class SplitNetwork:
    """A phase's network, cut where its depth says."""

    task: TransferTask
    cut: Cut
    suffix: nn.Module
    """A copy of the cut's, with its head drawn from the trial's seed, on the training device."""
    prefix: nn.Module | None
    has_own_prefix: bool
    """True where the prefix is not the task's: earlier phases trained it, or its running statistics move."""
    draws: Draws
    """What dropout draws from."""

    def own_prefix(self) -> OwnPrefix | None:
        """The prefix, if it is this trial's alone."""
        if not self.has_own_prefix or self.prefix is None:
            return None
        return OwnPrefix(self.prefix, tensors_digest(self.prefix.state_dict()))

    def state(self) -> dict[str, Tensor]:
        """All tensors that may differ from the task's, by name, on the CPU."""
        moved = self.prefix.state_dict() if self.has_own_prefix and self.prefix is not None else {}
        return {name: value.detach().cpu().clone() for name, value in (moved | self.suffix.state_dict()).items()}

    def distances(self) -> dict[str, int]:
        """How many layers stand between each parameter and the output, by the parameter's name."""
        return distances_in(self.task.backbone.network)

    def whole(self) -> nn.Module:
        """The whole network with the suffix as it is now."""
        network = copy.deepcopy(self.task.backbone.network)
        state = ({} if self.prefix is None else self.prefix.state_dict()) | self.suffix.state_dict()
        unknown = network.load_state_dict(state, strict=False).unexpected_keys
        assert not unknown, f"the suffix has tensors that the network has not: {unknown}"
        return network


def assemble(
    phase: Trial, world: World, state: Mapping[str, Tensor] | None = None, features: Features | None = None
) -> SplitNetwork:
    """Put a phase's network together.

    Args:
        phase: a trial of one phase.
        world: the ranks that train it, and where.
        state: tensors that earlier phases trained, by name; the rest is as the backbone has it.
        features: where statistics of recalibrated batch norm are kept.

    Raises:
        RecipeError: data, weights or depth are not there; normally found before any trial starts.
    """
    task, cut, state = recalibrated(phase, features or Features(), world.device), cut_of(phase), state or {}
    suffix, prefix = cut.own_suffix(), cut.prefix
    if task.backbone.fresh:
        reset_head(suffix, task.backbone.head, phase.seed)
    own = prefix is not None and (phase.model.batch_norm == "training" or _differs(prefix, state))
    if own or (prefix is not None and world.device.type != "cpu"):
        prefix = copy.deepcopy(prefix)
    draws = Draws(world)
    for side in (suffix, prefix) if own else (suffix,):
        assert side is not None
        side.load_state_dict({name: x for name, x in state.items() if name in side.state_dict()}, strict=False)
        if not phase.train.compile:
            draw_for_the_whole_batch(side, draws)
    if world.device.type == "cpu" and phase.train.precision not in SIXTEEN_BITS:
        place_matrix_convolutions(suffix, cut.small_maps)
    placed = None if prefix is None else _placed(prefix, world.device).eval()
    if placed is not None and own:
        placed = synchronised(placed, world)
    return SplitNetwork(task, cut, synchronised(_placed(suffix, world.device), world), placed, own, draws)


def labelled(
    network: SplitNetwork,
    phase: Trial,
    split: str,
    device: torch.device,
    stored: Stored | None = None,
    precision: Precision = "float32",
) -> Labelled:
    """A split as training sees it: from stored features, else from images through the frozen prefix, in a precision."""
    images = getattr(network.task.dataset, split)
    source: Source = stored or Images(
        images.pool,
        images.rows,
        network.task.preparation,
        device,
        None if network.prefix is None else InPrecision(network.prefix, precision),
        phase.model.batch_norm,
        Augmentation.of(phase.data),
    )
    return Labelled(source, torch.from_numpy(images.labels))


def _placed(module: nn.Module, device: torch.device) -> nn.Module:
    """The module on the device, its convolutions' weights channels last."""
    return channels_last(module.to(device))


def _differs(prefix: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether tensors of the prefix have been trained."""
    own = prefix.state_dict()
    return any(name in own and not torch.equal(own[name].cpu(), value) for name, value in state.items())

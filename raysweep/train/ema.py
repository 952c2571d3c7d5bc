"""A moving average of a network's weights, which is measured and exported in the place of the weights themselves."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn


class Averages:
    """Moving averages of a network's tensors, running statistics among them.

    The decay rises with the steps (see `Train.ema`): after s of them it is the lesser of what
    was asked for and 1 - s ** (-2/3), so that the first step's weights are taken as they are.

    Args:
        network: what is trained.
        decay: the largest decay.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._averaged = ModelEmaV3(network, decay, use_warmup=True)

    @property
    def network(self) -> nn.Module:
        """A copy of the network with the averages as its tensors."""
        return self._averaged.module

    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after a step; steps are counted from 1."""
        self._averaged.update(network, step)

    @torch.no_grad()
    def give(self, network: nn.Module) -> None:
        """Put the averages in the place of the network's own tensors."""
        network.load_state_dict(self.network.state_dict())

    def state(self) -> dict[str, Tensor]:
        """The averages, by name."""
        return dict(self.network.state_dict())

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from where `state` was called."""
        self.network.load_state_dict(state)

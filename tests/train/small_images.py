"""Helper: a few images of noise, and networks that learn them in a moment."""

import numpy as np
import torch
from torch import nn

from raysweep.data.augment import Augmentation
from raysweep.data.preparation import Preparation
from raysweep.data.sources import Images
from raysweep.nets.scratch import SmallCnn
from raysweep.nets.zoo import UNIT
from raysweep.recipe import Data, Model, Train, Trial
from raysweep.train.ddp import World
from raysweep.train.loop import Training
from raysweep.train.measures import Measures
from raysweep.train.metrics import Labelled
from raysweep.train.randomness import Draws, draw_for_the_whole_batch

SIDE = 8


class Recorder(Images):
    """Images that remember what was asked of them."""

    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.asked = []

    def fetch(self, positions, flips):
        self.fetched = positions, flips
        return super().fetch(positions, flips)

    def frontier(self, fetched, training):
        self.asked.append((*self.fetched, training))
        return super().frontier(fetched, training)


def labelled(count: int, seed: int = 0, kind: type[Images] = Recorder) -> Labelled:
    """Noise, brighter in class 1: hard enough that nothing is perfect after an epoch."""
    random = np.random.RandomState(seed)
    labels = np.arange(count) % 2
    pixels = random.randint(0, 200, (count, 3, SIDE, SIDE)) + 40 * labels[:, None, None, None]
    preparation = Preparation((SIDE, SIDE), SIDE, UNIT)
    source = kind(
        pixels.astype(np.uint8),
        np.arange(count),
        preparation,
        torch.device("cpu"),
        augmentation=Augmentation(("crop",)),
    )
    return Labelled(source, torch.from_numpy(labels))


def linear(weight: float | None = None, bias: tuple[float, float] = (0.0, 0.0)) -> nn.Sequential:
    """A linear classifier of pixels: no randomness, no statistics."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 2))
    if weight is not None:
        nn.init.constant_(network[1].weight, weight)
        network[1].bias.data = torch.tensor(bias)
    return network


def cnn(seed: int = 0) -> SmallCnn:
    """A small convolutional network with batch norm."""
    torch.manual_seed(seed)
    return SmallCnn(2)


def with_dropout(network: nn.Module, world: World | None = None, p: float = 0.5) -> tuple[nn.Module, Draws]:
    """The network with dropout of its scores, and what that draws from."""
    draws = Draws(world or World())
    dropping = nn.Sequential(network, nn.Dropout(p))
    draw_for_the_whole_batch(dropping, draws)
    return dropping, draws


def phase_of(
    lr: float = 0.01,
    seed: int = 0,
    flip: bool = False,
    batch_norm: str = "frozen",
    data: Data | None = None,
    **settings,
) -> Trial:
    """A trial of one phase, of which only how it is trained matters; two epochs in batches of 4."""
    return Trial(
        backbone="small_cnn",
        depth="all",
        lr=lr,
        seed=seed,
        data=data or Data(augment=("hflip",) if flip else ()),
        model=Model(batch_norm=batch_norm),
        train=Train(**{"epochs": 2, "batch_size": 4} | settings),
    )


def training_of(network: nn.Module, phase: Trial, training: Labelled, validation: Labelled | None, **more) -> Training:
    """A training of two classes."""
    return Training(phase, network, training, validation, 2, **more)


def epochs_of(network: nn.Module, phase: Trial, counts: tuple[int, int] = (12, 6), **more) -> list[Measures]:
    """What training on so many images, validated on so many, measures."""
    return list(training_of(network, phase, *map(labelled, counts), **more).epochs())


def without_time(found: list[Measures]) -> list[dict]:
    """What was measured as plain values, without the seconds, which are all above zero."""
    assert all(one.seconds > 0 for one in found)
    return [one.model_dump(exclude={"seconds"}, exclude_defaults=True) for one in found]

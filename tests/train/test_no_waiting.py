"""Nothing in a training step waits for the device: no number is read back, and copies go ahead of it."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from raysweep.data.preparation import Preparation
from raysweep.data.sources import Images
from raysweep.features.stored import Stored
from raysweep.nets.zoo import UNIT
from raysweep.train.ddp import World
from raysweep.train.metrics import Labelled
from tests.devices import needs_gpu
from tests.train.small_images import SIDE, cnn, labelled, phase_of, training_of, with_dropout

READING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select")
"""Operations whose result, or its shape, the CPU would have to wait for."""
SETTINGS = [
    {},
    {"clip_norm": 1.0, "label_smoothing": 0.1, "class_weights": "balanced"},
    {"ema": 0.9, "accumulate_steps": 2, "warmup_epochs": 1, "layer_decay": 0.9},
    {"mixup": 0.5, "cutmix": 0.5, "optimizer": "sgd"},
    {"precision": "bfloat16", "optimizer": "adamw"},
    {"precision": "float16", "clip_norm": 1.0},
]


class NothingIsRead(TorchDispatchMode):
    """Raises where a number is read back."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in READING:
            raise AssertionError(f"{name} reads a number back")
        return func(*args, **(kwargs or {}))


def split_of(kind, count, device):
    """Images, or features as they would be with the images themselves as the frontier."""
    split = labelled(count, kind=Images)
    pixels = split.source.images
    if kind == "images":
        source = Images(pixels, np.arange(count), Preparation((SIDE, SIDE), SIDE, UNIT), device)
    else:
        stored = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1), np.float32) / 255
        views = [[stored], [stored[:, :, ::-1].copy()]]
        source = Stored(views, "float32", device, resident=kind == "resident features")
    return Labelled(source, split.labels)


def training_on(device, kind, settings):
    network, draws = with_dropout(cnn(), World(device=device), 0.2)
    phase = phase_of(flip=True, batch_norm="training", **settings)
    split = split_of(kind, 12, device)
    return training_of(network.to(device), phase, split, None, world=World(device=device), draws=draws)


KINDS = ["images", "features", "resident features"]


def cases():
    return [(kind, settings) for kind in KINDS for settings in SETTINGS if kind == "images" or "mixup" not in settings]


@pytest.mark.parametrize("read", [lambda x: x.item(), bool, float, lambda x: x.nonzero(), lambda x: torch.equal(x, x)])
def test_reading_is_noticed(read):
    with NothingIsRead(), pytest.raises(AssertionError, match="reads a number back"):
        read(torch.ones(1))


@pytest.mark.parametrize(("kind", "settings"), cases())
def test_steps_read_nothing_back(kind, settings):
    training = training_on(torch.device("cpu"), kind, settings)
    before = [parameter.clone() for parameter in training.trained]
    with NothingIsRead():
        training._steps(1)
    assert training.epoch.steps == 3
    assert not all(map(torch.equal, training.trained, before))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("kind", "settings"), cases())
def test_steps_do_not_wait_for_a_gpu(kind, settings):
    """The first epoch is for what is made once."""
    training = training_on(torch.device("cuda"), kind, settings)
    training._steps(1)
    training.epoch.steps = 0
    step, modes = training._step, []

    def unwaiting(*args):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(*args)
        finally:
            modes.append(torch.cuda.get_sync_debug_mode())
            torch.cuda.set_sync_debug_mode("default")

    training._step = unwaiting
    training._steps(2)
    assert modes == [2, 2, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_wherever_images_come_from_the_steps_are_the_same(kind):
    training = training_on(torch.device("cpu"), kind, {})
    training._steps(1)
    expected = training_on(torch.device("cpu"), "images", {})
    expected._steps(1)
    torch.testing.assert_close(training.epoch.loss_sum, expected.epoch.loss_sum, rtol=1e-5, atol=0)

"""What training is fed with."""

import numpy as np
import pytest
import torch
from torch import nn

from raysweep.data.preparation import Preparation
from raysweep.data.sources import Images, InTwoParts, Joined
from raysweep.nets.zoo import UNIT
from tests.data.image_files import pixels

CPU = torch.device("cpu")


class Spy(nn.Module):
    """A prefix with two outputs that remembers how it was run."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.asked = []

    def forward(self, images):
        self.asked.append((self.training, torch.is_grad_enabled()))
        return [self.norm(images), images.sum((2, 3))]


def source(count=6, side=4, **more):
    pool = pixels(10, side).numpy()
    pool.setflags(write=False)
    return pool, Images(pool, np.array([9, 0, 3, 4, 7, 2][:count]), Preparation((side, side), side, UNIT), CPU, **more)


def test_images_at_positions():
    """Positions count within the split, whose rows are somewhere in the pool."""
    pool, images = source()
    assert len(images) == 6
    (found,) = images.batch(torch.tensor([4, 0, 4]), None, training=True)
    expected = torch.from_numpy(pool[[7, 9, 7]]).float() / 255
    torch.testing.assert_close(found, expected)
    (mirrored,) = images.batch(torch.tensor([4, 0, 4]), torch.tensor([False, True, True]), training=True)
    torch.testing.assert_close(mirrored, torch.stack([expected[0], expected[1].flip(-1), expected[2].flip(-1)]))


@pytest.mark.parametrize(
    ("batch_norm", "training", "mode"),
    [("frozen", True, False), ("recalibrated", True, False), ("training", True, True), ("training", False, False)],
)
def test_mode_of_the_prefix(batch_norm, training, mode):
    """A frozen prefix is a fixed function, never in training mode, and nothing flows back into it."""
    prefix = Spy()
    _, images = source(prefix=prefix, batch_norm=batch_norm)
    frontier = images.batch(torch.arange(6), None, training=training)
    assert prefix.asked == [(mode, False)]
    assert isinstance(frontier, tuple)
    assert [tuple(value.shape) for value in frontier] == [(6, 3, 4, 4), (6, 3)]
    assert (prefix.norm.num_batches_tracked > 0) == mode


class Told(InTwoParts):
    """Answers with what it was asked: its own name, the position, the flip."""

    def __init__(self, name, count):
        self.name, self.count, self.training = name, count, None

    def __len__(self):
        return self.count

    def fetch(self, positions, flips):
        flipped = torch.zeros(len(positions)) if flips is None else flips.float()
        return torch.stack([torch.full((len(positions),), float(self.name)), positions.float(), flipped], 1)

    def frontier(self, told, training):
        self.training = training
        return told, 10 * told[:, :1]


@pytest.mark.parametrize("positions", [[4, 0, 3, 2, 1], [0, 1, 2], [3, 4], [2, 3], [4, 4, 0, 0, 3]])
@pytest.mark.parametrize("flipped", [True, False])
def test_joined_keeps_the_order_asked_for(positions, flipped):
    """Three of source 1, then two of source 2: position 3 is the first of source 2."""
    first, second = Told(1, 3), Told(2, 2)
    joined = Joined(first, second)
    assert len(joined) == 5
    where = torch.tensor(positions)
    flips = where % 2 == 0 if flipped else None
    told, tens = joined.batch(where, flips, training=True)
    expected = [
        [1, position, flipped and position % 2 == 0]
        if position < 3
        else [2, position - 3, flipped and position % 2 == 0]
        for position in positions
    ]
    assert told.tolist() == [[float(value) for value in row] for row in expected]
    assert tens.squeeze(1).tolist() == [10 * row[0] for row in expected]
    assert {first.training, second.training} <= {True, None}


def test_joined_images_are_those_of_both():
    (pool, some), (_, others) = source(3), source(6)
    where = torch.tensor([8, 0, 2, 3])
    (found,) = Joined(some, others).batch(where, torch.tensor([True, False, True, False]), training=False)
    rows = [[9, 0, 3, 9, 0, 3, 4, 7, 2][position] for position in where]
    expected = torch.from_numpy(pool[rows]).float() / 255
    expected[[0, 2]] = expected[[0, 2]].flip(-1)
    torch.testing.assert_close(found, expected)


# ---- an empty share of a batch ----

NONE = torch.zeros(0, dtype=torch.int64)
NO_FLIPS = torch.zeros(0, dtype=torch.bool)


@pytest.mark.parametrize("flips", [None, NO_FLIPS])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("image_size", [4, 7])
def test_no_images(image_size, training, flips):
    pool, _ = source()
    images = Images(pool, np.arange(6), Preparation((4, 4), image_size, UNIT), CPU)
    (found,) = images.batch(NONE, flips, training)
    assert (tuple(found.shape), found.dtype) == ((0, 3, image_size, image_size), torch.float32)


@pytest.mark.parametrize("flips", [None, NO_FLIPS])
@pytest.mark.parametrize("batch_norm", ["frozen", "recalibrated", "training"])
@pytest.mark.parametrize("training", [True, False])
def test_no_images_through_a_prefix(batch_norm, training, flips):
    """Every frontier tensor, empty; the prefix is in the mode that images would find it in."""
    prefix = Spy()
    prefix.norm = nn.Identity()  # it refuses an empty batch; ranks have another one
    _, images = source(prefix=prefix, batch_norm=batch_norm)
    maps, sums = images.batch(NONE, flips, training)
    assert (tuple(maps.shape), tuple(sums.shape)) == ((0, 3, 4, 4), (0, 3))
    assert (maps.dtype, sums.dtype) == (torch.float32, torch.float32)
    assert prefix.asked == [(training and batch_norm == "training", False)]


def test_no_images_leave_statistics_alone():
    prefix = Spy()
    _, images = source(prefix=prefix)
    before = {name: value.clone() for name, value in prefix.state_dict().items()}
    images.batch(NONE, None, training=True)
    assert all(torch.equal(value, before[name]) for name, value in prefix.state_dict().items())


@pytest.mark.parametrize("flips", [None, NO_FLIPS])
def test_nothing_of_joined_sources(flips):
    told, tens = Joined(Told(1, 3), Told(2, 2)).batch(NONE, flips, training=True)
    assert (tuple(told.shape), tuple(tens.shape)) == ((0, 3), (0, 1))
    (found,) = Joined(source(3)[1], source(6)[1]).batch(NONE, flips, training=True)
    assert tuple(found.shape) == (0, 3, 4, 4)

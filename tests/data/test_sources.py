import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raysweep.nets.backbones import UNIT
from raysweep.recipe import Statistics
from raysweep.data.sources import Images, Joined, Preparation

CPU = torch.device("cpu")
STATISTICS = Statistics(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))


def pixels(count, side, seed=0):
    return torch.from_numpy(np.random.RandomState(seed).randint(0, 256, (count, 3, side, side)).astype(np.uint8))


def ramp(*levels):
    """One image, every row of it these levels from left to right, in every channel."""
    return torch.tensor(levels, dtype=torch.uint8).expand(1, 3, len(levels), len(levels))


# ---- preparation ----


def test_normalisation():
    """51 of 255 is 0.2."""
    found = Preparation(2, STATISTICS)(torch.full((1, 3, 2, 2), 51, dtype=torch.uint8))
    expected = torch.tensor([(0.2 - 0.1) / 0.5, 0.0, (0.2 - 0.3) / 2.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert found.dtype == torch.float32


def test_enlarging_is_linear():
    """Half a pixel either side: ¾ of the nearer, ¼ of the other; ends are repeated."""
    found = Preparation(4, UNIT)(ramp(0, 255))
    torch.testing.assert_close(found[0, 1], torch.tensor([0, 0.25, 0.75, 1]).expand(4, 4), atol=1e-6, rtol=0)


def test_shrinking_does_not_skip_pixels():
    """By two, a triangle of radius 2 about the new pixel's centre: ¾, ¾ and ¼ of the three pixels within, over 7/4."""
    found = Preparation(2, UNIT)(ramp(255, 0, 0, 51))
    expected = torch.tensor([3 / 7, 0.2 * 3 / 7])
    torch.testing.assert_close(found[0, 2], expected.expand(2, 2), atol=1e-6, rtol=0)


def test_resizing_comes_before_normalising():
    images, size = pixels(3, 9), (5, 5)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (STATISTICS.mean, STATISTICS.std))
    scaled = F.interpolate(images.float() / 255, size, mode="bilinear", antialias=True)
    torch.testing.assert_close(Preparation(5, STATISTICS)(images), (scaled - mean) / std)


@pytest.mark.parametrize("size", [7, 5, 12])
def test_a_mirrored_image_is_the_mirror_of_the_resized_one(size):
    """To the bit, as a stored view must equal what training would make; resizing a mirrored image rounds otherwise."""
    images, prepare = pixels(6, 7), Preparation(size, STATISTICS)
    flips = torch.tensor([True, False, True, True, False, False])
    plain, found = prepare(images), prepare(images, flips)
    assert torch.equal(found[flips], plain[flips].flip(-1))
    assert torch.equal(found[~flips], plain[~flips])
    assert not torch.equal(found, plain)


@pytest.mark.parametrize("size", [4, 6])
def test_images_stay_as_they_were_and_come_out_channels_last(size):
    images = pixels(2, 4)
    before = images.clone()
    found = Preparation(size, STATISTICS)(images, torch.tensor([True, False]))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)


# ---- images ----


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
    return pool, Images(pool, np.array([9, 0, 3, 4, 7, 2][:count]), Preparation(side, UNIT), CPU, **more)


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


# ---- two sources ----


class Told:
    """Answers with what it was asked: its own name, the position, the flip."""

    def __init__(self, name, count):
        self.name, self.count, self.training = name, count, None

    def __len__(self):
        return self.count

    def batch(self, positions, flips, training):
        self.training = training
        flipped = torch.zeros(len(positions)) if flips is None else flips.float()
        told = torch.stack([torch.full((len(positions),), float(self.name)), positions.float(), flipped], 1)
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

"""From stored images to the network's input."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from raysweep.data.dataset import load
from raysweep.data.preparation import Preparation
from raysweep.nets.zoo import UNIT
from raysweep.recipe import Statistics
from tests.data.image_files import folder_data, pixels, write_classes

STATISTICS = Statistics(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))


def ramp(*levels):
    """One image, every row of it these levels from left to right, in every channel."""
    return torch.tensor(levels, dtype=torch.uint8).expand(1, 3, len(levels), len(levels))


def test_normalisation():
    """51 of 255 is 0.2."""
    found = Preparation((2, 2), 2, STATISTICS)(torch.full((1, 3, 2, 2), 51, dtype=torch.uint8))
    expected = torch.tensor([(0.2 - 0.1) / 0.5, 0.0, (0.2 - 0.3) / 2.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert found.dtype == torch.float32


def test_enlarging_is_linear():
    """Half a pixel either side: ¾ of the nearer, ¼ of the other; ends are repeated."""
    found = Preparation((2, 2), 4, UNIT)(ramp(0, 255))
    torch.testing.assert_close(found[0, 1], torch.tensor([0, 0.25, 0.75, 1]).expand(4, 4), atol=1e-6, rtol=0)


def test_shrinking_does_not_skip_pixels():
    """By two, a triangle of radius 2 about the new pixel's centre: ¾, ¾ and ¼ of the three pixels within, over 7/4."""
    found = Preparation((4, 4), 2, UNIT)(ramp(255, 0, 0, 51))
    expected = torch.tensor([3 / 7, 0.2 * 3 / 7])
    torch.testing.assert_close(found[0, 2], expected.expand(2, 2), atol=1e-6, rtol=0)


def test_resizing_comes_before_normalising():
    images, size = pixels(3, 9), (5, 5)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (STATISTICS.mean, STATISTICS.std))
    scaled = F.interpolate(images.float() / 255, size, mode="bilinear", antialias=True)
    torch.testing.assert_close(Preparation((9, 9), 5, STATISTICS)(images), (scaled - mean) / std)


@pytest.mark.parametrize("flips", [None, torch.zeros(0, dtype=torch.bool)])
@pytest.mark.parametrize("size", [3, 4, 9])
def test_no_images(size, flips):
    found = Preparation((4, 4), size, STATISTICS).module()(torch.zeros(0, 3, 4, 4, dtype=torch.uint8), flips)
    assert (tuple(found.shape), found.dtype) == ((0, 3, size, size), torch.float32)


@pytest.mark.parametrize("size", [7, 5, 12])
def test_a_mirrored_image_is_the_mirror_of_the_resized_one(size):
    """To the bit, as a stored view must equal what training would make; resizing a mirrored image rounds otherwise."""
    images, prepare = pixels(6, 7), Preparation((7, 7), size, STATISTICS).module()
    flips = torch.tensor([True, False, True, True, False, False])
    plain, found = prepare(images), prepare(images, flips)
    assert torch.equal(found[flips], plain[flips].flip(-1))
    assert torch.equal(found[~flips], plain[~flips])
    assert not torch.equal(found, plain)


@pytest.mark.parametrize("size", [4, 6])
def test_images_stay_as_they_were_and_come_out_channels_last(size):
    images = pixels(2, 4)
    before = images.clone()
    found = Preparation((4, 4), size, STATISTICS).module()(images, torch.tensor([True, False]))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)


@pytest.mark.parametrize("image_size", [None, 8])
def test_an_opened_file_is_decoded_as_the_data_set_stores_it(tmp_path, image_size):
    """To the bit: a served image goes the way of a trained one, images that are not square included."""
    root = write_classes(tmp_path / "pets", {"cat": 4, "dog": 4}, size=None if image_size else (9, 7))
    train = load(folder_data(root, image_size=image_size)).train
    prepare = Preparation(train.pool.shape[2:], 5, STATISTICS)
    for name, stored in zip(train.names, train.images(), strict=True):
        with Image.open(root / name) as image:
            assert (prepare.decode(image) == stored).all()
    assert prepare(torch.from_numpy(train.images())).shape == (len(train), 3, 5, 5)


@pytest.mark.parametrize("value_range", [None, (100.0, 3000.0)])
def test_greys_of_more_than_8_bits_are_served_as_they_were_trained_on(tmp_path, value_range):
    for seed, name in enumerate(("cat/0", "cat/1", "dog/0", "dog/1")):
        values = np.random.RandomState(seed).randint(0, 4096, (9, 7)).astype(np.uint16)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    loaded = load(folder_data(tmp_path, value_range=value_range))
    prepare = Preparation((8, 8), 8, STATISTICS, loaded.value_range)
    for name, stored in zip(loaded.train.names, loaded.train.images(), strict=True):
        with Image.open(tmp_path / name) as image:
            assert (prepare.decode(image) == stored).all()


def test_an_oblong_image_is_resized_whole():
    """To a square, by its own factor each way: 4 columns are halved, 2 rows are kept."""
    columns = torch.tensor([255, 0, 0, 51], dtype=torch.uint8).expand(1, 3, 2, 4)
    found = Preparation((2, 4), 2, UNIT)(columns)
    torch.testing.assert_close(found[0, 0], torch.tensor([3 / 7, 0.2 * 3 / 7]).expand(2, 2), atol=1e-6, rtol=0)

"""Random views: each follows from its number, image by image."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as transforms

from raysweep.data.augment import Augmentation
from raysweep.data.preparation import Preparation
from raysweep.data.sources import Images
from raysweep.recipe import Data, Statistics

UNIT = Statistics(mean=(0, 0, 0), std=(1, 1, 1))
RANDOM = ["crop", "color", "trivial", "randaugment", "erase"]


def images(count=4, side=24, seed=0):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def drawn(augmentation, count=400, seed=0):
    return augmentation.draw(count, torch.Generator().manual_seed(seed))


def seen(kinds, views, rows=(0, 1, 2, 3), **more):
    return Augmentation(tuple(kinds), **more)(images(len(rows)), rows, torch.tensor(views))


@pytest.mark.parametrize("kind", RANDOM)
def test_a_view_follows_from_its_number_alone(kind):
    whole = seen([kind], [5, 6, 5, 8])
    state = torch.get_rng_state()
    for position, number in enumerate([5, 6, 5, 8]):
        alone = Augmentation((kind,))(images()[position : position + 1], [9], torch.tensor([number]))
        assert torch.equal(alone[0], whole[position])
    assert torch.equal(torch.get_rng_state(), state)
    assert whole.shape == (4, 3, 24, 24)
    assert 0 <= whole.min() <= whole.max() <= 1
    many = Augmentation((kind,))(images(1).expand(16, -1, -1, -1), range(16), torch.arange(16))
    assert len({one.numpy().tobytes() for one in many}) > 2


def test_a_crop_is_the_box_that_torchvision_draws():
    augmentation, picture = Augmentation(("crop",), crop_scale=(0.2, 0.5)), images(1)
    for number in range(20):
        torch.manual_seed(number)
        top, left, height, width = v2.RandomResizedCrop.make_params(
            v2.RandomResizedCrop(24, scale=(0.2, 0.5)), [picture[0]]
        ).values()
        assert 0.15 <= height * width / 24**2 <= 0.55  # whole pixels
        assert top + height <= 24
        assert left + width <= 24
        expected = transforms.resized_crop(picture[0], top, left, height, width, [24, 24], antialias=True)
        found = augmentation(picture, [0], torch.tensor([number]))[0]
        torch.testing.assert_close(found, expected.clamp(0, 1))


def test_the_order_of_kinds_does_not_matter():
    assert torch.equal(seen(["erase", "crop"], [1, 2, 3, 4]), seen(["crop", "erase"], [1, 2, 3, 4]))


def test_fixed_views_differ_by_image_and_seed():
    """The row in the pool tells images apart."""
    same = images(1).expand(4, -1, -1, -1)

    def views(rows, numbers, seed=0):
        return Augmentation(("crop",), 4, seed)(same, rows, torch.tensor(numbers))

    first = views([0, 1, 0, 0], [1, 1, 1, 2])
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[3])
    assert not torch.equal(first[0], views([0, 1, 0, 0], [1, 1, 1, 2], seed=1)[0])


@pytest.mark.parametrize(
    ("kinds", "count", "finite", "numbers"),
    [
        ([], None, True, []),
        (["hflip"], None, True, [1]),
        (["hflip"], 4, True, [1]),  # `views` is of random ones
        (["crop"], None, False, []),
        (["hflip", "color"], 3, True, [1, 2, 3]),
    ],
)
def test_which_sets_of_views_are_finite(kinds, count, finite, numbers):
    augmentation = Augmentation(tuple(kinds), count)
    assert augmentation.is_finite == finite
    assert list(augmentation.numbers) == numbers
    names = {augmentation.name(number) for number in [0, *numbers]}
    assert len(names) == 1 + len(numbers)


def test_what_is_drawn():
    assert drawn(Augmentation()) is None
    assert drawn(Augmentation(("hflip",))).dtype == torch.bool
    four = drawn(Augmentation(("crop",), 4))
    assert four.unique().tolist() == [1, 2, 3, 4]
    assert torch.bincount(four).tolist()[1:] == pytest.approx([100] * 4, abs=45)
    assert len(drawn(Augmentation(("crop",))).unique()) == 400


def test_a_source_shows_views_and_the_images_themselves():
    pool = np.random.RandomState(0).randint(0, 256, (6, 3, 8, 8)).astype(np.uint8)
    augmentation = Augmentation.of(Data(augment=("crop",), views=2, split_seed=7))
    source = Images(
        pool, np.array([4, 2, 0]), Preparation((8, 8), 16, UNIT), torch.device("cpu"), augmentation=augmentation
    )
    (plain,) = source.batch(torch.tensor([1, 0]), None, training=True)
    (found,) = source.batch(torch.tensor([1, 0]), torch.tensor([2, 1]), training=True)
    torch.testing.assert_close(found, augmentation(plain, [2, 4], torch.tensor([2, 1])))
    assert not torch.equal(found, plain)
    (empty,) = source.batch(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), training=True)
    assert empty.shape == (0, 3, 16, 16)

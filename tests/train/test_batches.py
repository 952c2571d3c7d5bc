"""Which images the steps of an epoch learn from."""

import itertools

import pytest
import torch

from raysweep.data.augment import Augmentation
from raysweep.train.batches import batches, epoch_of, steps_of
from raysweep.train.mixing import Mixing

PLAIN = Augmentation()


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [(8, 4, [4, 4]), (9, 4, [4, 5]), (10, 4, [4, 4, 2]), (5, 4, [5]), (3, 4, [3]), (1, 4, [1]), (3, 1, [1, 2])],
)
def test_sizes_of_batches(count, size, sizes):
    """A last batch of one image is merged with the one before, as batch norm needs two."""
    found = list(batches(epoch_of(count, 0, 1, PLAIN), size))
    assert [len(batch) for batch in found] == sizes
    assert steps_of(count, size) == len(sizes)
    assert sorted(torch.cat([batch.positions for batch in found]).tolist()) == list(range(count))


def test_order_is_drawn_for_each_epoch():
    orders = [
        torch.cat([batch.positions for batch in batches(epoch_of(50, seed, epoch, PLAIN), 8)]).tolist()
        for seed, epoch in ((0, 1), (0, 1), (0, 2), (1, 1))
    ]
    assert orders[0] == orders[1]
    assert all(a != b for a, b in itertools.combinations(orders[1:], 2))


def test_flips_are_drawn_for_each_image_and_epoch():
    epochs = []
    for epoch in (1, 2):
        drawn = torch.zeros(400, dtype=torch.bool)
        for batch in batches(epoch_of(400, 0, epoch, Augmentation(("hflip",))), 16):
            assert 0 < batch.views.sum() < len(batch) or len(batch) < 16
            drawn[batch.positions] = batch.views
        epochs.append(drawn)
    for drawn in (*epochs, epochs[0] ^ epochs[1]):
        assert 150 < drawn.sum() < 250  # five standard deviations of 10


def test_labels_go_with_their_images():
    """Through slices, and to the partners of mixed images."""
    labels = torch.arange(20) % 7
    for batch in batches(epoch_of(20, 0, 1, PLAIN, labels=labels), 6):
        own = batch.mixed(Mixing(0.5))[1::2]
        for one in (own, own.partners):
            assert torch.equal(one.labels, labels[one.positions])

"""Mixup and CutMix: images, labels and boxes by hand."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from raysweep.data.augment import Augmentation
from raysweep.recipe import Train
from raysweep.train.batches import Batch, batches, epoch_of, inputs_of
from raysweep.train.mixing import Mixing, mixing_of
from tests.train.small_images import labelled, linear, phase_of, training_of


def test_mixup_by_hand():
    mixed, share = Mixing(0.75)(torch.full((2, 3, 4, 4), 1.0), torch.full((2, 3, 4, 4), 5.0))
    assert share == 0.75
    assert mixed.unique().tolist() == [2.0]


@pytest.mark.parametrize(
    ("centre", "box"),
    [
        ((0.5, 0.5), (2, 6, 5, 15)),  # of 8 × 20 pixels a quarter: 4 × 10
        ((0.0, 0.99), (0, 2, 14, 20)),  # cut off at two edges
    ],
)
def test_cutmix_by_hand(centre, box):
    mixing = Mixing(0.75, centre)
    assert mixing.box(8, 20) == box
    mixed, share = mixing(torch.zeros(2, 3, 8, 20), torch.ones(2, 3, 8, 20))
    top, bottom, left, right = box
    expected = torch.zeros(8, 20)
    expected[top:bottom, left:right] = 1
    assert torch.equal(mixed, expected.expand(2, 3, -1, -1))
    assert share == pytest.approx(1 - float(expected.mean()))


def test_partners_are_the_images_before():
    whole = Batch(torch.arange(5), torch.arange(5) * 10).mixed(Mixing(0.5))
    assert whole.partners.positions.tolist() == [4, 0, 1, 2, 3]
    own = whole[1::2]
    assert (own.positions.tolist(), own.partners.positions.tolist()) == ([1, 3], [0, 2])
    assert own.partners.views.tolist() == [0, 20]


@pytest.mark.parametrize("settings", [{"mixup": 0.4}, {"cutmix": 1.0}])
def test_loss_is_of_both_labels(settings):
    split, network = labelled(6), linear()
    training = training_of(network, phase_of(**settings, label_smoothing=0.1), split, None)
    mixing = Mixing(0.7, None if "mixup" in settings else (0.5, 0.5))
    positions = torch.tensor([0, 1, 2, 5])
    batch = Batch(positions, labels=split.labels[positions]).mixed(mixing)
    pictures = split.source.batch(torch.arange(6), None, False)[0]
    mixed, share = mixing(pictures[[0, 1, 2, 5]], pictures[[5, 0, 1, 2]])
    targets = share * F.one_hot(split.labels[[0, 1, 2, 5]], 2) + (1 - share) * F.one_hot(split.labels[[5, 0, 1, 2]], 2)
    expected = F.cross_entropy(network(mixed), targets.float(), reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(training._loss(batch, None), expected)


def test_what_is_drawn():
    assert mixing_of(Train(), 0) is None
    ups, cuts = ([mixing_of(Train(**{name: 0.5}), seed) for seed in range(300)] for name in ("mixup", "cutmix"))
    assert all(one.centre is None for one in ups)
    assert all(one.centre is not None for one in cuts)
    for found in (ups, cuts):
        shares = np.array([one.share for one in found])
        assert shares.mean() == pytest.approx(0.5, abs=0.1)
        assert shares.std() == pytest.approx(np.sqrt(1 / 8), abs=0.05)  # of Beta(½, ½)
    both = [mixing_of(Train(mixup=0.5, cutmix=0.5), seed).centre is None for seed in range(300)]
    assert 110 < sum(both) < 190


def test_ranks_see_shares_of_the_same_images():
    split = labelled(9)
    for batch in batches(epoch_of(9, 0, 1, Augmentation(("hflip",))), 4):
        whole = batch.mixed(Mixing(0.6, (0.3, 0.6)))
        (expected,), share = inputs_of(split.source, whole)
        for rank in range(3):
            (found,), same = inputs_of(split.source, whole[rank::3])
            torch.testing.assert_close(found, expected[rank::3])
            assert same == share or not len(found)

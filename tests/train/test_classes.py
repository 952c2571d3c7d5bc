"""Weights of unequal classes, and how often their images are drawn."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from raysweep.data.augment import Augmentation
from raysweep.recipe import Train
from raysweep.train.batches import batches, epoch_of
from raysweep.train.classes import chances, class_weights
from tests.train.small_images import labelled, linear, phase_of, training_of

LABELS = torch.tensor([0] * 50 + [1] * 10 + [2] * 1 + [4] * 20)
"""Class 3 has no image."""


def test_none():
    assert class_weights(Train(), LABELS, 5) is None
    assert chances(Train(), LABELS) is None


def test_balanced_weights_are_scikit_learns():
    present = [0, 1, 2, 4]
    expected = compute_class_weight("balanced", classes=np.array(present), y=LABELS.numpy())
    found = class_weights(Train(class_weights="balanced"), LABELS, 5)
    np.testing.assert_allclose(found[present].numpy(), expected, rtol=1e-6)
    assert found[3] == 0


def test_effective_weights_by_hand():
    """Of 1 image the effective number is 1, of 2 it is 1.999, of very many 1000; the mean over images is 1."""
    labels = torch.tensor([0] * 20_000 + [1] * 2 + [2])
    found = class_weights(Train(class_weights="effective"), labels, 3)
    assert float(found[2] / found[1]) == pytest.approx(1.999)
    assert float(found[2] / found[0]) == pytest.approx(1000)
    assert float(found[labels].mean()) == pytest.approx(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("outputs", [2, 4])
def test_loss_is_weighted(smoothing, outputs):
    """Also with a kept classifier, which has more outputs."""
    labels = torch.tensor([0, 0, 0, 1])
    split = labelled(4)
    object.__setattr__(split, "labels", labels)
    training = training_of(linear(), phase_of(class_weights="balanced", label_smoothing=smoothing), split, None)
    scores = torch.randn(4, outputs, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([4 / 6, 4 / 2, 1.0, 1.0])[:outputs]
    logs, eps = scores.log_softmax(1), smoothing
    expected = sum(
        -(1 - eps) * weights[label] * row[label] - eps / outputs * (weights * row).sum()
        for row, label in zip(logs, labels, strict=True)
    )
    torch.testing.assert_close(training._cross_entropy(scores, labels), expected)
    plain = training_of(linear(), phase_of(label_smoothing=smoothing), split, None)
    torch.testing.assert_close(
        plain._cross_entropy(scores, labels),
        F.cross_entropy(scores, labels, reduction="sum", label_smoothing=smoothing), rtol=0, atol=0
    )  # fmt: skip


def test_balanced_sampler_draws_each_class_as_often():
    drawn = chances(Train(sampler="balanced"), LABELS)
    found = [
        torch.cat([one.positions for one in batches(epoch_of(81, 0, epoch, Augmentation(), drawn), 8)])
        for epoch in range(1, 101)
    ]
    assert all(len(one) == 81 for one in found)
    shares = torch.bincount(LABELS[torch.cat(found)], minlength=5) / 8100
    assert shares.tolist() == pytest.approx([0.25, 0.25, 0.25, 0, 0.25], abs=0.025)  # five standard deviations
    assert not torch.equal(found[0], found[1])


def test_an_epoch_of_the_balanced_sampler_is_trained():
    split = labelled(9)
    rows = list(training_of(linear(), phase_of(sampler="balanced", class_weights="effective"), split, None).epochs())
    assert len(rows) == 2
    asked = [positions for positions, _, training in split.source.asked if training]
    assert [len(one) for one in asked] == [4, 5] * 2

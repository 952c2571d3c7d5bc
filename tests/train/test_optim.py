"""Optimizers and schedules, by what one or a few steps of training do."""

import math

import pytest
import torch
from torch.nn import functional as F

from tests.train.small_images import epochs_of, labelled, linear, phase_of, training_of


def one_step(settings):
    """Weights after a step on one batch from 1, and the gradient of the mean loss."""
    split, network = labelled(6), linear(1.0)
    F.cross_entropy(network(*split.source.batch(torch.arange(6), None, training=True)), split.labels).backward()
    gradient = network[1].weight.grad.clone()
    list(training_of(network, phase_of(lr=0.1, epochs=1, batch_size=6, **settings), split, None).epochs())
    return network[1].weight.detach(), gradient


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"optimizer": "sgd"}, lambda g: 1 - 0.1 * g),
        ({"optimizer": "sgd", "weight_decay": 0.5}, lambda g: 1 - 0.1 * (g + 0.5)),
        ({"optimizer": "adam"}, lambda g: 1 - 0.1 * g.sign()),
        ({"optimizer": "adam", "weight_decay": 10.0}, lambda g: torch.full_like(g, 0.9)),
        ({"optimizer": "adamw", "weight_decay": 0.5}, lambda g: 1 - 0.1 * 0.5 - 0.1 * g.sign()),
        ({"optimizer": "sgd", "clip_norm": 0.01}, None),
    ],
)
def test_first_step(settings, expected):
    weight, gradient = one_step(settings)
    clear = gradient.abs() > 1e-3  # adam's first step is the sign of the gradient, but for the tiniest
    assert clear.sum() > 100
    if expected is None:  # the gradient of weight and bias together is shortened to 0.01
        assert (weight - 1).norm() / 0.1 == pytest.approx(0.01, rel=0.1)
        assert F.cosine_similarity((1 - weight).flatten(), gradient.flatten(), dim=0) == pytest.approx(1)
    else:
        torch.testing.assert_close(weight[clear], expected(gradient)[clear], rtol=1e-3, atol=1e-4)


def test_momentum():
    """The same gradient twice moves by 1 and then by 1 + momentum of it; logits are far from changing it."""
    network, split = linear(0.0, (0.0, 50.0)), labelled(2)
    before = network[1].bias.detach().clone()
    phase = phase_of(lr=1e-4, epochs=2, batch_size=2, optimizer="sgd", momentum=0.5)
    list(training_of(network, phase, split, None).epochs())
    # half the images are of class 0 with probability 0: the mean gradient of the bias is (−½, ½)
    moved = network[1].bias.detach() - before
    torch.testing.assert_close(moved, 1e-4 * (1 + 1.5) * torch.tensor([0.5, -0.5]), rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({"schedule": "constant"}, [1, 1, 1, 1]),
        ({"schedule": "cosine"}, [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        ({"schedule": "step", "step_epochs": 2}, [1, 1, 0.1, 0.1]),
        ({"schedule": "step", "step_epochs": 1, "step_gamma": 0.5}, [1, 0.5, 0.25, 0.125]),
    ],
)
def test_schedule(settings, rates):
    found = epochs_of(linear(), phase_of(lr=0.001, epochs=4, **settings))
    assert [one.lr_epoch for one in found] == pytest.approx([0.001 * rate for rate in rates])

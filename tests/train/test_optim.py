"""Optimizers and schedules, by what one or a few steps of training do."""

import math
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raysweep.data.augment import Augmentation
from raysweep.nets.layers import layers
from raysweep.recipe import Train
from raysweep.train.batches import batches, epoch_of
from raysweep.train.ddp import World
from raysweep.train.network import assemble
from raysweep.train.optim import optimizer_of, parameter_groups
from tests.devices import DEVICES
from tests.features.small_trials import trial_of
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
        ({"optimizer": "sgd", "nesterov": True, "momentum": 0.5}, lambda g: 1 - 0.1 * 1.5 * g),
        ({"optimizer": "sgd", "warmup_epochs": 1.0}, lambda g: 1 - 0.1 * g),  # of one step
        ({"optimizer": "lion", "weight_decay": 0.5}, lambda g: 1 - 0.1 * 0.5 - 0.1 * g.sign()),
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


# ---- rates by layer, and weight decay ----


def three_layers():
    """Two linear layers with a norm between them; the last is frozen where the caller says so."""
    return nn.Sequential(OrderedDict(first=nn.Linear(4, 3), norm=nn.LayerNorm(3), last=nn.Linear(3, 2)))


def test_rates_fall_from_layer_to_layer():
    network = three_layers()
    optimizer = optimizer_of(Train(layer_decay=0.5, weight_decay=0.1), network, lr=0.8)
    rates = {id(one): group["lr"] for group in optimizer.param_groups for one in group["params"]}
    found = {name: rates[id(one)] for name, one in network.named_parameters()}
    assert found == {
        "last.weight": 0.8, "last.bias": 0.8, "norm.weight": 0.4, "norm.bias": 0.4,
        "first.weight": 0.2, "first.bias": 0.2,
    }  # fmt: skip
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.1}


def test_rates_count_from_the_output_of_the_whole_network():
    """The suffix of a network has its modules in another order, or does not have all."""
    network, distances = nn.Sequential(OrderedDict(last=nn.Linear(3, 2), first=nn.Linear(4, 3))), {}
    for name, distance in {"last": 3, "first": 5}.items():
        distances |= {f"{name}.weight": distance, f"{name}.bias": distance}
    groups = parameter_groups(Train(layer_decay=0.5), network, 1.0, distances)
    assert [group["lr"] for group in groups] == [0.5**3, 0.5**5]
    assert groups[0]["params"][0] is network.last.weight


def test_distances_of_a_split_network_are_those_of_the_whole():
    """small_cnn's last layer is at no distance, whatever the cut."""
    split = assemble(trial_of("small_cnn", 3), World())
    every = [layer.name for layer in layers(split.task.backbone.network)]
    found, trained = split.distances(), [name for name, one in split.suffix.named_parameters() if one.requires_grad]
    assert {found[name] for name in trained} == {0, 1, 2}
    assert found[f"{every[-1]}.weight"] == 0
    assert max(found.values()) == len(every) - 1


def test_rates_by_layer_keep_their_proportion_under_a_schedule():
    """And the rate of an epoch is that of the last layer."""
    phase = phase_of(lr=0.1, epochs=3, schedule="cosine", layer_decay=0.5, optimizer="sgd", momentum=0.0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4), nn.Linear(4, 2))
    run = training_of(network, phase, labelled(8), None)
    rates = [0.1, 0.075, 0.025]
    for expected, found in zip(rates, run.epochs(), strict=True):
        assert found.lr_epoch == pytest.approx(expected)
        one, other = (group["lr"] for group in run.optimizer.param_groups)
        assert other == pytest.approx(one / 2)


def test_norms_and_biases_need_not_decay():
    network = three_layers()
    optimizer = optimizer_of(Train(decay_norms=False, weight_decay=0.1, optimizer="sgd"), network, lr=0.8)
    decays = {id(one): group["weight_decay"] for group in optimizer.param_groups for one in group["params"]}
    found = {name: decays[id(one)] for name, one in network.named_parameters()}
    assert found == {name: 0.1 if name in ("first.weight", "last.weight") else 0.0 for name in found}
    assert {group["lr"] for group in optimizer.param_groups} == {0.8}


def test_without_either_there_is_one_group_as_before():
    (group,) = parameter_groups(Train(), three_layers(), 0.1)
    assert set(group) == {"params"}


# ---- warm-up ----


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(0.0, [1, 1, 1, 1, 1, 1]), (1.0, [1 / 3, 2 / 3, 1, 1, 1, 1]), (1.5, [2 / 9, 4 / 9, 6 / 9, 8 / 9, 1, 1])],
)
def test_warm_up_rises_with_every_step(epochs, expected):
    """Three steps an epoch; plain gradient descent moves by the rate times the gradient."""
    phase = phase_of(lr=1e-2, epochs=2, optimizer="sgd", momentum=0.0, warmup_epochs=epochs)
    network = linear(0.0, (0.0, 50.0))
    moved, before = [], [network[1].bias.detach().clone()]

    def after_step():
        now = network[1].bias.detach().clone()
        moved.append(float(now[1] - before[0][1]))
        before[0] = now

    run = training_of(network, phase, labelled(12), None, after_step=after_step)
    rows = list(run.epochs())
    # images of class 0 have probability 0, the others 1: each of the former moves the bias by rate / 4
    shares = [torch.bincount(run.training.labels[batch.positions], minlength=2)[0] / 4 for batch in both_epochs()]
    steps = [-move / 1e-2 / float(share) for move, share in zip(moved, shares, strict=True) if share]
    assert steps == pytest.approx([rate for rate, share in zip(expected, shares, strict=True) if share], rel=0.01)
    assert [row.lr_epoch for row in rows] == pytest.approx([1e-2 * expected[2], 1e-2 * expected[5]])


def both_epochs():
    return [batch for epoch in (1, 2) for batch in batches(epoch_of(12, 0, epoch, Augmentation()), 4)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop"])
def test_a_skipped_first_step_leaves_nothing_behind(optimizer, device):
    """With float16 steps are skipped until gradients do not overflow; the next one is then the first."""
    found = []
    for first in (math.inf, None):
        network = nn.Linear(64, 64, device=device)
        nn.init.constant_(network.weight, 1.0)
        steps = optimizer_of(Train(optimizer=optimizer, precision="float16"), network, lr=0.1)
        scaler = torch.amp.GradScaler(device, init_scale=1024.0)
        for value in (0.5,) if first is None else (first, 0.5):
            scale = float(scaler.scale(torch.ones((), device=device)))
            for parameter in network.parameters():
                parameter.grad = torch.full_like(parameter, value * scale)
            scaler.step(steps)
            scaler.update()
        found.append(network.weight.detach().cpu())
    assert torch.equal(*found)
    assert (found[0] < 1).all()

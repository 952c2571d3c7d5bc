import itertools
import math

import numpy as np
import pytest
import torch
import torch.multiprocessing
from torch import nn
from torch.nn import functional as F

from raysweep.nets.backbones import UNIT, SmallCnn
from raysweep.recipe import Train
from raysweep.data.sources import Images, Preparation
from raysweep.train.loop import DivergedError, Labelled, World, _batches, evaluate, train

SIDE = 8
CPU = torch.device("cpu")


class Recorder(Images):
    """Images that remember what was asked of them."""

    def __init__(self, *args):
        super().__init__(*args)
        self.asked = []

    def batch(self, positions, flips, training):
        self.asked.append((positions, flips, training))
        return super().batch(positions, flips, training)


def labelled(count, seed=0):
    """Noise, brighter in class 1: hard enough that nothing is perfect after an epoch."""
    random = np.random.RandomState(seed)
    labels = np.arange(count) % 2
    pixels = random.randint(0, 200, (count, 3, SIDE, SIDE)) + 40 * labels[:, None, None, None]
    source = Recorder(pixels.astype(np.uint8), np.arange(count), Preparation(SIDE, UNIT), CPU)
    return Labelled(source, torch.from_numpy(labels))


def linear(weight=None, bias=(0.0, 0.0)):
    """A linear classifier of pixels: no randomness, no statistics."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 2))
    if weight is not None:
        nn.init.constant_(network[1].weight, weight)
        network[1].bias.data = torch.tensor(bias)
    return network


def cnn(seed=0):
    torch.manual_seed(seed)
    return SmallCnn(2)


def rows(network, settings, lr=0.01, seed=0, counts=(12, 6), **more):
    fields = {"epochs": 2, "batch_size": 4} | settings
    return list(train(network, Train(**fields), lr, seed, *map(labelled, counts), **more))


def without_time(found):
    assert all(row["seconds"] > 0 for row in found)
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


# ---- rows ----


def test_loss_decreases():
    found = rows(cnn(), {"epochs": 8}, counts=(40, 10))
    assert [row["epoch"] for row in found] == list(range(1, 9))
    assert found[-1]["train_loss"] < 0.5 * found[0]["train_loss"]
    assert found[-1]["train_accuracy"] > 0.9


@pytest.mark.parametrize("precision", ["none", "bfloat16"])
def test_same_seed_same_rows(precision):
    def run(seed):
        network = nn.Sequential(cnn(), nn.Dropout(0.5))
        return without_time(rows(network, {"autocast": precision}, seed=seed, flip=True))

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_rows_do_not_depend_on_what_happens_between_epochs():
    def run(draws):
        network = nn.Sequential(linear(0.01), nn.Dropout(0.5))
        found = []
        for row in train(network, Train(epochs=3, batch_size=4), 0.1, 0, labelled(12), labelled(6)):
            torch.rand(draws)
            found.append(row)
        return without_time(found)

    assert run(1) == run(2)


def test_without_validation():
    """As in the final fit."""
    found = list(train(linear(), Train(epochs=2, patience=1), 0.01, 0, labelled(6), None))
    assert [set(row) for row in found] == [{"epoch", "train_loss", "lr_epoch", "seconds"}] * 2


def test_train_accuracy_is_measured_like_validation_accuracy():
    """In eval mode, unflipped, on as many images, the same in every epoch and for every seed."""
    asked = []
    for seed in (0, 1):
        training, validation = labelled(20), labelled(6)
        network = nn.Sequential(cnn(), nn.Dropout(0.5))
        for row in train(network, Train(epochs=2, batch_size=8), 0.01, seed, training, validation, flip=True):
            positions, flips, _ = training.source.asked[-1]
            with torch.no_grad():
                scores = network.eval()(*training.source.batch(positions, None, training=False))
            assert row["train_accuracy"] == (scores.argmax(1) == training.labels[positions]).double().mean()
            assert flips is None
            asked.append(positions.tolist())
    assert all(positions == asked[0] for positions in asked)
    assert len(set(asked[0])) == 6


def test_losses_are_means_over_images():
    """Logits (2, 0) for every image: loss ln(1 + e⁻²) for class 0 and 2 more for class 1. Batches of 4 and 3."""
    low = math.log(1 + math.exp(-2))
    (row,) = rows(linear(0.0, (2.0, 0.0)), {"epochs": 1, "eval_batch_size": 2}, lr=0.0, counts=(7, 5))
    assert row["train_loss"] == pytest.approx(low + 2 * 3 / 7)
    assert row["val_loss"] == pytest.approx(low + 2 * 2 / 5)
    assert row["val_accuracy"] == pytest.approx(3 / 5)


def test_label_smoothing_is_for_training_alone():
    """A share of 0.2 over two classes takes 0.1 of class 0's weight to class 1, whose loss is 2 higher, and back."""
    low = math.log(1 + math.exp(-2))
    (row,) = rows(linear(0.0, (2.0, 0.0)), {"epochs": 1, "label_smoothing": 0.2}, lr=0.0, counts=(4, 4))
    assert row["train_loss"] == pytest.approx(0.5 * (low + 0.1 * 2) + 0.5 * (low + 0.9 * 2))
    assert row["val_loss"] == pytest.approx(low + 1)


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_evaluation_counts_each_image_once(size):
    split = labelled(7)
    loss, accuracy = evaluate(linear(0.0, (0.0, 1.0)), split, Train(eval_batch_size=size), World())
    assert torch.cat([positions for positions, _, _ in split.source.asked]).tolist() == list(range(7))
    assert accuracy == pytest.approx(3 / 7)
    assert loss == pytest.approx(math.log(1 + math.exp(-1)) + 4 / 7)


# ---- batches ----


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [(8, 4, [4, 4]), (9, 4, [4, 5]), (10, 4, [4, 4, 2]), (5, 4, [5]), (3, 4, [3]), (1, 4, [1])],
)
def test_sizes_of_batches(count, size, sizes):
    """A last batch of one image is merged with the one before, as batch norm needs two."""
    batches = [batch for batch, _ in _batches(count, size, seed=0, epoch=1, flip=False)]
    assert [len(batch) for batch in batches] == sizes
    assert sorted(torch.cat(batches).tolist()) == list(range(count))


def test_batch_norm_survives_a_remainder_of_one():
    """At 8 × 8 pixels the last feature map is one pixel, so that a batch of one image has one value a channel."""
    assert rows(cnn(), {}, counts=(9, 4))


def test_order_is_drawn_for_each_epoch():
    orders = [
        torch.cat([batch for batch, _ in _batches(50, 8, seed, epoch, flip=False)]).tolist()
        for seed, epoch in ((0, 1), (0, 1), (0, 2), (1, 1))
    ]
    assert orders[0] == orders[1]
    assert all(a != b for a, b in itertools.combinations(orders[1:], 2))


def test_flips_are_drawn_for_each_image_and_epoch():
    epochs = []
    for epoch in (1, 2):
        drawn = torch.zeros(400, dtype=torch.bool)
        for batch, flips in _batches(400, 16, seed=0, epoch=epoch, flip=True):
            assert 0 < flips.sum() < len(batch) or len(batch) < 16
            drawn[batch] = flips
        epochs.append(drawn)
    for drawn in (*epochs, epochs[0] ^ epochs[1]):
        assert 150 < drawn.sum() < 250  # five standard deviations of 10


@pytest.mark.parametrize("flip", [True, False])
def test_training_asks_for_flips(flip):
    training = labelled(12)
    list(train(linear(), Train(epochs=1, batch_size=4), 0.01, 0, training, labelled(4), flip=flip))
    while_training = [flips is not None for _, flips, training in training.source.asked if training]
    assert while_training == [flip] * 3


# ---- steps ----


def one_step(settings, lr=0.1, weight=1.0):
    """Weights before and after a step on one batch, and the gradient of the mean loss."""
    split, network = labelled(6), linear(weight)
    F.cross_entropy(network(*split.source.batch(torch.arange(6), None, training=True)), split.labels).backward()
    gradient = network[1].weight.grad.clone()
    list(train(network, Train(epochs=1, batch_size=6, **settings), lr, 0, split, None))
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
    settings = Train(epochs=2, batch_size=2, optimizer="sgd", momentum=0.5)
    list(train(network, settings, 1e-4, 0, split, None))
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
    found = rows(linear(), {"epochs": 4, **settings}, lr=0.001)
    assert [row["lr_epoch"] for row in found] == pytest.approx([0.001 * rate for rate in rates])


@pytest.mark.parametrize(("patience", "epochs"), [(None, 6), (1, 2), (2, 3)])
def test_patience(patience, epochs):
    """At a learning rate of zero no epoch is better than the first."""
    assert len(rows(linear(), {"epochs": 6, "patience": patience}, lr=0.0)) == epochs


def test_patience_is_for_epochs_in_a_row():
    """At 1e-3 this network still improves, so patience never runs out."""
    assert len(rows(linear(0.0), {"epochs": 6, "patience": 1, "optimizer": "sgd"}, lr=1e-4)) == 6


def test_divergence():
    with pytest.raises(DivergedError, match=r"loss is (inf|nan) in epoch \d: lower lr=1e\+38 or set train\.clip_norm"):
        rows(linear(), {"epochs": 5, "optimizer": "sgd"}, lr=1e38)


# ---- many ranks ----

CASES = {
    "batch norm trains": {"batch_size": 5, "clip_norm": 1.0, "label_smoothing": 0.1},
    "batch norm of frozen layers": {"batch_size": 5},
    "bfloat16": {"batch_size": 5, "autocast": "bfloat16"},
}
COUNTS = (11, 5)
"""Batches of 5 and 6; shares of 3 and 2 images. Validation: 3 and 2."""


def run_case(name, world):
    network = cnn()
    if name == "batch norm of frozen layers":
        network.stage1.requires_grad_(False)
    settings = Train(epochs=3, **CASES[name])
    splits = map(labelled, COUNTS)
    found = list(train(network, settings, 0.01, 0, *splits, batch_norm="training", flip=True, world=world))
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found], network.state_dict()


def rank_main(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results = {}
    for name in CASES:
        try:
            results[name] = run_case(name, World(rank, 2))
        except RuntimeError as error:  # the same on both ranks
            results[name] = str(error)
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What each of two processes makes of every case; they are started once."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(rank_main, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("batch norm trains", 1e-4),
        ("batch norm of frozen layers", 1e-4),
        ("bfloat16", 0.05),
    ],
)
def test_two_ranks_are_one(two_ranks, name, tolerance):
    expected, tensors = run_case(name, World())
    for results in two_ranks:
        assert not isinstance(results[name], str), results[name]
        found, state = results[name]
        for row, other in zip(found, expected, strict=True):
            assert row == pytest.approx(other, abs=tolerance)
        for key, value in tensors.items():
            torch.testing.assert_close(state[key].float(), value.float(), rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_shares_are_a_partition(size):
    shares = [World(rank, size).share(torch.arange(7)).tolist() for rank in range(size)]
    assert sorted(itertools.chain(*shares)) == list(range(7))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1

"""A network in two sides, which together are the whole."""

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from raysweep.data.preparation import Preparation
from raysweep.data.sources import Images
from raysweep.nets.layers import layers, set_modes
from raysweep.nets.scratch import SmallCnn
from raysweep.nets.zoo import UNIT
from tests.nets.small_networks import BATCH, Net, Untraceable, changed, cut_at, images, lively, names, snapshot

RESNET18 = [1, 2, 3, 7, "layer3", "layer4.1", "all", ("layer1", "fc")]


def build(name):
    torch.manual_seed(0)
    if name == "vit":
        return timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=10), "head", 64
    if name.startswith("tf_"):
        return timm.create_model(name, num_classes=10), "classifier", 32
    network = torchvision.models.get_model(name, num_classes=10)
    return network, layers(network)[-1].name, 32


@pytest.mark.parametrize(
    ("name", "at"),
    [
        *(("resnet18", at) for at in RESNET18),
        *(("tf_efficientnet_lite0", at) for at in (1, 4, 21)),
        *(("vit", at) for at in (1, 2, 5, "blocks.1", "all")),
        *(pytest.param("densenet121", at, marks=pytest.mark.slow) for at in (1, 2, 4, 41, "features.denseblock4")),
        *(pytest.param("mobilenet_v3_small", at, marks=pytest.mark.slow) for at in (1, 6, 20)),
        *(pytest.param("shufflenet_v2_x0_5", at, marks=pytest.mark.slow) for at in (1, 6, 20)),
    ],
)
def test_prefix_and_suffix_are_the_whole(name, at):
    network, head, size = build(name)
    lively(network)
    x = images(size)
    with torch.no_grad():
        expected = network(x)
        cut, trained = cut_at(network, at, [head], size)
        stored = (x,) if cut.prefix is None else cut.prefix.eval()(x)
        got = cut.suffix.eval()(*stored)
    assert not cut.whole
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert [tuple(value.shape) for value in stored] == [(BATCH, *shape) for shape in cut.shapes]
    assert cut.numbers_per_image == sum(value[0].numel() for value in stored)
    assert (cut.prefix is None) == (at in ("all", ("layer1", "fc")) and cut.frontier[0] in ("x", "images"))
    learning = {key for key, value in network.named_parameters() if value.requires_grad}
    assert learning == set(names(trained))
    assert learning <= {key for key, _ in cut.suffix.named_parameters()}
    if cut.prefix is not None:
        assert not learning & {key for key, _ in cut.prefix.named_parameters()}
    if not isinstance(at, tuple) and name != "vit":  # nothing frozen is downstream of what trains
        assert learning == {key for key, _ in cut.suffix.named_parameters()}


@pytest.mark.parametrize(
    ("at", "shapes"),
    [
        (1, [(512,)]),  # after pooling, where it is small
        (3, [(512, 1, 1), (512, 1, 1)]),  # before layer4.1.conv2: its input and the block's own, to be added later
        ("layer4.1", [(512, 1, 1)]),
        ("layer3", [(128, 4, 4)]),
    ],
)
def test_frontier_of_resnet18(at, shapes):
    cut, _ = cut_at(torchvision.models.resnet18(), at, ["fc"])
    assert list(cut.shapes) == shapes


class Dense(nn.Module):
    """Two channels from each convolution, which sees all channels before it: DenseNet in small."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1)
        self.c, self.fc = nn.Conv2d(4, 2, 1), nn.Linear(6 * 8 * 8, 4)

    def forward(self, x):
        a = self.a(x)
        b = self.b(a)
        c = self.c(torch.cat([a, b], 1))
        return self.fc(torch.cat([a, b, c], 1).flatten(1))


@pytest.mark.parametrize(
    ("network", "at", "numbers"),
    [
        # what crosses as late as possible: cat(a, b), a and b, 4 + 2 + 2 channels of 8 × 8; a and b suffice
        (Dense(), 2, 4 * 8 * 8),
        (Dense(), 1, 6 * 8 * 8),
        (Net(nn.AdaptiveAvgPool2d(1), 2), 1, 2),  # late is smaller: 2 numbers, not 2 × 8 × 8
        (Net(nn.Upsample(scale_factor=2), 2 * 16 * 16), 1, 2 * 8 * 8),  # early is smaller
        (Net(nn.MaxPool2d(2), 64, channels=4), 1, 4 * 4 * 4),
    ],
)
def test_frontier_stores_as_little_as_possible(network, at, numbers):
    cut, _ = cut_at(network, at, ["fc"], size=8)
    assert cut.numbers_per_image == numbers
    x = images(8)
    torch.testing.assert_close(cut.suffix.eval()(*cut.prefix(x)), network.eval()(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_shapes_computed_from_the_batch_follow_it(batch):
    class Reshapes(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 2, 1), nn.Linear(64, 4)

        def forward(self, x):
            x = self.conv(x)
            batch, channels, height, width = x.shape
            tokens = x.reshape(batch * channels, height * width)
            return self.fc(tokens).reshape(batch, channels, -1).mean(1)

    network = Reshapes()
    x = images(8, batch)
    cut, _ = cut_at(network, 1, ["fc"], size=8)
    torch.testing.assert_close(cut.suffix(*cut.prefix(x)), network(x), rtol=1e-5, atol=1e-5)


def test_dropout_between_frozen_layers_stays_with_them():
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Dropout(0.5), nn.Conv2d(2, 2, 1), nn.Flatten(), nn.Linear(128, 4))
    cut, _ = cut_at(network, 1, ["4"], size=8)
    assert [name for name, module in cut.prefix.named_modules() if isinstance(module, nn.Dropout)] == ["1"]
    assert not [module for module in cut.suffix.modules() if isinstance(module, nn.Dropout)]


@pytest.mark.parametrize("batch_norm", ["frozen", "training"])
def test_a_step_leaves_the_frozen_prefix_alone(batch_norm):
    """Weights never change; statistics of the prefix drift under `training` alone, as in `model.train()`."""
    network = lively(SmallCnn(4))
    cut, _ = cut_at(network, 3, ["classifier"])
    before, frozen = snapshot(network), snapshot(cut.prefix)
    pixels = np.random.RandomState(0).randint(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    source = Images(pixels, np.arange(6), Preparation((32, 32), 32, UNIT), torch.device("cpu"), cut.prefix, batch_norm)
    learning = [value for value in cut.suffix.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.1, weight_decay=0.1)
    set_modes(cut.suffix, batch_norm)
    F.cross_entropy(cut.suffix(*source.batch(torch.arange(6), None, training=True)), torch.arange(6) % 4).backward()
    optimizer.step()
    source.batch(torch.arange(6), None, training=False)  # evaluation moves nothing
    statistics = {f"stage{n}.1.{key}" for n in (1, 2) for key in ("running_mean", "running_var", "num_batches_tracked")}
    assert changed(cut.prefix, frozen) == (statistics if batch_norm == "training" else set())
    trained = {"classifier.weight", "classifier.bias", "stage3.1.weight", "stage3.1.bias", "stage3.0.weight"}
    assert trained <= changed(network, before)
    assert all(value.grad is None for value in cut.prefix.parameters())


def test_untraceable_network_runs_whole():
    network = lively(Untraceable(4))
    before = snapshot(network)
    cut, trained = cut_at(network, 1, ["classifier"])
    assert (cut.whole, cut.prefix, cut.suffix, cut.shapes) == (True, None, network, ((3, 32, 32),))
    set_modes(cut.suffix, "frozen")
    optimizer = torch.optim.SGD([value for value in network.parameters() if value.requires_grad], lr=0.1)
    F.cross_entropy(cut.suffix(images()), torch.arange(BATCH) % 4).backward()
    optimizer.step()
    assert changed(network, before) == set(names(trained)) == {"classifier.weight", "classifier.bias"}


# ---- convolutions on small maps ----


class Maps(nn.Sequential):
    """Frozen `first`, then convolutions whose outputs have 16, 9, 6, 4, 4 and 1 pixels, the last but one 1×1."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 2, 3, padding=1)
        self.of_16 = nn.Conv2d(2, 2, 3, stride=2, padding=1)
        self.of_9 = nn.Conv2d(2, 2, 2)
        self.of_6 = nn.Conv2d(2, 2, (2, 1))
        self.of_4 = nn.Conv2d(2, 2, (1, 2))
        self.point = nn.Conv2d(2, 2, 1)
        self.of_1 = nn.Conv2d(2, 2, 2)
        self.flat, self.fc = nn.Flatten(), nn.Linear(2, 4)


def test_small_maps_are_those_of_at_most_nine_pixels():
    """Of the suffix alone: the maps of what is frozen before it stay as they are."""
    network = Maps()
    cut, _ = cut_at(network, "of_16", ["fc"], size=8)
    assert cut.small_maps == ("of_9", "of_6", "of_4", "point", "of_1")
    cut, _ = cut_at(network, "of_1", ["fc"], size=8)
    assert cut.small_maps == ("of_1",)
    cut, _ = cut_at(network, "all", ["fc"], size=8)
    assert cut.small_maps == ("of_9", "of_6", "of_4", "point", "of_1")


def test_a_convolution_of_a_small_and_a_large_map_is_none_of_small_maps():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(12, 4)

        def forward(self, x):
            return self.fc(self.conv(F.avg_pool2d(self.conv(x), 4)).flatten(1))

    cut, _ = cut_at(Twice(), "all", ["fc"], size=8)
    assert not cut.whole
    assert cut.small_maps == ()


def test_a_kernel_larger_than_the_map_is_refused_by_the_network_itself():
    network = Net(nn.Sequential(nn.MaxPool2d(4), nn.Conv2d(2, 2, 3)), 2)
    cut, _ = cut_at(network, "all", ["fc"], size=8)
    assert (cut.whole, cut.small_maps) == (True, ())
    with pytest.raises(RuntimeError, match=r"[Kk]ernel size"):
        cut.suffix(images(8))


# ---- copies ----


def test_an_own_suffix_is_a_copy_in_which_what_trains_asks_for_gradients():
    """Also after another depth was cut from the same network."""
    network = SmallCnn(4)
    deep, trained = cut_at(network, 3, ["classifier"])
    shallow, _ = cut_at(network, 1, ["classifier"])
    asking = [{key for key, p in each.own_suffix().named_parameters() if p.requires_grad} for each in (deep, shallow)]
    assert asking == [set(names(trained)), {"classifier.weight", "classifier.bias"}]
    before, own = snapshot(network), deep.own_suffix()
    with torch.no_grad():
        own.get_parameter("classifier.weight").zero_()
    assert changed(network, before) == set()

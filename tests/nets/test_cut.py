import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from raysweep.nets import backbones
from raysweep.nets import cut as depth
from raysweep.nets.backbones import UNIT, SmallCnn
from raysweep.recipe import Model, RecipeError
from raysweep.data.sources import Images, Preparation

BATCH = 5
"""Neither of depth.PROBES."""


def images(size=32, batch=BATCH):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def lively(network):
    """Random batch-norm statistics and affine parameters: at their defaults much would go unnoticed."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return network.eval()


def cut_at(network, at, head, size=32):
    trained = depth.select(network, at, head)
    return depth.cut(network, trained, size), trained


def names(trained):
    return [name for layer in trained for name in layer.parameters]


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module, before):
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


class Net(nn.Module):
    """Frozen `conv`, then whatever `between` does, then the trainable `fc`."""

    def __init__(self, between, features, channels=2):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1)
        self.between = between
        self.fc = nn.Linear(features, 4)

    def forward(self, x):
        return self.fc(self.between(self.conv(x)).flatten(1))


# ---- layers ----


@pytest.fixture(scope="module")
def resnet50():
    return backbones.outline("resnet50", Model(weights="none"), 100).network


@pytest.mark.parametrize(("at", "tensors"), [(1, 2), (3, 5), (6, 10), (12, 19), (15, 25), (25, 40)])
def test_published_table_of_resnet50(resnet50, at, tensors):
    """The counts of the experiment that DESIGN.md cites."""
    assert len(names(depth.select(resnet50, at, ["fc"]))) == tensors


def test_every_parameter_belongs_to_one_layer(resnet50):
    owned = names(depth.layers(resnet50))
    assert sorted(owned) == sorted(name for name, _ in resnet50.named_parameters())
    # 1 stem + 16 blocks of 3 convolutions, each with its norm; 4 shortcuts; fc
    assert len(depth.layers(resnet50)) == 2 * (1 + 16 * 3) + 4 + 1


def test_shortcut_projection_counts_as_one(resnet50):
    shortcuts = [layer for layer in depth.layers(resnet50) if "downsample" in layer.name]
    assert [layer.name for layer in shortcuts] == [f"layer{stage}.0.downsample" for stage in (1, 2, 3, 4)]
    assert shortcuts[0].parameters == tuple(f"layer1.0.downsample.{key}" for key in ("0.weight", "1.weight", "1.bias"))


def test_parameters_of_the_root_are_a_layer():
    network = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1)
    assert depth.layers(network)[0] == depth.Layer("", ("cls_token", "pos_embed"))


@pytest.mark.parametrize(
    ("at", "first", "count"),
    [
        (1, "classifier", 1),
        ("head", "classifier", 1),
        (2, "stage3.1", 2),
        ("all", "stage1.0", 7),
        ("stage2", "stage2.0", 5),
        ("stage2.1", "stage2.1", 4),
        (("stage1", "head"), "stage1.0", 3),
        (("*.0",), "stage1.0", 3),
        (("stage?.1", "classifier"), "stage1.1", 4),
        (("stage1", "stage1.0"), "stage1.0", 2),
    ],
)
def test_select(at, first, count):
    trained = depth.select(SmallCnn(10), at, ["classifier"])
    assert (trained[0].name, len(trained)) == (first, count)


@pytest.mark.parametrize(
    ("at", "match"),
    [
        (
            8,
            r'grid\.depth=8 is deeper .* has 7 layers \(stage1\.0 \.\.\. classifier\); .* 1 .* to 7, or "all"',
        ),
        ("stage4", r"grid\.depth=stage4 is no module of the network; did you mean stage"),
        (
            ("stage1", "clasifier"),
            r"grid\.depth=stage1\+clasifier: no layer of the network matches clasifier; did you mean classifier\?",
        ),
        (("stage9.*",), r"no layer of the network matches stage9\.\*"),
    ],
)
def test_depth_that_the_network_has_not(at, match):
    with pytest.raises(RecipeError, match=match):
        depth.select(SmallCnn(10), at, ["classifier"])


def test_a_name_is_no_prefix_of_another():
    network = nn.Sequential()
    network.add_module("fc1", nn.Linear(2, 2))
    network.add_module("fc10", nn.Linear(2, 2))
    assert [layer.name for layer in depth.select(network, ("fc1",), ["fc10"])] == ["fc1"]


# ---- the cut ----

RESNET18 = [1, 2, 3, 7, "layer3", "layer4.1", "all", ("layer1", "fc")]


def build(name):
    torch.manual_seed(0)
    if name == "vit":
        return timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=10), "head", 64
    if name.startswith("tf_"):
        return timm.create_model(name, num_classes=10), "classifier", 32
    network = torchvision.models.get_model(name, num_classes=10)
    return network, depth.layers(network)[-1].name, 32


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
    flat = [shape if len(shape) == 3 or at != 1 else shape[:1] for shape in cut.shapes]
    assert sorted(flat) == sorted(shapes)


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
    torch.testing.assert_close(cut.suffix.eval()(*cut.prefix(x)), network.eval()(x))


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
    torch.testing.assert_close(cut.suffix(*cut.prefix(x)), network(x))


# ---- in place ----


class InPlace(nn.Module):
    """`conv` and `body` are frozen; what `change` does to the body's output, perhaps in place, is not."""

    def __init__(self, change):
        super().__init__()
        self.conv, self.body = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1)
        self.branch, self.dropout = nn.Conv2d(2, 2, 1), nn.Dropout(0.5, inplace=True)
        self.fc = nn.Linear(2 * 8 * 8, 4)
        self.change = change

    def forward(self, x):
        x = self.body(self.conv(x))
        return self.fc(self.change(self, x).flatten(1))


def iadd(net, x):
    x += net.branch(x)
    return x


def imul(net, x):
    x *= net.branch(x)
    return x


def isub(net, x):
    x -= net.branch(x)
    return x


CHANGES = {
    "+=": iadd,
    "*=": imul,
    "-=": isub,
    "add_": lambda net, x: x.add_(net.branch(x)),
    "relu_": lambda net, x: torch.relu_(net.branch(x) + torch.relu_(x)),
    "functional relu_": lambda net, x: net.branch(x) + F.relu_(x),
    "relu by position": lambda net, x: net.branch(x) + F.relu(x, True),
    "dropout": lambda net, x: net.branch(x) + net.dropout(x),
    "functional dropout": lambda net, x: net.branch(x) + F.dropout(x, 0.5, net.training, inplace=True),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_in_place_operations_leave_the_store_alone(change):
    network = InPlace(change).eval()
    x = images(8)
    with torch.no_grad():
        expected = network(x)
        cut, _ = cut_at(network, ("branch", "fc"), ["fc"], size=8)
        stored = cut.prefix(x)
    before = [value.clone() for value in stored]
    cut.suffix.train()(*stored)
    torch.testing.assert_close(stored, tuple(before), rtol=0, atol=0)
    torch.testing.assert_close(cut.suffix.eval()(*stored), expected)


@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.Hardswish(inplace=True)])
def test_in_place_activations_do_what_they_did(activation):
    network = Net(activation, 2 * 8 * 8)
    x = images(8)
    expected = network(x)
    cut, _ = cut_at(network, 1, ["fc"], size=8)
    torch.testing.assert_close(cut.suffix(*cut.prefix(x)), expected)


def statement(net, x):
    x.add_(1.0)
    return net.branch(x)


def statement_of_module(net, x):
    net.relu(x)
    return net.branch(x)


NEEDED = {
    "method": statement,
    "module": statement_of_module,
    "of a part": lambda net, x: (x[:, 0].mul_(2.0), net.branch(x))[1],
    "seen later": lambda net, x: x.add_(1.0) + net.branch(x),
    "module, seen later": lambda net, x: net.relu(x) + net.branch(x),
    "without counterpart": lambda net, x: net.branch(x) + x.fill_(2.0),
}


@pytest.mark.parametrize("change", NEEDED.values(), ids=NEEDED)
def test_what_is_needed_in_place_is_not_lost(change):
    """Such a network runs whole, every time it is cut."""
    network = InPlace(change).eval()
    network.relu = nn.ReLU(inplace=True)
    x = images(8)
    with torch.no_grad():
        expected = network(x)
        for _ in range(2):
            cut, _ = cut_at(network, ("branch", "fc"), ["fc"], size=8)
            assert cut.whole
            torch.testing.assert_close(cut.suffix(x), expected, rtol=0, atol=0)
    assert not network.training


# ---- modes ----


class FunctionalDropout(Net):
    def forward(self, x):
        return self.fc(F.dropout(self.conv(x), p=0.5, training=self.training).flatten(1))


@pytest.mark.parametrize(
    "network", [FunctionalDropout(None, 128), Net(nn.Dropout(0.5), 128)], ids=["functional", "module"]
)
def test_dropout_before_the_head_belongs_to_the_suffix(network):
    network.eval()
    x = images(8)
    expected = network(x)
    cut, _ = cut_at(network, 1, ["fc"], size=8)
    stored = cut.prefix.train()(x)
    assert torch.equal(stored[0], cut.prefix.train()(x)[0])
    depth.set_modes(cut.suffix, "frozen")
    assert not torch.allclose(cut.suffix(*stored), cut.suffix(*stored))
    torch.testing.assert_close(cut.suffix.eval()(*stored), expected)


def test_dropout_between_frozen_layers_stays_with_them():
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Dropout(0.5), nn.Conv2d(2, 2, 1), nn.Flatten(), nn.Linear(128, 4))
    cut, _ = cut_at(network, 1, ["4"], size=8)
    assert [name for name, module in cut.prefix.named_modules() if isinstance(module, nn.Dropout)] == ["1"]
    assert not [module for module in cut.suffix.modules() if isinstance(module, nn.Dropout)]


@pytest.mark.parametrize(("batch_norm", "drifting"), [("frozen", set()), ("training", {"stage2.1", "stage3.1"})])
def test_statistics_of_frozen_batch_norm_drift_only_when_asked(batch_norm, drifting):
    """Only stage1 and the classifier train; frozen batch norm is downstream of stage1, in the suffix."""
    network = lively(SmallCnn(4))
    cut, _ = cut_at(network, ("stage1", "classifier"), ["classifier"])
    before = snapshot(network)
    depth.set_modes(cut.suffix, batch_norm)
    cut.suffix(images())
    moved = {name.rpartition(".")[0] for name in changed(network, before)}
    assert moved == drifting | {"stage1.1"}


def test_batch_norm_without_parameters_is_frozen():
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2, affine=False), nn.Flatten(), nn.Linear(128, 4))
    depth.freeze(network, depth.select(network, 1, ["3"]))
    depth.set_modes(network, "frozen")
    assert [module.training for module in network] == [False, False, True, True]


@pytest.mark.parametrize("batch_norm", ["frozen", "training"])
def test_a_step_leaves_the_frozen_prefix_alone(batch_norm):
    """Weights never change; statistics of the prefix drift under `training` alone, as in `model.train()`."""
    network = lively(SmallCnn(4))
    cut, _ = cut_at(network, 3, ["classifier"])
    before, frozen = snapshot(network), snapshot(cut.prefix)
    pixels = np.random.RandomState(0).randint(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    source = Images(pixels, np.arange(6), Preparation(32, UNIT), torch.device("cpu"), cut.prefix, batch_norm)
    learning = [value for value in cut.suffix.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.1, weight_decay=0.1)
    depth.set_modes(cut.suffix, batch_norm)
    F.cross_entropy(cut.suffix(*source.batch(torch.arange(6), None, training=True)), torch.arange(6) % 4).backward()
    optimizer.step()
    source.batch(torch.arange(6), None, training=False)  # evaluation moves nothing
    statistics = {f"stage{n}.1.{key}" for n in (1, 2) for key in ("running_mean", "running_var", "num_batches_tracked")}
    assert changed(cut.prefix, frozen) == (statistics if batch_norm == "training" else set())
    trained = {"classifier.weight", "classifier.bias", "stage3.1.weight", "stage3.1.bias", "stage3.0.weight"}
    assert trained <= changed(network, before)
    assert all(value.grad is None for value in cut.prefix.parameters())


# ---- what cannot be traced ----


class Untraceable(SmallCnn):
    def forward(self, x):
        if x.sum() > 0:  # control flow on values
            x = x + 1
        return super().forward(x)


def test_untraceable_network_runs_whole():
    network = lively(Untraceable(4))
    before = snapshot(network)
    cut, trained = cut_at(network, 1, ["classifier"])
    assert (cut.whole, cut.prefix, cut.suffix, cut.shapes) == (True, None, network, ((3, 32, 32),))
    depth.set_modes(cut.suffix, "frozen")
    optimizer = torch.optim.SGD([value for value in network.parameters() if value.requires_grad], lr=0.1)
    F.cross_entropy(cut.suffix(images()), torch.arange(BATCH) % 4).backward()
    optimizer.step()
    assert changed(network, before) == set(names(trained)) == {"classifier.weight", "classifier.bias"}


def test_freeze_undoes_an_earlier_depth():
    network = SmallCnn(4)
    depth.freeze(network, depth.select(network, 1, ["classifier"]))
    depth.freeze(network, depth.select(network, "all", ["classifier"]))
    assert all(value.requires_grad for value in network.parameters())


@pytest.mark.parametrize("kind", [SmallCnn, Untraceable])
def test_cutting_keeps_the_mode_of_the_network(kind):
    network = kind(4).eval()
    cut_at(network, 1, ["classifier"])
    assert not any(module.training for module in network.modules())

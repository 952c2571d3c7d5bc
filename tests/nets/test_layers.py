"""What depth counts, and what trains at one."""

import pytest
import timm
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import nn

from raysweep.nets import backbones
from raysweep.nets.layers import Layer, freeze, layers, select, set_modes
from raysweep.nets.scratch import SmallCnn
from raysweep.recipe import Model, RecipeError
from tests.nets.small_networks import changed, cut_at, images, lively, names, snapshot


@pytest.fixture(scope="module")
def resnet50():
    return backbones.outline("resnet50", Model(weights="none"), 100).network


@pytest.mark.parametrize(("at", "tensors"), [(1, 2), (3, 5), (6, 10), (12, 19), (15, 25), (25, 40)])
def test_published_table_of_resnet50(resnet50, at, tensors):
    """The counts of the experiment that the preset resnet50-cifar100-layers follows."""
    assert len(names(select(resnet50, at, ["fc"]))) == tensors


def test_every_parameter_belongs_to_one_layer(resnet50):
    owned = names(layers(resnet50))
    assert sorted(owned) == sorted(name for name, _ in resnet50.named_parameters())
    # 1 stem + 16 blocks of 3 convolutions, each with its norm; 4 shortcuts; fc
    assert len(layers(resnet50)) == 2 * (1 + 16 * 3) + 4 + 1


def test_shortcut_projection_counts_as_one(resnet50):
    shortcuts = [layer for layer in layers(resnet50) if "downsample" in layer.name]
    assert [layer.name for layer in shortcuts] == [f"layer{stage}.0.downsample" for stage in (1, 2, 3, 4)]
    assert shortcuts[0].parameters == tuple(f"layer1.0.downsample.{key}" for key in ("0.weight", "1.weight", "1.bias"))


def test_parameters_of_the_root_are_a_layer():
    network = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1)
    assert layers(network)[0] == Layer("", ("cls_token", "pos_embed"))


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
    trained = select(SmallCnn(10), at, ["classifier"])
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
        select(SmallCnn(10), at, ["classifier"])


def test_a_name_is_no_prefix_of_another():
    network = nn.Sequential()
    network.add_module("fc1", nn.Linear(2, 2))
    network.add_module("fc10", nn.Linear(2, 2))
    assert [layer.name for layer in select(network, ("fc1",), ["fc10"])] == ["fc1"]


def test_freeze_undoes_an_earlier_depth():
    network = SmallCnn(4)
    freeze(network, select(network, 1, ["classifier"]))
    freeze(network, select(network, "all", ["classifier"]))
    assert all(value.requires_grad for value in network.parameters())


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, BatchNormAct2d, nn.SyncBatchNorm, SyncBatchNormAct])
def test_batch_norm_without_parameters_is_frozen(kind):
    """Also as one of several GPUs has it."""
    network = nn.Sequential(nn.Conv2d(3, 2, 1), kind(2, affine=False), nn.Flatten(), nn.Linear(128, 4))
    freeze(network, select(network, 1, ["3"]))
    set_modes(network, "frozen")
    assert [module.training for module in network] == [False, False, True, True]


@pytest.mark.parametrize(("batch_norm", "drifting"), [("frozen", set()), ("training", {"stage2.1", "stage3.1"})])
def test_statistics_of_frozen_batch_norm_drift_only_when_asked(batch_norm, drifting):
    """Only stage1 and the classifier train; frozen batch norm is downstream of stage1, in the suffix."""
    network = lively(SmallCnn(4))
    cut, _ = cut_at(network, ("stage1", "classifier"), ["classifier"])
    before = snapshot(network)
    set_modes(cut.suffix, batch_norm)
    cut.suffix(images())
    moved = {name.rpartition(".")[0] for name in changed(network, before)}
    assert moved == drifting | {"stage1.1"}

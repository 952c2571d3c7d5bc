"""Networks by name, built or outlined."""

import pytest
import torch
from torch import nn

from raysweep.nets.backbones import build, outline
from raysweep.nets.heads import reset_head
from raysweep.nets.layers import layers
from raysweep.nets.zoo import IMAGENET
from raysweep.recipe import Head, Model

NONE = Model(weights="none")


LITE0 = "tf_efficientnet_lite0"


def same(first, second):
    return all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


@pytest.mark.parametrize(
    ("name", "head", "package"),
    [
        ("resnet18", "fc", "torchvision"),  # torchvision's where both have one
        ("timm/resnet18", "fc", "timm"),
        (LITE0, "classifier", "timm"),
        ("mobilenet_v3_small", "classifier.3", "torchvision"),
        ("squeezenet1_1", "classifier.1", "torchvision"),  # a convolution
        ("timm/resnet18.a1_in1k", "fc", "timm"),
    ],
)
def test_known_networks(name, head, package):
    built = outline(name, NONE, 7)
    assert built.head == (head,)
    assert type(built.network).__module__.partition(".")[0] == package
    classifier = built.network.get_submodule(head)
    assert (classifier.out_features if isinstance(classifier, nn.Linear) else classifier.out_channels) == 7


@pytest.mark.parametrize(("name", "statistics"), [("resnet18", IMAGENET.mean), (LITE0, (0.5, 0.5, 0.5))])
def test_statistics_are_those_of_the_weights(name, statistics):
    assert outline(name, NONE, 7).statistics.mean == statistics


def test_weights_of_another_classifier_bring_it_along():
    """A tag of ImageNet-21k has 21,841 outputs: a kept classifier has as many."""
    built = outline("timm/vit_tiny_patch16_224", Model(weights="augreg_in21k", head=Head(kind="keep")), 7)
    assert built.network.head.out_features == 21_843


def test_everything_random_follows_the_seed():
    first, again, other = (build("small_cnn", NONE, 4, seed).network for seed in (1, 1, 2))
    assert same(first, again)
    assert not torch.equal(first.stage1[0].weight, other.stage1[0].weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    reset_head(build("small_cnn", NONE, 4, seed=1).network, ("classifier",), seed=3)
    assert torch.equal(torch.rand(3), expected)


def test_without_loading_nothing_is_read():
    for weights in ("nowhere.pth", "IMAGENET1K_V1"):
        build("resnet18", Model(weights=weights, head=Head(kind="keep")), 7, seed=0, load=False)


@pytest.mark.parametrize("name", ["small_cnn", "resnet50", LITE0])
def test_outline_holds_no_memory(name):
    values = outline(name, Model(), 7).network.state_dict().values()
    assert {value.device.type for value in values} == {"meta"}


def test_outline_has_the_layers_of_the_network():
    built, outlined = (make(LITE0, NONE, 7) for make in (lambda *a: build(*a, seed=0), outline))
    assert layers(built.network) == layers(outlined.network)

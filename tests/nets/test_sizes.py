"""Which image sizes networks take, and networks that are built for another."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

from raysweep.nets import sizes
from raysweep.nets.backbones import build, outline
from raysweep.recipe import Model, RecipeError

NONE = Model(weights="none")
VIT = "timm/vit_tiny_patch16_224"


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("cnn_1m", 29, "takes images of 30 pixels or more, not of 29; set data.image_size=30"),
        ("alexnet", 32, "takes images of 63 pixels or more, not of 32; set data.image_size=63"),
        ("vit_b_16", 32, "takes images of 224 pixels alone, not of 32; set data.image_size=224"),
        ("vit_b_16", 256, "takes images of 224 pixels alone, not of 256; set data.image_size=224"),
    ],
)
def test_a_size_that_is_not_taken(name, size, said):
    with pytest.raises(RecipeError) as caught:
        sizes.check(name, "none", size)
    assert str(caught.value) == f"data.image_size: {name} {said}"


def test_sizes_that_are_taken_without_a_rule(monkeypatch):
    monkeypatch.setattr(sizes, "_takes", lambda name, weights, size: size in (96, 224, 384))
    with pytest.raises(RecipeError, match=r"of such sizes as 96, 224, 384 pixels, .* data\.image_size=224$"):
        sizes.check("resnet18", "none", 100)


def test_of_a_network_that_runs_nowhere_without_memory_nothing_is_said(monkeypatch):
    monkeypatch.setattr(sizes, "_takes", lambda *_: False)
    sizes.check("resnet18", "none", 100)


@pytest.mark.parametrize(
    ("name", "weights", "size", "built"),
    [
        ("small_cnn", "none", 64, None),
        ("resnet18", "pretrained", 64, None),
        ("timm/resnet18", "pretrained", 64, None),
        (VIT, "pretrained", 64, 64),
        (VIT, "pretrained", 224, None),  # its own
        ("test_vit", "pretrained", 64, None),  # takes other sizes as it is
        (VIT, "pretrained", None, None),
        ("timm/cait_xxs24_224", "none", 64, 64),
        ("timm/cait_xxs24_224", "pretrained", 64, None),  # timm has no way to bring its positions to another size
    ],
)
def test_what_a_network_is_built_for(name, weights, size, built):
    assert sizes.built_for(name, weights, size) == built


@pytest.mark.parametrize("name", [VIT, "test_vit"])
def test_a_network_built_for_another_size(name):
    network = build(name, NONE, 3, 0, 64).network.eval()
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 3)
    outlined = outline(name, NONE, 3, 64).network.state_dict()
    assert {key: value.shape for key, value in network.state_dict().items()} == {
        key: value.shape for key, value in outlined.items()
    }


def test_positions_of_weights_are_resampled_as_timm_does(tmp_path):
    trained = timm.create_model("vit_tiny_patch16_224").state_dict()
    save_file(trained, tmp_path / "mine.safetensors")
    own = build(VIT, Model(weights=str(tmp_path / "mine.safetensors")), 3, 0, 64).network.state_dict()
    expected = resample_abs_pos_embed(trained["pos_embed"], (4, 4), num_prefix_tokens=1)
    assert expected.shape != trained["pos_embed"].shape
    torch.testing.assert_close(own["pos_embed"], expected)
    assert torch.equal(own["patch_embed.proj.weight"], trained["patch_embed.proj.weight"])

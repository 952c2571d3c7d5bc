"""What people save: prefixes, wrappers, other heads, averages, objects, and what does not fit."""

import argparse
import copy
import logging
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn
from torch.optim.swa_utils import AveragedModel

from raysweep.nets import checkpoints
from raysweep.nets.backbones import build, check_weights_file
from raysweep.nets.scratch import SmallCnn
from raysweep.recipe import Head, Model, RecipeError

TRAINED = SmallCnn(33)
STATE = TRAINED.state_dict()
BODY = {key: value for key, value in STATE.items() if not key.startswith("classifier")}


def under(prefix, state=STATE):
    return {f"{prefix}{key}": value for key, value in state.items()}


def average(state=STATE):
    """Other values under the same names."""
    return {key: torch.zeros_like(value) for key, value in state.items()}


def inside(state=STATE):
    """As where a part of the network was compiled."""
    return {key.replace("stage1.", "stage1._orig_mod."): value for key, value in state.items()}


NAMESPACE = argparse.Namespace(lr=0.1)
SAVED = {
    "plain": STATE,
    "data parallel": under("module."),
    "compiled": under("_orig_mod."),
    "both": under("module._orig_mod."),
    "a part was compiled": inside(),
    "model.": under("model."),
    "net.": under("net."),
    "encoder.": under("encoder.", BODY),
    "deep": under("learner.module.student.backbone."),
    "weight averaging": AveragedModel(TRAINED).state_dict(),
    "state_dict": {"state_dict": STATE, "epoch": 3},
    "model": {"model": STATE, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1}]}},
    "an average after": {"model": STATE, "model_ema": average(), "args": NAMESPACE},
    "an average before": {"state_dict_ema": average(), "state_dict": STATE},
    "an average beside": under("ema_model.", average()) | under("model."),
    "Lightning": {
        "pytorch-lightning_version": "2.5", "state_dict": under("model.") | {"criterion.weight": torch.ones(33)},
        "hyper_parameters": NAMESPACE, "callbacks": {}, "loops": {"fit_loop": {"state_dict": {}}},
    },
    "MMPretrain": {
        "meta": {"seed": np.float64(3), "cfg": pathlib.PurePosixPath("a.py")},
        "state_dict": under("backbone.", BODY) | {"head.fc.weight": torch.ones(33, 512)},
        "ema_state_dict": {"steps": torch.tensor(1), **under("module.backbone.", average(BODY))},
    },
    "contrastive": under("encoder_q.", BODY) | under("encoder_k.", average(BODY)) | {"queue": torch.ones(3, 3)},
}  # fmt: skip


def loaded(path, name="small_cnn", **more):
    return build(name, Model(weights=str(path), **more), 4, seed=0).network


@pytest.mark.parametrize("kind", SAVED)
def test_the_network_is_found(tmp_path, kind):
    """The head, of 33 classes or none, is replaced."""
    torch.save(SAVED[kind], tmp_path / "mine.pth")
    own = loaded(tmp_path / "mine.pth").state_dict()
    for key, value in BODY.items():
        assert torch.equal(own[key], value), key
    assert own["classifier.weight"].shape == (4, 64)


def test_safetensors(tmp_path):
    safetensors.torch.save_file(under("backbone."), tmp_path / "mine.safetensors")
    assert torch.equal(loaded(tmp_path / "mine.safetensors").stage1[0].weight, STATE["stage1.0.weight"])


@pytest.mark.parametrize("kind", ["keep", "stacked"])
def test_a_kept_classifier_comes_from_the_file(tmp_path, kind):
    trained = torchvision.models.squeezenet1_1() if kind == "keep" else torchvision.models.mobilenet_v3_small()
    name, classifier = ("squeezenet1_1", "classifier.1") if kind == "keep" else ("mobilenet_v3_small", "classifier.3")
    torch.save(under("module.", trained.state_dict()), tmp_path / "mine.pth")
    own = loaded(tmp_path / "mine.pth", name, head=Head(kind=kind))
    found = own.get_submodule(classifier if kind == "keep" else f"{classifier}.0")
    assert torch.equal(found.weight, trained.get_submodule(classifier).weight)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("Lightning", "left out, as it is not the network's (which is under state_dict.model): criterion.*"),
        ("weight averaging", "left out, as it is not the network's: n_averaged"),
        ("an average after", "left out, as it is not the network's (which is under model): model_ema"),
        ("contrastive", "(which is under encoder_q): encoder_k.* (18 tensors), queue"),
        ("MMPretrain", "(which is under state_dict.backbone): ema_state_dict, head.*"),
        ("data parallel", None),
    ],
)
def test_what_is_left_out_is_said(tmp_path, caplog, kind, said):
    torch.save(SAVED[kind], tmp_path / "mine.pth")
    with caplog.at_level(logging.WARNING):
        loaded(tmp_path / "mine.pth")
    assert [record.getMessage().endswith(said or "") for record in caplog.records] == [True] * bool(said)


class Boom:
    """An object that, if it were unpickled, would take a folder with it."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return (shutil.rmtree, (self.folder,))


@pytest.mark.parametrize("wrapped", [lambda boom: boom, lambda boom: [boom], lambda boom: {"x": boom}])
def test_objects_beside_the_tensors_are_not_made(tmp_path, wrapped):
    folder = tmp_path / "dear"
    folder.mkdir()
    torch.save({"state_dict": STATE, "extra": wrapped(Boom(folder))}, tmp_path / "mine.pth")
    assert torch.equal(loaded(tmp_path / "mine.pth").stage1[0].weight, STATE["stage1.0.weight"])
    assert folder.is_dir()


@pytest.mark.parametrize("kind", ["whole", "objects"])
def test_a_file_of_objects_alone_is_refused(tmp_path, kind):
    torch.save(copy.deepcopy(TRAINED) if kind == "whole" else Boom(tmp_path), tmp_path / "mine.pth")
    with pytest.raises(RecipeError, match=r"mine\.pth holds no state dict .*; save one with torch\.save"):
        loaded(tmp_path / "mine.pth")
    assert tmp_path.is_dir()


RESNETS = {"resnet34": torchvision.models.resnet34, "resnet50": torchvision.models.resnet50}
NAN = {**STATE, "stage2.0.weight": torch.full((32, 16, 3, 3), float("nan"))}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (torch.zeros(3), "holds no state dict"),
        ({"epoch": 3}, "holds no state dict"),
        (
            torchvision.models.squeezenet1_1().state_dict(),
            r"does not fit small_cnn: 15 tensors are missing \(first: stage1\.0\.weight \(16, 3, 3, 3\); "
            r"the file has such as features\.0\.weight \(64, 3, 3, 3\)\)",
        ),
        (
            {**STATE, "stage1.0.weight": torch.zeros(8, 3, 3, 3)},
            r"does not fit small_cnn: 1 have another shape \(first: stage1\.0\.weight \(8, 3, 3, 3\), "
            r"in the network \(16, 3, 3, 3\)\); give weights of the same architecture$",
        ),
        (
            {**STATE, "stage1.4.weight": torch.zeros(8, 3)},
            r"does not fit small_cnn: 1 are unknown \(first: stage1\.4\.weight \(8, 3\)\)",
        ),
        (NAN, r"1 of its 18 tensors hold NaN or infinite numbers \(first: stage2\.0\.weight\)"),
        (under("model.", NAN), "hold NaN or infinite numbers"),
    ],
    ids=["tensor", "numbers", "other architecture", "other width", "deeper", "NaN", "NaN under a prefix"],
)
def test_weights_that_do_not_fit(tmp_path, content, match):
    """Said by the plan as well, without memory."""
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(RecipeError, match=match) as caught:
        loaded(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(RecipeError, match=match):
        check_weights_file("small_cnn", Model(weights=str(path)))


@pytest.mark.parametrize("name", RESNETS)
def test_a_deeper_network_of_the_same_family_does_not_fit(tmp_path, name):
    """ResNet-34 has every tensor of ResNet-18."""
    with torch.device("meta"):
        wanted = torchvision.models.resnet18()
        state = RESNETS[name]().state_dict()
    with pytest.raises(RecipeError, match=r"are unknown \(first: layer1\."):
        checkpoints.fitted(state, wanted, "resnet18", "mine.pth", "fc")


def test_numbers_of_a_head_that_is_replaced_do_not_matter(tmp_path):
    torch.save({**STATE, "classifier.weight": torch.full((33, 64), float("nan"))}, tmp_path / "mine.pth")
    assert bool(torch.isfinite(loaded(tmp_path / "mine.pth").classifier.weight).all())


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_file_that_is_no_weights(tmp_path, suffix):
    path = tmp_path / f"broken.{suffix}"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(RecipeError, match="could not be read as tensors alone"):
        loaded(path)


def test_wrappers_that_a_network_has_itself_are_names():
    """Of a network whose own module is called `module`."""
    network = nn.Sequential()
    network.add_module("module", nn.Linear(2, 2))
    state = {f"net.{key}": value for key, value in network.state_dict().items()}
    (found,) = [one for one in checkpoints._candidates("", state, network.state_dict()) if one.hits == 2]
    assert set(found.inside) == {"module.weight", "module.bias"}

"""The final model as one graph answers as the final model."""

import importlib.util
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from raysweep.data.preparation import Preparation
from raysweep.recipe import RecipeError, Statistics
from raysweep.sweep import export, portable
from tests.sweep.made_models import HEADS, NAMES, write_model

onnx_is_there = all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime")))
needs_onnx = pytest.mark.skipif(not onnx_is_there, reason="pip install 'raysweep[onnx]'")
STORED = (20, 16)
"""Height and width, as of `write_model`."""
SIZES = ((16, 20), (17, 20), (48, 33), (9, 50), (7, 5))
"""Width and height; the first is that of stored images."""
each_head = pytest.mark.parametrize("head", HEADS, ids=lambda head: head[0]["kind"])


def noise(size, count=3, seed=0):
    """(count, 3, height, width)."""
    return np.random.RandomState(seed).randint(0, 256, (count, 3, size[1], size[0]), dtype=np.uint8)


def answers(model, images):
    """What `export.load`'s model says of images that it is given as PIL's."""
    decoded = [model.decode(Image.fromarray(image.transpose(1, 2, 0))) for image in images]
    return model.probabilities(torch.from_numpy(np.stack(decoded))).numpy()


@pytest.mark.parametrize("size", [*SIZES, (300, 200), (14, 11), (17, 90), (1, 1)])
@pytest.mark.parametrize("stored", [STORED, (8, 8), (31, 64)])
def test_images_are_fitted_as_they_are_decoded(size, stored):
    """To the last bit, with whatever Pillow is installed."""
    preparation = Preparation(stored, 8, Statistics(mean=(0, 0, 0), std=(1, 1, 1)))
    images = noise(size)
    found = portable.fitted(torch.from_numpy(images), preparation).numpy()
    for image, fitted in zip(images, found, strict=True):
        assert (fitted == preparation.decode(Image.fromarray(image.transpose(1, 2, 0)))).all()


def parity(model, run):
    """The largest difference over sizes of images and numbers of them; the answers are to differ."""
    worst, said = 0.0, []
    for number, size in enumerate(SIZES, start=2):
        images = noise(size, number, seed=number)
        images[0] //= 8  # not all of one kind
        expected = answers(model, images)
        said.append(expected)
        found = run(images)
        assert found.shape == expected.shape
        worst = max(worst, np.abs(found - expected).max())
    assert np.ptp(np.concatenate(said), axis=0).max() > 0.01
    return worst


@pytest.mark.slow
@each_head
def test_a_torch_graph_answers_as_the_model(head, tmp_path):
    model = export.load(write_model(tmp_path, head))
    program = portable.exported(model)
    names = portable.outputs(model, program)
    portable.write_torch(tmp_path / "model.pt2", program, names)
    extra = {portable.CLASS_NAMES: ""}
    module = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    assert parity(model, lambda images: module(torch.from_numpy(images)).detach().numpy()) <= 1e-4
    assert json.loads(extra[portable.CLASS_NAMES]) == list(names)
    assert names[:3] == NAMES
    assert len(names) == (1000 if head[0]["kind"] == "keep" else 3)


@pytest.mark.slow
@needs_onnx
@each_head
def test_an_onnx_file_answers_as_the_model(head, tmp_path):
    import onnxruntime

    model = export.load(write_model(tmp_path, head))
    program = portable.exported(model)
    names = portable.outputs(model, program)
    run = portable.write_onnx(tmp_path / "model.onnx", program, names)
    assert portable.deviation(model, run) <= 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert parity(model, lambda images: session.run(["probability"], {"images": images})[0]) <= 1e-4
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    probability, said = session.run(["probability", "class"], {"images": noise((40, 30))})
    assert said.tolist() == [names[index] for index in probability.argmax(1)]
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == list(names)


def test_a_graph_that_differs_is_seen(tmp_path):
    model = export.load(write_model(tmp_path))
    whole = portable.Portable(model)

    def deviation(flip):
        return portable.deviation(model, lambda images: whole(flip(torch.from_numpy(images))).detach().numpy())

    right, mirrored = deviation(torch.clone), deviation(lambda images: images.flip(1))
    assert right <= 1e-6 < 1e-3 < mirrored


def test_missing_packages_are_named(monkeypatch):
    found = {"onnx": SimpleNamespace()}
    monkeypatch.setattr("importlib.util.find_spec", found.get)
    with pytest.raises(RecipeError, match="--onnx needs the package onnxscript: pip install onnx onnxscript"):
        portable.check_onnx()

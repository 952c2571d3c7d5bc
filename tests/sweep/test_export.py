import json

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from raysweep.data.preparation import Preparation
from raysweep.nets import backbones
from raysweep.nets.scratch import SmallCnn
from raysweep.recipe import Recipe, Statistics
from raysweep.sweep import export
from tests.data.image_files import write_image

SIDE = 16
STATISTICS = Statistics(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
NAMES = ("ant", "bee", "été")


def prepared(side=SIDE, stored=None):
    return Preparation(stored or (side, side), side, STATISTICS)


@pytest.fixture
def trial():
    (trial,) = Recipe.model_validate({"grid": {"backbone": "small_cnn", "depth": [["stage1", "head"]]}}).trials()
    return trial


@pytest.fixture
def network():
    """A network whose every tensor matters."""
    torch.manual_seed(0)
    network = SmallCnn(len(NAMES)).eval()
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.1, 1.0) if value.dim() == 1 else value.normal_(std=0.1)
    return network


@pytest.fixture
def folder(tmp_path, network, trial):
    """The folder that the network was saved to."""
    export.save(tmp_path / "model", network, trial, NAMES, prepared())
    return tmp_path / "model"


@torch.no_grad()
def test_loaded_model_predicts_the_same(network, folder, tmp_path):
    files = [write_image(tmp_path / f"{seed}.png", seed, (SIDE, SIDE)) for seed in range(6)]
    pixels = np.stack([np.asarray(Image.open(file)) for file in files]).transpose(0, 3, 1, 2) / 255
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (STATISTICS.mean, STATISTICS.std))
    best = network(torch.from_numpy((pixels - mean) / std).float()).softmax(1).max(1)
    classify = export.load(str(folder))
    found = classify([str(file) for file in files])
    assert [name for name, _ in found] == [NAMES[index] for index in best.indices]
    assert [value for _, value in found] == pytest.approx(best.values.tolist(), rel=1e-4)
    assert classify([Image.open(file) for file in files]) == found
    assert len({value for _, value in found}) > 1


@torch.no_grad()
def test_a_served_image_goes_the_way_of_a_trained_one(network, trial, tmp_path):
    """A file is decoded to the size at which the data set stores its images, and resized from there."""
    preparation = prepared(stored=(10, 8))
    export.save(tmp_path / "model", network, trial, NAMES, preparation)
    file = write_image(tmp_path / "x.png", 3, (21, 34))
    stored = torch.from_numpy(preparation.decode(Image.open(file)))[None]
    assert stored.shape == (1, 3, 10, 8)
    expected = network(preparation(stored)).softmax(1).max(1)
    classify = export.load(tmp_path / "model")
    assert classify.preparation == preparation
    assert classify([file]) == [(NAMES[expected.indices.item()], pytest.approx(expected.values.item(), rel=1e-5))]


def test_a_model_of_the_first_edition_stored_images_at_the_networks_size(folder, tmp_path):
    file = write_image(tmp_path / "x.png", size=(30, 20))
    expected = export.load(folder)([file])
    about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    del about["stored_size"], about["value_range"]
    (folder / "model.json").write_text(json.dumps(about), encoding="utf-8")
    assert export.load(folder).preparation.stored == (SIDE, SIDE)
    assert export.load(folder)([file]) == expected


def test_the_scaling_of_greys_is_kept(network, trial, tmp_path):
    preparation = Preparation((SIDE, SIDE), SIDE, STATISTICS, (0.0, 4095.0))
    export.save(tmp_path / "model", network, trial, NAMES, preparation)
    classify = export.load(tmp_path / "model")
    assert classify.preparation == preparation
    values = np.random.RandomState(0).randint(0, 256, (SIDE, SIDE))
    Image.fromarray((values * 16).astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.rint(values * 16 * 255 / 4095).astype(np.uint8)).save(tmp_path / "plain.png")
    assert classify([tmp_path / "deep.png"]) == classify([tmp_path / "plain.png"])


def test_every_tensor_returns(network, folder):
    state = export.load(folder).network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_images_of_any_size_and_mode(folder, tmp_path, mode):
    ((name, probability),) = export.load(folder)([write_image(tmp_path / "x.png", size=(30, 20), mode=mode)])
    assert name in NAMES
    assert 1 / 3 <= probability <= 1


def test_files_are_tensors_and_json_alone(network, folder):
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "model.json"}
    assert safetensors.torch.load_file(folder / "model.safetensors").keys() == network.state_dict().keys()
    about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    assert about["class_names"] == list(NAMES)
    assert (about["stored_size"], about["image_size"]) == ([SIDE, SIDE], SIDE)
    assert about["normalize"] == {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    assert about["trial"]["depth"] == ["stage1", "head"]


@pytest.mark.parametrize(
    ("head", "weights"),
    [
        ({"kind": "mlp", "sizes": [6, 5], "dropout": 0.5}, "pretrained"),
        ({"kind": "keep"}, "IMAGENET1K_V1"),
        ({"kind": "stacked"}, "nowhere.pth"),
    ],
)
@torch.no_grad()
def test_every_head_is_rebuilt(tmp_path, head, weights):
    grid = {"backbone": "mobilenet_v3_small", "depth": "head", "head": head, "weights": weights}
    (trial,) = Recipe.model_validate({"grid": grid}).trials()
    network = backbones.build(trial.backbone, trial.model, len(NAMES), seed=3, load=False).network.eval()
    if head["kind"] == "keep":
        network.classifier[3].bias[700] = 99.0  # an output that is none of the classes
    export.save(tmp_path / "model", network, trial, NAMES, prepared(32))
    classify = export.load(tmp_path / "model")
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(classify.network(x), network(x), rtol=0, atol=0)
    ((name, probability),) = classify([write_image(tmp_path / "x.png", size=(30, 20))])
    assert name == "output 700" if head["kind"] == "keep" else name in NAMES  # as the test predictions say it
    assert 1 / 3 <= probability <= 1


def test_other_tensors_are_refused(folder):
    safetensors.torch.save_file({"stage1.0.weight": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(RuntimeError, match="Missing key"):
        export.load(folder)


@torch.no_grad()
def test_a_network_built_for_another_size_is_rebuilt_for_it(tmp_path):
    (trial,) = Recipe.model_validate({"grid": {"backbone": "timm/vit_tiny_patch16_224"}}).trials()
    network = backbones.build(trial.backbone, trial.model, len(NAMES), 3, 32, load=False).network.eval()
    export.save(tmp_path / "model", network, trial, NAMES, prepared(32))
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(export.load(tmp_path / "model").network(x), network(x), rtol=0, atol=0)

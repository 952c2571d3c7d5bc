"""A trial on a device is the trial on a CPU, within the rounding of its arithmetic.

Each test is also tried with the CPU as the device, which proves the test itself.
"""

import pytest
import torch

from raysweep.features.compute import make_features
from raysweep.nets.task import release
from raysweep.recipe import Features
from raysweep.train.ddp import World
from raysweep.train.phases import Fit, Sharing
from tests.devices import DEVICES
from tests.features.small_trials import trial_of
from tests.nets.small_transformers import VIT

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("device", DEVICES)]
COMMON = {"optimizer": "sgd", "lr": 0.01, "augment": ["hflip"], "epochs": 2}
"""Plain gradient descent, as adam would make much of the least difference."""
TRIALS = {
    "resnet": trial_of("resnet18", 3, **COMMON),
    "resnet, recalibrated": trial_of("resnet18", "layer4", batch_norm="recalibrated", **COMMON),
    "timm": trial_of("tf_efficientnet_lite0", 3, batch_norm="recalibrated", **COMMON),
    "transformer": trial_of(VIT, "blocks.1", **COMMON),
    "all": trial_of("small_cnn", "all", batch_norm="training", ema=0.9, **COMMON),
    "mixed": trial_of("small_cnn", "all", mixup=0.4, cutmix=1.0, **COMMON),
}
TOLERANCES = {"float32": 2e-3, "tf32": 0.02, "bfloat16": 0.1, "float16": 0.05}
"""Of losses about ln 4."""


@pytest.fixture(autouse=True)
def nothing_kept():
    release()
    yield
    release()


def rows_of(trial, settings, device, stored):
    """Losses of each epoch, whether features were read, and where the training images were."""
    phases = frozenset([trial.name] if stored else [])
    if stored:
        for _ in make_features([trial], settings, [device]):
            pass
    fit = Fit(trial, Sharing(settings, phases), World(device=device))
    rows = [(row.train_loss, row.val_loss) for row in fit.epochs()]
    release()
    return rows, fit


def features_in(folder, precision="float32"):
    return Features(dir=str(folder), precision=precision, cache="always")


def in_precision(trial, precision):
    return trial.model_copy(update={"train": trial.train.model_copy(update={"precision": precision})})


def assert_alike(found, expected, tolerance):
    for some, other in zip(found, expected, strict=True):
        assert some == pytest.approx(other, abs=tolerance)


@pytest.mark.parametrize("name", TRIALS)
def test_rows_are_those_of_a_cpu(name, device, tmp_path):
    trial = TRIALS[name]
    expected, _ = rows_of(trial, features_in(tmp_path / "cpu"), torch.device("cpu"), stored=False)
    found, fit = rows_of(trial, features_in(tmp_path / "device"), torch.device(device), stored=False)
    assert_alike(found, expected, TOLERANCES["float32"])
    assert next(fit.network.suffix.parameters()).device.type == device


@pytest.mark.parametrize("name", ["resnet, recalibrated", "transformer"])
def test_stored_features_give_the_same_rows(name, device, tmp_path):
    """Of a GPU they are resident: there is room for so few."""
    trial, settings = TRIALS[name], features_in(tmp_path)
    expected, _ = rows_of(trial, settings, torch.device("cpu"), stored=False)
    found, fit = rows_of(trial, settings, torch.device(device), stored=True)
    assert_alike(found, expected, TOLERANCES["float32"])
    assert fit._stage.training.training.source.place.type == device


@pytest.mark.parametrize("name", ["resnet", "transformer"])
def test_features_that_do_not_fit_are_fetched_ahead(name, device, tmp_path, monkeypatch):
    monkeypatch.setattr("raysweep.features.residency.room", lambda *_: 0)
    trial, settings = TRIALS[name], features_in(tmp_path)
    expected, _ = rows_of(trial, settings, torch.device("cpu"), stored=True)
    found, fit = rows_of(trial, settings, torch.device(device), stored=True)
    assert_alike(found, expected, TOLERANCES["float32"])
    assert fit._stage.training.training.source.place.type == "cpu"


@pytest.mark.parametrize("precision", ["tf32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["resnet", "transformer"])
def test_other_precisions_are_near(name, precision, device, tmp_path):
    """Of prefix and suffix; and nothing of it is left behind for the next trial."""
    trial = TRIALS[name]
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    expected, _ = rows_of(trial, features_in(tmp_path / "cpu"), torch.device("cpu"), stored=False)
    settings = features_in(tmp_path / "device", precision)
    found, _ = rows_of(in_precision(trial, precision), settings, torch.device(device), stored=True)
    assert_alike(found, expected, TOLERANCES[precision])
    assert before == (
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    )  # fmt: skip


def test_what_a_trial_kept_is_given_back(device, tmp_path):
    """Memory of the device, once the trial is gone and the lane has emptied it."""
    if device == "cpu":
        pytest.skip("a CPU keeps nothing")
    from raysweep.engine.jobs import _empty_memory

    _empty_memory()
    before = torch.cuda.memory_reserved()
    rows_of(TRIALS["resnet"], features_in(tmp_path), torch.device(device), stored=True)
    _empty_memory()
    assert torch.cuda.memory_reserved() <= before + 2**25  # cuBLAS keeps a workspace

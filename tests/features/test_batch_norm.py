"""Statistics of recalibrated batch norm: what they are, that they are estimated once, and where they are kept."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from raysweep.features import batch_norm
from raysweep.features.batch_norm import are_kept, recalibrated
from raysweep.nets.task import cut_of, release, task_of
from raysweep.recipe import Features
from tests.devices import DEVICES
from tests.features import small_trials
from tests.nets.small_transformers import VIT

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("nothing_kept")


def trial_of(backbone="small_cnn", depth=1, **fields):
    common = {"dataset": "fake:4", "limit": 48, "batch_norm": "recalibrated"}
    return small_trials.trial_of(backbone, depth, **common | fields)


@pytest.fixture
def nothing_kept():
    yield
    release()


@pytest.fixture(autouse=True)
def estimated(monkeypatch):
    """How often this process estimates."""
    calls = []

    def counted(task, device):
        calls.append(task.digest)
        return estimate(task, device)

    estimate = batch_norm._estimated
    monkeypatch.setattr(batch_norm, "_estimated", counted)
    return calls


def statistics(trial, settings, device=CPU):
    """Of the first batch norm, as a process finds them that has just started."""
    release()
    network = recalibrated(trial, settings, device).backbone.network
    return {name: value.clone() for name, value in network.named_buffers()}


def files(settings):
    return sorted(path for path in Path(settings.dir).iterdir() if path.suffix != ".lock")


def assert_equal(some, other):
    assert some.keys() == other.keys()
    assert all(torch.equal(some[name], other[name]) for name in some)


# ---- what they are ----


def by_hand(convolved):
    """Mean and unbiased variance of each channel."""
    return convolved.mean((0, 2, 3)), convolved.var((0, 2, 3), correction=1)


@pytest.mark.parametrize("device", DEVICES)
def test_statistics_are_those_of_the_training_images(settings, device):
    """96 images are two batches of 48, whose statistics count alike, as `update_bn` has it."""
    trial = trial_of(limit=96, normalize="none")
    before = {name: value.clone() for name, value in task_of(trial).backbone.network.named_parameters()}
    task = recalibrated(trial, settings, torch.device(device))
    images = torch.from_numpy(task.dataset.train.images()).float() / 255
    network = task.backbone.network
    means, variances = zip(
        *(by_hand(F.conv2d(part, network.stage1[0].weight, padding=1)) for part in (images[:48], images[48:])),
        strict=True,
    )
    norm = network.stage1[1]
    torch.testing.assert_close(norm.running_mean, sum(means) / 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, sum(variances) / 2, rtol=1e-4, atol=1e-5)
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, before[name])
    assert norm.momentum == 0.1
    assert not norm.running_mean.is_cuda


def test_they_are_of_images_as_they_are_prepared(settings):
    one, other = (
        statistics(trial_of(normalize=kind), settings)["stage1.1.running_mean"]
        for kind in ("none", {"mean": [0.5, 0.5, 0.5], "std": [0.1, 0.1, 0.1]})
    )
    assert not torch.allclose(one, other)


def test_a_remainder_of_one(settings):
    """At 32 pixels resnet18's last feature map is one pixel; 65 images are a batch of 64 and one of 1."""
    recalibrated(trial_of("resnet18", limit=65), settings, CPU)


def test_dropout_does_not_make_them_random(settings, tmp_path):
    """And random numbers go on as if nothing had been estimated."""
    trial, elsewhere = trial_of("efficientnet_b0", depth="head", limit=8), Features(dir=str(tmp_path / "other"))
    torch.manual_seed(1)
    first = statistics(trial, settings)
    torch.manual_seed(2)
    second = statistics(trial, elsewhere)
    drawn = torch.rand(1)
    assert_equal(first, second)
    torch.manual_seed(2)
    statistics(trial, settings)
    assert drawn == torch.rand(1)


def test_they_reach_a_cut_that_was_made_before(settings):
    trial = trial_of("resnet18", depth="layer4")
    cut = cut_of(trial)
    recalibrated(trial, settings, CPU)
    assert cut.prefix.bn1.running_mean.any()
    assert cut.suffix.get_submodule("layer4.0.bn1").running_mean.any()


# ---- once ----


def test_they_are_estimated_once(settings, estimated):
    """Other depths and batch sizes share them, and so does a process that starts later."""
    trial = trial_of()
    assert not are_kept(trial, settings)
    first = statistics(trial, settings)
    assert are_kept(trial, settings)
    for other in (trial, trial_of(depth=3), trial_of(batch_size=1), trial_of(augment=["hflip"])):
        assert_equal(statistics(other, settings), first)
    recalibrated(trial, settings, CPU)
    assert len(estimated) == 1
    assert len(files(settings)) == 1


def test_two_networks_do_not_share(settings, estimated):
    for trial in (trial_of(), trial_of(seed=1), trial_of("resnet18"), trial_of(image_size=24), trial_of(limit=32)):
        statistics(trial, settings)
    assert len(set(estimated)) == len(files(settings)) == 5


def test_what_has_nothing_to_estimate_leaves_no_file(settings, estimated):
    for trial in (trial_of(batch_norm="frozen"), trial_of(batch_norm="training"), trial_of(VIT, depth="head")):
        assert recalibrated(trial, settings, CPU) is task_of(trial)
        assert are_kept(trial, settings)
    assert estimated == []
    assert not Path(settings.dir).exists()


@pytest.mark.parametrize("damage", ["cut off", "changed", "of another network", "emptied"])
def test_a_damaged_file_is_made_again(settings, estimated, damage):
    trial = trial_of()
    first = statistics(trial, settings)
    (path,) = files(settings)
    content = path.read_bytes()
    if damage == "cut off":
        path.write_bytes(content[:-8])
    elif damage == "changed":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "of another network":
        save_file({"weight": torch.zeros(3)}, path)
    else:
        path.write_bytes(b"")
    assert not are_kept(trial, settings)
    assert_equal(statistics(trial, settings), first)
    assert len(estimated) == 2
    assert load_file(path).keys() <= first.keys()
    assert are_kept(trial, settings)


def test_a_folder_that_cannot_be_written_to(settings, estimated):
    """Every process then estimates for itself."""
    trial = trial_of()
    Path(settings.dir).write_text("a file")
    first = statistics(trial, settings)
    assert_equal(statistics(trial, settings), first)
    assert len(estimated) == 2

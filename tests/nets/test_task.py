"""What the trials of one backbone on one data set share."""

import numpy as np
import pytest
import torch
from PIL import Image

from raysweep.data import dataset as datasets
from raysweep.nets.task import (
    cut_of,
    expect,
    outputs_of,
    release,
    save_dataset,
    task_of,
    tensors_digest,
    weights_seed,
)
from raysweep.nets.zoo import UNIT
from raysweep.recipe import Recipe, RecipeError, Statistics
from tests.data.image_files import write_classes

DATA = {"dataset": "fake:4", "image_size": 32, "limit": 48}


def trial_of(backbone="small_cnn", depth=1, lr=0.01, seed=0, batch_norm="frozen", **data):
    """Without pretrained weights."""
    (trial,) = Recipe.model_validate(
        {
            "data": DATA | data,
            "grid": {"backbone": backbone, "depth": depth, "lr": lr, "seed": seed},
            "model": {"weights": "none", "batch_norm": batch_norm},
        }
    ).trials()
    return trial


@pytest.fixture(autouse=True)
def nothing_kept():
    yield
    release()
    expect(())


# ---- what is shared ----


def test_a_data_set_that_another_process_read_is_not_read_again(tmp_path, monkeypatch):
    root = write_classes(tmp_path / "photos", {"cat": 12, "dog": 14})
    trial = trial_of(dataset="imagefolder", root=str(root), limit=None, augment=["hflip"], normalize="dataset")
    first, name = task_of(trial), save_dataset(trial)
    release()
    expect([name])
    monkeypatch.setattr(datasets, "load", lambda _: pytest.fail("it was read"))
    again = task_of(trial)
    assert again is not first
    assert (again.dataset.fingerprint, again.digest) == (first.dataset.fingerprint, first.digest)
    assert again.preparation == first.preparation


def test_trials_that_share_a_task_get_the_same_one():
    """Of another depth or learning rate the task is the same, of another only the cut of another depth is new."""
    trial = trial_of()
    assert task_of(trial) is task_of(trial_of(lr=0.5)) is task_of(trial_of(depth=3))
    assert cut_of(trial) is cut_of(trial_of(lr=0.5))
    assert cut_of(trial) is not cut_of(trial_of(depth=3))
    assert outputs_of(trial, cut_of(trial).frontier) is outputs_of(trial_of(lr=0.5), cut_of(trial).frontier)


def test_tasks_of_one_data_set_share_its_images():
    one, other = (task_of(trial_of(normalize=kind)) for kind in ("none", "dataset"))
    assert one is not other
    assert one.dataset is other.dataset


def test_the_scaling_of_greys_goes_with_the_preparation(tmp_path):
    """So that the model is served as it was trained."""
    for seed, name in enumerate(("cat/0", "cat/1", "cat/2", "dog/0", "dog/1", "dog/2")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        values = np.random.RandomState(seed).randint(0, 4096, (32, 32)).astype(np.uint16)
        values[0, :2] = 0, 4095
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    trial = trial_of(dataset="imagefolder", root=str(tmp_path), limit=None)
    assert task_of(trial).preparation.value_range == (0, 4095)


def test_what_is_released_is_made_again():
    trial = trial_of()
    task, cut = task_of(trial), cut_of(trial)
    release()
    assert task_of(trial) is not task
    assert cut_of(trial) is not cut
    assert task_of(trial).digest == task.digest


def test_random_weights_follow_the_seed_and_pretrained_ones_do_not():
    trial = trial_of(seed=3)
    assert weights_seed(trial) == 3
    assert weights_seed(trial.model_copy(update={"model": trial.model.model_copy(update={"weights": "a"})})) == 0
    assert task_of(trial).digest != task_of(trial_of(seed=4)).digest


@pytest.mark.parametrize(
    ("normalize", "statistics"),
    [
        ("none", UNIT),
        ("backbone", UNIT),  # of a network from scratch
        ({"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]}, Statistics(mean=(0.1, 0.2, 0.3), std=(1, 2, 3))),
    ],
)
def test_images_are_normalised_as_the_recipe_says(normalize, statistics):
    task = task_of(trial_of(normalize=normalize, image_size=24))
    assert task.preparation.statistics == statistics
    assert (task.preparation.stored, task.preparation.image_size) == ((24, 24), 24)


def test_images_are_normalised_by_the_data_set():
    task = task_of(trial_of(normalize="dataset"))
    assert task.preparation.statistics == task.dataset.statistics != UNIT


def test_a_depth_that_the_network_has_not():
    with pytest.raises(RecipeError, match=r"grid\.depth=99 .* \(backbone small_cnn\)"):
        cut_of(trial_of(depth=99))


def test_digests_follow_names_shapes_types_and_values():
    x = torch.arange(4.0)
    tensors = [{"a": x}, {"b": x}, {"a": x.view(2, 2)}, {"a": x.int()}, {"a": x + 1}, {"a": x, "head.weight": x}, {}]
    assert len({tensors_digest(each) for each in tensors}) == len(tensors)
    assert tensors_digest({"b": x, "a": x}) == tensors_digest({"a": x, "b": x})
    assert tensors_digest({"a": x, "head.weight": x}, skip=["head"]) == tensors_digest({"a": x})
    assert tensors_digest({"header.weight": x}, skip=["head"]) != tensors_digest({})


def test_a_new_head_is_no_part_of_the_digest():
    trial = trial_of()
    task = task_of(trial)
    with torch.no_grad():
        task.backbone.network.classifier.weight.zero_()
    assert tensors_digest(task.backbone.network.state_dict(), task.backbone.head) == task.digest
    assert tensors_digest(task.backbone.network.state_dict()) != task.digest


def test_a_recalibrated_network_is_another_one():
    """Its digest follows what it is recalibrated on, and nothing is estimated for that."""
    frozen, *others = (
        task_of(trial_of(**more))
        for more in (
            {},
            {"batch_norm": "recalibrated"},
            {"batch_norm": "recalibrated", "normalize": "dataset"},
            {"batch_norm": "recalibrated", "image_size": 24},
            {"batch_norm": "recalibrated", "limit": 32},
        )
    )
    assert len({frozen.digest, *(one.digest for one in others)}) == 5
    assert torch.equal(others[0].backbone.network.stage1[1].running_mean, torch.zeros(16))


def test_a_size_that_the_network_does_not_take():
    with pytest.raises(RecipeError, match=r"cnn_1m takes images of 30 pixels or more, not of 24"):
        task_of(trial_of("cnn_1m", image_size=24))

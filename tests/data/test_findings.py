"""What copies mean for the splits: a test split that is the training split is refused."""

import numpy as np
import pytest
from PIL import Image

from raysweep.data.audit import audit
from raysweep.data.dataset import load
from raysweep.data.findings import Findings, accuracy_without, refuse_overlap
from raysweep.recipe import Data, RecipeError
from tests.data.planted_copies import dataset_of, textures


def test_small_case_by_hand(found):
    seen = [(pair.kind, pair.a.name, pair.b.name, pair.same_label) for pair in found.pairs]
    assert seen == [("exact", "0", "8", False), ("mirror", "1", "9", True), ("near", "2", "5", True)]
    assert found.duplicated_test == (0, 1)
    assert found.contradicting == 1
    assert found.copied("val", "train") == {0}
    assert found.class_counts["train"] == {"class0": 3, "class1": 2}
    assert found.imbalance == {"train": 1.5, "val": 2.0, "test": 3.0}


def test_test_split_that_is_the_training_split_is_refused(tmp_path):
    for split in ("train", "test"):
        for label in range(2):
            folder = tmp_path / split / f"class{label}"
            folder.mkdir(parents=True)
            for index, image in enumerate(textures(20, seed=label)):
                Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{split}{index}.png")
    dataset = load(Data(dataset="imagefolder", root=str(tmp_path), image_size=32))
    with pytest.raises(RecipeError, match="32 of the 32 train images are test images too"):
        refuse_overlap(dataset, audit(dataset))


def test_one_shared_row_is_refused_and_some_equal_images_are_not(small, found):
    refuse_overlap(small, found)
    images = textures(12)
    shared = dataset_of(images, splits=[range(6), range(6, 9), [5, 9, 10, 11]])
    with pytest.raises(RecipeError, match="1 of the 4 test images are train images too"):
        refuse_overlap(shared, audit(shared))


def test_accuracy_with_and_without():
    correct = np.array([True, True, False, True, False])
    assert accuracy_without(correct, [0, 1]) == {
        "test_accuracy": 0.6,
        "test_accuracy_without_duplicates": pytest.approx(1 / 3),
        "duplicated_test_images": 2,
    }
    assert accuracy_without(correct, [])["test_accuracy_without_duplicates"] == 0.6
    assert accuracy_without(correct, range(5))["test_accuracy_without_duplicates"] is None


def test_nothing_is_a_finding():
    assert Findings((), {"test": {"a": 1}}).duplicated_test == ()

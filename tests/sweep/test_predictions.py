"""predictions.csv, and the sample images with what the model says of them."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from raysweep.data.dataset import Dataset, Split
from raysweep.sweep.predictions import TILE, write

NAMES = ("ant", "bee", "cat")


def dataset(count, superclasses=None):
    """Test images 0, 1, … of one grey value each, of the classes in turn."""
    pool = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 3, 4, 6))
    rows = np.arange(count)
    split = Split(pool, rows, rows % len(NAMES), tuple(f"test/{row}" for row in rows))
    return Dataset(split, split, split, NAMES, "0" * 32, superclasses=superclasses)


def written(folder, images, predicted, **more):
    write(folder, dataset(images, **more), np.array(predicted), np.linspace(0.5, 1.0, images))
    with (folder / "predictions.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file)), json.loads((folder / "samples.json").read_text(encoding="utf-8"))


def test_every_test_image_has_a_line(tmp_path):
    lines, _ = written(tmp_path, 4, [0, 2, 2, 0])
    assert lines[1] == {"image": "test/1", "true": "bee", "predicted": "cat", "probability": "0.6667"}
    assert [line["predicted"] for line in lines] == ["ant", "cat", "cat", "ant"]


def test_samples_are_mistakes_first_and_a_tile_each(tmp_path):
    _, about = written(tmp_path, 4, [0, 2, 2, 0])
    assert [one["image"] for one in about["samples"]] == ["test/1", "test/0", "test/2", "test/3"]
    assert about["samples"][0] == {"image": "test/1", "true": "bee", "predicted": "cat", "probability": 0.6667}
    strip = np.asarray(Image.open(tmp_path / "samples.png"))
    assert (about["tile"], strip.shape) == (TILE, (TILE, 4 * TILE, 3))
    assert strip[0, ::TILE, 0].tolist() == [1, 0, 2, 3]


def test_samples_are_drawn_evenly_and_no_more_than_twelve_of_a_kind(tmp_path):
    _, about = written(tmp_path, 90, [0] * 90)
    shown = [int(one["image"].removeprefix("test/")) for one in about["samples"]]
    wrong, right = shown[:12], shown[12:]
    assert [place % 3 == 0 for place in shown] == [False] * 12 + [True] * 12
    assert (wrong[0], wrong[-1], right[0], right[-1]) == (1, 89, 0, 87)


def test_an_output_that_is_no_class_has_a_name(tmp_path):
    """A kept classifier may say one of its thousand classes."""
    lines, about = written(tmp_path, 3, [0, 1, 700], superclasses=("insect", "insect", "mammal"))
    assert [line["predicted"] for line in lines] == ["ant", "bee", "output 700"]
    assert about["superclasses"] == {"accuracy": pytest.approx(2 / 3), "errors_within": 0.0}


def test_mistakes_within_a_superclass(tmp_path):
    """Of four images two are wrong, one of them within insects."""
    _, about = written(tmp_path, 4, [0, 0, 2, 2], superclasses=("insect", "insect", "mammal"))
    assert about["superclasses"] == {"accuracy": 0.75, "errors_within": 0.5}
    _, about = written(tmp_path, 4, [0, 0, 2, 2])
    assert about["superclasses"] is None

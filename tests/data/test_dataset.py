"""Splits as objects, and what is known of a data set before it is read."""

import re
from dataclasses import replace

import numpy as np
import pytest

from raysweep.data.dataset import Split, channel_statistics, load, shape, split_key
from raysweep.recipe import Data
from tests.data.image_files import write_classes


def test_images_are_gathered_as_copies_of_a_read_only_pool():
    train = load(Data(dataset="digits")).train
    images = train.images([3, 1])
    assert (images.shape, images.dtype, images.flags.writeable) == ((2, 3, 8, 8), np.uint8, True)
    assert (images[1] == train.pool[train.rows[1]]).all()
    assert train.names[3] == f"train/{train.rows[3]}"
    with pytest.raises(ValueError, match="read-only"):
        train.pool[0] = 0


def test_statistics_worked_by_hand():
    pool = np.zeros((2, 3, 2, 2), dtype=np.uint8)
    pool[1, 0] = 255
    pool[:, 1] = 51
    images = Split(pool, np.arange(2), np.arange(2), ("a", "b"))
    statistics = channel_statistics(images)
    assert statistics.mean == pytest.approx((0.5, 0.2, 0.0))
    assert statistics.std == pytest.approx((0.5, 1 / 255, 1 / 255))  # never 0: images are divided by it


def test_fingerprint_follows_images_and_split():
    prints = [
        load(Data(dataset="fake", split_seed=seed, limit=limit)).fingerprint
        for seed, limit in ((1, None), (1, None), (2, None), (1, 50))
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


@pytest.mark.parametrize("dataset", ["digits", "fake", "fake:30", "imagefolder"])
@pytest.mark.parametrize("limit", [None, 35])
def test_shape_tells_what_load_gives(dataset, limit, tmp_path):
    root = write_classes(tmp_path / "pets", {"cat": 30, "dog": 21}) if dataset == "imagefolder" else None
    data = Data(dataset=dataset, root=root and str(root), limit=limit, image_size=8)
    loaded, told = load(data), shape(data)
    assert told.classes == len(loaded.class_names)
    assert (told.train, told.val, told.test) == (len(loaded.train), len(loaded.val), len(loaded.test))
    assert loaded.train.pool.shape[1:] == (3, told.image_size, told.image_size)


# ---- what images results are of ----


def split_of(names=("a", "b", "c"), labels=(0, 1, 1), rows=(4, 5, 7), pixels=0):
    pool = np.full((9, 3, 2, 2), pixels, dtype=np.uint8)
    return Split(pool, np.array(rows), np.array(labels), tuple(names))


def test_key_follows_names_and_labels_in_their_order():
    keys = [
        split_key(split_of(**fields))
        for fields in (
            {},
            {"names": "acb"},
            {"names": "abd"},
            {"labels": (0, 1, 0)},
            {"labels": (1, 0, 1)},
            {"names": "ab", "labels": (0, 1), "rows": (4, 5)},
            {"names": ("ab", "", "c")},
            {"names": ("a", "bc", "")},
        )
    ]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch("[0-9a-f]{16}", key) for key in keys)


def test_key_is_of_nothing_else():
    """Neither of the pixels, nor of where in a pool they are, nor of how labels are stored."""
    expected = split_key(split_of())
    assert split_key(split_of(rows=(0, 1, 2), pixels=9)) == expected
    narrow = replace(split_of(), labels=np.array([0, 1, 1], dtype=np.int32))
    assert split_key(narrow) == expected


def test_key_is_the_same_on_every_machine():
    """Worked once and written down: runs of different machines are compared by it."""
    assert split_key(split_of()) == "5209ed258bbb7d07"
    assert split_key(split_of(names=("caf\udce9.png", "b", "c"))) != split_key(split_of())


def test_splits_of_one_data_set_have_keys_of_their_own():
    data = Data(dataset="fake")
    keys = [split_key(getattr(load(data), part)) for part in ("train", "val", "test")]
    assert len(set(keys)) == 3
    assert keys == [split_key(getattr(load(data), part)) for part in ("train", "val", "test")]
    assert split_key(load(Data(dataset="fake", split_seed=1)).val) != keys[1]
    # at another size they are the same images
    assert split_key(load(Data(dataset="fake", image_size=16)).val) == keys[1]

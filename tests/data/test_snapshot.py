"""A data set kept by one process is the same in another, which lists no folder for it."""

import shutil

import numpy as np
import pytest

from raysweep.data import dataset as datasets
from raysweep.data import snapshot
from raysweep.data.cache import cache_folder
from raysweep.data.dataset import load, split_key
from raysweep.data.names import Names, read_names, write_names
from raysweep.recipe import Data
from tests.data.image_files import folder_data, write_classes

PARTS = ("train", "val", "test")


@pytest.fixture
def data(tmp_path):
    return folder_data(write_classes(tmp_path / "photos", {"cat": 12, "dog": 14}), image_size=8)


def test_what_is_opened_is_what_was_saved(data, monkeypatch):
    saved = load(data)
    name = snapshot.save(data, saved)
    monkeypatch.setattr(datasets, "scan", lambda _: pytest.fail("the folder was listed"))
    found = snapshot.opened(data, ["of another sweep", name])
    for part in PARTS:
        before, after = getattr(saved, part), getattr(found, part)
        assert after.rows.tolist() == before.rows.tolist()
        assert after.labels.tolist() == before.labels.tolist()
        assert list(after.names) == list(before.names)
        assert (after.images() == before.images()).all()
        assert split_key(after) == split_key(before)
    for field in ("class_names", "fingerprint", "drawn", "superclasses", "value_range", "notes", "statistics"):
        assert getattr(found, field) == getattr(saved, field)


def test_arrays_are_mapped_but_for_the_labels(data):
    found = snapshot.opened(data, [snapshot.save(data, load(data))])
    assert all(isinstance(array, np.memmap) for array in (found.train.pool, found.train.rows, found.train.names.stored))


def test_other_settings_other_data(data):
    name = snapshot.save(data, load(data))
    assert snapshot.opened(data.model_copy(update={"split_seed": 5}), [name]) is None
    assert snapshot.opened(data, []) is None


def test_a_snapshot_whose_images_are_gone_is_not_used(data):
    name = snapshot.save(data, load(data))
    shutil.rmtree(cache_folder() / "images")
    assert snapshot.opened(data, [name]) is None


@pytest.mark.parametrize(("file", "content"), [("val.npy", b""), ("about.json", b"{"), ("train-labels.npy", b"no")])
def test_a_damaged_snapshot_is_not_used(file, content, data):
    name = snapshot.save(data, load(data))
    (cache_folder() / "datasets" / name / file).write_bytes(content)
    assert snapshot.opened(data, [name]) is None


def test_images_in_no_file_have_no_snapshot():
    digits = Data(dataset="digits")
    assert snapshot.save(digits, load(digits)) is None


def test_names_are_text_when_asked_for(tmp_path):
    names = ["a.png", "猫/1.png", "caf\udce9.jpg", "long" * 40]
    write_names(tmp_path / "names.npy", names)
    found = read_names(tmp_path / "names.npy")
    assert list(found) == names
    assert (len(found), found[1], found[-1], found[1:3]) == (4, names[1], names[3], names[1:3])
    picked = found.at(np.array([2, 0]))
    assert (list(picked), picked[0], picked[:1]) == ([names[2], names[0]], names[2], [names[2]])
    assert list(picked.at(np.array([1]))) == [names[0]]
    with pytest.raises(IndexError):
        Names(found.stored)[4]

"""Folders that cannot be meant: what is refused before any file is opened, in one sentence."""

import os
import sys
import unicodedata

import pytest

from raysweep.data.dataset import check, shape
from raysweep.recipe import RecipeError
from tests.data.image_files import folder_data, write_classes

CLASSES = {"cats": 3, "dogs": 3}
CAFE = unicodedata.normalize("NFC", "café")
raw_names = pytest.mark.skipif(sys.platform != "linux", reason="file systems elsewhere hold UTF-8 alone")


def nested(root, *folders, counts=CLASSES):
    for number, folder in enumerate(folders):
        write_classes(root / folder, counts, size=(8, 8), seed=100 * number)
    return root


def refusal(root):
    with pytest.raises(RecipeError) as caught:
        check(folder_data(root))
    return str(caught.value)


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (("part_1", "part_2"), "part_1, part_2 have no images of their own but the same folders (cats, dogs)"),
        (("seg_train/seg_train", "seg_test/seg_test"), "seg_test, seg_train have no images of their own but folders"),
        (("train/fold1", "train/fold2"), "fold1, fold2 have no images of their own but the same folders"),
        ((".", "test"), "test has no images of its own but folders named as the classes beside it (cats, dogs)"),
        ((".", "unknown"), "unknown has no images of its own but folders named as the classes beside it"),
        (("data",), "has 1 class folders; .* data holds cats, dogs: if these are what is meant, set data.root to it"),
        (("val", "eval", "train"), "two folders for one split: eval, val are all val; keep one"),
    ],
)
def test_splits_that_are_not_called_so_are_refused(folders, said, tmp_path):
    told = refusal(nested(tmp_path / "pets", *folders))
    assert all(part in told for part in said.split(" .* "))
    assert any(word in told for word in ("train, val and test", "train/", "keep one", "data.root"))


def test_splits_within_the_classes_are_refused(tmp_path):
    root = nested(tmp_path / "pets", "cats", "dogs", counts={"train": 3, "test": 2})
    assert "cats, dogs each hold test, train: the splits are to be outermost, as in test/cats" in refusal(root)


@pytest.mark.parametrize(
    "folders",
    [
        {"cats": {"persian": 2, "siamese": 2}, "dogs": {"poodle": 3}},  # kinds of a class
        {"cats": {"images": 3}, "dogs": {"images": 3}},
        {"train": {"a": 3}, "bus": {"b": 3}},
        {"cats": {".": 2, "left": 1, "right": 1}, "dogs": {".": 2, "left": 1, "right": 1}},
    ],
)
def test_folders_within_a_class_are_of_that_class(folders, tmp_path):
    root = tmp_path / "pets"
    for name, counts in folders.items():
        if name == "train":
            write_classes(root, {name: 3})
        else:
            write_classes(root / name, counts)
    told = shape(folder_data(root))
    assert told.classes == 2
    assert told.train + told.val + told.test == sum(map(sum, (counts.values() for counts in folders.values())))


def rename(path, name):
    """Give a file or folder a name that Python cannot write down."""
    path.rename(path.parent / os.fsdecode(name))


@raw_names
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("dogs", b"caf\xe9", r"a name is not UTF-8: 'caf\udce9'"),
        ("dogs/000.png", b"\xe9.png", r"a name is not UTF-8: 'dogs/\udce9.png'"),
        (".", b"p\xe9ts", r"p\udce9ts' is no name in UTF-8"),
    ],
)
def test_names_that_are_not_text(old, new, said, tmp_path):
    root = nested(tmp_path / "pets", ".")
    rename(root / old, new)
    told = refusal(tmp_path / os.fsdecode(new) if old == "." else root)
    assert said in told
    assert "rename" in told
    told.encode()  # what is shown can be shown


@raw_names
@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((CAFE, unicodedata.normalize("NFD", CAFE)), r"'cafe\u0301' and 'café'"),
        (("cat", "cat "), "'cat' and 'cat '"),
        (("cat", "cat\u00a0"), r"'cat' and 'cat\xa0'"),
    ],
)
def test_names_that_only_look_the_same(names, said, tmp_path):
    root = write_classes(tmp_path / "pets", {**dict.fromkeys(names, 3), "dog": 3})
    assert f"the class folders {said} have names that look the same and are not" in refusal(root)


@raw_names
def test_names_that_only_look_the_same_in_two_splits(tmp_path):
    for part, name in (("train", CAFE), ("val", unicodedata.normalize("NFD", CAFE))):
        write_classes(tmp_path / "pets" / part, {name: 3, "dog": 3})
    assert "look the same and are not" in refusal(tmp_path / "pets")


def test_names_in_any_script_are_welcome(tmp_path):
    root = write_classes(tmp_path / "写真", {"猫": 3, "Ωμέγα dogs": 3, "it's": 3})
    assert shape(folder_data(root)).classes == 3

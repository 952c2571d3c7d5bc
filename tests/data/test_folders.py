"""Folders of images, and what may be wrong with them."""

import re

import pytest

from raysweep.data.dataset import check, load, shape
from raysweep.recipe import Data, RecipeError
from tests.data.image_files import folder_data, write_classes, write_image


def test_class_folders_alone(tmp_path):
    root = write_classes(tmp_path / "pets", {"dog": 10, "cat": 5})
    write_image(root / "cat" / ".hidden.png")
    (root / "cat" / "notes.txt").write_text("not an image")
    (root / ".git").mkdir()
    loaded = load(folder_data(root))
    assert loaded.class_names == ("cat", "dog")
    assert len(loaded.train) + len(loaded.val) + len(loaded.test) == 15
    assert set(loaded.test.names) <= {path.relative_to(root).as_posix() for path in root.rglob("*.*")}
    for name, label in zip(loaded.train.names, loaded.train.labels, strict=True):
        assert name.startswith(loaded.class_names[label])


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_folders_of_splits(val, tmp_path):
    root = tmp_path / "pets"
    for part in ("train", val, "test"):
        write_classes(root / part, {"cat": 1, "dog": 2}, seed=len(part))
    loaded = load(folder_data(root))
    assert loaded.val.names == (f"{val}/cat/000.png", f"{val}/dog/000.png", f"{val}/dog/001.jpg")
    assert (len(loaded.train), len(loaded.test)) == (3, 3)


def test_a_missing_split_is_drawn_from_train(tmp_path):
    root = tmp_path / "pets"
    write_classes(root / "train", {"cat": 10, "dog": 10})
    write_classes(root / "val", {"cat": 3, "dog": 3})
    loaded = load(folder_data(root))
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (16, 6, 4)
    assert all(name.startswith("train/") for name in loaded.test.names)


def test_train_may_be_a_class(tmp_path):
    root = write_classes(tmp_path / "vehicles", {"bus": 4, "train": 4})
    assert shape(folder_data(root)).classes == 2


def test_no_folder(tmp_path):
    with pytest.raises(RecipeError, match=r"data.root=null: imagefolder needs the folder"):
        check(Data(dataset="imagefolder"))
    with pytest.raises(RecipeError, match=r"data.root=.*nowhere is not a folder"):
        check(folder_data(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "has 0 class folders"),
        ({"cat": 5}, "has 1 class folders; .* at least 2 classes"),
        ({"cat": 5, "dog": 0}, "too few images of dog; 2 of each class"),
        ({"cat": 5, "dog": 1, "eel": 1}, "too few images of dog, eel; 2 of each class"),
        ({"test": 5, "val": 5}, "has val, test, but no train/|has test, val, but no train/"),
    ],
)
def test_folders_that_cannot_be_split(counts, message, tmp_path):
    root = tmp_path / "pets"
    root.mkdir()
    with pytest.raises(RecipeError, match=message):
        check(folder_data(write_classes(root, counts)))


def test_classes_that_differ_between_splits(tmp_path):
    root = tmp_path / "pets"
    write_classes(root / "train", {"cat": 3, "dog": 3})
    write_classes(root / "val", {"cat": 1, "dogs": 1})
    write_classes(root / "test", {"cat": 1})
    with pytest.raises(RecipeError) as caught:
        check(folder_data(root))
    assert [
        re.search(r"(val|test) (lacks|alone has) the class folders (\w+)", p).groups() for p in caught.value.problems
    ] == [
        ("val", "lacks", "dog"),
        ("val", "alone has", "dogs"),
        ("test", "lacks", "dog"),
    ]


@pytest.mark.parametrize("linked", ["val", "val/cat"])
def test_one_folder_for_two_splits(linked, tmp_path):
    root = tmp_path / "pets"
    write_classes(root / "train", {"cat": 3, "dog": 3})
    if linked != "val":
        write_classes(root / "val", {"dog": 1})
    (root / linked).symlink_to(root / linked.replace("val", "train"), target_is_directory=True)
    with pytest.raises(RecipeError, match="train/cat and val/cat are the same folder"):
        check(folder_data(root))


def test_two_folders_for_one_split(tmp_path):
    root = tmp_path / "pets"
    for part in ("train", "val", "valid"):
        write_classes(root / part, {"cat": 3, "dog": 3})
    with pytest.raises(RecipeError, match="two folders for one split: val, valid are all val; keep one"):
        check(folder_data(root))

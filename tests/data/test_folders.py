"""Folders of images, and what may be wrong with them."""

import re

import pytest

from raysweep.data.dataset import check, load, shape
from raysweep.data.folders import ignored_files, image_suffixes
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


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("training", "valid", "testing"),
        ("training_set", "validation_set", "test_set"),
        ("Training Images", "Validation", "Test Images"),
        ("trainset", "dev", "holdout"),
        ("train-data", "eval", "hold-out"),
    ],
)
def test_folders_of_splits(train, val, test, tmp_path):
    root = tmp_path / "pets"
    for part, count in ((train, 1), (val, 2), (test, 3)):
        write_classes(root / part, {"cat": 1, "dog": count}, seed=10 * count)
    loaded = load(folder_data(root))
    assert tuple(loaded.val.names) == (f"{val}/cat/000.png", f"{val}/dog/000.png", f"{val}/dog/001.jpg")
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (2, 3, 4)
    assert loaded.class_names == ("cat", "dog")
    renamed = f"splits: train is {train}/, val is {val}/, test is {test}/"
    assert loaded.notes == (() if val == "val" else (renamed,))


def test_every_suffix_that_pillow_reads_is_read(tmp_path):
    root = write_classes(tmp_path / "pets", {"cat": 3, "dog": 3})
    suffixes = [
        "jfif", "jpe", "jp2", "gif", "avif", "pnm", "pbm", "ico", "tga", "qoi", "webp", "TIFF", "dib", "pcx", "sgi",
    ]  # fmt: skip
    readable = [suffix for suffix in suffixes if f".{suffix.lower()}" in image_suffixes()]
    assert len(readable) >= len(suffixes) - 2  # AVIF and JPEG 2000 may be left out of a build of Pillow
    for number, suffix in enumerate(readable):
        write_image(root / "dog" / f"x.{suffix}", seed=100 + number, size=(16, 16))
    loaded = load(folder_data(root))
    assert len(loaded.train) + len(loaded.val) + len(loaded.test) == 6 + len(readable)
    assert loaded.notes == ()


def test_what_is_not_read_is_counted_by_suffix(tmp_path):
    root = write_classes(tmp_path / "pets", {"cat": 3, "dog": 3})
    (root / "dog" / "inner").mkdir()
    for number in range(8):
        (root / "cat" / f"IMG_{number}.HEIC").write_bytes(b"")
    for number in range(3):
        (root / "dog" / "inner" / f"{number}.txt").write_text("")
    (root / "dog" / "README").write_text("")
    told = shape(folder_data(root))
    assert told.notes == ("ignored 12 files: .heic 8, .txt 3, without suffix 1",)
    assert load(folder_data(root)).notes == told.notes
    assert ignored_files({".txt": 1}) == "ignored 1 file: .txt 1"
    assert ignored_files({f".{n}": 20 - n for n in range(12)}).endswith(".7 13, others 42")


def test_a_class_whose_images_cannot_be_read_says_so(tmp_path):
    root = write_classes(tmp_path / "pets", {"cat": 3, "dog": 0})
    (root / "dog" / "IMG_1.heic").write_bytes(b"")
    with pytest.raises(RecipeError, match=r"too few images of dog \(ignored 1 file: .heic 1 in dog\); 2 of each"):
        check(folder_data(root))


def test_what_lies_beside_is_not_passed_over_in_silence(tmp_path):
    root = tmp_path / "pets"
    for part in ("train", "test", "unlabeled"):
        write_classes(root / part, {"cat": 3, "dog": 3}, seed=10 * len(part))
    write_image(root / "loose.png")
    write_image(root / "train" / "cat.jpg")
    loose, beside = shape(folder_data(root)).notes
    assert loose == "ignored 2 images in no class folder: loose.png, train/cat.jpg"
    assert beside.startswith("ignored the folder unlabeled beside train, test: splits are called train, val and test")


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

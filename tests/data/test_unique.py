"""Exact copies are left out before the data is split, and how many is said."""

import shutil

import pytest

from raysweep.data.audit import audit
from raysweep.data.dataset import load
from raysweep.data.findings import refuse_overlap
from raysweep.recipe import Data, RecipeError
from tests.data.image_files import folder_data, write_classes


def doubled(root, copies=1):
    """Every image more than once in its folder."""
    write_classes(root, {"cat": 10, "dog": 10}, size=(8, 8))
    for path in list(root.rglob("*.*")):
        for number in range(copies):
            shutil.copy(path, path.with_stem(f"{path.stem} copy{number}"))
    return root


def names_of(loaded):
    return {name for part in (loaded.train, loaded.val, loaded.test) for name in part.names}


def test_copies_are_dropped_and_counted(tmp_path):
    root = doubled(tmp_path / "pets")
    loaded = load(folder_data(root, drop_duplicates=True))
    assert loaded.notes == ("dropped 20 exact copies (data.drop_duplicates)",)
    assert len(names_of(loaded)) == 20
    assert not audit(loaded).pairs
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (13, 3, 4)  # split after they were dropped


def test_what_refuses_copies_names_the_way_out(tmp_path):
    loaded = load(folder_data(doubled(tmp_path / "pets", copies=4)))
    with pytest.raises(RecipeError, match=r"such as .* copy.*\. data.drop_duplicates=true leaves exact"):
        refuse_overlap(loaded, audit(loaded))


def test_of_splits_that_share_an_image_train_loses_it(tmp_path):
    root = tmp_path / "pets"
    for seed, part in enumerate(("train", "val", "test")):
        write_classes(root / part, {"cat": 4, "dog": 4}, size=(8, 8), seed=100 * seed)
    shutil.copy(root / "test" / "cat" / "000.png", root / "train" / "cat" / "copy.png")
    shutil.copy(root / "val" / "dog" / "000.png", root / "train" / "dog" / "copy.png")
    shutil.copy(root / "val" / "dog" / "000.png", root / "train" / "cat" / "wrong.png")
    loaded = load(folder_data(root, drop_duplicates=True))
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (8, 8, 8)
    assert not {name for name in names_of(loaded) if "copy" in name or "wrong" in name}
    assert loaded.notes == (
        "dropped 3 exact copies (data.drop_duplicates), 1 of them with another label than the one that was kept",
    )


def test_rows_still_point_at_their_images(tmp_path):
    root = doubled(tmp_path / "pets")
    whole, unique = load(folder_data(root)), load(folder_data(root, drop_duplicates=True))
    pixels = {
        name: image.tobytes()
        for part in (whole.train, whole.val, whole.test)
        for name, image in zip(part.names, part.images(), strict=True)
    }
    for name, image in zip(unique.train.names, unique.train.images(), strict=True):
        assert image.tobytes() == pixels[name]
        assert name.startswith(unique.class_names[unique.train.labels[unique.train.names.index(name)]])


def test_a_class_of_copies_alone_is_refused(tmp_path):
    root = write_classes(tmp_path / "pets", {"cat": 5, "dog": 1}, size=(8, 8))
    for index in range(3):
        shutil.copy(root / "dog" / "000.png", root / "dog" / f"copy{index}.png")
    with pytest.raises(RecipeError, match="without exact copies too few training images are left of dog"):
        load(folder_data(root, drop_duplicates=True))


def test_data_without_copies_stays_as_it_is():
    plain, unique = (load(Data(dataset="fake", drop_duplicates=drop)) for drop in (False, True))
    assert plain.fingerprint == unique.fingerprint
    assert unique.notes == ("data.drop_duplicates: no image is an exact copy of another",)

"""Folders are listed once, links are followed, loops are not."""

import os
from pathlib import Path

import pytest

from raysweep.data import folders, listing
from raysweep.data.dataset import load, shape
from raysweep.recipe import RecipeError
from tests.data.image_files import folder_data, write_classes


@pytest.fixture
def root(tmp_path):
    return write_classes(tmp_path / "pets", {"cats": 4, "dogs": 4})


def age(root, seconds=60):
    """Make all folders look as if they had not changed for a while."""
    for path in (root, *(path for path in root.rglob("*") if path.is_dir())):
        then = path.stat().st_mtime_ns - seconds * 10**9
        os.utime(path, ns=(then, then))


def test_links_to_folders_are_followed(root, tmp_path):
    write_classes(tmp_path / "elsewhere", {"more": 3}, seed=50)
    (root / "dogs" / "link").symlink_to(tmp_path / "elsewhere" / "more", target_is_directory=True)
    (root / "dogs" / "again").symlink_to(tmp_path / "elsewhere" / "more", target_is_directory=True)
    assert len(folders.scan(folder_data(root)).names) == 4 + 4 + 3


@pytest.mark.parametrize("target", ["dogs", "dogs/sub", "."])
def test_loops_are_not(root, target):
    write_classes(root / "dogs", {"sub": 2}, seed=50)
    (root / "dogs" / "sub" / "loop").symlink_to(root / target, target_is_directory=True)
    assert len(folders.scan(folder_data(root)).names) == 4 + 4 + 2


def test_a_link_into_another_class_is_refused(root):
    (root / "dogs" / "more").symlink_to(root / "cats", target_is_directory=True)
    with pytest.raises(RecipeError, match="cats and dogs/more are the same folder"):
        shape(folder_data(root))


@pytest.mark.parametrize("folder", ["@eaDir", ".thumbnails", "#recycle", "__MACOSX"])
@pytest.mark.parametrize("where", [".", "cats"])
def test_thumbnails_and_waste_bins_do_not_count(root, folder, where):
    write_classes(root / where, {folder: 2})
    files = folders.scan(folder_data(root))
    assert (len(files.names), files.class_names, files.notes) == (8, ("cats", "dogs"), ())


def test_a_folder_that_cannot_be_listed_is_named(root, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(listing.os, "scandir", refuse)
    with pytest.raises(RecipeError, match=r"data.root=.*: the folder \. cannot be listed \(Permission denied\)"):
        shape(folder_data(root))


def test_a_folder_is_listed_once(root, monkeypatch):
    age(root)
    listed, scandir = [], os.scandir
    monkeypatch.setattr(listing.os, "scandir", lambda path: (listed.append(Path(path).name), scandir(path))[1])
    for _ in range(3):
        shape(folder_data(root, val_fraction=0.3))
    assert sorted(listed) == ["cats", "dogs", "pets"]


@pytest.mark.parametrize("change", ["added", "removed", "folder"])
@pytest.mark.parametrize("aged", [True, False])
def test_a_change_is_seen(root, change, aged):
    if aged:
        age(root)
    shape(folder_data(root))
    if change == "added":
        write_classes(root, {"cats": 5}, seed=90)
    elif change == "removed":
        (root / "cats" / "000.png").unlink()
    else:
        write_classes(root, {"eels": 2}, seed=90)
    told, loaded = shape(folder_data(root)), load(folder_data(root))
    expected = {"added": 9, "removed": 7, "folder": 10}[change]
    assert told.train + told.val + told.test == expected
    assert len(loaded.train) + len(loaded.val) + len(loaded.test) == expected


def test_a_change_within_the_clocks_tick_is_seen(root):
    """A folder that changes twice in a tick has one time of change: only what is settled is remembered."""
    shape(folder_data(root))
    before = (root / "cats").stat().st_mtime_ns
    write_classes(root, {"cats": 5}, seed=90)
    os.utime(root / "cats", ns=(before, before))
    told = shape(folder_data(root))
    assert told.train + told.val + told.test == 9

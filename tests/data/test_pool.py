"""Images are decoded once, by one process, and what cannot be decoded is named."""

import json
import os
import re
import sys
import threading

import numpy as np
import pytest

from raysweep.data import decoding, pool
from raysweep.data.cache import cache_folder
from raysweep.data.dataset import load
from raysweep.recipe import RecipeError
from tests.data.image_files import folder_data, write_classes, write_image


@pytest.fixture
def images_folder():
    """Where decoded images lie."""
    return cache_folder() / "images"


def test_images_of_one_size_need_no_image_size(tmp_path):
    root = write_classes(tmp_path / "pets", {"cat": 3, "dog": 3}, size=(6, 9))
    assert load(folder_data(root, image_size=None)).train.pool.shape == (6, 3, 9, 6)
    write_image(root / "dog" / "big.png", size=(7, 9))
    with pytest.raises(RecipeError, match=r"dog/big.png is 7×9 pixels, cat/000.png is 6×9; set data.image_size"):
        load(folder_data(root, image_size=None))


def test_unreadable_images_are_named(tmp_path, images_folder):
    root = write_classes(tmp_path / "pets", {"cat": 10, "dog": 10})
    whole = (root / "cat" / "001.jpg").read_bytes()
    (root / "cat" / "001.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "dog" / "000.png").write_bytes(b"")
    (root / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(RecipeError) as caught:
        load(folder_data(root))
    assert [re.search(r": (\S+) is not a readable", text)[1] for text in caught.value.problems] == [
        "cat/001.jpg",
        "dog/000.png",
        "dog/gone.png",
    ]
    assert not [path for path in images_folder.iterdir() if path.suffix != ".lock"]  # nothing half-made is kept


def test_of_many_unreadable_images_five_are_named(tmp_path):
    root = write_classes(tmp_path / "pets", {"cat": 3, "dog": 8})
    for path in (root / "dog").iterdir():
        path.write_text("<html>404</html>")
    with pytest.raises(RecipeError, match="3 more images cannot be used") as caught:
        load(folder_data(root))
    assert len(caught.value.problems) == 6


def test_images_are_decoded_once(tmp_path, monkeypatch, images_folder):
    root = write_classes(tmp_path / "pets", {"cat": 4, "dog": 4})
    first = load(folder_data(root))
    monkeypatch.setattr(decoding, "decode", lambda *_: pytest.fail("decoded again"))
    second = load(folder_data(root, split_seed=7, val_fraction=0.5))
    assert isinstance(second.train.pool, np.memmap)
    assert (first.train.pool == second.train.pool).all()
    assert sorted(path.suffix for path in images_folder.iterdir()) == ["", ".lock"]


@pytest.mark.parametrize("change", ["touched", "replaced", "added", "resized"])
def test_a_changed_folder_is_decoded_again(change, tmp_path, images_folder):
    root = write_classes(tmp_path / "pets", {"cat": 4, "dog": 4})
    before = load(folder_data(root))
    if change == "touched":
        os.utime(root / "cat" / "000.png", (1, 1))
    elif change == "replaced":
        write_image(root / "cat" / "000.png", seed=99)
    elif change == "added":
        write_image(root / "cat" / "new.png", seed=99)
    after = load(folder_data(root, image_size=10 if change == "resized" else 8))
    assert len([path for path in images_folder.iterdir() if not path.suffix]) == 2
    assert (before.fingerprint == after.fingerprint) == (change == "touched")


def test_leavings_of_a_killed_process_are_cleared(tmp_path, images_folder):
    root = write_classes(tmp_path / "pets", {"cat": 3, "dog": 3})
    load(folder_data(root))
    (folder,) = (path for path in images_folder.iterdir() if not path.suffix)
    folder.rename(folder.with_suffix(".part"))
    (folder.with_suffix(".part") / "images.npy").write_bytes(b"half")
    assert len(load(folder_data(root)).train) == 2
    assert not folder.with_suffix(".part").exists()
    assert json.loads((folder / "about.json").read_text())["counts"] == {"train": 6}


def test_two_loads_at_once_build_one_cache(tmp_path, monkeypatch):
    root = write_classes(tmp_path / "pets", {"cat": 3, "dog": 3})
    built, write = [], pool.decode_all
    monkeypatch.setattr(pool, "decode_all", lambda *args: (built.append(1), write(*args)))
    threads = [threading.Thread(target=load, args=(folder_data(root),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1


def test_a_full_disk_is_noticed_first(tmp_path, monkeypatch):
    root = write_classes(tmp_path / "pets", {"cat": 3, "dog": 3})
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(RecipeError, match=r"lower data.image_size or set RAYSWEEP_CACHE"):
        load(folder_data(root))


@pytest.mark.skipif(sys.platform == "win32", reason="there a file's time of change is that of its making")
@pytest.mark.parametrize("how", ["written into", "put in its place"])
def test_other_pixels_under_the_same_name_size_and_time_are_decoded_again(how, tmp_path):
    root = tmp_path / "pets"
    for seed, name in enumerate(("cat/0.bmp", "cat/1.bmp", "dog/0.bmp", "dog/1.bmp")):
        write_image(root / name, seed, size=(8, 8))
    before = load(folder_data(root))
    file, other = root / "cat" / "0.bmp", write_image(tmp_path / "other.bmp", seed=99, size=(8, 8))
    stat = file.stat()
    assert other.stat().st_size == stat.st_size
    if how == "written into":
        file.write_bytes(other.read_bytes())
    else:
        other.replace(file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert load(folder_data(root)).fingerprint != before.fingerprint

"""The audit's files."""

import csv
import json
import warnings
from dataclasses import replace

import pytest
from PIL import Image

from raysweep.data import audit as module
from raysweep.data.audit import audit, worst, write
from raysweep.data.cache import cache_folder
from raysweep.data.findings import COLUMNS
from tests.data.planted_copies import dataset_of, plant, textures


def test_files(tmp_path, small, found):
    write(tmp_path, found, small)
    with (tmp_path / "audit.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert rows[0] == dict(
        zip(COLUMNS, ("exact", "train", "test", "0", "8", "class0", "class1", "1.0000", "False"), strict=True)
    )
    told = json.loads((tmp_path / "audit.json").read_text())
    assert told["pairs"][0] == {"kind": "exact", "split_a": "train", "split_b": "test", "pairs": 1}
    assert told["duplicated_test"] == [0, 1]
    assert told["contradicting_labels"] == told["val_with_copy_in_train"] == 1
    with Image.open(tmp_path / "audit_pairs.png") as picture:
        assert picture.width == 1350


def test_how_the_data_was_read_is_kept(tmp_path, small):
    noted = replace(small, notes=("ignored 1 file: .txt 1",))
    write(tmp_path, audit(noted), noted)
    assert json.loads((tmp_path / "audit.json").read_text())["notes"] == ["ignored 1 file: .txt 1"]


def test_names_that_no_font_has_are_put_into_words(tmp_path, small):
    """Of characters that are nobody's: matplotlib warns where it draws what a font has not."""
    splits = {
        part: replace(getattr(small, part), names=tuple(f"{name}\u0378.png" for name in getattr(small, part).names))
        for part in ("train", "val", "test")
    }
    named = replace(small, class_names=("cat", "\u4e02\U0002fa1d"), **splits)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(tmp_path, audit(named), named)
    assert (tmp_path / "audit_pairs.png").is_file()


def test_no_picture_of_nothing(tmp_path):
    clean = dataset_of(textures(10))
    folder = tmp_path / "run"
    write(folder, audit(clean), clean)
    assert sorted(path.name for path in folder.iterdir()) == ["audit.csv", "audit.json"]


def test_the_picture_shows_every_kind():
    images, _ = plant(textures(100), 10)
    shown = worst(audit(dataset_of(images)).pairs, 6)
    assert [pair.kind for pair in shown] == ["exact"] * 2 + ["mirror"] * 2 + ["near"] * 2


@pytest.fixture
def searches(monkeypatch):
    """How often copies were looked for."""
    calls = []
    find = module.find_pairs
    monkeypatch.setattr(module, "find_pairs", lambda *args: calls.append(1) or find(*args))
    return calls


def test_what_was_found_is_kept_for_the_next_sweep(small, found, searches):
    assert audit(small) == audit(small) == found
    assert len(searches) == 1
    named = replace(small, test=replace(small.test, names=("a", "b", "c", "d")))
    assert audit(named).pairs[0].b.name == "a"
    assert len(searches) == 1


def test_other_images_are_searched_anew(small, searches):
    audit(small)
    audit(replace(small, fingerprint="1" * 32))
    assert len(searches) == 2


@pytest.mark.parametrize("kept", ["[[1, 2]]", '[["exact", "train", 99, "test", 0, 1.0]]', "{}", "["])
def test_findings_that_were_damaged_are_searched_again(kept, small, found, searches):
    audit(small)
    (file,) = (cache_folder() / "audits").iterdir()
    file.write_text(kept)
    assert audit(small) == found
    assert len(searches) == 2


def test_findings_are_not_kept_in_a_cache_that_cannot_be_written(small, found, monkeypatch):
    monkeypatch.setenv("RAYSWEEP_CACHE", "/dev/full")
    assert audit(small) == found

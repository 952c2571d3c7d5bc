"""The section on duplicates, from the files that `raysweep.data.audit` writes (the names are checked in tests/data)."""

import json

import numpy as np
import pytest
from matplotlib.image import imread, imsave

from raysweep.report import page
from raysweep.report.figures.style import png
from raysweep.report.sections.audit import audit
from tests.report.synthetic_runs import digits_outcomes, final_result

FOUND = {
    "images": {"train": 100, "val": 40, "test": 50},
    "pairs": [
        {"kind": "exact", "split_a": "train", "split_b": "test", "pairs": 2},
        {"kind": "near", "split_a": "val", "split_b": "val", "pairs": 1},
    ],
    "test_with_copy_in_train": 2,
    "val_with_copy_in_train": 0,
    "contradicting_labels": 1,
    "imbalance": {"train": 9.0, "val": 1.0, "test": 1.0},
    "class_counts": {"train": {"cat": 90, "dog": 10}, "val": {"cat": 20, "dog": 20}, "test": {"cat": 25, "dog": 25}},
    "duplicated_test": [3, 7],
}
TABLE = """kind,split_a,split_b,name_a,name_b,label_a,label_b,similarity,same_label
exact,train,test,cat/1.png,dog/<b>.png,cat,dog,1.0000,False
exact,train,test,cat/2.png,cat/3.png,cat,cat,1.0000,True
near,val,val,cat/4.png,cat/5.png,cat,cat,0.9900,True
"""


def audited(run, found=FOUND, table=TABLE, picture=True):
    (run.folder / "audit.json").write_text(json.dumps(found))
    (run.folder / "audit.csv").write_text(table)
    if picture:
        pixels = np.random.RandomState(0).randint(0, 256, (60, 90, 3), dtype=np.uint8)
        imsave(run.folder / "audit_pairs.png", pixels)
    return page.gather([run])


def test_section_says_what_leaks_and_what_it_does(make_run):
    tested = {"test_accuracy": 0.964, "test_accuracy_without_duplicates": 0.962, "duplicated_test_images": 2}
    run = make_run(digits_outcomes(), final=final_result(**tested))
    section = audit(audited(run))
    assert "4.0 % of the 50 test images (2) have a copy in train or val" in section.text
    assert "Test accuracy is 96.4 % with them and 96.2 % without." in section.text
    assert "cat has 90 training images, dog has 10" in section.text
    assert section.table[0] == {"kind": "exact", "splits": "train – test", "pairs": "2"}
    assert section.table[1]["splits"] == "val"
    heading, lines = section.folded[0]
    assert heading == "1 pair of copies has contradicting labels"
    assert lines == "cat/1.png (train) is labelled cat, dog/<b>.png (test) dog: exact"


def test_how_the_data_was_read_is_said(digits_run):
    notes = ["ignored 12 files: .heic 8, .txt 4", "dropped 3 exact copies (data.drop_duplicates)"]
    text = audit(audited(digits_run, FOUND | {"notes": notes})).text
    assert text.endswith("Ignored 12 files: .heic 8, .txt 4. Dropped 3 exact copies (data.drop_duplicates).")


def test_of_several_final_fits_none_speaks_for_all(make_run):
    tested = {"test_accuracy": 0.964, "test_accuracy_without_duplicates": 0.962, "duplicated_test_images": 2}
    finals = {name: final_result(**tested) for name in ("best", "recommended")}
    section = audit(audited(make_run(digits_outcomes(), finals=finals)))
    assert "have a copy in train or val" in section.text
    assert "Test accuracy is" not in section.text


def test_picture_is_embedded_pixel_for_pixel(digits_run, tmp_path):
    section = audit(audited(digits_run))
    (tmp_path / "again.png").write_bytes(png(section.figure))
    before, after = imread(digits_run.folder / "audit_pairs.png"), imread(tmp_path / "again.png")
    assert after.shape[:2] == before.shape[:2]
    np.testing.assert_allclose(after[..., :3], before[..., :3], atol=1 / 255)


def test_no_audit_no_section(digits_run):
    assert audit(page.gather([digits_run])) is None


def test_clean_data_say_so(digits_run):
    clean = FOUND | {"pairs": [], "duplicated_test": [], "contradicting_labels": 0, "imbalance": {"train": 1.1}}
    section = audit(audited(digits_run, clean, TABLE.splitlines()[0] + "\n", picture=False))
    assert section.text == "No image was found to be a copy of another, within or across train, val and test."
    assert section.figure is None
    assert not section.table
    assert not section.folded


@pytest.mark.parametrize(("other", "headed"), [(FOUND, False), (FOUND | {"duplicated_test": []}, True)])
def test_runs_on_the_same_images_share_a_section(make_run, other, headed):
    runs = [make_run(digits_outcomes(), name) for name in ("one", "two")]
    for run, found in zip(runs, (FOUND, other), strict=True):
        audited(run, found)
    section = audit(page.gather(runs))
    assert ("run" in section.table[0]) is headed
    assert section.text.startswith("one: ") is headed

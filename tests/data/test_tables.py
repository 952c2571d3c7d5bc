"""Tables of files and labels in the place of class folders."""

import csv

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysweep.data.dataset import check, load, shape, split_key
from raysweep.recipe import Data, RecipeError
from raysweep.recipe import load as load_recipe
from tests.data.image_files import folder_data, write_classes, write_image

PARTS = ("train", "val", "test")


def write_table(path, rows, header=("file", "label")):
    """A table, CSV or Parquet by its suffix; cells may be of any type in Parquet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table(dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))), path)
        return path
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def table_data(path, **fields):
    return Data(dataset="imagefolder", labels=str(path), **({"image_size": 8} | fields))


def pets(root, count=10):
    """Files of two classes, in no order: rows of a table."""
    rows = []
    for number in range(count):
        for label in ("dog", "cat"):
            write_image(root / "images" / f"{label}{number}.png", seed=len(rows))
            rows.append((f"images/{label}{number}.png", label))
    return rows


def everything(dataset):
    return {part: (tuple(getattr(dataset, part).names), getattr(dataset, part).labels.tolist()) for part in PARTS}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_a_table_is_read_as_folders_are(suffix, seed, tmp_path):
    """The same files with the same labels: the same pool, splits and fingerprint but for the files' names."""
    root = write_classes(tmp_path / "pets", {"cat": 9, "dog": 12}, size=(8, 8))
    rows = [(path.relative_to(root).as_posix(), path.parent.name) for path in sorted(root.rglob("*.*"))]
    path = write_table(tmp_path / f"labels{suffix}", rows[::-1])
    if suffix == ".tsv":
        path.write_text(path.read_text().replace(",", "\t"))
    by_table = load(table_data(path, root=str(root), split_seed=seed))
    by_folder = load(folder_data(root, split_seed=seed))
    assert everything(by_table) == everything(by_folder)
    assert by_table.fingerprint == by_folder.fingerprint
    assert by_table.class_names == by_folder.class_names == ("cat", "dog")
    assert split_key(by_table.val) == split_key(by_folder.val)


def test_paths_are_below_the_tables_folder_unless_root_says_another(tmp_path):
    rows = pets(tmp_path / "a")
    inside = write_table(tmp_path / "a" / "labels.csv", rows)
    outside = write_table(tmp_path / "b" / "labels.csv", rows)
    assert load(table_data(inside)).fingerprint == load(table_data(outside, root=str(tmp_path / "a"))).fingerprint
    absolute = write_table(tmp_path / "c.csv", [(str(tmp_path / "a" / file), label) for file, label in rows])
    assert load(table_data(absolute)).fingerprint == load(table_data(inside)).fingerprint


def test_another_tables_labels_are_not_mixed_up(tmp_path):
    """Of the same files, decoded once before."""
    rows = pets(tmp_path)
    first = load(table_data(write_table(tmp_path / "one.csv", rows)))
    other = [(file, f"{'ab'[number % 3 == 0]}") for number, (file, _) in enumerate(rows)]
    second = load(table_data(write_table(tmp_path / "two.csv", other)))
    assert (first.class_names, second.class_names) == (("cat", "dog"), ("a", "b"))
    said = dict(other)
    for part in PARTS:
        split = getattr(second, part)
        assert [second.class_names[label] for label in split.labels] == [said[name] for name in split.names]


def test_a_changed_table_is_read_again(tmp_path):
    rows = pets(tmp_path)
    data = table_data(write_table(tmp_path / "labels.csv", rows))
    before = load(data)
    write_table(tmp_path / "labels.csv", [(file, "bird" if file.endswith("0.png") else label) for file, label in rows])
    assert load(data).class_names == ("bird", "cat", "dog")
    assert load(data).fingerprint != before.fingerprint


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([2, 10, 1], ("1", "2", "10")),
        ([0.0, 1.0, 3.0], ("0", "1", "3")),
        ([True, False, False], ("False", "True")),
        ([" x ", "x", "NA"], ("NA", "x")),
    ],
)
def test_labels_of_any_type(labels, classes, tmp_path):
    files = [write_image(tmp_path / f"{number}.png", number).name for number in range(9)]
    rows = [(file, labels[number % 3]) for number, file in enumerate(files)]
    path = write_table(tmp_path / "labels.parquet", rows, ("File ", "LABEL"))
    assert load(table_data(path)).class_names == classes


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "dev", "holdout")])
def test_given_splits_are_kept(names, tmp_path):
    rows = [(file, label, names[int(file[-5]) % 3]) for file, label in pets(tmp_path)]
    loaded = load(table_data(write_table(tmp_path / "labels.csv", rows, ("file", "label", "split"))))
    for index, part in enumerate(PARTS):
        assert sorted(getattr(loaded, part).names) == sorted(file for file, _, split in rows if split == names[index])
    assert (loaded.drawn, loaded.notes) == ((), ())
    some = [row for row in rows if row[2] != names[1]]
    assert load(table_data(write_table(tmp_path / "two.csv", some, ("file", "label", "split")))).drawn == ("val",)


def test_a_class_that_a_given_split_lacks_is_told(tmp_path):
    rows = [
        (file, label, "test" if file.endswith(("cat1.png", "cat2.png")) else "train") for file, label in pets(tmp_path)
    ]
    data = table_data(write_table(tmp_path / "labels.csv", rows, ("file", "label", "split")))
    assert shape(data).notes == load(data).notes == ("test has no images of dog",)


def test_shape_tells_what_load_gives(tmp_path):
    data = table_data(write_table(tmp_path / "labels.csv", pets(tmp_path)))
    loaded, told = load(data), shape(data)
    assert (told.train, told.val, told.test) == tuple(len(getattr(loaded, part)) for part in PARTS)
    assert (told.classes, told.notes) == (2, loaded.notes)


MISTAKES = [
    (("file", "klass"), [], "the table has no column label; it has file, klass"),
    (("image", "klass"), [], "the table has no column file and no column label; it has image, klass"),
    (("file", "label"), [("images/none.png", "cat")], r"1 file is not there: images/none.png; paths are taken below "),
    (("file", "label"), [("", "cat")], "1 row has no file, such as row 21 below the header"),
    (("file", "label"), [("images/cat11.png", " ")], "1 file has no label: images/cat11.png; fill it in or remove"),
    (("file", "label"), [("images/cat1.png", "cat")], "1 file has more than one row: images/cat1.png; keep one row"),
    (("file", "label"), [("./images/x/../cat1.png", "dog")], r"two labels: images/cat1.png \(cat, dog\); keep one row"),
    (("file", "label"), [("images/cat11.png", "cat\u00a0x"), ("images/cat12.png", "cat x")], "look the same"),
    (("file", "label"), [("images/cat11.png", "bird")], "split train has too few images of bird; 2 of each class"),
    (
        ("file", "label", "split"),
        [("images/cat11.png", "cat", "fold1")],
        "column split says fold1; splits are called",
    ),
    (("file", "label", "split"), [("images/cat11.png", "cat", "")], r"the column split says \(empty\); splits are"),
    (("file", "label", "group"), [("images/cat11.png", "cat", "")], "1 file has no group: images/cat11.png; fill it"),
]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(("header", "rows", "said"), MISTAKES)
def test_mistakes_are_answered_in_a_sentence(header, rows, said, suffix, tmp_path):
    more = {"split": "train", "group": "g"}
    start = [(*row, *(more[name] for name in header[2:])) for row in pets(tmp_path)]
    for number in (11, 12):
        write_image(tmp_path / "images" / f"cat{number}.png", number)
    path = write_table(tmp_path / f"labels{suffix}", [*start, *rows], header)
    with pytest.raises(RecipeError, match=said) as caught:
        check(table_data(path))
    assert len(caught.value.problems) == 1
    assert str(caught.value).startswith(f"data.labels={path}: ")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.csv", None, "cannot be read (No such file or directory); give a CSV or Parquet file"),
        ("labels.csv", b"", "the table has no column file and no column label; it is empty"),
        ("labels.csv", b"file,label\na.png,cat,dog\n", "line 2 has 3 cells where the first line has 2; put names with"),
        ("labels.csv", b"file,label\n\xe9.png,cat\n", "cannot be read ("),
        ("labels.csv", b"file,label\n", "no image is of the split train (there are no images)"),
        ("labels.parquet", b"no table", "cannot be read ("),
        ("labels.xlsx", b"", "a table is a file that ends in .csv, .tsv, .parquet"),
    ],
)
def test_files_that_are_no_tables(name, content, said, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        check(table_data(tmp_path / name))
    (problem,) = caught.value.problems
    assert said in problem and "\n" not in problem


def test_one_class_is_too_few(tmp_path):
    rows = [row for row in pets(tmp_path) if row[1] == "cat"]
    with pytest.raises(RecipeError, match="all images have the label cat; at least 2 classes are needed"):
        check(table_data(write_table(tmp_path / "labels.csv", rows)))


@pytest.mark.parametrize("field", ["labels", "group"])
def test_other_data_sets_have_no_tables(field):
    with pytest.raises(
        RecipeError, match=f"data.{field}=x goes with data.dataset=imagefolder or hf:…, not with digits"
    ):
        check(Data(dataset="digits", **{field: "x"}))


def test_unreadable_images_are_named_with_the_table(tmp_path):
    path = write_table(tmp_path / "labels.csv", pets(tmp_path))
    (tmp_path / "images" / "cat3.png").write_bytes(b"no image")
    with pytest.raises(RecipeError, match=f"data.labels={path}: images/cat3.png is not a readable image"):
        load(table_data(path))


def test_a_recipe_holds_the_tables_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(None, ["data.dataset=imagefolder", "data.labels=labels.csv", r"data.group=([a-z]+)\d"])
    assert recipe.data.labels == str(tmp_path / "labels.csv")
    assert recipe.data.group == r"([a-z]+)\d"


def test_duplicates_are_dropped_before_the_draw(tmp_path):
    rows = pets(tmp_path)
    for number in range(5):
        copy = tmp_path / "images" / f"copy{number}.png"
        copy.write_bytes((tmp_path / rows[number][0]).read_bytes())
        rows.append((f"images/{copy.name}", rows[number][1]))
    loaded = load(table_data(write_table(tmp_path / "labels.csv", rows), drop_duplicates=True))
    assert sum(len(getattr(loaded, part)) for part in PARTS) == 20
    assert np.unique(np.concatenate([getattr(loaded, part).rows for part in PARTS])).size == 20

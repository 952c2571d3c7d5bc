"""Data sets as `datasets.save_to_disk` writes them."""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from raysweep.data.dataset import check, load, shape
from raysweep.recipe import Data, RecipeError
from raysweep.recipe import load as load_recipe

datasets = pytest.importorskip("datasets", reason="pip install 'raysweep[hf]'")
PARTS = ("train", "val", "test")


def made(count=30, seed=0, names=("dog", "cat"), **columns):
    """A set of noise, whose labels are classes of `names` in turn."""
    random = np.random.RandomState(seed)
    images = [Image.fromarray(random.randint(0, 256, (10, 9, 3), dtype=np.uint8)) for _ in range(count)]
    content = {"image": images, "label": [index % len(names) for index in range(count)], **columns}
    made = datasets.Dataset.from_dict(content)
    made = made.cast_column("image", datasets.Image())
    return made.cast_column("label", datasets.ClassLabel(names=list(names)))


def saved(folder, content):
    content.save_to_disk(str(folder))
    return folder


def hub_data(folder, **fields):
    return Data(dataset=f"hf:{folder}", **({"image_size": 8} | fields))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_saved_set_is_split_and_decoded(seed, tmp_path):
    content = made()
    data = hub_data(saved(tmp_path / "set", content), split_seed=seed)
    loaded = load(data)
    assert loaded.class_names == ("dog", "cat")  # in the set's own order
    assert sorted([*loaded.train.names, *loaded.val.names, *loaded.test.names]) == sorted(
        f"train/{i}" for i in range(30)
    )
    assert loaded.train.images().shape[1:] == (3, 8, 8)
    for name, label in zip(loaded.test.names, loaded.test.labels, strict=True):
        assert content[int(name.split("/")[1])]["label"] == label
    told = shape(data)
    assert [len(getattr(loaded, part)) for part in PARTS] == [getattr(told, part) for part in PARTS]
    assert load(data).fingerprint == loaded.fingerprint
    assert load(data.model_copy(update={"split_seed": seed + 5})).fingerprint != loaded.fingerprint


def test_pixels_are_the_sets_own(tmp_path):
    content = made()
    loaded = load(Data(dataset=f"hf:{saved(tmp_path / 'set', content)}"))
    index = int(loaded.val.names[0].split("/")[1])
    assert (loaded.val.images([0])[0] == np.asarray(content[index]["image"]).transpose(2, 0, 1)).all()


def test_given_splits_are_kept_and_others_told(tmp_path):
    unlabelled = made(4).cast_column("label", datasets.Value("int64")).map(lambda row: row | {"label": -1})
    content = datasets.DatasetDict(
        {
            "train": made(20),
            "validation": made(6, 1),
            "extra": made(3, 2),
            "test": unlabelled.cast_column("label", datasets.ClassLabel(names=["dog", "cat"])),
        }
    )
    loaded = load(hub_data(saved(tmp_path / "set", content)))
    assert tuple(loaded.val.names) == tuple(f"val/{index}" for index in range(6))
    assert loaded.drawn == ("test",)
    assert loaded.notes == ("ignored the split extra", "ignored the split test: it has no labels")


@pytest.mark.parametrize("seed", [45, 7])
def test_groups_do_not_part(seed, tmp_path):
    content = made(40, patient=[f"p{index // 4}" for index in range(40)])
    loaded = load(hub_data(saved(tmp_path / "set", content), group="patient", split_seed=seed))
    found = [{int(name.split("/")[1]) // 4 for name in getattr(loaded, part).names} for part in PARTS]
    assert sum(map(len, found)) == 10 == len(set().union(*found))
    assert loaded.notes == ("10 groups of 4 images, each in one split (data.group)",)


def test_labels_of_another_column(tmp_path):
    folder = saved(tmp_path / "set", made(kind=[("b", "a", "c")[index % 3] for index in range(30)]))
    assert load(hub_data(folder)).class_names == ("dog", "cat")
    assert load(hub_data(folder, labels="kind")).class_names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("change", "fields", "said"),
    [
        (lambda c: c, {"labels": "lable"}, "data.labels=lable is not one of its columns; did you mean label?"),
        (lambda c: c, {"group": "patient"}, "data.group=patient is not one of its columns; choose one of image, label"),
        (lambda c: c.rename_column("label", "y").cast_column("y", datasets.Value("int8")).add_column("z", [*range(30)]),
         {}, "it has no column label; data.labels says which of its columns is meant: image, y, z"),
        (lambda c: c.remove_columns("image"), {}, "none of its columns holds images, or several do: label"),
        (lambda c: datasets.DatasetDict({"fold1": c, "fold2": c}), {}, "it has no split train, but fold1, fold2"),
        (lambda c: c.select(range(0, 30, 2)), {}, "all images have the label dog; at least 2 classes are needed"),
    ],
)  # fmt: skip
def test_sets_that_cannot_be_used(change, fields, said, tmp_path):
    data = hub_data(saved(tmp_path / "set", change(made())), **fields)
    with pytest.raises(RecipeError) as caught:
        check(data)
    (problem,) = caught.value.problems
    assert problem == f"data.dataset={data.dataset}: {said}"


def test_what_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(RecipeError, match="none: there is no such folder; give one that save_to_disk wrote"):
        check(hub_data(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match=r"it cannot be opened \(.*\); did save_to_disk write the folder\?"):
        check(hub_data(tmp_path / "empty"))
    with pytest.raises(
        RecipeError, match=r"data.dataset=hf:nobody/nothing: it cannot be opened \(.*is there a network"
    ):
        check(Data(dataset="hf:nobody/nothing"))
    monkeypatch.setattr("raysweep.data.hugging_face.importlib.util", SimpleNamespace(find_spec={}.get))
    with pytest.raises(RecipeError, match="the package datasets is not installed; pip install datasets"):
        check(Data(dataset="hf:x"))


def test_a_recipe_holds_the_folders_whole_path(tmp_path, monkeypatch):
    saved(tmp_path / "set", made())
    monkeypatch.chdir(tmp_path)
    assert load_recipe(None, ["data.dataset=hf:set"]).data.dataset == f"hf:{tmp_path / 'set'}"
    assert load_recipe(None, ["data.dataset=hf:mnist", "data.labels=y"]).data.labels == "y"
    assert importlib.util.find_spec("datasets")

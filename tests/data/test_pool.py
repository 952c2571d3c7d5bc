import json
import os
import re
import threading

import numpy as np
import pytest
from PIL import Image

from raysweep.data import pool as datasets
from raysweep.recipe import Data, RecipeError
from tests.image_files import write_cifar, write_classes, write_dtd, write_image, write_mnist, write_turned


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch, no_network):
    """A cache and a data folder of the test's own, and no network."""
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RAYSWEEP_DATA", str(tmp_path / "fetched"))
    return tmp_path / "cache" / "images"


def folder_data(root, **fields):
    return Data(dataset="imagefolder", root=str(root), **({"image_size": 8} | fields))


def rows_of(data):
    loaded = datasets.load(data)
    return {part: set(getattr(loaded, part).rows.tolist()) for part in ("train", "val", "test")}


def per_class(split):
    return np.bincount(split.labels).tolist()


# ---- splits ----


def test_splits_are_disjoint_and_together_everything():
    rows = rows_of(Data(dataset="digits"))
    assert rows["train"] | rows["val"] | rows["test"] == set(range(1797))
    assert sum(map(len, rows.values())) == 1797


def test_splits_follow_the_seed_alone():
    assert rows_of(Data(split_seed=1)) == rows_of(Data(split_seed=1))
    assert rows_of(Data(split_seed=1)) != rows_of(Data(split_seed=2))


def test_split_is_the_same_on_every_machine():
    """Worked once and written down: results are compared across machines and years."""
    assert datasets.load(Data(dataset="fake", limit=20)).val.rows.tolist() == [
        1,
        63,
        160,
        259,
        345,
        377,
        398,
        416,
        452,
        504,
    ]


def test_test_split_does_not_move_with_val_fraction():
    few, many = rows_of(Data(val_fraction=0.1)), rows_of(Data(val_fraction=0.5))
    assert few["test"] == many["test"]
    assert len(few["val"]) < len(many["val"])


def test_splits_are_stratified():
    loaded = datasets.load(Data(dataset="digits"))
    whole = np.bincount(np.concatenate([loaded.train.labels, loaded.val.labels, loaded.test.labels]))
    for part, share in ((loaded.test, 0.2), (loaded.val, 0.16), (loaded.train, 0.64)):
        assert np.abs(per_class(part) - share * whole).max() <= 2


@pytest.mark.parametrize(
    ("counts", "train", "val", "test"),
    [
        ([3, 3], [1, 1], [1, 1], [1, 1]),
        ([2, 30], [1, 20], [1, 4], [0, 6]),
        ([1, 40], [1, 25], [0, 7], [0, 8]),
    ],
)
def test_rare_classes_reach_train_then_val_then_test(counts, train, val, test):
    labels = np.repeat(np.arange(len(counts)), counts)
    rows = datasets.split(labels, {"train": len(labels)}, Data(val_fraction=0.2))
    got = [np.bincount(labels[rows[part]], minlength=2).tolist() for part in ("train", "val", "test")]
    assert got == [train, val, test]


@pytest.mark.parametrize("fraction", [0.01, 0.33, 0.5, 0.99])
def test_every_fraction_leaves_each_class_in_each_split(fraction):
    labels = np.repeat(np.arange(7), [3, 4, 5, 10, 50, 100, 333])
    rows = datasets.split(labels, {"train": len(labels)}, Data(val_fraction=fraction, test_fraction=fraction))
    assert all(len(set(labels[rows[part]])) == 7 for part in rows)
    assert sum(map(len, rows.values())) == len(labels) == len(set(np.concatenate(list(rows.values()))))


def test_limit_is_exact_stratified_and_shrinks_the_rest():
    loaded = datasets.load(Data(dataset="digits", limit=115))
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (115, 29, 36)
    assert min(per_class(loaded.train)) >= 11


def test_limit_holds_though_classes_are_rare():
    labels = np.repeat(np.arange(5), [1000, 10, 10, 10, 10])
    rows = datasets.split(labels, {"train": len(labels)}, Data(limit=6))
    assert len(rows["train"]) == 6
    assert set(labels[rows["train"]]) == set(range(5))


def test_limit_below_the_number_of_classes_is_refused():
    with pytest.raises(
        RecipeError, match=r"data.limit=9 is fewer images than the 10 classes of digits; give at least 10"
    ):
        datasets.check(Data(dataset="digits", limit=9))


# ---- splits as objects ----


def test_images_are_gathered_as_copies_of_a_read_only_pool():
    train = datasets.load(Data(dataset="digits")).train
    images = train.images([3, 1])
    assert (images.shape, images.dtype, images.flags.writeable) == ((2, 3, 8, 8), np.uint8, True)
    assert (images[1] == train.pool[train.rows[1]]).all()
    assert train.names[3] == f"train/{train.rows[3]}"
    with pytest.raises(ValueError, match="read-only"):
        train.pool[0] = 0


def test_statistics_worked_by_hand():
    pool = np.zeros((2, 3, 2, 2), dtype=np.uint8)
    pool[1, 0] = 255
    pool[:, 1] = 51
    split = datasets.Split(pool, np.arange(2), np.arange(2), ("a", "b"))
    statistics = datasets.channel_statistics(split)
    assert statistics.mean == pytest.approx((0.5, 0.2, 0.0))
    assert statistics.std == pytest.approx((0.5, 1 / 255, 1 / 255))  # never 0: images are divided by it


def test_fingerprint_follows_images_and_split():
    prints = [
        datasets.load(Data(dataset="fake", split_seed=seed, limit=limit)).fingerprint
        for seed, limit in ((1, None), (1, None), (2, None), (1, 50))
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


# ---- data made in memory ----


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    loaded, digits = datasets.load(Data(dataset="digits")), load_digits()
    assert loaded.class_names == tuple(str(name) for name in digits.target_names)
    for split in (loaded.train, loaded.val, loaded.test):
        gray = split.images()[:, 0]
        assert (gray == np.rint(digits.images[split.rows] * (255 / 16))).all()
        assert (split.labels == digits.target[split.rows]).all()


def test_digits_span_the_range_of_a_byte():
    loaded = datasets.load(Data(dataset="digits"))
    assert (loaded.train.pool.min(), loaded.train.pool.max()) == (0, 255)
    assert (loaded.train.pool[:, 0] == loaded.train.pool[:, 2]).all()
    assert loaded.class_names == tuple("0123456789")


def test_fake_images_can_be_learned():
    """The nearest class mean of training images is right for every test image."""
    loaded = datasets.load(Data(dataset="fake", image_size=16))
    train = loaded.train.images().astype(np.float32)
    means = np.stack([train[loaded.train.labels == label].mean(axis=0) for label in range(10)])
    distance = np.abs(loaded.test.images()[:, None] - means).mean(axis=(2, 3, 4))
    assert (distance.argmin(axis=1) == loaded.test.labels).all()


def test_fake_takes_a_number_of_classes():
    assert datasets.shape(Data(dataset="fake:200")) == datasets.Shape(200, 32, 400, 200, 200)
    assert len(datasets.load(Data(dataset="fake:200", image_size=8)).class_names) == 200


# ---- names ----


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("cifar", "data.dataset=cifar is not a data set; did you mean cifar10"),
        ("torchvision:Flowers", "no classification data set of torchvision; did you mean flowers102"),
        ("torchvision:VOCDetection", "torchvision:VOCDetection is no classification data set"),
        ("fake:many", "data.dataset=fake:many is not a data set; did you mean fake"),
        ("fake:1", "data.dataset=fake:1 has fewer than 2 classes"),
    ],
)
def test_unknown_data_sets(dataset, message):
    with pytest.raises(RecipeError, match=message):
        datasets.check(Data(dataset=dataset))


@pytest.mark.parametrize("dataset", ["digits", "fake", "fake:30", "imagefolder"])
@pytest.mark.parametrize("limit", [None, 35])
def test_shape_tells_what_load_gives(dataset, limit, tmp_path):
    root = write_classes(tmp_path / "pets", {"cat": 30, "dog": 21}) if dataset == "imagefolder" else None
    data = Data(dataset=dataset, root=root and str(root), limit=limit, image_size=8)
    loaded, shape = datasets.load(data), datasets.shape(data)
    assert shape.classes == len(loaded.class_names)
    assert (shape.train, shape.val, shape.test) == (len(loaded.train), len(loaded.val), len(loaded.test))
    assert loaded.train.pool.shape[1:] == (3, shape.image_size, shape.image_size)


def test_names_known_to_us_are_torchvisions():
    import torchvision.datasets

    assert set(datasets.TORCHVISION) <= set(torchvision.datasets.__all__)
    assert datasets.IMAGE_EXTENSIONS == torchvision.datasets.folder.IMG_EXTENSIONS


# ---- CIFAR and other sets of torchvision ----


def test_cifar10_has_its_own_test_split(tmp_path, monkeypatch):
    images = write_cifar(tmp_path / "data", monkeypatch)
    loaded = datasets.load(Data(dataset="cifar10", root=str(tmp_path / "data"), val_fraction=0.25))
    assert (per_class(loaded.train), per_class(loaded.val), per_class(loaded.test)) == ([3] * 10, [1] * 10, [1] * 10)
    assert (loaded.train.images() == images[loaded.train.rows]).all()
    assert (loaded.test.names[0], loaded.class_names[9]) == ("test/0", "name9")
    assert loaded.statistics == datasets.CIFAR10_STATISTICS
    assert isinstance(loaded.train.pool, np.memmap)


def test_cifar100_names_its_superclasses(tmp_path, monkeypatch):
    write_cifar(tmp_path / "fetched", monkeypatch, coarse=True)
    loaded = datasets.load(Data(dataset="cifar100"))  # in $RAYSWEEP_DATA
    superclasses = loaded.superclasses
    assert superclasses[0] == "fruit_and_vegetables"  # apple
    assert superclasses[99] == "non-insect_invertebrates"  # worm
    assert {superclasses.count(name) for name in superclasses} == {5}


@pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
def test_tampered_cifar_is_refused_before_it_is_unpickled(file, tmp_path, monkeypatch):
    write_cifar(tmp_path / "data", monkeypatch)
    (tmp_path / "data" / "cifar-10-batches-py" / file).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pickle.load", lambda *_, **__: pytest.fail("unpickled"))
    with pytest.raises(RecipeError, match=rf"cifar-10-batches-py holds corrupt files \({file}\): their MD5 sums"):
        datasets.load(Data(dataset="cifar10", root=str(tmp_path / "data")))
    assert not (tmp_path / "pwned").exists()


def test_missing_cifar_without_a_network(tmp_path):
    with pytest.raises(
        RecipeError, match=r"data.dataset=cifar10 is not in .*fetched .*no network.*data.root .*CIFAR10\("
    ):
        datasets.load(Data(dataset="cifar10"))


def test_verified_cifar_is_read_once(tmp_path, monkeypatch):
    write_cifar(tmp_path / "data", monkeypatch)
    data = Data(dataset="cifar10", root=str(tmp_path / "data"))
    first = datasets.load(data)
    monkeypatch.setattr("pickle.load", lambda *_, **__: pytest.fail("unpickled again"))
    assert datasets.load(data).fingerprint == first.fingerprint


def test_torchvision_set_that_takes_train(tmp_path):
    write_mnist(tmp_path / "data")
    loaded = datasets.load(Data(dataset="torchvision:MNIST", root=str(tmp_path / "data"), image_size=64))
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (30, 10, 20)
    assert loaded.train.pool.shape == (60, 3, 28, 28)  # its own size: resizing is the device's
    assert loaded.class_names[3] == "3 - three"


def test_torchvision_set_that_takes_split(tmp_path):
    write_dtd(tmp_path / "data")
    loaded = datasets.load(Data(dataset="torchvision:dtd", root=str(tmp_path / "data"), image_size=8, val_fraction=0.9))
    assert (per_class(loaded.train), per_class(loaded.val), per_class(loaded.test)) == ([3, 3], [3, 3], [3, 3])
    assert loaded.class_names == ("banded", "dotted")
    assert loaded.val.names[0] == "val/0"


def test_torchvision_set_that_takes_neither(tmp_path):
    write_classes(tmp_path / "data" / "eurosat" / "2750", {"Forest": 10, "River": 10}, size=(64, 64))
    loaded = datasets.load(Data(dataset="torchvision:EuroSAT", root=str(tmp_path / "data")))
    assert (per_class(loaded.train), per_class(loaded.val), per_class(loaded.test)) == ([6, 7], [2, 1], [2, 2])


def test_torchvision_set_that_cannot_be_fetched(tmp_path):
    with pytest.raises(RecipeError, match=r"torchvision:FER2013 is not in .*torchvision cannot fetch it"):
        datasets.load(Data(dataset="torchvision:FER2013"))


# ---- a folder of images ----


def test_class_folders_alone(tmp_path):
    root = write_classes(tmp_path / "pets", {"dog": 10, "cat": 5})
    write_image(root / "cat" / ".hidden.png")
    (root / "cat" / "notes.txt").write_text("not an image")
    (root / ".git").mkdir()
    loaded = datasets.load(folder_data(root))
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
    loaded = datasets.load(folder_data(root))
    assert loaded.val.names == (f"{val}/cat/000.png", f"{val}/dog/000.png", f"{val}/dog/001.jpg")
    assert (len(loaded.train), len(loaded.test)) == (3, 3)


def test_a_missing_split_is_drawn_from_train(tmp_path):
    root = tmp_path / "pets"
    write_classes(root / "train", {"cat": 10, "dog": 10})
    write_classes(root / "val", {"cat": 3, "dog": 3})
    loaded = datasets.load(folder_data(root))
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (16, 6, 4)
    assert all(name.startswith("train/") for name in loaded.test.names)


def test_train_may_be_a_class(tmp_path):
    root = write_classes(tmp_path / "vehicles", {"bus": 4, "train": 4})
    assert datasets.shape(folder_data(root)).classes == 2


def test_decoding_turns_crops_and_converts(tmp_path):
    with Image.open(write_turned(tmp_path / "turned.jpg")) as image:
        turned = datasets.decode(image, None)
    assert turned.shape == (3, 20, 10)
    assert turned[0, 2].min() > 200 > 50 > turned[0, -3].max()  # red above, black below
    with Image.open(tmp_path / "turned.jpg") as image:
        square = datasets.decode(image, 8)
    assert square.shape == (3, 8, 8)
    assert square[0, 0].min() > 200 > 50 > square[0, -1].max()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA"])
def test_every_mode_becomes_rgb(mode, tmp_path):
    with Image.open(write_image(tmp_path / "image.png", mode=mode)) as image:
        assert datasets.decode(image, 6).shape == (3, 6, 6)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.full((4, 4), 128 * 256, dtype=np.uint16)).save(tmp_path / "scan.png")
    with Image.open(tmp_path / "scan.png") as image:
        assert (datasets.decode(image, None) == 128).all()


def test_images_of_one_size_need_no_image_size(tmp_path):
    root = write_classes(tmp_path / "pets", {"cat": 3, "dog": 3}, size=(6, 9))
    assert datasets.load(folder_data(root, image_size=None)).train.pool.shape == (6, 3, 9, 6)
    write_image(root / "dog" / "big.png", size=(7, 9))
    with pytest.raises(RecipeError, match=r"dog/big.png is 7×9 pixels, cat/000.png is 6×9; set data.image_size"):
        datasets.load(folder_data(root, image_size=None))


def test_unreadable_images_are_named(tmp_path, cache):
    root = write_classes(tmp_path / "pets", {"cat": 10, "dog": 10})
    whole = (root / "cat" / "001.jpg").read_bytes()
    (root / "cat" / "001.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "dog" / "000.png").write_bytes(b"")
    (root / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(RecipeError) as caught:
        datasets.load(folder_data(root))
    assert [re.search(r": (\S+) is not a readable", text)[1] for text in caught.value.problems] == [
        "cat/001.jpg",
        "dog/000.png",
        "dog/gone.png",
    ]
    assert not [path for path in cache.iterdir() if path.suffix != ".lock"]  # nothing half-made is kept


def test_of_many_unreadable_images_five_are_named(tmp_path):
    root = write_classes(tmp_path / "pets", {"cat": 3, "dog": 8})
    for path in (root / "dog").iterdir():
        path.write_text("<html>404</html>")
    with pytest.raises(RecipeError, match="3 more images cannot be used") as caught:
        datasets.load(folder_data(root))
    assert len(caught.value.problems) == 6


# ---- what is wrong with a folder ----


def test_no_folder(tmp_path):
    with pytest.raises(RecipeError, match=r"data.root=null: imagefolder needs the folder"):
        datasets.check(Data(dataset="imagefolder"))
    with pytest.raises(RecipeError, match=r"data.root=.*nowhere is not a folder"):
        datasets.check(folder_data(tmp_path / "nowhere"))


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
        datasets.check(folder_data(write_classes(root, counts)))


def test_classes_that_differ_between_splits(tmp_path):
    root = tmp_path / "pets"
    write_classes(root / "train", {"cat": 3, "dog": 3})
    write_classes(root / "val", {"cat": 1, "dogs": 1})
    write_classes(root / "test", {"cat": 1})
    with pytest.raises(RecipeError) as caught:
        datasets.check(folder_data(root))
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
        datasets.check(folder_data(root))


def test_two_folders_for_one_split(tmp_path):
    root = tmp_path / "pets"
    for part in ("train", "val", "valid"):
        write_classes(root / part, {"cat": 3, "dog": 3})
    with pytest.raises(RecipeError, match=r"two folders for one split \(train, val, valid\)"):
        datasets.check(folder_data(root))


# ---- the cache ----


def test_images_are_decoded_once(tmp_path, monkeypatch, cache):
    root = write_classes(tmp_path / "pets", {"cat": 4, "dog": 4})
    first = datasets.load(folder_data(root))
    monkeypatch.setattr(datasets, "decode", lambda *_: pytest.fail("decoded again"))
    second = datasets.load(folder_data(root, split_seed=7, val_fraction=0.5))
    assert isinstance(second.train.pool, np.memmap)
    assert (first.train.pool == second.train.pool).all()
    assert sorted(path.suffix for path in cache.iterdir()) == ["", ".lock"]


@pytest.mark.parametrize("change", ["touched", "replaced", "added", "resized"])
def test_a_changed_folder_is_decoded_again(change, tmp_path, cache):
    root = write_classes(tmp_path / "pets", {"cat": 4, "dog": 4})
    before = datasets.load(folder_data(root))
    if change == "touched":
        os.utime(root / "cat" / "000.png", (1, 1))
    elif change == "replaced":
        write_image(root / "cat" / "000.png", seed=99)
    elif change == "added":
        write_image(root / "cat" / "new.png", seed=99)
    after = datasets.load(folder_data(root, image_size=10 if change == "resized" else 8))
    assert len([path for path in cache.iterdir() if not path.suffix]) == 2
    assert (before.fingerprint == after.fingerprint) == (change == "touched")


def test_leavings_of_a_killed_process_are_cleared(tmp_path, cache):
    root = write_classes(tmp_path / "pets", {"cat": 3, "dog": 3})
    datasets.load(folder_data(root))
    (folder,) = (path for path in cache.iterdir() if not path.suffix)
    folder.rename(folder.with_suffix(".part"))
    (folder.with_suffix(".part") / "images.npy").write_bytes(b"half")
    assert len(datasets.load(folder_data(root)).train) == 2
    assert not folder.with_suffix(".part").exists()
    assert json.loads((folder / "about.json").read_text())["counts"] == {"train": 6}


def test_two_loads_at_once_build_one_cache(tmp_path, monkeypatch):
    root = write_classes(tmp_path / "pets", {"cat": 3, "dog": 3})
    built, write = [], datasets._write_pool
    monkeypatch.setattr(datasets, "_write_pool", lambda *args: (built.append(1), write(*args)))
    threads = [threading.Thread(target=datasets.load, args=(folder_data(root),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1


def test_a_full_disk_is_noticed_first(tmp_path, monkeypatch):
    root = write_classes(tmp_path / "pets", {"cat": 3, "dog": 3})
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(RecipeError, match=r"lower data.image_size or set RAYSWEEP_CACHE"):
        datasets.load(folder_data(root))

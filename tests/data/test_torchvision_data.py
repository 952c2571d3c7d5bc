"""CIFAR and other sets of torchvision, in files as their authors wrote them."""

import inspect
import os

import numpy as np
import pytest
import torchvision

from raysweep.data import torchvision_data
from raysweep.data.cache import data_folder
from raysweep.data.catalogue import CIFAR10_STATISTICS, SHORT, TORCHVISION
from raysweep.data.dataset import load
from raysweep.recipe import Data, RecipeError
from tests.data.image_files import write_cifar, write_classes, write_dtd, write_image, write_mnist


def per_class(split):
    return np.bincount(split.labels).tolist()


def test_cifar10_has_its_own_test_split(tmp_path, monkeypatch):
    images = write_cifar(tmp_path / "data", monkeypatch)
    loaded = load(Data(dataset="cifar10", root=str(tmp_path / "data"), val_fraction=0.25))
    assert (per_class(loaded.train), per_class(loaded.val), per_class(loaded.test)) == ([3] * 10, [1] * 10, [1] * 10)
    assert (loaded.train.images() == images[loaded.train.rows]).all()
    assert (loaded.test.names[0], loaded.class_names[9]) == ("test/0", "name9")
    assert loaded.statistics == CIFAR10_STATISTICS
    assert isinstance(loaded.train.pool, np.memmap)


def test_cifar100_names_its_superclasses(monkeypatch):
    write_cifar(data_folder(), monkeypatch, coarse=True)
    loaded = load(Data(dataset="cifar100"))  # found in $RAYSWEEP_DATA
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
        load(Data(dataset="cifar10", root=str(tmp_path / "data")))
    assert not (tmp_path / "pwned").exists()


def test_missing_cifar_without_a_network():
    with pytest.raises(
        RecipeError, match=r"data.dataset=cifar10 is not in .*fetched .*no network.*data.root .*CIFAR10\("
    ):
        load(Data(dataset="cifar10"))


def test_verified_cifar_is_read_once(tmp_path, monkeypatch):
    write_cifar(tmp_path / "data", monkeypatch)
    data = Data(dataset="cifar10", root=str(tmp_path / "data"))
    first = load(data)
    monkeypatch.setattr("pickle.load", lambda *_, **__: pytest.fail("unpickled again"))
    assert load(data).fingerprint == first.fingerprint


def test_torchvision_set_that_takes_train(tmp_path):
    write_mnist(tmp_path / "data")
    loaded = load(Data(dataset="torchvision:MNIST", root=str(tmp_path / "data"), image_size=64))
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (30, 10, 20)
    assert loaded.train.pool.shape == (60, 3, 28, 28)  # its own size: resizing is the device's
    assert loaded.class_names[3] == "3 - three"


def test_torchvision_set_that_takes_split(tmp_path):
    write_dtd(tmp_path / "data")
    loaded = load(Data(dataset="torchvision:dtd", root=str(tmp_path / "data"), image_size=8, val_fraction=0.9))
    assert (per_class(loaded.train), per_class(loaded.val), per_class(loaded.test)) == ([3, 3], [3, 3], [3, 3])
    assert loaded.class_names == ("banded", "dotted")
    assert loaded.val.names[0] == "val/0"


def test_a_file_that_is_written_anew_is_read_again(tmp_path):
    write_dtd(tmp_path / "data")
    data = Data(dataset="torchvision:dtd", root=str(tmp_path / "data"), image_size=8)
    first, again = load(data), load(data)
    assert again.fingerprint == first.fingerprint
    file = next((tmp_path / "data" / "dtd").rglob("*.jpg"))
    content, stat = file.read_bytes(), file.stat()
    other = write_image(tmp_path / "other.jpg", seed=99).read_bytes()
    file.write_bytes(other)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert load(data).fingerprint != first.fingerprint
    file.write_bytes(content)
    assert load(data).fingerprint == first.fingerprint


@pytest.mark.parametrize("name", sorted(set(TORCHVISION) - set(SHORT.values())))
def test_where_a_set_lies_is_what_torchvision_says(name):
    """The place is in the source of its class, which names it in no other way."""
    wanted = torchvision_data.PLACES.get(name, name.lower()).strip("*")
    cls = getattr(torchvision.datasets, name)
    sources = [inspect.getsource(one) for one in cls.__mro__ if one.__module__.startswith("torchvision")]
    named_by_class = any("__class__.__name__" in text or "type(self).__name__" in text for text in sources)
    assert named_by_class or any(wanted in text.lower() for text in sources)


def test_torchvision_set_that_takes_neither(tmp_path):
    write_classes(tmp_path / "data" / "eurosat" / "2750", {"Forest": 10, "River": 10}, size=(64, 64))
    loaded = load(Data(dataset="torchvision:EuroSAT", root=str(tmp_path / "data")))
    assert (per_class(loaded.train), per_class(loaded.val), per_class(loaded.test)) == ([6, 7], [2, 1], [2, 2])


def test_torchvision_set_that_cannot_be_fetched():
    with pytest.raises(RecipeError, match=r"torchvision:FER2013 is not in .*torchvision cannot fetch it"):
        load(Data(dataset="torchvision:FER2013"))

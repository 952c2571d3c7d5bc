"""Data made in memory."""

import numpy as np
from sklearn.datasets import load_digits

from raysweep.data.dataset import Shape, load, shape
from raysweep.recipe import Data


def test_digits_are_scikit_learns():
    loaded, digits = load(Data(dataset="digits")), load_digits()
    assert loaded.class_names == tuple(str(name) for name in digits.target_names)
    for split in (loaded.train, loaded.val, loaded.test):
        gray = split.images()[:, 0]
        assert (gray == np.rint(digits.images[split.rows] * (255 / 16))).all()
        assert (split.labels == digits.target[split.rows]).all()


def test_digits_span_the_range_of_a_byte():
    loaded = load(Data(dataset="digits"))
    assert (loaded.train.pool.min(), loaded.train.pool.max()) == (0, 255)
    assert (loaded.train.pool[:, 0] == loaded.train.pool[:, 2]).all()
    assert loaded.class_names == tuple("0123456789")


def test_fake_images_can_be_learned():
    """The nearest class mean of training images is right for every test image."""
    loaded = load(Data(dataset="fake", image_size=16))
    train = loaded.train.images().astype(np.float32)
    means = np.stack([train[loaded.train.labels == label].mean(axis=0) for label in range(10)])
    distance = np.abs(loaded.test.images()[:, None] - means).mean(axis=(2, 3, 4))
    assert (distance.argmin(axis=1) == loaded.test.labels).all()


def test_fake_takes_a_number_of_classes():
    assert shape(Data(dataset="fake:200")) == Shape(200, 32, 400, 200, 200)
    assert len(load(Data(dataset="fake:200", image_size=8)).class_names) == 200

"""What each validation image adds to an objective, and how it is kept."""

import json
import math
import warnings

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from raysweep.sweep.evidence import (
    ImagePredictions,
    contributions,
    pack,
    read_labels,
    read_predictions,
    unpack,
    write_labels,
)
from tests.sweep.stored_predictions import write_predictions

LABELS = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 1, 1, 2, 2])
PROBABILITY = np.array([0.5, 0.9, 0.2, 0.8, 0.1, 0.6])
CLASSES = 3


def guesses(count, classes, seed=0, outputs=None):
    """Labels with rare classes, and predictions of which about half are right; of `outputs` there may be more."""
    random = np.random.default_rng(seed)
    labels = np.minimum(random.geometric(0.4, count) - 1, classes - 1)
    wrong = random.integers(0, outputs or classes, count)
    return labels, np.where(random.random(count) < 0.5, labels, wrong)


def adds(objective, labels, predicted, classes, probability=None):
    probability = np.full(len(labels), 0.5) if probability is None else probability
    return contributions(objective, predicted, probability, labels, classes)


# ---- by hand ----


def test_accuracy_is_one_for_each_image_that_is_right():
    found = adds("accuracy", LABELS, PREDICTED, CLASSES)
    assert found.dtype == bool
    assert found.tolist() == [True, True, False, True, False, True]


def test_balanced_accuracy_weighs_every_class_the_same():
    """Three images are of class 0, two of class 1, one of class 2: right ones add 6/9, 6/6 and 6/3."""
    found = adds("balanced_accuracy", LABELS, PREDICTED, CLASSES)
    assert found == pytest.approx([2 / 3, 2 / 3, 0, 1, 0, 2])
    assert found.mean() == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)


def test_loss_adds_the_logarithm_of_the_true_classs_probability():
    found = adds("loss", LABELS, PREDICTED, CLASSES, PROBABILITY)
    assert found == pytest.approx([math.log(value) for value in PROBABILITY])


def test_a_probability_of_nothing_is_a_finite_loss():
    assert adds("loss", LABELS[:1], PREDICTED[:1], CLASSES, np.zeros(1, np.float32)) == pytest.approx([math.log(1e-12)])


def test_macro_f1_adds_pseudo_values():
    """F1 is 2/3 and 4/5, mean 11/15; without the image it is 2/5, 1, 2/3, 2/3. 4 · 11/15 - 3 · that."""
    found = adds("macro_f1", np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), 2)
    assert found == pytest.approx([26 / 15, -1 / 15, 14 / 15, 14 / 15])


# ---- against scikit-learn ----


@pytest.mark.parametrize("classes", [2, 5, 12])
def test_the_mean_is_the_score(classes):
    """Of 30 images some of the twelve classes have none."""
    labels, predicted = guesses(30, classes)
    probability = np.random.default_rng(1).uniform(0.01, 1, 30)
    assert adds("accuracy", labels, predicted, classes).mean() == pytest.approx(accuracy_score(labels, predicted))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of classes that occur among the predictions alone
        expected = balanced_accuracy_score(labels, predicted)
    assert adds("balanced_accuracy", labels, predicted, classes).mean() == pytest.approx(expected)
    assert adds("loss", labels, predicted, classes, probability).mean() == pytest.approx(np.log(probability).mean())


@pytest.mark.parametrize(("classes", "outputs"), [(2, 2), (5, 5), (12, 12), (4, 9)])
def test_pseudo_values_are_those_of_the_jackknife(classes, outputs):
    """A kept classifier may predict what is no class of the data."""
    labels, predicted = guesses(40, classes, outputs=outputs)

    def score(kept):
        return f1_score(labels[kept], predicted[kept], labels=range(classes), average="macro", zero_division=0.0)

    everything = np.arange(40)
    naive = np.array([40 * score(everything) - 39 * score(np.delete(everything, i)) for i in everything])
    found = adds("macro_f1", labels, predicted, classes)
    assert found == pytest.approx(naive)
    assert found.mean() == pytest.approx(naive.mean())


def test_a_prediction_that_is_no_class_is_wrong():
    predicted = np.where(PREDICTED == LABELS, LABELS, 700)
    for objective in ("accuracy", "balanced_accuracy"):
        assert adds(objective, LABELS, predicted, CLASSES) == pytest.approx(adds(objective, LABELS, PREDICTED, CLASSES))


# ---- as text ----


@pytest.mark.parametrize("count", [1, 7, 8, 9, 1000])
def test_bits_return_from_text(count):
    values = np.random.default_rng(count).random(count) < 0.7
    text = pack(values)
    assert json.loads(json.dumps(text)) == text
    assert (unpack(text).dtype, unpack(text).tolist()) == (bool, values.tolist())


@pytest.mark.parametrize("objective", ["balanced_accuracy", "macro_f1", "loss"])
def test_numbers_return_from_text_in_half_precision(objective):
    labels, predicted = guesses(50, 4)
    values = adds(objective, labels, predicted, 4, np.linspace(0.01, 1, 50))
    assert unpack(pack(values)) == pytest.approx(values, rel=2**-11, abs=1e-7)


def test_of_ten_thousand_images_the_text_is_short():
    assert len(pack(np.ones(10_000, bool))) < 1_700


@pytest.mark.parametrize(
    "text", ["", "nonsense", "bits:three:AAAA", "half:3:AAAA", "whole:1:AAAA", "bits:8:é", "bits:8:A"]
)
def test_other_text_is_refused(text):
    with pytest.raises(ValueError):
        unpack(text)


# ---- on disk ----


@pytest.fixture
def found():
    random = np.random.default_rng(0)
    return ImagePredictions(3, random.integers(0, 9, 200), random.random(200), "0123456789abcdef")


def test_predictions_return_from_disk(tmp_path, found):
    write_predictions(tmp_path, "a", found)
    again = read_predictions(tmp_path, "a")
    assert (again.epoch, again.val_key) == (found.epoch, found.val_key)
    assert (again.predicted.dtype, again.true_probability.dtype) == (np.int32, np.float32)
    assert again.predicted.tolist() == found.predicted.tolist()
    assert again.true_probability == pytest.approx(found.true_probability, rel=1e-6)
    assert [path.name for path in (tmp_path / "predictions").iterdir()] == ["a.npz"]


def test_later_predictions_take_the_place_of_earlier_ones(tmp_path, found):
    for epoch in (1, 2):
        write_predictions(tmp_path, "a", ImagePredictions(epoch, found.predicted, found.true_probability, "k"))
    assert read_predictions(tmp_path, "a").epoch == 2


def test_labels_return_from_disk(tmp_path):
    write_labels(tmp_path, LABELS, CLASSES, "k")
    labels, classes, key = read_labels(tmp_path)
    assert (labels.tolist(), classes, key) == (LABELS.tolist(), CLASSES, "k")


def test_what_is_not_there_is_none(tmp_path):
    assert read_predictions(tmp_path, "a") is None
    assert read_labels(tmp_path) is None


def test_a_file_that_lacks_something_is_none(tmp_path):
    (tmp_path / "predictions").mkdir()
    for name in ("a", "validation"):
        np.savez(tmp_path / "predictions" / f"{name}.npz", epoch=1, classes=3)
    assert read_predictions(tmp_path, "a") is None
    assert read_labels(tmp_path) is None


def test_nothing_is_unpickled(tmp_path):
    (tmp_path / "predictions").mkdir()
    things = np.array([{}], dtype=object)
    np.savez(tmp_path / "predictions" / "a.npz", epoch=1, predicted=things, true_probability=things, val_key="k")
    assert read_predictions(tmp_path, "a") is None


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_none(tmp_path, found, share):
    write_predictions(tmp_path, "a", found)
    write_labels(tmp_path, LABELS, CLASSES, "k")
    for name in ("a", "validation"):
        path = tmp_path / "predictions" / f"{name}.npz"
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
    assert read_predictions(tmp_path, "a") is None
    assert read_labels(tmp_path) is None


def test_a_file_with_a_wrong_byte_is_none_or_what_it_was(tmp_path, found):
    """Whichever byte it is; those of times and the like do not matter."""
    write_predictions(tmp_path, "a", found)
    path = tmp_path / "predictions" / "a.npz"
    whole = path.read_bytes()
    lost = 0
    for place in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[place] ^= 0xFF
        path.write_bytes(changed)
        again = read_predictions(tmp_path, "a")
        lost += again is None
        assert again is None or again.predicted.tolist() == found.predicted.tolist()
    assert lost > len(whole) / 7 / 2

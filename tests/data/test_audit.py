"""Planted copies are found, clean images are not, and a test split that is the training split is refused."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from raysweep.data import pool as datasets
from raysweep.data.audit import COLUMNS, Findings, accuracy_without, audit, refuse_overlap, worst, write
from raysweep.data.pool import Dataset, Split
from raysweep.recipe import Data, RecipeError

CLEAN = 2400
COPIES = 100  # of each kind


def dataset_of(images, labels=None, splits=None, classes=2):
    """Names are indices into `images`; split at random in 3 : 1 : 1 unless rows are given."""
    labels = np.arange(len(images)) % classes if labels is None else np.asarray(labels)
    if splits is None:
        order = np.random.RandomState(0).permutation(len(images))
        splits = np.split(order, [3 * len(images) // 5, 4 * len(images) // 5])
    parts = [np.sort(rows) for rows in splits]
    made = [Split(images, rows, labels[rows], tuple(map(str, rows))) for rows in parts]
    return Dataset(*made, tuple(f"class{label}" for label in range(classes)), "0" * 32)


def textures(count, side=32, seed=0):
    """Random images with the spectrum of natural ones, 1 / frequency: (count, 3, side, side) uint8."""
    random = np.random.RandomState(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    frequency[0, 0] = 1
    shared, own = (
        np.fft.ifft2(np.fft.fft2(random.randn(count, channels, side, side)) / frequency).real for channels in (1, 3)
    )
    images = shared + 0.4 * own
    images *= random.uniform(15, 60, (count, 1, 1, 1)) / images.std((1, 2, 3), keepdims=True)
    return (images + random.uniform(80, 170, (count, 1, 1, 1))).clip(0, 255).astype(np.uint8)


def photographs(cell=40):
    """Pieces of scikit-learn's two photographs that are not flat: (n, 3, 32, 32) uint8."""
    pieces = []
    for name in ("china.jpg", "flower.jpg"):
        with Image.open(Path(sklearn.datasets.__file__).parent / "images" / name) as image:
            for y in range(0, image.height - cell + 1, cell):
                for x in range(0, image.width - cell + 1, cell):
                    piece = image.crop((x, y, x + cell, y + cell)).resize((32, 32), Image.Resampling.BICUBIC)
                    pieces.append(np.asarray(piece).transpose(2, 0, 1))
    images = np.stack(pieces)
    return images[images.mean(1).std((1, 2)) > 8]


def jpeg(image, quality):
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, "JPEG", quality=int(quality))
    with Image.open(file) as again:
        return np.asarray(again.convert("RGB")).transpose(2, 0, 1)


def plant(images, copies, seed=0):
    """Add exact, mirrored, JPEG and mirrored JPEG copies; returns all images and the pairs by kind."""
    random = np.random.RandomState(seed)
    quality = iter(random.randint(50, 91, 2 * copies))
    makers = {
        "exact": lambda image: image,
        "mirror": lambda image: image[..., ::-1],
        "jpeg": lambda image: jpeg(image, next(quality)),
        "mirrored jpeg": lambda image: jpeg(np.ascontiguousarray(image[..., ::-1]), next(quality)),
    }
    everything, pairs = list(images), {}
    for kind, make in makers.items():
        pairs[kind] = []
        for source in random.choice(len(images), copies, replace=False):
            pairs[kind].append(frozenset((str(source), str(len(everything)))))
            everything.append(make(images[source]))
    return np.stack(everything), pairs


def found_by(findings, *kinds):
    return {frozenset((pair.a.name, pair.b.name)) for pair in findings.pairs if not kinds or pair.kind in kinds}


def recall(findings, pairs):
    found = found_by(findings)
    return {kind: np.mean([pair in found for pair in planted]) for kind, planted in pairs.items()}


def flagged(findings, *kinds):
    """Share of the images that are in a pair of these kinds."""
    return len(set().union(*found_by(findings, *kinds))) / sum(findings.images.values())


def digits():
    return datasets.load(Data(dataset="digits"))


@pytest.fixture(scope="module")
def small():
    """Twelve images: 0 = 3 exactly across splits with another label, 1 mirrored in test, 2 as JPEG in val."""
    images = textures(12)
    images[8], images[9], images[5] = images[0], images[1][..., ::-1], jpeg(images[2], 80)
    return dataset_of(images, [0, 1, 0, 1, 0, 0, 1, 0, 1, 1, 0, 1], [range(5), range(5, 8), range(8, 12)])


@pytest.fixture(scope="module")
def found(small):
    return audit(small)


# ---- what is found ----


def test_small_case_by_hand(found):
    seen = [(pair.kind, pair.a.name, pair.b.name, pair.same_label) for pair in found.pairs]
    assert seen == [("exact", "0", "8", False), ("mirror", "1", "9", True), ("near", "2", "5", True)]
    assert found.duplicated_test == (0, 1)
    assert found.contradicting == 1
    assert found.copied("val", "train") == {0}
    assert found.class_counts["train"] == {"class0": 3, "class1": 2}
    assert found.imbalance == {"train": 1.5, "val": 2.0, "test": 3.0}


@pytest.mark.parametrize("source", ["digits", "photographs"])
def test_planted_copies_are_found(source):
    images = np.array(digits().train.pool) if source == "digits" else photographs()
    everything, pairs = plant(images, 60 if source == "digits" else 20)
    rates = recall(audit(dataset_of(everything)), pairs)
    assert rates["exact"] == rates["mirror"] == 1
    assert min(rates["jpeg"], rates["mirrored jpeg"]) >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_acceptance_in_a_folder_of_files(tmp_path, seed):
    """Thousands of files on disk: ≥ 95 % of exact and mirrored, ≥ 80 % of JPEG copies, ≤ 1 % false exact ones."""
    clean = textures(CLEAN, 40, seed)
    everything, pairs = plant(clean, COPIES, seed)
    order = np.random.RandomState(seed).permutation(len(everything))
    for place, index in enumerate(order):
        split = "train" if place % 5 < 3 else "val" if place % 5 == 3 else "test"
        folder = tmp_path / split / f"class{place % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(everything[index].transpose(1, 2, 0)).save(folder / f"{index}.png")
    dataset = datasets.load(Data(dataset="imagefolder", root=str(tmp_path), image_size=32))
    findings = audit(dataset)
    named = {frozenset(Path(name).stem for name in pair) for pair in found_by(findings)}
    rates = {kind: np.mean([pair in named for pair in planted]) for kind, planted in pairs.items()}
    assert min(rates["exact"], rates["mirror"]) >= 0.95
    assert min(rates["jpeg"], rates["mirrored jpeg"]) >= 0.8
    planted = set().union(*(pair for kind in pairs.values() for pair in kind))
    exact = {Path(name).stem for pair in found_by(findings, "exact") for name in pair}
    assert len(exact - planted) <= 0.01 * CLEAN
    refuse_overlap(dataset, findings)


def test_clean_digits_are_hardly_flagged():
    """1,797 digits of 8×8 pixels that really resemble each other: measured 0 exact, 0.2 % near."""
    findings = audit(digits())
    assert flagged(findings, "exact", "mirror") == 0
    assert flagged(findings, "near") <= 0.005


@pytest.mark.parametrize("images", [textures(1500), np.array(datasets.load(Data(dataset="fake")).train.pool)])
def test_other_clean_images_are_not_flagged(images):
    assert not audit(dataset_of(images)).pairs


def test_a_group_of_equal_images_gives_few_pairs():
    """Forty equal images would be 780 pairs: each is paired with the first of every split."""
    images = np.concatenate([textures(20), np.repeat(textures(1, seed=1), 40, axis=0)])
    findings = audit(dataset_of(images, splits=[range(40), range(40, 50), range(50, 60)]))
    assert len(findings.pairs) == 40 * 3 - 3 - 3  # not with themselves, and the three firsts once with each other
    assert findings.duplicated_test == tuple(range(10))


def test_features_find_what_the_pixels_do_not_propose(monkeypatch):
    """Candidates by features are confirmed on pixels all the same."""
    monkeypatch.setattr("raysweep.data.audit.NEIGHBOURS", 2)
    images = textures(60)
    images[50] = jpeg(images[3], 70)
    data = dataset_of(images, splits=[range(40), range(40, 50), range(50, 60)])
    same = np.random.RandomState(0).randn(60, 100).astype(np.float32)
    same[50], same[51] = same[3], same[4]  # 51 and 4 are not alike
    features = {"train": same[:40], "val": same[40:50], "test": same[50:]}
    assert found_by(audit(data, features)) == {frozenset(("3", "50"))}


def test_flat_and_tiny_images_do_no_harm():
    black = np.zeros((6, 3, 8, 8), np.uint8)
    black[5] = 255
    findings = audit(dataset_of(black, splits=[[0, 1], [2, 3], [4, 5]]))
    assert findings.duplicated_test == (0,)
    one = np.arange(4, dtype=np.uint8).repeat(3).reshape(4, 3, 1, 1) * 60
    assert not audit(dataset_of(one, splits=[[0, 1], [2], [3]])).pairs
    same = np.repeat(one[:1], 4, axis=0)
    assert len(audit(dataset_of(same, splits=[[0, 1], [2], [3]])).pairs) == 6


def test_many_images_are_compared_with_val_and_test_alone(monkeypatch):
    monkeypatch.setattr("raysweep.data.audit.EVERY_PAIR", 10)
    images = textures(30)
    images[1], images[25] = jpeg(images[0], 80), jpeg(images[2], 80)
    findings = audit(dataset_of(images, splits=[range(20), range(20, 24), range(24, 30)]))
    assert found_by(findings) == {frozenset(("2", "25"))}


# ---- what follows ----


def test_test_split_that_is_the_training_split_is_refused(tmp_path):
    for split in ("train", "test"):
        for label in range(2):
            folder = tmp_path / split / f"class{label}"
            folder.mkdir(parents=True)
            for index, image in enumerate(textures(20, seed=label)):
                Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{split}{index}.png")
    dataset = datasets.load(Data(dataset="imagefolder", root=str(tmp_path), image_size=32))
    with pytest.raises(RecipeError, match="32 of the 32 train images are test images too"):
        refuse_overlap(dataset, audit(dataset))


def test_one_shared_row_is_refused_and_some_equal_images_are_not(small, found):
    refuse_overlap(small, found)
    images = textures(12)
    shared = dataset_of(images, splits=[range(6), range(6, 9), [5, 9, 10, 11]])
    with pytest.raises(RecipeError, match="1 of the 4 test images are train images too"):
        refuse_overlap(shared, audit(shared))


def test_accuracy_with_and_without():
    correct = np.array([True, True, False, True, False])
    assert accuracy_without(correct, [0, 1]) == {
        "test_accuracy": 0.6,
        "test_accuracy_without_duplicates": pytest.approx(1 / 3),
        "duplicated_test_images": 2,
    }
    assert accuracy_without(correct, [])["test_accuracy_without_duplicates"] == 0.6
    assert accuracy_without(correct, range(5))["test_accuracy_without_duplicates"] is None


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


def test_no_picture_of_nothing(tmp_path):
    clean = dataset_of(textures(10))
    write(tmp_path, audit(clean), clean)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit.csv", "audit.json"]


def test_the_picture_shows_every_kind():
    images, _ = plant(textures(100), 10)
    shown = worst(audit(dataset_of(images)).pairs, 6)
    assert [pair.kind for pair in shown] == ["exact"] * 2 + ["mirror"] * 2 + ["near"] * 2


def test_nothing_is_a_finding():
    assert Findings((), {"test": {"a": 1}}).duplicated_test == ()

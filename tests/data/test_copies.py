"""Planted copies are found, clean images are not."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raysweep.data.audit import audit
from raysweep.data.dataset import load
from raysweep.data.findings import refuse_overlap
from raysweep.recipe import Data
from tests.data.planted_copies import dataset_of, flagged, found_by, photographs, plant, recall, textures

CLEAN = 2400


COPIES = 100  # of each kind


@pytest.mark.parametrize("source", ["digits", "photographs"])
def test_planted_copies_are_found(source):
    images = np.array(load(Data()).train.pool) if source == "digits" else photographs()
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
    dataset = load(Data(dataset="imagefolder", root=str(tmp_path), image_size=32))
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
    findings = audit(load(Data()))
    assert flagged(findings, "exact", "mirror") == 0
    assert flagged(findings, "near") <= 0.005


@pytest.mark.parametrize("source", ["textures", "fake"])
def test_other_clean_images_are_not_flagged(source):
    images = textures(1500) if source == "textures" else np.array(load(Data(dataset="fake")).train.pool)
    assert not audit(dataset_of(images)).pairs


def test_a_group_of_equal_images_gives_few_pairs():
    """Forty equal images would be 780 pairs: each is paired with the first of every split."""
    images = np.concatenate([textures(20), np.repeat(textures(1, seed=1), 40, axis=0)])
    findings = audit(dataset_of(images, splits=[range(40), range(40, 50), range(50, 60)]))
    assert len(findings.pairs) == 40 * 3 - 3 - 3  # not with themselves, and the three firsts once with each other
    assert findings.duplicated_test == tuple(range(10))


def test_flat_and_tiny_images_do_no_harm():
    black = np.zeros((6, 3, 8, 8), np.uint8)
    black[5] = 255
    findings = audit(dataset_of(black, splits=[[0, 1], [2, 3], [4, 5]]))
    assert findings.duplicated_test == (0,)
    one = np.arange(4, dtype=np.uint8).repeat(3).reshape(4, 3, 1, 1) * 60
    assert not audit(dataset_of(one, splits=[[0, 1], [2], [3]])).pairs
    same = np.repeat(one[:1], 4, axis=0)
    assert len(audit(dataset_of(same, splits=[[0, 1], [2], [3]])).pairs) == 6


def test_many_images_are_compared_with_those_in_near_cells(monkeypatch):
    """What takes the place of comparing all with all misses no copy, within train either."""
    monkeypatch.setattr("raysweep.data.copies.ALL_COMPARED", 0)
    monkeypatch.setattr("raysweep.data.copies.PROBES", 4)
    everything, pairs = plant(textures(600), 40)
    assert min(recall(audit(dataset_of(everything)), pairs).values()) == 1

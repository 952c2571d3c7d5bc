"""Greys of more than 8 bits: one range for a whole data set; data that shows nothing is refused."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from raysweep.data.dataset import load
from raysweep.recipe import RecipeError
from tests.data.image_files import folder_data, write_classes


def write_greys(root, low, high, kind=np.uint16, suffix="png", count=4, side=8):
    """Two classes of noise from `low` to `high`, both of which occur."""
    random = np.random.RandomState(0)
    for name in ("cats", "dogs"):
        (root / name).mkdir(parents=True)
        for index in range(count):
            values = random.uniform(low, high, (side, side)).astype(kind)
            values[0, :2] = low, high
            Image.fromarray(values).save(root / name / f"{index}.{suffix}")
    return root


def write_png48(path, values):
    """A PNG file of 16 bits a colour, which Pillow does not write: values are (height, width, 3)."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0),
        b"IDAT": zlib.compress(rows),
        b"IEND": b"",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    framed = (
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks.items()
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))


@pytest.mark.parametrize(
    ("low", "high", "kind", "suffix"),
    [
        (0, 255, np.uint16, "png"),
        (0, 4_095, np.uint16, "png"),
        (0, 65_535, np.uint16, "png"),
        (0, 255, np.int32, "tif"),
        (-1_000, 3_000, np.int32, "tif"),
        (0, 1, np.float32, "tif"),
    ],
)
def test_greys_of_any_range_fill_the_levels(low, high, kind, suffix, tmp_path):
    loaded = load(folder_data(write_greys(tmp_path / "scans", low, high, kind, suffix)))
    assert loaded.value_range == (low, high)
    for part in (loaded.train, loaded.val, loaded.test):
        for image, name in zip(part.images(), part.names, strict=True):
            values = np.asarray(Image.open(tmp_path / "scans" / name)).astype(float)
            expected = (values - low) * 255 / (high - low)
            assert np.abs(image - expected).max() <= 0.5
    assert loaded.notes == (
        f"all 8 images have more than 8 bits: their values, from {low:,g} to {high:,g}, are scaled to 256 levels; "
        "data.value_range=[low, high] sets another range",
    )


def test_one_range_for_all_splits(tmp_path):
    """Half as bright in test is half as bright for the network."""
    write_greys(tmp_path / "scans" / "train", 0, 4_000)
    write_greys(tmp_path / "scans" / "test", 0, 2_000)
    loaded = load(folder_data(tmp_path / "scans"))
    assert loaded.value_range == (0, 4_000)
    assert (loaded.train.images().max(), loaded.test.images().max()) == (255, 128)


def test_the_range_can_be_set(tmp_path):
    root = write_greys(tmp_path / "scans", 0, 4_095)
    loaded = load(folder_data(root, value_range=(0, 1_000)))
    assert loaded.value_range == (0, 1_000)
    assert (loaded.train.images() == 255).mean() > 0.5
    assert "values from 0 to 4,095, of which 0 to 1,000 (data.value_range) are scaled" in loaded.notes[0]
    assert load(folder_data(root)).value_range == (0, 4_095)


def test_images_of_8_bits_stay_as_they_are(tmp_path):
    root = write_greys(tmp_path / "mixed", 0, 1_000)
    write_classes(root, {"eels": 3}, size=(8, 8))
    loaded = load(folder_data(root))
    assert loaded.notes[0].startswith("8 of 11 images have more than 8 bits")
    for part in (loaded.train, loaded.val, loaded.test):
        for image, name in zip(part.images(), part.names, strict=True):
            if name.startswith("eels"):
                assert (image == np.asarray(Image.open(root / name)).transpose(2, 0, 1)).all()


def test_a_range_that_nothing_needs_is_said(tmp_path):
    loaded = load(folder_data(write_classes(tmp_path / "pets", {"cat": 3, "dog": 3}), value_range=(0, 9)))
    assert loaded.value_range is None
    assert loaded.notes == ("data.value_range is not used: no image has greys of more than 8 bits",)


@pytest.mark.parametrize(
    ("values", "fields", "said"),
    [
        (7, {}, "all 8 images hold one value each, 7, such as cats/0.png: there is nothing to learn"),
        (None, {"value_range": (5_000, 6_000)}, r"data.value_range=\[5000, 6000\] makes each of 8 images one grey"),
    ],
)
def test_data_that_shows_nothing_is_refused_with_the_cause(values, fields, said, tmp_path):
    root = write_greys(tmp_path / "scans", 0, 255)
    if values is not None:
        for path in root.rglob("*.png"):
            Image.fromarray(np.full((8, 8), values, dtype=np.uint16)).save(path)
    with pytest.raises(RecipeError, match=said):
        load(folder_data(root, **fields))


def test_black_images_of_8_bits_are_refused(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (8, 8)).save(tmp_path / "pets" / name / f"{index}.png")
    with pytest.raises(RecipeError, match=r"all 6 images are one grey throughout, such as cat/0.png"):
        load(folder_data(tmp_path / "pets"))


def test_one_empty_image_among_others_is_not(tmp_path):
    root = write_greys(tmp_path / "scans", 0, 255)
    Image.fromarray(np.full((8, 8), 9, dtype=np.uint16)).save(root / "cats" / "0.png")
    assert load(folder_data(root)).value_range == (0, 255)


def test_values_that_are_not_finite_are_named(tmp_path):
    root = write_greys(tmp_path / "scans", 0, 1, np.float32, "tif")
    Image.fromarray(np.full((8, 8), np.nan, dtype=np.float32)).save(root / "dogs" / "2.tif")
    with pytest.raises(RecipeError, match=r"dogs/2.tif is not a readable image \(it has values that are not finite\)"):
        load(folder_data(root))


@pytest.mark.parametrize("highest", [4_095, 65_535])
def test_colours_of_16_bits_are_said_or_refused(highest, tmp_path):
    """Pillow keeps their upper 8 bits: of 12-bit values 16 levels."""
    random = np.random.RandomState(0)
    for index in range(8):
        values = random.randint(0, highest + 1, (8, 8, 3))
        write_png48(tmp_path / "scans" / ("cats", "dogs")[index % 2] / f"{index}.png", values)
    if highest == 4_095:
        with pytest.raises(RecipeError, match=r"values end below 4,096: .* 16 levels would be left; store them with 8"):
            load(folder_data(tmp_path / "scans"))
    else:
        notes = load(folder_data(tmp_path / "scans")).notes
        assert notes == ("8 images have 16 bits a colour, of which the upper 8 are read",)

"""From an opened file to pixels."""

import numpy as np
import pytest
from PIL import Image

from raysweep.data.decode import decode
from tests.data.image_files import write_image, write_turned


def test_decoding_turns_crops_and_converts(tmp_path):
    with Image.open(write_turned(tmp_path / "turned.jpg")) as image:
        turned = decode(image, None)
    assert turned.shape == (3, 20, 10)
    assert turned[0, 2].min() > 200 > 50 > turned[0, -3].max()  # red above, black below
    with Image.open(tmp_path / "turned.jpg") as image:
        square = decode(image, (8, 8))
    assert square.shape == (3, 8, 8)
    assert square[0, 0].min() > 200 > 50 > square[0, -1].max()


def test_a_size_is_a_height_and_a_width():
    """The largest centred part of that shape: without the black ends of a wide image."""
    pixels = np.zeros((6, 16, 3), dtype=np.uint8)
    pixels[:, 1:-1] = 200
    image = Image.fromarray(pixels)
    assert (decode(image, (3, 3)) == 200).all()
    assert decode(image, (2, 3)).shape == (3, 2, 3)
    assert (decode(image, (6, 16)) == pixels.transpose(2, 0, 1)).all()


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (9, 70)])
def test_the_width_is_resized_first(size):
    """Whatever order this Pillow takes by itself."""
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    across = min(size[0], size[1])
    middle = ((size[0] - across) / 2, 0, (size[0] + across) / 2, size[1])
    narrowed = image.resize((8, size[1]), Image.Resampling.BICUBIC, box=middle)
    high = ((size[1] - across) / 2, (size[1] + across) / 2)
    squared = narrowed.resize((8, 8), Image.Resampling.BICUBIC, box=(0, high[0], 8, high[1]))
    assert (decode(image, (8, 8)) == np.asarray(squared).transpose(2, 0, 1)).all()


def test_values_that_are_no_image_are_refused():
    for image in (Image.new("F", (4, 4), 0.5), Image.new("I", (4, 4), 70_000), Image.new("I", (4, 4), -1)):
        with pytest.raises(ValueError, match=f"mode {image.mode}, values from .*: set data.value_range"):
            decode(image, None)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA"])
def test_every_mode_becomes_rgb(mode, tmp_path):
    with Image.open(write_image(tmp_path / "image.png", mode=mode)) as image:
        assert decode(image, (6, 6)).shape == (3, 6, 6)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.full((4, 4), 128 * 256, dtype=np.uint16)).save(tmp_path / "scan.png")
    with Image.open(tmp_path / "scan.png") as image:
        assert (decode(image, None) == 128).all()

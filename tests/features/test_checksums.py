"""Which damage is seen with how much reading."""

import numpy as np
import pytest

from raysweep.features import checksums
from raysweep.features.checksums import is_as_stated, sums


@pytest.fixture
def blocks(monkeypatch):
    """Four blocks of ten bytes."""
    monkeypatch.setattr(checksums, "BLOCK", 10)
    monkeypatch.setattr(checksums, "BLOCKS", 4)


def damaged(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("at", "seen"), [(0, True), (9, True), (10, False), (34, True), (95, True), (99, True)])
def test_blocks_are_the_first_the_last_and_some_between(at, seen, tmp_path, blocks):
    """Of 100 bytes: 0 to 9, 30 to 39, 60 to 69, 90 to 99."""
    path = tmp_path / "file"
    path.write_bytes(np.arange(100, dtype=np.uint8).tobytes())
    stated = sums(path)
    assert is_as_stated(path, stated, "sampled") and is_as_stated(path, stated, "full")
    damaged(path, at)
    assert is_as_stated(path, stated, "sampled") is not seen
    assert not is_as_stated(path, stated, "full")


@pytest.mark.parametrize("size", [1, 10, 11, 39, 40])
def test_of_a_small_file_all_is_read(size, tmp_path, blocks):
    for at in range(size):
        path = tmp_path / "file"
        path.write_bytes(bytes(size))
        stated = sums(path)
        damaged(path, at)
        assert not is_as_stated(path, stated, "sampled")


def test_another_size_is_seen(tmp_path, blocks):
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    stated = sums(path)
    path.write_bytes(bytes(101))
    assert not is_as_stated(path, stated, "sampled")


def test_without_sums_nothing_is_known(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x")
    with pytest.raises(KeyError):
        is_as_stated(path, {}, "sampled")

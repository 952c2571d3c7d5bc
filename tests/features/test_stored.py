"""Stored features as batches."""

from dataclasses import replace

import pytest
import torch

from raysweep.features.store import Store
from raysweep.features.stored import Stored
from tests.features.small_features import SPEC, fill, make, values

CPU = torch.device("cpu")
resident = pytest.mark.parametrize("resident", [False, True])
"""Mapped from the disk, or read into the memory of the device."""


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "features")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(4, 3, 2), (5, 7), (9,)])
@resident
def test_round_trip(store, shape, dtype, resident):
    spec = replace(SPEC, shape=shape, dtype=dtype)
    assert store.missing([spec]) == [spec]
    make(store, spec)
    assert store.missing([spec]) == []
    source = Stored([[store.open(spec)]], dtype, CPU, resident=resident)
    (found,) = source.batch(torch.tensor([5, 0, 3]), None, training=True)
    expected = values(spec)[[5, 0, 3]].to(getattr(torch, dtype)).float()
    assert len(source) == 6
    assert torch.equal(found, expected)
    assert found.dtype == torch.float32
    if len(shape) == 3:
        assert found.is_contiguous(memory_format=torch.channels_last)
    names = sorted(path.name for path in store.folder.iterdir() if path.suffix != ".lock")
    assert names == sorted([f"{spec.digest}.json", f"{spec.digest}.npy"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@resident
def test_flips_pick_a_view_for_each_image(store, dtype, resident):
    """Two tensors cross the cut; the mirrored view is other numbers altogether, so that a mix-up shows."""
    shapes = {"a": (4, 3, 2), "b": (5,)}
    specs = {
        (node, flip): replace(SPEC, node=node, shape=shape, view="mirrored" * flip, dtype=dtype)
        for node, shape in shapes.items()
        for flip in (False, True)
    }
    with store.making(list(specs.values())) as making:
        for spec, path in making.files.items():
            fill(path, spec, seed=1 + bool(spec.view))
    views = [[store.open(specs[node, flip]) for node in shapes] for flip in (False, True)]
    source = Stored(views, dtype, CPU, resident=resident)
    positions, flips = torch.tensor([5, 1, 1, 0]), torch.tensor([True, False, True, False])
    for node, found in zip(shapes, source.batch(positions, flips, training=True), strict=True):
        plain, mirrored = (
            values(specs[node, flip], seed=1 + flip).to(getattr(torch, dtype)).float() for flip in (False, True)
        )
        assert torch.equal(found, torch.stack([mirrored[5], plain[1], mirrored[1], plain[0]]))
        unflipped = source.batch(positions, None, training=True)[list(shapes).index(node)]
        assert torch.equal(unflipped, plain[positions])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(4, 3, 2), (5,)])
@pytest.mark.parametrize("flips", [None, torch.zeros(0, dtype=torch.bool)])
@resident
def test_an_empty_share_of_a_batch(store, dtype, shape, flips, resident):
    spec = replace(SPEC, shape=shape, dtype=dtype)
    mirrored = replace(spec, view="mirrored")
    make(store, spec, mirrored)
    source = Stored([[store.open(spec)], [store.open(mirrored)]], dtype, CPU, resident=resident)
    (found,) = source.batch(torch.zeros(0, dtype=torch.int64), flips, training=True)
    assert (tuple(found.shape), found.dtype) == ((0, *shape), torch.float32)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("flips", [None, torch.tensor([True, False, True])])
@resident
def test_a_batch_can_be_written_to(store, dtype, flips, resident):
    """An in-place activation at the head of the suffix must not reach the store."""
    spec = replace(SPEC, dtype=dtype)
    mirrored = replace(spec, view="mirrored")
    make(store, spec, mirrored)
    source = Stored([[store.open(spec)], [store.open(mirrored)]], dtype, CPU, resident=resident)
    positions = torch.tensor([0, 1, 2])
    (first,) = source.batch(positions, flips, training=True)
    kept = first.clone()
    first.relu_().add_(1)
    (second,) = source.batch(positions, flips, training=True)
    assert torch.equal(second, kept)
    assert store.missing([spec, mirrored]) == []

from dataclasses import fields, replace

import pytest
import torch

from raysweep.features import spec as module
from raysweep.features.spec import joint_digest
from raysweep.recipe import Statistics
from tests.features.small_features import SPEC, named

OTHERS = {
    "data": "d1", "split": "val", "count": 7, "image_size": 64, "statistics": Statistics(mean=(0, 0, 0), std=(1, 1, 2)),
    "view": "mirrored", "network": "n1", "node": "layer3", "shape": (4, 2, 3), "dtype": "float16",
    "precision": "bfloat16",
}  # fmt: skip


def test_digest_depends_on_every_field():
    assert set(OTHERS) == {field.name for field in fields(SPEC)}
    changed = [replace(SPEC, **{name: value}).digest for name, value in OTHERS.items()]
    assert len({SPEC.digest, *changed}) == 1 + len(OTHERS)
    assert replace(SPEC).digest == SPEC.digest


@pytest.mark.parametrize("library", ["torch", "torchvision", "timm"])
def test_digest_depends_on_the_versions_of_the_libraries(monkeypatch, library):
    """Another release may compute the prefix with other kernels, or build another network by the same name."""
    before, version = SPEC.digest, module.version
    if library == "torch":
        monkeypatch.setattr(torch, "__version__", "0.0")
    monkeypatch.setattr(module, "version", lambda name: "0.0" if name == library else version(name))
    module._versions.cache_clear()
    try:
        assert SPEC.digest != before
    finally:
        module._versions.cache_clear()


def test_digest_depends_on_the_format(monkeypatch):
    before = SPEC.digest
    monkeypatch.setattr(module, "FORMAT", module.FORMAT + 1)
    assert SPEC.digest != before


@pytest.mark.parametrize(
    ("shape", "dtype", "stored", "size"),
    [
        ((4, 3, 2), "float32", (6, 3, 2, 4), 576),
        ((4, 3, 2), "bfloat16", (6, 3, 2, 4), 288),
        ((5, 7), "float16", (6, 5, 7), 420),
        ((9,), "float32", (6, 9), 216),
    ],
)
def test_size(shape, dtype, stored, size):
    spec = replace(SPEC, shape=shape, dtype=dtype)
    assert (spec.stored_shape, spec.nbytes) == (stored, size)


def test_joint_digest_is_of_the_features_whatever_their_order():
    assert joint_digest(named("a", "b")) == joint_digest(named("b", "a"))
    assert joint_digest(named("a", "b")) != joint_digest(named("a"))

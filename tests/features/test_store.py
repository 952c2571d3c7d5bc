"""Stored features. Processes are forked: they hold locks, crash and are killed, and need no imports of their own."""

import errno
import multiprocessing
import os
import signal
import socket
import time
import zlib
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from raysweep.features import store as features
from raysweep.features.store import Spec, Store, Stored, tensors_digest, write_batch
from raysweep.recipe import Statistics

CPU = torch.device("cpu")
SPEC = Spec(
    data="d0", split="train", count=6, image_size=32, statistics=Statistics(mean=(0, 0, 0), std=(1, 1, 1)),
    flip=False, network="n0", node="layer4", shape=(4, 3, 2), dtype="float32",
)  # fmt: skip
OTHERS = {
    "data": "d1", "split": "val", "count": 7, "image_size": 64, "statistics": Statistics(mean=(0, 0, 0), std=(1, 1, 2)),
    "flip": True, "network": "n1", "node": "layer3", "shape": (4, 2, 3), "dtype": "float16",
}  # fmt: skip
BYTES = 6 * 4 * 3 * 2 * 4
fork = multiprocessing.get_context("fork")


def values(spec=SPEC, seed=0):
    return torch.randn(spec.count, *spec.shape, generator=torch.Generator().manual_seed(seed))


def fill(path, spec=SPEC, seed=0):
    array = np.load(path, mmap_mode="r+")
    write_batch(array, 0, values(spec, seed)[:4], spec.dtype)
    write_batch(array, 4, values(spec, seed)[4:], spec.dtype)
    array.flush()


def make(store, *specs):
    with store.making(specs) as paths:
        for spec, path in zip(specs, paths, strict=True):
            fill(path, spec)


def named(*names):
    return [replace(SPEC, node=name) for name in names]


def is_stored(store, spec):
    """Asked through a handle of its own, which lets go at once."""
    return Store(store.folder).open(spec) is not None


def left(folder, *but):
    return sorted(path.name for path in folder.iterdir() if path.suffix not in (".lock", *but))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "features")


# ---- what determines a feature ----


def test_digest_depends_on_every_field():
    assert set(OTHERS) == {field.name for field in fields(Spec)}
    changed = [replace(SPEC, **{name: value}).digest for name, value in OTHERS.items()]
    assert len({SPEC.digest, *changed}) == 1 + len(OTHERS)
    assert replace(SPEC).digest == SPEC.digest


def test_digest_depends_on_the_version_of_torch(monkeypatch):
    """Another release may compute the prefix with other kernels."""
    before = SPEC.digest
    monkeypatch.setattr(torch, "__version__", "0.0")
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


def test_digest_of_tensors():
    tensors = {"fc.weight": torch.zeros(2, 3), "fcs.weight": torch.zeros(3, 2), "bn.count": torch.tensor(1)}
    same = tensors_digest(dict(reversed(list(tensors.items()))))
    assert tensors_digest(tensors) == same
    for name, other in (
        ("fc.weight", torch.ones(2, 3)),
        ("fc.weight", torch.zeros(3, 2)),
        ("bn.count", torch.tensor(2)),
        ("bn.count", torch.tensor(1.0)),
    ):
        assert tensors_digest(tensors | {name: other}) != same
    head = tensors_digest(tensors, ["fc"])
    assert head == tensors_digest(tensors | {"fc.weight": torch.ones(5)}, ["fc"])
    assert head != tensors_digest(tensors | {"fcs.weight": torch.ones(3, 2)}, ["fc"])


# ---- making and opening ----


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(4, 3, 2), (5, 7), (9,)])
def test_round_trip(store, shape, dtype):
    spec = replace(SPEC, shape=shape, dtype=dtype)
    assert store.missing([spec]) == [spec]
    make(store, spec)
    assert store.missing([spec]) == []
    array = store.open(spec)
    source = Stored([[array]], dtype, CPU)
    (found,) = source.batch(torch.tensor([5, 0, 3]), None, training=True)
    expected = values(spec)[[5, 0, 3]].to(getattr(torch, dtype)).float()
    assert len(source) == 6
    assert torch.equal(found, expected)
    assert found.dtype == torch.float32
    if len(shape) == 3:
        assert found.is_contiguous(memory_format=torch.channels_last)
    assert left(store.folder) == sorted([f"{spec.digest}.json", f"{spec.digest}.npy"])


def test_stored_channels_last_and_read_only(store):
    make(store, SPEC)
    array = store.open(SPEC)
    np.testing.assert_array_equal(array, values().permute(0, 2, 3, 1).numpy())
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0
    assert not array.flags.owndata


def test_interrupted_making_leaves_nothing(store):
    with pytest.raises(KeyboardInterrupt), store.making(named("a", "b")) as paths:
        fill(paths[0])
        raise KeyboardInterrupt
    assert left(store.folder) == []
    assert store.missing(named("a", "b")) == named("a", "b")


def test_nothing_is_read_before_it_is_finished(store):
    with store.making([SPEC]) as (path,):
        assert path.stat().st_size >= BYTES  # reserved
        assert path.stat().st_blocks * 512 >= BYTES
        assert store.open(SPEC) is None
        assert store.missing([SPEC]) == [SPEC]
        fill(path)
        assert store.open(SPEC) is None
    assert store.open(SPEC) is not None


def test_missing_asks_for_each_once(store):
    make(store, *named("a"))
    assert store.missing(named("b", "a", "b", "c")) == named("b", "c")


# ---- damage ----


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def behead(path):
    os.truncate(path, 50)


def empty(path):
    """What a power cut can leave of a file that was renamed before its bytes reached the disk."""
    os.truncate(path, 0)


EMPTY = empty


def flip_bit(path):
    with path.open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-5, os.SEEK_END)
        file.write(bytes([byte ^ 4]))


@pytest.mark.parametrize("damage", [truncate, behead, EMPTY, flip_bit])
def test_damaged_file_is_found_and_removed(store, damage):
    make(store, *named("a", "b"))
    bad, good = named("a", "b")
    damage(store.folder / f"{bad.digest}.npy")
    assert store.missing([bad, good]) == [bad]
    assert left(store.folder) == sorted([f"{good.digest}.json", f"{good.digest}.npy"])
    make(store, bad)
    assert store.missing([bad, good]) == []


@pytest.mark.parametrize("damage", [truncate, behead, EMPTY])
def test_truncated_file_is_not_opened(store, damage):
    make(store, SPEC)
    damage(store.folder / f"{SPEC.digest}.npy")
    assert store.open(SPEC) is None


@pytest.mark.parametrize("about", [None, "", "{}", "{'"])
def test_without_its_checksum_there_is_no_feature(store, about):
    make(store, SPEC)
    path = store.folder / f"{SPEC.digest}.json"
    if about is None:
        path.unlink()
        assert store.open(SPEC) is None
    else:
        path.write_text(about)
    assert store.missing([SPEC]) == [SPEC]
    assert left(store.folder) == []


def test_checksum_is_of_the_whole_file(store):
    """In pieces of 16 MiB or not."""
    make(store, SPEC)
    path = store.folder / f"{SPEC.digest}.npy"
    assert f'"crc32": {zlib.crc32(path.read_bytes())}' in path.with_suffix(".json").read_text()


def test_checksum_in_pieces(store, monkeypatch):
    monkeypatch.setattr(features, "CHUNK", 100)
    make(store, SPEC)
    monkeypatch.setattr(features, "CHUNK", 1 << 20)
    assert store.missing([SPEC]) == []


# ---- eviction ----


def aged(store, *specs):
    """Make features whose last uses are a second apart, the first the longest ago."""
    make(store, *specs)
    for age, spec in enumerate(reversed(specs)):
        os.utime(store.folder / f"{spec.digest}.json", (time.time() - 100 - age,) * 2)


FILE = BYTES + 128
"""With the header of a .npy file."""


def test_least_recently_used_is_evicted(store):
    first, second, third, new = named("a", "b", "c", "new")
    aged(store, first, second, third)
    assert store.used_bytes() == 3 * FILE
    assert is_stored(store, first)  # now the most recently used
    make(Store(store.folder, 3 * FILE), new)
    assert [is_stored(store, one) for one in (first, second, third, new)] == [True, False, True, True]
    assert store.used_bytes() == 3 * FILE


def test_no_more_is_evicted_than_needed(store):
    specs = named("a", "b", "c", "d")
    aged(store, *specs)
    make(Store(store.folder, 4 * FILE), *named("x", "y"))
    assert [is_stored(store, one) for one in specs] == [False, False, True, True]


def test_what_is_open_is_not_evicted(store):
    """By another handle of this process."""
    first, second, new = named("a", "b", "new")
    aged(store, first, second)
    reader = Store(store.folder)
    array = reader.open(first)
    os.utime(store.folder / f"{first.digest}.json", (1, 1))
    make(Store(store.folder, 2 * FILE), new)
    assert [is_stored(store, one) for one in (first, second, new)] == [True, False, True]
    np.testing.assert_array_equal(array, values().permute(0, 2, 3, 1).numpy())


def hold(folder, spec, ready, done):
    store = Store(folder)
    array = store.open(spec)
    ready.set()
    done.wait(30)
    os._exit(0 if array is not None and np.array_equal(array, values(spec).permute(0, 2, 3, 1)) else 1)


def test_what_another_process_has_open_is_not_evicted(store):
    (held,) = named("a")
    aged(store, held)
    ready, done = fork.Event(), fork.Event()
    reader = fork.Process(target=hold, args=(store.folder, held, ready, done))
    reader.start()
    assert ready.wait(30)
    small = Store(store.folder, FILE)
    with pytest.raises(OSError, match="in use") as caught:
        make(small, *named("new"))
    assert caught.value.errno == errno.ENOSPC
    assert is_stored(store, held)
    done.set()
    reader.join(30)
    assert reader.exitcode == 0
    make(small, *named("new"))
    assert not is_stored(store, held)


@pytest.mark.parametrize("budget", [0, 1, 2 * BYTES - 1])
def test_without_room_nothing_is_made_or_evicted(store, budget):
    aged(store, *named("a"))
    with pytest.raises(OSError, match=r"features need 0\.00 GB and 0\.00 GB may be used") as caught:
        make(Store(store.folder, budget), *named("x", "y"))
    assert caught.value.errno == errno.ENOSPC
    assert store.missing(named("a")) == []
    assert left(store.folder, ".json", ".npy") == []


def test_a_full_disk_leaves_nothing(store, monkeypatch):
    """Space is taken before it is written to; the second file finds none."""
    calls = []

    def full(descriptor, offset, length):
        calls.append(length)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        make(store, *named("a", "b", "c"))
    assert calls == [FILE, FILE]
    assert left(store.folder) == []


@pytest.mark.parametrize(
    ("budget", "free", "room"),
    [
        (None, (1 << 30) + 1000, (1000 + FILE) // 2),
        (300, (1 << 30) + 1000, 300),
        (10**9, (1 << 30) + 1000, 1000 + FILE),
        (None, 100, 0),
    ],
)
def test_room(store, monkeypatch, budget, free, room):
    """A GiB of the disk is never taken; what is stored could make way."""
    make(store, SPEC)
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(features.shutil, "disk_usage", lambda folder: usage)
    assert Store(store.folder, budget).room_bytes() == room


def test_what_was_just_asked_for_is_not_evicted(store):
    """`missing` finds the needed one, used longest ago; making the other then has to evict the one not needed."""
    needed, unrelated, new = named("needed", "unrelated", "new")
    aged(store, needed, unrelated)
    small = Store(store.folder, 2 * FILE)
    assert small.missing([needed, new]) == [new]
    make(small, new)
    assert [is_stored(store, one) for one in (needed, unrelated, new)] == [True, False, True]


# ---- leftovers ----


@pytest.fixture(scope="module")
def dead_pid():
    process = fork.Process(target=os._exit, args=(0,))
    process.start()
    process.join()
    return process.pid


@pytest.mark.parametrize(
    ("host", "alive", "hours", "kept"),
    [
        (socket.gethostname() + "-", True, 0, True),
        (socket.gethostname() + "-", True, 48, True),
        (socket.gethostname() + "-", False, 0, False),
        ("", True, 0, True),
        ("", False, 0, False),
        ("other-host-", False, 1, True),
        ("other-host-", True, 48, False),
    ],
)
def test_unfinished_files_go_with_their_maker(store, dead_pid, host, alive, hours, kept):
    """Of another host only the age is known."""
    part = store.folder / f"{SPEC.digest}.part-{host}{os.getpid() if alive else dead_pid}"
    part.write_bytes(b"half")
    os.utime(part, (time.time() - 3600 * hours,) * 2)
    make(store, *named("new"))
    assert part.exists() == kept


def test_array_without_checksum_makes_way(store):
    """Left by a maker that was killed between the two."""
    make(store, *named("a"))
    (store.folder / f"{named('a')[0].digest}.json").unlink()
    make(Store(store.folder, FILE), *named("new"))
    assert store.used_bytes() == FILE


def write_half_and_wait(folder, specs, ready):
    store = Store(folder)
    with store.lock(specs), store.making(specs) as paths:
        fill(paths[0])
        np.load(paths[1], mmap_mode="r+")[:3] = 1
        ready.set()
        time.sleep(60)


def test_killed_maker(store):
    """The lock goes with it; the next run starts over and removes what it left."""
    specs, ready = named("a", "b"), fork.Event()
    maker = fork.Process(target=write_half_and_wait, args=(store.folder, specs, ready))
    maker.start()
    assert ready.wait(30)
    os.kill(maker.pid, signal.SIGKILL)
    maker.join(30)
    assert len(left(store.folder)) == 2
    with store.lock(specs).acquire(timeout=5):
        assert store.missing(specs) == specs
        make(store, *specs)
    for spec in specs:
        np.testing.assert_array_equal(store.open(spec), values(spec).permute(0, 2, 3, 1))
    assert left(store.folder, ".json", ".npy") == []


def make_if_missing(folder, barrier, made):
    store = Store(folder)
    barrier.wait(30)
    with store.lock([SPEC]):
        for spec in store.missing([SPEC]):
            with store.making([spec]) as (path,):
                time.sleep(0.1)
                fill(path)
            with made.get_lock():
                made.value += 1


def test_two_processes_at_once_make_it_once(store):
    barrier, made = fork.Barrier(2), fork.Value("i", 0)
    both = [fork.Process(target=make_if_missing, args=(store.folder, barrier, made)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(30)
    assert [process.exitcode for process in both] == [0, 0]
    assert made.value == 1
    assert store.missing([SPEC]) == []
    np.testing.assert_array_equal(store.open(SPEC), values().permute(0, 2, 3, 1))


def test_lock_is_of_the_features_whatever_their_order(store):
    assert store.lock(named("a", "b")).lock_file == store.lock(named("b", "a")).lock_file
    assert store.lock(named("a", "b")).lock_file != store.lock(named("a")).lock_file


# ---- reading batches ----


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_flips_pick_a_view_for_each_image(store, dtype):
    """Two tensors cross the cut; the mirrored view is other numbers altogether, so that a mix-up shows."""
    shapes = {"a": (4, 3, 2), "b": (5,)}
    specs = {
        (node, flip): replace(SPEC, node=node, shape=shape, flip=flip, dtype=dtype)
        for node, shape in shapes.items()
        for flip in (False, True)
    }
    with store.making(list(specs.values())) as paths:
        for (key, spec), path in zip(specs.items(), paths, strict=True):
            fill(path, spec, seed=1 + key[1])
    views = [[store.open(specs[node, flip]) for node in shapes] for flip in (False, True)]
    source = Stored(views, dtype, CPU)
    positions, flips = torch.tensor([5, 1, 1, 0]), torch.tensor([True, False, True, False])
    for node, found in zip(shapes, source.batch(positions, flips, training=True), strict=True):
        plain, mirrored = (
            values(specs[node, flip], seed=1 + flip).to(getattr(torch, dtype)).float() for flip in (0, 1)
        )
        assert torch.equal(found, torch.stack([mirrored[5], plain[1], mirrored[1], plain[0]]))
        unflipped = source.batch(positions, None, training=True)[list(shapes).index(node)]
        assert torch.equal(unflipped, plain[positions])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("flips", [None, torch.tensor([True, False, True])])
def test_a_batch_can_be_written_to(store, dtype, flips):
    """An in-place activation at the head of the suffix must not reach the store."""
    spec = replace(SPEC, dtype=dtype)
    make(store, spec, replace(spec, flip=True))
    source = Stored([[store.open(spec)], [store.open(replace(spec, flip=True))]], dtype, CPU)
    positions = torch.tensor([0, 1, 2])
    (first,) = source.batch(positions, flips, training=True)
    kept = first.clone()
    first.relu_().add_(1)
    (second,) = source.batch(positions, flips, training=True)
    assert torch.equal(second, kept)
    assert store.missing([spec, replace(spec, flip=True)]) == []

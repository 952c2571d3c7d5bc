"""Stored features, alone and with other processes, which hold locks, crash and are killed.

The other processes come from a fork server that has nothing but the package.
"""

import errno
import os
import signal
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from raysweep.features import checksums
from raysweep.features import store as module
from raysweep.features.spec import Spec
from raysweep.features.store import Store
from tests.features.small_features import BYTES, FILE, SPEC, as_stored, fill, make, named

ROWS = range(SPEC.count)
"""Each is a part of the work where processes share it."""


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "features")


def is_stored(store, spec):
    """Asked through a handle of its own, which lets go at once."""
    return Store(store.folder).open(spec) is not None


def left(folder, *but):
    return sorted(path.name for path in folder.iterdir() if path.suffix not in (".lock", *but))


def assert_sound(store, *specs):
    """Whole, with the right values, and nothing unfinished beside them."""
    assert store.missing(specs) == []
    for spec in specs:
        np.testing.assert_array_equal(Store(store.folder).open(spec), as_stored(spec))
    assert left(store.folder, ".json", ".npy") == []


# ---- making and opening ----


def test_stored_channels_last_and_read_only(store):
    make(store, SPEC)
    array = store.open(SPEC)
    np.testing.assert_array_equal(array, as_stored())
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0
    assert not array.flags.owndata


def test_interrupted_making_stores_nothing(store):
    """What is done stays for the next that wants it, in a folder of its own."""
    with pytest.raises(KeyboardInterrupt), store.making(named("a", "b")) as making:
        fill(making.files[named("a")[0]])
        raise KeyboardInterrupt
    assert left(store.folder, ".making") == []
    assert store.missing(named("a", "b")) == named("a", "b")
    make(store, *named("a", "b"))
    assert_sound(store, *named("a", "b"))


def test_nothing_is_read_before_it_is_finished(store):
    with store.making([SPEC]) as making:
        (path,) = making.files.values()
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


def test_only_what_is_missing_is_made(store):
    assert make(store, *named("a")) == named("a")
    assert make(store, *named("b", "a", "c")) == named("b", "c")
    assert make(store, *named("b", "a", "c")) == []
    assert_sound(store, *named("a", "b", "c"))


# ---- damage ----


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def behead(path):
    os.truncate(path, 50)


def empty(path):
    """What a power cut can leave of a file that was renamed before its bytes reached the disk."""
    os.truncate(path, 0)


def flip_bit(path):
    with path.open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-5, os.SEEK_END)
        file.write(bytes([byte ^ 4]))


@pytest.mark.parametrize("damage", [truncate, behead, empty, flip_bit])
def test_damaged_file_is_found_and_removed(store, damage):
    make(store, *named("a", "b"))
    bad, good = named("a", "b")
    damage(store.folder / f"{bad.digest}.npy")
    assert store.missing([bad, good]) == [bad]
    assert left(store.folder) == sorted([f"{good.digest}.json", f"{good.digest}.npy"])
    make(store, bad)
    assert store.missing([bad, good]) == []


@pytest.mark.parametrize("damage", [truncate, behead, empty])
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
    monkeypatch.setattr(checksums, "CHUNK", 100)
    make(store, SPEC)
    monkeypatch.setattr(checksums, "CHUNK", 1 << 20)
    assert Store(store.folder, verify="full").missing([SPEC]) == []


def test_features_without_sampled_sums_are_read_whole(store, monkeypatch):
    """Those of earlier versions."""
    make(store, SPEC)
    about = store.folder / f"{SPEC.digest}.json"
    about.write_text(about.read_text().replace("crc32_sampled", "other"))
    monkeypatch.setattr(checksums, "BLOCK", 4)
    assert store.missing([SPEC]) == []
    flip_bit(about.with_suffix(".npy"))
    assert store.missing([SPEC]) == [SPEC]


# ---- eviction ----


def aged(store, *specs):
    """Make features whose last uses are a second apart, the first the longest ago."""
    make(store, *specs)
    for age, spec in enumerate(reversed(specs)):
        os.utime(store.folder / f"{spec.digest}.json", (time.time() - 100 - age,) * 2)


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
    np.testing.assert_array_equal(array, as_stored())


def hold(folder, spec, ready, done):
    store = Store(folder)
    array = store.open(spec)
    ready.set()
    done.wait(30)
    assert array is not None
    np.testing.assert_array_equal(array, as_stored(spec))


def test_what_another_process_has_open_is_not_evicted(store, processes):
    (held,) = named("a")
    aged(store, held)
    ready, done = processes.context.Event(), processes.context.Event()
    reader = processes.start(hold, store.folder, held, ready, done)
    assert ready.wait(30)
    small = Store(store.folder, FILE)
    with pytest.raises(OSError, match="in use") as caught:
        make(small, *named("new"))
    assert caught.value.errno == errno.ENOSPC
    assert is_stored(store, held)
    done.set()
    assert processes.end(reader) == 0
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
    make(store, *named("a", "b", "c"))  # there is space again
    assert_sound(store, *named("a", "b", "c"))


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
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage)
    assert Store(store.folder, budget).room_bytes() == room


def test_what_is_asked_for_too_is_not_evicted(store):
    """The needed one was used longest ago; making the other has to evict the one not needed."""
    needed, unrelated, new = named("needed", "unrelated", "new")
    aged(store, needed, unrelated)
    assert make(Store(store.folder, 2 * FILE), needed, new) == [new]
    assert [is_stored(store, one) for one in (needed, unrelated, new)] == [True, False, True]


def test_what_was_just_asked_for_is_not_evicted(store):
    needed, unrelated, new = named("needed", "unrelated", "new")
    aged(store, needed, unrelated)
    small = Store(store.folder, 2 * FILE)
    assert small.missing([needed, new]) == [new]
    make(small, new)
    assert [is_stored(store, one) for one in (needed, unrelated, new)] == [True, False, True]


# ---- several processes ----


def write_row(making, row):
    for spec, path in making.files.items():
        array = np.load(path, mmap_mode="r+")
        array[row] = as_stored(spec)[row]
        array.flush()


def make_rows(folder: Path, specs: list[Spec], name: str, met=None) -> None:
    """Make features row by row, with whoever makes them too; a line of a log beside the folder says who made which.

    `met` is passed with the first row in hand, so that all processes have one at a time.
    """
    with Store(folder).making(specs) as making:
        for wait in (False, True):
            for row in ROWS if making.files else ():
                with making.claim(f"row-{row}", wait) as mine:
                    if mine:
                        if met is not None:
                            met.wait(30)
                            met = None
                        write_row(making, row)
                        with (folder.parent / "log").open("a") as log:
                            log.write(f"{name} {row}\n")


def logged(store):
    """Who made which row, in time's order."""
    path = store.folder.parent / "log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(name, int(row)) for name, row in map(str.split, lines)]


def test_two_processes_share_the_work(store, processes):
    """Each row is made once; they may name the features in any order."""
    met, specs = processes.context.Barrier(2), named("a", "b")
    both = [
        processes.start(make_rows, store.folder, order, name, met)
        for name, order in (("first", specs), ("second", specs[::-1]))
    ]
    assert [processes.end(process) for process in both] == [0, 0]
    assert sorted(row for _, row in logged(store)) == list(ROWS)
    assert {name for name, _ in logged(store)} == {"first", "second"}
    assert_sound(store, *specs)


def test_who_comes_after_the_work_has_none(store):
    make_rows(store.folder, [SPEC], "first")
    make_rows(store.folder, [SPEC], "second")
    assert {name for name, _ in logged(store)} == {"first"}
    assert_sound(store, SPEC)


def stop_at(folder, specs, row, ready):
    """Make rows up to one of which only half is written, and stay there."""
    with Store(folder).making(specs) as making:
        for done in range(row):
            with making.claim(f"row-{done}"):
                write_row(making, done)
        with making.claim(f"row-{row}"):
            for path in making.files.values():
                np.load(path, mmap_mode="r+")[row] = 1
            ready.set()
            time.sleep(60)


def stopped_at(processes, store, specs, row):
    ready = processes.context.Event()
    process = processes.start(stop_at, store.folder, specs, row, ready)
    assert ready.wait(30)
    return process


def kill(processes, process):
    os.kill(process.pid, signal.SIGKILL)
    assert processes.end(process) == -signal.SIGKILL


def test_a_killed_process_leaves_its_finished_parts_to_the_next(store, processes):
    specs = named("a", "b")
    kill(processes, stopped_at(processes, store, specs, row=3))
    assert store.missing(specs) == specs
    make_rows(store.folder, specs, "next")
    assert logged(store) == [("next", 3), ("next", 4), ("next", 5)]
    assert_sound(store, *specs)


def test_a_part_of_a_killed_process_is_done_by_one_that_waits_for_it(store, processes):
    """The other takes part already: it does all it can, and then the rest."""
    stopped = stopped_at(processes, store, [SPEC], row=0)
    other = processes.start(make_rows, store.folder, [SPEC], "other")
    deadline = time.monotonic() + 30
    while len(logged(store)) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert other.is_alive()
    kill(processes, stopped)
    assert processes.end(other) == 0
    assert logged(store) == [("other", row) for row in (1, 2, 3, 4, 5, 0)]
    assert_sound(store, SPEC)


def test_a_part_that_failed_is_done_by_the_next(store):
    with pytest.raises(RuntimeError), store.making([SPEC]) as making, making.claim("row-0"):
        raise RuntimeError
    make_rows(store.folder, [SPEC], "next")
    assert logged(store) == [("next", row) for row in ROWS]
    assert_sound(store, SPEC)


def test_a_part_in_other_hands_is_not_taken_on(store):
    with store.making([SPEC]) as making, Store(store.folder).making([SPEC]) as other:
        with making.claim("row-0") as mine, other.claim("row-0") as others:
            assert (mine, others) == (True, False)
        with other.claim("row-0", wait=True) as others:
            assert not others
        fill(making.files[SPEC])
    assert_sound(store, SPEC)


def test_a_part_is_not_done_again_after_another_process_has_stored_all(store):
    """The other is a little faster to see that all parts are done."""
    with store.making([SPEC]) as making:
        make_rows(store.folder, [SPEC], "other")
        for row in ROWS:
            with making.claim(f"row-{row}", wait=True) as mine:
                assert not mine
    assert_sound(store, SPEC)


# ---- leftovers ----


def test_an_abandoned_folder_is_removed_by_another_making(store, processes):
    kill(processes, stopped_at(processes, store, named("a", "b"), row=3))
    assert left(store.folder) != []
    make(store, *named("new"))
    assert_sound(store, *named("new"))


def test_a_folder_in_use_is_not_removed_by_another_making(store, processes):
    stopped = stopped_at(processes, store, named("a", "b"), row=3)
    make(store, *named("new"))
    (folder,) = store.folder.glob("*.making")
    assert len(list(folder.glob("*.npy"))) == 2
    kill(processes, stopped)
    make_rows(store.folder, named("a", "b"), "next")
    assert [row for _, row in logged(store)] == [3, 4, 5]
    assert_sound(store, *named("a", "b", "new"))


def test_a_folder_abandoned_before_anyone_took_part_is_removed(store):
    """As a process leaves it that is killed right after it made the folder."""
    (store.folder / f"{'0' * 32}.making").mkdir()
    make(store, *named("new"))
    assert_sound(store, *named("new"))


def test_array_without_checksum_makes_way(store):
    """Left by a maker that was killed between the two."""
    make(store, *named("a"))
    (store.folder / f"{named('a')[0].digest}.json").unlink()
    make(Store(store.folder, FILE), *named("new"))
    assert store.used_bytes() == FILE


def die_while_storing(folder, specs):
    """Be killed between the array and its checksum."""

    def write(path, text):
        if path.suffix == ".json":
            os.kill(os.getpid(), signal.SIGKILL)
        path.write_text(text)

    module.write_text = write
    make(Store(folder), *specs)


def test_a_process_killed_while_it_stores_does_not_hinder_the_next(store, processes):
    specs = named("a", "b")
    assert processes.end(processes.start(die_while_storing, store.folder, specs)) == -signal.SIGKILL
    make_rows(store.folder, specs, "next")
    assert_sound(store, *specs)


def test_what_is_damaged_while_others_are_unfinished_is_made_too(store):
    """The unfinished ones have their space; the damaged one must get some."""
    damaged, unfinished = named("a", "b")
    make(store, damaged)
    with pytest.raises(KeyboardInterrupt), store.making([damaged, unfinished]):
        raise KeyboardInterrupt
    flip_bit(store.folder / f"{damaged.digest}.npy")
    assert make(store, damaged, unfinished) == [damaged, unfinished]
    assert_sound(store, damaged, unfinished)


@pytest.mark.parametrize("took_part", [True, False])
def test_what_another_has_begun_anew_is_not_stored_by_one_that_leaves(store, took_part):
    """It took part in an earlier making, or found all there; the feature was lost and is being made again."""
    if not took_part:
        make(store, SPEC)
    with store.making([SPEC]):
        if took_part:
            make(Store(store.folder), SPEC)
        flip_bit(store.folder / f"{SPEC.digest}.npy")
        again = Store(store.folder).making([SPEC])
        making = again.__enter__()
    assert store.missing([SPEC]) == [SPEC]
    fill(making.files[SPEC])
    again.__exit__(None, None, None)
    assert_sound(store, SPEC)

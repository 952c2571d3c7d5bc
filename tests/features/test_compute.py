"""The prefix pass over a few fake images, by threads, processes, and processes that are killed."""

import itertools
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from raysweep.features import compute
from raysweep.features.compute import (
    Progress,
    are_stored,
    is_cacheable,
    make_features,
    specs_of,
    store_of,
    stored_split,
    views_of,
)
from raysweep.features.stored import FeatureOverflowError
from raysweep.nets.task import cut_of, release, task_of
from raysweep.recipe import Features
from tests.devices import DEVICES
from tests.features.processes import Processes
from tests.features.small_trials import TRAIN_IMAGES, VAL_IMAGES, trial_of, trials_of

CPU = torch.device("cpu")
SHARD = 20
"""Images: so that no split is a whole number of shards."""
VIEWS = (("train", "", TRAIN_IMAGES), ("train", "mirrored", TRAIN_IMAGES), ("val", "", VAL_IMAGES))
SHARDS = [
    (split, view, start, min(start + SHARD, count)) for split, view, count in VIEWS for start in range(0, count, SHARD)
]
"""Of a trial with flips."""


@pytest.fixture(autouse=True)
def computed(monkeypatch):
    """The shards that this process computes, in time's order."""
    shards = []

    def recorded(one, shard):
        count = whole(one, shard)
        shards.append((shard.split, shard.view, shard.start, shard.end))
        return count

    whole = compute._Pass.compute
    monkeypatch.setattr(compute._Pass, "compute", recorded)
    monkeypatch.setattr(compute, "SHARD", SHARD)
    return shards


def make(phases, settings, devices=(CPU,)):
    """Make features here and now; returns all progress."""
    return list(make_features(phases, settings, devices))


def bytes_made(phases, settings):
    return make(phases, settings)[-1].nbytes


def size_of(trial, images):
    """Bytes of features in float32."""
    return images * 4 * cut_of(trial).numbers_per_image


def folder_of(settings):
    return Path(settings.dir)


def assert_features_alike(settings, expected):
    """Two folders of features hold the same, and nothing unfinished; values in float32."""
    names = {path.name for path in folder_of(expected).iterdir() if path.suffix != ".lock"}
    assert {path.name for path in folder_of(settings).iterdir() if path.suffix != ".lock"} == names
    arrays = [name for name in names if name.endswith(".npy")]
    assert arrays
    for name in arrays:
        found, wanted = (np.load(folder_of(one) / name) for one in (settings, expected))
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


# ---- what is made ----


@pytest.mark.parametrize(("depth", "batch_norm"), [("all", "frozen"), (1, "training"), ("all", "training")])
def test_not_cacheable(depth, batch_norm):
    trial = trial_of(depth=depth, batch_norm=batch_norm)
    assert not is_cacheable(trial, cut_of(trial))


def test_one_pass_makes_every_cut(settings, computed):
    trials = trials_of(depth=[1, 3], augment=["hflip"])
    images = TRAIN_IMAGES + TRAIN_IMAGES + VAL_IMAGES
    nbytes = sum(size_of(trial, images) for trial in trials)
    progress = make(trials, settings)
    assert computed == SHARDS
    done = itertools.accumulate((end - start for *_, start, end in SHARDS), initial=0)
    assert progress == [Progress(count, images, nbytes) for count in done]
    for trial, split in itertools.product(trials, ("train", "val")):
        assert stored_split(trial, split, settings, CPU) is not None


def test_nothing_is_made_twice(settings, computed):
    """Of another learning rate there is nothing to make, of another depth only what is new, of one image size all."""
    make([trial_of(depth=1)], settings)
    computed.clear()
    assert make([trial_of(depth=1, lr=0.5)], settings) == [Progress(0, 0, 0)]
    assert computed == []
    made = bytes_made(trials_of(depth=[1, 3]), settings)
    assert made == size_of(trial_of(depth=3), TRAIN_IMAGES + VAL_IMAGES)
    assert sum(end - start for *_, start, end in computed) == TRAIN_IMAGES + VAL_IMAGES
    computed.clear()
    make([trial_of(depth=1, augment=["hflip"])], settings)
    assert {shard[:2] for shard in computed} == {("train", "mirrored")}
    assert bytes_made([trial_of(depth=1, image_size=24)], settings) > 0
    assert bytes_made([trial_of(depth=1, batch_norm="recalibrated")], settings) > 0


def test_test_images_have_no_features():
    assert all(split in ("train", "val") for split, _ in views_of(trial_of(augment=["hflip"])))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits_take_half(settings, dtype):
    trial = trial_of(depth=3, augment=["hflip"])
    whole = bytes_made([trial], settings)
    assert bytes_made([trial], settings.model_copy(update={"dtype": dtype})) * 2 == whole > 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["tf32", "bfloat16", "float16"])
def test_a_prefix_in_another_precision(settings, precision, device):
    """Features of their own, near those of float32 on the CPU, in half the size where they have 16 bits."""
    trial, where = trial_of("resnet18", 3), torch.device(device)
    other = settings.model_copy(update={"precision": precision})
    whole = bytes_made([trial], settings)
    made = make([trial], other, [where])[-1].nbytes
    assert made * (1 if precision == "tf32" else 2) == whole
    positions = torch.arange(TRAIN_IMAGES)
    (expected, *_), (found, *_) = (
        stored_split(trial, "train", one, CPU).batch(positions, None, training=False) for one in (settings, other)
    )
    largest = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=0.03 * largest)
    assert torch.equal(found, expected) == (precision == "tf32" and device == "cpu")


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"precision": "float16"}, r"infinite or no numbers as they are computed; set features\.precision=bfloat16"),
        ({"dtype": "float16"}, r"they reach .*, more than float16 holds; set features\.dtype=float32"),
    ],
)
def test_too_large_for_16_bits_is_refused_and_not_stored(settings, more, sentence):
    """Also where it is the arithmetic that overflows; bfloat16 reaches as far as float32."""
    trial = trial_of("resnet18", "layer4")
    network = task_of(trial).backbone.network
    with torch.no_grad():
        network.layer3[1].bn2.weight.mul_(0).add_(1e6)
    try:
        small = settings.model_copy(update=more)
        with pytest.raises(FeatureOverflowError, match=sentence):
            make([trial], small)
        assert list(folder_of(small).glob("*.npy")) == []
        assert stored_split(trial, "train", small, CPU) is None
        make([trial], settings.model_copy(update={"precision": "bfloat16"}))
    finally:
        release()


def test_no_room(settings):
    small = settings.model_copy(update={"budget_gb": 1e-6})
    with pytest.raises(OSError, match="features need"):
        make([trial_of(depth=3)], small)


def test_stored_needs_every_view_and_tensor(settings):
    trial = trial_of("resnet18", 3, augment=["hflip"])
    make([trial], settings)
    assert stored_split(trial, "train", settings, CPU) is not None
    spec = specs_of(trial, "train", 1, settings)[1]
    (folder_of(settings) / f"{spec.digest}.json").unlink()
    assert stored_split(trial, "train", settings, CPU) is None
    assert stored_split(trial, "val", settings, CPU) is not None


def test_features_of_a_trial_are_not_evicted(settings):
    trial, other = trial_of(), trial_of(split_seed=46)
    made = bytes_made([trial], settings)
    small = settings.model_copy(update={"budget_gb": 1.5 * made / 1e9})
    reading = [stored_split(trial, split, settings, CPU) for split in ("train", "val")]
    with pytest.raises(OSError, match="in use"):
        make([other], small)
    del reading
    assert bytes_made([other], small) == made


# ---- who makes it ----


@pytest.fixture
def expected(tmp_path):
    """Features that one thread made."""
    alone = Features(dir=str(tmp_path / "alone"))
    make(trials_of(depth=[1, 3], augment=["hflip"]), alone)
    return alone


def test_threads_share_the_shards(settings, expected, computed):
    computed.clear()
    progress = make(trials_of(depth=[1, 3], augment=["hflip"]), settings, [CPU] * 3)
    assert sorted(computed) == SHARDS
    images = [one.images for one in progress]
    assert images == sorted(images)
    assert (images[0], images[-1]) == (0, progress[0].total)
    assert_features_alike(settings, expected)


@pytest.mark.parametrize("devices", [1, 2])
def test_failing_pass_stores_nothing(settings, computed, monkeypatch, devices):
    """What was done before stays for the next pass."""
    recorded = compute._Pass.compute

    def failing(one, shard):
        if shard.start == SHARD:
            raise RuntimeError("a lane died")
        return recorded(one, shard)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="a lane died"):
        patch.setattr(compute._Pass, "compute", failing)
        make([trial_of()], settings, [CPU] * devices)
    assert list(store_of(settings).folder.glob("*.np*")) == []
    assert stored_split(trial_of(), "train", settings, CPU) is None
    before = set(computed)
    assert (("train", "", 0, SHARD) in before) or devices > 1
    computed.clear()
    make([trial_of()], settings)
    assert set(computed) == set(SHARDS) - {shard for shard in SHARDS if shard[1]} - before
    assert stored_split(trial_of(), "train", settings, CPU) is not None


def test_a_pass_without_a_device_stores_nothing(settings):
    """Arrays that nobody wrote to would have sound checksums too."""
    with pytest.raises(ValueError, match="device"):
        make([trial_of()], settings, [])
    assert stored_split(trial_of(), "train", settings, CPU) is None


def test_a_pass_that_nobody_waits_for_ends(settings, expected, computed):
    trials = trials_of(depth=[1, 3], augment=["hflip"])
    computed.clear()
    progress = make_features(trials, settings, [CPU])
    assert [next(progress).images for _ in range(2)] == [0, SHARD]
    progress.close()
    assert 1 <= len(computed) < len(SHARDS)
    assert list(folder_of(settings).glob("*.np*")) == []
    make(trials, settings)
    assert computed == SHARDS
    assert_features_alike(settings, expected)


def make_elsewhere(phases, settings, name, met=None, stop_at=None, ready=None):
    """Make features in this process, which does nothing else; a line of a log beside the folder for each shard.

    `met` is passed with the first shard in hand; at the shard of index `stop_at` the process stays.
    """
    torch.set_num_threads(1)
    count, whole = itertools.count(), compute._Pass.compute

    def logged_compute(one, shard):
        index = next(count)
        if index == 0 and met is not None:
            met.wait(30)
        if index == stop_at:
            ready.set()
            time.sleep(60)
        with (folder_of(settings).parent / "log").open("a") as log:
            log.write(f"{name} {shard.split} {shard.view or 'plain'} {shard.start} {shard.end}\n")
        return whole(one, shard)

    compute._Pass.compute = logged_compute
    compute.SHARD = SHARD
    *_, last = make_features(phases, settings, [CPU])
    assert last.total == sum(end - start for *_, start, end in SHARDS)


def logged(settings):
    """The shards that other processes computed, and who did."""
    lines = [line.split() for line in (folder_of(settings).parent / "log").read_text().splitlines()]
    shards = [(split, view.replace("plain", ""), int(start), int(end)) for _, split, view, start, end in lines]
    return shards, {line[0] for line in lines}


def assert_shared(processes, settings, expected):
    """Two processes make features together, each shard once."""
    met, trials = processes.context.Barrier(2), trials_of(depth=[1, 3], augment=["hflip"])
    both = [processes.start(make_elsewhere, trials, settings, name, met) for name in ("first", "second")]
    assert [processes.end(process) for process in both] == [0, 0]
    shards, names = logged(settings)
    assert sorted(shards) == SHARDS
    assert names == {"first", "second"}
    assert_features_alike(settings, expected)


def test_processes_share_the_shards(settings, expected, processes):
    assert_shared(processes, settings, expected)


def test_the_next_process_does_what_a_killed_one_left(settings, expected, computed, processes):
    trials, ready = trials_of(depth=[1, 3], augment=["hflip"]), processes.context.Event()
    maker = processes.start(make_elsewhere, trials, settings, "killed", None, 2, ready)
    assert ready.wait(30)
    os.kill(maker.pid, signal.SIGKILL)
    assert processes.end(maker) == -signal.SIGKILL
    assert stored_split(trials[0], "train", settings, CPU) is None
    computed.clear()
    progress = make(trials, settings)
    assert computed == SHARDS[2:]
    assert progress[-1].images == sum(end - start for *_, start, end in SHARDS[2:])
    assert_features_alike(settings, expected)


@pytest.mark.slow
def test_fresh_interpreters_share_the_shards(settings, expected):
    """As on two machines that share a folder."""
    assert_shared(Processes("spawn"), settings, expected)


def test_features_that_are_there_are_known_without_a_pass(settings):
    trials = trials_of(depth=[1, 3], augment=["hflip"])
    make(trials[:1], settings)
    assert are_stored(trials[:1], settings)
    assert not are_stored(trials, settings)
    make(trials, settings)
    assert are_stored(trials, settings)
    assert not are_stored(trials, settings.model_copy(update={"dtype": "float16"}))

"""Checkpoints: whole or not at all, and a fit that goes on from one as if nothing had happened."""

import errno

import pytest
import torch
from torch import nn

from raysweep.recipe import Data, Features
from raysweep.train import checkpoint
from raysweep.train.batches import Batch
from raysweep.train.checkpoint import Checkpoint, Folder, optimizer_state, restore_optimizer
from raysweep.train.ddp import World
from raysweep.train.phases import Fit, Saving, Sharing
from tests.features.small_trials import trial_of
from tests.train.small_images import cnn, labelled, linear, phase_of, training_of, with_dropout, without_time

NEVER = Sharing(Features(cache="never"))


def saved(number: float) -> Checkpoint:
    return Checkpoint({"weight": torch.full((3,), number)}, {"epoch": number, "list": [1, None, 0.1]})


def number_of(files) -> float | None:
    found = checkpoint.read(files)
    return None if found is None else float(found.tensors["weight"][0])


# ---- files ----


def test_what_is_read_is_what_was_written(tmp_path):
    checkpoint.write(Folder(tmp_path / "trial"), saved(0.5))
    found = checkpoint.read(Folder(tmp_path / "trial"))
    assert found.facts == saved(0.5).facts
    assert torch.equal(found.tensors["weight"], saved(0.5).tensors["weight"])


def test_there_is_none_where_none_was_written(tmp_path):
    assert checkpoint.read(Folder(tmp_path / "nowhere")) is None


def test_the_last_two_are_kept(tmp_path):
    for number in range(4):
        checkpoint.write(Folder(tmp_path), saved(number))
    assert len(list(tmp_path.iterdir())) == 4
    assert number_of(Folder(tmp_path)) == 3
    checkpoint.remove_all(Folder(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
@pytest.mark.parametrize("damage", ["cut", "changed", "emptied", "removed"])
def test_a_damaged_one_falls_back_to_the_one_before(tmp_path, suffix, damage):
    for number in (1, 2):
        checkpoint.write(Folder(tmp_path), saved(number))
    path = max(tmp_path.glob(f"*.{suffix}"))
    content = path.read_bytes()
    middle = len(content) - 6  # of the safetensors file a byte of the weights; of the JSON file one of the facts
    changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes({"cut": content[:-8], "changed": changed, "emptied": b""}[damage])
    assert number_of(Folder(tmp_path)) == 1
    checkpoint.write(Folder(tmp_path), saved(3))
    assert number_of(Folder(tmp_path)) == 3


def test_without_room_the_earlier_ones_stay(tmp_path):
    class Full(Folder):
        def write(self, name, content):
            if name.endswith(".json"):
                raise OSError(errno.ENOSPC, "No space left on device")
            super().write(name, content)

    checkpoint.write(Folder(tmp_path), saved(1))
    with pytest.raises(OSError, match="No space"):
        checkpoint.write(Full(tmp_path), saved(2))
    assert number_of(Folder(tmp_path)) == 1


def test_a_file_that_cannot_be_written_is_an_os_error(tmp_path):
    with pytest.raises(OSError) as caught:
        checkpoint.write_tensors(tmp_path / ("x" * 300), {"weight": torch.zeros(3)})
    assert caught.value.errno == errno.ENAMETOOLONG
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_tensors_of_every_kind_are_kept(tmp_path, dtype, shape):
    checkpoint.write(Folder(tmp_path), Checkpoint({"x": torch.ones(shape, dtype=dtype)}, {}))
    assert torch.equal(checkpoint.read(Folder(tmp_path)).tensors["x"], torch.ones(shape, dtype=dtype))


# ---- optimizers ----


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adam"},
        {"optimizer": "adamw", "weight_decay": 0.1, "decay_norms": False},
        {"optimizer": "sgd", "nesterov": True},
        {"optimizer": "adamw", "layer_decay": 0.7},
        *({"optimizer": name, "weight_decay": 0.1} for name in ("nadam", "radam", "rmsprop", "lion", "lamb", "adan")),
    ],
)
def test_an_optimizer_goes_on_as_it_would_have(settings, tmp_path):
    """Three steps, saved through files, two more; against five in a row."""
    whole, parted = cnn(), cnn()
    first, second = (
        training_of(whole, phase_of(**settings), *both()),
        training_of(parted, phase_of(**settings), *both()),
    )
    for one in (first, second):
        take_steps(one, 3)
    state = optimizer_state(second.optimizer)
    checkpoint.write(Folder(tmp_path), state)
    found = checkpoint.read(Folder(tmp_path))
    other = training_of(parted, phase_of(**settings), *both())
    restore_optimizer(other.optimizer, found.tensors, found.facts)
    for one in (first, other):
        take_steps(one, 2)
    for one, two in zip(whole.parameters(), parted.parameters(), strict=True):
        assert torch.equal(one, two)


def both():
    return labelled(12), labelled(6)


def take_steps(training, count):
    for number in range(count):
        positions = torch.arange(4) + number
        training._step(Batch(positions, labels=training.training.labels[positions]), None, number)


# ---- a training ----

SETTINGS = [
    {},
    {"optimizer": "sgd", "schedule": "cosine", "epochs": 4},
    {"optimizer": "adamw", "schedule": "step", "step_epochs": 1, "clip_norm": 0.5},
    {"batch_norm": "training", "flip": True},
    {"validate_every_steps": 2},
    {"patience": 1, "epochs": 6, "lr": 1.0},
    {"batch_size": 5, "label_smoothing": 0.1},
    {"ema": 0.9, "warmup_epochs": 1.5},
    {"ema": 0.5, "patience": 1, "epochs": 6, "lr": 1.0, "optimizer": "lion"},
    {"class_weights": "balanced", "sampler": "balanced", "flip": True},
    {"mixup": 0.4, "cutmix": 1.0, "data": Data(augment=("crop", "erase"))},
    {"data": Data(augment=("crop", "hflip"), views=3), "accumulate_steps": 2},
    {"accumulate_steps": 2, "layer_decay": 0.8, "decay_norms": False, "weight_decay": 0.1, "schedule": "cosine"},
]


class Stopped(Exception):  # noqa: N818
    """Ends a training in its middle."""


def begin(settings, after_step=lambda: None):
    network, draws = with_dropout(cnn(), p=0.3)
    return network, training_of(network, phase_of(**settings), *both(), draws=draws, after_step=after_step)


def stopped_after(settings, steps):
    """Rows of a training that is ended after so many steps, its state and the network's tensors at that moment."""
    states = []

    def after_step():
        if training.steps_done == steps:
            states.append((training.state(), {name: x.clone() for name, x in network.state_dict().items()}))
            raise Stopped

    network, training = begin(settings, after_step)
    rows = []
    try:
        for row in training.epochs():
            rows.append(row)
    except Stopped:
        return rows, *states[0]
    return rows, None, None


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_training_goes_on_from_every_step(settings, tmp_path):
    _, whole = begin(settings)
    expected = without_time(list(whole.epochs()))
    steps = whole.steps_done
    assert steps >= 6
    for step in range(1, steps + 1):
        rows, state, tensors = stopped_after(settings, step)
        checkpoint.write(Folder(tmp_path), state)
        network, training = begin(settings)
        network.load_state_dict(tensors)
        training.restore(checkpoint.read(Folder(tmp_path)))
        rows += training.epochs()
        assert without_time(rows) == expected, step


def test_seconds_of_an_interrupted_epoch_count_both_parts(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    rows, state, tensors = stopped_after({"epochs": 1}, 2)
    assert rows == []
    network, training = begin({"epochs": 1})
    network.load_state_dict(tensors)
    training.restore(state)
    spent = state.facts["epoch"]["seconds"]
    (row,) = training.epochs()
    assert row.seconds > spent > 0


# ---- out of memory ----


class Small(nn.Module):
    """A network on a device that holds a few images only."""

    def __init__(self, network, room):
        super().__init__()
        self.network, self.room = network, room

    def forward(self, images):
        if self.training and len(images) > self.room:
            raise torch.OutOfMemoryError("out of memory")
        return self.network(images)


def rows_with_room(room, **settings):
    torch.manual_seed(0)
    network, draws = with_dropout(linear(), p=0.3)
    training = training_of(Small(network, room), phase_of(**settings), *both(), draws=draws)
    return training, list(training.epochs())


def test_a_batch_in_two_parts_is_the_same_step():
    whole, expected = rows_with_room(4, flip=True)
    halved, found = rows_with_room(2, flip=True)
    assert (whole.parts, halved.parts) == (1, 2)
    for one, two in zip(expected, found, strict=True):
        assert one.train_loss == pytest.approx(two.train_loss, rel=1e-5)
        assert one.val_loss == pytest.approx(two.val_loss, rel=1e-5)


@pytest.mark.parametrize(("batch_size", "accumulate_steps"), [(4, 2), (4, 4), (5, 3), (6, 9)])
def test_accumulated_parts_are_the_same_step(batch_size, accumulate_steps):
    """Dropout and flips of an image do not depend on the part that it is in."""
    _, expected = rows_with_room(9, flip=True, batch_size=batch_size)
    training, found = rows_with_room(9, flip=True, batch_size=batch_size, accumulate_steps=accumulate_steps)
    assert training.parts == accumulate_steps
    for one, two in zip(expected, found, strict=True):
        assert one.train_loss == pytest.approx(two.train_loss, rel=1e-5)
        assert one.val_loss == pytest.approx(two.val_loss, rel=1e-5)


def test_accumulated_parts_take_less_memory():
    training, _ = rows_with_room(2, batch_size=6, accumulate_steps=3)
    assert training.parts == 3
    training, _ = rows_with_room(2, batch_size=6, accumulate_steps=2)  # three images: divided once more
    assert training.parts == 4


def test_statistics_of_a_part_are_of_two_images_at_least():
    """At 8 × 8 pixels one image has one value a channel, of which there are no statistics."""
    assert list(training_of(cnn(), phase_of(batch_size=5, accumulate_steps=5), *both()).epochs())


def test_two_parts_that_are_too_large_are_out_of_memory():
    with pytest.raises(torch.OutOfMemoryError):
        rows_with_room(1)


def test_parts_are_not_tried_where_they_would_be_another_step():
    training = training_of(Small(cnn(), 2), phase_of(), *both())
    with pytest.raises(torch.OutOfMemoryError):
        list(training.epochs())


# ---- a fit ----

FITS = {
    "frozen prefix": trial_of("small_cnn", "head", epochs=2),
    "all layers with adam": trial_of("small_cnn", "all", epochs=2, optimizer="adam"),
    "moving statistics": trial_of("small_cnn", 2, epochs=2, batch_norm="training"),
    "averages": trial_of("small_cnn", "all", epochs=2, ema=0.8, layer_decay=0.9, accumulate_steps=2),
    "phases of averages": trial_of(
        "small_cnn", "all", ema=0.8, phases=[{"depth": "head", "epochs": 2}, {"epochs": 1, "warmup_epochs": 1}]
    ),
    "phases": trial_of(
        "small_cnn", "all", phases=[{"depth": "head", "epochs": 2}, {"depth": 2, "epochs": 1}, {"epochs": 2}]
    ),
}


def rows_and_state(fit):
    return without_time(list(fit.epochs())), fit.network.state()


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("shares", [False, True])
def test_a_fit_goes_on_from_every_step(name, shares, tmp_path):
    """Killed after each step in turn, having kept a checkpoint there, or after the last epoch before it."""
    trial = FITS[name]
    expected, tensors = rows_and_state(Fit(trial, NEVER, World()))
    steps = 0
    while True:
        steps += 1
        sharing = Sharing(Features(cache="never"), folder=tmp_path / f"{steps}" if shares else None)
        rows, saved, ended = killed(trial, sharing, steps)
        if ended:
            break
        fit = Fit(trial, sharing, World(), saved=through_files(saved, tmp_path / f"files{steps}"))
        found, state = rows_and_state(fit)
        by_epoch = {row["epoch"]: without_shared(row) for row in [*rows, *found]}
        assert list(by_epoch.values()) == [without_shared(row) for row in expected], steps
        assert fit.is_over
        for key in tensors:
            assert torch.equal(state[key], tensors[key]), (steps, key)
    assert steps > 4


def through_files(saved, folder):
    if saved is None:
        return None
    checkpoint.write(Folder(folder), saved)
    return checkpoint.read(Folder(folder))


def without_shared(row):
    return {key: value for key, value in row.items() if key != "shared"}


def killed(trial, sharing, steps):
    """Rows of a fit up to a step, what it kept, and whether it had ended before."""
    count, kept, rows = 0, [None], []

    def due():
        nonlocal count
        count += 1
        return count == steps

    def keep(found):
        kept.append(found)
        raise Stopped

    fit = Fit(trial, sharing, World(), saving=Saving(due, keep))
    try:
        for row in fit.epochs():
            rows += without_time([row])
            if count > steps:
                raise Stopped
            kept.append(fit.state() if fit._stage else None)
    except Stopped:
        return rows, kept[-1], False
    return rows, kept[-1], count < steps

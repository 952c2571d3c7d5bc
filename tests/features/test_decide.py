"""Decisions about a small CNN at depths whose cuts store 256 bytes, 8 KiB and 16 KiB an image; rates are made up.

Of 512 fake images 328 are for training and 82 for validation: 410 pass through the prefix once if features are
stored, and an epoch asks for 328 + 82 + 82.
"""

import numpy as np
import pytest

from raysweep.features import decide as module
from raysweep.features.decide import Rates, cut_key, decide, group_key, measured_rates
from raysweep.recipe import Features, Recipe
from tests.features.small_trials import trials_of

COMPUTED, AN_EPOCH = 410, 492
BYTES = {"1": 256, "3": 8192, "5": 16384}
ALWAYS_FITS = 1 << 40


@pytest.fixture
def machine(monkeypatch):
    """Set this machine's rates: seconds an image by a prefix's number of layers, bytes a second, memory."""

    def set_rates(seconds, memory_bytes=1e9, disk_bytes=1e9, available=ALWAYS_FITS):
        def prefix_seconds(trial, cut, precision, device):
            if cut.prefix is None:
                return 0.0
            trained = {name.rpartition(".")[0] for name in cut.trained}
            return seconds[str(len(trained))] if isinstance(seconds, dict) else seconds

        monkeypatch.setattr(module, "_prefix_seconds", prefix_seconds)
        monkeypatch.setattr(module, "measured_rates", lambda settings, device: Rates(memory_bytes, disk_bytes))
        usage = type("Memory", (), {"available": available})
        monkeypatch.setattr(module.psutil, "virtual_memory", lambda: usage)

    return set_rates


def decisions(depth=(1, 3, 5), features=None, epochs=10, grid=None, **more):
    recipe = Recipe.model_validate(
        {
            "data": {"dataset": "fake", "image_size": 32} | more.pop("data", {}),
            "grid": {"backbone": "small_cnn", "depth": list(depth)} | (grid or {}),
            "model": {"weights": "none"} | more,
            "train": {"epochs": epochs},
            "features": features or {},
        }
    )
    return decide(recipe.trials(), recipe.features)


def stored(found):
    return [one.depth_label for one in found if one.store]


# ---- what pays ----


def test_a_phase_that_trials_share_is_counted_once(machine):
    """Two depths begin with the same probe of four epochs; each has two epochs at its own cut."""
    machine(0.001)
    recipe = Recipe.model_validate(
        {
            "data": {"dataset": "fake", "image_size": 32},
            "grid": {"backbone": "small_cnn", "depth": [1, 3]},
            "model": {"weights": "none"},
            "train": {"epochs": 2, "phases": [{"depth": 1, "epochs": 4}, {}]},
        }
    )
    found = {one.depth_label: one for one in decide(recipe.trials(), recipe.features)}
    assert len(found["1"].trials) == 2
    assert found["1"].images_read == (4 + 2) * AN_EPOCH  # the probe once, and the trial whose depth is 1


def test_saving_by_hand(machine):
    """Ten epochs of two trials at 2 ms an image, less the one pass, and reading and writing 256 bytes an image."""
    machine(0.002, memory_bytes=256e4, disk_bytes=256e3)
    (one,) = decisions([1], grid={"lr": [0.1, 0.2]})
    read = 2 * 10 * AN_EPOCH
    assert (one.images_computed, one.images_an_epoch, one.images_read) == (COMPUTED, AN_EPOCH, read)
    assert one.predicted_saving_s == pytest.approx(read * (0.002 - 0.0001) - COMPUTED * (0.002 + 0.001))
    assert one.prefix_ms_per_image == pytest.approx(2)
    assert one.mebibytes == pytest.approx(COMPUTED * 256 / 2**20)
    assert (one.store, one.reason) == (True, "saves time")


def test_late_small_cut_is_stored_and_wide_early_one_is_not(machine):
    """The early prefix is fast and its output large: at 4 MB/s 16 KiB take 4 ms to read, and ½ ms to compute."""
    machine({"1": 0.002, "3": 0.004, "5": 0.0005}, memory_bytes=4e6, disk_bytes=4e6)
    late, middle, early = decisions()
    assert [one.mebibytes for one in (late, middle, early)] == pytest.approx(
        [COMPUTED * size / 2**20 for size in BYTES.values()]
    )
    assert (late.store, late.reason) == (True, "saves time")
    assert middle.store
    assert (early.store, early.reason) == (False, "reading would take longer than computing again")
    assert early.predicted_saving_s < 0 < late.predicted_saving_s


def test_features_larger_than_memory_are_read_from_disk(machine):
    """16 KiB an image in half of the memory available, or not."""
    size = COMPUTED * BYTES["5"]
    for available, store in ((2 * size + 2, True), (2 * size - 2, False)):
        machine(0.001, memory_bytes=1e9, disk_bytes=8e6, available=available)
        assert decisions([5])[0].store is store


def test_a_single_epoch_may_not_pay(machine):
    """492 images are asked for and 410 computed, so 82 are saved: less than it takes to write 8 KiB for each."""
    machine(0.1, memory_bytes=1e9, disk_bytes=8192 / 0.05)
    (one,) = decisions([3], epochs=1)
    assert one.predicted_saving_s == pytest.approx(AN_EPOCH * (0.1 - 8192e-9) - COMPUTED * (0.1 + 0.05), rel=1e-6)
    assert not one.store
    assert decisions([3], epochs=2)[0].store


def test_flips_and_16_bits_count(machine):
    machine(0.001)
    (plain,), (flipped,), (half,) = (
        decisions([1], **more) for more in ({}, {"data": {"augment": ["hflip"]}}, {"features": {"dtype": "bfloat16"}})
    )
    assert flipped.images_computed == COMPUTED + 328
    assert flipped.mebibytes == pytest.approx(plain.mebibytes * (COMPUTED + 328) / COMPUTED)
    assert half.mebibytes == pytest.approx(plain.mebibytes / 2)
    assert (plain.precision, plain.stored_as, half.precision, half.stored_as) == (*["float32"] * 3, "bfloat16")


@pytest.mark.parametrize(
    ("features", "stored_as"),
    [
        ({"precision": "bfloat16"}, "bfloat16"),
        ({"precision": "float16"}, "float16"),
        ({"precision": "tf32"}, "float32"),
        ({"precision": "bfloat16", "dtype": "float32"}, "float32"),
    ],
)
def test_features_are_stored_as_they_are_computed(machine, features, stored_as):
    machine(0.001)
    (plain,), (found,) = decisions([1]), decisions([1], features=features)
    assert (found.precision, found.stored_as) == (features["precision"], stored_as)
    assert found.mebibytes == pytest.approx(plain.mebibytes / (1 if stored_as == "float32" else 2))


@pytest.mark.parametrize(("epochs", "sign"), [(10, 1), (4, 0), (2, -1)])
def test_making_views_is_weighed(machine, monkeypatch, epochs, sign):
    """Four of each image are made to be stored, else one of each in every epoch."""
    machine(0.001)
    found = []
    for seconds in (0.0, 0.5):
        monkeypatch.setattr(module, "_view_seconds", lambda phase, seconds=seconds: seconds)
        found += decisions([1], data={"augment": ["crop"], "views": 4}, epochs=epochs)
    more = found[1].predicted_saving_s - found[0].predicted_saving_s
    assert more == pytest.approx(0.5 * 328 * (epochs - 4))
    assert np.sign(round(more)) == sign


def test_a_view_is_timed():
    (phase,) = trials_of(augment=["crop"], views=4)
    assert 1e-6 < module._view_seconds(phase) < 1


def test_views_are_weighed(machine, monkeypatch):
    """Each takes a pass and its room; without end of them nothing can be stored."""
    machine(0.001)
    monkeypatch.setattr(module, "_view_seconds", lambda phase: 0.0)
    (plain,), (four,), (fresh,), (mixed,) = (
        decisions([1], **more)
        for more in (
            {},
            {"data": {"augment": ["crop"], "views": 4}},
            {"data": {"augment": ["crop", "hflip"]}},
            {"grid": {"mixup": 0.2}},
        )
    )
    assert four.images_computed == COMPUTED + 4 * 328
    assert four.mebibytes == pytest.approx(plain.mebibytes * (COMPUTED + 4 * 328) / COMPUTED)
    assert four.predicted_saving_s < plain.predicted_saving_s
    assert (fresh.store, mixed.store) == (False, False)
    assert fresh.reason == "no view of augment=crop+hflip comes twice; data.views would store some"
    assert mixed.reason == "mixup and cutmix mix other images in every step"


def test_trials_that_mix_images_are_weighed_apart(machine):
    machine(0.001)
    plain, mixed = decisions([1], grid={"mixup": [0.0, 0.2]})
    assert (plain.store, mixed.store) == (True, False)


# ---- room ----

FASTER = {"1": 0.003, "3": 0.002, "5": 0.001}


@pytest.mark.parametrize(
    ("room", "kept"),
    [
        (256 + 8192 + 16384, ["1", "3", "5"]),
        (256 + 16384, ["1", "3"]),
        (256 + 8192, ["1", "3"]),
        (256 + 8191, ["1"]),
        (256, ["1"]),
        (255, []),
    ],
)
def test_what_saves_most_is_kept(machine, room, kept):
    """`room` is in bytes an image; the later cuts save most."""
    machine(FASTER)
    found = decisions(features={"budget_gb": (COMPUTED * room + 1) / 1e9})
    assert [one.depth_label for one in found] == ["1", "3", "5"]
    assert stored(found) == kept
    for one in found:
        expected = "saves time" if one.store else rf"needs {one.mebibytes:,.0f} MiB and"
        assert one.reason.startswith(expected)
        assert one.store or one.reason.endswith("MiB may be used")


def test_a_large_saving_comes_before_a_small_cut(machine):
    """The early cut saves more here, and leaves no room for the others."""
    machine({"1": 0.001, "3": 0.002, "5": 0.003})
    assert stored(decisions(features={"budget_gb": (COMPUTED * (16384 + 200)) / 1e9})) == ["5"]


@pytest.mark.parametrize(("seconds", "stores"), [(1.5e-4, True), (1.5e-3, False)])
def test_a_loss_within_the_noise_is_stored(machine, seconds, stores):
    """Of one epoch, less than a second or more: rates measured anew must not turn a small sweep's rows."""
    machine(seconds, memory_bytes=1e12, disk_bytes=8192 / (10 * seconds))
    (one,) = decisions([3], epochs=1)
    assert one.predicted_saving_s < 0
    assert one.store is stores


def test_a_cut_that_does_not_pay_takes_no_room(machine):
    machine({"1": 0.002, "3": 0.0, "5": 0.004}, memory_bytes=1e7)
    found = decisions(features={"budget_gb": (COMPUTED * (256 + 16384) + 1) / 1e9})
    assert stored(found) == ["1", "5"]
    assert found[1].reason == "reading would take longer than computing again"


# ---- what the recipe says ----


def test_never(machine):
    machine(1.0)
    found = decisions(features={"cache": "never"})
    assert stored(found) == []
    assert {one.reason for one in found} == {"features.cache=never"}


def test_always(machine):
    """Also what takes longer to read; but not what has no room."""
    machine(0.0)
    found = decisions(features={"cache": "always"})
    assert stored(found) == ["1", "3", "5"]
    assert {one.reason for one in found} == {"features.cache=always"}
    small = decisions(features={"cache": "always", "budget_gb": (COMPUTED * (256 + 8192) + 1) / 1e9})
    assert stored(small) == ["1", "3"]
    assert small[2].reason == "needs 6 MiB and 0 MiB may be used"


@pytest.mark.parametrize("cache", ["auto", "always"])
def test_what_changes_with_every_batch_is_never_stored(machine, cache):
    machine(1.0)
    found = decisions(features={"cache": cache}, batch_norm="training")
    assert stored(found) == []
    assert {one.reason for one in found} == {"batch_norm=training changes with every batch"}
    assert {one.predicted_saving_s for one in found} == {0.0}


@pytest.mark.parametrize("cache", ["auto", "always"])
def test_without_a_prefix_there_is_nothing_to_store(machine, cache):
    machine(1.0)
    (one,) = decisions(["all"], features={"cache": cache})
    assert (one.store, one.reason) == (False, "nothing is frozen before the first trained layer")
    assert (one.mebibytes, one.prefix_ms_per_image, one.predicted_saving_s) == (0.0, 0.0, 0.0)


# ---- which trials share ----


def test_trials_of_a_cut_share_a_decision(machine):
    machine(1.0)
    found = decisions([3, 1], grid={"lr": [0.1, 0.2], "optimizer": ["adam", "sgd"]})
    assert [(one.depth_label, len(one.trials)) for one in found] == [("3", 4), ("1", 4)]
    assert len({name for one in found for name in one.trials}) == 8


@pytest.mark.parametrize(("weights", "cuts"), [("none", 2), ("pretrained", 1)])
def test_seeds_share_pretrained_weights(machine, weights, cuts):
    """Random weights are drawn from the seed; of pretrained ones the seed draws the head alone."""
    machine(1.0)
    found = decisions([1], grid={"seed": [0, 1], "backbone": "resnet18"}, weights=weights)
    assert [len(one.trials) for one in found] == [2 // cuts] * cuts


def test_keys():
    grid = {"backbone": "small_cnn", "depth": [1, 3], "lr": [0.1, 0.2], "image_size": [16, 32]}
    trials = Recipe.model_validate({"grid": grid, "model": {"weights": "none"}}).trials()
    assert len({group_key(trial) for trial in trials}) == 2
    assert len({cut_key(trial) for trial in trials}) == 4


# ---- measuring ----


@pytest.fixture
def forget():
    """Makes this process forget its rates, as it does itself before and after the test."""

    def clear():
        module.measured_rates.cache_clear()
        module._node_seconds.cache_clear()

    clear()
    yield clear
    clear()


def test_measured_rates(tmp_path):
    """A real probe: between a floppy disk and a thousand memory channels, and it leaves nothing."""
    folder = tmp_path / "features"
    rates = measured_rates(Features(dir=str(folder)))
    assert 1e5 < rates.disk_bytes < 1e13
    assert 1e7 < rates.memory_bytes < 1e13
    assert list(folder.iterdir()) == []


def test_another_device_or_precision_has_rates_of_its_own(tmp_path, monkeypatch, forget):
    """A GPU is measured with more images, and known by its name."""
    asked = []
    monkeypatch.setattr(module, "_measured", lambda folder, device: Rates(1.0, 1.0 + (device.type == "cuda")))
    monkeypatch.setattr(
        module, "seconds_per_node", lambda *told: asked.append(told[2:]) or {"conv1": float(len(asked))}
    )
    monkeypatch.setattr(module.torch.cuda, "get_device_name", lambda device: "a card")
    model = Recipe().model.model_copy(update={"weights": "none"})
    cpu, gpu = module.CPU, module.torch.device("cuda")
    ways = [("float32", cpu), ("bfloat16", cpu), ("float32", gpu), ("tf32", gpu)]
    for _ in range(2):
        forget()
        found = [module._node_seconds("small_cnn", model, 10, 32, *way)["conv1"] for way in ways]
        assert found == [1.0, 2.0, 3.0, 4.0]
    assert asked == [(16, cpu), (16, cpu), (128, gpu), (128, gpu)]
    settings = Features(dir=str(tmp_path))
    assert [module.measured_rates(settings, device).disk_bytes for device in (cpu, gpu)] == [1.0, 2.0]


def test_rates_are_measured_once_a_machine(tmp_path, monkeypatch, forget):
    monkeypatch.setattr(module, "_measured", lambda folder, device: Rates(2.0, 1.0))
    monkeypatch.setattr(module, "seconds_per_node", lambda *_: {"conv1": 0.5})
    settings = Features(dir=str(tmp_path))
    model = Recipe().model.model_copy(update={"weights": "none"})
    for again in range(2):
        forget()
        assert module.measured_rates(settings) == Rates(2.0, 1.0)
        assert module._node_seconds("small_cnn", model, 10, 32, "float32", module.CPU) == {"conv1": 0.5}
        if not again:
            monkeypatch.setattr(module, "_measured", lambda folder, device: pytest.fail("measured again"))
            monkeypatch.setattr(module, "seconds_per_node", lambda *_: pytest.fail("measured again"))


@pytest.mark.parametrize("kept", [None, [], {}, {"memory_bytes": "many", "disk_bytes": 1.0}, {"memory_bytes": 1.0}])
@pytest.mark.usefixtures("forget")
def test_rates_that_are_none_are_measured(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "recall", lambda *_: kept)
    monkeypatch.setattr(module, "_measured", lambda folder, device: Rates(2.0, 1.0))
    assert module.measured_rates(Features(dir=str(tmp_path))) == Rates(2.0, 1.0)


def test_measured_decisions(tmp_path):
    """Unpatched: a deeper prefix takes longer, and nothing of it is zero."""
    found = decisions([1, 5, "all"], features={"dir": str(tmp_path)})
    assert found[0].prefix_ms_per_image > found[1].prefix_ms_per_image > found[2].prefix_ms_per_image == 0

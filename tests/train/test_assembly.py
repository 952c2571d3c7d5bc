"""What a trial is made of, and that stored features change none of its numbers."""

import numpy as np
import pytest
import torch
import torch.multiprocessing
from torch.nn import functional as F

from raysweep.train import assembly
from raysweep.features.store import Store, Stored
from raysweep.train.phases import Fit, Sharing
from raysweep.recipe import Features, Recipe
from raysweep.data.sources import Images
from raysweep.train.loop import World, predict, train

CPU = torch.device("cpu")
DATA = {"dataset": "fake:4", "image_size": 32, "limit": 48}
TRAIN = {"epochs": 2, "batch_size": 16, "eval_batch_size": 16, "optimizer": "sgd"}
SHARD = 20
"""Images: so that no split is a whole number of shards."""


def trials_of(backbone="small_cnn", depth=1, lr=0.01, batch_norm="frozen", **data):
    """All trials of a small grid; without pretrained weights."""
    return Recipe.model_validate(
        {
            "data": DATA | data,
            "grid": {"backbone": backbone, "depth": depth, "lr": lr},
            "model": {"weights": "none", "batch_norm": batch_norm},
            "train": TRAIN,
        }
    ).trials()


def trial_of(*args, **more):
    (trial,) = trials_of(*args, **more)
    return trial


@pytest.fixture
def settings(tmp_path):
    return Features(dir=str(tmp_path / "features"))


def make(trials, settings, images=SHARD):
    """Make features here and now; returns the bytes made and the shards computed."""
    shards = []

    def run(wanted, files):
        for shard in wanted:
            assert assembly.compute_shard(trials[0], shard, files, CPU) == shard[3] - shard[2]
        shards.extend(wanted)

    return assembly.make_features(trials, settings, run, images), shards


def rows_of(trial, settings=None, world=None):
    """The rows of a trial, from stored features where settings say where."""
    parts = assembly.assemble(trial, CPU)
    splits = {}
    for split in ("train", "val"):
        stored = assembly.stored_source(trial, split, settings, CPU) if settings else None
        splits[split] = assembly.labelled(parts, trial, split, CPU, stored)
        assert isinstance(splits[split].source, Stored if settings else Images)
    flip = "hflip" in trial.data.augment
    rows = train(
        parts.suffix, trial.train, trial.lr, trial.seed, splits["train"], splits["val"],
        batch_norm=trial.model.batch_norm, flip=flip, world=world,
    )  # fmt: skip
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def assert_alike(found, expected, loss=1e-4):
    """Losses within a relative tolerance, all else equal; and the trials are not all at zero."""
    assert len(found) == len(expected) == TRAIN["epochs"]
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, rel=loss, abs=0)
        assert row["val_loss"] > 0.01
        if loss < 1e-3:
            for key in ("epoch", "train_accuracy", "val_accuracy"):
                assert row[key] == other[key]


# ---- stored features change nothing ----

CASES = [
    # backbone, depth, tensors on the frontier, batch norm, augmentation, image size
    ("small_cnn", 1, 1, "frozen", [], 32),
    ("small_cnn", 3, 1, "frozen", ["hflip"], 32),
    ("small_cnn", 3, 1, "recalibrated", ["hflip"], 24),
    ("resnet18", 1, 1, "recalibrated", ["hflip"], 32),
    ("resnet18", 3, 2, "frozen", ["hflip"], 32),  # between a block's two convolutions: its shortcut crosses too
    ("resnet18", "layer3", 1, "frozen", [], 32),
    ("resnet18", 9, 2, "recalibrated", ["hflip"], 32),  # as does the input of a shortcut projection that trains
    ("tf_efficientnet_lite0", 1, 1, "frozen", ["hflip"], 32),
    ("tf_efficientnet_lite0", 4, 1, "recalibrated", [], 32),
    ("tf_efficientnet_lite0", 21, None, "frozen", ["hflip"], 32),
    ("small_cnn", ["stage2", "head"], 1, "frozen", ["hflip"], 32),
]


@pytest.mark.parametrize(("backbone", "depth", "frontier", "batch_norm", "augment", "size"), CASES)
def test_cached_rows_are_the_uncached_ones(settings, backbone, depth, frontier, batch_norm, augment, size):
    trial = trial_of(backbone, [depth], batch_norm=batch_norm, augment=augment, image_size=size)
    cut = assembly.cut_of(trial)
    assert assembly.is_cacheable(trial, cut)
    assert frontier is None or len(cut.frontier) == frontier
    made, _ = make([trial], settings)
    assert made == (48 * (1 + len(augment)) + 12) * 4 * cut.numbers_per_image
    assert_alike(rows_of(trial, settings), rows_of(trial))


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "frontier"), [(1, 1), (4, 2)])
def test_cached_rows_of_a_transformer(settings, depth, frontier):
    """At depth 4 the cut is inside the last block: what its MLP is given, and what is added to the result."""
    trial = trial_of("vit_tiny_patch16_224", depth, augment=["hflip"], image_size=224, limit=6)
    assert len(assembly.cut_of(trial).frontier) == frontier
    make([trial], settings)
    assert_alike(rows_of(trial, settings), rows_of(trial))


def test_flips_change_rows(settings):
    """Else the tests above would pass with the flips forgotten on both ways."""
    plain, flipped = (trial_of(depth=3, augment=augment) for augment in ([], ["hflip"]))
    make([flipped], settings)
    assert rows_of(plain)[-1]["train_loss"] != pytest.approx(rows_of(flipped, settings)[-1]["train_loss"], rel=1e-4)


def test_recalibration_changes_rows():
    frozen, recalibrated = (trial_of(depth=3, batch_norm=kind) for kind in ("frozen", "recalibrated"))
    assert rows_of(frozen)[0]["train_loss"] != pytest.approx(rows_of(recalibrated)[0]["train_loss"], rel=1e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 0.01), ("bfloat16", 0.05)])
def test_16_bits_take_half_and_stay_close(settings, dtype, tolerance):
    trial = trial_of("resnet18", 3, augment=["hflip"])
    half = settings.model_copy(update={"dtype": dtype})
    whole, _ = make([trial], settings)
    assert make([trial], half)[0] * 2 == whole > 0
    assert_alike(rows_of(trial, half), rows_of(trial), loss=tolerance)


@pytest.mark.parametrize(("depth", "batch_norm"), [("all", "frozen"), (1, "training"), ("all", "training")])
def test_not_cacheable(depth, batch_norm):
    trial = trial_of(depth=depth, batch_norm=batch_norm)
    assert not assembly.is_cacheable(trial, assembly.cut_of(trial))


def rank_main(rank, folder, trial, settings):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(rows_of(trial, settings, World(rank, 2)), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_read_the_same_features(settings, tmp_path):
    trial = trial_of(depth=3, augment=["hflip"])
    make([trial], settings)
    torch.multiprocessing.spawn(rank_main, (str(tmp_path), trial, settings), nprocs=2)
    for rank in (0, 1):
        assert_alike(torch.load(tmp_path / f"{rank}.pt", weights_only=True), rows_of(trial))


# ---- making features ----


def test_one_pass_makes_every_cut(settings):
    trials = trials_of(depth=[1, 3], augment=["hflip"])
    made, shards = make(trials, settings)
    expected = [("train", False, 48), ("train", True, 48), ("val", False, 12)]
    assert shards == [(*view, start, min(start + SHARD, n)) for *view, n in expected for start in range(0, n, SHARD)]
    assert made == (48 + 48 + 12) * 4 * sum(assembly.cut_of(trial).numbers_per_image for trial in trials)


def test_nothing_is_made_twice(settings):
    """Of another learning rate there is nothing to make, of another depth only what is new, of one image size all."""
    make([trial_of(depth=1)], settings)
    assert make([trial_of(depth=1, lr=0.5)], settings) == (0, [])
    made, shards = make(trials_of(depth=[1, 3]), settings)
    assert made == (48 + 12) * 4 * assembly.cut_of(trial_of(depth=3)).numbers_per_image
    assert sum(end - start for *_, start, end in shards) == 48 + 12
    _, shards = make([trial_of(depth=1, augment=["hflip"])], settings)
    assert {shard[:2] for shard in shards} == {("train", True)}
    assert make([trial_of(depth=1, image_size=24)], settings)[0] > 0
    assert make([trial_of(depth=1, batch_norm="recalibrated")], settings)[0] > 0


def test_test_images_have_no_features():
    assert all(split in ("train", "val") for split, _ in assembly.views_of(trial_of(augment=["hflip"])))


def test_failing_pass_leaves_nothing(settings):
    def run(shards, files):
        raise RuntimeError("a lane died")

    with pytest.raises(RuntimeError, match="a lane died"):
        assembly.make_features([trial_of()], settings, run, SHARD)
    assert list(Store(assembly.Path(settings.dir)).folder.glob("*.np*")) == []
    assert assembly.stored_source(trial_of(), "train", settings, CPU) is None


def test_no_room(settings):
    small = settings.model_copy(update={"budget_gb": 1e-6})
    with pytest.raises(OSError, match="features need"):
        make([trial_of(depth=3)], small)


def test_stored_needs_every_view_and_tensor(settings):
    trial = trial_of("resnet18", 3, augment=["hflip"])
    make([trial], settings)
    assert assembly.stored_source(trial, "train", settings, CPU) is not None
    spec = assembly.specs_of(trial, "train", flip=True, dtype="float32")[1]
    (assembly.Path(settings.dir) / f"{spec.digest}.json").unlink()
    assert assembly.stored_source(trial, "train", settings, CPU) is None
    assert assembly.stored_source(trial, "val", settings, CPU) is not None


def test_features_of_a_trial_are_not_evicted(settings):
    trial, other = trial_of(), trial_of(split_seed=46)
    made, _ = make([trial], settings)
    reading = [assembly.stored_source(trial, split, settings, CPU) for split in ("train", "val")]
    with pytest.raises(OSError, match="in use"):
        make([other], settings.model_copy(update={"budget_gb": 1.5 * made / 1e9}))
    del reading
    assert make([other], settings.model_copy(update={"budget_gb": 1.5 * made / 1e9}))[0] == made


def test_refit_from_stored_features(settings):
    """The final fit trains on train + val, with flips, wherever their features are."""
    trial = trial_of(depth=3, augment=["hflip"])
    make([trial], settings)
    found, expected = (
        [row["train_loss"] for row in Fit(trial, sharing, World(), refit=True).rows()]
        for sharing in (Sharing(settings, frozenset([trial.name])), Sharing(settings))
    )
    assert found == pytest.approx(expected, rel=1e-4)
    assert len(found) == TRAIN["epochs"]


# ---- recalibrated batch norm ----


def by_hand(convolved):
    """Mean and unbiased variance of each channel."""
    return convolved.mean((0, 2, 3)), convolved.var((0, 2, 3), correction=1)


@pytest.mark.parametrize("backbone", ["small_cnn", "resnet18"])
def test_recalibration_is_the_same_in_every_process(backbone):
    """The sweep's own process has all threads and a lane has one: they must mean the same stored features."""
    threads, digests = torch.get_num_threads(), set()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            assembly.forget()
            digests.add(assembly.base_of(trial_of(backbone, batch_norm="recalibrated", limit=128)).digest)
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    assert len(digests) == 1


def test_recalibrated_statistics_are_those_of_the_training_images():
    """96 images are two batches of 48, whose statistics count alike, as `update_bn` has it."""
    fresh, base = (
        assembly.base_of(trial_of(batch_norm=kind, limit=96, normalize="none")) for kind in ("frozen", "recalibrated")
    )
    images = torch.from_numpy(base.dataset.train.images()).float() / 255
    network, before = base.backbone.network, fresh.backbone.network
    means, variances = zip(
        *(by_hand(F.conv2d(part, network.stage1[0].weight, padding=1)) for part in (images[:48], images[48:])),
        strict=True,
    )
    norm = network.stage1[1]
    torch.testing.assert_close(norm.running_mean, sum(means) / 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, sum(variances) / 2, rtol=1e-4, atol=1e-5)
    assert torch.equal(before.stage1[1].running_mean, torch.zeros(16))
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, before.get_parameter(name))
    assert norm.momentum == 0.1
    assert base.digest != fresh.digest


def test_recalibration_is_of_images_as_they_are_prepared():
    one, other = (
        assembly.base_of(trial_of(batch_norm="recalibrated", normalize=kind)).backbone.network.stage1[1].running_mean
        for kind in ("none", {"mean": [0.5, 0.5, 0.5], "std": [0.1, 0.1, 0.1]})
    )
    assert not torch.allclose(one, other)


def test_recalibration_survives_a_remainder_of_one():
    """At 32 pixels resnet18's last feature map is one pixel; 65 images are a batch of 64 and one of 1."""
    assembly.base_of(trial_of("resnet18", batch_norm="recalibrated", limit=65))


# ---- parts ----


def trained(trial):
    parts = assembly.assemble(trial, CPU)
    splits = [assembly.labelled(parts, trial, split, CPU) for split in ("train", "val")]
    list(
        train(
            parts.suffix, trial.train, trial.lr, trial.seed, *splits, batch_norm=trial.model.batch_norm
        )
    )  # fmt: skip
    return parts, splits[1]


@pytest.mark.parametrize(
    ("backbone", "depth", "batch_norm"),
    [
        ("small_cnn", 3, "frozen"),
        ("small_cnn", "all", "frozen"),
        ("small_cnn", 3, "training"),
        ("resnet18", 3, "recalibrated"),
        ("tf_efficientnet_lite0", 4, "frozen"),
    ],
)
def test_trained_network_predicts_as_prefix_and_suffix(backbone, depth, batch_norm):
    trial = trial_of(backbone, depth, batch_norm=batch_norm)
    parts, validation = trained(trial)
    scores, _ = predict(parts.suffix, validation, trial.train, World())
    network = parts.trained_network().eval()
    images = torch.from_numpy(parts.base.dataset.val.images())
    with torch.no_grad():
        torch.testing.assert_close(network(parts.base.preparation(images)), scores, rtol=1e-4, atol=1e-5)
        untrained = parts.base.backbone.network.eval()(parts.base.preparation(images))
    assert not torch.allclose(untrained, scores, rtol=1e-2, atol=1e-3)


def test_frozen_layers_are_bit_identical_after_training():
    trial = trial_of("resnet18", "layer4")
    before = {name: value.clone() for name, value in assembly.base_of(trial).backbone.network.state_dict().items()}
    parts, _ = trained(trial)
    after = parts.trained_network().state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert {name.partition(".")[0] for name in changed} == {"layer4", "fc"}


@pytest.mark.parametrize("batch_norm", ["frozen", "training"])
def test_one_trial_leaves_nothing_to_the_next(batch_norm):
    """They share the prefix and the network in this process."""
    trial = trial_of(depth=3, batch_norm=batch_norm)
    assert rows_of(trial) == rows_of(trial)


def test_head_is_drawn_from_the_seed():
    (trial,) = trials_of()
    first, again, other = (
        assembly.assemble(trial.model_copy(update={"seed": seed}), CPU).suffix.get_parameter("classifier.weight")
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_exactly_the_trained_layers_ask_for_gradients():
    """Also after another depth was cut from the same network."""
    deep, shallow = (assembly.assemble(trial_of(depth=depth), CPU) for depth in (3, 1))
    names = [{name for name, p in parts.suffix.named_parameters() if p.requires_grad} for parts in (deep, shallow)]
    assert names[1] == {"classifier.weight", "classifier.bias"}
    assert names[0] == names[1] | {"stage3.0.weight", "stage3.1.weight", "stage3.1.bias"}


def test_labels_are_of_the_split():
    trial = trial_of()
    parts = assembly.assemble(trial, CPU)
    for split, count in (("train", 48), ("val", 12), ("test", 15)):
        labelled = assembly.labelled(parts, trial, split, CPU)
        assert len(labelled.source) == len(labelled.labels) == count
        np.testing.assert_array_equal(labelled.labels, getattr(parts.base.dataset, split).labels)

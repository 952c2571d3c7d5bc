"""A trial's network in two sides, and that features stored of the first change nothing for the second."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from timm.layers import DropPath
from torch import nn

from raysweep.data.sources import Images
from raysweep.features.compute import is_cacheable, make_features, stored_split
from raysweep.features.stored import Stored
from raysweep.nets.cpu import MatrixConv2d
from raysweep.nets.task import cut_of, task_of
from raysweep.recipe import Features
from raysweep.train.ddp import World
from raysweep.train.loop import Training
from raysweep.train.metrics import predict
from raysweep.train.network import assemble, labelled
from raysweep.train.randomness import WholeBatchDropout, WholeBatchDropPath
from tests.features import small_trials
from tests.features.small_trials import TEST_IMAGES, TRAIN_IMAGES, VAL_IMAGES
from tests.nets.small_transformers import SWIN, VIT
from tests.train.ranks import go_through, results_of
from tests.train.small_images import without_time

CPU = torch.device("cpu")
WORLD = World()
EPOCHS = 2
CLASSES = 4
SCORES = [f"{split}_{score}" for split in ("train", "val") for score in ("accuracy", "balanced_accuracy", "macro_f1")]


def trial_of(*args, **fields):
    """Plain gradient descent: adam would make much of the least difference."""
    return small_trials.trial_of(*args, epochs=EPOCHS, optimizer="sgd", **fields)


@pytest.fixture
def settings(tmp_path):
    return Features(dir=str(tmp_path / "features"))


def make(trial, settings):
    """Make a trial's features here and now; returns their bytes."""
    *_, last = make_features([trial], settings, [CPU])
    return last.nbytes


def measures_of(trial, settings=None, world=None):
    """What the epochs of a trial measure, from stored features where settings say where."""
    world = world or WORLD
    network = assemble(trial, world)
    splits = {}
    for split in ("train", "val"):
        stored = stored_split(trial, split, settings, CPU) if settings else None
        splits[split] = labelled(network, trial, split, CPU, stored)
        assert isinstance(splits[split].source, Stored if settings else Images)
    run = Training(trial, network.suffix, splits["train"], splits["val"], CLASSES, world, network.draws)
    return without_time(list(run.epochs()))


def assert_alike(found, expected, loss=1e-4):
    """Losses within a relative tolerance, all else equal; and the trials are not all at zero."""
    assert len(found) == len(expected) == EPOCHS
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=loss, abs=0)
        assert one["val_loss"] > 0.01
        if loss < 1e-3:
            for key in ("epoch", *SCORES):
                assert one[key] == other[key]


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
    (SWIN, "layers.1", 2, "frozen", ["hflip"], 32),
]


@pytest.mark.parametrize(("backbone", "depth", "frontier", "batch_norm", "augment", "size"), CASES)
def test_cached_epochs_are_the_uncached_ones(settings, backbone, depth, frontier, batch_norm, augment, size):
    trial = trial_of(backbone, [depth], batch_norm=batch_norm, augment=augment, image_size=size)
    cut = cut_of(trial)
    assert is_cacheable(trial, cut)
    assert frontier is None or len(cut.frontier) == frontier
    images = TRAIN_IMAGES * (1 + len(augment)) + VAL_IMAGES
    assert make(trial, settings) == images * 4 * cut.numbers_per_image
    assert_alike(measures_of(trial, settings), measures_of(trial))


def test_cached_epochs_of_fixed_views_are_the_uncached_ones(settings):
    """Stored or not, the views are the same; each is one pass over the training images."""
    trial = trial_of("small_cnn", 3, augment=["crop", "hflip", "erase"], views=3)
    cut = cut_of(trial)
    assert is_cacheable(trial, cut)
    assert make(trial, settings) == (TRAIN_IMAGES * 4 + VAL_IMAGES) * 4 * cut.numbers_per_image
    assert_alike(measures_of(trial, settings), measures_of(trial))
    assert make(trial_of("small_cnn", 3, augment=["hflip", "crop", "erase"], views=2), settings) == 0  # among the three


@pytest.mark.parametrize("fields", [{"augment": ["crop"]}, {"mixup": 0.2}, {"cutmix": 1.0, "augment": ["hflip"]}])
def test_views_without_end_are_not_stored(fields):
    trial = trial_of("small_cnn", 3, **fields)
    assert not is_cacheable(trial, cut_of(trial))
    assert all(math.isfinite(row["train_loss"]) for row in measures_of(trial))


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "frontier"), [(1, 1), (4, 2)])
def test_cached_epochs_of_a_transformer(settings, depth, frontier):
    """At depth 4 the cut is inside the last block: what its MLP is given, and what is added to the result."""
    trial = trial_of("vit_tiny_patch16_224", depth, augment=["hflip"], image_size=224, limit=6)
    assert len(cut_of(trial).frontier) == frontier
    make(trial, settings)
    assert_alike(measures_of(trial, settings), measures_of(trial))


def test_flips_change_losses(settings):
    """Else the tests above would pass with the flips forgotten on both ways."""
    plain, flipped = (trial_of(depth=3, augment=augment) for augment in ([], ["hflip"]))
    make(flipped, settings)
    found, other = measures_of(flipped, settings)[-1]["train_loss"], measures_of(plain)[-1]["train_loss"]
    assert found != pytest.approx(other, rel=1e-4)


def test_recalibration_changes_losses():
    frozen, recalibrated = (
        measures_of(trial_of(depth=3, batch_norm=kind))[0]["train_loss"] for kind in ("frozen", "recalibrated")
    )
    assert frozen != pytest.approx(recalibrated, rel=1e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 0.01), ("bfloat16", 0.05)])
def test_16_bits_take_half_and_stay_close(settings, dtype, tolerance):
    trial = trial_of("resnet18", 3, augment=["hflip"])
    half = settings.model_copy(update={"dtype": dtype})
    images = 2 * TRAIN_IMAGES + VAL_IMAGES
    assert make(trial, half) == images * 2 * cut_of(trial).numbers_per_image
    assert_alike(measures_of(trial, half), measures_of(trial), loss=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_read_the_same_features(processes, settings, tmp_path, size):
    """Of the last batch of 2 images one of three ranks has none."""
    trial = trial_of(depth=3, augment=["hflip"], limit=34)
    make(trial, settings)
    go_through(processes, size, tmp_path, {"stored": partial(measures_of, trial, settings)})
    for measures in results_of(tmp_path, size, "stored"):
        assert_alike(measures, measures_of(trial))


# ---- the two sides ----


def trained(trial):
    """The network after its training, and its validation images."""
    network = assemble(trial, WORLD)
    splits = [labelled(network, trial, split, CPU) for split in ("train", "val")]
    list(Training(trial, network.suffix, *splits, CLASSES, draws=network.draws).epochs())
    return network, splits[1]


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
@torch.no_grad()
def test_whole_network_predicts_as_prefix_and_suffix(backbone, depth, batch_norm):
    trial = trial_of(backbone, depth, batch_norm=batch_norm)
    with torch.enable_grad():
        network, validation = trained(trial)
    images = network.task.preparation(torch.from_numpy(network.task.dataset.val.images()))
    whole, untrained = network.whole().eval()(images), network.task.backbone.network.eval()(images)
    scores = network.suffix.eval()(*validation.source.batch(torch.arange(VAL_IMAGES), None, training=False))
    torch.testing.assert_close(whole, scores, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(untrained, scores, rtol=1e-2, atol=1e-3)
    found = predict(network.suffix, validation, trial.train, World())
    probabilities = whole.softmax(1).double()
    assert torch.equal(found.predicted, whole.argmax(1))
    torch.testing.assert_close(found.confidence, probabilities.max(1).values, rtol=1e-4, atol=1e-5)
    losses = -probabilities[range(VAL_IMAGES), found.labels].log()
    torch.testing.assert_close(found.losses, losses, rtol=1e-4, atol=1e-5)


def test_frozen_layers_are_bit_identical_after_training():
    trial = trial_of("resnet18", "layer4")
    before = {name: value.clone() for name, value in task_of(trial).backbone.network.state_dict().items()}
    network, _ = trained(trial)
    after = network.whole().state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert {name.partition(".")[0] for name in changed} == {"layer4", "fc"}


@pytest.mark.parametrize("batch_norm", ["frozen", "training"])
def test_one_trial_leaves_nothing_to_the_next(batch_norm):
    """They share the prefix and the network in this process."""
    trial = trial_of(depth=3, batch_norm=batch_norm)
    assert measures_of(trial) == measures_of(trial)


def test_head_is_drawn_from_the_seed():
    trial = trial_of()
    first, again, other = (
        assemble(trial.model_copy(update={"seed": seed}), WORLD).suffix.get_parameter("classifier.weight")
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_exactly_the_trained_layers_ask_for_gradients():
    """Also after another depth was cut from the same network."""
    deep, shallow = (assemble(trial_of(depth=depth), WORLD).suffix for depth in (3, 1))
    names = [{name for name, p in suffix.named_parameters() if p.requires_grad} for suffix in (deep, shallow)]
    assert names[1] == {"classifier.weight", "classifier.bias"}
    assert names[0] == names[1] | {"stage3.0.weight", "stage3.1.weight", "stage3.1.bias"}


def test_labels_are_of_the_split():
    trial = trial_of()
    network = assemble(trial, WORLD)
    for split, count in (("train", TRAIN_IMAGES), ("val", VAL_IMAGES), ("test", TEST_IMAGES)):
        found = labelled(network, trial, split, CPU)
        assert len(found.source) == len(found.labels) == len(found) == count
        np.testing.assert_array_equal(found.labels, getattr(network.task.dataset, split).labels)


def placed(module):
    """Names of the convolutions that are computed as matrix products."""
    return {name for name, child in module.named_modules() if isinstance(child, MatrixConv2d)}


def test_matrix_products_are_the_suffixs_alone():
    """At 32 pixels the maps of layer4 are of one pixel, and those of layer3 of four; layer3 is in the prefix."""
    network = assemble(trial_of("resnet18", "layer4"), WORLD)
    convolutions = {f"layer4.{block}.conv{number}" for block in (0, 1) for number in (1, 2)}
    assert placed(network.suffix) == convolutions | {"layer4.0.downsample.0"}
    assert placed(network.prefix) == placed(network.whole()) == placed(network.task.backbone.network) == set()


def test_matrix_products_are_of_float32_alone():
    assert placed(assemble(trial_of("resnet18", "layer4", precision="bfloat16"), WORLD).suffix) == set()


# ---- dropout ----

DROPPING = (nn.Dropout, DropPath, WholeBatchDropout, WholeBatchDropPath)


def dropping(module):
    """Every module that drops something, by name."""
    return {name: child for name, child in module.named_modules() if isinstance(child, DROPPING)}


def test_dropout_of_a_suffix_is_drawn_for_the_whole_batch():
    """And that of what trials share is left as it was."""
    network = assemble(trial_of(VIT, "blocks.1", head={"kind": "mlp", "dropout": 0.5}), WORLD)
    suffix, shared = dropping(network.suffix), dropping(network.task.backbone.network)
    assert {type(one) for one in suffix.values()} == {WholeBatchDropout, WholeBatchDropPath}
    assert all(one.draws is network.draws for one in suffix.values())
    assert suffix.keys() < shared.keys()
    assert {type(one) for one in (*shared.values(), *dropping(network.prefix).values())} == {nn.Dropout, DropPath}


@pytest.mark.parametrize("batch_norm", ["frozen", "training"])
def test_dropout_of_a_prefix_is_drawn_for_the_whole_batch_where_it_drops(batch_norm):
    network = assemble(trial_of(VIT, "blocks.2", batch_norm=batch_norm), WORLD)
    own = {type(one) for one in dropping(network.prefix).values()}
    assert own == ({WholeBatchDropout, WholeBatchDropPath} if batch_norm == "training" else {nn.Dropout, DropPath})


def test_dropout_of_a_compiled_suffix_is_its_own():
    network = assemble(trial_of(VIT, "blocks.1", compile=True), WORLD)
    assert {type(one) for one in dropping(network.suffix).values()} == {nn.Dropout, DropPath}


# ---- what earlier phases trained ----


def test_tensors_of_an_earlier_phase_that_are_all_in_the_suffix_leave_the_prefix_shared():
    probe, deeper = (trial_of(depth=depth) for depth in (1, 3))
    earlier, _ = trained(probe)
    network = assemble(deeper, WORLD, earlier.state())
    assert not network.has_own_prefix
    assert network.own_prefix() is None
    assert network.prefix is cut_of(deeper).prefix
    for name, value in earlier.suffix.state_dict().items():
        assert torch.equal(network.suffix.state_dict()[name], value)


@pytest.mark.parametrize("batch_norm", ["frozen", "training"])
def test_a_prefix_that_was_trained_is_the_trials_own(batch_norm):
    """With batch norm in training mode every prefix is, as its statistics move."""
    whole, probe = (trial_of(depth=depth, batch_norm=batch_norm) for depth in ("all", 1))
    before = {name: value.clone() for name, value in task_of(probe).backbone.network.state_dict().items()}
    earlier, _ = trained(whole)
    network = assemble(probe, WORLD, earlier.state())
    assert network.has_own_prefix
    assert network.own_prefix().digest != task_of(probe).digest
    for name, value in network.whole().state_dict().items():
        assert torch.equal(value, earlier.state()[name]), name
    for name, value in task_of(probe).backbone.network.state_dict().items():
        assert torch.equal(value, before[name]), name  # what trials share is untouched
    assert assemble(probe, WORLD).has_own_prefix == (batch_norm == "training")

"""Several ranks compute what one does."""

import itertools
from dataclasses import asdict
from functools import partial

import pytest
import torch
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import nn

from raysweep.recipe import Train
from raysweep.train.ddp import World, synchronised, synchronised_batch_norm
from raysweep.train.metrics import predict
from raysweep.train.network import assemble
from tests.nets.small_transformers import SWIN, VIT
from tests.train import small_images
from tests.train.ranks import go_through, results_of, trained, trial_of
from tests.train.small_images import cnn, epochs_of, phase_of, without_time

SIZES = [2, 3, 5]
ALL_THEN_HEAD = [{"depth": "all", "epochs": 1}, {"depth": "head", "epochs": 1}]

# Of a last batch of 2 images ranks of 3 and 5 have an empty share, of one of 4 ranks of 5. Batch norm has
# 4: two images are 1 and -1 to it, whatever they are, and networks of many such layers magnify every rounding.
FOUR, TWO = {"limit": 28, "batch_size": 8, "lr": 0.01}, {"limit": 26, "batch_size": 8, "lr": 0.05}
REFIT = {"batch_size": 17}  # on 10 images more
RECALIBRATED, MOVING = {"batch_norm": "recalibrated"}, {"batch_norm": "training"}
LITE = {"head": {"kind": "mlp", "sizes": [16], "dropout": 0.5}} | FOUR
TRIALS = {
    "resnet": (trial_of("resnet18", 5, **FOUR | RECALIBRATED), None),
    "resnet, refit": (trial_of("resnet18", 5, **FOUR | RECALIBRATED | REFIT), [2]),
    "resnet, statistics move": (trial_of("resnet18", 3, **FOUR | MOVING), None),
    "resnet, statistics move, refit": (trial_of("resnet18", 3, **FOUR | MOVING | REFIT), [2]),
    "efficientnet": (trial_of("tf_efficientnet_lite0", 6, **LITE | RECALIBRATED), None),
    "efficientnet, statistics move": (trial_of("tf_efficientnet_lite0", 4, **LITE | MOVING), None),
    "vit": (trial_of(VIT, "blocks.1", **TWO), None),
    "vit, refit": (trial_of(VIT, "blocks.1", **TWO | REFIT), [2]),
    "vit, dropout of the prefix": (trial_of(VIT, "blocks.2", **TWO | MOVING), None),
    "vit, dropout of the prefix, refit": (trial_of(VIT, "blocks.2", **TWO | MOVING | REFIT), [2]),
    "swin": (trial_of(SWIN, "all", **TWO), None),
    "phases": (trial_of("small_cnn", "all", **FOUR | MOVING, phases=ALL_THEN_HEAD), None),
    "averages in parts": (
        trial_of(VIT, "blocks.1", **TWO, ema=0.8, accumulate_steps=3, warmup_epochs=1, layer_decay=0.8),
        None,
    ),
    "views, mixed": (
        trial_of("resnet18", 3, **FOUR | RECALIBRATED | {"augment": ["crop", "color"]}, mixup=0.5, cutmix=0.5),
        None,
    ),
    "fixed views, refit": (
        trial_of("small_cnn", 3, **FOUR | RECALIBRATED | {"augment": ["crop", "hflip"]}, views=3),
        [2],
    ),
    "parts, statistics move": (
        trial_of("resnet18", 3, **FOUR | MOVING | {"limit": 24}, accumulate_steps=2, nesterov=True),
        None,
    ),
}
SMALL = {
    "batch norm trains": {"clip_norm": 1.0, "label_smoothing": 0.1},
    "batch norm of frozen layers": {},
    "bfloat16": {"precision": "bfloat16"},
    "unequal classes": {"class_weights": "effective", "sampler": "balanced", "accumulate_steps": 2, "ema": 0.5},
}
COUNTS = (11, 5)
"""Batches of 5 and 6; shares of 3 and 2 images. Validation: 3 and 2."""
SPLITS = [7, 4, 2, 1]
"""Images that are predicted."""


def small(name, world):
    network = cnn()
    if name == "batch norm of frozen layers":
        network.stage1.requires_grad_(False)
    phase = phase_of(flip=True, batch_norm="training", epochs=3, batch_size=5, **SMALL[name])
    return without_time(epochs_of(network, phase, COUNTS, world=world)), network.state_dict()


def predictions(world):
    settings = Train(eval_batch_size=2)
    return {count: asdict(predict(cnn(), small_images.labelled(count), settings, world)) for count in SPLITS}


def batch_norm(world):
    """Of this rank's share of three images far from the running mean: outputs, gradients, statistics."""
    images, flowing = far_images()
    network = batch_norms()
    own = world.share(images).float().requires_grad_()
    with synchronised_batch_norm(world, len(images)):
        outputs = network(own)
        (outputs * world.share(flowing).float()).sum().backward()
    return outputs.detach(), own.grad, network.state_dict()


def far_images():
    """Three images whose channels differ little, and what flows back to them, as float64."""
    generator = torch.Generator().manual_seed(0)
    images, flowing = torch.randn(2, 3, 4, 2, 2, generator=generator, dtype=torch.float64)
    return (10 + 0.01 * images).float().double(), flowing


def batch_norms():
    return nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False, track_running_stats=False))


CASES = (
    {name: trained(*about) for name, about in TRIALS.items()}
    | {name: partial(small, name) for name in SMALL}
    | {"predictions": predictions, "batch norm": batch_norm}
)


@pytest.fixture(scope="module")
def alone():
    """What one rank finds in a case, once."""
    kept = {}

    def case(name):
        if name not in kept:
            kept[name] = CASES[name](World())
        return kept[name]

    return case


@pytest.fixture(scope="module", params=SIZES)
def size(request):
    return request.param


@pytest.fixture(scope="module")
def together(processes, size, tmp_path_factory):
    """What each of several processes finds in a case; they are started once."""
    folder = tmp_path_factory.mktemp("ranks")
    go_through(processes, size, folder, CASES)
    return lambda name: results_of(folder, size, name)


def assert_alike(found, expected, trial):
    """Rows, predictions and tensors; differences of tensors are small beside what training changed."""
    assert len(found["rows"]) == trial.epochs
    for row, other in zip(found["rows"], expected["rows"], strict=True):
        assert row == pytest.approx(other, abs=1e-3)
    for some, other in zip(found["predictions"], expected["predictions"], strict=True):
        torch.testing.assert_close(some, other, rtol=0, atol=1e-3)
    tensors = expected["tensors"]
    assert found["tensors"].keys() == tensors.keys()
    first = assemble(trial.phases()[0], World())
    start = first.task.backbone.network.state_dict() | first.suffix.state_dict()
    kinds = [{name for name in tensors if ("running" in name) == statistics} for statistics in (True, False)]
    for names in kinds:
        assert distance(found["tensors"], tensors, names) <= 0.01 * distance(start, tensors, names)
    assert distance(start, tensors, kinds[1]) > 0.01


def distance(some, other, names):
    return sum(float((some[name] - other[name]).double().square().sum()) for name in names) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", TRIALS)
def test_ranks_are_one(together, alone, name):
    expected = alone(name)
    for of_rank in together(name):
        assert_alike(of_rank, expected, TRIALS[name][0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("batch norm trains", 1e-4),
        ("batch norm of frozen layers", 1e-4),
        ("unequal classes", 1e-4),
        ("bfloat16", 0.05),
    ],
)
def test_ranks_are_one_with_other_settings(together, alone, name, tolerance):
    expected, tensors = alone(name)
    for measured, state in together(name):
        for measures, other in zip(measured, expected, strict=True):
            assert measures == pytest.approx(other, abs=tolerance)
        for key, value in tensors.items():
            torch.testing.assert_close(state[key].float(), value.float(), rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.slow
def test_ranks_predict_all_images_in_their_order(together, alone):
    """Also fewer images than there are ranks."""
    expected = alone("predictions")
    for of_rank in together("predictions"):
        torch.testing.assert_close(of_rank, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_batch_norm_of_ranks_is_exact_far_from_the_running_mean(together, size):
    """As exact as PyTorch's own, which float64 tells; of 5 ranks two have no image."""
    images, flowing = far_images()
    reference = batch_norms().double()
    images.requires_grad_()
    outputs = reference(images)
    (outputs * flowing).sum().backward()
    for rank, (values, gradients, state) in enumerate(together("batch norm")):
        for some, whole in ((values, outputs.detach()), (gradients, images.grad)):
            torch.testing.assert_close(some.double(), whole[rank::size], rtol=0, atol=1e-3 * float(whole.abs().max()))
        for name in ("0.running_mean", "0.running_var"):
            torch.testing.assert_close(state[name].double(), reference.state_dict()[name], rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_shares_are_a_partition(size):
    shares = [World(rank, size).share(torch.arange(7)).tolist() for rank in range(size)]
    assert sorted(itertools.chain(*shares)) == list(range(7))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


# ---- GPUs ----


def device_world(rank, size, kind):
    return World(rank, size, torch.device(kind))


def batch_norms_of(network):
    return {
        name: module for name, module in network.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }


@pytest.mark.parametrize(("backbone", "depth"), [("tf_efficientnet_lite0", "blocks.6"), ("resnet18", "layer4")])
@torch.no_grad()
def test_batch_norm_of_gpus_keeps_its_activation(backbone, depth):
    """timm's own norms are converted by timm: PyTorch's converter would take the activation out."""
    split = assemble(trial_of(backbone, depth), World())
    suffix = split.suffix.eval()
    before = batch_norms_of(suffix)
    values = [torch.randn(3, *shape) for shape in split.cut.shapes]
    expected, tensors = suffix(*values), dict(suffix.state_dict())
    trained = {name for name, parameter in suffix.named_parameters() if parameter.requires_grad}
    converted = synchronised(suffix, device_world(1, 2, "cuda"))
    after = batch_norms_of(converted)
    assert after.keys() == before.keys()
    assert len(after) > 2
    for name, old in before.items():
        assert type(after[name]) is (SyncBatchNormAct if isinstance(old, BatchNormAct2d) else nn.SyncBatchNorm)
        assert getattr(after[name], "act", None) is getattr(old, "act", None)
    assert {name for name, parameter in converted.named_parameters() if parameter.requires_grad} == trained
    for name, value in converted.state_dict().items():
        assert value.data_ptr() == tensors[name].data_ptr()
    assert torch.equal(converted.eval()(*values), expected)


@pytest.mark.parametrize(("size", "kind"), [(1, "cpu"), (2, "cpu"), (1, "cuda")])
def test_batch_norm_stays_where_nothing_is_to_be_synchronised(size, kind):
    network = nn.Sequential(nn.BatchNorm2d(3), BatchNormAct2d(3))
    before = batch_norms_of(network)
    assert batch_norms_of(synchronised(network, device_world(0, size, kind))) == before


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_ranks_on_gpus_are_one(processes, tmp_path):
    names = [name for name in TRIALS if name != "phases"]
    cases = {name: CASES[name] for name in names}
    for size in (1, 2):
        go_through(processes, size, tmp_path, cases, device="cuda")
    for name in names:
        (expected,) = results_of(tmp_path, 1, name)
        for of_rank in results_of(tmp_path, 2, name):
            assert_alike(of_rank, expected, TRIALS[name][0])

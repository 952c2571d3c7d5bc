"""The presets: what each write-up's table says, counted by hand and resolved, and that every one has a smoke."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from raysweep.grid import main
from raysweep.recipe import Head, load, preset_names
from raysweep.recipe.loading import QUICKSTART
from raysweep.sweep.plan import plan
from raysweep.sweep.smoke import shrink
from tests.data.image_files import write_cifar

pytestmark = pytest.mark.usefixtures("no_network")

PUBLISHED = (
    "resnet50-cifar100-layers",
    "cifar10-cnn-vs-resnet18",
    "cifar100-resnet18-head",
    "cifar100-resnet50-mlp",
    "cifar10-resnet50-two-phase",
)
IMPROVED = tuple(f"{name}-improved" for name in PUBLISHED)
METHODS = ("gradual-unfreezing", "probe-then-finetune", "surgical")
PRACTICE = ("imbalanced", "augmentation", "layer-decay")
EVERY = (QUICKSTART, *PUBLISHED, *IMPROVED, "cifar10-resnet50-head-first", *METHODS, *PRACTICE)

RESNET50 = 25_557_032
RESNET18 = 11_689_512
LITE0 = 3_383_818
"""With a classifier of ten."""


def planned(name, *overrides):
    """What the plan says of each trial."""
    return [one.configuration for one in plan(load(name, overrides))]


def counts(name):
    """(backbone, depth, trainable parameters, tensors, all parameters, epochs) of each trial, in order, each once."""
    rows = [
        (one.backbone, one.depth, one.trainable_parameters, one.trainable_tensors, one.total_parameters,
         one.epochs_planned) for one in planned(name)
    ]  # fmt: skip
    return list(dict.fromkeys(rows))


def facts(trial):
    """What a write-up's table says of the training."""
    train = trial.train
    return (train.optimizer, trial.lr, train.weight_decay, train.batch_size, train.schedule, train.epochs)


def test_list_shows_all():
    lines = CliRunner().invoke(main, ["--list"]).output.splitlines()
    assert {line.split()[0] for line in lines} == set(EVERY) == set(preset_names())
    for line in lines:
        assert load(line.split()[0]).description in line
        assert len(line) < 170


@pytest.mark.parametrize("name", EVERY)
def test_presets_are_complete(name):
    recipe = load(name)
    assert recipe.name == name
    assert recipe.description
    assert recipe.trials()


# ---- resnet50-cifar100-layers ----

LAYERS = [
    # depth, tensors, parameters added to those of the row above, counted from torchvision's definition
    (1, 2, 2048 * 1000 + 1000),
    (3, 5, 512 * 2048 + 2 * 2048),  # layer4.2.conv3, bn3
    (6, 10, 2 * 512 + 512 * 512 * 9 + 2 * 512),  # layer4.2.bn1, conv2, bn2
    (12, 19, 2048 * 512 + (512 * 512 * 9 + 2 * 512) + (512 * 2048 + 2 * 2048) + 2 * 512),
    (15, 25, 2048 * 512 + (1024 * 2048 + 2 * 2048) + 2 * 2048),  # layer4.1.conv1, layer4.0.downsample, bn3
    (
        25, 40,  # layer3.5.bn1 to bn3, layer4.0.conv1 to conv3
        2 * 256 + 256 * 256 * 9 + 2 * 256 + 256 * 1024 + 2 * 1024
        + 1024 * 512 + 2 * 512 + 512 * 512 * 9 + 2 * 512 + 512 * 2048,
    ),
]  # fmt: skip


def test_layers_counts():
    running, expected = 0, []
    for depth, tensors, added in LAYERS:
        running += added
        expected.append(("resnet50", depth, running, tensors, RESNET50, 15))
    assert counts("resnet50-cifar100-layers") == expected


def test_layers_protocol():
    recipe = load("resnet50-cifar100-layers")
    data, model = recipe.data, recipe.model
    assert (data.dataset, data.image_size, data.augment) == ("cifar100", 64, ())
    assert (data.normalize.mean, data.normalize.std) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    assert (data.val_fraction, data.split_seed) == (0.2, 45)
    assert (model.weights, model.head, model.batch_norm) == ("IMAGENET1K_V2", Head(kind="keep"), "training")
    assert {facts(trial) for trial in recipe.trials()} == {("adam", 1e-3, 1e-4, 1024, "cosine", 15)}
    assert recipe.train.train_accuracy_on == "all"
    assert (recipe.asha, recipe.final.enabled, recipe.final.of) == (None, True, "best")


def test_layers_improved():
    recipe = load("resnet50-cifar100-layers-improved")
    found = counts(recipe.name)
    assert found[0] == ("resnet50", 1, 2048 * 100 + 100, 2, RESNET50 - 2_049_000 + 204_900, 15)
    assert [row[1] for row in found] == [1, 3, 6, 12, 15, 25, "layer3", "all"]
    assert [row[3] for row in found] == [2, 5, 10, 19, 25, 40, 89, 161]
    assert (recipe.model.batch_norm, recipe.data.normalize, recipe.data.augment) == ("frozen", "backbone", ("hflip",))
    assert len(recipe.trials()) == 8 * 2 * 2


# ---- cifar10-cnn-vs-resnet18 ----


def test_cnn_against_resnet18():
    recipe = load("cifar10-cnn-vs-resnet18")
    head, resnet = 512 * 10 + 10, RESNET18 - 513_000 + 5_130
    assert counts(recipe.name) == [
        ("cnn_1m", "all", 1_025_546, 10, 1_025_546, 20),
        *(("resnet18", "head", head, 2, resnet, epochs) for epochs in (20, 50, 100)),
    ]
    data = recipe.data
    assert (data.dataset, data.image_size, data.normalize, data.augment) == ("cifar10", 32, "none", ("hflip",))
    assert data.val_fraction == 0.2
    assert {facts(trial)[:-1] for trial in recipe.trials()} == {("adam", 1e-3, 0.0, 64, "constant")}
    assert {trial.train.validate_every_steps for trial in recipe.trials()} == {2000}
    assert [trial.model.weights for trial in recipe.trials()] == ["none", *["IMAGENET1K_V1"] * 3]
    assert (recipe.asha, recipe.final.of) == (None, "each-network")


def test_cnn_against_resnet18_improved():
    recipe = load("cifar10-cnn-vs-resnet18-improved")
    assert [row[:2] for row in counts(recipe.name)] == [
        *(("resnet18", depth) for depth in ("head", "layer4", "all")), ("cnn_1m", "all")
    ]  # fmt: skip
    assert {(trial.backbone, trial.data.image_size) for trial in recipe.trials()} == {("resnet18", 128), ("cnn_1m", 32)}
    assert {(t.train.epochs, t.train.patience, t.train.keep) for t in recipe.trials()} == {(20, 5, "best_loss")}


# ---- cifar100-resnet18-head ----


def test_resnet18_head():
    recipe = load("cifar100-resnet18-head")
    assert counts(recipe.name) == [
        ("resnet18", "head", 512 * 256 + 256 + 256 * 100 + 100, 4, 11_333_540, 10),
        ("cnn_846k", "all", 846_308, 24, 846_308, 10),
        ("cnn_846k", "all", 846_308, 24, 846_308, 100),
    ]
    resnet, cnn, patient = recipe.trials()
    assert [trial.data.image_size for trial in recipe.trials()] == [224, 32, 32]
    assert resnet.data.normalize.mean == (0.485, 0.456, 0.406)
    for trial in (cnn, patient):
        assert trial.data.normalize.mean == (0.5071, 0.4867, 0.4408)
        assert trial.data.normalize.std == (0.2675, 0.2565, 0.2761)
    assert resnet.model.head == Head(kind="mlp", sizes=(256,), activation="relu")
    assert {facts(trial)[:-1] for trial in recipe.trials()} == {("adam", 1e-3, 0.0, 200, "constant")}
    assert [trial.train.patience for trial in recipe.trials()] == [None, None, 5]
    assert (recipe.asha, recipe.final.of) == (None, "each-network")


def test_resnet18_head_splits():
    from raysweep.data.dataset import shape as shape_of

    shape = shape_of(load("cifar100-resnet18-head").data)
    assert (shape.train, shape.val, shape.test, shape.classes) == (45_000, 5_000, 10_000, 100)


def test_resnet18_head_improved():
    """Image size and pretraining change one at a time."""
    recipe = load("cifar100-resnet18-head-improved")
    alike = {(trial.backbone, trial.depth, trial.data.image_size) for trial in recipe.trials()}
    assert alike == {
        *(("resnet18", depth, size) for depth in ("head", "layer4") for size in (32, 224)), ("cnn_846k", "all", 32)
    }  # fmt: skip
    assert (recipe.asha.guard, recipe.asha.compare_within) == (3.0, ("backbone", "depth", "seed"))


# ---- cifar100-resnet50-mlp ----


def test_resnet50_mlp():
    recipe = load("cifar100-resnet50-mlp")
    total = RESNET50 - 2_049_000 + 2_800_100
    assert counts(recipe.name) == [("resnet50", "all", total, 161 - 2 + 10, total, 20)]
    (head,) = planned(recipe.name, "grid.depth=[head]")
    assert (head.trainable_parameters, head.trainable_tensors) == (2_800_100, 10)
    (trial,) = recipe.trials()
    assert facts(trial) == ("sgd", 3e-3, 5e-4, 64, "step", 20)
    assert (trial.train.momentum, trial.train.step_epochs, trial.train.step_gamma) == (0.9, 10, 0.1)
    assert trial.train.keep == "best_loss"
    head = trial.model.head
    assert (head.sizes, head.activation) == ((1024, 512, 256, 128), "none")
    assert (head.dropout, head.hidden_dropout) == (0.5, 0.2)
    assert trial.model.weights == "IMAGENET1K_V1"
    assert (trial.data.dataset, trial.data.image_size, trial.data.augment) == ("cifar100", 32, ("hflip",))
    assert trial.data.normalize.mean == (0.4914, 0.4822, 0.4465)
    assert trial.data.normalize.std == (0.2023, 0.1994, 0.2010)


def test_resnet50_mlp_improved():
    total = RESNET50 - 2_049_000 + 204_900
    found = counts("cifar100-resnet50-mlp-improved")
    assert [row[1:5] for row in found] == [
        ("head", 204_900, 2, total), ("layer4", 15_169_636, 32, total), ("all", total, 161, total)
    ]  # fmt: skip


# ---- cifar10-resnet50-two-phase ----


@pytest.mark.parametrize(
    ("name", "order"), [("cifar10-resnet50-two-phase", (0, 1)), ("cifar10-resnet50-head-first", (1, 0))]
)
def test_two_phases(name, order):
    recipe = load(name)
    total = RESNET50 + 1000 * 10 + 10
    assert counts(name) == [("resnet50", "all", total, 161 + 2, total, 6)]
    (head,) = planned(name, "grid.depth=[head]")
    assert (head.trainable_parameters, head.trainable_tensors, head.first_trainable) == (10_010, 2, "fc.2")
    (trial,) = recipe.trials()
    steps = [("all", 2, 1e-5), ("head", 4, 1e-3)]
    phases = trial.phases()
    assert [(phase.depth, phase.train.epochs, phase.lr) for phase in phases] == [steps[index] for index in order]
    assert {(phase.train.optimizer, phase.train.batch_size) for phase in phases} == {("adam", 64)}
    assert (trial.data.dataset, trial.data.image_size) == ("cifar10", 224)
    assert trial.model.head == Head(kind="stacked")


def test_the_opposite_order_is_all_that_is_different():
    one, other = (load(name) for name in ("cifar10-resnet50-two-phase", "cifar10-resnet50-head-first"))
    same = {"name": "", "description": "", "train": one.train.model_copy(update={"phases": ()})}
    assert one.model_copy(update=same) == other.model_copy(update=same)
    assert one.train.phases == other.train.phases[::-1]


def test_two_phases_improved_share_their_probe():
    recipe = load("cifar10-resnet50-two-phase-improved")
    assert [row[1:5] for row in counts(recipe.name)] == [
        ("layer4", 14_985_226, 32, 23_528_522), ("all", 23_528_522, 161, 23_528_522)
    ]  # fmt: skip
    assert len({trial.phases()[0].name for trial in recipe.trials()}) == 1 < len(recipe.trials()) == 4


# ---- methods, on the quickstart's data ----


@pytest.mark.parametrize("name", METHODS)
def test_methods_use_the_quickstarts_data(name):
    recipe, quickstart = load(name), load()
    assert recipe.data == quickstart.data
    assert {trial.backbone for trial in recipe.trials()} == {quickstart.trials()[0].backbone}
    assert all(row[4] == LITE0 for row in counts(name))


@pytest.mark.parametrize(
    ("name", "before", "probes"),
    [
        ("gradual-unfreezing", [("head", 2), (3, 1), (9, 1)], 4),  # a learning rate and seed each
        ("probe-then-finetune", [("head", 4)], 2),  # a seed each
        ("surgical", [("head", 3)], 2),
    ],
)
def test_methods_share_all_but_their_last_phase(name, before, probes):
    trials = load(name).trials()
    for trial in trials:
        *shared, last = trial.phases()
        assert [(phase.depth, phase.train.epochs) for phase in shared] == before
        assert (last.depth, last.lr) == (trial.depth, trial.lr)
    assert len({tuple(phase.name for phase in trial.phases()[:-1]) for trial in trials}) == probes < len(trials)


def test_gradual_unfreezing_goes_deeper_from_phase_to_phase():
    for depth in {trial.depth for trial in load("gradual-unfreezing").trials()}:
        order = [1, 3, 9, 99 if depth == "all" else depth]
        assert order == sorted(set(order))


def test_surgical_blocks():
    """blocks.0 has two convolutions and their norms; the classifier is in none but `all`."""
    rows = {row[1]: row[2:4] for row in counts("surgical")}
    assert rows == {
        ("blocks.0",): (288 + 64 + 512 + 32, 6),
        ("blocks.3",): (198_480, 27),
        ("blocks.6",): (605_440, 9),
        "all": (LITE0, 149),
    }
    assert planned("surgical")[0].first_trainable == "blocks.0.0.conv_dw"


@pytest.mark.parametrize("name", PRACTICE)
def test_practice_uses_the_quickstarts_data(name):
    recipe, quickstart = load(name), load()
    changed = {"crop_scale": recipe.data.crop_scale, "imbalance": recipe.data.imbalance}
    assert recipe.data == quickstart.data.model_copy(update=changed)
    assert {trial.backbone for trial in recipe.trials()} == {quickstart.trials()[0].backbone}


def test_imbalanced_changes_one_thing_at_a_time():
    trials = load("imbalanced").trials()
    ways = {(trial.train.class_weights, trial.train.sampler) for trial in trials}
    assert ways == {("none", "shuffle"), ("balanced", "shuffle"), ("effective", "shuffle"), ("none", "balanced")}
    assert len(trials) == 4 * 3 * 2


def test_augmentation_compares_none_fixed_and_new_views():
    trials = load("augmentation").trials()
    assert {(trial.data.augment, trial.data.views) for trial in trials} == {
        ((), None), (("crop", "color"), None), (("crop", "color"), 4)
    }  # fmt: skip
    assert len(trials) == 3 * 3 * 2


def test_layer_decay_of_the_first_layer():
    from raysweep.nets.backbones import outline
    from raysweep.nets.layers import layers

    (decay,) = {trial.train.layer_decay for trial in load("layer-decay").trials()} - {1.0}
    count = len(layers(outline("tf_efficientnet_lite0", load().trials()[0].model, 10).network))
    assert count == 99
    assert decay ** (count - 1) == pytest.approx(1 / 20, rel=0.1)


# ---- smoke ----


@pytest.mark.parametrize("name", EVERY)
def test_smoke_keeps_what_a_preset_asks_for(name):
    recipe = load(name)
    small = shrink(recipe)
    whole, shrunk = recipe.trials(), small.trials()
    assert len(whole) == len(shrunk)
    for trial, one in zip(whole, shrunk, strict=True):
        assert (one.backbone, one.depth, one.lr, one.seed) == (trial.backbone, trial.depth, trial.lr, trial.seed)
        assert (one.model.head, one.model.batch_norm) == (trial.model.head, trial.model.batch_norm)
        assert one.data.augment == trial.data.augment
        assert one.data.image_size == trial.data.image_size or trial.data.image_size is None
        assert [phase.depth for phase in one.phases()] == [phase.depth for phase in trial.phases()]
        assert [phase.lr for phase in one.phases()] == [phase.lr for phase in trial.phases()]
        assert one.model.weights == "none"
        assert one.epochs <= 4
        assert one.train.batch_size <= 24
    assert load(name).grid == recipe.grid  # the preset itself is as it was
    plan(small)


def test_smoke_keeps_as_many_durations():
    small = shrink(load("cifar10-cnn-vs-resnet18"))
    assert [trial.train.epochs for trial in small.trials()] == [1, 1, 2, 3]
    assert {trial.train.validate_every_steps for trial in small.trials()} == {2}
    small = shrink(load("cifar100-resnet18-head"))
    assert [trial.train.epochs for trial in small.trials()] == [1, 1, 2]  # of 10, 10 and 100, in three blocks


def test_smoke_of_phases_that_are_an_axis():
    overrides = ["grid.phases=[[{depth: head, epochs: 9, batch_size: 512}, {epochs: 9}], []]", "train.epochs=7"]
    one, other = shrink(load("surgical", [*overrides, "grid.depth=[all]", "grid.lr=0.1", "grid.seed=0"])).trials()
    assert [(phase.depth, phase.train.epochs, phase.train.batch_size) for phase in one.phases()] == [
        ("head", 1, 24), ("all", 1, 24)
    ]  # fmt: skip
    assert (other.train.phases, other.epochs) == ((), 1)


# ---- end to end ----

AS_WRITTEN = '''
"""Python reads this file as it starts, in the command and in Ray's processes alike."""
import importlib.util, json, pathlib, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "torchvision.datasets.cifar":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            for key, value in json.loads(pathlib.Path(__file__).with_name("sums.json").read_text()).items():
                setattr(module.CIFAR100, key, value)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
'''


@pytest.mark.ray
@pytest.mark.slow
def test_cifar100_files_through_the_published_protocol(tmp_path, monkeypatch):
    """Files in CIFAR-100's format, read by torchvision's loader with its checks, in every process.

    Their MD5 sums are not those of the real files. The list of sums is a class attribute of
    torchvision's: where a process imports it, a `sitecustomize` on its path puts in the sums of the
    files written. The command is the user's own, in a process of its own.
    """
    from torchvision.datasets import CIFAR100

    write_cifar(tmp_path / "data", monkeypatch, coarse=True, per_class=3)
    sums = {key: getattr(CIFAR100, key) for key in ("train_list", "test_list", "meta")}
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "sums.json").write_text(json.dumps(sums))
    (tmp_path / "python" / "sitecustomize.py").write_text(AS_WRITTEN)
    paths = [str(tmp_path / "python"), os.environ.get("PYTHONPATH", "")]
    run = tmp_path / "run"
    words = (
        f"resnet50-cifar100-layers data.root={tmp_path / 'data'} data.limit=120 train.epochs=1 model.weights=none "
        f"grid.depth=[1,3] data.image_size=32 --run-dir {run}"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "raysweep.grid", *words.split()],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    rows = [json.loads(line) for line in (run / "epochs.jsonl").read_text().splitlines()]
    assert sorted((row["depth"], row["epoch"], row["trainable_tensors"]) for row in rows) == [(1, 1, 2), (3, 1, 5)]
    for row in rows:
        assert (row["head"], row["batch_norm"], row["cached"]) == ("keep", "training", False)
        assert (row["trainable_parameters"] >= 2_049_000, row["total_parameters"]) == (True, RESNET50)
        assert 0 <= row["val_accuracy"] <= 1 < row["val_loss"]
    result = json.loads((run / "final" / "best" / "result.json").read_text())
    assert (len(result["class_names"]), len(result["confusion"])) == (100, 100)
    assert result["train_images"] == 120 + rows[0]["val_images"]
    samples = json.loads((run / "final" / "best" / "samples.json").read_text())
    assert 0 <= samples["superclasses"]["accuracy"] <= 1
    assert (run / "report" / "index.html").is_file()
    assert ended.stdout.splitlines()[-1] == f"report: {run / 'report' / 'index.html'}"

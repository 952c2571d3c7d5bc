"""Trainings in a row: what one phase leaves to the next, and what trials share."""

import pytest
import torch

from raysweep.train import assembly
from raysweep.train import phases
from raysweep.train.assembly import is_cacheable
from raysweep.train.phases import Fit, Sharing, kept, shorten
from raysweep.recipe import Features, Recipe
from raysweep.train.loop import World, train

CPU = torch.device("cpu")
DATA = {"dataset": "fake:4", "image_size": 32, "limit": 48}
TRAIN = {"epochs": 2, "batch_size": 16, "eval_batch_size": 16}
PROBE = {"depth": "head", "epochs": 2, "lr": 0.05}
STEPS = 3
"""Of an epoch: 48 images in batches of 16."""


def trials_of(backbone="small_cnn", depth=1, lr=0.01, seed=0, model=(), data=(), **settings):
    """All trials of a small grid; without pretrained weights."""
    return Recipe.model_validate(
        {
            "data": DATA | dict(data),
            "grid": {"backbone": backbone, "depth": depth, "lr": lr, "seed": seed},
            "model": {"weights": "none"} | dict(model),
            "train": TRAIN | settings,
        }
    ).trials()


def trial_of(*args, **more):
    (trial,) = trials_of(*args, **more)
    return trial


@pytest.fixture
def features(tmp_path):
    return Features(dir=str(tmp_path / "features"))


@pytest.fixture
def trained(monkeypatch):
    """Every call of `train` that a test's fits make: the tensors before and after it, and what trained."""
    calls = []

    def recorded(suffix, *args, **more):
        asked = {name for name, parameter in suffix.named_parameters() if parameter.requires_grad}
        call = {"before": copied(suffix), "trains": asked}
        calls.append(call)
        yield from train(suffix, *args, **more)
        call["after"] = copied(suffix)

    monkeypatch.setattr(phases, "train", recorded)
    return calls


def copied(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def fit(trial, sharing=None, **more):
    """A fit that has run, and its rows without times."""
    one = Fit(trial, sharing or Sharing(Features(cache="never")), World(), **more)
    return one, [{key: value for key, value in row.items() if key != "seconds"} for row in one.rows()]


def rows_of(trial, sharing=None, **more):
    return fit(trial, sharing, **more)[1]


def without(rows, *keys):
    return [{key: value for key, value in row.items() if key not in keys} for row in rows]


def changed(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


# ---- what a phase leaves to the next ----


def test_a_phase_starts_from_the_tensors_of_the_last(trained):
    """Statistics of batch norm too; and the second phase is the deeper one, so its suffix has more of them."""
    fit(trial_of(depth="all", phases=[PROBE, {"epochs": 1}]))
    probe, whole = trained
    assert len(whole["before"]) > len(probe["after"])
    for name, value in probe["after"].items():
        assert torch.equal(whole["before"][name], value), name
    assert changed(probe["before"], probe["after"]) == {"classifier.weight", "classifier.bias"}
    assert {"stage1.0.weight", "stage1.1.running_mean"} < changed(whole["before"], whole["after"])


def test_a_phase_starts_from_the_tensors_of_all_before_it(trained):
    """The third phase gets stage3 from the first, the classifier from the second."""
    first, second = {"depth": ["stage3"], "epochs": 1}, {"depth": "head", "epochs": 1}
    fit(trial_of(depth="all", phases=[first, second, {"epochs": 1}]))
    stage, head, whole = trained
    for name, value in whole["before"].items():
        last = head["after"] if name.startswith("classifier") else stage["after"]
        if name in last:
            assert torch.equal(value, last[name]), name


def test_statistics_that_moved_in_a_frozen_layer_are_what_the_next_phase_starts_from(trained):
    settings = {"depth": "all", "model": {"batch_norm": "training"}}
    alone, _ = fit(trial_of(**settings | {"depth": "head"}, lr=0.05))
    fit(trial_of(**settings, phases=[PROBE, {"epochs": 1}]))
    moved, start = alone.parts.prefix.state_dict()["stage1.1.running_mean"], trained[-1]["before"]
    assert torch.equal(start["stage1.1.running_mean"], moved)
    assert moved.abs().sum() > 0


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_two_phases_alike_are_one_of_twice_the_epochs_unless_the_optimizer_remembers(momentum):
    """Also shows that each phase's epochs have images in an order of their own."""
    settings = {"optimizer": "sgd", "momentum": momentum}
    whole = rows_of(trial_of(depth=3, epochs=2, **settings))
    parted = rows_of(trial_of(depth=3, phases=[{"epochs": 1}, {"epochs": 1}], **settings))
    assert [row["phase"] for row in parted] == [1, 2]
    assert without(parted[:1], "phase") == without(whole[:1], "phase")
    assert (without(parted[1:], "phase") == without(whole[1:], "phase")) == (momentum == 0.0)


def test_epochs_are_counted_through_and_each_phase_has_its_own_schedule():
    trial = trial_of(depth=3, schedule="cosine", phases=[{}, {"depth": "head", "epochs": 1, "lr": 0.5}, {"epochs": 1}])
    rows = rows_of(trial)
    assert trial.epochs == 4
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert [row["phase"] for row in rows] == [1, 1, 2, 3]
    assert [row["lr_epoch"] for row in rows] == pytest.approx([0.01, 0.005, 0.5, 0.01])


def test_patience_ends_a_phase_and_not_the_trial():
    """At a learning rate that moves nothing the second epoch is no better than the first."""
    trial = trial_of(epochs=5, patience=1, optimizer="sgd", phases=[{"lr": 1e-30}, {"epochs": 1}])
    rows = rows_of(trial)
    assert [(row["phase"], row["epoch"]) for row in rows] == [(1, 1), (1, 2), (2, 3)]


def test_without_phases_there_is_one():
    rows = rows_of(trial_of())
    assert [(row["phase"], row["epoch"]) for row in rows] == [(1, 1), (1, 2)]


def test_refit_trains_on_validation_images_too():
    phased = trial_of(phases=[PROBE, {"epochs": 1}])
    one, rows = fit(phased, refit=True)
    assert [row["phase"] for row in rows] == [1, 1, 2]
    assert not {"val_loss", "val_accuracy", "val_images"} & rows[0].keys()
    assert one._splits(phased.phases()[0])[0].labels.shape == (60,)


# ---- which layers ----


@pytest.mark.parametrize(
    ("backbone", "block", "tensors"), [("small_cnn", "stage2", 3), ("tf_efficientnet_lite0", "blocks.6", 9)]
)
def test_a_surgical_block_alone_trains(trained, backbone, block, tensors):
    one, _ = fit(trial_of(backbone, [[block]], phases=[PROBE | {"epochs": 1}, {"epochs": 1}]))
    probe, surgery = trained
    assert len(surgery["trains"]) == tensors
    assert all(name.startswith(f"{block}.") for name in surgery["trains"])
    moved = changed(surgery["before"], surgery["after"])
    assert surgery["trains"] <= moved
    assert all(name.startswith(f"{block}.") for name in moved)  # no other batch norm's statistics either
    after = one.parts.trained_network().state_dict()
    before = one.parts.base.backbone.network.state_dict()
    assert {name.rpartition(".")[0] for name in changed(before, after) if not name.startswith(block)} == {"classifier"}
    assert torch.equal(after["classifier.weight"], probe["after"]["classifier.weight"])


def test_two_phases_with_a_stacked_head(trained, features):
    """First everything, then the new layer alone, from the softmax of what the first phase trained."""
    steps = [{"depth": "all", "epochs": 1, "lr": 1e-3}, {"depth": "head", "epochs": 2, "lr": 1e-2}]
    trial = trial_of("resnet18", "all", model={"head": "stacked"}, phases=steps)
    one, rows = fit(trial, Sharing(features))
    everything, layer = trained
    assert len(everything["trains"]) == 62 + 2
    assert layer["trains"] == {"fc.2.weight", "fc.2.bias"} == changed(layer["before"], layer["after"])
    assert one.parts.cut.shapes == ((1000,),)
    assert [(row["phase"], row["cached"]) for row in rows] == [(1, False), (2, True), (2, True)]
    final = one.parts.trained_network().state_dict()
    assert changed(everything["after"], final) == layer["trains"]


# ---- features of a prefix that was trained ----


@pytest.mark.parametrize(("backbone", "augment"), [("small_cnn", ["hflip"]), ("resnet18", [])])
def test_a_trained_prefix_has_features_of_its_own(features, backbone, augment):
    steps = [{"depth": "all", "epochs": 1}, {"depth": "head", "epochs": 2, "lr": 0.05}]
    trial = trial_of(backbone, "all", data={"augment": augment}, phases=steps)
    found, expected = rows_of(trial, Sharing(features)), rows_of(trial)
    assert [row["cached"] for row in found] == [False, True, True]
    assert not any(row["cached"] for row in expected)
    for row, other in zip(without(found, "cached"), without(expected, "cached"), strict=True):
        assert row == pytest.approx(other, rel=1e-4)


def test_features_of_the_backbone_are_not_taken_for_those_of_a_trained_prefix(features):
    """They are there, made for a trial that trains the head alone."""
    second = {"depth": "head", "epochs": 2, "lr": 0.05}
    plain = trial_of(depth="head", lr=0.05)
    parts = assembly.assemble(plain, CPU)
    assembly.make_features(
        [plain], features, lambda some, files: [assembly.compute_shard(plain, s, files, CPU) for s in some], 64
    )
    assert assembly.stored_source(plain, "train", features, CPU) is not None
    trial = trial_of(depth="all", phases=[{"depth": "all", "epochs": 1}, second])
    stored = frozenset(phase.name for phase in trial.phases())
    one, rows = fit(trial, Sharing(features, stored))
    assert one.parts.own_prefix
    assert one.parts.digest != parts.digest
    assert without(rows, "cached")[1:] == [
        pytest.approx(row, rel=1e-4) for row in without(rows_of(trial), "cached")[1:]
    ]


def test_a_deeper_phase_after_a_probe_reads_the_features_of_the_backbone(features):
    trial = trial_of(depth=3, phases=[PROBE, {"epochs": 2}])
    second = trial.phases()[1]
    assembly.make_features(
        [second], features, lambda some, files: [assembly.compute_shard(second, s, files, CPU) for s in some], 64
    )
    one, rows = fit(trial, Sharing(features, frozenset([second.name])))
    assert [row["cached"] for row in rows] == [False, False, True, True]
    assert not one.parts.own_prefix
    expected = rows_of(trial)
    assert without(rows, "cached") == [pytest.approx(row, rel=1e-4) for row in without(expected, "cached")]


def test_moving_statistics_are_never_stored(features):
    steps = [{"depth": "all", "epochs": 1}, {"depth": "head", "epochs": 2}]
    trial = trial_of(depth="all", model={"batch_norm": "training"}, phases=steps)
    assert not is_cacheable(trial.phases()[1], assembly.cut_of(trial.phases()[1]))
    assert not any(row["cached"] for row in rows_of(trial, Sharing(features)))


# ---- phases that trials share ----


@pytest.fixture
def shared(tmp_path):
    return Sharing(Features(cache="never"), folder=tmp_path / "phases")


def test_a_common_probe_is_trained_once(trained, shared):
    shallow, deep = trials_of(depth=[3, "all"], phases=[PROBE, {"epochs": 1}])
    first = list(Fit(shallow, shared, World()).rows())
    second = list(Fit(deep, shared, World()).rows())
    assert [call["trains"] == {"classifier.weight", "classifier.bias"} for call in trained] == [True, False, False]
    assert ["shared" in row for row in first] == [False, False, False]
    assert [row.get("shared") for row in second] == [True, True, None]
    assert [row["seconds"] for row in second[:2]] == [0.0, 0.0]
    assert all(row["seconds"] > 0 for row in [*first, second[2]])
    for rows, trial in ((first, shallow), (second, deep)):
        assert without(rows, "shared", "seconds") == rows_of(trial)


def test_all_phases_but_the_last_are_shared(trained, shared):
    steps = [PROBE, {"depth": 3, "epochs": 1}, {"epochs": 1}]
    for trial in trials_of(depth=[5, "all"], phases=steps):
        assert without(rows_of(trial, shared), "shared") == rows_of(trial)
    assert len(trained) == (3 + 1) + (3 + 3)  # shared, and each alone


def test_what_differs_is_not_shared(trained, shared):
    """A probe without a learning rate of its own takes the trial's; one seed's probe is not another's."""
    probe = {"depth": "head", "epochs": 1}
    trials = [*trials_of(depth=3, lr=[0.01, 0.1], seed=[0, 1], phases=[probe, {"epochs": 1}])]
    trials += trials_of(depth=3, phases=[probe | {"epochs": 2}, {"epochs": 1}])
    for trial in trials:
        assert not any("shared" in row for row in rows_of(trial, shared))
    assert len(trained) == 2 * 5


def test_a_second_phase_is_shared_only_after_the_same_first(shared):
    """The second phases are equal as trials of one phase; what they start from is not."""
    second = {"depth": 3, "epochs": 1}
    one, other = (trial_of(depth=5, phases=[PROBE | {"lr": lr}, second, {"epochs": 1}]) for lr in (0.05, 0.2))
    assert one.phases()[1].name == other.phases()[1].name
    rows_of(one, shared)
    assert without(rows_of(other, shared), "shared") == rows_of(other)


def test_the_final_fit_shares_nothing_with_the_trials(shared):
    trial = trial_of(depth=3, phases=[PROBE, {"epochs": 1}])
    rows_of(trial, shared)
    assert rows_of(trial, shared, refit=True) == rows_of(trial, refit=True)


def test_a_phase_whose_trial_was_killed_is_trained_again(shared):
    """Tensors without the rows, which are written last, or a part of them, are no phase."""
    trial = trial_of(depth=3, phases=[PROBE, {"epochs": 1}])
    rows = rows_of(trial, shared)
    (about,) = shared.folder.glob("*.json")
    about.unlink()
    about.with_suffix(".part").write_bytes(b"half")
    assert rows_of(trial, shared) == rows


# ---- validation between epochs ----


@pytest.mark.parametrize("backbone", ["small_cnn", "cnn_1m"])
def test_validation_between_epochs(backbone):
    """cnn_1m has dropout, which must not be drawn otherwise for it."""
    plain, rows = (rows_of(trial_of(backbone, "all", validate_every_steps=steps)) for steps in (None, 2))
    assert [[one["step"] for one in row["val_by_step"]] for row in rows] == [[2], [4, 6]]
    assert without(rows, "val_by_step") == plain
    assert 2 * STEPS == 6  # the last step of the second epoch: the same network is measured twice
    assert rows[1]["val_by_step"][1] == {"step": 6, "epoch": 2.0} | {
        key: rows[1][key] for key in ("val_loss", "val_accuracy")
    }
    assert rows[0]["val_by_step"][0]["val_loss"] != rows[0]["val_loss"]


def test_an_epoch_without_such_a_step_says_nothing():
    rows = rows_of(trial_of(validate_every_steps=5))
    assert ["val_by_step" in row for row in rows] == [False, True]


# ---- how long the final fit is ----


def lengths(trial):
    return [(one.depth, one.train.epochs) for one in trial.phases()]


@pytest.mark.parametrize(
    ("phases", "left"),
    [
        ([1], [("head", 1)]),
        ([1, 1, 2], [("head", 2), (3, 1)]),
        ([1, 1, 2, 2, 2, 3], [("head", 2), (3, 3), ("all", 1)]),
        ([1, 2, 2, 3, 3], [("head", 1), (3, 2), ("all", 2)]),  # the first two ran out of patience
    ],
)
def test_shorten(phases, left):
    trial = trial_of(depth="all", phases=[{"depth": "head", "epochs": 2}, {"depth": 3, "epochs": 3}, {}])
    short = shorten(trial, [{"epoch": epoch, "phase": phase} for epoch, phase in enumerate(phases, start=1)])
    assert lengths(short) == left
    assert short.epochs == len(phases)
    assert short.model_copy(update={"train": trial.train}) == trial


def test_shorten_a_trial_of_one_phase():
    trial = trial_of(epochs=9)
    assert lengths(shorten(trial, [{"epoch": epoch, "phase": 1} for epoch in (1, 2, 3, 4)])) == [(1, 4)]


@pytest.mark.parametrize("shared", [False, True])
def test_epochs_are_counted_on_after_a_phase_ran_out_of_patience(tmp_path, shared):
    trial = trial_of(phases=[{"depth": "head", "epochs": 9, "lr": 1e-12}, {}], patience=1)
    sharing = Sharing(Features(cache="never"), folder=tmp_path if shared else None)
    for _ in range(2):  # read from the folder the second time
        rows = list(Fit(trial, sharing, World()).rows())
        first = [row for row in rows if row["phase"] == 1]
        assert 2 <= len(first) < 9
        assert len(rows) > len(first)
        assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))


def losses(*values):
    return [{"epoch": epoch, "val_loss": value} for epoch, value in enumerate(values, start=1)]


@pytest.mark.parametrize(
    ("values", "last", "best"),
    [
        ([3.0, 2.0, 1.0], 3, 3),
        ([3.0, 1.0, 2.0], 3, 2),
        ([1.0, 1.0, 1.0], 3, 1),
        ([float("nan"), 2.0, 3.0], 3, 2),
        ([2.0, float("inf"), 1.5], 3, 3),
        ([2.0], 1, 1),
    ],
)
def test_kept(values, last, best):
    rows = losses(*values)
    assert len(kept(rows, "last")) == last
    assert len(kept(rows, "best_loss")) == best

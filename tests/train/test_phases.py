"""Trainings in a row: what one phase leaves to the next, and what trials share."""

import numpy as np
import pytest
import torch

from raysweep.data.sources import Images
from raysweep.features.compute import is_cacheable, make_features, stored_split
from raysweep.nets.task import cut_of, task_of
from raysweep.recipe import Features
from raysweep.train import phases as module
from raysweep.train.ddp import World
from raysweep.train.loop import Training
from raysweep.train.measures import Measures
from raysweep.train.metrics import Labelled, Predictions
from raysweep.train.network import assemble
from raysweep.train.phases import Fit, SharedPhase, Sharing
from tests.features.small_trials import STEPS, TRAIN_IMAGES, VAL_IMAGES, trial_of, trials_of

CPU = torch.device("cpu")
PROBE = {"depth": "head", "epochs": 2, "lr": 0.05}


@pytest.fixture
def features(tmp_path):
    return Features(dir=str(tmp_path / "features"))


@pytest.fixture
def trained(monkeypatch):
    """Every training of a phase in a test's fits: the tensors before and after it, what trained, and on how much."""
    calls = []

    class Recorded(Training):
        def epochs(self):
            asked = {name for name, parameter in self.suffix.named_parameters() if parameter.requires_grad}
            call = {"before": copied(self.suffix), "trains": asked, "images": len(self.training)}
            calls.append(call)
            yield from super().epochs()
            call["after"] = copied(self.suffix)

    monkeypatch.setattr(module, "Training", Recorded)
    return calls


def copied(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def fit(trial, sharing=None, **more):
    """A fit that has run, and its rows: what its epochs measured, without times."""
    one = Fit(trial, sharing or Sharing(Features(cache="never")), World(), **more)
    return one, [measures.model_dump(exclude={"seconds"}, exclude_none=True) for measures in one.epochs()]


def rows_of(trial, sharing=None, **more):
    return fit(trial, sharing, **more)[1]


def without(rows, *keys):
    return [{key: value for key, value in row.items() if key not in keys} for row in rows]


def assert_alike(found, expected, *but):
    """Numbers within a relative tolerance."""
    but = (*but, "val_by_step")
    assert without(found, *but) == [pytest.approx(row, rel=1e-4) for row in without(expected, *but)]


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
    alone, _ = fit(trial_of(depth="head", lr=0.05, batch_norm="training"))
    fit(trial_of(depth="all", batch_norm="training", phases=[PROBE, {"epochs": 1}]))
    moved, start = alone.network.prefix.state_dict()["stage1.1.running_mean"], trained[-1]["before"]
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


# ---- the final fit ----


def test_refit_trains_on_validation_images_too(trained):
    rows = rows_of(trial_of(phases=[PROBE, {"epochs": 1}]), refit=[2, 1])
    assert [row["phase"] for row in rows] == [1, 1, 2]
    assert not {"train_accuracy", "val_loss", "val_accuracy", "val_images"} & rows[0].keys()
    assert [call["images"] for call in trained] == [TRAIN_IMAGES + VAL_IMAGES] * 2


@pytest.mark.parametrize("refit", [[1], [2, 1], [2, 3, 1], [1, 2, 2]])
def test_phases_of_a_refit_halt_at_the_rates_that_the_trial_had_there(trained, refit):
    """Also a phase that is not the last: in the trial it ran out of patience."""
    steps = [{"depth": "head", "epochs": 2, "lr": 0.05}, {"depth": 3, "epochs": 3}, {}]
    trial = trial_of(depth="all", schedule="cosine", phases=steps)
    rates = {number: [row["lr_epoch"] for row in rows_of(trial) if row["phase"] == number] for number in (1, 2, 3)}
    trained.clear()
    rows = rows_of(trial, refit=refit)
    expected = [(number, rate) for number, count in enumerate(refit, start=1) for rate in rates[number][:count]]
    assert [(row["phase"], row["lr_epoch"]) for row in rows] == expected
    assert [row["epoch"] for row in rows] == list(range(1, sum(refit) + 1))
    assert [len(call["trains"]) for call in trained] == [2, 5, 11][: len(refit)]


def test_a_refit_has_no_patience():
    """It measures nothing that could be better."""
    rows = rows_of(trial_of(epochs=5, patience=1, optimizer="sgd", lr=1e-30), refit=[4])
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]


@pytest.mark.parametrize("augment", [[], ["hflip"], ["crop", "color"]])
def test_refit_from_stored_features(features, augment):
    """On train + val, with flips or fixed views, wherever their features are."""
    trial = trial_of(depth=3, augment=augment, views=2, optimizer="sgd")
    make(trial, features)
    found = rows_of(trial, Sharing(features, frozenset([trial.name])), refit=[2])
    expected = rows_of(trial, Sharing(features), refit=[2])
    assert [row["cached"] for row in found] == [not augment] * 2  # mirrored validation images are not stored
    assert_alike(found, expected, "cached")


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
    after = one.network.whole().state_dict()
    before = one.network.task.backbone.network.state_dict()
    assert {name.rpartition(".")[0] for name in changed(before, after) if not name.startswith(block)} == {"classifier"}
    assert torch.equal(after["classifier.weight"], probe["after"]["classifier.weight"])


def test_two_phases_with_a_stacked_head(trained, features):
    """First everything, then the new layer alone, from the softmax of what the first phase trained."""
    steps = [{"depth": "all", "epochs": 1, "lr": 1e-3}, {"depth": "head", "epochs": 2, "lr": 1e-2}]
    trial = trial_of("resnet18", "all", head="stacked", phases=steps)
    one, rows = fit(trial, Sharing(features))
    everything, layer = trained
    assert len(everything["trains"]) == 62 + 2
    assert layer["trains"] == {"fc.2.weight", "fc.2.bias"} == changed(layer["before"], layer["after"])
    assert one.network.cut.shapes == ((1000,),)
    assert [(row["phase"], row["cached"]) for row in rows] == [(1, False), (2, True), (2, True)]
    final = one.network.whole().state_dict()
    assert changed(everything["after"], final) == layer["trains"]


# ---- features of a prefix that was trained ----


@pytest.mark.parametrize(("backbone", "augment"), [("small_cnn", ["hflip"]), ("resnet18", [])])
def test_a_trained_prefix_has_features_of_its_own(features, backbone, augment):
    steps = [{"depth": "all", "epochs": 1}, {"depth": "head", "epochs": 2, "lr": 0.05}]
    trial = trial_of(backbone, "all", augment=augment, phases=steps)
    found, expected = rows_of(trial, Sharing(features)), rows_of(trial)
    assert [row["cached"] for row in found] == [False, True, True]
    assert not any(row["cached"] for row in expected)
    assert_alike(found, expected, "cached")


def make(phase, features):
    list(make_features([phase], features, [CPU]))


def test_features_of_the_backbone_are_not_taken_for_those_of_a_trained_prefix(features):
    """They are there, made for a trial that trains the head alone."""
    second = {"depth": "head", "epochs": 2, "lr": 0.05}
    plain = trial_of(depth="head", lr=0.05)
    make(plain, features)
    assert stored_split(plain, "train", features, CPU) is not None
    trial = trial_of(depth="all", phases=[{"depth": "all", "epochs": 1}, second])
    assert trial.phases()[1].name == plain.name
    stored = frozenset(phase.name for phase in trial.phases())
    one, rows = fit(trial, Sharing(features, stored))
    assert one.network.has_own_prefix
    assert one.network.own_prefix().digest != task_of(plain).digest
    assert [row["cached"] for row in rows] == [False, True, True]
    assert_alike(rows[1:], rows_of(trial)[1:], "cached")


def test_a_deeper_phase_after_a_probe_reads_the_features_of_the_backbone(features):
    trial = trial_of(depth=3, phases=[PROBE, {"epochs": 2}])
    second = trial.phases()[1]
    make(second, features)
    one, rows = fit(trial, Sharing(features, frozenset([second.name])))
    assert [row["cached"] for row in rows] == [False, False, True, True]
    assert not one.network.has_own_prefix
    assert_alike(rows, rows_of(trial), "cached")


def test_features_that_no_pass_made_are_made_when_the_phase_begins(features):
    trial = trial_of(depth=3)
    rows = rows_of(trial, Sharing(features, frozenset([trial.name])))
    assert [row["cached"] for row in rows] == [True, True]
    assert stored_split(trial, "train", features, CPU) is not None
    assert_alike(rows, rows_of(trial), "cached")


def test_without_room_the_prefix_is_computed_each_time(features):
    trial = trial_of(depth=3)
    small = features.model_copy(update={"budget_gb": 1e-6})
    assert rows_of(trial, Sharing(small, frozenset([trial.name]))) == rows_of(trial)


def test_a_refit_moves_statistics_by_whole_batches():
    """Images of train and val that are in one batch pass through the prefix together, as images of one split do."""
    trial = trial_of(depth=3, batch_norm="training", optimizer="sgd", augment=["hflip"])
    one, rows = fit(trial, refit=[2])
    network = assemble(trial, World())
    dataset = network.task.dataset
    joined = np.concatenate([dataset.train.rows, dataset.val.rows])
    images = Images(dataset.train.pool, joined, network.task.preparation, CPU, network.prefix, "training")
    labels = torch.from_numpy(np.concatenate([dataset.train.labels, dataset.val.labels]))
    run = Training(trial, network.suffix, Labelled(images, labels), None, len(dataset.class_names))
    assert [row["train_loss"] for row in rows] == pytest.approx([one.train_loss for one in run.epochs()], rel=1e-5)
    for name, value in network.state().items():
        torch.testing.assert_close(one.network.state()[name], value, rtol=1e-4, atol=1e-5)


def test_moving_statistics_are_never_stored(features):
    steps = [{"depth": "all", "epochs": 1}, {"depth": "head", "epochs": 2}]
    trial = trial_of(depth="all", batch_norm="training", phases=steps)
    assert not is_cacheable(trial.phases()[1], cut_of(trial.phases()[1]))
    assert not any(row["cached"] for row in rows_of(trial, Sharing(features)))


# ---- phases that trials share ----


@pytest.fixture
def shared(tmp_path):
    return Sharing(Features(cache="never"), folder=tmp_path / "phases")


def test_a_common_probe_is_trained_once(trained, shared):
    shallow, deep = trials_of(depth=[3, "all"], phases=[PROBE, {"epochs": 1}])
    first, second = (list(Fit(trial, shared, World()).epochs()) for trial in (shallow, deep))
    assert [call["trains"] == {"classifier.weight", "classifier.bias"} for call in trained] == [True, False, False]
    assert [measures.shared for measures in first] == [False, False, False]
    assert [measures.shared for measures in second] == [True, True, False]
    assert [measures.seconds for measures in second[:2]] == [measures.seconds for measures in first[:2]]
    assert all(measures.seconds > 0 for measures in [*first, *second])
    for found, trial in ((first, shallow), (second, deep)):
        rows = [measures.model_dump(exclude={"seconds", "shared"}, exclude_none=True) for measures in found]
        assert rows == without(rows_of(trial), "shared")


def test_all_phases_but_the_last_are_shared(trained, shared):
    steps = [PROBE, {"depth": 3, "epochs": 1}, {"epochs": 1}]
    for trial in trials_of(depth=[5, "all"], phases=steps):
        assert without(rows_of(trial, shared), "shared") == without(rows_of(trial), "shared")
    assert len(trained) == (3 + 1) + (3 + 3)  # shared, and each alone


def test_what_differs_is_not_shared(trained, shared):
    """A probe without a learning rate of its own takes the trial's; one seed's probe is not another's."""
    probe = {"depth": "head", "epochs": 1}
    trials = [*trials_of(depth=3, lr=[0.01, 0.1], seed=[0, 1], phases=[probe, {"epochs": 1}])]
    trials += trials_of(depth=3, phases=[probe | {"epochs": 2}, {"epochs": 1}])
    for trial in trials:
        assert not any(row["shared"] for row in rows_of(trial, shared))
    assert len(trained) == 2 * 5


def test_a_second_phase_is_shared_only_after_the_same_first(shared):
    """The second phases are equal as trials of one phase; what they start from is not."""
    second = {"depth": 3, "epochs": 1}
    one, other = (trial_of(depth=5, phases=[PROBE | {"lr": lr}, second, {"epochs": 1}]) for lr in (0.05, 0.2))
    assert one.phases()[1].name == other.phases()[1].name
    rows_of(one, shared)
    assert rows_of(other, shared) == rows_of(other)


@pytest.mark.parametrize("refit", [[2, 1], [1, 1]])
def test_the_final_fit_shares_nothing_with_the_trials(shared, refit):
    """Nor with a final fit of another length."""
    trial = trial_of(depth=3, phases=[PROBE, {"epochs": 1}])
    rows_of(trial, shared)
    assert rows_of(trial, shared, refit=refit) == rows_of(trial, refit=refit)
    other = rows_of(trial, shared, refit=[3 - refit[0], 1])
    assert not any(row["shared"] for row in other)


def test_a_phase_whose_trial_was_killed_is_trained_again(shared):
    """Tensors without the rows, which are written last, or a part of them, are no phase."""
    trial = trial_of(depth=3, phases=[PROBE, {"epochs": 1}])
    rows = rows_of(trial, shared)
    (about,) = shared.folder.glob("*.json")
    about.unlink()
    about.with_suffix(".part").write_bytes(b"half")
    assert rows_of(trial, shared) == rows


# ---- predictions of shared phases ----

OVERSHOT = {"depth": "head", "epochs": 4, "lr": 0.5}
"""A probe whose best epoch is its first, or near it, and better than what follows."""


def epochs_of(trial, sharing=None, **more):
    """Every epoch with the predictions after it."""
    one = Fit(trial, sharing or Sharing(Features(cache="never")), World(), **more)
    return [(measures, one.predictions) for measures in one.epochs()]


def assert_equal(some, other):
    for name, value in vars(some).items():
        assert torch.equal(value, getattr(other, name)), name


def counted(epochs):
    """The epoch that a trial counts with, with keep=best_loss, and its predictions."""
    return min(epochs, key=lambda epoch: epoch[0].val_loss)


def test_an_epoch_of_a_shared_phase_counts_for_every_trial_alike(shared):
    """With keep=best_loss: whoever trained it, and as if it were the trial's own."""
    trials = trials_of(depth=[3, 5, "all"], phases=[OVERSHOT, {"epochs": 2}], keep="best_loss")
    found = [epochs_of(trial, shared) for trial in trials]
    assert [epochs[0][0].shared for epochs in found] == [False, True, True]
    for trial, epochs in zip(trials, found, strict=True):
        measures, predictions = counted(epochs)
        assert measures.phase == 1
        assert measures.epoch < OVERSHOT["epochs"]
        assert measures.val_loss == predictions.loss
        assert_equal(predictions, counted(found[0])[1])
        assert_equal(predictions, counted(epochs_of(trial))[1])


def test_predictions_are_of_their_epoch(shared):
    """Of all epochs, also those of a shared phase: trials are compared at each rung, wherever it falls."""
    for trial in trials_of(depth=[3, "all"], phases=[OVERSHOT, {"epochs": 2}]):
        for (measures, predictions), (other, others) in zip(epochs_of(trial, shared), epochs_of(trial), strict=True):
            assert measures.epoch == other.epoch
            assert predictions is not None, measures.epoch
            assert (predictions.loss, predictions.accuracy) == (measures.val_loss, measures.val_accuracy)
            assert_equal(predictions, others)


def test_a_refit_predicts_nothing(shared):
    trial = trial_of(depth=3, phases=[PROBE, {"epochs": 1}])
    for _ in range(2):  # trained, then read
        assert [predictions for _, predictions in epochs_of(trial, shared, refit=[2, 1])] == [None] * 3


def predictions_of(seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(6) % 3
    confidence, losses = torch.rand(2, 6, generator=generator, dtype=torch.float64)
    return Predictions(labels, labels.roll(seed), confidence, losses, torch.arange(6) < 3)


@pytest.mark.parametrize("predicted", [True, False])
def test_a_shared_phase_can_be_written_and_read(tmp_path, predicted):
    epochs = tuple(
        Measures(epoch=epoch, lr_epoch=0.1, seconds=epoch + 0.25, train_loss=1 / 3, val_loss=0.1 / epoch, cached=True)
        for epoch in (3, 4)
    )
    state = {"fc.weight": torch.randn(3, 4).t(), "norm.num_batches_tracked": torch.tensor(7)}
    predictions = tuple(predictions_of(seed) if predicted else None for seed in (1, 2))
    SharedPhase(epochs, state, predictions).write(tmp_path / "abc")
    assert {path.name for path in tmp_path.iterdir()} == {"abc.json", "abc.safetensors"}
    found = SharedPhase.read(tmp_path / "abc")
    assert found.epochs == tuple(one.model_copy(update={"shared": True}) for one in epochs)
    assert found.state.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(found.state[name], value)
        assert found.state[name].dtype == value.dtype
    assert len(found.predictions) == 2
    for one, other in zip(found.predictions, predictions, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert_equal(one, other)


# ---- validation between epochs ----


@pytest.mark.parametrize("backbone", ["small_cnn", "cnn_1m"])
def test_validation_between_epochs(backbone):
    """cnn_1m has dropout, which must not be drawn otherwise for it."""
    plain, rows = (rows_of(trial_of(backbone, "all", validate_every_steps=steps)) for steps in (None, 2))
    assert [[one["step"] for one in row["val_by_step"]] for row in rows] == [[2], [4, 6]]
    assert without(rows, "val_by_step") == without(plain, "val_by_step")
    assert 2 * STEPS == 6  # the last step of the second epoch: the same network is measured twice
    assert rows[1]["val_by_step"][1] == {"step": 6, "epoch": 2.0} | {
        key: rows[1][key] for key in ("val_loss", "val_accuracy")
    }
    assert rows[0]["val_by_step"][0]["val_loss"] != rows[0]["val_loss"]


def test_an_epoch_without_such_a_step_says_nothing():
    rows = rows_of(trial_of(validate_every_steps=5))
    assert [len(row["val_by_step"]) for row in rows] == [0, 1]


# ---- patience ----


@pytest.mark.parametrize("shared", [False, True])
def test_epochs_are_counted_on_after_a_phase_ran_out_of_patience(tmp_path, shared):
    trial = trial_of(phases=[{"depth": "head", "epochs": 9, "lr": 1e-12}, {}], patience=1)
    sharing = Sharing(Features(cache="never"), folder=tmp_path if shared else None)
    for _ in range(2):  # read from the folder the second time
        rows = rows_of(trial, sharing)
        first = [row for row in rows if row["phase"] == 1]
        assert 2 <= len(first) < 9
        assert len(rows) > len(first)
        assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))


# ---- the end ----


def over(trial, sharing=None):
    """Phase and epoch of every epoch, and whether the fit says that it is the last."""
    one = Fit(trial, sharing or Sharing(Features(cache="never")), World())
    return [(measures.phase, measures.epoch, one.is_over) for measures in one.epochs()]


def test_the_last_epoch_is_known_when_it_ends():
    fit = Fit(trial_of(depth=3, epochs=3), Sharing(Features(cache="never")), World())
    assert not fit.is_over
    assert over(fit.trial) == [(1, 1, False), (1, 2, False), (1, 3, True)]


def test_patience_ends_a_trial_and_says_so():
    """At a learning rate that moves nothing the second and third epochs are no better than the first."""
    trial = trial_of(epochs=9, patience=2, optimizer="sgd", lr=1e-30)
    assert over(trial) == [(1, 1, False), (1, 2, False), (1, 3, True)]


@pytest.mark.parametrize("shares", [False, True])
def test_the_end_of_a_phase_is_not_the_end_of_the_trial(shared, shares):
    """Neither of one that is shared, nor of one that ran out of patience; the last phase may too."""
    trial = trial_of(
        epochs=5, patience=1, optimizer="sgd", phases=[{"depth": 1, "lr": 1e-30}, {"epochs": 1}, {"lr": 1e-30}]
    )
    expected = [(1, 1, False), (1, 2, False), (2, 3, False), (3, 4, False), (3, 5, True)]
    for _ in range(2):  # read from the folder the second time
        assert over(trial, shared if shares else None) == expected

"""Rows become tables: what is kept, what is inferred, what is tolerated."""

import pytest

from raysweep.report.tables import epochs_table, trials_table
from tests.report.synthetic_runs import EPOCHS, epoch_rows, finished, planned


def test_one_row_per_trial_with_its_last_epoch(make_run):
    trials = trials_table(make_run([(planned(3), "finished", epoch_rows(planned(3), 0.9, gap=0.02, seconds=2.0))]))
    row = trials.iloc[0]
    assert row[["backbone", "depth", "depth_label", "layers"]].tolist() == ["tf_efficientnet_lite0", 3, "3", 3]
    assert (row["state"], row["epochs_completed"], row["epochs_planned"]) == ("finished", EPOCHS, EPOCHS)
    assert row["val_accuracy"] == pytest.approx(0.9)
    assert row["gap"] == pytest.approx(0.02)
    assert row["seconds"] == pytest.approx(2.0 * EPOCHS)
    assert row["best_epoch"] == EPOCHS


def test_stopped_and_planned_trials_are_rows_too(make_run):
    stopped = planned(1, lr=0.1)
    trials = trials_table(make_run([(stopped, "stopped", epoch_rows(stopped, 0.5, 2)), (planned(3), "planned", [])]))
    assert trials["state"].tolist() == ["stopped", "planned"]
    assert trials["stopped_early"].tolist() == [True, False]
    assert trials["epochs_completed"].tolist() == [2, 0]
    assert trials["val_accuracy"].isna().tolist() == [False, True]


def test_a_dropped_trial_never_started_and_says_why(make_run):
    stopped = planned(1, lr=0.1)
    outcomes = [(stopped, "stopped", epoch_rows(stopped, 0.5, 3)), (planned(1, lr=0.1, seed=1), "dropped", [])]
    trials = trials_table(make_run(outcomes))
    assert trials["state"].tolist() == ["stopped", "dropped"]
    assert trials["stopped_early"].tolist() == [True, True]
    assert trials["epochs_completed"].tolist() == [3, 0]
    assert trials["why_stopped"].tolist() == ["7.1 ± 1.2 points behind lr 0.001 at epoch 3"] * 2


def test_why_a_trial_was_stopped_is_in_the_terms_of_the_objective(make_run):
    stopped = planned(1, lr=0.1)
    run = make_run([(stopped, "stopped", epoch_rows(stopped, 0.5, 3))], recipe={"objective": "loss"})
    assert trials_table(run)["why_stopped"].tolist() == ["a loss 0.071 ± 0.012 above that of lr 0.001 at epoch 3"]


def test_a_trial_out_of_patience_has_finished(make_run):
    """Its last row says so, though epochs are left."""
    *rows, last = epoch_rows(planned(1), 0.8, 4)
    run = make_run([(planned(1), "running", [*rows, last.model_copy(update={"over": True})])])
    row = trials_table(run).iloc[0]
    assert (row["state"], row["epochs_completed"], row["epochs_planned"]) == ("finished", 4, EPOCHS)


def test_every_score_is_a_column(make_run):
    row = trials_table(make_run([finished(planned(1), 0.8)])).iloc[0]
    assert row[["val_accuracy", "val_balanced_accuracy", "val_macro_f1", "val_loss"]].notna().all()
    assert len({*row[["val_accuracy", "val_balanced_accuracy", "val_macro_f1"]]}) == 3


def test_a_trial_with_all_its_epochs_has_finished_though_the_sweep_was_killed(make_run):
    plan = planned(1)
    assert trials_table(make_run([(plan, "running", epoch_rows(plan, 0.8))]))["state"].tolist() == ["finished"]


def test_planning_again_on_resume_undoes_no_state(make_run):
    run = make_run([(planned(1), "interrupted", epoch_rows(planned(1), 0.8, 2))])
    run.trials.append({"trial": planned(1).trial, "state": "planned"})
    assert trials_table(run)["state"].tolist() == ["interrupted"]


def test_an_epoch_run_twice_counts_once_as_it_was_last(make_run):
    rows = epoch_rows(planned(1), 0.8)
    run = make_run([(planned(1), "finished", [*rows, rows[-1].model_copy(update={"val_accuracy": 0.7})])])
    assert trials_table(run)["val_accuracy"].tolist() == [0.7]
    assert epochs_table(run)["epoch"].tolist() == list(range(1, EPOCHS + 1))


def test_epochs_carry_state_and_extra_axes(make_run):
    plan = planned(1, batch_size=64)
    epochs = epochs_table(make_run([(plan, "stopped", epoch_rows(plan, 0.5, 3))]))
    carried = epochs[["stopped_early", "epochs_completed", "batch_size"]].drop_duplicates()
    assert carried.to_numpy().tolist() == [[True, 3, 64]]


def test_rows_without_optional_columns(make_run):
    bare = {"trial": "a", "backbone": "b", "depth": ["layer1", "fc"], "lr": 0.1, "seed": 0, "epoch": 1}
    run = make_run([])
    run.epochs.append(bare | {"val_accuracy": 0.5})
    row = trials_table(run).iloc[0]
    assert (row["depth_label"], row["state"], row["val_accuracy"]) == ("layer1+fc", "interrupted", 0.5)


def test_nothing_yet(make_run):
    run = make_run([])
    assert trials_table(run).empty
    assert epochs_table(run).empty
    assert {"epochs_completed", "stopped_early"} <= {*trials_table(run).columns} & {*epochs_table(run).columns}


def test_a_trial_that_keeps_its_best_epoch_counts_with_that_one(make_run):
    rows = epoch_rows(planned(1), 0.8)
    rows[3] = rows[3].model_copy(update={"val_loss": 0.01, "val_accuracy": 0.75, "train_accuracy": 0.8})
    plan = planned(1).model_copy(update={"keep": "best_loss"})
    kept = trials_table(make_run([(plan, "finished", rows)], name="kept"))
    assert (kept["val_accuracy"][0], kept["epochs_completed"][0], kept["gap"][0]) == (0.75, 6, pytest.approx(0.05))
    assert trials_table(make_run([(planned(1), "finished", rows)], name="last"))["val_accuracy"][0] == pytest.approx(
        0.8
    )
